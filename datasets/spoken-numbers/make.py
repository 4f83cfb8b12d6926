"""Speaks sentences of nano's language, kept apart for tests, with four flite voices into flac/, and writes manifest.jsonl.

    python datasets/spoken-numbers/make.py       # from the repository root; needs flite, numpy, soundfile, soxr

The sentences come again with the seed. The sound does not: slt, rms and awb do not repeat themselves to the bit, so a new run gives
other hashes, and the committed audio is the dataset.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import soundfile

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from training.flite import FLITE  # noqa: E402 - the package lies in the repository, wherever this is run from
from training.grammar import part, sentence_of  # noqa: E402
from training.speaking import RATE, Manner, Spoken  # noqa: E402
from training.voices import SPEAKERS_FOR_TESTS  # noqa: E402

SEED = 20_2611
UTTERANCES = {"slt": 32, "rms": 32, "kal16": 32, "awb": 54}
LEAD_SECONDS = (0.2, 0.8)  # before the first word
TAIL_SECONDS = 0.4  # after the last
PAUSE_PROBABILITY = 0.12  # of a short one after a word
NOISE_FLOOR = 1.5  # standard deviation in steps of 16-bit PCM, about -87 dBFS: no silence is digital zero


def sentences(random: np.random.Generator, count: int) -> list[list[str]]:
    """Different ones, all of the part that is kept for tests."""
    found: dict[str, list[str]] = {}
    while len(found) < count:
        words = sentence_of("test", random)
        found.setdefault(" ".join(words), words)
    return list(found.values())


def with_room(spoken: Spoken, random: np.random.Generator) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """16-bit samples with silence at both ends over a noise floor, and the times of the words in them."""
    first, last = round(spoken.times[0][0] * RATE), round(spoken.times[-1][1] * RATE)
    lead = round(random.uniform(*LEAD_SECONDS) * RATE)
    speech = spoken.samples[first : last + round(TAIL_SECONDS * RATE)]
    padded = np.pad(speech, (lead, max(0, last - first + round(TAIL_SECONDS * RATE) - len(speech)))) * 32_768
    pcm = np.clip(np.rint(padded + random.normal(0, NOISE_FLOOR, len(padded))), -32_768, 32_767).astype(np.int16)
    shift = (lead - first) / RATE
    return pcm, [(start + shift, end + shift) for start, end in spoken.times]


def main() -> None:
    """Writes the dataset beside this file."""
    random = np.random.default_rng(SEED)
    speakers = random.permutation([voice for voice, count in UTTERANCES.items() for _ in range(count)]).tolist()
    (HERE / "flac").mkdir(exist_ok=True)
    rows = []
    for number, (speaker, words) in enumerate(zip(speakers, sentences(random, len(speakers)), strict=True), 1):
        assert part(words) == "test"
        manner = Manner(pauses=tuple(bool(pause) for pause in random.random(len(words) - 1) < PAUSE_PROBABILITY))
        pcm, times = with_room(FLITE[speaker].speak(words, manner), random)
        path = HERE / "flac" / f"numbers-{number:03d}-{speaker}.flac"
        soundfile.write(path, pcm, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
        rows.append(
            {
                "id": path.stem,
                "audio": f"flac/{path.name}",
                "seconds": round(len(pcm) / RATE, 7),
                "text": " ".join(words),
                "speaker": speaker,
                "language": "en",
                "tags": {
                    "kind": "numbers",
                    "voice": f"cmu_us_{speaker}",
                    "trained-on": "no" if speaker in SPEAKERS_FOR_TESTS else "yes",
                },
                "words": [
                    {"text": word, "start": round(start, 3), "end": round(end, 3)}
                    for word, (start, end) in zip(words, times, strict=True)
                ],
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    (HERE / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    print(f"{len(rows)} utterances, {sum(row['seconds'] for row in rows) / 60:.2f} min in {HERE}", file=sys.stderr)


if __name__ == "__main__":
    main()
