"""An HTTP client made for load: a prepared request is written at its due time, the answer and each of its events get theirs on arrival.

The protocol itself is the sans-I/O core of the ``h11`` library. A connection carries one request after the other.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping, Sequence
from time import perf_counter_ns
from typing import cast
from urllib.parse import urlsplit

import h11

from harness.drivers.base import Answer, Ask, DriverError, Frame
from harness.replay.carrying import Destination, Listener, Nobody

LARGEST_ANSWER_BYTES = 32 * 1024 * 1024
LONGEST_QUOTE = 200
ENDED_EARLY = "it ended before the answer did"


def prepared(ask: Ask, url: str, headers: Mapping[str, str]) -> bytes:
    """The bytes of a request to the host of ``url``, or to where it points."""
    parts = urlsplit(url)
    target = ask.path or parts.path + (f"?{parts.query}" if parts.query else "")
    sent = {
        "Host": parts.netloc.rpartition("@")[2],
        "Accept": "application/json, text/event-stream;q=0.9, */*;q=0.1",
        "Content-Length": str(len(ask.body)),
        **headers,
        **ask.headers,
    }
    request = h11.Request(method=ask.method, target=target, headers=list(sent.items()))
    head = h11.Connection(h11.CLIENT).send(request)
    assert head is not None
    return head + ask.body


def text_of(body: bytes) -> str:
    """The beginning of an answer, for people."""
    return body[:LONGEST_QUOTE].decode(errors="replace").strip()


class HttpConnection(asyncio.Protocol):
    """One HTTP/1.1 connection. Servers close idle ones as they like; the next request then opens it again."""

    blocked = False
    """A recording that leaves slowly is the network's doing and part of the wait for its answer, not a packet that left late."""

    def __init__(self, url: str, listener: Listener, tls: ssl.SSLContext | None) -> None:
        self._url, self.listener, self._tls = url, listener, tls
        self._transport: asyncio.Transport | None = None
        self._parser: h11.Connection | None = None  # of the answer that is awaited
        self._opening: asyncio.Task[None] | None = None
        self._closing = False
        self._gone = asyncio.get_running_loop().create_future()

    async def open(self) -> None:
        """Connect; raises OSError."""
        parts = urlsplit(self._url)
        secure = parts.scheme in ("https", "wss")
        await asyncio.get_running_loop().create_connection(
            lambda: self,
            parts.hostname or "",
            parts.port or (443 if secure else 80),
            ssl=(self._tls or ssl.create_default_context()) if secure else None,
        )

    # ---- called by the replay, as `harness.replay.carrying.Connection` says ----

    @property
    def is_open(self) -> bool:
        """Whether a request can be made."""
        return not self._closing

    def write(self, request: bytes) -> bool:
        """Send a prepared request; an empty one is none."""
        if not request:
            return True
        self._begin_answer()
        if self._transport is None:
            self._opening = asyncio.get_running_loop().create_task(self._write_later(request))
        else:
            self._transport.write(request)
        return True

    def finish(self) -> None:
        """Nothing to say: a request has its end in it."""

    def close(self) -> None:
        """Send nothing more."""
        self._closing = True
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.close()
        elif not self._gone.done():
            self._gone.set_result(None)

    def abort(self) -> None:
        """Drop the connection."""
        self._closing = True
        if self._opening is not None:
            self._opening.cancel()
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self, seconds: float) -> None:
        """Wait for the end of the connection; drop it when it does not end by itself."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self.abort()

    # ---- called by the event loop ----

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._closing:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        t_ns = perf_counter_ns()
        if self._parser is None:
            return  # nobody asked
        self._parser.receive_data(data)
        self._read(t_ns)

    def eof_received(self) -> bool:
        t_ns = perf_counter_ns()
        if self._parser is not None and self._parser.their_state is h11.SEND_BODY:
            self._parser.receive_data(b"")  # the end of a body without a length
            self._read(t_ns)
        self._fail(ENDED_EARLY, t_ns)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._parser is not None:
            self._fail(f"{ENDED_EARLY}{f': {exc}' if exc else ''}", perf_counter_ns())
        elif self._closing:
            self.listener.closed("closed", perf_counter_ns())
        if self._closing and not self._gone.done():
            self._gone.set_result(None)

    # ---- inside ----

    async def _write_later(self, request: bytes) -> None:
        try:
            await self.open()
        except OSError as error:
            self._fail(f"cannot connect again: {error}", perf_counter_ns())
            return
        if self._transport is not None:
            self._transport.write(request)

    def _begin_answer(self) -> None:
        # The parser of an answer has to have seen its request; all that matters of that is its method.
        self._parser = h11.Connection(h11.CLIENT)
        self._parser.send(h11.Request(method="POST", target="/", headers=[("Host", "-"), ("Content-Length", "0")]))
        self._parser.send(h11.EndOfMessage())
        self._status = 0
        self._events: Events | None = None
        self._body = bytearray()
        self._stays = True

    def _read(self, t_ns: int) -> None:
        try:
            for event in self._h11_events():
                match event:
                    case h11.Response():
                        self._begin_body(event)
                    case h11.Data():
                        self._take(bytes(event.data), t_ns)
                    case h11.EndOfMessage():
                        self._end_answer(t_ns)
        except h11.RemoteProtocolError as error:
            ended = self._parser is not None and self._parser.trailing_data[1]
            self._fail(ENDED_EARLY if ended else f"this is no HTTP answer: {error}", t_ns)
            if self._transport is not None:
                self._transport.abort()

    def _h11_events(self) -> Iterator[object]:
        while self._parser is not None:
            event = self._parser.next_event()
            if event is h11.NEED_DATA or event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                return
            yield event

    def _begin_body(self, response: h11.Response) -> None:
        self._status = response.status_code
        named = {name.decode().lower(): value.decode("latin-1").lower() for name, value in response.headers}
        self._stays = named.get("connection") != "close"
        if self._status == 200 and named.get("content-type", "").startswith("text/event-stream"):
            self._events = Events()

    def _take(self, data: bytes, t_ns: int) -> None:
        if self._events is not None:
            for event in self._events.feed(data):
                self.listener.received(event, t_ns)
            return
        self._body += data
        if len(self._body) > LARGEST_ANSWER_BYTES:
            self._fail(f"the answer is longer than {LARGEST_ANSWER_BYTES} bytes", t_ns)
            self.abort()

    def _end_answer(self, t_ns: int) -> None:
        self._parser = None
        if not self._stays and self._transport is not None:
            transport, self._transport = self._transport, None
            transport.close()
        self.listener.received(Answer(self._status, bytes(self._body)), t_ns)

    def _fail(self, why: str, t_ns: int) -> None:
        if self._parser is not None:
            self._parser = None
            self.listener.closed(why, t_ns)


class Events:
    """The data of server-sent events, as HTML's "9.2.6 Interpreting an event stream" has it. Names, ids and retry times are passed over."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[str]:
        """The events that end in ``data``."""
        whole = (self._rest + data).replace(b"\r\n", b"\n")
        kept = b"\r" if whole.endswith(b"\r") else b""  # the other half of its line end may follow
        *lines, rest = whole[: len(whole) - len(kept)].replace(b"\r", b"\n").split(b"\n")
        self._rest = rest + kept
        found = []
        for line in lines:
            name, _, value = line.decode(errors="replace").partition(":")
            if not line:
                if self._data:
                    found.append("\n".join(self._data))
                self._data = []
            elif name == "data":
                self._data.append(value.removeprefix(" "))
        return found


class Http:
    """The carrier of drivers whose utterances are requests."""

    def prepare(self, frames: Sequence[Frame | Ask], destination: Destination) -> bytes:
        """The one request."""
        asks = [frame for frame in frames if isinstance(frame, Ask)]
        if len(asks) != len(frames) or len(asks) > 1:
            raise DriverError(
                f"{destination.driver.name} goes over HTTP: an utterance is one request, and nothing else"
            )
        return b"".join(prepared(ask, destination.url, destination.headers) for ask in asks)

    async def connect(self, destination: Destination, listener: Listener, stream: str) -> HttpConnection:  # noqa: ARG002
        """As `harness.replay.carrying.Carrier` says."""
        connection = HttpConnection(destination.url, listener, destination.tls)
        await connection.open()
        listener.opened(perf_counter_ns())
        return connection


class _Waiting(Nobody):
    """Who waits for one answer."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def received(self, frame: object, t_ns: int) -> None:  # noqa: ARG002
        if isinstance(frame, Answer) and not self.answer.done():
            self.answer.set_result(frame)

    def closed(self, why: str, t_ns: int, *, refused: bool = False) -> None:  # noqa: ARG002
        if not self.answer.done():
            self.answer.set_exception(ConnectionError(why))


async def ask(destination: Destination, request: Ask) -> Answer:
    """The answer to a request on a connection of its own; whoever calls it limits the time.

    Raises:
        OSError: no connection, or it ended before the answer did.
    """
    waiting = _Waiting()
    connection = HttpConnection(destination.url, waiting, destination.tls)
    await connection.open()
    try:
        connection.write(prepared(request, destination.url, {**destination.headers, "Connection": "close"}))
        return await waiting.answer
    finally:
        connection.abort()
