"""A crowd of clients that connect, stream and vanish at random leaves nothing behind in the server or its engine.

``EARMARK_CROWD_SECONDS`` is how long it goes on (20; 120 for the real thing), ``EARMARK_CROWD_SEED`` repeats a crowd.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from itertools import product

import psutil
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from tests.end_to_end.clients import Client, Frame, Realtime, Yap, realtime, text_of, yap
from tests.end_to_end.running_server import RunningServer
from tests.vllm.checkpoints import sound
from tests.vllm.conftest import DELAYS_MS, SLOTS

CLIENTS = 64
SECONDS = float(os.environ.get("EARMARK_CROWD_SECONDS", "20"))
SEED = int(os.environ.get("EARMARK_CROWD_SEED", random.SystemRandom().randrange(10**6)))
LIFE_SECONDS = 60.0  # a bound for the broken case only
PACKET_BYTES = 2560
MODEL = "tiny"

SURFACES = ("yap", "realtime")
MOMENTS = ("before audio", "mid-utterance", "after text", "at the commit", "after the final")
WAYS = ("reset", "close", "half a frame")
Life = tuple[str, str, str]

VOICES = [sound(3.0, seed) for seed in range(4)]

pytestmark = pytest.mark.timeout(SECONDS + 240)


class RefusedError(Exception):
    """The server said that it is full."""


def lives(chosen: random.Random) -> Iterator[Life]:
    """All combinations in random order, again and again."""
    while True:
        deck = list(product(SURFACES, MOMENTS, WAYS))
        chosen.shuffle(deck)
        yield from deck


async def stream(client: Yap | Realtime, moment: str, chosen: random.Random) -> None:
    """An utterance up to the moment at which its client vanishes."""
    delay_ms = chosen.choice(DELAYS_MS)
    if isinstance(client, Yap):
        await client.start(delay_ms=delay_ms)
    else:
        await client.send("input_audio_buffer.commit", delay_ms=delay_ms)
    if moment == "before audio":
        return
    voice = chosen.choice(VOICES)
    packets = chosen.randrange(3, 38)
    pace = chosen.random() < 0.5
    for at in range(0, packets * PACKET_BYTES, PACKET_BYTES):
        await client.append(voice[at : at + PACKET_BYTES])
        if pace:
            await asyncio.sleep(0.08)  # as a microphone does
    if moment == "mid-utterance":
        return
    if moment == "after text":
        await until(client, "token", "transcription.delta", "done", "transcription.done")
        return
    await client.finish()
    if moment == "after the final":
        await until(client, "done", "transcription.done")


async def until(client: Yap | Realtime, *kinds: str) -> Frame:
    """The next frame of one of these types.

    Raises:
        RefusedError: an error came instead, which may only say that the server is full.
    """
    while (frame := await client.receive(LIFE_SECONDS))["type"] not in kinds:
        if frame["type"] == "error":
            check_refusal(frame)
            raise RefusedError
    return frame


def check_refusal(frame: Frame) -> None:
    """Errors that a sane client of a full server gets."""
    text = json.dumps(frame)
    assert any(part in text for part in ("slots are busy", "no slot came free", "connections are taken")), text


async def vanish(client: Client, way: str) -> None:
    if client.socket.state is not State.OPEN:
        return  # the server was first: it is full
    match way:
        case "reset":
            client.socket.transport.abort()
        case "close":
            await client.socket.close()
        case _:
            client.socket.transport.write(b"\x81\xfe\xff")  # the beginning of a text frame's head
            client.socket.transport.abort()


async def live(server: RunningServer, life: Life, chosen: random.Random) -> str:
    """One connection from its beginning to its end; how it ended."""
    surface, moment, way = life
    connection = yap(server, greeted=False) if surface == "yap" else realtime(server, model=MODEL)
    async with connection as client:
        try:
            if isinstance(client, Yap):
                await until(client, "session.created")
            for _ in range(chosen.randrange(3)):  # utterances before the last one
                await stream(client, "after the final", chosen)
            await stream(client, moment, chosen)
        except RefusedError:
            return "refused"
        finally:
            await vanish(client, way)
    return moment


async def visitor(server: RunningServer, deck: Iterator[Life], chosen: random.Random, end: float) -> Counter[str]:
    """Lives one after the other; how many ended in which way."""
    ended: Counter[str] = Counter()
    while asyncio.get_running_loop().time() < end:
        life = next(deck)
        try:
            async with asyncio.timeout(LIFE_SECONDS):
                ended[await live(server, life, chosen)] += 1
        except ConnectionClosed as closed:
            ended[f"closed with {closed.rcvd.code if closed.rcvd else 'a reset'}"] += 1
    return ended


async def texts(server: RunningServer) -> list[str]:
    """What a normal utterance gives on each surface."""
    async with yap(server) as envelope, realtime(server, model=MODEL) as plain:
        return [text_of(await envelope.say(VOICES[0])), await plain.say(VOICES[0])]


async def test_a_crowd_leaves_nothing_behind(our_server: RunningServer, capsys: pytest.CaptureFixture[str]) -> None:
    server, process = our_server, psutil.Process(our_server.process.pid)
    expected = await texts(server)
    await server.until_idle()
    tasks, rss = server.metric("earmark_tasks"), process.memory_info().rss
    print(f"EARMARK_CROWD_SEED={SEED}")

    chosen = random.Random(SEED)
    deck = lives(chosen)
    end = asyncio.get_running_loop().time() + SECONDS
    async with asyncio.TaskGroup() as crowd:
        visitors = [
            crowd.create_task(visitor(server, deck, random.Random(f"{SEED} {number}"), end))
            for number in range(CLIENTS)
        ]
    ended = sum((one.result() for one in visitors), Counter())

    await server.until_idle()
    for figure in ("busy_slots", "waiting", "core_running", "core_waiting", "kv_cache_usage"):
        await server.until_metric(lambda value: value == 0, "earmark_engine", figure=figure)
    await server.until_metric(lambda value: value <= tasks, "earmark_tasks")
    assert json.loads(server.get("/health")[1])["connections"] == 0
    assert await texts(server) == expected
    await server.until_idle()
    assert "Traceback" not in server.log()
    assert "connection failed" not in server.log()
    assert all(ended[moment] for moment in MOMENTS), ended
    assert ended.keys() <= {*MOMENTS, "refused"}, ended
    with capsys.disabled():
        print(
            f"\ncrowd of {CLIENTS} on {SLOTS} slots for {SECONDS:g} s, seed {SEED}: {sum(ended.values())} lives, {dict(ended)}; "
            f"server's RSS {rss / 2**20:.0f} -> {process.memory_info().rss / 2**20:.0f} MiB, {tasks:.0f} tasks"
        )
