"""The interfaces between the server and whatever understands speech: streams as they are spoken, recordings as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.core.events import EngineEvent, OpenSegment, Usage

MOST_TEMPERATURE = 2.0

Sink = Callable[[EngineEvent], None]
"""Takes what an engine stream has to say. Called on the event loop's thread, never from inside ``Engine.open``."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine is and can do. Asking for more than this is an error, never a silent default.

    ``delays_seconds`` are the transcription delays it accepts per utterance (empty: only ``default_delay_seconds``).
    ``slots`` is how many segments it hears at once; more than that wait or are refused. ``max_segment_seconds`` bounds one
    engine stream, ``None`` when nothing does. ``caveat`` is a sentence to print wherever its accuracy is shown.
    """

    name: str
    model: str
    default_delay_seconds: float
    delays_seconds: Sequence[float]
    languages: Sequence[str]
    slots: int
    words: bool
    max_segment_seconds: float | None = None
    caveat: str = ""


class EngineStream(Protocol):
    """One segment being heard. Every call returns at once and may be made only on the event loop's thread.

    After ``finish`` the stream still speaks, and ends with ``SegmentDone`` or ``EngineFailed``; after ``abort``, or after
    either of these two, it is silent.
    """

    def feed(self, pcm: bytes) -> None:
        """Hand over the next PCM16 (mono, 16 kHz, whole samples, any length)."""

    def finish(self) -> None:
        """No more audio comes."""

    def abort(self) -> None:
        """Stop at once and free everything."""


class Engine(Protocol):
    """A recogniser, started once, heard by many streams."""

    @property
    def info(self) -> EngineInfo:
        """Valid before ``start``."""

    async def start(self) -> None:
        """Load and warm up; returns when the engine can transcribe.

        Raises:
            EngineError: with a sentence that tells the operator what to do.
        """

    async def stop(self) -> None:
        """End every process and task of the engine."""

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        """Begin to hear a segment. Returns at once; if no slot is free the stream waits or fails through ``sink``."""

    def metrics(self) -> dict[str, float]:
        """Figures of the moment for ``/metrics``: at least ``busy_slots`` and ``waiting``."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. Temperature 0 takes the likeliest token; ``top_p`` 0 does so whatever the temperature."""

    temperature: float = 0.2
    top_p: float = 0.95
    max_tokens: int = 500

    def __post_init__(self) -> None:
        """Refuse what no engine can do.

        Raises:
            UnsupportedError: names the parameter, its value and its range.
        """
        if not 0 <= self.temperature <= MOST_TEMPERATURE:
            raise UnsupportedError(f"temperature must be in 0..{MOST_TEMPERATURE:g}, got {self.temperature!r}")
        if not 0 <= self.top_p <= 1:
            raise UnsupportedError(f"top_p must be in 0..1, got {self.top_p!r}")
        if self.max_tokens < 1:
            raise UnsupportedError(f"max_tokens must be at least 1, got {self.max_tokens!r}")


@dataclass(frozen=True, slots=True)
class Transcription:
    """The text of a recording. ``language`` is the one it was said to be in; ``cut``: the text ends at a limit, not where it should."""

    text: str
    usage: Usage
    language: str | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered to a question. ``cut``: it ends because ``max_tokens`` were said."""

    text: str
    usage: Usage
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ChatInfo:
    """What a chat engine is and can do.

    ``languages`` may be named for a transcription (empty: it is not known which, any is passed on). ``most_audios`` go with one
    question. ``max_audio_seconds`` is the longest recording to transcribe, ``None`` when it is not known; ``slots`` is how many
    requests it works on at once.
    """

    name: str
    model: str
    languages: Sequence[str]
    slots: int
    most_audios: int
    max_audio_seconds: float | None = None


class ChatEngine(Protocol):
    """Understands recordings as a whole. Audio is PCM16 (mono, 16 kHz, whole samples).

    A call may be cancelled at any time, which frees what it holds. All calls raise, beside ``EngineError`` when the engine fails,
    ``OverloadedError`` when too many wait already, ``TooLongError`` and ``UnsupportedError``.
    """

    @property
    def info(self) -> ChatInfo:
        """Valid before ``start``, though the model's name may only be known after it."""

    async def start(self) -> None:
        """Load or connect; returns when the engine can answer.

        Raises:
            EngineError: with a sentence that tells the operator what to do.
        """

    async def stop(self) -> None:
        """End every process and task of the engine; calls under way fail."""

    async def transcribe(self, pcm: bytes, language: str | None = None, temperature: float = 0.0) -> Transcription:
        """What is said in a recording; nothing in an empty one."""

    async def answer(self, question: str, audios: Sequence[bytes], sampling: Sampling) -> Answer:
        """Answer a question about recordings, or one without any."""

    def metrics(self) -> dict[str, float]:
        """Figures of the moment for ``/health`` and ``/metrics``: at least ``requests`` and ``failed``."""


class EngineError(Exception):
    """The engine cannot start, has failed, or was asked for what it cannot do."""


class OverloadedError(EngineError):
    """Too many ask at once; the same request may succeed later."""


class TooLongError(EngineError):
    """The recording, or it and the text together, are longer than the model can take."""


class UnsupportedError(EngineError):
    """Asked for what the engine can never do."""
