"""The envelope surface's limits: backlog, inbound queue, idle, duration, and clients that never read."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

from tests.end_to_end.clients import Frame, Yap, encoded, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.speech import distinct_words, sentence, spoken
from wire.pcm import seconds_of
from wire.words import TimedWord

LATE_SECONDS = 3.0
"""How much later than set a limit may act here; a loaded machine is not what these tests are about."""

SILENCE = bytes(32_000)


async def close_of(client: Yap) -> tuple[float, int, str]:
    """When the server closed the connection, with what."""
    _, code, reason = await client.closed()
    return time.monotonic(), code, reason


# ---- idle


@pytest.mark.spec("yap-59")
async def test_an_idle_connection_is_closed_with_4000(serve: Serve) -> None:
    server = serve("--idle-timeout-s", "0.5")
    async with yap(server, greeted=False) as client:
        accepted = time.monotonic()
        at, code, reason = await close_of(client)
    assert (code, reason) == (4000, "idle_timeout")
    assert 0.4 <= at - accepted <= 0.5 + LATE_SECONDS
    await server.until_idle()


@pytest.mark.spec("yap-59")
async def test_the_reason_of_an_idle_close_can_be_set(serve: Serve) -> None:
    server = serve(environment={"WS_IDLE_TIMEOUT_S": "0.2", "WS_CLOSE_IDLE_REASON": "bye"})
    async with yap(server) as client:
        assert (await close_of(client))[1:] == (4000, "bye")


@pytest.mark.parametrize("frame", ['{"type":"ping","session_id":"s","request_id":"r"}', "not even JSON"])
@pytest.mark.spec("yap-60")
async def test_any_text_frame_begins_the_idle_time_anew(serve: Serve, frame: str) -> None:
    server = serve("--idle-timeout-s", "1.5")
    async with yap(server) as client:
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await client.receive(0.9)  # two of them exceed the limit
            await client.send_raw(frame)
            sent = time.monotonic()
            await client.receive()
        at, code, _ = await close_of(client)
    assert code == 4000
    assert 1.4 <= at - sent <= 1.5 + LATE_SECONDS


@pytest.mark.spec("yap-60")
async def test_pings_of_the_websocket_itself_are_no_activity(serve: Serve) -> None:
    server = serve("--idle-timeout-s", "0.5")
    async with yap(server) as client:
        closing = asyncio.create_task(close_of(client))
        began = time.monotonic()
        with suppress(ConnectionClosed):
            while not closing.done():
                async with asyncio.timeout(5):
                    await (await client.socket.ping())
                await asyncio.wait([closing], timeout=0.1)
        at, code, _ = await closing
    assert code == 4000
    assert at - began <= 0.5 + LATE_SECONDS


@pytest.mark.spec("yap-60", "yap-61")
async def test_an_active_utterance_suspends_the_idle_close(serve: Serve) -> None:
    server = serve("--idle-timeout-s", "0.5")
    async with yap(server) as client:
        await client.start()  # from the first commit on, and without any audio
        with pytest.raises(TimeoutError):
            await client.receive(1.2)
        await client.append(sentence("still", "here"))
        await client.finish()
        assert text_of(await client.heard()) == "still here"
        done = time.monotonic()
        at, code, _ = await close_of(client)
    assert code == 4000
    assert 0.4 <= at - done <= 0.5 + LATE_SECONDS


@pytest.mark.spec("yap-61")
async def test_after_a_cancel_the_idle_time_runs_again(serve: Serve) -> None:
    server = serve("--idle-timeout-s", "0.5")
    async with yap(server) as client:
        await client.start()
        await client.send("cancel")
        assert (await client.receive())["type"] == "cancelled"
        assert (await close_of(client))[1] == 4000


# ---- duration


@pytest.mark.spec("yap-62")
async def test_the_maximum_duration_closes_a_busy_connection_with_4003(serve: Serve) -> None:
    server = serve("--max-connection-duration-s", "0.8", "--idle-timeout-s", "off")
    async with yap(server, greeted=False) as client:
        accepted = time.monotonic()
        await client.start()
        await client.append(sentence("in", "the", "midst") * 3)
        at, code, reason = await close_of(client)
    assert (code, reason) == (4003, "max connection duration reached")
    assert 0.7 <= at - accepted <= 0.8 + LATE_SECONDS
    await server.until_idle()


@pytest.mark.spec("yap-61", "yap-62")
async def test_an_utterance_that_does_nothing_ends_with_the_maximum_duration(serve: Serve) -> None:
    server = serve("--max-connection-duration-s", "1", "--idle-timeout-s", "0.2")
    async with yap(server) as client:
        await client.start()
        assert (await close_of(client))[1] == 4003


@pytest.mark.parametrize("off", ["off", "0", "none", "null", "Disabled", "disable", " OFF ", "-1", "0.0"])
@pytest.mark.spec("yap-63")
async def test_limits_can_be_switched_off(serve: Serve, off: str) -> None:
    server = serve(environment={"WS_IDLE_TIMEOUT_S": off, "WS_MAX_CONNECTION_DURATION_S": off})
    async with yap(server) as client:
        with pytest.raises(TimeoutError):
            await client.receive(0.1)
        await client.synchronise()


# ---- backlog


def rate(audio_rate: float, **more: object) -> str:
    return json.dumps({"audio_rate": audio_rate, **more})


def dropped_seconds(frames: list[Frame]) -> list[float]:
    return [frame["payload"]["dropped_seconds"] for frame in frames if frame["type"] == "status"]


@pytest.mark.spec("yap-65")
async def test_a_lagging_engine_loses_the_oldest_audio_and_says_exactly_how_much(serve: Serve) -> None:
    # 8 s of audio are heard per second, more than 30 s come at once, and what has waited a second is dropped
    server = serve("--script", rate(8), "--max-backlog-seconds", "1", "--no-vad")
    texts = distinct_words(60, seed=3)
    pcm, words = spoken(texts, seed=3)
    async with yap(server) as client:
        await client.start()
        await client.append(pcm, chunk_bytes=2560)
        frames = [await client.receive()]
        while frames[-1]["type"] != "status":
            frames.append(await client.receive())
        await client.finish()
        frames += await client.receive_until("done")
    status = next(frame for frame in frames if frame["type"] == "status")
    assert status["request_id"] == "r1"
    assert set(status["payload"]) == {"kind", "dropped_seconds", "max_backlog_seconds", "source"}
    assert status["payload"]["kind"] == "overload_drop"
    assert status["payload"]["max_backlog_seconds"] == 1.0
    assert status["payload"]["source"] in ("pending_buffer", "vllm_audio_queue")

    heard = text_of(frames).split(" ")
    assert "".join(frame["payload"]["text"] for frame in frames if frame["type"] == "token") == text_of(frames)
    lost = sum(dropped_seconds(frames))
    usage = frames[-1]["payload"]["usage"]
    assert usage["prompt_tokens"] == round((seconds_of(len(pcm)) - lost) / 0.08), "what was not dropped was heard"
    assert frames[-1]["payload"]["audio_seconds"] == round(seconds_of(len(pcm)), 3)
    assert heard == [text for text in texts if text in set(heard)], "in order, each once"
    gaps = gaps_between(words, set(heard), seconds_of(len(pcm)))
    assert len(gaps) == len(dropped_seconds(frames))
    for (least, most), dropped in zip(gaps, dropped_seconds(frames), strict=True):
        assert least <= dropped <= most
    timed = {word["text"]: word for word in frames[-2]["payload"]["words"]}
    for word in words:
        if word.text in timed:
            assert (timed[word.text]["start"], timed[word.text]["end"]) == (word.start, word.end)


def gaps_between(words: list[TimedWord], heard: set[str], seconds: float) -> list[tuple[float, float]]:
    """For every run of words not heard: the least and the most audio that can have been lost with it."""
    gaps = []
    run: list[TimedWord] = []
    before_end = 0.0
    for word in [*words, TimedWord("", seconds, seconds)]:
        if word.text and word.text not in heard:
            run.append(word)
            continue
        if run:
            gaps.append((max(0.0, run[-1].start - run[0].end), word.start - before_end))
        run, before_end = [], word.end
    return gaps


@pytest.mark.spec("yap-66")
async def test_a_burst_that_the_engine_works_off_loses_nothing(serve: Serve) -> None:
    # more than 15 s in one burst, 60 s of audio heard per second: a third of a second of work, two may wait
    server = serve("--script", rate(60), "--max-backlog-seconds", "2", "--no-vad")
    texts = distinct_words(40, seed=4)
    pcm, _ = spoken(texts, seed=4)
    assert seconds_of(len(pcm)) > 15
    async with yap(server) as client:
        assert text_of(await client.say(pcm)) == " ".join(texts)  # say() takes no status frame


@pytest.mark.spec("yap-66")
async def test_with_the_backlog_limit_off_a_lagging_engine_loses_nothing(serve: Serve) -> None:
    server = serve("--script", rate(20), "--max-backlog-seconds", "0", "--no-vad")
    texts = distinct_words(60, seed=5)
    pcm, _ = spoken(texts, seed=5)
    async with yap(server) as client:
        assert text_of(await client.say(pcm)) == " ".join(texts)


@pytest.mark.spec("yap-68")
async def test_unlimited_switches_every_limit_off(serve: Serve) -> None:
    server = serve(
        *("--unlimited", "--idle-timeout-s", "0.2", "--max-connection-duration-s", "0.3"),
        *("--max-concurrent-connections", "1", "--max-backlog-seconds", "0.1", "--script", rate(20), "--no-vad"),
    )
    texts = distinct_words(30, seed=7)
    pcm, _ = spoken(texts, seed=7)
    async with yap(server) as first, yap(server) as second:
        assert text_of(await first.say(pcm)) == " ".join(texts)
        await second.synchronise()


# ---- inbound queue


@pytest.mark.spec("yap-64")
async def test_a_full_inbound_queue_closes_with_1013(serve: Serve) -> None:
    server = serve(
        "--script", rate(0.1), "--max-backlog-seconds", "off", "--max-queued-seconds", "1", "--inbound-queue-max", "4"
    )
    async with yap(server) as client:
        await client.start()
        for n in range(7):  # 2 s are fed ahead, 1 s may wait, then 4 frames may
            await client.send("input_audio_buffer.append", session=f"s{n}", audio=encoded(SILENCE))
        await client.synchronise()  # at once, past everything that waits
        await client.send("input_audio_buffer.append", "r1", "s-last", audio=encoded(SILENCE))
        frames, code, reason = await client.closed()
    assert (code, reason) == (1013, "")
    assert len(frames) == 1
    assert (frames[0]["session_id"], frames[0]["request_id"]) == ("s-last", "r1")
    assert frames[0]["payload"]["code"] == "internal_error"
    assert frames[0]["payload"]["details"] == {"inbound_queue_max": 4, "reason_code": "inbound_queue_full"}
    await server.until_idle()


@pytest.mark.spec("yap-36", "yap-42")
async def test_end_overtakes_what_waits(serve: Serve) -> None:
    server = serve(
        "--script", rate(0.1), "--max-backlog-seconds", "off", "--max-queued-seconds", "1", "--inbound-queue-max", "4"
    )
    async with yap(server) as client:
        await client.start()
        await client.append(SILENCE * 6, chunk_bytes=32_000)
        await client.send("end")
        frames, code, _ = await client.closed()
    assert [frame["type"] for frame in frames] == ["session_end"]
    assert code == 1000
    await server.until_idle()


@pytest.mark.spec("yap-36")
async def test_frames_that_waited_are_taken_in_order(serve: Serve) -> None:
    server = serve("--script", rate(30), "--max-backlog-seconds", "off", "--max-queued-seconds", "1", "--no-vad")
    texts = distinct_words(20, seed=6)
    pcm, _ = spoken(texts, seed=6)
    async with yap(server) as client:
        for request in ("one", "two"):  # the second waits behind the first, and cuts it short
            await client.start(request)
            await client.append(pcm, request, chunk_bytes=16_000)
        await client.finish("two")
        frames = await client.receive_until("done")
    said = [frame for frame in frames if frame["request_id"] == "two"]
    assert text_of(said) == " ".join(texts)
    assert "final" not in [frame["type"] for frame in frames if frame["request_id"] == "one"]


# ---- clients that never read


@pytest.mark.spec("yap-67")
async def test_a_client_that_never_reads_is_sent_away_and_costs_little(serve: Serve) -> None:
    server = serve("--script", '{"slots": 4}', "--idle-timeout-s", "off")
    await server.until_idle()
    resident = psutil.Process(server.process.pid)
    async with yap(server) as deaf, yap(server) as neighbour:
        before = resident.memory_info().rss
        deaf.socket.transport.pause_reading()
        huge = "x" * 500_000
        with suppress(ConnectionClosed, TimeoutError):
            for _ in range(400):  # every one is answered by a frame of the same size
                async with asyncio.timeout(2):
                    await deaf.send("session.update", model=huge)
        assert resident.memory_info().rss - before < 100 * 2**20
        assert text_of(await neighbour.say(sentence("not", "disturbed"))) == "not disturbed"
        # its place is free although it still holds its end of the socket
        await server.until_metric(lambda value: value == 1, "earmark_connections_active", seconds=20, surface="yap")
        deaf.socket.transport.abort()


@pytest.mark.spec("yap-67")
async def test_the_maximum_duration_frees_the_place_of_a_client_that_never_reads(serve: Serve) -> None:
    server = serve("--max-connection-duration-s", "1.5", "--idle-timeout-s", "off", "--script", '{"slots": 4}')
    async with yap(server) as deaf:
        deaf.socket.transport.pause_reading()
        for _ in range(10):  # more than the sockets hold, less than what sends it away
            await deaf.send("session.update", model="x" * 700_000)
        await server.until_metric(lambda value: value == 0, "earmark_connections_active", seconds=20, surface="yap")
        deaf.socket.transport.abort()
