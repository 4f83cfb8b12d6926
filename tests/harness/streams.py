"""Hand-made stream records for the tests of the measures."""

from __future__ import annotations

from typing import Any

from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.words import TimedWord

T0_NS = 5_000_000_000


def at(seconds: float) -> int:
    """The nanosecond that lies so many seconds behind T0."""
    return T0_NS + round(seconds * 1e9)


def said(*words: tuple[str, float, float]) -> tuple[TimedWord, ...]:
    return tuple(TimedWord(text, start, end) for text, start, end in words)


def per_second(text: str) -> tuple[TimedWord, ...]:
    """Word k (from 1) is spoken from k - 0.5 to k seconds."""
    return tuple(TimedWord(word, k - 0.5, float(k)) for k, word in enumerate(text.split(), start=1))


def appended(seconds: float, text: str) -> Entry:
    return Entry(at(seconds), Kind.APPENDED, text=text)


def tentative(seconds: float, text: str) -> Entry:
    return Entry(at(seconds), Kind.TENTATIVE, text=text)


def final(seconds: float, text: str) -> Entry:
    return Entry(at(seconds), Kind.FINAL, text=text)


def record(words: tuple[TimedWord, ...] | None, *entries: Entry, **fields: Any) -> StreamRecord:
    """A stream that ended well when its last entry is a final transcript, unless ``fields`` say otherwise."""
    ended = bool(entries) and entries[-1].kind is Kind.FINAL
    settings: dict[str, Any] = {
        "stream": 0,
        "utterance": "u",
        "t0_ns": T0_NS,
        "audio_seconds": (words[-1].end + 1.0) if words else 10.0,
        "reference": " ".join(word.text for word in words or ()),
        "words": words,
        "outcome": Outcome.OK if ended else Outcome.FAILED,
        "hypothesis": entries[-1].text if ended else "",
        "entries": list(entries),
    }
    return StreamRecord(**{**settings, **fields})
