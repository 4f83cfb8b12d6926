"""What an utterance sounds like and looks like: audio small enough to travel inside a page, and its outline."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from functools import cache

import av
import av.error
import numpy as np

from harness import audio
from harness.audio import SAMPLE_RATE, AudioError
from harness.corpus import CorpusError, Utterance
from harness.corpus.mix import load_mix

BITS_PER_SECOND = 24_000
FRAME_SAMPLES = 576  # of MP3 at 16 kHz
COLUMNS = 360
LENGTH_TOLERANCE_SECONDS = 0.05


def recordings(
    dataset: str, wanted: Mapping[str, tuple[str, float]], speakers: Collection[str] = ()
) -> dict[str, Utterance]:
    """The utterances of a dataset that a run replayed, as far as they are here and the same: ``wanted`` has text and seconds by id."""
    try:
        corpus = _corpus(dataset, frozenset(speakers))
    except (CorpusError, OSError):
        return {}
    found = {}
    for one in corpus:
        text, seconds = wanted.get(one.id, ("", -1.0))
        if one.text == text and abs(one.seconds - seconds) < LENGTH_TOLERANCE_SECONDS:
            found[one.id] = one
    return found


@cache
def _corpus(dataset: str, speakers: frozenset[str]) -> tuple[Utterance, ...]:
    """Only what these speakers say, where they are named: of a large dataset not every file has to be looked at then."""
    return load_mix(dataset, skip_bad=True, speakers=speakers).utterances


def pcm(utterance: Utterance) -> bytes | None:
    """The audio as servers were fed it; ``None`` where the file is gone or broken."""
    try:
        return audio.load(utterance)
    except (AudioError, OSError):
        return None


def data_uri(samples: bytes) -> str:
    """PCM16 at 16 kHz as a small MP3, which every browser plays, in the page itself; empty where it cannot be made."""
    buffer = io.BytesIO()
    try:
        with av.open(buffer, "w", format="mp3") as container:
            stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, options={"b": str(BITS_PER_SECOND)})
            stream.layout = "mono"
            values = np.frombuffer(samples, "<i2")
            for at in range(0, len(values), FRAME_SAMPLES):
                frame = av.AudioFrame.from_ndarray(values[None, at : at + FRAME_SAMPLES], format="s16p", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, at, Fraction(1, SAMPLE_RATE)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except (av.error.FFmpegError, ValueError):
        return ""
    return f"data:audio/mpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def encoded_size(seconds: float) -> int:
    """About how many characters `data_uri` needs."""
    return round(seconds * BITS_PER_SECOND / 8 * 4 / 3) + 500


def outline(samples: bytes, columns: int = COLUMNS) -> str:
    """The loudest and the lowest of each stretch as an SVG path in a box of ``columns`` by 100, scaled to the loudest of all."""
    values = np.frombuffer(samples, "<i2").astype(np.float64)
    if not len(values):
        return ""
    parts = np.array_split(values, min(columns, len(values)))
    loudest = max(float(np.abs(values).max()), 1.0)
    tops = [round(50 - 48 * max(float(part.max()), 0.0) / loudest) for part in parts]
    lows = [round(50 - 48 * min(float(part.min()), 0.0) / loudest) for part in parts]
    there = " ".join(f"{x} {y}" for x, y in enumerate(tops))
    back = " ".join(f"{x} {y}" for x, y in reversed(list(enumerate(lows))))
    return f"M{there} {back}Z"


def ticks(seconds: float) -> Sequence[tuple[float, str]]:
    """A few round times along the audio: (per cent of it, label)."""
    step = next((step for step in (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800) if seconds / step <= 6), 3600)
    return (
        [(100 * at / seconds, f"{at} s") for at in range(0, int(seconds - step / 3) + 1, step)] if seconds > 0 else []
    )
