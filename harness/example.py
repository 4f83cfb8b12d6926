"""Measurements small enough to be made while one waits: audio that carries its own words, an engine that does as it is told."""

from __future__ import annotations

import subprocess
import sys
import wave
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness import gate
from harness.gate import CellRecord
from harness.gate.records import COUNTS
from wire.pcm import SAMPLE_RATE
from wire.scripted import speak
from wire.words import TimedWord

UTTERANCES = 8
WORDS = 9
STEP_SECONDS = 0.19
MOST_SECONDS = 120.0  # for a machine on which it takes three times as long as usual
STUDY = """
name = "example"
question = "Is a word later by what the engine waits? And by what its packet waits?"

[server]
engine = "scripted"
script = ['{"latency_ms":20,"jitter_ms":30,"seed":1}', '{"latency_ms":220,"jitter_ms":30,"seed":1}']

[harness]
dataset = "DATASET"
concurrency = 8
delay-ms = 160
packet-ms = [40, 160]
"""


PROTOCOLS = """
name = "example"
question = "Do the protocols differ?"

[server]
engine = "scripted"
script = '{"latency_ms":20,"jitter_ms":5,"seed":1}'

[harness]
dataset = "DATASET"
concurrency = 4
delay-ms = 160
protocol = ["yap", "realtime"]
repeat = 2
"""
CARRIED = 6.5  # streams that the example of a search has hearing for: six keep up, eight fall behind by a fifth of their audio


def study(folder: Path, text: str = STUDY) -> Path:
    """Measure four cells on two servers (or what ``text`` says), in half a minute at most; the path of the table.

    It runs in a process of its own, for a notebook has an event loop already.

    Raises:
        RuntimeError: the study failed, with what it said.
    """
    file = folder / "example.toml"
    file.write_text(text.replace("DATASET", dataset(folder / "spoken").as_posix()), encoding="utf-8")
    _earmark("study", str(file), "--out", str(folder / "study"))
    return folder / "study" / "study.parquet"


def protocols(folder: Path) -> Path:
    """Measure the same load over each streaming protocol, in a quarter of a minute; the path of the table.

    Raises:
        RuntimeError: the study failed, with what it said.
    """
    return study(folder, PROTOCOLS)


def capacity(folder: Path) -> Path:
    """Search the capacity of a server that carries six streams, in about half a minute; the folder of the search.

    Raises:
        RuntimeError: the search failed, with what it said.
    """
    said = dataset(folder / "spoken", words_each=5)
    _earmark(
        "capacity", "--engine", "scripted", f'--server-option=--script={{"latency_ms":20,"capacity_streams":{CARRIED}}}',
        "--dataset", str(said), "--delay-ms", "160", "--slo", "word_p95=0.32", "--idle-seconds", "9", "--seconds", "5",
        "--start", "3", "--most", "12", "--repeats", "1", "--step", "2", "--out", str(folder / "capacity"),
    )  # fmt: skip
    return folder / "capacity"


def _earmark(*arguments: str) -> None:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def history(
    record: CellRecord, runs: int = 18, later_from: int = 11, later_by_seconds: float = 0.2
) -> list[dict[str, Any]]:
    """Rows of a history that never was: the utterances of one real run drawn anew for each of ``runs``, their latencies longer by so much
    from run ``later_from`` on. Drawn runs scatter more than runs of the same utterances do.
    """
    random = np.random.default_rng(0)
    columns = ("utterances", "speakers", *COUNTS)
    cells = []
    for number in range(1, runs + 1):
        drawn = random.integers(0, len(record.utterances), len(record.utterances))
        later = later_by_seconds if number >= later_from else 0.0
        made = {name: [getattr(record, name)[place] for place in drawn] for name in columns}
        made["utterances"] = [f"{place}-{name}" for place, name in enumerate(made["utterances"])]
        latencies = {
            name: [None if values[place] is None else values[place] + later for place in drawn]
            for name, values in record.latencies.items()
        }
        events = {name: [values[place] for place in drawn] for name, values in record.events.items()}
        label = f"drawn-{number:02d}"
        cells.append(
            msgspec.structs.replace(
                record,
                engine=f"{record.engine}, drawn",
                run=label,
                commit=label,
                created=f"{number:02d}",
                latencies=latencies,
                events=events,
                **made,
            )
        )
    return gate.as_rows(cells)


def dataset(folder: Path, words_each: int = WORDS) -> Path:
    """Write utterances of words that the scripted engine hears where they are, with a manifest; the folder."""
    folder.mkdir(parents=True)
    seconds = round(0.5 + STEP_SECONDS * words_each, 2)
    syllables = ("ka", "lo", "mi", "nu", "pe", "ra", "so", "ti")
    vocabulary = ["".join(pair) for pair in product(syllables, repeat=2)]
    rows = []
    for number in range(UTTERANCES):
        starts = [round(0.3 + 0.01 * number + STEP_SECONDS * place, 2) for place in range(words_each)]
        words = [TimedWord(vocabulary[(7 * number + n) % 64], at, round(at + 0.13, 2)) for n, at in enumerate(starts)]
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(speak(words, seconds))
        rows.append(
            {
                "id": f"said-{number}",
                "audio": f"{number}.wav",
                "seconds": seconds,
                "text": " ".join(word.text for word in words),
                "speaker": f"voice-{number}",
                "language": "en",
                "words": words,
            }
        )
    (folder / "manifest.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return folder
