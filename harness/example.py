"""A study small enough to be made while one waits: audio that carries its own words, an engine that is late on purpose."""

from __future__ import annotations

import subprocess
import sys
import wave
from itertools import product
from pathlib import Path

import msgspec

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


def study(folder: Path) -> Path:
    """Measure four cells on two servers, in half a minute at most; the path of the table.

    It runs in a process of its own, for a notebook has an event loop already.

    Raises:
        RuntimeError: the study failed, with what it said.
    """
    file = folder / "example.toml"
    file.write_text(STUDY.replace("DATASET", dataset(folder / "spoken").as_posix()), encoding="utf-8")
    command = [sys.executable, "-m", "harness.cli", "study", str(file), "--out", str(folder / "study")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return folder / "study" / "study.parquet"


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
