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

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as some
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.end_to_end.clients import encoded, realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import random_words, sentence, spoken

CASES = int(os.environ.get("EARMARK_FUZZ_CASES", "2000"))
CASE_SECONDS = 20.0
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


def cases(known: some.SearchStrategy[Frame]) -> some.SearchStrategy[list[Frame]]:
    """What one connection sends."""
    return some.lists(some.one_of(known, known, known, GARBAGE), min_size=1, max_size=8)


@dataclass(frozen=True)
class WebSocketSurface:
    """``sync`` is a last frame whose answer ``synced`` knows; ``fault`` sees a fault of the server in a frame."""

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
}


async def send_case(server: RunningServer, surface: WebSocketSurface, frames: list[Frame]) -> None:
    """One connection; its answers are those of a server in good health."""
    socket = await connect(server.ws(surface.path), ping_interval=None, close_timeout=2, max_size=None)
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
    return serve("--unlimited")


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SURFACES)
@pytest.mark.usefixtures("neighbours")
def test_no_case_harms_the_server(name: str, server: RunningServer, loop: Loop) -> None:
    surface = SURFACES[name]

    @seed(2026)
    @settings(
        max_examples=CASES // len(SURFACES),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(surface.known))
    def holds(frames: list[Frame]) -> None:
        loop.run(send_case(server, surface, frames))

    holds()
    assert server.metric("earmark_errors_total", surface=name, reason="internal_error") == 0
