"""A small real server of both protocols, for tests of the sending side. It answers each packet with a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from websockets.asyncio.server import ServerConnection, serve

from wire import realtime, yap
from wire.pcm import decode_base64
from wire.words import TimedWord


@dataclass
class Peer:
    """``heard`` is the PCM per utterance, in order of their ends. ``requests`` are the handshakes."""

    port: int = 0
    heard: list[bytes] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    delays: list[object] = field(default_factory=list)
    models: list[object] = field(default_factory=list)
    open_now: int = 0
    open_most: int = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"


Handler = Callable[[Peer, ServerConnection], Awaitable[None]]


async def speak_yap(peer: Peer, socket: ServerConnection) -> None:
    """Says word N for packet N, and all of them at the end."""
    await socket.send(yap.encode_server(yap.SessionCreated("sess-1", 0), yap.UNKNOWN, yap.UNKNOWN))
    pcm, words = bytearray(), 0
    async for frame in socket:
        envelope = yap.decode_envelope(frame)
        ids = envelope.session_id, envelope.request_id
        match yap.client_message(envelope):
            case yap.SessionUpdate(model, delay_ms):
                peer.models.append(model)
                await socket.send(yap.encode_server(yap.SessionUpdated("m", delay_ms), *ids))
            case yap.Commit(False, delay_ms):
                peer.delays.append(delay_ms)
                pcm, words = bytearray(), 0
            case yap.Append(audio):
                pcm += decode_base64(audio)
                await socket.send(yap.encode_server(yap.Token(f" {words}"), *ids))
                words += 1
            case yap.Commit(True):
                peer.heard.append(bytes(pcm))
                text = "".join(f" {n}" for n in range(words))
                timed = tuple(TimedWord(str(n), n * 0.08, (n + 1) * 0.08) for n in range(words))
                await socket.send(yap.encode_server(yap.Final(text, timed), *ids))
                await socket.send(yap.encode_server(yap.Done({"total_tokens": words, "details": None}), *ids))


async def speak_realtime(peer: Peer, socket: ServerConnection) -> None:
    """Like vLLM: an empty delta for every second packet."""
    await socket.send(realtime.encode_server(realtime.SessionCreated("sess-1", 0)))
    pcm, words = bytearray(), 0
    async for frame in socket:
        match realtime.decode_client(frame):
            case realtime.SessionUpdate(model, delay_ms):
                peer.models.append(model)
                peer.delays.append(delay_ms)
            case realtime.Commit(False):
                pcm, words = bytearray(), 0
            case realtime.Append(audio):
                pcm += decode_base64(audio)
                await socket.send(realtime.encode_server(realtime.Delta("" if words % 2 else f" {words}")))
                words += 1
            case realtime.Commit(True):
                peer.heard.append(bytes(pcm))
                text = "".join(f" {n}" for n in range(0, words, 2))
                await socket.send(realtime.encode_server(realtime.Done(text, {"total_tokens": words}, delay_ms=480)))


@asynccontextmanager
async def peer(handler: Handler, **options: object) -> AsyncIterator[Peer]:
    """The server on a free port of the loopback interface."""
    state = Peer()

    async def serve_one(socket: ServerConnection) -> None:
        assert socket.request is not None
        state.paths.append(socket.request.path)
        state.headers.append({name.lower(): value for name, value in socket.request.headers.raw_items()})
        state.open_now += 1
        state.open_most = max(state.open_most, state.open_now)
        try:
            await handler(state, socket)
        finally:
            state.open_now -= 1

    where = () if "sock" in options else ("127.0.0.1", 0)
    async with serve(serve_one, *where, **options) as server:  # type: ignore[arg-type]
        state.port = next(iter(server.sockets)).getsockname()[1]
        yield state


async def hang(_: Peer, socket: ServerConnection) -> None:
    """Reads everything, says nothing."""
    async for _frame in socket:
        await asyncio.sleep(0)
