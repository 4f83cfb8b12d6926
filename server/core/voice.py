"""Where speech begins and ends, given how likely every short frame of audio is to hold a voice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Endpointer", "EndpointerSettings", "SpeechEnded", "SpeechStarted", "VoiceDetector"]

ROUNDING_SECONDS = 1e-6
"""Sums of frame lengths that should be equal differ by less than this."""


class VoiceDetector(Protocol):
    """Tells how likely each frame of one audio stream is to hold a voice. Not shared between streams."""

    @property
    def frame_seconds(self) -> float:
        """Length of the frame that every probability is about."""

    def feed(self, pcm: bytes) -> Sequence[float]:
        """Probabilities (0..1) for the frames that ``pcm`` completes. PCM16 mono 16 kHz, whole samples, any length."""

    def reset(self) -> None:
        """Forget the stream: what comes next is another one."""


@dataclass(frozen=True, slots=True)
class EndpointerSettings:
    """A frame is voiced from ``threshold`` on, and stays so until a probability falls below ``release``.

    Speech starts with ``min_speech_seconds`` of voiced frames in a row, and ends with ``silence_seconds`` of others.
    """

    threshold: float = 0.5
    release: float = 0.35
    min_speech_seconds: float = 0.1
    silence_seconds: float = 0.8

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ValueError: with the setting's name and value.
        """
        if not 0 < self.release <= self.threshold <= 1:
            raise ValueError(f"0 < release <= threshold <= 1 does not hold: {self.release!r}, {self.threshold!r}")
        if self.min_speech_seconds < 0:
            raise ValueError(f"min_speech_seconds must not be negative, got {self.min_speech_seconds!r}")
        if self.silence_seconds <= 0:
            raise ValueError(f"silence_seconds must be above 0, got {self.silence_seconds!r}")


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    """``at_seconds`` is the start of the first voiced frame, which lies a little before the moment this was clear."""

    at_seconds: float


@dataclass(frozen=True, slots=True)
class SpeechEnded:
    """``at_seconds`` is the end of the last voiced frame; the silence that made it clear lies behind it."""

    at_seconds: float


class Endpointer:
    """Follows one stream frame by frame. Times are seconds from the first frame."""

    def __init__(self, settings: EndpointerSettings | None = None) -> None:
        self._settings = settings or EndpointerSettings()
        self.reset()

    def reset(self) -> None:
        """Begin again at second 0, in silence."""
        self._heard_seconds = 0.0
        self._last_voice_seconds = 0.0
        self._voiced_since: float | None = None
        self._speaking = False
        self._speech_seconds = 0.0

    @property
    def heard_seconds(self) -> float:
        """Length of all frames so far."""
        return self._heard_seconds

    @property
    def speaking(self) -> bool:
        """Whether speech has started and not ended yet."""
        return self._speaking

    @property
    def in_silence_seconds(self) -> float:
        """For how long no frame has been voiced: 0 during a voiced frame, everything when none ever was."""
        return self._heard_seconds - self._last_voice_seconds

    @property
    def speech_seconds(self) -> float:
        """Length of all voiced frames that were part of speech. Too short a sound is none."""
        return self._speech_seconds

    def feed(self, probability: float, frame_seconds: float) -> SpeechStarted | SpeechEnded | None:
        """Take the next frame; at most one thing can begin or end with it."""
        began = self._heard_seconds
        self._heard_seconds += frame_seconds
        if probability < (self._settings.threshold if self._voiced_since is None else self._settings.release):
            self._voiced_since = None
            return self._hear_silence()
        if self._voiced_since is None:
            self._voiced_since = began
        self._last_voice_seconds = self._heard_seconds
        if self._speaking:
            self._speech_seconds += frame_seconds
            return None
        return self._hear_voice(self._voiced_since)

    def _hear_silence(self) -> SpeechEnded | None:
        if not self._speaking or self.in_silence_seconds < self._settings.silence_seconds - ROUNDING_SECONDS:
            return None
        self._speaking = False
        return SpeechEnded(self._last_voice_seconds)

    def _hear_voice(self, since: float) -> SpeechStarted | None:
        voiced_seconds = self._heard_seconds - since
        if voiced_seconds < self._settings.min_speech_seconds - ROUNDING_SECONDS:
            return None
        self._speaking = True
        self._speech_seconds += voiced_seconds
        return SpeechStarted(since)
