"""Prints what the dataset's README says: PocketSphinx word error rate, and how far its forced alignment lies from the word times.

python datasets/spoken-en/measure.py         # from the repository root; about a minute of one core
python datasets/spoken-en/measure.py datasets/spoken-numbers
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pocketsphinx
import soundfile
from whisper_normalizer.english import EnglishTextNormalizer

HERE = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(__file__).resolve().parent
PACKET_BYTES = 2_560  # 80 ms
FRAMES_PER_SECOND = 100
FAST = {
    "fwdflat": False,
    "bestpath": False,
    "maxhmmpf": 3_000,
    "maxwpf": 10,
    "cmninit": "51.31,1.54,-1.93,9.43,-5.85,1.05,-7.33,-5.57,-2.03,-1.77,-0.52,-1.81,1.38",
}


def hear(decoder: pocketsphinx.Decoder, pcm: bytes) -> str:
    """What the decoder makes of the audio, fed in 80 ms packets as a stream would be."""
    decoder.set_cmn(FAST["cmninit"])  # else the result depends on the utterance before
    decoder.start_utt()
    for offset in range(0, len(pcm), PACKET_BYTES):
        decoder.process_raw(pcm[offset : offset + PACKET_BYTES])
    decoder.end_utt()
    hypothesis = decoder.hyp()
    return hypothesis.hypstr if hypothesis else ""


def align(decoder: pocketsphinx.Decoder, pcm: bytes, words: list[str]) -> list[tuple[float, float]] | None:
    """Start and end in seconds of each word by forced alignment; None where the decoder finds none or lacks a word."""
    if any(decoder.lookup_word(word) is None for word in words):
        return None
    decoder.set_align_text(" ".join(words))
    decoder.start_utt()
    decoder.process_raw(pcm, full_utt=True)
    decoder.end_utt()
    segments = decoder.seg()
    if segments is None:
        return None
    found = [
        (segment.start_frame / FRAMES_PER_SECOND, (segment.end_frame + 1) / FRAMES_PER_SECOND)
        for segment in segments
        if not segment.word.startswith(("<", "[", "("))
    ]
    return found if len(found) == len(words) else None


def main() -> None:
    """Reads the whole dataset once and prints the figures."""
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in (HERE / "manifest.jsonl").read_text("utf-8").splitlines()
    ]
    recogniser, aligner = pocketsphinx.Decoder(**FAST, loglevel="FATAL"), pocketsphinx.Decoder(loglevel="FATAL")
    normalise = EnglishTextNormalizer()
    errors: Counter[str] = Counter()
    reference_words: Counter[str] = Counter()
    starts, ends, unaligned, lost_tails = [], [], [], 0
    for row in rows:
        pcm = soundfile.read(HERE / row["audio"], dtype="int16")[0].tobytes()
        reference, heard = normalise(row["text"]), normalise(hear(recogniser, pcm))
        result = jiwer.process_words(reference, heard)
        for group in ("all", row["speaker"], "kind " + row["tags"]["kind"]):
            errors[group] += result.substitutions + result.deletions + result.insertions
            reference_words[group] += len(reference.split())
        lost_tails += reference.split()[-1:] != heard.split()[-1:]
        print(f"{row['id']}\n  said  {reference}\n  heard {heard}")
        aligned = align(aligner, pcm, [re.sub(r"[^a-z']", "", word["text"].lower()) for word in row["words"]])
        if aligned is None:
            unaligned.append(row["id"])
            continue
        starts += [start - word["start"] for (start, _), word in zip(aligned, row["words"], strict=True)]
        ends += [end - word["end"] for (_, end), word in zip(aligned, row["words"], strict=True)]
    print(
        f"\nutterances {len(rows)}, audio {sum(row['seconds'] for row in rows) / 60:.2f} min, last word differs in {lost_tails}"
    )
    for group, words in reference_words.items():
        print(f"WER {group:14s} {100 * errors[group] / words:5.1f} %  of {words} words")
    for name, differences in (("start", starts), ("end", ends)):
        magnitude = np.abs(differences) * 1_000
        print(
            f"forced alignment - {name}: mean |difference| {magnitude.mean():.1f} ms, p95 {np.percentile(magnitude, 95):.0f} ms,"
            f" max {magnitude.max():.0f} ms, bias {np.mean(differences) * 1_000:+.1f} ms, {len(magnitude)} words"
        )
    print(f"not aligned: {unaligned or 'none'}")


if __name__ == "__main__":
    main()
