"""Audio that carries its own words, for the scripted engine."""

from __future__ import annotations

import random
from pathlib import Path

import soundfile

from wire.scripted import speak
from wire.words import TimedWord

_VOICE = Path(__file__).parents[2] / "datasets" / "spoken-numbers" / "flac" / "numbers-001-slt.flac"
_SYLLABLES = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "zu", "chai", "pren", "stol", "wick")


def distinct_words(count: int, seed: int) -> list[str]:
    """Words of which none is equal to, or the start or end of, another."""
    chosen = random.Random(seed)
    return ["".join(chosen.choices(_SYLLABLES, k=2)) + f"{number:05d}" for number in range(count)]


def random_words(count: int, seed: int) -> list[str]:
    """Words of which many are said more than once."""
    chosen = random.Random(seed)
    return ["".join(chosen.choices(_SYLLABLES, k=chosen.randint(1, 2))) for _ in range(count)]


def spoken(texts: list[str], seed: int = 0, longest_pause_seconds: float = 0.4) -> tuple[bytes, list[TimedWord]]:
    """The words one after the other, each 0.1 to 0.6 s long, with pauses between; the audio ends with silence."""
    chosen = random.Random(seed)
    at = 0.0
    words = []
    for text in texts:
        start = round(at + chosen.randint(0, round(longest_pause_seconds * 100)) / 100, 2)
        end = round(start + chosen.randint(10, 60) / 100, 2)
        words.append(TimedWord(text, start, end))
        at = end
    return speak(words, at + 0.2), words


def sentence(*texts: str) -> bytes:
    """The words, 0.3 s each with 0.1 s between."""
    return speak(
        [TimedWord(text, round(0.4 * n, 2), round(0.4 * n + 0.3, 2)) for n, text in enumerate(texts)], 0.4 * len(texts)
    )


def voice() -> bytes:
    """2.3 s of somebody speaking, of which a detector of speech hears 1.5 s; the scripted engine hears nothing in it."""
    samples, rate = soundfile.read(_VOICE, dtype="int16")
    assert rate == 16_000
    pcm: bytes = samples.tobytes()
    return pcm


def voiced(*texts: str) -> bytes:
    """The words for the scripted engine, and a voice behind them for the detector of speech."""
    return sentence(*texts) + voice()
