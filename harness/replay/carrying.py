"""What the replay wants of whatever carries a stream: a connection to write prepared packets to, and who is told what comes back."""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.drivers.base import Answer, Ask, Driver, Frame, Request, Status

BUSY_STATUSES = (429, 503)
"""HTTP: no capacity now."""
KEY_STATUSES = (401, 403)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where streams go. ``url`` is complete; ``headers`` go with the handshake, or with every request."""

    driver: Driver
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    request: Request = Request()
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """The server would not have the stream. ``busy``: for want of capacity; ``key``: for want of a key that it knows."""

    why: str
    busy: bool = False
    key: bool = False


def turned_away(status: int, reason: str) -> TurnedAway:
    """What an HTTP status says; 0 for an answer that is none."""
    return TurnedAway(f"HTTP {status}: {reason}" if status else reason, status in BUSY_STATUSES, status in KEY_STATUSES)


class Listener(Protocol):
    """Whom a connection tells what happened. ``t_ns`` is ``perf_counter_ns`` at the arrival of the bytes."""

    def opened(self, t_ns: int, delay_ms: int | None = None) -> None:
        """Audio can be sent. ``delay_ms`` is the transcription delay in force, where that is known before the first message."""

    def received(self, frame: Frame | Answer | Status, t_ns: int) -> None:
        """A whole message came."""

    def left(self, t_ns: int) -> None:
        """One more of those written has left, on a connection whose ``write`` cannot tell."""

    def drained(self, t_ns: int) -> None:
        """Everything written so far has left."""

    def closed(self, why: str, t_ns: int, *, refused: bool = False) -> None:
        """The connection is gone; nothing more is said."""

    def turned_away(self, told: TurnedAway, t_ns: int) -> None:
        """There will be no stream."""


class Nobody:
    """A listener that does not care: of connections that no stream uses, or no longer."""

    def opened(self, t_ns: int, delay_ms: int | None = None) -> None:
        pass

    def received(self, frame: Frame | Answer | Status, t_ns: int) -> None:
        pass

    def left(self, t_ns: int) -> None:
        pass

    def drained(self, t_ns: int) -> None:
        pass

    def closed(self, why: str, t_ns: int, *, refused: bool = False) -> None:
        pass

    def turned_away(self, told: TurnedAway, t_ns: int) -> None:
        pass


class Connection(Protocol):
    """One connection to a server. ``listener`` may be exchanged at any time."""

    listener: Listener

    @property
    def blocked(self) -> bool:
        """Whether what was written waits for the server to read."""

    @property
    def is_open(self) -> bool:
        """Whether something can be written."""

    def write(self, prepared: bytes, /) -> bool:
        """Send something prepared, without waiting. False when it did not leave at once (``left`` or ``drained`` will follow), or
        will not at all."""

    def finish(self) -> None:
        """Nothing more will be written for this utterance."""

    def close(self) -> None:
        """End it in good order, if it is still open."""

    def abort(self) -> None:
        """Drop it without ceremony."""

    async def wait_closed(self, seconds: float, /) -> None:
        """Wait for its end; drop it when it does not end by itself."""


class Carrier(Protocol):
    """One transport."""

    def prepare(self, frames: Sequence[Frame | Ask], destination: Destination, /) -> bytes:
        """What to write for these frames, the same for every stream; empty for none.

        Raises:
            DriverError: frames of a kind that this transport does not carry.
        """

    async def connect(self, destination: Destination, listener: Listener, stream: str, /) -> Connection:
        """Begin to open a connection for the stream of that name; ``listener`` is told when it is open, or that it will not be.

        Raises:
            OSError: nobody listens there, the name is unknown, or TLS fails.
            ValueError: not a URL of this transport.
        """
