"""Clients of ``stt.STTBackend`` over real channels, as the system's own programs use it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from tests.end_to_end.running_server import RunningServer
from wire.stt.stt_pb2 import AudioChunk, SessionRequest, SessionResponse, STTResult
from wire.stt.stt_pb2_grpc import STTBackendStub

GRPC = ("--surfaces", "yap,grpc", "--grpc-port", "0")
OPEN = (
    *GRPC,
    *("--grpc-max-sessions", "0", "--grpc-max-sessions-per-ip", "0", "--grpc-create-session-rps", "0"),
    *("--grpc-max-audio-bytes-per-sec", "0", "--grpc-partial-decode-interval-sec", "0.2"),
)
"""A server with gRPC whose limits on who and how fast are off."""

SECONDS = 20.0
"""Nothing in these tests takes so long."""


@dataclass
class Ended:
    """How a stream went."""

    results: list[STTResult]
    code: grpc.StatusCode
    details: str
    trailing: dict[str, str] = field(default_factory=dict)

    @property
    def finals(self) -> list[str]:
        return [result.text for result in self.results if result.is_final]

    @property
    def partials(self) -> list[str]:
        return [result.text for result in self.results if not result.is_final]


def address(server: RunningServer) -> str:
    return f"127.0.0.1:{server.grpc_port}"


class Backend:
    """The two calls for a client that goes on when it likes, and ``blocking`` for one that sends and reads to the end."""

    def __init__(self, channel: grpc.aio.Channel, blocking: grpc.Channel) -> None:
        own = STTBackendStub(channel)
        self.CreateSession: Any = own.CreateSession
        self.StreamingRecognize: Any = own.StreamingRecognize
        self.blocking: Any = STTBackendStub(blocking).StreamingRecognize


@asynccontextmanager
async def stub(server: RunningServer) -> AsyncIterator[Backend]:
    """A connection of one's own to the server."""
    target, options = address(server), [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        with grpc.insecure_channel(target, options=options) as blocking:
            yield Backend(channel, blocking)


def new_id() -> str:
    return f"test-{uuid.uuid4().hex[:8]}"


async def create(backend: Backend, session_id: str | None = None, **fields: Any) -> tuple[str, SessionResponse]:
    """A session; voice activity detection is off unless asked for."""
    session_id = new_id() if session_id is None else session_id
    fields.setdefault("vad_threshold_override", 0.0)
    if fields["vad_threshold_override"] is None:
        del fields["vad_threshold_override"]
    request = SessionRequest(session_id=session_id, **fields)
    return session_id, await backend.CreateSession(request, timeout=SECONDS)


async def refusal(call: Any) -> tuple[str, str]:
    """Status name and code of an RPC that has to fail."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, (error.details() or "").split(" ")[0]
    raise AssertionError("it did not fail")


def chunks(
    pcm: bytes,
    session_id: str = "",
    rate: int = 16_000,
    chunk_ms: int = 100,
    token: str = "",
    *,
    final: str = "last",
) -> list[AudioChunk]:
    """The audio cut; ``final``: is_final on the ``last`` chunk, on an ``empty`` one after it, or ``never``."""
    size = rate * chunk_ms // 1000 * 2
    cut = [
        AudioChunk(pcm16=pcm[at : at + size], sample_rate=rate, session_id=session_id, session_token=token)
        for at in range(0, len(pcm), size)
    ]
    if final == "empty":
        cut.append(AudioChunk(session_id=session_id, session_token=token, sample_rate=rate, is_final=True))
    elif final == "last":
        cut[-1].is_final = True
    return cut


async def ended(call: Any) -> Ended:
    """Read a stream to its end."""
    results: list[STTResult] = []
    try:
        async with asyncio.timeout(SECONDS):
            while (result := await call.read()) is not grpc.aio.EOF:
                results.append(result)
    except grpc.aio.AioRpcError:
        pass  # what came before counts
    code, details = await call.code(), await call.details()
    trailing = {key: str(value) for key, value in await call.trailing_metadata() or ()}
    return Ended(results, code, details or "", trailing)


_threads = ThreadPoolExecutor(128, thread_name_prefix="client")


async def stream(backend: Backend, sent: Sequence[AudioChunk], metadata: Mapping[str, str] | None = None) -> Ended:
    """Send these chunks, close this side, and read to the end, as a program with threads does.

    Not with grpc.aio: there a write that meets the end of the stream may win over the status that the server has sent.
    """

    def blocking() -> Ended:
        call = backend.blocking(iter(sent), metadata=tuple((metadata or {}).items()), timeout=SECONDS)
        results: list[STTResult] = []
        try:
            for result in call:
                results.append(result)  # noqa: PERF402 - what came before an error counts
        except grpc.RpcError:
            pass
        trailing = {key: str(value) for key, value in call.trailing_metadata() or ()}
        return Ended(results, call.code(), call.details() or "", trailing)

    return await asyncio.get_running_loop().run_in_executor(_threads, blocking)


async def transcribe(backend: Backend, pcm: bytes, *, final: str = "last", rate: int = 16_000, **fields: Any) -> Ended:
    """Session and stream of one piece of audio."""
    session_id, response = await create(backend, **fields)
    sent = chunks(pcm, session_id, rate, token=response.token, final=final)
    return await stream(backend, sent, {"session-id": session_id})
