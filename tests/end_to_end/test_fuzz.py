"""Cases that hypothesis thinks up, sent to every surface beside good streams: no crash, no 500, no leaked task, no lost word.

``EARMARK_FUZZ_CASES`` is how many all surfaces get together. A case that fails is made as small as it can be before it is shown.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
import grpc.aio
import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as some
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.audio_files import wav_file
from tests.end_to_end.clients import encoded, new_session, realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.rpc_clients import new_id, stream, stub
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import random_words, sentence, spoken
from wire.stt.stt_pb2 import AudioChunk, SessionRequest

CASES = int(os.environ.get("EARMARK_FUZZ_CASES", "2000"))
CASE_SECONDS = 20.0
pytestmark = [
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # cases are large
    pytest.mark.filterwarnings("ignore:Do not use the `random` module"),  # the good streams do, in their thread
]
Frame = str | bytes
T = TypeVar("T")


class Loop:
    """An event loop in a thread of its own: hypothesis calls its tests synchronously, and good streams go on meanwhile."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fuzz")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], seconds: float = CASE_SECONDS) -> T:
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop).result(seconds + 5)

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        async def begin() -> asyncio.Task[T]:
            return asyncio.ensure_future(work)

        return self.run(begin())

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()


# ---- cases

AUDIO = sentence("fuzzed", "words")
VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers(-(2**70), 2**70)
    | some.floats(allow_nan=False)
    | some.text(max_size=20)
    | some.sampled_from(["auto", "off", "scripted", "r1", "r2", "s1", "en", "wav", "AQID", "AAAA", "", " "]),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
PIECES = some.integers(0, len(AUDIO) // 2).map(lambda n: AUDIO[: 2 * n]) | some.binary(max_size=400)
BASE64 = PIECES.map(encoded) | some.text(max_size=20)
MONSTERS = {
    "deep": "[" * 50_000,
    "broken": '{"type":' * 300,
    "long": "x" * 70_000,
    "cut": '{"type":"ping"',
    "nul": "\x00",
}
GARBAGE: some.SearchStrategy[Frame] = (
    VALUES.map(json.dumps)
    | some.text(max_size=200)
    | some.binary(max_size=400)
    | some.sampled_from(["deep", "broken", "long", "cut", "nul"]).map(lambda name: MONSTERS[name])
)


def messages(kinds: list[str], fields: dict[str, some.SearchStrategy[Any]]) -> some.SearchStrategy[dict[str, Any]]:
    """Objects with one of these types and some of these fields, each sensible or anything."""
    optional = {name: strategy | VALUES for name, strategy in fields.items()}
    return some.fixed_dictionaries({"type": some.sampled_from(kinds)}, optional=optional)


def enveloped(message: dict[str, Any], ids: tuple[str, str], keep: bool) -> str:
    kind = message.pop("type")
    frame = {"type": kind, "session_id": ids[0], "request_id": ids[1], "payload": message if keep else [message]}
    return json.dumps(frame)


IDS = some.tuples(some.sampled_from(["s1", "s1", "s2", ""]), some.sampled_from(["r1", "r1", "r1", "r2", " "]))
YAP_KINDS = [
    "session.update",
    "input_audio_buffer.append",
    "input_audio_buffer.commit",
    "cancel",
    "ping",
    "pong",
    "nonsense",
]
YAP = some.builds(
    enveloped,
    messages(
        YAP_KINDS, {"audio": BASE64, "final": some.booleans(), "model": some.just("scripted"), "vad": some.just("auto")}
    ),
    IDS,
    some.sampled_from([True, True, True, False]),
)
REALTIME = messages(
    ["session.update", "input_audio_buffer.append", "input_audio_buffer.commit", "response.create"],
    {"audio": BASE64, "final": some.booleans(), "model": some.just("scripted"), "delay_ms": some.just(480)},
).map(json.dumps)
OPENAI_INPUT = some.fixed_dictionaries(
    {},
    optional={
        "format": some.sampled_from([{"type": "audio/pcm", "rate": 16_000}, {"type": "audio/pcm", "rate": 24_000}])
        | VALUES,
        "transcription": some.fixed_dictionaries(
            {}, optional={"model": some.just("whisper-1") | VALUES, "language": VALUES, "delay": VALUES}
        ),
        "turn_detection": some.sampled_from([None, {"type": "server_vad"}, {"type": "semantic_vad"}]) | VALUES,
    },
)
OPENAI = (
    messages(
        [
            "input_audio_buffer.append",
            "input_audio_buffer.commit",
            "input_audio_buffer.clear",
            "conversation.item.create",
        ],
        {"audio": BASE64, "event_id": some.text(max_size=5)},
    )
    | OPENAI_INPUT.map(lambda heard: {"type": "session.update", "session": {"audio": {"input": heard}}})
    | OPENAI_INPUT.map(lambda heard: {"type": "transcription_session.update", "session": heard})
).map(json.dumps)

SESSIONS: some.SearchStrategy[Frame] = (
    messages(
        ["text_input", "control", "control", "control", "config_update", "audio_chunk"],
        {
            "text": some.text(max_size=20),
            "control_type": some.sampled_from(["ping", "get_stats", "end", "end", "configure"]),
            "delay_ms": some.just(80),
            "partials": some.booleans(),
            "vad": some.sampled_from(["auto", "off"]),
            "language": some.just("en"),
            "config": some.fixed_dictionaries({}, optional={"vad_sensitivity": VALUES, "temperature": VALUES}),
        },
    ).map(json.dumps)
    | PIECES
)

CHUNKS = some.fixed_dictionaries(
    {},
    optional={
        "format": some.sampled_from(["wav", "mp3", "flac"]) | VALUES,
        "chunk_id": some.integers(0, 9) | VALUES,
        "is_final": some.just(False) | VALUES.filter(lambda value: value is not True),
        "audio_data": PIECES.map(lambda pcm: encoded(wav_file(pcm))) | BASE64 | VALUES,
        "language": some.sampled_from(["en", None]) | VALUES,
    },
).map(json.dumps)


def cases(known: some.SearchStrategy[Frame]) -> some.SearchStrategy[list[Frame]]:
    """What one connection sends."""
    return some.lists(some.one_of(known, known, known, GARBAGE), min_size=1, max_size=8)


@dataclass(frozen=True)
class WebSocketSurface:
    """``path`` may have a ``{session}``, which is made. ``sync`` is a last frame whose answer ``synced`` knows; ``fault`` sees a fault of
    the server in a frame.
    """

    path: str
    known: some.SearchStrategy[Frame]
    sync: str
    synced: Callable[[dict[str, Any]], bool]
    fault: Callable[[dict[str, Any]], bool]


SURFACES = {
    "yap": WebSocketSurface(
        f"/api/asr-streaming?api_key={KEY}",
        YAP,
        '{"type":"ping","session_id":"the","request_id":"last"}',
        lambda frame: frame["request_id"] == "last",
        lambda frame: frame["payload"].get("code") == "internal_error",
    ),
    "realtime": WebSocketSurface(
        "/v1/realtime",
        REALTIME,
        '{"type":"the last"}',
        lambda frame: "the last" in str(frame.get("error")),
        lambda frame: "internal error" in str(frame.get("error")),
    ),
    "openai": WebSocketSurface(
        "/v1/realtime?intent=transcription",
        OPENAI,
        '{"type":"nothing","event_id":"the last"}',
        lambda frame: frame["type"] == "error" and frame["error"]["event_id"] == "the last",
        lambda frame: frame["type"] == "error" and frame["error"]["type"] == "server_error",
    ),
    "sessions": WebSocketSurface(
        "/ws/audio/{session}",
        SESSIONS,
        '{"type":"control","control_type":"configure","model":"the last"}',
        lambda frame: "the last" in str(frame.get("error")),
        lambda frame: "internal error" in str(frame.get("error")),
    ),
    "rest": WebSocketSurface(
        "/stream/transcribe",
        CHUNKS,
        '{"chunk_id":424242,"format":"wav"}',
        lambda frame: (frame.get("error") or {}).get("chunk_id") == 424242,
        lambda frame: (frame.get("error") or {}).get("code") in ("SERVER_ERROR", "MODEL_UNAVAILABLE"),
    ),
}
SHARES = len(SURFACES) + 2
"""gRPC and HTTP bodies have a share each."""


async def send_case(server: RunningServer, surface: WebSocketSurface, frames: list[Frame]) -> None:
    """One connection; its answers are those of a server in good health."""
    path = surface.path.format(session=await new_session(server)) if "{session}" in surface.path else surface.path
    socket = await connect(server.ws(path), ping_interval=None, close_timeout=2, max_size=None)
    try:
        await converse(socket, surface, frames)
    finally:
        socket.transport.abort()
        await socket.wait_closed()


async def converse(socket: ClientConnection, surface: WebSocketSurface, frames: list[Frame]) -> None:
    with suppress(ConnectionClosed):  # the server may have had enough of it
        for frame in frames:
            await socket.send(frame)
        await socket.send(surface.sync)
        while True:
            frame = json.loads(await socket.recv())
            assert not surface.fault(frame), frame
            if surface.synced(frame):
                return
    assert socket.close_code not in (1006, 1011), "the server lost the connection or failed"


# ---- good streams


class Neighbours:
    """Eight good streams, four of either protocol, that go on until they are stopped."""

    def __init__(self, loop: Loop, server: RunningServer) -> None:
        self._loop = loop
        self._over = False
        self.rounds = [0] * 8
        self._tasks = [loop.start(self._speak(server, number)) for number in range(8)]

    async def _speak(self, server: RunningServer, number: int) -> None:
        texts = random_words(10, seed=number)
        pcm, _ = spoken(texts, seed=number)
        if number % 2:
            async with yap(server) as envelope:
                while not self._over:
                    said = text_of(await envelope.say(pcm, f"r{self.rounds[number]}", chunk_bytes=2560))
                    await self._check(number, said, texts)
        else:
            async with realtime(server) as plain:
                while not self._over:
                    await self._check(number, await plain.say(pcm, chunk_bytes=2560), texts)

    async def _check(self, number: int, said: str, texts: list[str]) -> None:
        assert said == " ".join(texts)
        self.rounds[number] += 1
        await asyncio.sleep(0.2)  # a good stream is in no hurry: the cases need the time

    def stop(self) -> None:
        """Raises what went wrong with any of them."""
        self._over = True

        async def end() -> None:
            await asyncio.gather(*self._tasks)

        self._loop.run(end(), 30)


@pytest.fixture(scope="module")
def server(serve: Serve) -> RunningServer:
    return serve("--unlimited", "--surfaces", "yap,realtime,rest,openai,sessions,grpc", "--grpc-port", "0")


@pytest.fixture(scope="module")
def neighbours(loop: Loop, server: RunningServer) -> Iterator[Neighbours]:
    """They are there for all tests of this module; at the end everything must be as before."""
    tasks = server.metric("earmark_tasks")
    made = Neighbours(loop, server)
    yield made
    made.stop()
    assert all(rounds >= 1 for rounds in made.rounds)
    loop.run(server.until_idle())
    loop.run(server.until_metric(lambda now: now <= tasks, "earmark_tasks"))
    assert server.get("/healthz")[0] == 200
    log = server.log()
    assert "Traceback" not in log, log[-4000:]
    assert "failed" not in log, log[-4000:]


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """The share of a surface, the same cases each time."""
    how = settings(
        max_examples=-(-CASES // SHARES),  # rounded up
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return how(seed(2026)(test))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.usefixtures("neighbours")
def test_no_case_harms_the_server(name: str, server: RunningServer, loop: Loop) -> None:
    surface = SURFACES[name]

    @bounded
    @given(cases(surface.known))
    def holds(frames: list[Frame]) -> None:
        loop.run(send_case(server, surface, frames))

    holds()
    assert server.metric("earmark_errors_total", surface=name, reason="internal_error") == 0


RPC_CHUNKS = some.lists(
    some.builds(
        AudioChunk,
        pcm16=PIECES,
        sample_rate=some.sampled_from([0, 0, 16_000, 8_000, 44_100, -1, 1, 2**31 - 1]),
        is_final=some.booleans(),
        session_id=some.sampled_from(["", "", "", "other"]),
        session_token=some.sampled_from(["", "", "wrong"]),
    ),
    max_size=6,
)
RPC_SESSIONS = some.fixed_dictionaries(
    {"vad_threshold_override": some.sampled_from([0.0, 0.5, 0.0, -1.0, 1e300])},
    optional={
        "vad_mode": some.sampled_from([0, 1]),
        "vad_silence": some.floats(-1, 10),
        "require_token": some.booleans(),
        "language_code": some.sampled_from(["", "en", "xx", " EN "]),
        "task": some.sampled_from([0, 1, 2]),
        "decode_profile": some.sampled_from([0, 1, 2]),
        "attributes": some.dictionaries(
            some.sampled_from(["api_key", "model", "decode_profile", "vad_final", "x"]),
            some.text(max_size=5),
            max_size=3,
        ),
    },
)
FAULTS_OF_OURS = ("ERR3001", "ERR3002", "ERR2002")


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("neighbours")
def test_no_case_harms_the_grpc_surface(server: RunningServer, loop: Loop) -> None:
    async def send(fields: dict[str, Any], sent: list[AudioChunk]) -> str:
        """The error's text, empty after a good end."""
        async with stub(server) as backend:
            session_id = new_id()
            request = SessionRequest(session_id=session_id, **fields)
            try:
                answer = await backend.CreateSession(request, timeout=CASE_SECONDS)
            except grpc.aio.AioRpcError as error:
                return error.details() or "no details"
            for chunk in sent:
                chunk.session_token = chunk.session_token or answer.token
            ended = await stream(backend, sent, {"session-id": session_id})
            assert all(result.end_sec >= result.start_sec >= 0 for result in ended.results)
            return "" if ended.code is grpc.StatusCode.OK else ended.details or "no details"

    @bounded
    @given(RPC_SESSIONS, RPC_CHUNKS)
    def holds(fields: dict[str, Any], sent: list[AudioChunk]) -> None:
        refusal = loop.run(send(fields, sent))
        assert refusal.startswith("ERR") or not refusal, refusal
        assert not refusal.startswith(FAULTS_OF_OURS), refusal

    holds()


PATHS = ["/transcribe/", "/transcribe/batch", "/understand/", "/v1/audio/transcriptions", "/session/create", "/nowhere"]
FILE = some.fixed_dictionaries(
    {},
    optional={
        "data": PIECES.map(lambda pcm: encoded(wav_file(pcm))) | BASE64 | VALUES,
        "format": VALUES | some.just("wav"),
    },
)
BODIES = some.fixed_dictionaries(
    {},
    optional={
        "audio_file": PIECES.map(lambda pcm: encoded(wav_file(pcm))) | BASE64 | VALUES,
        "format": some.just("wav") | VALUES,
        "language": some.sampled_from(["en", "fr"]) | VALUES,
        "temperature": some.floats(0, 2) | VALUES,
        "audio_files": some.lists(FILE, max_size=3) | VALUES,
        "question": some.text(max_size=10) | VALUES,
        "max_tokens": some.integers(1, 9) | VALUES,
    },
)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("neighbours")
def test_no_body_harms_the_http_surfaces(server: RunningServer, loop: Loop) -> None:
    async def opened() -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=CASE_SECONDS)

    client = loop.run(opened())

    async def send(path: str, body: dict[str, Any], raw: bytes | None, kind: str) -> None:
        if kind == "form":
            fields = {name: str(value) for name, value in body.items()}
            answer = await client.post(path, data=fields, files={"file": ("a.wav", raw or wav_file(AUDIO))})
        else:
            content = raw if raw is not None else json.dumps(body).encode()
            answer = await client.post(path, content=content, headers={"Content-Type": kind})
        assert answer.status_code < 500 or (path == "/understand/" and answer.status_code == 503), answer.text
        if answer.status_code >= 400 and answer.headers["content-type"] == "application/json":
            assert answer.json()

    @bounded
    @given(
        some.sampled_from(PATHS),
        BODIES,
        some.none() | some.none() | some.binary(max_size=300),
        some.sampled_from(["application/json", "application/json", "form", "text/plain", "multipart/form-data"]),
    )
    def holds(path: str, body: dict[str, Any], raw: bytes | None, kind: str) -> None:
        loop.run(send(path, body, raw, kind))

    try:
        holds()
    finally:
        loop.run(client.aclose())
