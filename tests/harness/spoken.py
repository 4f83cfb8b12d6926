"""A dataset of `tones` on disk: three utterances with word times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from tests.harness.tones import sing, words_of
from wire.pcm import SAMPLE_RATE

TEXTS = ("one two three four five six seven", "eight one eight two", "five four three two one")


def write_dataset(folder: Path) -> Path:
    """Writes manifest and WAV files into a new folder."""
    folder.mkdir()
    rows = []
    for index, text in enumerate(TEXTS):
        words = words_of(text)
        seconds = round(words[-1].end + 0.3, 2)
        samples = np.frombuffer(sing(words, seconds), "<i2")
        soundfile.write(folder / f"u{index}.wav", samples, SAMPLE_RATE, subtype="PCM_16")
        timed = [{"text": word.text, "start": word.start, "end": word.end} for word in words]
        row = {"id": f"u{index}", "audio": f"u{index}.wav", "seconds": seconds, "text": text, "speaker": f"s{index}"}
        rows.append({**row, "words": timed})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
