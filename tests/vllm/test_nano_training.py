"""Nano's training loop: what it keeps, how it goes on, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch

from training import optimise
from training.corpus import Clip, SpokenWord, write_shard
from training.train import Progress, load, load_nano, options, rate_scale, save, train

ROOT = Path(__file__).parents[2]
SIZES = {"encoder-layers": 1, "encoder-width": 32, "encoder-hidden": 32, "encoder-window": 16, "layers": 1, "width": 32}
SIZES |= {"hidden": 32, "window": 16, "ranks": 1, "size": 2, "delays": 2, "tokens": 40}
SMALL = [f"--{name}={value}" for name, value in SIZES.items()] + ["--no-compile", "--device=cpu"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words are tones of their own, so that there is something to learn."""
    folder = tmp_path_factory.mktemp("corpus")
    random = np.random.default_rng(0)
    at = np.arange(6400) / 16000
    tones = {word: 300 * (2 + number) for number, word in enumerate(("go", "stop", "left", "right"))}
    clips = []
    for _ in range(20):
        said = [str(word) for word in random.choice(list(tones), 3)]
        sound = np.concatenate([6000 * np.sin(2 * np.pi * tones[word] * at) for word in said]).astype(np.int16)
        words = tuple(SpokenWord(word, 0.4 * number, 0.4 * number + 0.38) for number, word in enumerate(said))
        clips.append(Clip(sound, words, "tones", "sentence"))
    write_shard(folder, "tones-0000", clips)
    return folder


def run(corpus: Path, out: Path, *more: str) -> list[str]:
    return ["--corpus", str(corpus), "--out", str(out), *SMALL, *more]


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The loop takes them for itself."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


FLAT = ("--minutes", "1000", "--decay-minutes", "0", "--steps")


def test_a_run_in_two_parts_is_the_run_in_one(corpus: Path, tmp_path: Path) -> None:
    for name, steps in (("one", "6"), ("two", "2"), ("two", "6")):
        train(options(run(corpus, tmp_path / name, *FLAT, steps)))
    one, two = (load(tmp_path / name / "state.pt") for name in ("one", "two"))
    assert one["progress"]["step"] == two["progress"]["step"] == 6
    assert one["progress"]["audio_seconds"] == two["progress"]["audio_seconds"] == 6 * 2 * 40 * 0.08
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], tensor, atol=1e-6, rtol=1e-5)


def test_it_learns(corpus: Path, tmp_path: Path) -> None:
    train(options(run(corpus, tmp_path, *FLAT, "100", "--no-augment")))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [20, 40, 60, 80, 100]
    assert lines[-1]["token_loss"] < 0.6 * lines[0]["token_loss"]
    assert lines[-1]["sound_loss"] < 0.8 * lines[0]["sound_loss"]


def test_asked_to_end_it_keeps_its_state_and_another_shape_is_refused(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.train", *run(corpus, tmp_path, "--minutes", "1000")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert "parameters, from step 0" in process.stdout.readline()
        assert '"step": 20' in process.stdout.readline()
        process.terminate()
        rest, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "stopped at step" in rest
    assert load(tmp_path / "state.pt")["progress"]["step"] >= 20
    assert load_nano(tmp_path / "state.pt").shape.encoder_width == 32
    with pytest.raises(SystemExit, match="another shape"):
        train(options([*run(corpus, tmp_path), "--hidden", "64"]))


def test_a_state_that_cannot_be_written_leaves_the_one_before(corpus: Path, tmp_path: Path) -> None:
    plan = options(run(corpus, tmp_path, *FLAT, "1"))
    train(plan)
    before = (tmp_path / "state.pt").read_bytes()
    nano = load_nano(tmp_path / "state.pt")
    (tmp_path / "state.new").mkdir()  # where it would be written
    with pytest.raises((OSError, RuntimeError)):
        save(tmp_path / "state.pt", nano, optimise.Optimiser(nano), Progress(), plan)
    assert (tmp_path / "state.pt").read_bytes() == before


def test_the_rate_rises_stays_and_falls_to_nothing(corpus: Path, tmp_path: Path) -> None:
    plan = options(run(corpus, tmp_path, "--minutes", "100", "--decay-minutes", "20"))
    assert rate_scale(0, 0.0, plan) < 0.05
    assert rate_scale(500, 10.0, plan) == rate_scale(5000, 80.0, plan) == 1.0
    assert rate_scale(5000, 90.0, plan) == pytest.approx(0.5)
    assert rate_scale(5000, 100.0, plan) == 0.0


def test_matrices_become_about_orthogonal() -> None:
    torch.manual_seed(0)
    for rows, columns in ((32, 32), (48, 24), (24, 48)):
        values = torch.linalg.svdvals(optimise.orthogonal(torch.randn(2, rows, columns)))
        assert values.min() > 0.3
        assert values.max() < 1.4
