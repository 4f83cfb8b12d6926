"""One segment as Whisper hears it: which window of its audio is to be decoded next, and what follows from what was understood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.engines.whisper.agreement import Agreement
from server.engines.whisper.settings import WhisperSettings
from server.engines.whisper.trimming import cut_point, prompt_of
from wire.pcm import bytes_of, seconds_of
from wire.words import TimedWord

__all__ = ["Hearing", "Progress", "Window"]


@dataclass(frozen=True, slots=True)
class Window:
    """Audio to be decoded: from ``start_seconds`` to ``end_seconds`` of the segment, with the text that came before it."""

    pcm: bytes = field(repr=False)
    start_seconds: float
    end_seconds: float
    prompt: str


@dataclass(frozen=True, slots=True)
class Progress:
    """What is new: text with its own spacing and its words; ``tentative`` is all text behind that."""

    audio_seconds: float
    committed: str
    tentative: str
    words: tuple[TimedWord, ...]


class Hearing:
    """Takes audio in, gives windows out and takes in what was understood of each, one after the other.

    Windows end at multiples of the interval, however the audio came in, so that what is understood does not depend on the packets;
    those multiples that lie behind when the decoder's turn comes are left out. The last window ends with the audio.
    """

    def __init__(self, settings: WhisperSettings, delay_seconds: float) -> None:
        self.finishing = False
        self.heard_seconds = 0.0
        self.forced_cuts = 0
        self._interval_bytes = bytes_of(settings.partial_interval_seconds)
        self._most_seconds = settings.window_seconds
        self._longest_bytes = bytes_of(settings.longest_window_seconds)
        self._prompt_characters = settings.prompt_characters
        self._agreement = Agreement(delay_seconds)
        self._audio = bytearray()
        self._start_bytes = 0  # where the audio that is still kept begins in the segment
        self._heard_bytes = 0
        self._said_any = False
        self._before = ""  # the newest text that lies before the window

    @property
    def end_seconds(self) -> float:
        """How much audio has come in."""
        return seconds_of(self._end_bytes)

    @property
    def tentative(self) -> str:
        """The text behind what is committed, as it was understood last."""
        text = _joined(self._agreement.candidates)
        return text if self._said_any else text.lstrip()

    @property
    def due(self) -> bool:
        """Whether there is a window to decode."""
        return self._next_end() > self._heard_bytes

    @property
    def over(self) -> bool:
        """No audio comes any more, and all of it was decoded."""
        return self.finishing and self._heard_bytes == self._end_bytes

    def add(self, pcm: bytes) -> None:
        """More audio."""
        self._audio += pcm

    def window(self) -> Window:
        """What to decode now."""
        end = self._next_end()
        return Window(
            bytes(self._audio[: end - self._start_bytes]),
            seconds_of(self._start_bytes),
            seconds_of(end),
            prompt_of(self._before, self._prompt_characters),
        )

    def hear(self, window: Window, words: Sequence[TimedWord]) -> Progress:
        """Take in what was understood of the window; times count from the window's start."""
        moved = [_moved(word, window) for word in words if word.text.strip()]
        self._heard_bytes = bytes_of(window.end_seconds)
        self.heard_seconds = window.end_seconds
        committed = self._agreement.advance(moved, window.end_seconds)
        more = self._agreement.finish() if self.over else self._trim()
        return self._progress([*committed, *more])

    def finish(self) -> Progress:
        """All was decoded before the end was known: commit what is left."""
        return self._progress(self._agreement.finish())

    def _trim(self) -> Sequence[TimedWord]:
        """Keep the window short; the words that this commits."""
        start, end = seconds_of(self._start_bytes), self.heard_seconds
        at = cut_point(self._agreement.committed, start, end, self._most_seconds)
        if at is not None:
            self._cut(at)
        if self._heard_bytes + self._interval_bytes - self._start_bytes <= self._longest_bytes:
            return ()
        # nothing was agreed on for so long: the older half is settled as it was understood last
        self.forced_cuts += 1
        start = seconds_of(self._start_bytes)
        at = (start + end) / 2
        words = self._agreement.commit_until(at)
        if words:
            at = words[-1].end
        elif self._agreement.candidates:
            at = min(at, self._agreement.candidates[0].start)
        self._cut(max(at, start + seconds_of(self._interval_bytes)))
        return words

    def _cut(self, at_seconds: float) -> None:
        at = min(bytes_of(at_seconds), self._heard_bytes)
        del self._audio[: max(0, at - self._start_bytes)]
        self._start_bytes = max(at, self._start_bytes)
        gone = self._agreement.forget(at_seconds)
        self._before = (self._before + "".join(word.text for word in gone))[-2 * self._prompt_characters - 1 :]

    @property
    def _end_bytes(self) -> int:
        return self._start_bytes + len(self._audio)

    def _next_end(self) -> int:
        end = self._end_bytes
        if not self.finishing:
            end -= end % self._interval_bytes
        return min(end, self._start_bytes + self._longest_bytes)

    def _progress(self, committed: Sequence[TimedWord]) -> Progress:
        text = _joined(committed)
        if not self._said_any:
            text = text.lstrip()
        self._said_any = self._said_any or bool(text)
        words = tuple(TimedWord(word.text.strip(), round(word.start, 3), round(word.end, 3)) for word in committed)
        return Progress(self.heard_seconds, text, self.tentative, words)


def _moved(word: TimedWord, window: Window) -> TimedWord:
    """The word on the segment's clock, inside its window."""
    start = min(window.start_seconds + max(0.0, word.start), window.end_seconds)
    return TimedWord(word.text, start, min(max(start, window.start_seconds + word.end), window.end_seconds))


def _joined(words: Sequence[TimedWord]) -> str:
    return "".join(word.text for word in words)
