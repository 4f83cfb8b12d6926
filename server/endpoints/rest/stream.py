"""``/stream/transcribe``: one connection whose chunks are answered one after the other."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic

import pybase64
import structlog
from fastapi import WebSocket
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from server.core.limits import Admission
from server.endpoints.auth import bearer_key
from server.endpoints.ops import health_status
from server.endpoints.rest.requests import Door
from server.endpoints.rest.work import SURFACE, Wish, Work
from server.endpoints.websocket import AsgiSocket
from server.protocols.rest import Attempt, ChunkRefusedError, Continuation, Refusal, read_chunk
from server.recordings import DecodingError, Recording, decode
from wire.pcm import seconds_of
from wire.rest import Chunk, ChunkResult

_log = structlog.get_logger("earmark.rest")

_MOST_WAITING_BYTES = 32 << 20
"""Of frames that have come and are not looked at yet; beyond it nothing is read from the socket."""


class Stream:
    """See the module. It is a guest of the service from its acceptance to its end."""

    def __init__(
        self, websocket: WebSocket, door: Door, work: Work, streams: Admission, most_chunk_bytes: int | None
    ) -> None:
        self._websocket = websocket
        self._socket = AsgiSocket(websocket)
        self._door = door
        self._service = door.service
        self._work = work
        self._streams = streams
        self._most_chunk_bytes = most_chunk_bytes
        self._before = Continuation(most_chunk_bytes)
        self._client = door.clients.address(websocket)
        self._frames = _Waiting(_MOST_WAITING_BYTES)
        self._busy = False
        self._task: asyncio.Task[None] | None = None
        self._sent_home: tuple[int, str] | None = None

    # ---- as a guest

    @property
    def busy(self) -> bool:
        """Whether a chunk is worked on or waits."""
        return self._busy or bool(self._frames)

    def close(self, code: int, reason: str) -> None:
        """Go home: the server is shutting down."""
        self._sent_home = code, reason
        if self._task is not None:
            self._task.cancel()

    # ---- its life

    async def run(self) -> None:
        """Accept the socket and answer its chunks until either side ends it."""
        door, metrics = self._door, self._service.metrics
        if door.keys is not None and bearer_key(self._websocket) not in door.keys:
            door.count("authentication_failed")
            await self._websocket.send_denial_response(JSONResponse({"error": "Unauthorized"}, 401))
            return
        try:
            await self._socket.accept()
            why = self._closed_because()
            if why:
                await self._refuse(ChunkRefusedError("MODEL_UNAVAILABLE", why))
                await self._socket.close(1011, why)
                return
        except WebSocketDisconnect:
            return
        active = metrics.connections_active.labels(SURFACE)
        metrics.connections.labels(SURFACE).inc()
        active.inc()
        self._service.guests.add(self)
        _log.info("accepted", surface=SURFACE, active=self._streams.active)
        try:
            await self._live()
        finally:
            self._service.guests.discard(self)
            active.dec()
            self._streams.leave()
            _log.info("closed", surface=SURFACE, active=self._streams.active)

    def _closed_because(self) -> str:
        """Why nobody may come in now; empty, and a place is taken, when somebody may."""
        status = health_status(self._service)
        if status != "healthy":
            self._door.count("server_shutting_down" if status == "draining" else "engine_failed")
            return "the server is shutting down" if status == "draining" else "the model has failed"
        if not self._streams.enter():
            self._door.count("server_at_capacity")
            return f"all {self._streams.limit} streams are taken; try again later"
        return ""

    async def _live(self) -> None:
        self._task = asyncio.create_task(self._answer_all())
        reading = asyncio.create_task(self._read_all())
        try:
            await asyncio.wait({self._task, reading}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (self._task, reading):
                task.cancel()
            await asyncio.wait({self._task, reading})
        try:
            if self._sent_home is not None:
                await self._socket.close(*self._sent_home)
                return
            error = None if self._task.cancelled() else self._task.exception()
            if error is not None and not isinstance(error, WebSocketDisconnect):
                _log.error("stream failed", surface=SURFACE, exc_info=error)
                await self._socket.close(1011, "internal error")
        except WebSocketDisconnect:
            pass  # gone already

    async def _read_all(self) -> None:
        """Take frames in until the client leaves."""
        while (frame := await self._socket.receive()) is not None:
            await self._frames.put(frame)

    async def _answer_all(self) -> None:
        while True:
            frame = await self._frames.take()
            self._busy = True
            try:
                if await self._answer(frame):
                    await self._socket.close(1000, "")
                    return
            finally:
                self._busy = False

    async def _refuse(self, refused: ChunkRefusedError) -> None:
        self._service.metrics.errors.labels(SURFACE, refused.code).inc()
        await self._socket.send(refused.frame())

    # ---- a chunk

    async def _answer(self, frame: str | bytes) -> bool:
        """Answer a chunk; True when it was the last and all went well."""
        began = monotonic()
        try:
            chunk = read_chunk(frame)
            try:
                text = await self._transcribe(chunk)
            except Refusal as refusal:
                raise ChunkRefusedError("PROCESSING_ERROR", refusal.message, chunk.chunk_id) from refusal
        except ChunkRefusedError as refused:
            await self._refuse(refused)
            return False
        result = ChunkResult(
            chunk_id=chunk.chunk_id,
            transcription=text,
            is_final=chunk.is_final,
            processing_time_ms=round((monotonic() - began) * 1000),
        )
        await self._socket.send(result.model_dump_json())
        return chunk.is_final

    async def _transcribe(self, chunk: Chunk) -> str:
        most = self._most_chunk_bytes
        try:
            data = await asyncio.to_thread(pybase64.b64decode, chunk.audio_data, validate=True)
        except ValueError:
            raise ChunkRefusedError("PROCESSING_ERROR", "audio_data is not valid base64", chunk.chunk_id) from None
        if most is not None and len(data) > most:
            message = f"the chunk has {len(data)} bytes, at most {most} are taken; send shorter chunks"
            raise ChunkRefusedError("PROCESSING_ERROR", message, chunk.chunk_id)
        recording = await self._decode(data, chunk)
        if recording is None or not recording.pcm:
            return ""
        said = await self._work.transcribe_pcm(recording, Wish(chunk.language, 0.0, self._client))
        return said.text

    async def _decode(self, data: bytes, chunk: Chunk) -> Recording | None:
        """The chunk's own audio; None when it is the beginning of a file that has no audio yet."""
        error = DecodingError("empty", "the chunk is empty")
        for attempt in self._before.attempts(data, chunk.format) if data else ():
            try:
                recording = await decode(attempt.data, self._work.bounds.transcription)
            except DecodingError as failed:
                error = failed
                if failed.code == "empty":
                    self._before.took(attempt, chunk.format, attempt.known_bytes)
                    return None
                if failed.code != "not_audio":
                    break  # it is a file, and not taken
                continue
            self._before.took(attempt, chunk.format, len(recording.pcm))
            return _without_known(recording, attempt)
        raise ChunkRefusedError(
            "PROCESSING_ERROR", error.message + self._before.hint(data, chunk.format), chunk.chunk_id
        )


def _without_known(recording: Recording, attempt: Attempt) -> Recording:
    """The part of a continued file that is new."""
    pcm = recording.pcm[attempt.known_bytes :]
    return Recording(
        pcm,
        seconds_of(len(pcm)),
        recording.sample_rate,
        recording.channels,
        recording.format,
        recording.damaged_packets,
    )


class _Waiting:
    """Frames in their order, of bounded size together; a full one has whoever puts wait."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._frames: deque[str | bytes] = deque()
        self._held_bytes = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._frames)

    async def put(self, frame: str | bytes) -> None:
        while self._frames and self._held_bytes + len(frame) > self._most_bytes:
            await self._change()
        self._frames.append(frame)
        self._held_bytes += len(frame)
        self._changed.set()

    async def take(self) -> str | bytes:
        while not self._frames:
            await self._change()
        frame = self._frames.popleft()
        self._held_bytes -= len(frame)
        self._changed.set()
        return frame

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
