"""Small servers that speak the surfaces that are no plain WebSocket, as their contracts have them, and refuse what those refuse.

They hear `tones`. Over HTTP they stand on uvicorn, over gRPC on grpc.aio: real sockets, real libraries.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import wave
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import Any

import grpc
import uvicorn
from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.websockets import WebSocketDisconnect

from tests.harness.tones import Ear
from wire.stt import stt_pb2, stt_pb2_grpc

KEY = "s3cret"


@dataclass
class Surface:
    """One of them on a free port. ``arrived_ns`` are the moments (``perf_counter_ns``) at which a recording, or an end, was there."""

    port: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    heard: list[tuple[str, ...]] = field(default_factory=list)
    arrived_ns: list[int] = field(default_factory=list)
    answered_ns: list[int] = field(default_factory=list)
    sessions: dict[str, bool] = field(default_factory=dict)  # by id, whether it is still there
    settings: dict[str, Any] = field(default_factory=dict)

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    def take(self, pcm: bytes, rate: int = 16_000) -> tuple[str, ...]:
        """The words of a whole recording."""
        self.arrived_ns.append(perf_counter_ns())
        ear = Ear(rate)
        ear.hear(pcm)
        ear.end()
        words = tuple(word.text for word in ear.words)
        self.heard.append(words)
        return words


class _Server(uvicorn.Server):
    """One that says when it listens, and leaves the signals to pytest."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def over_http(build: Callable[[Surface], FastAPI], **settings: Any) -> AsyncIterator[Surface]:
    """The application on a free port of the loopback interface."""
    state = Surface(settings=settings)
    # ``websockets-sansio``: uvicorn's other one stands on what the websockets library calls legacy
    config = uvicorn.Config(build(state), "127.0.0.1", 0, log_level="warning", ws="websockets-sansio", lifespan="off")
    server = _Server(config)
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        await server.up.wait()
    state.port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.should_exit = True
        await running


def pcm_of(recording: bytes) -> tuple[bytes, int]:
    """Of a WAV file, by the standard library's reader."""
    with wave.open(io.BytesIO(recording)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return file.readframes(file.getnframes()), file.getframerate()


# ---- recordings ------------------------------------------------------------------------------------------------


def recordings(state: Surface) -> FastAPI:
    """``/transcribe/`` and ``/v1/audio/transcriptions``. The settings ``status`` and ``body`` make every answer a refusal."""
    app = FastAPI()

    def refused(request: Request) -> Response | None:
        state.seen.append({"authorization": request.headers.get("authorization")})
        if "status" in state.settings:
            return Response(state.settings["body"], state.settings["status"], media_type="application/json")
        return None

    @app.post("/transcribe/")
    async def transcribe(request: Request) -> Response:
        refusal = refused(request)
        if refusal is not None:
            return refusal
        asked = json.loads(await request.body())
        pcm, rate = pcm_of(base64.b64decode(asked.pop("audio_file"), validate=True))
        state.seen[-1] |= asked
        words = state.take(pcm, rate)
        await asyncio.sleep(state.settings.get("thinks_seconds", 0.0))
        state.answered_ns.append(perf_counter_ns())
        told = {"language_detected": None, "confidence": None, "audio_duration_seconds": len(pcm) / 2 / rate}
        return JSONResponse({"transcription": " ".join(words), "processing_time_ms": 7, **told})

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        refusal = refused(request)
        if refusal is not None:
            return refusal
        async with request.form() as form:
            file = form["file"]
            assert not isinstance(file, str)
            assert file.filename
            pcm, rate = pcm_of(await file.read())
        state.seen[-1] |= {name: value for name, value in form.items() if isinstance(value, str)}
        words = state.take(pcm, rate)
        state.answered_ns.append(perf_counter_ns())
        usage = {"type": "tokens", "output_tokens": len(words)}
        if form.get("stream") != "true":
            return JSONResponse({"text": " ".join(words), "usage": usage})

        async def events() -> AsyncIterator[str]:
            for index, word in enumerate(words):
                delta = f" {word}" if index else word
                yield _event(state, {"type": "transcript.text.delta", "delta": delta}, delta)
                await asyncio.sleep(0.005)
            if state.settings.get("breaks_off"):
                return
            if state.settings.get("like") == "vllm":
                yield "data: [DONE]\n\n"
            else:
                done = {"type": "transcript.text.done", "text": " ".join(words), "usage": usage}
                yield f"event: transcript.text.done\r\ndata: {json.dumps(done)}\r\n\r\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def _event(state: Surface, told: dict[str, Any], delta: str) -> str:
    if state.settings.get("like") == "vllm":
        told = {"object": "transcription.chunk", "choices": [{"delta": {"content": delta}}]}
    return f"data: {json.dumps(told)}\n\n"


# ---- chunks ----------------------------------------------------------------------------------------------------


def chunks(state: Surface) -> FastAPI:
    """``/stream/transcribe``: each chunk a WAV file, heard on its own and answered. ``fails`` names a chunk that is not."""
    app = FastAPI()

    @app.websocket("/stream/transcribe")
    async def stream(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            asked = json.loads(await socket.receive_text())
            number, final = asked["chunk_id"], asked["is_final"]
            pcm, rate = pcm_of(base64.b64decode(asked["audio_data"], validate=True))
            state.seen.append({"chunk_id": number, "is_final": final, "seconds": len(pcm) / 2 / rate})
            if number == state.settings.get("fails"):
                told = {"code": "PROCESSING_ERROR", "message": "no", "chunk_id": number}
                await socket.send_text(json.dumps({"error": told}))
                continue
            words = state.take(pcm, rate)
            answer = {"chunk_id": number, "is_final": final, "confidence": None, "processing_time_ms": 1}
            await socket.send_text(json.dumps({**answer, "transcription": " ".join(words)}))
            if final:
                await socket.close(1000)
                return

    return app


# ---- sessions --------------------------------------------------------------------------------------------------


def sessions(state: Surface) -> FastAPI:
    """``/session/create`` and the session's socket. An utterance ends with a second of silence.

    With ``additions`` (the default) it ends at the control message too, which is answered, and partial texts can be had.
    """
    app = FastAPI()
    additions = state.settings.get("additions", True)

    @app.post("/session/create")
    async def create(request: Request) -> Response:
        state.seen.append({"authorization": request.headers.get("authorization")})
        if "status" in state.settings:
            return JSONResponse({"detail": "too many", "error": "RATE_LIMITED"}, state.settings["status"])
        name = f"s-{len(state.sessions) + 1}"
        state.sessions[name] = True
        return JSONResponse({"session_id": name, "status": "created", "websocket_url": f"/ws/audio/{name}"})

    @app.delete("/session/{name}")
    async def delete(name: str) -> Response:
        if not state.sessions.get(name):
            return JSONResponse({"detail": "no such session"}, 404)
        state.sessions[name] = False
        return JSONResponse({"status": "deleted", "session_id": name})

    @app.websocket("/ws/audio/{name}")
    async def audio(socket: WebSocket, name: str) -> None:
        await socket.accept()

        async def say(kind: str, **fields: Any) -> None:
            await socket.send_text(json.dumps({"type": kind, "timestamp": 1_700_000_000.5, **fields}))

        if not state.sessions.get(name):
            await say("error", error=f"no session {name}", code="SESSION_NOT_FOUND")
            await socket.close(1008)
            return
        await socket.send_text(
            json.dumps(
                {"type": "status", "status": "connected", "client_id": "c", "session_id": name, "server_time": 1.5}
            )
        )
        await say("heartbeat")
        ear, taken, told, partials, silence = Ear(16_000), 0, 0, False, True

        async def end() -> None:
            nonlocal taken, told
            ear.end()
            words = [word.text for word in ear.words[taken:]]
            taken = told = len(ear.words)
            if words:
                state.heard.append(tuple(words))
                state.answered_ns.append(perf_counter_ns())
                await say("text_response", text=" ".join(words))

        try:
            while True:
                message = await socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                if message.get("bytes"):
                    ear.hear(message["bytes"])
                    unanswered = ear.words[taken:]
                    if silence and unanswered and ear.sounding is None and ear.seconds - unanswered[-1].end >= 1.0:
                        await end()
                    elif partials and len(ear.words) > told:
                        told = len(ear.words)
                        await say("partial", text=" ".join(word.text for word in ear.words[taken:]))
                    continue
                asked = json.loads(message["text"])
                state.seen.append(asked)
                match asked:
                    case {"type": "control", "control_type": "configure"} if additions:
                        partials, silence = asked.get("partials", False), asked.get("vad") != "off"
                        await say("control", control_type="configured", delay_ms=asked.get("delay_ms", 480))
                    case {"type": "control", "control_type": "end"} if additions:
                        state.arrived_ns.append(perf_counter_ns())
                        await end()
                        await say("control", control_type="ended")
        except WebSocketDisconnect:
            return

    return app


# ---- gRPC ------------------------------------------------------------------------------------------------------


class _Backend(stt_pb2_grpc.STTBackendServicer):
    """Partial results word by word, one final one at the end. With ``splits`` partials say which part of them stands."""

    def __init__(self, state: Surface) -> None:
        self._state = state

    async def CreateSession(  # noqa: N802 - generated
        self, request: stt_pb2.SessionRequest, context: Any
    ) -> stt_pb2.SessionResponse:
        state, asked = self._state, request
        metadata = dict(context.invocation_metadata() or ())
        state.seen.append(
            {
                "attributes": dict(asked.attributes),
                "override": asked.vad_threshold_override if asked.HasField("vad_threshold_override") else None,
                "language": asked.language_code,
                "profile": asked.decode_profile,
                "authorization": metadata.get("authorization"),
            }
        )
        if "refuses" in state.settings:
            code, details = state.settings["refuses"]
            await context.abort(code, details)
        if asked.session_id in state.sessions:
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, "ERR1002 that session is there already")
        state.sessions[asked.session_id] = True
        return stt_pb2.SessionResponse(attributes={**asked.attributes, "decode_profile": "realtime"})

    async def StreamingRecognize(  # noqa: N802 - generated
        self, request_iterator: AsyncIterator[stt_pb2.AudioChunk], context: Any
    ) -> AsyncIterator[stt_pb2.STTResult]:
        state = self._state
        metadata = dict(context.invocation_metadata() or ())
        name = metadata.get("session-id", "")
        if not state.sessions.get(name):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "ERR1004 unknown session")
        ear, told = Ear(16_000), 0
        async for chunk in request_iterator:
            if "faults" in state.settings and ear.seconds > 0.3:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, state.settings["faults"])
            assert chunk.sample_rate == 16_000
            ear.hear(chunk.pcm16)
            if chunk.is_final:
                break
            if len(ear.words) > told:
                told = len(ear.words)
                words = [word.text for word in ear.words]
                yield self._partial(words)
        state.arrived_ns.append(perf_counter_ns())
        ear.end()
        words = [word.text for word in ear.words]
        state.heard.append(tuple(words))
        state.sessions[name] = False
        if words:
            state.answered_ns.append(perf_counter_ns())
            yield stt_pb2.STTResult(text=" ".join(words), is_final=True)

    def _partial(self, words: list[str]) -> stt_pb2.STTResult:
        text = " ".join(words)
        if not self._state.settings.get("splits"):
            return stt_pb2.STTResult(text=text)
        committed = " ".join(words[:-1])
        return stt_pb2.STTResult(text=text, committed_text=committed, unstable_text=text[len(committed) :])


@asynccontextmanager
async def over_grpc(**settings: Any) -> AsyncIterator[Surface]:
    """``stt.STTBackend`` on a free port of the loopback interface."""
    state = Surface(settings=settings)
    server = grpc.aio.server()
    stt_pb2_grpc.add_STTBackendServicer_to_server(_Backend(state), server)
    state.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield state
    finally:
        await server.stop(0)
