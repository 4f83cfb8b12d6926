"""What it is to say a sentence: the words, the manner, the sound, and when each word is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import soxr

RATE = 16_000
Samples = npt.NDArray[np.float32]
Accent = tuple[tuple[str, str], ...]
Times = tuple[tuple[float, float], ...]


class SynthesiserMissingError(Exception):
    """A program or library that speaks is not installed; the message says which package has it."""


class SpokenOtherwiseError(Exception):
    """The synthesiser split the text into other words than it was given, so their times are not known."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a sentence is said; factors are relative to the voice as its makers left it."""

    duration: float = 1.0  # of every sound
    pitch: float = 1.0
    melody: float = 1.0  # how far the pitch swings
    formants: float = 1.0  # above 1: a shorter vocal tract
    pauses: tuple[bool, ...] = ()  # after which words there is a short one; missing ones are without
    speaker: int = 0  # which, of a synthesiser that has many under one name
    accent: Accent = ()  # sounds that are said as another, where the synthesiser can
    careful: bool = False  # "to" and "for" in full, as "two" and "four"


PLAIN = Manner()


@dataclass(frozen=True, slots=True)
class Spoken:
    """16 kHz samples within -1..1, and start and end in seconds of each word that was asked for."""

    samples: Samples
    times: Times


class Voice(Protocol):
    """One speaker of one synthesiser."""

    @property
    def name(self) -> str:
        """As clips are labelled."""

    def speak(self, words: Sequence[str], manner: Manner) -> Spoken:
        """Says the words.

        Raises:
            SynthesiserMissingError: it is not installed.
            SpokenOtherwiseError: the words came out as others.
        """


IN_FULL = {"to": "two", "for": "four"}


def tokens(words: Sequence[str], manner: Manner) -> list[str]:
    """The words as the synthesiser shall say them."""
    return [IN_FULL.get(word, word) if manner.careful else word for word in words]


def written(words: Sequence[str], manner: Manner) -> str:
    """The text that a synthesiser reads: commas make pauses."""
    *before, last = tokens(words, manner)
    pauses = manner.pauses + (False,) * len(before)
    return " ".join([word + "," * pause for word, pause in zip(before, pauses, strict=False)] + [last])


def replayed(samples: Samples, rate: float, times: Sequence[tuple[float, float]], formants: float) -> Spoken:
    """The speech played ``formants`` times as fast as it was recorded, at 16 kHz, where all resonances lie higher by as much."""
    if rate * formants != RATE:
        samples = soxr.resample(samples, rate * formants, RATE).astype(np.float32)
    return Spoken(samples, tuple((start / formants, end / formants) for start, end in times))
