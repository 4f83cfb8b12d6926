"""Clients as plain as their protocols: they write and check JSON by the specification, without the project's own codecs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.end_to_end.running_server import KEY, RunningServer

RECEIVE_SECONDS = 15.0
Frame = dict[str, Any]


def chunks(pcm: bytes, size: int) -> Iterable[bytes]:
    """The audio in pieces of ``size`` bytes."""
    return (pcm[at : at + size] for at in range(0, len(pcm), size))


def encoded(pcm: bytes) -> str:
    return base64.b64encode(pcm).decode()


class Client:
    """A WebSocket on which every wait is bounded."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def send_raw(self, frame: str | bytes) -> None:
        """Send the frame as it is."""
        async with asyncio.timeout(RECEIVE_SECONDS):
            await self.socket.send(frame)

    async def receive_raw(self, seconds: float = RECEIVE_SECONDS) -> str:
        """The next frame's text."""
        async with asyncio.timeout(seconds):
            frame = await self.socket.recv()
        assert isinstance(frame, str), "server frames are text"
        return frame

    async def receive(self, seconds: float = RECEIVE_SECONDS) -> Frame:
        """The next frame."""
        frame: Frame = json.loads(await self.receive_raw(seconds))
        return frame

    async def receive_until(self, kind: str, seconds: float = RECEIVE_SECONDS) -> list[Frame]:
        """All frames up to and with the first of this type."""
        frames = [await self.receive(seconds)]
        while frames[-1]["type"] != kind:
            frames.append(await self.receive(seconds))
        return frames

    async def closed(self, seconds: float = RECEIVE_SECONDS) -> tuple[list[Frame], int, str]:
        """Frames up to the close, its code and its reason."""
        frames = []
        with suppress(ConnectionClosed):
            while True:
                frames.append(await self.receive(seconds))
        close = self.socket.protocol.close_rcvd
        assert close is not None, "the connection was lost without a close frame"
        return frames, close.code, close.reason

    async def lost(self, seconds: float = RECEIVE_SECONDS) -> int | None:
        """The code of the server's close frame once the connection has ended; None when there was none."""
        async with asyncio.timeout(seconds):
            await self.socket.wait_closed()
        return self.socket.protocol.close_rcvd.code if self.socket.protocol.close_rcvd else None


class Yap(Client):
    """The envelope protocol. Every frame received has exactly the four keys."""

    async def receive(self, seconds: float = RECEIVE_SECONDS) -> Frame:
        frame = await super().receive(seconds)
        assert set(frame) == {"type", "session_id", "request_id", "payload"}
        assert isinstance(frame["payload"], dict)
        return frame

    async def send(self, kind: str, request: str = "r1", session: str = "s1", **payload: Any) -> None:
        """Send an envelope."""
        await self.send_raw(
            json.dumps({"type": kind, "session_id": session, "request_id": request, "payload": payload})
        )

    async def start(self, request: str = "r1", **payload: Any) -> None:
        """Begin an utterance."""
        await self.send("input_audio_buffer.commit", request, final=False, **payload)

    async def append(self, pcm: bytes, request: str = "r1", chunk_bytes: int = 64_000) -> None:
        """Send audio."""
        for chunk in chunks(pcm, chunk_bytes):
            await self.send("input_audio_buffer.append", request, audio=encoded(chunk))

    async def finish(self, request: str = "r1") -> None:
        """End the utterance's audio."""
        await self.send("input_audio_buffer.commit", request, final=True)

    async def say(self, pcm: bytes, request: str = "r1", chunk_bytes: int = 64_000) -> list[Frame]:
        """A whole utterance; all frames up to its ``done``, none of which may be an error."""
        await self.start(request)
        await self.append(pcm, request, chunk_bytes)
        await self.finish(request)
        return await self.heard(request)

    async def heard(self, request: str = "r1") -> list[Frame]:
        """The frames of a healthy utterance: tokens, final, done, all with its id."""
        frames = await self.receive_until("done")
        kinds = [frame["type"] for frame in frames]
        assert kinds == ["token"] * (len(kinds) - 2) + ["final", "done"], frames
        assert {frame["request_id"] for frame in frames} == {request}
        assert "".join(frame["payload"]["text"] for frame in frames[:-2]) == text_of(frames)
        assert all(frame["payload"]["text"] for frame in frames[:-2])
        return frames

    async def error(self) -> Frame:
        """The next frame, which must be an error in the catalogue's shape; its payload."""
        frame = await self.receive()
        assert frame["type"] == "error", frame
        payload: Frame = frame["payload"]
        assert set(payload) == {"code", "message", "details"}
        assert isinstance(payload["message"], str)
        assert payload["message"]
        return payload

    async def synchronise(self) -> None:
        """Ping and take the pong, which must be the next frame: nothing else was waiting."""
        await self.send("ping", "sync", "sync")
        assert await self.receive() == {"type": "pong", "session_id": "sync", "request_id": "sync", "payload": {}}


def text_of(frames: list[Frame]) -> str:
    """The text of an utterance's ``final``."""
    text: str = frames[-2]["payload"]["normalized_text"]
    return text


class Realtime(Client):
    """vLLM's realtime protocol."""

    async def send(self, kind: str, **fields: Any) -> None:
        """Send an event."""
        await self.send_raw(json.dumps({"type": kind, **fields}))

    async def update(self, model: str = "scripted") -> None:
        await self.send("session.update", model=model)

    async def start(self) -> None:
        await self.send("input_audio_buffer.commit")

    async def append(self, pcm: bytes, chunk_bytes: int = 64_000) -> None:
        for chunk in chunks(pcm, chunk_bytes):
            await self.send("input_audio_buffer.append", audio=encoded(chunk))

    async def finish(self) -> None:
        await self.send("input_audio_buffer.commit", final=True)

    async def say(self, pcm: bytes, chunk_bytes: int = 64_000) -> str:
        """A whole utterance on a validated connection; its text."""
        await self.start()
        await self.append(pcm, chunk_bytes)
        await self.finish()
        return await self.heard()

    async def heard(self) -> str:
        """The text of the next utterance, whose frames must be deltas and one done that joins them."""
        frames = await self.receive_until("transcription.done")
        assert [frame["type"] for frame in frames[:-1]] == ["transcription.delta"] * (len(frames) - 1), frames
        assert all(frame["delta"] for frame in frames[:-1])
        text: str = frames[-1]["text"]
        assert "".join(frame["delta"] for frame in frames[:-1]) == text
        return text

    async def error(self) -> Frame:
        """The next frame, which must be an error."""
        frame = await self.receive()
        assert frame["type"] == "error", frame
        assert set(frame) == {"type", "error", "code"}
        assert isinstance(frame["error"], str)
        assert frame["error"]
        return frame

    async def silent(self) -> None:
        """Nothing is waiting: an unknown event is answered by the next frame."""
        await self.send("synchronise")
        frame = await self.error()
        assert frame["code"] == "unknown_event"
        assert "synchronise" in frame["error"]


class Talk(Client):
    """A socket of a session, audio or control."""

    def __init__(self, socket: ClientConnection, session_id: str) -> None:
        super().__init__(socket)
        self.session_id = session_id
        self.client_id = ""

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a JSON message."""
        await self.send_raw(json.dumps({"type": kind, **fields}))

    async def control(self, kind: str, **fields: Any) -> None:
        await self.send("control", control_type=kind, **fields)

    async def hear(self, pcm: bytes, chunk_bytes: int = 2560) -> None:
        """Send audio as binary frames."""
        for chunk in chunks(pcm, chunk_bytes):
            await self.send_raw(chunk)

    async def configure(self, **fields: Any) -> Frame:
        """Configure; the answer, which must be the next frame."""
        await self.control("configure", **fields)
        frame = await self.receive()
        assert frame["type"] == "control", frame
        assert frame["control_type"] == "configured", frame
        return frame

    async def say(self, pcm: bytes, chunk_bytes: int = 2560) -> str:
        """A whole utterance ended by the client; its text, empty when there is none."""
        await self.hear(pcm, chunk_bytes)
        return await self.end()

    async def end(self) -> str:
        """End the utterance; the text that comes before ``ended``."""
        await self.control("end")
        frames = await self.receive_until("control")
        assert set(frames[-1]) == {"type", "control_type", "timestamp"}
        assert frames[-1]["control_type"] == "ended"
        texts = [frame["text"] for frame in frames[:-1] if frame["type"] != "partial"]
        assert all(frame["type"] in ("partial", "text_response") for frame in frames[:-1]), frames
        assert len(texts) <= 1, frames
        return texts[0] if texts else ""

    async def error(self, code: str) -> str:
        """The next frame, which must be an error with this code; its sentence."""
        frame = await self.receive()
        assert set(frame) == {"type", "error", "timestamp", "code"}, frame
        assert (frame["type"], frame["code"]) == ("error", code), frame
        assert isinstance(frame["timestamp"], float)
        sentence: str = frame["error"]
        assert sentence
        return sentence

    async def stats(self) -> Frame:
        """The socket's figures, which must be the next frame."""
        await self.control("get_stats")
        frame = await self.receive()
        assert set(frame) == {"type", "stats"}, frame
        stats: Frame = frame["stats"]
        return stats

    async def synchronise(self) -> None:
        """Ping and take the pong, which must be the next frame: nothing else was waiting."""
        await self.control("ping")
        frame = await self.receive()
        assert (frame["type"], frame.get("control_type")) == ("control", "pong"), frame


# max_queue=None: all that comes is taken in, or the server's close would wait behind what nobody reads


@asynccontextmanager
async def yap(server: RunningServer, *, greeted: bool = True, path: str | None = None) -> AsyncIterator[Yap]:
    """A connection with the right key, its greeting read."""
    url = server.ws(path or f"/api/asr-streaming?api_key={quote(KEY)}")
    options: dict[str, Any] = {"max_size": 32 * 2**20, "ping_interval": None, "max_queue": None}
    async with connect(url, open_timeout=RECEIVE_SECONDS, **options) as socket:
        client = Yap(socket)
        if greeted:
            assert (await client.receive())["type"] == "session.created"
        yield client


@asynccontextmanager
async def realtime(server: RunningServer, *, model: str | None = "scripted") -> AsyncIterator[Realtime]:
    """A connection with the options of the original clients, its greeting read and its model validated."""
    async with connect(server.ws("/v1/realtime"), open_timeout=RECEIVE_SECONDS, max_queue=None) as socket:
        client = Realtime(socket)
        assert (await client.receive())["type"] == "session.created"
        if model is not None:
            await client.update(model)
        yield client


async def new_session(server: RunningServer) -> str:
    """The id of a new session."""
    status, body, _ = await asyncio.to_thread(server.request, "POST", "/session/create")
    assert status == 200, body
    session_id: str = json.loads(body)["session_id"]
    return session_id


@asynccontextmanager
async def talk(
    server: RunningServer,
    session_id: str | None = None,
    *,
    kind: str = "audio",
    greeted: bool = True,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Talk]:
    """A socket of a session, a new one unless it is given; the greeting of an audio socket read."""
    if session_id is None:
        session_id = await new_session(server)
    url = server.ws(f"/ws/{kind}/{session_id}")
    async with connect(url, open_timeout=RECEIVE_SECONDS, max_queue=None, additional_headers=headers) as socket:
        client = Talk(socket, session_id)
        if greeted and kind == "audio":
            frame = await client.receive()
            assert (frame["type"], frame["status"]) == ("status", "connected"), frame
            client.client_id = frame["client_id"]
        yield client
