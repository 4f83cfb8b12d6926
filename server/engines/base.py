"""The interface between a session and whatever recognises speech."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.core.events import EngineEvent, OpenSegment

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


class EngineError(Exception):
    """The engine cannot start or was asked for what it cannot do."""
