"""One bad client never disturbs another: good streams beside a client that sends everything but sense."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import psutil
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from tests.end_to_end.clients import Realtime, encoded, new_session, realtime, talk, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import random_words, sentence, spoken

FUZZ_SECONDS = 5.0
LEAST_CONNECTIONS = 20
"""So many bad clients send every fault; a busy machine takes longer for them."""
PATHS = {"yap": f"/api/asr-streaming?api_key={KEY}", "realtime": "/v1/realtime", "sessions": "/ws/audio/any"}


# ---- what a fuzzing client sends


def anything(chosen: random.Random, depth: int = 3) -> Any:
    """Any JSON value."""
    kind = chosen.randrange(9 if depth else 7)
    match kind:
        case 0:
            return None
        case 1:
            return chosen.choice([True, False])
        case 2:
            return chosen.choice([0, -1, 1, 480, 2**63, -(2**70), 10**30])
        case 3:
            return chosen.choice([0.5, -1e300, 480.0, 1e-9])
        case 4:
            return "".join(chosen.choices("a \u0000\u00e9\U0001f600\\\"'{}\n", k=chosen.randrange(30)))
        case 5:
            return chosen.choice(["auto", "off", "scripted", "r1", "r2", "final", "AQID", "AQIDBA==", "unknown"])
        case 6:
            return encoded(chosen.randbytes(chosen.randrange(3000)))
        case 7:
            return [anything(chosen, depth - 1) for _ in range(chosen.randrange(4))]
        case _:
            return {str(anything(chosen, 0)): anything(chosen, depth - 1) for _ in range(chosen.randrange(4))}


KINDS = (
    *("session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "cancel", "ping", "pong", "end"),
    *("response.create", "", " ", "token", "final", "error"),
)
FIELDS = ("audio", "final", "model", "reason", "delay_ms", "vad", "type", "payload")
WORDS = sentence("words", "of", "the", "fuzzer")


def known_message(chosen: random.Random, surface: str) -> str:
    """A message of the protocol, in no order, sometimes with fields that make no sense."""
    kind = chosen.choice(KINDS[:7] if chosen.random() < 0.9 else KINDS)
    if kind == "end" and chosen.random() < 0.8:
        kind = "input_audio_buffer.commit"
    fields: dict[str, Any] = {}
    match kind:
        case "input_audio_buffer.append":
            odd = chosen.random() < 0.2
            fields["audio"] = encoded(WORDS[: 2 * chosen.randrange(len(WORDS) // 2) + odd])
        case "input_audio_buffer.commit":
            fields["final"] = chosen.choice([True, False])
        case "session.update":
            fields["model"] = chosen.choice(["scripted", "", "other"])
    if chosen.random() < 0.2:
        fields[chosen.choice(FIELDS)] = anything(chosen)
    if surface == "realtime":
        return json.dumps({"type": kind, **fields})
    ids = {name: chosen.choice(["r1"] * 12 + ["r2", "r3", " "]) for name in ("session_id", "request_id")}
    return json.dumps({"type": kind, **ids, "payload": fields})


def known_frame_of_sessions(chosen: random.Random) -> str | bytes:
    """Audio, or a message of a session's sockets, sometimes with fields that make no sense."""
    if chosen.random() < 0.4:
        return WORDS[: 2 * chosen.randrange(len(WORDS) // 2) + (chosen.random() < 0.1)]
    kind = chosen.choice(["text_input", "control", "control", "control", "config_update", "audio_chunk"])
    fields: dict[str, Any] = {}
    match kind:
        case "text_input":
            fields["text"] = chosen.choice(["hello", "", " ", "x" * 1000])
        case "control":
            fields["control_type"] = chosen.choice(["ping", "get_stats", "end", "end", "configure", "dance"])
            if fields["control_type"] == "configure":
                names = chosen.sample(["delay_ms", "partials", "model", "language", "vad"], chosen.randrange(3))
                possible = {"delay_ms": 80, "partials": True, "model": "scripted", "language": "en", "vad": "off"}
                fields |= {name: possible[name] if chosen.random() < 0.7 else anything(chosen) for name in names}
        case "config_update":
            config = {"vad_sensitivity": chosen.randrange(5), "temperature": 3 * chosen.random(), "max_length": 256}
            fields["config"] = config if chosen.random() < 0.7 else anything(chosen)
    if chosen.random() < 0.1:
        fields[chosen.choice(["text", "control_type", "config", "type", "timestamp"])] = anything(chosen)
    return json.dumps({"type": kind} | fields)


def garbage(chosen: random.Random) -> str | bytes:
    match chosen.randrange(6):
        case 0:
            return chosen.randbytes(chosen.randrange(5000))
        case 1:
            return json.dumps(anything(chosen))
        case 2:
            return json.dumps(anything(chosen))[: chosen.randrange(50)]
        case 3:
            return chosen.choice(["[", '{"type":', '{"payload":[']) * chosen.choice([1, 200, 50_000])
        case 4:
            return "".join(chr(chosen.randrange(1, 0xD800)) for _ in range(chosen.randrange(300)))
        case _:
            return "x" * chosen.choice([0, 1, 70_000, 3_000_000])


async def fuzz_one(server: RunningServer, surface: str, chosen: random.Random) -> None:
    """One connection of a bad client, up to an end of its choice."""
    path = await way_in(server, surface, chosen)
    socket = await connect(server.ws(path), ping_interval=None, close_timeout=1, max_size=None)
    reading = asyncio.create_task(read_all(socket)) if chosen.random() < 0.8 else None
    try:
        for _ in range(chosen.randrange(1, 120)):
            if chosen.random() < 0.75:
                frame = known_frame_of_sessions(chosen) if surface == "sessions" else known_message(chosen, surface)
                await socket.send(frame)
            elif chosen.random() < 0.02:
                await socket.send(b"\xff\xfe not UTF-8", text=True)
            else:
                await socket.send(garbage(chosen))
        match chosen.randrange(5):
            case 0:
                await socket.send("y" * (16 * 2**20 + 100))
            case 1:
                socket.transport.write(chosen.randbytes(200))  # no frame at all
            case 2:
                await socket.close()
            case _:
                pass
    finally:
        socket.transport.abort()
        if reading is not None:
            await asyncio.wait([reading], timeout=5)


async def way_in(server: RunningServer, surface: str, chosen: random.Random) -> str:
    """The path of a connection; now and then one that leads nowhere."""
    if surface == "sessions":
        kind = chosen.choice(["audio", "audio", "audio", "control"])
        return f"/ws/{kind}/{await new_session(server) if chosen.random() < 0.9 else 'wrong'}"
    return PATHS[surface] if chosen.random() < 0.9 else PATHS[surface].replace(KEY, "wrong")


async def read_all(socket: ClientConnection) -> None:
    with suppress(WebSocketException):
        async for _ in socket:
            pass


async def fuzz(server: RunningServer, surface: str, until: Callable[[], bool]) -> int:
    """Bad clients one after the other; how many there were."""
    chosen = random.Random(f"fuzz {surface}")
    connections = 0
    while not until() or connections < LEAST_CONNECTIONS:
        with suppress(WebSocketException, InvalidHandshake, OSError, TimeoutError):
            async with asyncio.timeout(5):
                await fuzz_one(server, surface, chosen)
        connections += 1
    return connections


# ---- what good clients go on with


async def good_envelope(server: RunningServer, seed: int, until: Callable[[], bool]) -> int:
    texts = random_words(12, seed=seed)
    pcm, _ = spoken(texts, seed=seed)
    rounds = 0
    async with yap(server) as client:
        while not until():
            assert text_of(await client.say(pcm, f"r{rounds}", chunk_bytes=2560)) == " ".join(texts)
            rounds += 1
    return rounds


async def good_realtime(server: RunningServer, seed: int, until: Callable[[], bool]) -> int:
    texts = random_words(12, seed=seed)
    pcm, _ = spoken(texts, seed=seed)
    rounds = 0
    async with realtime(server) as client:
        while not until():
            assert await client.say(pcm, chunk_bytes=2560) == " ".join(texts)
            rounds += 1
    return rounds


async def good_paced(server: RunningServer, seed: int, until: Callable[[], bool]) -> int:
    """As a microphone sends it: in real time."""
    texts = random_words(8, seed=seed)
    pcm, _ = spoken(texts, seed=seed, longest_pause_seconds=0.1)
    rounds = 0
    async with realtime(server) as client:
        while not until():
            await client.start()
            began = time.monotonic()
            for at in range(0, len(pcm), 2560):
                await client.append(pcm[at : at + 2560])
                await asyncio.sleep(max(0.0, began + (at + 2560) / 32_000 - time.monotonic()))
            await client.finish()
            assert await client.heard() == " ".join(texts)
            rounds += 1
    return rounds


async def good_session(server: RunningServer, seed: int, until: Callable[[], bool]) -> int:
    texts = random_words(12, seed=seed)
    pcm, _ = spoken(texts, seed=seed)
    rounds = 0
    async with talk(server) as client:
        await client.configure(vad="off")
        while not until():
            assert await client.say(pcm) == " ".join(texts)
            rounds += 1
    return rounds


Good = Callable[[RunningServer, int, Callable[[], bool]], Coroutine[Any, Any, int]]
GOOD: list[Good] = [*[good_envelope] * 2, *[good_realtime] * 2, *[good_session] * 2, *[good_paced] * 2]
OPEN = (
    *("--sessions-create-per-minute", "off", "--sessions-connect-per-minute", "off"),
    *("--sessions-audio-bytes-per-second", "off", "--sessions-max", "off"),
)
"""All these sessions come from one address."""


FAULTS = {
    "yap": ["invalid_message", "unknown_message_type", "no_active_request", "invalid_audio", "unsupported_model"],
    "realtime": ["invalid_json", "unknown_event", "model_not_validated", "invalid_audio", "processing_error"],
    "sessions": ["AUDIO_FORMAT_ERROR", "PROCESSING_ERROR"],
}


@pytest.mark.parametrize("surface", ["yap", "realtime", "sessions"])
async def test_eight_good_streams_beside_a_fuzzing_client(serve: Serve, surface: str) -> None:
    server = serve(*OPEN)
    end = time.monotonic() + FUZZ_SECONDS

    def over() -> bool:
        return time.monotonic() > end

    async with asyncio.timeout(FUZZ_SECONDS + 60), asyncio.TaskGroup() as tasks:
        good = [tasks.create_task(stream(server, seed, over)) for seed, stream in enumerate(GOOD)]
        fuzzing = tasks.create_task(fuzz(server, surface, over))
    assert all(task.result() >= 1 for task in good)
    assert fuzzing.result() >= 3
    await server.until_idle()
    assert server.get("/healthz")[0] == 200
    log = server.log()
    assert "Traceback" not in log
    assert "connection failed" not in log
    assert server.metric("earmark_errors_total", surface=surface, reason="internal_error") == 0
    for reason in FAULTS[surface]:
        assert server.metric("earmark_errors_total", surface=surface, reason=reason) > 0, "the fuzzer did its work"


@pytest.mark.parametrize("surface", ["yap", "realtime", "sessions"])
async def test_garbage_instead_of_a_handshake(serve: Serve, surface: str) -> None:
    server = serve()
    chosen = random.Random("handshake")
    head = f"GET {PATHS[surface]} HTTP/1.1\r\nHost: x\r\n".encode()
    for tail in (
        *(b"", b"\r\n", b"Upgrade: websocket\r\n\r\n", b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        *(chosen.randbytes(300), b"X: " + b"y" * 200_000 + b"\r\n\r\n"),
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with suppress(OSError):
            writer.write(head + tail)
            await writer.drain()
        writer.transport.abort()
    await server.until_idle()
    async with realtime(server) as client:
        assert await client.say(sentence("all", "well")) == "all well"


async def test_a_client_that_never_reads_its_text_disturbs_nobody(serve: Serve) -> None:
    server = serve("--no-vad")
    resident = psutil.Process(server.process.pid)
    pcm, _ = spoken(random_words(300, seed=31), seed=31)
    async with connect(server.ws("/v1/realtime")) as socket, realtime(server) as neighbour:
        deaf = Realtime(socket)
        deaf.socket.transport.pause_reading()
        await deaf.update()
        before = resident.memory_info().rss
        for n in range(10):
            await deaf.start()
            await deaf.append(pcm)
            await deaf.finish()
            assert await neighbour.say(sentence("round", str(n))) == f"round {n}"
        assert resident.memory_info().rss - before < 60 * 2**20
        deaf.socket.transport.abort()
    await server.until_idle()
