"""What clients of the gRPC service see of an engine with a bug: a real channel to a server in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from server.config import Settings
from server.core.events import OpenSegment
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.engines.base import EngineInfo, EngineStream, Sink
from server.engines.registry import Models
from server.engines.scripted import ScriptedEngine, read_script
from server.listeners import GrpcListener
from server.metrics import Metrics
from server.service import Service
from server.surfaces import rpc
from wire.stt.stt_pb2 import AudioChunk, SessionRequest
from wire.stt.stt_pb2_grpc import STTBackendStub


class BrokenEngine(ScriptedEngine):
    """An engine whose code has a mistake."""

    cannot_open = cannot_tell = False

    @property
    def info(self) -> EngineInfo:
        if self.cannot_tell:
            raise RuntimeError("a mistake in info")
        return super().info

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        if self.cannot_open:
            raise RuntimeError("a mistake in open")
        return super().open(segment, sink)


@asynccontextmanager
async def served(engine: ScriptedEngine) -> AsyncIterator[tuple[Any, Service]]:
    service = Service(Models(engine), Metrics())
    settings = Settings(surfaces=["grpc"], grpc_vad_threshold=0.0)
    listener = GrpcListener("grpc", rpc.server(settings, service, Clients(), Keys([])), "127.0.0.1", 0)
    started = asyncio.Event()
    serving = asyncio.create_task(listener.serve(started))
    await started.wait()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.address[1]}") as channel:
        yield STTBackendStub(channel), service
    listener.leave(at_once=True)
    await serving


@pytest.mark.spec("grpc-72")
async def test_a_bug_is_told_with_its_code_and_ends_that_call_alone() -> None:
    engine = BrokenEngine(read_script(""), 0.08)
    async with served(engine) as (backend, service):
        engine.cannot_tell = True
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await backend.CreateSession(SessionRequest(session_id="one"))
        assert refused.value.code() is grpc.StatusCode.UNKNOWN
        assert (refused.value.details() or "").startswith("ERR3001 ")
        engine.cannot_tell = False
        await backend.CreateSession(SessionRequest(session_id="two"))
        engine.cannot_open = True
        call = backend.StreamingRecognize(metadata=(("session-id", "two"),))
        await call.write(AudioChunk(pcm16=bytes(3200)))
        assert await call.code() is grpc.StatusCode.UNKNOWN
        assert (await call.details()).startswith("ERR3002 ")
        engine.cannot_open = False
        await backend.CreateSession(SessionRequest(session_id="three"))
        call = backend.StreamingRecognize(metadata=(("session-id", "three"),))
        await call.write(AudioChunk(pcm16=bytes(3200), is_final=True))
        assert await call.code() is grpc.StatusCode.OK
        assert service.figures.snapshot()["error_counts"] == {"UNKNOWN": 2}
        assert service.figures.sessions == 0
        assert not service.guests


class KeptAudio:
    """Keeps what it is given, as a recorder of received audio does."""

    def __init__(self, surface: str, name: str) -> None:
        self.what = surface, name
        self.pieces: list[tuple[bytes, int]] = []
        self.ended = 0

    def audio(self, pcm: bytes, rate: int) -> None:
        self.pieces.append((pcm, rate))

    def closed(self) -> None:
        self.ended += 1


async def test_received_audio_can_be_kept_as_it_came() -> None:
    kept: list[KeptAudio] = []

    def make(surface: str, name: str) -> KeptAudio:
        kept.append(KeptAudio(surface, name))
        return kept[-1]

    async with served(ScriptedEngine(read_script(""), 0.08)) as (backend, service):
        service.captures.append(make)
        await backend.CreateSession(SessionRequest(session_id="kept"))
        call = backend.StreamingRecognize(metadata=(("session-id", "kept"),))
        for rate in (8_000, 0, 44_100):
            await call.write(AudioChunk(pcm16=bytes(800), sample_rate=rate))
        await call.write(AudioChunk(is_final=True))
        assert await call.code() is grpc.StatusCode.OK
    [one] = kept
    assert one.what == ("grpc", "kept")
    assert one.pieces == [(bytes(800), 8_000), (bytes(800), 8_000), (bytes(800), 44_100)]
    assert one.ended == 1
