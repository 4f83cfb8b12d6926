"""A WebSocket client made for load: prepared bytes go straight to the transport, received frames get their time on arrival.

The protocol itself is the sans-I/O core of the ``websockets`` library. Sending costs one ``transport.write`` of bytes that
were framed and masked beforehand, and no task. The write buffer's limit is zero, so the transport hands bytes to the kernel
at once or says that it could not: a server that does not read shows as packets that left late, never as a blocked sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from time import perf_counter_ns
from typing import Protocol, cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

LARGEST_MESSAGE_BYTES = 32 * 1024 * 1024
LARGEST_BACKLOG_BYTES = 64 * 1024 * 1024
"""A server that has left so much unread is given up."""


class Listener(Protocol):
    """Whom a connection tells what happened. ``t_ns`` is ``perf_counter_ns`` at the arrival of the bytes."""

    def opened(self, t_ns: int) -> None:
        """The handshake succeeded."""

    def received(self, frame: str | bytes, t_ns: int) -> None:
        """A whole message came."""

    def drained(self, t_ns: int) -> None:
        """Everything written so far has left."""

    def closed(self, code: int, reason: str, t_ns: int) -> None:
        """The connection is gone; nothing more is said. 1006: without a closing handshake."""

    def turned_away(self, status: int, reason: str, t_ns: int) -> None:
        """The server answered the handshake with this HTTP status (0: with something that is no such answer)."""


class Nobody:
    """A listener that does not care: of connections that no stream uses, or no longer."""

    def opened(self, t_ns: int) -> None:
        pass

    def received(self, frame: str | bytes, t_ns: int) -> None:
        pass

    def drained(self, t_ns: int) -> None:
        pass

    def closed(self, code: int, reason: str, t_ns: int) -> None:
        pass

    def turned_away(self, status: int, reason: str, t_ns: int) -> None:
        pass


def prepare(message: str | bytes) -> bytes:
    """The bytes of a masked text or binary frame. The mask is drawn once: a prepared frame may be sent on many connections."""
    frame = Frame(Opcode.TEXT, message.encode()) if isinstance(message, str) else Frame(Opcode.BINARY, message)
    return frame.serialize(mask=True)


class Connection(asyncio.Protocol):
    """One WebSocket connection. Made by ``connect``."""

    def __init__(self, uri: WebSocketURI, headers: Mapping[str, str], listener: Listener) -> None:
        self._uri, self._headers, self.listener = uri, headers, listener
        self._websocket = ClientProtocol(uri, max_size=LARGEST_MESSAGE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._fragments: list[bytes] = []
        self._binary = False
        self._handshake_over = False
        self.blocked = False
        self.gone = asyncio.get_running_loop().create_future()

    # ---- called by the replay; ``listener`` may be exchanged at any time ----

    @property
    def is_open(self) -> bool:
        """Whether frames can be written."""
        return self._transport is not None and self._websocket.state is State.OPEN

    def write(self, prepared: bytes) -> bool:
        """Send a prepared frame. False when it could not leave at once (``Listener.drained`` will follow) or not at all."""
        if self._transport is None or self._websocket.state is not State.OPEN:
            return False
        self._transport.write(prepared)
        if self.blocked and self._transport.get_write_buffer_size() > LARGEST_BACKLOG_BYTES:
            self.abort()
        return not self.blocked

    def close(self) -> None:
        """Begin the closing handshake, if the connection is still open."""
        if self._websocket.state is State.OPEN:
            self._websocket.send_close(1000)
            self._flush()

    def abort(self) -> None:
        """Drop the connection without ceremony."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self, seconds: float) -> None:
        """Wait for the end of the connection; drop it when it does not end by itself."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self.gone)
        except TimeoutError:
            self.abort()

    # ---- called by the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=0)
        request = self._websocket.connect()
        for name, value in self._headers.items():
            request.headers[name] = value
        self._websocket.send_request(request)
        self._flush()

    def data_received(self, data: bytes) -> None:
        t_ns = perf_counter_ns()
        self._websocket.receive_data(data)
        self._handle_events(t_ns)

    def eof_received(self) -> bool:
        t_ns = perf_counter_ns()
        self._websocket.receive_eof()
        self._handle_events(t_ns)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        t_ns = perf_counter_ns()
        with contextlib.suppress(EOFError):  # the core refuses to hear twice that nothing more comes
            self._websocket.receive_eof()
        code, reason = self._websocket.close_code or 1006, self._websocket.close_reason or ""
        if not self._handshake_over:
            self._handshake_over = True
            self.listener.turned_away(0, str(exc) if exc else "connection closed during the handshake", t_ns)
        self.listener.closed(code, reason or (str(exc) if exc and code == 1006 else ""), t_ns)
        self._transport = None  # the two point at each other, and the collector is off while load runs
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        self.blocked = True

    def resume_writing(self) -> None:
        self.blocked = False
        self.listener.drained(perf_counter_ns())

    # ---- inside ----

    def _handle_events(self, t_ns: int) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Frame):
                self._handle_frame(event, t_ns)
            elif isinstance(event, Response):
                self._handle_response(event, t_ns)
        self._flush()

    def _handle_response(self, response: Response, t_ns: int) -> None:
        self._handshake_over = True
        match self._websocket.handshake_exc:
            case None:
                self.listener.opened(t_ns)
            case InvalidStatus():
                body = bytes(response.body or b"")[:200].decode(errors="replace").strip()
                self.listener.turned_away(response.status_code, f"{response.reason_phrase} {body}".strip(), t_ns)
            case error:
                self.listener.turned_away(0, str(error), t_ns)

    def _handle_frame(self, frame: Frame, t_ns: int) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.BINARY if frame.fin:
                self._deliver(bytes(frame.data), frame.opcode is Opcode.BINARY, t_ns)
            case Opcode.TEXT | Opcode.BINARY:
                self._fragments, self._binary = [bytes(frame.data)], frame.opcode is Opcode.BINARY
            case Opcode.CONT:
                self._fragments.append(bytes(frame.data))
                if frame.fin:
                    whole, self._fragments = b"".join(self._fragments), []
                    self._deliver(whole, self._binary, t_ns)
            case _:
                pass  # the core answers pings and closes by itself

    def _deliver(self, data: bytes, binary: bool, t_ns: int) -> None:
        self.listener.received(data if binary else data.decode(errors="replace"), t_ns)

    def _flush(self) -> None:
        transport = self._transport
        for data in self._websocket.data_to_send():
            if transport is None or transport.is_closing():
                return
            if data:
                transport.write(data)
            elif transport.can_write_eof():
                transport.write_eof()
            else:
                transport.close()


async def connect(
    url: str, headers: Mapping[str, str], listener: Listener, *, tls: ssl.SSLContext | None = None
) -> Connection:
    """Open the TCP (and TLS) connection and begin the handshake; ``listener.opened`` says when it is through.

    Raises:
        OSError: nobody listens there, the name is unknown, or TLS fails.
        ValueError: not a WebSocket URL.
    """
    uri = parse_uri(url)
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection(uri, headers, listener),
        uri.host,
        uri.port,
        ssl=(tls or ssl.create_default_context()) if uri.secure else None,
    )
    return connection


def close_text(code: int, reason: str) -> str:
    """A close code with its meaning, for people."""
    return f"{code} {reason}" if reason else str(Close(code, "")).strip()
