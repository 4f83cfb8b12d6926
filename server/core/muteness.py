"""Notices a stream that is spoken into and stays without text."""

from __future__ import annotations

from dataclasses import dataclass

ROUNDING_SECONDS = 1e-6
"""Sums of lengths of audio that should be equal differ by less than this."""


@dataclass(frozen=True, slots=True)
class MuteSettings:
    """Seconds of heard audio. After ``quiet_seconds`` without text a sample of ``sample_seconds`` is listened to; the stream is
    mute once ``speech_seconds`` of speech have been found in such samples. A sample that is half speech is followed by another one
    at once, any other only after ``quiet_seconds`` more, so that a microphone left open costs next to nothing.
    """

    quiet_seconds: float = 10.0
    sample_seconds: float = 1.0
    speech_seconds: float = 2.0


class MuteWatch:
    """Follows one utterance. Tell it of text, of every piece of audio, and of the speech in what it wanted to hear."""

    def __init__(self, settings: MuteSettings) -> None:
        self._settings = settings
        self.text()

    def text(self) -> None:
        """Text has come: begin anew."""
        self.seconds_without_text = 0.0
        self._listen_at = self._settings.quiet_seconds
        self._sampled_seconds = 0.0
        self._speech_in_sample = 0.0
        self._speech_seconds = 0.0

    @property
    def listening(self) -> bool:
        """Whether the next audio should be looked at for speech."""
        return self.seconds_without_text >= self._listen_at - ROUNDING_SECONDS

    def audio(self, seconds: float, speech_seconds: float | None) -> bool:
        """More audio without text; ``speech_seconds`` of it were speech, None when nobody looked. True once it is mute."""
        self.seconds_without_text += seconds
        if speech_seconds is None:
            return False
        self._sampled_seconds += seconds
        self._speech_in_sample += speech_seconds
        self._speech_seconds += speech_seconds
        if self._speech_seconds >= self._settings.speech_seconds - ROUNDING_SECONDS:
            return True
        if self._sampled_seconds >= self._settings.sample_seconds - ROUNDING_SECONDS:
            if self._speech_in_sample < self._sampled_seconds / 2:
                self._listen_at = self.seconds_without_text + self._settings.quiet_seconds
            self._sampled_seconds = self._speech_in_sample = 0.0
        return False
