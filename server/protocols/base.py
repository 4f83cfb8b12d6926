"""What a dialect is to the connection shell: frames in, steps out; events in, frames out."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from server.core.events import Command, Event, StreamOptions, TimedWord, Usage
from server.core.session import SessionError
from wire.errors import WireError

_MOST_WORDS = 12_000
"""Clients with the common 1 MiB receive limit must be able to read a final; beyond this the words stay out."""

_PRIVATE = re.compile(r"\b0x[0-9a-fA-F]{4,}\b|(?<![\w/:.])(?:/[\w.+@~-]+){2,}/?")
"""Memory addresses, and absolute paths but not those of URLs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this frame. ``error`` is the reason code when the frame is an error, for the count of errors."""

    frame: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket after everything sent so far."""

    code: int
    reason: str = ""


Step = Command | Reply | Close


class Dialect(Protocol):
    """One connection's side of a protocol. No call raises anything but what is a bug of ours."""

    def greet(self) -> Sequence[Step]:
        """Right after the socket was accepted."""

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        """A frame has come. Session commands among the steps are carried out in order; see ``refused``."""

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:
        """The steps of a frame that must not wait behind others; None when it can."""

    def refused(self, error: SessionError) -> Sequence[Step]:
        """The session refused a command of the frame received last."""

    def tell(self, event: Event) -> Sequence[Step]:
        """The session has something to say."""

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:
        """A frame came that has no place in the inbound queue of ``limit`` frames."""

    def expired(self, limit: str) -> Sequence[Step]:
        """The connection's time is over; ``limit`` is ``idle`` or ``duration``."""

    def crashed(self) -> Sequence[Step]:
        """A bug of ours has ended this connection."""


@runtime_checkable
class TimedDialect(Protocol):
    """A dialect that does things when their time has come. ``now`` is in seconds, of a monotonic clock."""

    def at(self, now: float) -> None:
        """It is this late now; called before a frame is received, an event told, or ``due`` asked."""

    def deadline(self) -> float | None:
        """When ``due`` has to be asked next; too early does no harm."""

    def due(self) -> Sequence[Step]:
        """What has come due."""


@dataclass(frozen=True, slots=True)
class Served:
    """What a dialect has to know of a model: its names (the first is the one shown), delays, languages, and whether words have times.

    ``model`` is what ``StreamOptions.model`` has to say for it, ``None`` for the default one.
    """

    models: Sequence[str]
    delays_ms: Sequence[int]
    default_delay_ms: int
    timed_words: bool
    endpointing: bool
    languages: Sequence[str] = ()
    model: str | None = None


Offer = Callable[[str | None], Served | None]
"""What is known of the model of that name, of the default one for ``None``; ``None`` where no such model is loaded."""


def only(served: Served) -> Offer:
    """An offer of one model."""
    return lambda name: served if name is None or name in served.models else None


def stream_options(served: Served, delay_ms: Any, vad: Any, default: StreamOptions) -> StreamOptions:
    """The additive options of both dialects, checked; ``None`` leaves the default.

    Raises:
        WireError: ``unsupported_delay`` or ``unsupported_vad``; the message lists what is possible.
    """
    delay_seconds, endpointing = default.delay_seconds, default.endpointing
    if delay_ms is not None:
        if isinstance(delay_ms, bool) or delay_ms not in served.delays_ms:
            possible = ", ".join(str(delay) for delay in served.delays_ms)
            raise WireError(
                "unsupported_delay", f"'delay_ms' {delay_ms!r:.50} is not possible here; possible: {possible}"
            )
        delay_seconds = delay_ms / 1000
    if vad is not None:
        if vad not in ("auto", "off"):
            raise WireError("unsupported_vad", f"'vad' must be 'auto' or 'off', got {vad!r:.50}")
        if vad == "auto" and not served.endpointing:
            raise WireError("unsupported_vad", "this server has no voice activity detection")
        endpointing = vad == "auto"
    return replace(default, delay_seconds=delay_seconds, endpointing=endpointing, model=served.model)


def public_message(message: str) -> str:
    """What an engine says of its failure, without file paths and memory addresses of this machine; its log has them."""
    return _PRIVATE.sub("...", message)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Usage in the shape that vLLM's clients expect."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def words_field(served: Served, words: tuple[TimedWord, ...]) -> tuple[TimedWord, ...] | None:
    """The additive ``words`` with times to the millisecond; None when the engine times none or they are too many."""
    if not served.timed_words or len(words) > _MOST_WORDS:
        return None
    return tuple(TimedWord(word.text, round(word.start, 3), round(word.end, 3)) for word in words)
