"""Speech that any sample rate carries: a word is a tone of its own pitch, so a listener at the wrong rate hears other words, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from wire.pcm import SAMPLE_RATE
from wire.words import TimedWord

# No pitch is 3/2 or 2/3 of another: audio of 16 kHz taken for 24 kHz, or the other way round, gives no word of these.
PITCH_HZ = {"one": 500, "two": 600, "three": 700, "four": 800, "five": 1000, "six": 1100, "seven": 1300, "eight": 1400}
WORD_SECONDS, GAP_SECONDS = 0.2, 0.1
STEP_SECONDS = 0.02


def words_of(text: str, start_seconds: float = 0.2) -> tuple[TimedWord, ...]:
    """The words of ``text`` one after another, each of the same length, with pauses between them."""
    period = WORD_SECONDS + GAP_SECONDS
    return tuple(
        TimedWord(
            word, round(start_seconds + index * period, 3), round(start_seconds + index * period + WORD_SECONDS, 3)
        )
        for index, word in enumerate(text.split())
    )


def sing(words: Sequence[TimedWord], seconds: float) -> bytes:
    """16 kHz PCM16 of that length."""
    samples = np.zeros(round(seconds * SAMPLE_RATE))
    for word in words:
        first, last = round(word.start * SAMPLE_RATE), round(word.end * SAMPLE_RATE)
        samples[first:last] = 8000 * np.sin(2 * np.pi * PITCH_HZ[word.text] * np.arange(last - first) / SAMPLE_RATE)
    return samples.astype("<i2").tobytes()


@dataclass
class Ear:
    """Hears PCM16 of one sample rate in steps of 20 ms. ``words`` have ended, ``sounding`` has not."""

    rate: int
    words: list[TimedWord] = field(default_factory=list)
    sounding: TimedWord | None = None
    heard_bytes: int = 0
    _rest: bytes = b""
    _steps: int = 0

    @property
    def seconds(self) -> float:
        return self.heard_bytes / 2 / self.rate

    def hear(self, pcm: bytes) -> None:
        self.heard_bytes += len(pcm)
        self._rest += pcm
        for step in self._whole_steps():
            name, start = _name(step, self.rate), self._steps * STEP_SECONDS
            self._steps += 1
            if self.sounding is not None and self.sounding.text != name:
                self._end_word()
            if name is not None:
                start = self.sounding.start if self.sounding else start
                self.sounding = TimedWord(name, round(start, 3), round(self._steps * STEP_SECONDS, 3))

    def end(self) -> None:
        """No more sound: what sounds now is a word."""
        if self.sounding is not None:
            self._end_word()

    def _end_word(self) -> None:
        assert self.sounding is not None
        if self.sounding.end - self.sounding.start > WORD_SECONDS / 2:  # the edges of a tone may sound like another
            self.words.append(self.sounding)
        self.sounding = None

    def _whole_steps(self) -> Iterator[bytes]:
        size = 2 * round(self.rate * STEP_SECONDS)
        while len(self._rest) >= size:
            step, self._rest = self._rest[:size], self._rest[size:]
            yield step


def _name(step: bytes, rate: int) -> str | None:
    samples = np.frombuffer(step, "<i2").astype(float)
    if np.abs(samples).max() < 2000:
        return None
    loudest_hz = float(np.abs(np.fft.rfft(samples)).argmax()) * rate / len(samples)
    return next((word for word, pitch_hz in PITCH_HZ.items() if abs(pitch_hz - loudest_hz) < 1), None)
