"""``earmark bench`` as people run it against a service: a process of its own, the key from the environment, scores at the end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import store
from harness.timeline import Kind
from tests.harness.services import KEY, Service, local
from tests.harness.spoken import TEXTS, write_dataset
from tests.harness.tones import WORD_SECONDS

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"deepgram": "DEEPGRAM_API_KEY", "openai": "OPENAI_API_KEY", "mistral": "MISTRAL_API_KEY"}


async def bench(
    name: str, server: Service | None, folder: Path, *arguments: str, key: str = KEY
) -> tuple[int, str, str]:
    environment = {variable: value for variable, value in os.environ.items() if variable not in KEYS.values()}
    environment["EARMARK_API_KEY"] = "for our own servers alone"
    if key:
        environment[KEYS[name]] = key
    target = ["--target", server.url] if server else []
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "harness.cli", "bench", "--protocol", name, *target, *arguments),
        *("--dataset", str(folder / "tones"), "--out", str(folder / "runs"), "--no-report", "--json"),
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complained = await asyncio.wait_for(process.communicate(), 200)
    return process.returncode or 0, said.decode(), complained.decode()


def files_with(text: str, folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if text.encode() in file.read_bytes()]


@pytest.mark.parametrize("name", KEYS)
async def test_a_service_is_measured_and_scored(name: str, tmp_path: Path) -> None:
    write_dataset(tmp_path / "tones")
    async with local(name) as server:
        code, said, complained = await bench(name, server, tmp_path, "--concurrency", "3")
    assert code == 0, complained
    (run,) = json.loads(said.splitlines()[-1])["runs"]
    scores: dict[str, Any] = run["scores"]
    assert scores["outcomes"] == {"ok": 3}
    assert scores["accuracy"]["wer"]["value"] == 0
    assert scores["accuracy"]["reference_words"] == sum(len(text.split()) for text in TEXTS)
    folder = Path(run["folder"])
    kept = store.read_run(folder)
    assert (kept.config.protocol, kept.config.engine, kept.config.delay_ms) == (name, name, None)
    assert (
        kept.config.model
        == {
            "deepgram": "nova-3",
            "openai": "gpt-live-transcribe",
            "mistral": "voxtral-mini-transcribe-realtime-2602",
        }[name]
    )
    assert not (folder / "metrics-before.txt").exists()  # nobody asks a service for such things
    # An interim result may show a word as soon as it sounds, and nothing can be heard before that.
    emission = scores["latency"]["word_emission_latency"]
    assert emission["missing"] == 0
    assert emission["p50"]["value"] > -WORD_SECONDS
    assert files_with(KEY, folder) == []
    assert all(record.first(Kind.FINAL) for record in store.read_records(folder))


async def test_without_its_key_a_service_is_not_asked_at_all(tmp_path: Path) -> None:
    write_dataset(tmp_path / "tones")
    code, _, complained = await bench("deepgram", None, tmp_path, key="")
    assert code == 3
    assert "DEEPGRAM_API_KEY" in complained
    assert "Traceback" not in complained


async def test_a_refused_key_is_one_sentence_and_names_the_variable(tmp_path: Path) -> None:
    write_dataset(tmp_path / "tones")
    async with local("openai") as server:
        code, _, complained = await bench("openai", server, tmp_path, key="mistaken")
    assert code == 3
    assert "OPENAI_API_KEY" in complained
    assert "mistaken" not in complained
    assert "Traceback" not in complained
    assert server.seen == []
