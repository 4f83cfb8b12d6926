"""The server with the vLLM engine: both surfaces end to end, long and parked utterances, vanished clients, a dead engine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.clients import realtime, text_of, yap
from tests.end_to_end.running_server import RunningServer
from tests.vllm.checkpoints import sound

MODEL = "tiny"
SLOTS = 6
LONG_SECONDS = 300.0
SEGMENT_SECONDS = 60.0
OVERLAP_SECONDS = 0.8


def start(checkpoint: Path, *options: str) -> RunningServer:
    chosen = ("--model-dir", str(checkpoint), "--dtype=float32", f"--max-num-seqs={SLOTS}")
    return RunningServer(*chosen, *options, engine="vllm")


@pytest.fixture(scope="module")
def server(checkpoint: Path) -> Iterator[RunningServer]:
    server = start(checkpoint, "--park-seconds=1")
    yield server
    try:
        assert server.stop() == 0
        assert "Traceback" not in server.log(), server.log()
    finally:
        server.kill()
        server.forget()


async def test_both_surfaces_say_the_same(server: RunningServer) -> None:
    pcm = sound(3.0, 1)
    async with yap(server) as envelope, realtime(server, model=MODEL) as plain:
        text = text_of(await envelope.say(pcm))
        assert len(text.split()) > 30
        assert await plain.say(pcm) == text


async def test_the_delay_belongs_to_the_utterance(server: RunningServer) -> None:
    pcm = sound(3.0, 1)
    texts = []
    async with yap(server) as client:
        for delay_ms in (80, 480, 2400):
            await client.start(delay_ms=delay_ms)
            await client.append(pcm)
            await client.finish()
            texts.append(text_of(await client.heard()))
        default = text_of(await client.say(pcm))
    assert len(set(texts)) == 3
    assert default == texts[1]


async def test_utterances_sent_back_to_back_both_come_back_complete(server: RunningServer) -> None:
    first, second = sound(2.0, 1), sound(2.0, 2)
    async with realtime(server, model=MODEL) as client:
        alone = [await client.say(first), await client.say(second)]
        for pcm in (first, second):
            await client.start()
            await client.append(pcm)
            await client.finish()
        assert [await client.heard(), await client.heard()] == alone
    assert alone[0] != alone[1]


async def test_an_utterance_without_audio_is_done_and_empty(server: RunningServer) -> None:
    async with realtime(server, model=MODEL) as client:
        assert await client.say(b"") == ""
        assert await client.say(sound(1.0, 1)) != ""


async def test_a_client_that_vanishes_frees_its_slot_and_its_kv(server: RunningServer) -> None:
    async with realtime(server, model=MODEL) as client:
        await client.start()
        await client.append(sound(2.0, 1))
        await client.receive_until("transcription.delta")
        client.socket.transport.abort()  # a reset, no close frame
    await server.until_idle()
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="kv_cache_usage")


async def test_an_utterance_whose_client_pauses_holds_no_slot_and_goes_on_afterwards(server: RunningServer) -> None:
    async with realtime(server, model=MODEL) as client:
        await client.start()
        await client.append(sound(2.0, 1))
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
        await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")
        await server.until_metric(lambda value: value == 0, "earmark_engine", figure="kv_cache_usage")
        before = await client.receive_until("transcription.delta")
        await client.append(sound(2.0, 2))
        await client.finish()
        frames = before + await client.receive_until("transcription.done")
    # a word per step: of both halves, of the silence behind each, less what is said twice
    assert len(frames[-1]["text"].split()) > 4.0 * 12.5


async def test_more_clients_than_slots_are_all_served(server: RunningServer) -> None:
    pcm = sound(1.0, 1)
    async with realtime(server, model=MODEL) as client:
        alone = await client.say(pcm)
    connections = [realtime(server, model=MODEL) for _ in range(2 * SLOTS)]
    clients = [await connection.__aenter__() for connection in connections]
    try:
        for client in clients:
            await client.start()
            await client.append(pcm)
            await client.finish()
        assert {await client.heard() for client in clients} == {alone}
    finally:
        for connection in connections:
            await connection.__aexit__(None, None, None)


async def test_five_minutes_sent_at_once_roll_through_a_model_of_82_seconds(server: RunningServer) -> None:
    rolled = server.metric("earmark_segments_total", surface="realtime")
    async with realtime(server, model=MODEL) as client:
        text = await client.say(sound(LONG_SECONDS, 4))
    segments = server.metric("earmark_segments_total", surface="realtime") - rolled
    assert LONG_SECONDS / SEGMENT_SECONDS <= segments <= LONG_SECONDS / SEGMENT_SECONDS + 3
    # one word per step of 80 ms; each seam adds at most the overlap and the silence behind a segment's end, and what repeats is cut
    words, steps = len(text.split()), LONG_SECONDS * 12.5
    seam = (OVERLAP_SECONDS * 12.5 + 12) * segments
    assert steps - seam <= words <= steps + seam


async def test_a_dead_engine_fails_its_utterances_and_health_says_so(checkpoint: Path) -> None:
    server = start(checkpoint, "--uniform-delay")
    try:
        assert server.get("/healthz")[0] == 200
        async with realtime(server, model=MODEL) as client, yap(server) as envelope:
            await client.start()
            await client.append(sound(1.0, 1))
            await client.receive_until("transcription.delta")
            (core,) = [child for child in psutil.Process(server.process.pid).children() if "EngineCore" in name(child)]
            core.send_signal(signal.SIGKILL)
            frames = await client.receive_until("error")
            assert frames[-1]["code"] == "processing_error"
            assert server.get("/healthz")[0] == server.get("/health")[0] == 503
            await envelope.start()
            await envelope.append(sound(0.2, 1))
            assert "engine" in (await envelope.error())["message"]
        assert server.stop() == 0
    finally:
        server.kill()
        server.forget()


async def test_a_killed_server_leaves_no_engine_process(checkpoint: Path) -> None:
    server = start(checkpoint)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert any("EngineCore" in name(child) for child in children)
    try:
        server.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
    finally:
        server.forget()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def name(process: psutil.Process) -> str:
    """Its title, or its command line where it has set none."""
    return process.name() + " ".join(process.cmdline())
