"""A recognised word with its place in the audio, as our protocols carry it in their additive fields."""

from __future__ import annotations

import msgspec


class TimedWord(msgspec.Struct, frozen=True):
    """``start`` and ``end`` in seconds from the first sample of the utterance."""

    text: str
    start: float
    end: float
