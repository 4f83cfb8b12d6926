"""When speech begins and ends, told from the speech probability of successive frames."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """Speech begins at ``speech_threshold`` and goes on down to ``silence_threshold``; seconds otherwise."""

    speech_threshold: float = 0.5
    silence_threshold: float = 0.35
    min_speech_seconds: float = 0.1
    silence_seconds: float = 0.8


class Endpointer:
    """Feed it frame by frame; ``ended`` turns true once speech was followed by enough silence."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._settings = settings
        self._in_speech = False
        self.speech_seconds = 0.0
        self.silence_seconds = 0.0
        self.ended = False

    def feed(self, probability: float, frame_seconds: float) -> None:
        """Take in the next frame."""
        threshold = self._settings.silence_threshold if self._in_speech else self._settings.speech_threshold
        self._in_speech = probability >= threshold
        if self._in_speech:
            self.speech_seconds += frame_seconds
            self.silence_seconds = 0.0
        else:
            self.silence_seconds += frame_seconds
        spoken = self.speech_seconds >= self._settings.min_speech_seconds
        self.ended = self.ended or (spoken and self.silence_seconds >= self._settings.silence_seconds)
