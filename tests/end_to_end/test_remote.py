"""A server whose engine is other servers: real processes on both sides, one of which is killed."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess

import pytest

from tests.end_to_end.clients import Realtime, realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import ROOT, RunningServer, clean_environment, command
from tests.end_to_end.speech import distinct_words, sentence, spoken
from wire.pcm import seconds_of
from wire.scripted import speak
from wire.words import TimedWord

Gateway = RunningServer


def backends(*servers: RunningServer) -> list[str]:
    return ["--backends", ",".join(f"ws://127.0.0.1:{server.port}" for server in servers)]


@pytest.fixture
def two(serve: Serve) -> tuple[RunningServer, RunningServer]:
    """Two back ends that hear the words in the audio."""
    return serve("--no-vad", "--surfaces", "realtime"), serve(
        "--no-vad", "--surfaces", "realtime", "--drain-seconds", "1"
    )


@pytest.fixture
def gateway(serve: Serve, two: tuple[RunningServer, RunningServer]) -> Gateway:
    return serve("--no-vad", *backends(*two), engine="vllm-remote")


async def connections(server: RunningServer, count: int) -> None:
    await server.until_metric(lambda value: value == count, "earmark_connections_active", surface="realtime")


# ---- what is heard


async def test_the_text_of_the_back_end_comes_through_both_surfaces(gateway: Gateway) -> None:
    texts = distinct_words(30, seed=41)
    pcm, _ = spoken(texts, seed=41)
    async with yap(gateway) as envelope, realtime(gateway) as plain:
        frames = await envelope.say(pcm, chunk_bytes=2560)
        assert text_of(frames) == " ".join(texts)
        usage = frames[-1]["payload"]["usage"]
        assert usage["prompt_tokens"] == pytest.approx(seconds_of(len(pcm)) / 0.08, abs=1)  # as the back end counts
        assert usage["completion_tokens"] == len(texts)
        assert await plain.say(pcm) == " ".join(texts)
        assert await plain.say(sentence("once", "more")) == "once more"
    await gateway.until_idle()


async def test_streams_are_spread_evenly(own_server: Serve) -> None:
    servers = [own_server("--no-vad", "--surfaces", "realtime") for _ in range(2)]
    front = own_server("--no-vad", *backends(*servers), engine="vllm-remote")
    async with asyncio.TaskGroup() as tasks:
        for number in range(6):
            tasks.create_task(say_alone(front, f"stream{number}"))
    heard = [server.metric("earmark_utterances_total", surface="realtime", outcome="final") for server in servers]
    assert heard == [3, 3]
    await front.until_idle()
    for server in servers:
        await server.until_idle()


async def say_alone(server: RunningServer, word: str) -> None:
    async with realtime(server) as client:
        assert await client.say(sentence(word)) == word


async def test_what_the_back_ends_are_is_shown(gateway: Gateway, two: tuple[RunningServer, RunningServer]) -> None:
    listed = json.loads(gateway.get("/v1/models")[1])["data"][0]
    of_back_end = json.loads(two[0].get("/v1/models")[1])["data"][0]
    assert (listed["id"], listed["engine"]) == ("scripted", "vllm-remote")
    for same in ("delays_ms", "delay_ms", "caveat"):
        assert listed[same] == of_back_end[same]
    assert listed["slots"] == 2 * of_back_end["slots"]
    assert gateway.metric("earmark_engine", figure="backends_up") == 2


async def test_a_short_delay_reaches_the_back_end(gateway: Gateway) -> None:
    """A fifth of a second behind the word suffices at 80 ms; at the back end's own 480 it would wait for more."""
    async with realtime(gateway) as client:
        await client.send("input_audio_buffer.commit", delay_ms=80)
        await client.append(speak([TimedWord("now", 0.0, 0.4)], 0.6))
        assert (await client.receive())["delta"] == "now"
        await client.finish()
        assert (await client.receive())["delay_ms"] == 80


@pytest.mark.parametrize(("delay_ms", "deltas"), [(480, ["now", " later"]), (2400, ["now later"])])
async def test_a_long_delay_reaches_the_back_end(gateway: Gateway, delay_ms: int, deltas: list[str]) -> None:
    """2.5 s of audio are too short for 2400 ms: everything is said at the end, and at once."""
    async with realtime(gateway) as client:
        await client.send("input_audio_buffer.commit", delay_ms=delay_ms)
        await client.append(speak([TimedWord("now", 0.0, 0.4), TimedWord("later", 1.8, 2.2)], 2.5))
        await client.finish()
        frames = await client.receive_until("transcription.done")
        assert [frame["delta"] for frame in frames[:-1]] == deltas


@pytest.mark.parametrize("segment_seconds", [10, 27.5])
async def test_a_long_utterance_is_rolled_through_the_back_ends(
    serve: Serve, two: tuple[RunningServer, RunningServer], segment_seconds: float
) -> None:
    """Sent in a burst, so that many segments are heard at once, and stitched by their text, which has no times."""
    front = serve("--no-vad", "--segment-seconds", str(segment_seconds), *backends(*two), engine="vllm-remote")
    texts = distinct_words(400, seed=42)
    pcm, _ = spoken(texts, seed=42)
    assert seconds_of(len(pcm)) > 150
    async with yap(front) as envelope, realtime(front) as plain:
        assert text_of(await envelope.say(pcm)) == " ".join(texts)
        assert await plain.say(pcm) == " ".join(texts)
    assert front.metric("earmark_segments_total", surface="yap") > 150 / segment_seconds


async def test_a_burst_does_not_take_all_slots(own_server: Serve) -> None:
    """Sixteen segments of one utterance, which the back end hears at 40 times real time: they come one after the other, nearly."""
    server = own_server("--no-vad", "--script", '{"audio_rate": 40}')
    front = own_server("--no-vad", "--segment-seconds", "10", *backends(server), engine="vllm-remote")
    texts = distinct_words(300, seed=43)
    pcm, _ = spoken(texts, seed=43)
    busy = [0.0]
    async with realtime(front) as client:
        saying = asyncio.create_task(client.say(pcm))
        while not saying.done():
            busy.append(await asyncio.to_thread(front.metric, "earmark_engine", figure="busy_slots"))
        assert await saying == " ".join(texts)
    assert front.metric("earmark_segments_total", surface="realtime") >= 12
    assert 1 <= max(busy) <= 3


async def test_a_client_that_vanishes_frees_the_back_end(
    gateway: Gateway, two: tuple[RunningServer, RunningServer]
) -> None:
    async with realtime(gateway) as client:
        await client.start()
        await client.append(sentence("half", "a"))
        await gateway.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
        client.socket.transport.abort()
    await gateway.until_idle()
    for server in two:
        await server.until_idle()


# ---- slots


async def test_streams_wait_for_a_slot_and_too_many_are_refused(own_server: Serve) -> None:
    """Two back ends of one slot each: two streams are heard, two wait, the fifth is told at once."""
    servers = [own_server("--no-vad", "--script", '{"slots": 1}') for _ in range(2)]
    front = own_server("--no-vad", *backends(*servers), engine="vllm-remote")
    async with asyncio.TaskGroup() as tasks:
        begun = asyncio.Semaphore(0)
        go_on = asyncio.Event()
        for number in range(4):
            tasks.create_task(say_when_told(front, f"stream{number}", begun, go_on))
        for _ in range(4):
            await begun.acquire()
        await front.until_metric(lambda value: value == 2, "earmark_engine", figure="waiting")
        async with realtime(front) as fifth:
            await fifth.start()
            await fifth.append(sentence("fifth"))
            assert "all back ends are full" in (await fifth.error())["error"]
        go_on.set()
    for server in servers:
        assert server.metric("earmark_utterances_total", surface="realtime", outcome="final") == 2


async def say_when_told(server: RunningServer, word: str, begun: asyncio.Semaphore, go_on: asyncio.Event) -> None:
    async with realtime(server) as client:
        await client.start()
        await client.append(sentence(word))
        begun.release()
        await go_on.wait()
        await client.finish()
        assert await client.heard() == word


# ---- death


async def talking(client: Realtime, word: str) -> None:
    """Begin an utterance whose first word is heard."""
    await client.start()
    await client.append(speak([TimedWord(word, 0.0, 0.4)], 1.5))
    assert (await client.receive())["delta"] == word


async def test_a_killed_back_end_fails_only_its_streams_and_comes_back(own_server: Serve) -> None:
    doomed, other = (own_server("--no-vad", "--surfaces", "realtime") for _ in range(2))
    front = own_server("--no-vad", *backends(doomed, other), engine="vllm-remote")
    async with realtime(front) as first, realtime(front) as second, yap(front) as third:
        await talking(first, "first")  # the back ends take turns
        await talking(second, "second")
        await third.start()
        await third.append(speak([TimedWord("third", 0.0, 0.4)], 1.5))
        assert (await third.receive())["payload"]["text"] == "third"
        await connections(doomed, 2)
        await connections(other, 1)

        doomed.signal(signal.SIGKILL)
        doomed.wait()
        for message in ((await first.error())["error"], (await third.error())["message"]):
            assert message.startswith(f"the back end ws://127.0.0.1:{doomed.port} was lost while it heard this segment")
        assert front.metric("earmark_engine", figure="backends_up") == 1
        await second.append(sentence("goes", "on"))
        await second.finish()
        frames = await second.receive_until("transcription.done")
        assert frames[-1]["text"] == "second goes on"

        assert await first.say(sentence("again")) == "again"  # on the same connection, by the other back end
        for number in range(3):
            await say_alone(front, f"meanwhile{number}")

        back = own_server("--no-vad", "--surfaces", "realtime", "--port", str(doomed.port))
        await front.until_metric(lambda value: value == 2, "earmark_engine", seconds=40.0, figure="backends_up")
        await talking(first, "one")
        await talking(second, "two")
        await connections(back, 1)
        await first.finish()
        await second.finish()
        for client in (first, second):
            await client.receive_until("transcription.done")
    assert front.metric("earmark_engine", figure="backend_losses") == 1
    assert "Traceback" not in front.log()


async def test_a_back_end_that_drains_gets_nothing_new_and_ends_what_it_has(own_server: Serve) -> None:
    leaving, other = (own_server("--no-vad", "--surfaces", "realtime") for _ in range(2))
    front = own_server("--no-vad", *backends(leaving, other), engine="vllm-remote")
    async with realtime(front) as client:
        await talking(client, "first")
        await connections(leaving, 1)
        leaving.signal(signal.SIGTERM)
        await front.until_metric(lambda value: value == 1, "earmark_engine", seconds=20.0, figure="backends_up")
        await say_alone(front, "new")
        await client.append(sentence("and", "last"))
        await client.finish()
        frames = await client.receive_until("transcription.done")
        assert frames[-1]["text"] == "first and last"
    assert leaving.wait_or_kill() == 0


async def test_without_a_back_end_clients_are_told_at_once(own_server: Serve) -> None:
    only = own_server("--no-vad", "--surfaces", "realtime")
    front = own_server("--no-vad", *backends(only), engine="vllm-remote")
    only.kill()
    async with realtime(front) as client:
        await client.start()
        await client.append(sentence("hello"))
        assert "no back end is up" in (await client.error())["error"]
    assert front.get("/health")[0] == 200


# ---- the start


def test_a_start_without_back_ends_says_so(own_server: Serve) -> None:
    gone = own_server("--surfaces", "realtime")
    gone.kill()
    ended = started_in_vain(*backends(gone))
    assert f"no back end answered within 0 s (ws://127.0.0.1:{gone.port}: " in ended
    assert "Connection refused" in ended


def test_a_key_is_asked_for_and_used(own_server: Serve) -> None:
    closed = own_server("--require-key", "--surfaces", "realtime", "--no-vad", key="sesame")
    assert "answers 401 Unauthorized; set --backend-api-key" in started_in_vain(*backends(closed))
    front = own_server(
        "--no-vad", *backends(closed), environment={"EARMARK_BACKEND_API_KEY": "sesame"}, engine="vllm-remote"
    )
    asyncio.run(say_alone(front, "open"))


def started_in_vain(*options: str) -> str:
    """What a server says that cannot start."""
    ended = subprocess.run(
        command("--engine", "vllm-remote", "--port", "0", "--backend-start-seconds", "0", *options),
        cwd=ROOT,
        env=clean_environment({"VOXTRAL_API_KEY": "x"}),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr
