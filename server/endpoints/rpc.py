"""The gRPC service ``stt.STTBackend`` over grpc.aio: its two calls, and how one stream is run over a hearing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
import structlog
from google.protobuf.message import DecodeError, Message

from server.core.events import EngineEvent, Event
from server.core.session import SessionError, SessionSettings
from server.endpoints.access import Clients
from server.hearing import Hearing
from server.protocols.rpc import DecodeQueue, End, Outbox, Result, RpcStream, Step, StreamPolicy
from server.protocols.rpc_sessions import RpcSessions
from server.service import Capture, Service
from wire.pcm import bytes_of
from wire.stt import errors
from wire.stt.errors import SttError, SttRefusedError
from wire.stt.stt_pb2 import AudioChunk, SessionRequest, SessionResponse, STTResult

SERVICE = "stt.STTBackend"
SURFACE = "grpc"

_CLOSE_SECONDS = 5.0
"""So long the last results may take to leave. A client that does not read them by then is given up."""

_log = structlog.get_logger("earmark.rpc")

M = TypeVar("M", bound=Message)


class _Unreadable:
    """What a message becomes that is no message."""


class TotalBuffer:
    """Audio of all streams that waits for the engine, in bytes. At the limit streams that have some are not read: policy ``wait``."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._by_stream: dict[object, int] = {}
        self._total_bytes = 0
        self._waiting: set[asyncio.Event] = set()

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._limit_bytes is not None and self._total_bytes >= self._limit_bytes

    def note(self, stream: object, waiting_bytes: int) -> None:
        """So much of the stream waits now."""
        if self._limit_bytes is None:
            return
        self._total_bytes += waiting_bytes - self._by_stream.pop(stream, 0)
        if waiting_bytes:
            self._by_stream[stream] = waiting_bytes
        if self._waiting and not self.full:
            for room in self._waiting:
                room.set()

    def wait(self, room: asyncio.Event) -> None:
        """Set the event once there may be room."""
        self._waiting.add(room)

    def leave(self, room: asyncio.Event) -> None:
        """It need not be set any more."""
        self._waiting.discard(room)


@dataclass(frozen=True, slots=True)
class Rpc:
    """What the calls share."""

    service: Service
    clients: Clients
    sessions: RpcSessions
    policy: StreamPolicy
    hearing: SessionSettings
    queue: DecodeQueue
    buffer: TotalBuffer
    max_pending_results: int | None


class Servicer:
    """The two calls."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None

    def handler(self) -> grpc.GenericRpcHandler:
        """For ``grpc.aio.Server.add_generic_rpc_handlers``."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "CreateSession": grpc.unary_unary_rpc_method_handler(
                    self.create_session, _reader(SessionRequest), SessionResponse.SerializeToString
                ),
                "StreamingRecognize": grpc.stream_stream_rpc_method_handler(
                    self.streaming_recognize, _reader(AudioChunk), STTResult.SerializeToString
                ),
            },
        )

    async def create_session(self, request: SessionRequest | _Unreadable, context: Any) -> SessionResponse:
        """``CreateSession``."""
        service = self._rpc.service
        metadata = _metadata(context)
        try:
            if service.draining:
                raise SttRefusedError(errors.SERVER_SHUTTING_DOWN, "the server is shutting down")
            if isinstance(request, _Unreadable):
                raise SttRefusedError(errors.SESSION_ID_REQUIRED, "the request cannot be read as a SessionRequest")
            address = self._rpc.clients.behind(_peer(context), metadata.get("x-forwarded-for", ""))
            response = self._rpc.sessions.create(request, address, self._loop.time(), metadata, time.time())
        except SttRefusedError as refusal:
            service.metrics.connections_rejected.labels(SURFACE, refusal.error.name.lower()).inc()
            await self._abort(context, refusal.error, refusal.message)
        except Exception:  # noqa: BLE001 - a bug of ours ends this call alone
            _log.exception("CreateSession failed")
            await self._abort(context, errors.CREATE_SESSION_UNEXPECTED, "internal error")
        self._rearm()
        return response

    async def streaming_recognize(self, requests: object, context: Any) -> None:
        """``StreamingRecognize``."""
        del requests  # read by context.read, which can be told from the half-close
        await _Streaming(self._rpc, context).run()

    async def _abort(self, context: Any, error: SttError, message: str) -> None:
        self._rpc.service.figures.error(error.status)
        self._rpc.service.metrics.errors.labels(SURFACE, error.name.lower()).inc()
        await context.abort(_status(error), error.details(message))

    def _rearm(self) -> None:
        """Sessions that are never streamed expire in time, not only when the next one comes."""
        due = self._rpc.sessions.deadline()
        if due is not None and self._timer is None:
            self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._rpc.sessions.expire(self._loop.time())
        self._rearm()


class _Streaming:
    """One ``StreamingRecognize``: a guest of the service, and the owner of its hearing."""

    def __init__(self, rpc: Rpc, context: Any) -> None:
        self._rpc = rpc
        self._context = context
        self._service = service = rpc.service
        self._loop = asyncio.get_running_loop()
        self._stream = RpcStream(
            rpc.sessions, rpc.policy, service.figures, rpc.queue, self._loop.time(), self._granted_soon
        )
        metadata = _metadata(context)
        self._metadata = metadata
        client = rpc.clients.behind(_peer(context), metadata.get("x-forwarded-for", ""))
        self._hearing = Hearing(SURFACE, rpc.hearing, service.resources, self, client)
        self._outbox = Outbox(rpc.max_pending_results, service.figures)
        self._filled = asyncio.Event()
        self._room = asyncio.Event()
        self._end: End | None = None
        self._gone = False
        self._warned = False
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0
        self._captures: list[Capture] = []
        self._rate = rpc.policy.sample_rate

    # ---- a guest of the service

    @property
    def busy(self) -> bool:
        """A bound stream may still end its sentence."""
        return self._stream.session is not None and not self._stream.over

    def close(self, code: int, reason: str) -> None:
        """The server's grace is over."""
        del code
        self._carry_out(self._stream.fail(errors.SERVER_SHUTTING_DOWN, reason))

    # ---- its life

    async def run(self) -> None:
        """Until the stream has ended, by whichever side."""
        metrics = self._service.metrics
        metrics.connections.labels(SURFACE).inc()
        metrics.connections_active.labels(SURFACE).inc()
        opened_at = self._loop.time()
        self._service.guests.add(self)
        try:
            async with asyncio.TaskGroup() as tasks:
                self._writer = writer = tasks.create_task(self._write())
                reader = tasks.create_task(self._read())
                await asyncio.wait({writer})
                reader.cancel()
        finally:
            self._service.guests.discard(self)
            if self._timer is not None:
                self._timer.cancel()
            self._hearing.close()
            self._stream.close()
            self._service.figures.decodes_orphaned += self._outbox.clear()
            self._rpc.buffer.note(self, 0)
            for capture in self._captures:
                capture.closed()
            metrics.connections_active.labels(SURFACE).dec()
            metrics.connection_seconds.labels(SURFACE).observe(self._loop.time() - opened_at)
        if self._gone or self._context.cancelled():
            raise asyncio.CancelledError  # there is nobody to tell; this is how grpc.aio ends such a call without a word
        end = self._end or End(errors.DECODE_TIMEOUT, "the client does not read its results")
        self._context.set_trailing_metadata(self._stream.trailing())
        if end.error is not None:
            self._context.set_code(_status(end.error))
            self._context.set_details(end.error.details(end.message))

    # ---- reading

    async def _read(self) -> None:
        self._guarded(self._open)
        while self._stream.listening:
            await self._wait_for_room()
            if not self._stream.listening:
                return
            chunk = await self._context.read()
            self._guarded(partial(self._arrived, chunk))

    def _open(self) -> Sequence[Step]:
        if self._service.draining:
            raise SttRefusedError(errors.SERVER_SHUTTING_DOWN, "the server is shutting down")
        self._stream.open(self._metadata, self._loop.time())
        return []

    def _arrived(self, chunk: AudioChunk | _Unreadable | Any) -> Sequence[Step]:
        now = self._loop.time()
        if chunk is grpc.aio.EOF:
            return self._stream.half_close(now)
        if isinstance(chunk, _Unreadable):
            raise SttRefusedError(errors.AUDIO_CHUNK_TOO_LARGE, "the message cannot be read as an AudioChunk")
        ignored = self._service.figures.chunks_ignored
        steps = self._stream.receive(chunk, now)
        if self._service.figures.chunks_ignored == ignored:
            self._capture(chunk)
        elif not self._warned:
            self._warned = True
            _log.warning("chunk of another session ignored, as all others will be", session_id=self._name)
        return steps

    @property
    def _name(self) -> str:
        return self._stream.session.id[:100] if self._stream.session is not None else ""

    def _capture(self, chunk: AudioChunk) -> None:
        if not self._service.captures or self._stream.session is None:
            return
        if not self._captures:
            self._captures = [make(SURFACE, self._stream.session.id) for make in self._service.captures]
        if chunk.sample_rate > 0:
            self._rate = chunk.sample_rate
        for capture in self._captures:
            if chunk.pcm16:
                capture.audio(chunk.pcm16, self._rate)

    @property
    def _has_room(self) -> bool:
        return self._hearing.accepts_audio and (not self._rpc.buffer.full or self._hearing.queued_seconds <= 0)

    async def _wait_for_room(self) -> None:
        """Policy ``wait``: a stream is not read while too much of its audio waits, its own or everybody's."""
        if self._has_room:
            return
        figures = self._service.figures
        figures.buffer_waits += not self._hearing.accepts_audio
        figures.total_buffer_waits += self._hearing.accepts_audio
        self._stream.blocked(self._loop.time())
        self._rearm()
        self._rpc.buffer.wait(self._room)
        try:
            while not self._has_room:
                self._room.clear()
                await self._room.wait()
        finally:
            self._rpc.buffer.leave(self._room)
            self._stream.unblocked(self._loop.time())

    # ---- steps

    def _guarded(self, take: Callable[[], Sequence[Step]]) -> None:
        try:
            try:
                steps = take()
            except SttRefusedError as refusal:
                steps = self._stream.fail(refusal.error, refusal.message)
            self._carry_out(steps)
            self._rearm()
        except Exception:  # noqa: BLE001 - a bug of ours ends this stream alone
            _log.exception("stream failed", session_id=self._name)
            self.crashed()

    def _carry_out(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Result():
                    if self._end is None and not self._outbox.put(step):
                        self._outbox.clear()
                        message = "the client does not read its results"
                        self._carry_out(self._stream.fail(errors.DECODE_TIMEOUT, message))
                    self._filled.set()
                case End(error, _):
                    self._finish(step, error)
                case _:
                    self._hearing.do(step)
        if steps:
            self._note_buffer()

    def _finish(self, end: End, error: SttError | None) -> None:
        if self._end is not None:
            return
        self._end = end
        self._loop.call_soon(self._hearing.close)  # not now: it may be telling
        if error is not None:
            self._service.figures.error(error.status)
            self._hearing.error(error.name.lower())
            _log.info("stream refused", session_id=self._name, error=error.code, reason=end.message)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(_CLOSE_SECONDS, self._give_up)
        self._filled.set()
        self._room.set()

    def _give_up(self) -> None:
        if self._writer is not None:
            self._writer.cancel()

    def _note_buffer(self) -> None:
        self._rpc.buffer.note(self, bytes_of(self._hearing.queued_seconds))

    # ---- what the hearing tells its owner

    def told(self, event: Event, now: float) -> None:
        """The session has something to say."""
        self._carry_out(self._stream.tell(event, self._hearing.heard_seconds, now))

    def refused(self, error: SessionError) -> None:
        """The session refused a command."""
        self._carry_out(self._stream.refused(error))

    def progressed(self, event: EngineEvent | None) -> None:
        """The engine has heard more, so there may be room."""
        if event is not None:
            self._carry_out(self._stream.progressed(self._hearing.heard_seconds, self._loop.time()))
        self._note_buffer()
        self._room.set()
        self._rearm()

    def crashed(self) -> None:
        """A bug of ours, logged by whoever noticed."""
        for step in self._stream.fail(errors.STREAM_UNEXPECTED, "internal error"):
            if isinstance(step, End):
                self._finish(step, step.error)

    # ---- time

    def _granted_soon(self) -> None:
        self._loop.call_soon(self._granted)

    def _granted(self) -> None:
        self._guarded(lambda: self._stream.poll(self._loop.time()))

    def _rearm(self) -> None:
        if self._end is not None:
            return
        due = self._stream.deadline()
        if due is None:
            return
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        self._guarded(lambda: self._stream.due(self._loop.time()))

    # ---- writing

    async def _write(self) -> None:
        delay = self._service.metrics.frame_delay.labels(SURFACE)
        while True:
            await self._filled.wait()
            self._filled.clear()
            while (result := self._outbox.take()) is not None:
                began = time.perf_counter()  # finer than the loop's clock
                try:
                    await self._context.write(self._stream.message(result))
                except grpc.aio.BaseError:
                    self._gone = True
                    return
                seconds = time.perf_counter() - began
                self._stream.written(result, seconds, self._loop.time())
                delay.observe(seconds)
            if self._end is not None:
                return


def _reader(kind: type[M]) -> Callable[[bytes], M | _Unreadable]:
    """Reads messages; what is none does not end the call in a way of grpc's own, which logs a traceback."""

    def read(data: bytes) -> M | _Unreadable:
        try:
            return kind.FromString(data)
        except DecodeError:
            return _Unreadable()

    return read


def _metadata(context: Any) -> dict[str, str]:
    """The request's metadata that is text; names are in lower case, of equal names the last one counts."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _peer(context: Any) -> str:
    """The address of the other end of the socket; empty where there is none, as on a UNIX socket."""
    kind, _, rest = unquote(context.peer()).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    return rest.rpartition(":")[0].strip("[]")


def _status(error: SttError) -> grpc.StatusCode:
    return grpc.StatusCode[error.status]
