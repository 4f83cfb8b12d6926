"""One clip through each surface, as a client of it would send it: what text comes back."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable

import httpx
from websockets.asyncio.client import connect

from tests.audio_files import audio_file, wav_file
from tests.end_to_end.clients import RECEIVE_SECONDS, chunks, encoded, realtime, talk, text_of, yap
from tests.end_to_end.rpc_clients import stub, transcribe
from tests.end_to_end.running_server import RunningServer

ALL = ("--surfaces", "yap,realtime,rest,openai,sessions,grpc", "--grpc-port", "0", "--unlimited")
"""A server with every surface on and all limits off."""

Way = Callable[[RunningServer, bytes], Awaitable[str]]


async def by_yap(server: RunningServer, pcm: bytes) -> str:
    async with yap(server) as client:
        return text_of(await client.say(pcm, chunk_bytes=2560))


async def by_realtime(server: RunningServer, pcm: bytes) -> str:
    async with realtime(server, model="") as client:
        return await client.say(pcm, chunk_bytes=4096)


async def by_openai_session(server: RunningServer, pcm: bytes) -> str:
    async with connect(server.ws("/v1/realtime?intent=transcription"), max_queue=None) as socket:
        heard = {"format": {"type": "audio/pcm", "rate": 16_000}, "turn_detection": None}
        session = {"type": "transcription", "audio": {"input": heard}}
        await socket.send(json.dumps({"type": "session.update", "session": session}))
        for chunk in chunks(pcm, 3200):
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": encoded(chunk)}))
        await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
        async for frame in socket:
            event = json.loads(frame)
            assert event["type"] != "error", event
            if event["type"].endswith(".completed"):
                text: str = event["transcript"]
                return text
    raise AssertionError("the session ended without a transcript")


async def by_openai_file(server: RunningServer, pcm: bytes) -> str:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        files = {"file": ("clip.flac", audio_file(pcm, "flac"))}
        answer = await client.post("/v1/audio/transcriptions", files=files, data={"model": model})
    text: str = answer.json()["text"]
    return text


async def by_rest(server: RunningServer, pcm: bytes) -> str:
    body = {"audio_file": base64.b64encode(wav_file(pcm)).decode(), "format": "wav"}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as client:
        answer = await client.post("/transcribe/", json=body)
    text: str = answer.json()["transcription"]
    return text


async def by_rest_stream(server: RunningServer, pcm: bytes) -> str:
    """One chunk that is the whole file: chunks are heard each by itself."""
    async with connect(server.ws("/stream/transcribe"), max_size=None) as socket:
        chunk = {"format": "wav", "chunk_id": 0, "is_final": True, "audio_data": encoded(wav_file(pcm))}
        await socket.send(json.dumps(chunk))
        text: str = json.loads(await socket.recv())["transcription"]
        return text


async def by_session(server: RunningServer, pcm: bytes) -> str:
    async with talk(server) as client:
        await client.configure(vad="off")
        await client.hear(pcm, chunk_bytes=2048)
        await client.control("end")
        frames = await client.receive_until("control", RECEIVE_SECONDS * 4)
        return "".join(frame["text"] for frame in frames[:-1])


async def by_grpc(server: RunningServer, pcm: bytes) -> str:
    async with stub(server) as backend:
        ended = await transcribe(backend, pcm, final="empty")
    assert ended.code.name == "OK", ended.details
    [text] = ended.finals
    return text


WAYS: list[Way] = [
    *(by_yap, by_realtime, by_openai_session, by_openai_file, by_rest, by_rest_stream, by_session, by_grpc),
]
