"""Prints how far the word times of our forced alignment lie from known ones, and what it costs."""

from __future__ import annotations

import argparse
import time

import numpy as np

from harness import audio
from harness.alignment import Aligner, aligner
from harness.corpus import load


def main() -> None:
    """One line per end of a word, one for speed; the corpus must have word times of its own to compare with."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="spoken-en")
    parser.add_argument("--limit", type=int, default=None)
    options = parser.parse_args()
    corpus = load(options.dataset, limit=options.limit)
    aligning = Aligner()
    starts, ends, failed, seconds = [], [], 0, 0.0
    begun = time.process_time()
    for one in corpus.utterances:
        found = aligning.align(audio.load(one), one.text)
        seconds += one.seconds
        if found is None:
            failed += 1
        elif one.words is not None and len(found) == len(one.words):
            starts += [word.start - known.start for word, known in zip(found, one.words, strict=True)]
            ends += [word.end - known.end for word, known in zip(found, one.words, strict=True)]
    spent = time.process_time() - begun
    print(
        f"{aligner()} against {corpus.alignment or 'nothing'}: {len(corpus.utterances)} utterances, {failed} not aligned"
    )
    for name, differences in (("start", starts), ("end", ends)):
        if differences:
            size = 1000 * np.abs(differences)
            print(
                f"{name:5} |difference| median {np.median(size):.0f} ms, p90 {np.quantile(size, 0.9):.0f} ms, "
                f"p99 {np.quantile(size, 0.99):.0f} ms, max {size.max():.0f} ms, bias {1000 * np.mean(differences):+.1f} ms, "
                f"{len(size)} words"
            )
    print(
        f"{spent:.1f} s of processor time for {seconds / 60:.1f} minutes of audio: {spent / seconds:.4f} of real time"
    )


if __name__ == "__main__":
    main()
