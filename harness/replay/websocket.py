"""A WebSocket client made for load: prepared bytes go straight to the transport, received frames get their time on arrival.

The protocol itself is the sans-I/O core of the ``websockets`` library. Sending costs one ``transport.write`` of bytes that
were framed and masked beforehand, and no task. The write buffer's limit is zero, so the transport hands bytes to the kernel
at once or says that it could not: a server that does not read shows as packets that left late, never as a blocked sender.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from time import perf_counter_ns
from typing import cast
from urllib.parse import urlsplit, urlunsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI, parse_uri

from harness.drivers.base import Ask, DriverError, Way
from harness.drivers.base import Frame as Message
from harness.replay import http
from harness.replay.carrying import Destination, Listener, turned_away
from wire.errors import WireError

LARGEST_MESSAGE_BYTES = 32 * 1024 * 1024
TRY_AGAIN_LATER = 1013
LARGEST_BACKLOG_BYTES = 64 * 1024 * 1024
"""A server that has left so much unread is given up."""


def prepared(message: str | bytes) -> bytes:
    """The bytes of a masked text or binary frame. The mask is drawn once: a prepared frame may be sent on many connections."""
    frame = Frame(Opcode.TEXT, message.encode()) if isinstance(message, str) else Frame(Opcode.BINARY, message)
    return frame.serialize(mask=True)


class WebSocketConnection(asyncio.Protocol):
    """One WebSocket connection. Made by ``connect``."""

    def __init__(self, uri: WebSocketURI, headers: Mapping[str, str], listener: Listener) -> None:
        self._uri, self._headers, self.listener = uri, headers, listener
        self._websocket = ClientProtocol(uri, max_size=LARGEST_MESSAGE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._fragments: list[bytes] = []
        self._binary = False
        self._handshake_over = False
        self.blocked = False
        self.bye: tuple[Destination, Ask] | None = None
        self.gone = asyncio.get_running_loop().create_future()

    # ---- called by the replay, as `harness.replay.carrying.Connection` says ----

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

    def finish(self) -> None:
        """Nothing to say: frames have said it."""

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
        """Wait for the end of the connection; drop it when it does not end by itself. Ask then what is to be asked after it."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self.gone)
        except TimeoutError:
            self.abort()
        if self.bye is not None:
            (destination, bye), self.bye = self.bye, None
            with contextlib.suppress(OSError):  # a timeout is one; the server forgets by itself, a little later
                async with asyncio.timeout(seconds):
                    await http.ask(destination, bye)

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
            self._turned_away(str(exc) if exc else "connection closed during the handshake", t_ns)
        reason = reason or (str(exc) if exc and code == 1006 else "")
        self.listener.closed(close_text(code, reason), t_ns, refused=code == TRY_AGAIN_LATER)
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
                told = turned_away(response.status_code, f"{response.reason_phrase} {body}".strip())
                self.listener.turned_away(told, t_ns)
            case error:
                self._turned_away(str(error), t_ns)

    def _turned_away(self, why: str, t_ns: int) -> None:
        self.listener.turned_away(turned_away(0, f"no WebSocket handshake: {why}"), t_ns)

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
) -> WebSocketConnection:
    """Open the TCP (and TLS) connection and begin the handshake; ``listener.opened`` says when it is through.

    Raises:
        OSError: nobody listens there, the name is unknown, or TLS fails.
        ValueError: not a WebSocket URL.
    """
    uri = parse_uri(url)
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: WebSocketConnection(uri, headers, listener),
        uri.host,
        uri.port,
        ssl=(tls or ssl.create_default_context()) if uri.secure else None,
    )
    return connection


class WebSockets:
    """The carrier of drivers whose frames are WebSocket messages, with an HTTP request before the socket where they want one."""

    def prepare(self, frames: Sequence[Message | Ask], destination: Destination) -> bytes:  # noqa: ARG002
        """The frames, one behind the other."""
        return b"".join(prepared(_message(frame)) for frame in frames)

    async def connect(self, destination: Destination, listener: Listener, stream: str) -> WebSocketConnection:
        """As `harness.replay.carrying.Carrier` says. Raises ConnectionError when the request before it was in vain."""
        driver = destination.driver
        first = driver.before(destination.request, stream, destination.headers)
        if first is None:
            return await connect(destination.url, destination.headers, listener, tls=destination.tls)
        answer = await http.ask(destination, first)
        if not 200 <= answer.status < 300:
            listener.turned_away(turned_away(answer.status, http.text_of(answer.body)), perf_counter_ns())
            raise ConnectionRefusedError(f"HTTP {answer.status}")
        try:
            way = driver.way(stream, answer.body)
        except WireError as error:
            raise ConnectionError(error.message) from None
        connection = await connect(_elsewhere(destination.url, way), destination.headers, listener, tls=destination.tls)
        connection.bye = None if way.bye is None else (destination, way.bye)
        return connection


def _message(frame: Message | Ask) -> Message:
    if isinstance(frame, Ask):
        raise DriverError("a request is no WebSocket message: the driver's transport must be Transport.HTTP")
    return frame


def _elsewhere(url: str, way: Way) -> str:
    """The URL with the stream's own path, on the same host."""
    if not way.path:
        return url
    parts = urlsplit(url)
    path, _, query = way.path.partition("?")
    return urlunsplit((parts.scheme, parts.netloc, path, query or parts.query, ""))


def close_text(code: int, reason: str) -> str:
    """A close code with its meaning, for people."""
    return f"{code} {reason}" if reason else str(Close(code, "")).strip()
