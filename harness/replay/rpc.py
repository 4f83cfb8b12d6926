"""gRPC streams made for load, over grpc.aio: prepared messages wait for one task per stream, received ones get their time in another.

Each stream has a connection of its own, as a WebSocket has. A message has left when the library has taken it, which it does as fast as
the server reads (HTTP/2 flow control). Messages go as they are, serialised beforehand.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from time import perf_counter_ns
from typing import Any
from urllib.parse import urlsplit

os.environ.setdefault(
    "GRPC_VERBOSITY", "ERROR"
)  # read on import; it tells people of every connection that a server closes

import grpc

from harness.drivers.base import Ask, DriverError, Frame, Status, Way
from harness.replay.carrying import Destination, Listener, TurnedAway
from wire.errors import WireError

LARGEST_MESSAGE_BYTES = 32 * 1024 * 1024
BUSY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
BUSY_NAMES = tuple(code.name for code in BUSY)
FAILED_WRITE = "Internal error from Core"
STATUS_SECONDS = 1.0  # for the server's status to come in behind a message that failed because of it
KEY = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # channels of one process would share a connection
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
)


class RpcConnection:
    """One stream on a channel of its own. Made by ``Rpc.connect``."""

    def __init__(self, channel: grpc.aio.Channel, listener: Listener) -> None:
        self._channel, self.listener = channel, listener
        self._call: Any = None
        self._waiting: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._finished = self._over = False
        self._status: Status | None = None
        self._status_told = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, path: str, headers: Mapping[str, str]) -> None:
        """Open the stream; nothing is sent before the first message."""
        method: Any = self._channel.stream_stream(path)  # without serialisers: bytes as they are
        self._call = method(metadata=tuple((name.lower(), value) for name, value in headers.items()))
        self._call.add_done_callback(self._ended)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._send()), loop.create_task(self._receive())]

    # ---- called by the replay, as `harness.replay.carrying.Connection` says ----

    @property
    def is_open(self) -> bool:
        """Whether a message can be written."""
        return self._call is not None and not self._over and not self._finished

    @property
    def blocked(self) -> bool:
        """Whether more waits than the newest packet and the end that may come with it."""
        return len(self._waiting) > 2

    def write(self, message: bytes) -> bool:
        """Hand a message over; ``left`` tells when it has gone. An empty one is none, and True."""
        if not message:
            return True
        self._waiting.append(message)
        self._wake.set()
        return False

    def finish(self) -> None:
        """End our side of the stream once all has left."""
        self._finished = True
        self._wake.set()

    def close(self) -> None:
        """Take no more from the server."""
        self.abort()

    def abort(self) -> None:
        """Cancel the stream, if the server has not ended it."""
        self._over = True
        if self._call is not None:
            self._call.cancel()
        self._wake.set()

    async def wait_closed(self, seconds: float) -> None:
        """Wait until stream and connection are gone."""
        if self._tasks:
            _, waiting = await asyncio.wait(self._tasks, timeout=seconds)
            for task in waiting:
                task.cancel()
        # The library keeps a connection as long as anybody holds a call on it, and streams are kept for their records.
        self._call, self._tasks = None, []
        await self._channel.close()

    # ---- inside ----

    async def _send(self) -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):  # _receive tells how it ended
            while not self._over:
                while self._waiting:
                    await self._call.write(self._waiting[0])
                    t_ns = perf_counter_ns()
                    self._waiting.popleft()
                    self.listener.left(t_ns)
                    if not self._waiting:
                        self.listener.drained(t_ns)
                if self._finished:
                    await self._call.done_writing()
                    return
                self._wake.clear()
                await self._wake.wait()

    async def _receive(self) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self.listener.received(message, perf_counter_ns())
        except grpc.aio.AioRpcError:
            pass  # the status says it
        except asyncio.CancelledError:
            if not self._over:
                raise
        t_ns = perf_counter_ns()
        self._wake.set()
        if self._over:
            self.listener.closed("cancelled", t_ns)
            return
        self._over = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_SECONDS):
                await self._status_told.wait()
        status = self._status or Status("INTERNAL", FAILED_WRITE)
        self.listener.received(status, t_ns)
        self.listener.closed(f"{status.code} {status.details}".strip(), t_ns, refused=status.code in BUSY_NAMES)

    def _ended(self, call: Any) -> None:
        """Keep the server's own status. The library puts another in its place where a message of ours fails because the stream has
        ended (grpc issue 36066, open as of 1.85), so it is read at the moment it is told; nothing in these two coroutines waits then.
        """
        code, details = _at_once(call.code()), _at_once(call.details())
        if code is not None and details != FAILED_WRITE and self._status is None:
            self._status = Status(code.name, details or "")
            self._status_told.set()


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that has nothing to wait for; ``None`` where it has."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        return returned.value
    coroutine.close()
    return None


class Rpc:
    """The carrier of drivers whose frames are gRPC messages, with one call before the stream where they want one."""

    def prepare(self, frames: Sequence[Frame | Ask], destination: Destination) -> bytes:
        """The one message."""
        if len(frames) > 1 or not all(isinstance(frame, bytes) for frame in frames):
            raise DriverError(
                f"{destination.driver.name} goes over gRPC: a packet, or an end, is one serialised message"
            )
        return b"".join(frame for frame in frames if isinstance(frame, bytes))

    async def connect(self, destination: Destination, listener: Listener, stream: str) -> RpcConnection:
        """As `harness.replay.carrying.Carrier` says. Raises ConnectionError when the call before it was in vain."""
        parts = urlsplit(destination.url)
        channel = _channel(parts.netloc, secure=parts.scheme == "grpcs")
        try:
            await _ready(channel, parts.netloc)
            way = await _way(channel, destination, listener, stream)
        except BaseException:
            await channel.close()
            raise
        connection = RpcConnection(channel, listener)
        connection.begin(way.path or parts.path, {**destination.headers, **way.headers})
        listener.opened(perf_counter_ns(), way.delay_ms)
        return connection


def _channel(host: str, *, secure: bool) -> grpc.aio.Channel:
    if secure:
        return grpc.aio.secure_channel(host, grpc.ssl_channel_credentials(), options=_OPTIONS)
    return grpc.aio.insecure_channel(host, options=_OPTIONS)


async def _ready(channel: grpc.aio.Channel, host: str) -> None:
    """Wait for the connection; the first failure counts, where the library would go on trying."""
    state = channel.get_state(try_to_connect=True)
    while state is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            raise ConnectionError(f"no gRPC server answers at {host}")
        await channel.wait_for_state_change(state)
        state = channel.get_state(try_to_connect=True)


async def _way(channel: grpc.aio.Channel, destination: Destination, listener: Listener, stream: str) -> Way:
    """What the call before the stream says."""
    driver = destination.driver
    first = driver.before(destination.request, stream, destination.headers)
    if first is None:
        return Way()
    metadata = tuple((name.lower(), value) for name, value in {**destination.headers, **first.headers}.items())
    method: Any = channel.unary_unary(first.path)
    try:
        return driver.way(stream, await method(first.body, metadata=metadata))
    except grpc.aio.AioRpcError as error:
        code, why = error.code(), f"{error.code().name}: {error.details()}"
        listener.turned_away(TurnedAway(why, code in BUSY, code in KEY), perf_counter_ns())
        raise ConnectionRefusedError(why) from None
    except WireError as error:
        raise ConnectionError(error.message) from None
