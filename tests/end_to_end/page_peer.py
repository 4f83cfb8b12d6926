"""A server with the page and, instead of a recogniser, the bare protocols that the page also speaks, written from their specifications."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, WebSocket
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from server.endpoints.page import page_routes

KEY = "peer-key?"  # a header can carry it, the name of a subprotocol cannot
TOKEN = "letmein"
START_SECONDS = 20.0
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass(slots=True)
class Peer:
    """Where it listens, and what it has received."""

    require_key: bool = False
    port: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)
    audio: bytearray = field(default_factory=bytearray)

    def app(self) -> FastAPI:
        app = FastAPI()
        app.router.routes.extend(page_routes())
        app.get("/")(self.root)
        app.get("/healthz")(self.healthz)
        app.get("/v1/models")(self.models)
        app.post("/v1/audio/transcriptions")(self.transcribe)
        app.websocket("/v1/realtime")(self.realtime)
        return app

    async def root(self) -> dict[str, Any]:
        return {"surfaces": ["openai", "of-tomorrow"], "require_key": self.require_key}

    async def healthz(self) -> dict[str, str]:
        return {"status": "ok"}

    def denied(self, request: Request) -> JSONResponse | None:
        right = request.headers.get("authorization") == f"Bearer {KEY}"
        error = {"message": "Incorrect API key provided", "type": "invalid_request_error", "code": "invalid_api_key"}
        return None if right or not self.require_key else JSONResponse({"error": error}, 401)

    async def models(self, request: Request) -> Any:
        model = {"id": "some/model", "delay_ms": 480, "delays_ms": [480], "languages": ["de", "en"]}
        return self.denied(request) or {"object": "list", "data": [model]}

    # ---- files: OpenAI's POST /v1/audio/transcriptions

    async def transcribe(self, request: Request) -> Any:
        if denied := self.denied(request):
            return denied
        async with request.form() as form:
            upload: Any = form["file"]
            self.audio += await upload.read()
        self.told.append({name: value for name, value in form.items() if name != "file"} | {"name": upload.filename})
        if form["model"] == "some/model" and form.get("language") == "de":
            words = [{"word": "zwei", "start": 0.1, "end": 0.4}, {"word": "Worte", "start": 0.5, "end": 0.9}]
            return {"text": "zwei Worte", "duration": 1.25, "words": words}
        return JSONResponse({"error": {"message": "no such language", "type": "invalid_request_error"}}, 400)

    # ---- OpenAI's realtime transcription sessions

    async def realtime(self, socket: WebSocket) -> None:
        offered = socket.scope["subprotocols"]
        keys = [each.removeprefix("openai-insecure-api-key.") for each in offered if each.startswith("openai-insecure")]
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        if self.require_key and keys != [TOKEN]:
            error = {
                "type": "invalid_request_error",
                "code": "invalid_api_key",
                "message": "Incorrect API key provided",
            }
            await socket.send_json({"type": "error", "error": error})
            return await socket.close(3000)
        await socket.send_json({"type": "session.created", "session": {"type": "transcription"}})
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await self.answer(socket, json.loads(await socket.receive_text()))
        return None

    async def answer(self, socket: WebSocket, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                self.told.append(event["session"])
                await socket.send_json({"type": "session.updated", "session": event["session"]})
            case "input_audio_buffer.append":
                self.audio += base64.b64decode(event["audio"], validate=True)
            case "input_audio_buffer.commit":
                # two pieces: the second one's text comes before the first one is complete, and the first is corrected
                for item in ("a", "b"):
                    await socket.send_json({"type": "input_audio_buffer.committed", "item_id": item})
                for item, delta in (("a", "Hel"), ("b", "there"), ("a", "lo")):
                    await socket.send_json({"type": f"{TRANSCRIPTION}.delta", "item_id": item, "delta": delta})
            case "input_audio_buffer.clear":
                await socket.send_json({"type": "input_audio_buffer.cleared"})
                for item, text in (("b", "there"), ("a", "Hello,")):
                    await socket.send_json({"type": f"{TRANSCRIPTION}.completed", "item_id": item, "transcript": text})


@contextlib.contextmanager
def running(*, require_key: bool = False) -> Iterator[Peer]:
    """One peer on a free port."""
    peer = Peer(require_key)
    config = uvicorn.Config(
        peer.app(), "127.0.0.1", 0, log_level="error", ws="websockets-sansio", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < end, "the peer did not start"
            time.sleep(0.01)  # between two looks at another thread's flag
        peer.port = server.servers[0].sockets[0].getsockname()[1]
        yield peer
    finally:
        server.should_exit = True
        thread.join(START_SECONDS)
