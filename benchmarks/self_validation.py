"""How far the instrument is off: latencies, drift and errors that an engine injects, beside those that are measured, at many streams.

    python benchmarks/self_validation.py [--streams 1,50,200] [--seconds 10] [--generators 1] [--protocol realtime]

The error of a word is its measured latency less the injected one: it holds the server's and the sockets' time too, so it is an upper bound.
The tolerances are 5 ms at p50 and 15 ms at p99; they are judged only where the generator kept its own schedule (valid runs).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from math import ceil
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import soundfile

from harness import bench, store
from harness.corpus import Corpus, Utterance
from harness.score import read_scores, score
from wire.pcm import SAMPLE_RATE
from wire.scripted import speak
from wire.words import TimedWord

DELAY_MS, LATENCY_MS, PACKET_SECONDS = 160, 120, 0.08
P50_MS, P99_MS, DRIFT = 5.0, 15.0, 0.01
STEP_SECONDS, WORD_SECONDS = 0.17, 0.12
DELETE_EVERY, SUBSTITUTE_EVERY = 12, 5
RATE = 0.9  # seconds of audio that the engine of the drift run hears per second
DIFFERENT = 8


def corpus(folder: Path, streams: int, seconds: float) -> Corpus:
    """Utterances of unlike words, shifted against each other so that they do not come in step."""
    syllables = ("ka", "lo", "mi", "nu", "pe", "ra", "so", "ti", "vu", "ze")
    vocabulary = ["".join(pair) for pair in product(syllables, repeat=2)]
    count = int((seconds - 0.8) / STEP_SECONDS)
    utterances = []
    for number in range(DIFFERENT):
        starts = [round(0.3 + 0.02 * number + n * STEP_SECONDS, 2) for n in range(count)]
        words = tuple(
            TimedWord(vocabulary[n % len(vocabulary)], start, round(start + WORD_SECONDS, 2))
            for n, start in enumerate(starts)
        )
        path = folder / f"{number}.wav"
        soundfile.write(path, np.frombuffer(speak(words, seconds), "<i2"), SAMPLE_RATE, subtype="PCM_16")
        text = " ".join(word.text for word in words)
        utterances.append(Utterance(f"u{number}", text, seconds, speaker=f"s{number}", audio=path, words=words))
    return Corpus("scripted", "en", tuple(utterances[n % DIFFERENT] for n in range(streams)), sha256="0" * 64)


def injected_seconds(word_end: float, seconds: float) -> float:
    """A word is said a fixed time after the packet has come with which the audio heard reaches its end plus the delay."""
    heard = ceil(round((word_end + DELAY_MS / 1000) / PACKET_SECONDS, 6)) * PACKET_SECONDS
    return min(heard, seconds) - word_end + LATENCY_MS / 1000


def run(folder: Path, streams: int, seconds: float, script: dict[str, float], asked: argparse.Namespace) -> Path:
    """One run, scored; its folder."""
    folder.mkdir()
    plan = bench.Plan(
        concurrencies=[streams],
        delays_ms=[DELAY_MS],
        protocol=asked.protocol,
        engine="scripted",
        server_options=["--script", json.dumps(script)],
        out=folder / "runs",
        load=bench.Load(generators=asked.generators),
    )
    found = bench.run(plan, corpus(folder, streams, seconds)).runs[0]
    score(found)
    return found


def measure(streams: int, seconds: float, asked: argparse.Namespace) -> dict[str, object]:
    """Both runs at so many streams, and what is wrong with them."""
    with tempfile.TemporaryDirectory() as temporary:
        script: dict[str, float] = {
            "latency_ms": LATENCY_MS, "delete_every": DELETE_EVERY, "substitute_every": SUBSTITUTE_EVERY
        }  # fmt: skip
        path = run(Path(temporary) / "latency", streams, seconds, script, asked)
        slow = run(Path(temporary) / "drift", streams, seconds, {"audio_rate": RATE}, asked)
        return summed_up(path, slow, streams, seconds)


def summed_up(path: Path, slow: Path, streams: int, seconds: float) -> dict[str, object]:
    """Errors of the latencies in milliseconds, counts that are wrong, and the error of the drift."""
    rows, scores = store.read_rows(path / "utterances.parquet"), read_scores(path)
    said = store.read_references(path)
    ends = [[word.end for word in said[row["utterance"]]["words"]] for row in rows]
    errors = [
        1000 * abs(found - injected_seconds(end, seconds))
        for row, ended in zip(rows, ends, strict=True)
        for end, found in zip(ended, row["word_emission_latencies"], strict=True)
        if found is not None
    ]
    words = len(ends[0])
    deleted = [n for n in range(words) if n % DELETE_EVERY == DELETE_EVERY - 1]
    replaced = [n for n in range(words) if n % SUBSTITUTE_EVERY == SUBSTITUTE_EVERY - 1 and n not in deleted]
    accuracy = scores.accuracy
    miscounted = (
        abs(accuracy.deletions - streams * len(deleted))
        + abs(accuracy.substitutions - streams * len(replaced))
        + accuracy.insertions
        + streams - scores.outcomes.get("ok", 0)
    )  # fmt: skip
    drifts = [row["drift"] for row in store.read_rows(slow / "utterances.parquet") if row["drift"] is not None]
    p50, p99 = (float(value) for value in np.percentile(errors, [50, 99]))
    drift = float(np.median(drifts)) - (1 - RATE)
    return {
        "streams": streams,
        "words": len(errors),
        "error_p50_ms": round(p50, 2),
        "error_p99_ms": round(p99, 2),
        "miscounted": int(miscounted),
        "drift_error": round(drift, 4),
        "pacing_p99_ms": round(1000 * (scores.pacing.p99.value or 0.0), 2),
        "valid": scores.valid and read_scores(slow).valid,
        "holds": p50 <= P50_MS and p99 <= P99_MS and not miscounted and abs(drift) <= DRIFT,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every valid run is within the tolerances."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,50,200")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--generators", type=int, default=1)
    parser.add_argument("--protocol", default="realtime")
    asked = parser.parse_args(arguments)
    wrong = 0
    for streams in [int(part) for part in asked.streams.split(",")]:
        found = measure(streams, asked.seconds, asked)
        wrong += bool(found["valid"]) and not found["holds"]
        print(json.dumps(found), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
