"""A server of the realtime protocol that does as a test tells it: vLLM's manners, or worse ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

Frame = dict[str, Any]
Behaviour = Callable[["Peer", ServerConnection], Awaitable[None]]

VLLM_MODEL = {"id": "voxtral", "object": "model", "owned_by": "vllm", "max_model_len": 2048}
OWN_MODEL = {"id": "voxtral", "owned_by": "earmark", "delay_ms": 480, "delays_ms": [80, 480, 960], "slots": 3}
GREETING = {"type": "session.created", "id": "sess-1", "created": 1}


@dataclass
class Peer:
    """``frames`` is all that came, of all connections; ``arrived`` is set with every one."""

    behaviour: Behaviour
    model: Frame
    health: HTTPStatus = HTTPStatus.OK
    port: int = 0
    frames: list[Frame] = field(default_factory=list)
    connections: list[ServerConnection] = field(default_factory=list)
    asked: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def answer(self, connection: ServerConnection, request: Request) -> Response | None:
        """Health and models; everything else is the WebSocket."""
        if request.path == "/health":
            self.asked += 1
            return connection.respond(self.health, "")
        if request.path == "/v1/models":
            return connection.respond(HTTPStatus.OK, json.dumps({"object": "list", "data": [self.model]}))
        return None

    async def converse(self, socket: ServerConnection) -> None:
        self.connections.append(socket)
        try:
            await self.behaviour(self, socket)
        except ConnectionClosed:
            return

    async def receive(self, socket: ServerConnection) -> Frame:
        frame: Frame = json.loads(await socket.recv())
        async with self.news:
            self.frames.append(frame)
            self.news.notify_all()
        return frame

    async def receive_all(self, socket: ServerConnection) -> int:
        """Everything up to the final commit; how many bytes of base64 it was."""
        size = 0
        while True:
            frame = await self.receive(socket)
            size += len(frame.get("audio", ""))
            if frame.get("final"):
                return size

    async def until_frames(self, count: int) -> None:
        """Return when so many frames have come."""
        async with asyncio.timeout(10), self.news:
            await self.news.wait_for(lambda: len(self.frames) >= count)


async def send(socket: ServerConnection, kind: str, **fields: Any) -> None:
    await socket.send(json.dumps({"type": kind, **fields}))


async def as_vllm(peer: Peer, socket: ServerConnection) -> None:
    """A step of 80 ms is a delta, mostly an empty one; then the sum."""
    await socket.send(json.dumps(GREETING))
    await peer.receive_all(socket)
    for delta in ("", " hel", "", "lo", " there"):
        await send(socket, "transcription.delta", delta=delta)
    usage = {"prompt_tokens": 39, "completion_tokens": 22, "total_tokens": 61, "prompt_tokens_details": None}
    await send(socket, "transcription.done", text=" hello there", usage=usage)
    await socket.wait_closed()


@asynccontextmanager
async def peer(behaviour: Behaviour = as_vllm, model: Frame | None = None, port: int = 0) -> AsyncIterator[Peer]:
    """Serve on the loopback until the end of the block."""
    served = Peer(behaviour, VLLM_MODEL if model is None else model)
    async with serve(served.converse, "127.0.0.1", port, process_request=served.answer, close_timeout=0.1) as server:
        served.port = next(iter(server.sockets)).getsockname()[1]
        yield served
        for _ in range(10):
            await asyncio.sleep(0)  # connections given up while they came in are still on their way through the loop
