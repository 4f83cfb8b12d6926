"""Limits, timeouts and back-pressure of gRPC streams against a real server."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import grpc
import pytest

from tests.end_to_end.conftest import Serve
from tests.end_to_end.rpc_clients import OPEN, Backend, chunks, create, ended, stream, stub, transcribe
from tests.end_to_end.running_server import RunningServer
from tests.end_to_end.speech import distinct_words, sentence
from tests.end_to_end.test_grpc_streams import Live, silence
from wire.scripted import speak
from wire.stt.stt_pb2 import AudioChunk
from wire.words import TimedWord


@pytest.mark.spec("grpc-35")
async def test_bytes_per_second_are_shared_by_all_streams_of_an_identity(serve: Serve) -> None:
    options = ("--grpc-max-audio-bytes-per-sec", "0.001", "--grpc-max-audio-bytes-per-sec-burst", "9600")
    async with stub(serve(*OPEN, *options)) as backend:
        live = []
        for key in ("one", "one", "two"):
            session_id, _ = await create(backend, attributes={"api_key": key})
            live.append(Live(backend, session_id=session_id))
        await live[0].send(bytes(6400))
        await live[2].send(bytes(9600), is_final=True)
        assert (await ended(live[2].call)).code is grpc.StatusCode.OK
        await live[0].send(is_final=True)
        assert (await ended(live[0].call)).code is grpc.StatusCode.OK
        await live[1].send(bytes(6400))
        assert await live[1].refused() == "RESOURCE_EXHAUSTED ERR2003"


@pytest.mark.spec("grpc-35")
async def test_a_chunk_larger_than_the_burst_never_passes(serve: Serve) -> None:
    options = ("--grpc-max-audio-bytes-per-sec", "1000000", "--grpc-max-audio-bytes-per-sec-burst", "3198")
    async with stub(serve(*OPEN, *options)) as backend:
        session_id, _ = await create(backend)
        end = await stream(backend, chunks(bytes(6400), session_id))
        assert end.details.startswith("ERR2003 ")


@pytest.mark.spec("grpc-36")
async def test_a_stream_may_have_so_much_audio(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-max-audio-seconds-per-session", "1")) as backend:
        assert (await transcribe(backend, silence(1.0))).code is grpc.StatusCode.OK
        assert (await transcribe(backend, silence(1.0, 8_000), rate=8_000)).code is grpc.StatusCode.OK
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        for chunk in chunks(silence(1.0), final="never"):
            await live.call.write(chunk)
        await live.send(bytes(2))
        assert await live.refused() == "RESOURCE_EXHAUSTED ERR2004"


# ---- time


@pytest.mark.spec("grpc-56")
async def test_a_silent_stream_is_ended_at_once_when_its_time_is_up(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-session-timeout-sec", "0.4")) as backend:
        for sends in (0, 1):
            session_id, _ = await create(backend)
            live = Live(backend, session_id=session_id)
            began = time.monotonic()
            for _ in range(sends):
                await live.send(bytes(320))
            assert await live.refused() == "DEADLINE_EXCEEDED ERR1006"
            assert time.monotonic() - began >= 0.35
        unbound = Live(backend)
        assert await unbound.refused() == "DEADLINE_EXCEEDED ERR1006"


@pytest.mark.spec("grpc-56")
async def test_a_stream_that_is_sent_chunks_goes_on(serve: Serve) -> None:
    async with stub(serve(*OPEN, "--grpc-session-timeout-sec", "0.6")) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        for chunk in chunks(sentence("slowly", "said", "words"), final="empty", chunk_ms=200):
            await live.call.write(chunk)
            await asyncio.sleep(0.2)  # so slowly does this client speak
        assert (await ended(live.call)).finals == ["slowly said words"]


@pytest.mark.spec("grpc-57")
async def test_an_engine_that_is_not_ready_in_time_ends_the_stream(serve: Serve) -> None:
    options = ("--script", '{"final_latency_ms": 60000}', "--grpc-decode-timeout-sec", "0.3")
    async with stub(serve(*OPEN, *options)) as backend:
        end = await transcribe(backend, sentence("too", "late"))
        assert end.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert end.details.startswith("ERR2001 ")
        assert "stt-decode-count" in end.trailing


@pytest.mark.spec("grpc-57")
async def test_without_a_timeout_the_stream_waits(serve: Serve) -> None:
    options = ("--script", '{"final_latency_ms": 700}', "--grpc-decode-timeout-sec", "0")
    async with stub(serve(*OPEN, *options)) as backend:
        assert (await transcribe(backend, sentence("in", "time"))).finals == ["in time"]


# ---- back-pressure


def long_words(count: int, size: int) -> bytes:
    return speak(
        [TimedWord(f"{n:04d}" + "x" * (size - 4), round(0.1 * n, 2), round(0.1 * n + 0.1, 2)) for n in range(count)],
        0.1 * count,
    )


@pytest.mark.spec("grpc-51")
async def test_a_client_that_does_not_read_loses_partials_and_no_final(serve: Serve) -> None:
    """Partials repeat the whole text: they fill the connection's window soon, and those that wait then are dropped."""
    server = serve(*OPEN, "--grpc-partial-decode-interval-sec", "0.1", "--grpc-max-pending-decodes-per-stream", "2")
    count = 300
    async with stub(server) as backend:
        session_id, _ = await create(backend)
        call: Any = backend.StreamingRecognize(metadata=(("session-id", session_id),))
        for chunk in chunks(long_words(count, 280), final="empty"):
            await call.write(chunk)
        await server.until_metric(lambda value: value >= 1, "earmark_utterances_total", surface="grpc", outcome="final")
        end = await ended(call)
        assert end.code is grpc.StatusCode.OK
        assert len(end.finals) == 1
        assert end.finals[0].count("x" * 276) == count
        assert await asyncio.to_thread(server.metric, "earmark_rpc", figure="partial_drop_count") > 0


@pytest.mark.spec("grpc-53")
async def test_audio_beyond_the_buffer_is_not_read_and_not_lost(serve: Serve) -> None:
    said = distinct_words(40, seed=7)
    options = ("--script", '{"audio_rate": 20}', "--grpc-max-buffer-sec", "1", "--grpc-session-timeout-sec", "0.5")
    async with stub(serve(*OPEN, *options)) as backend:
        assert (await transcribe(backend, sentence(*said))).finals == [" ".join(said)]


@pytest.mark.spec("grpc-53")
async def test_the_buffer_can_be_given_in_bytes(serve: Serve) -> None:
    said = distinct_words(20, seed=8)
    options = ("--script", '{"audio_rate": 20}', "--grpc-max-buffer-bytes", "16000")
    async with stub(serve(*OPEN, *options)) as backend:
        assert (await transcribe(backend, sentence(*said))).finals == [" ".join(said)]


@pytest.mark.spec("grpc-53")
async def test_a_stream_whose_engine_stands_still_is_ended(serve: Serve) -> None:
    stalled = json.dumps({"stalls": [{"at": 0.5, "seconds": 3600}]})
    options = ("--script", stalled, "--grpc-max-buffer-sec", "1", "--grpc-decode-timeout-sec", "0.5")
    async with stub(serve(*OPEN, *options)) as backend:
        end = await transcribe(backend, sentence(*distinct_words(40, seed=9)))
        assert end.details.startswith("ERR2001 ")


@pytest.mark.spec("grpc-54")
async def test_audio_of_all_streams_together_is_bounded_and_none_of_it_lost(serve: Serve) -> None:
    options = ("--script", '{"audio_rate": 20}', "--grpc-max-total-buffer-bytes", "32000")
    async with stub(serve(*OPEN, *options)) as backend:
        said = [distinct_words(20, seed=10 + n) for n in range(6)]
        ends = await asyncio.gather(*(transcribe(backend, sentence(*words)) for words in said))
        assert [end.finals for end in ends] == [[" ".join(words)] for words in said]


async def hold_the_only_place(server: RunningServer, backend: Backend) -> Live:
    session_id, _ = await create(backend)
    live = Live(backend, session_id=session_id)
    for chunk in chunks(sentence("holding", "the", "place", "for", "long") + silence(1.0), final="never"):
        await live.call.write(chunk)
    assert (await live.result()).text.startswith("holding")
    await live.send(is_final=True)
    await server.until_metric(lambda value: value == 1, "earmark_rpc", figure="decode_queue_depth")
    return live


@pytest.mark.spec("grpc-55")
async def test_finals_wait_for_a_place_and_then_give_up(serve: Serve) -> None:
    options = ("--script", '{"final_latency_ms": 1500}', "--grpc-max-pending-decodes-global", "1")
    server = serve(*OPEN, *options, "--grpc-decode-queue-timeout-sec", "0.2")
    async with stub(server) as backend:
        first = await hold_the_only_place(server, backend)
        end = await transcribe(backend, sentence("no", "place"))
        assert end.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert end.details.startswith("ERR2001 ")
        assert end.partials == [], "nor partials while there is none"
        assert (await ended(first.call)).finals == ["holding the place for long"]


@pytest.mark.spec("grpc-55")
async def test_finals_that_get_a_place_in_time_are_told(serve: Serve) -> None:
    options = ("--script", '{"final_latency_ms": 600}', "--grpc-max-pending-decodes-global", "1")
    server = serve(*OPEN, *options, "--grpc-decode-queue-timeout-sec", "0")
    async with stub(server) as backend:
        first = await hold_the_only_place(server, backend)
        ends = await asyncio.gather(*(transcribe(backend, sentence("place", str(n))) for n in range(3)))
        assert [end.finals for end in ends] == [[f"place {n}"] for n in range(3)]
        waits = [float(end.trailing["stt-decode-queue-wait-sec"]) for end in ends]
        assert max(waits) > 0.5, "and the wait is told"
        assert (await ended(first.call)).finals == ["holding the place for long"]


# ---- all limits off


@pytest.mark.spec("grpc-67")
async def test_unlimited_switches_every_limit_off(serve: Serve) -> None:
    tight = (
        *("--grpc-max-sessions", "1", "--grpc-max-sessions-per-ip", "1", "--grpc-max-sessions-per-api-key", "1"),
        *("--grpc-create-session-rps", "0.001", "--grpc-create-session-burst", "1", "--grpc-max-chunk-ms", "1"),
        *("--grpc-max-audio-bytes-per-sec", "1", "--grpc-max-audio-bytes-per-sec-burst", "2"),
        *("--grpc-max-audio-seconds-per-session", "0.1", "--grpc-session-timeout-sec", "0.05"),
        *("--grpc-max-buffer-sec", "0.01", "--grpc-max-total-buffer-bytes", "1", "--grpc-decode-timeout-sec", "0.01"),
        *("--grpc-max-pending-decodes-global", "1", "--grpc-decode-queue-timeout-sec", "0.01"),
    )
    server = serve(
        "--surfaces", "yap,grpc", "--grpc-port", "0", *tight, "--script", '{"final_latency_ms": 200}', "--unlimited"
    )
    async with stub(server) as backend:
        said = [distinct_words(12, seed=20 + n) for n in range(8)]
        attributes = {"api_key": "shared"}
        ends = await asyncio.gather(*(transcribe(backend, sentence(*words), attributes=attributes) for words in said))
        assert [end.finals for end in ends] == [[" ".join(words)] for words in said]


@pytest.mark.spec("grpc-68")
@pytest.mark.parametrize("word", ["0", "off", "none"])
async def test_a_limit_of_zero_is_none(serve: Serve, word: str) -> None:
    names: tuple[str, ...] = (
        "max-chunk-ms",
        "max-audio-seconds-per-session",
        "session-timeout-sec",
        "decode-timeout-sec",
    )
    names += (
        "max-buffer-sec",
        "max-total-buffer-bytes",
        "max-pending-decodes-per-stream",
        "max-pending-decodes-global",
    )
    async with stub(serve(*OPEN, *(part for name in names for part in (f"--grpc-{name}", word)))) as backend:
        said = distinct_words(20, seed=30)
        session_id, _ = await create(backend)
        whole = AudioChunk(pcm16=sentence(*said), session_id=session_id, is_final=True)
        assert (await stream(backend, [whole])).finals == [" ".join(said)]


# ---- as the reference's own tests have it


@pytest.mark.spec("grpc-10", "grpc-35", "grpc-36")
async def test_abuse_is_refused_and_the_server_stays_healthy(serve: Serve) -> None:
    import psutil

    server = serve(
        *("--surfaces", "yap,grpc", "--grpc-port", "0"),
        *("--grpc-create-session-rps", "5", "--grpc-create-session-burst", "5", "--grpc-max-sessions", "100"),
        *("--grpc-max-sessions-per-ip", "100", "--grpc-max-audio-bytes-per-sec", "8000"),
        *("--grpc-max-audio-seconds-per-session", "1"),
    )
    process = psutil.Process(server.process.pid)
    threads = process.num_threads()
    async with stub(server) as backend:
        codes = [await outcome(create(backend)) for _ in range(20)]
        assert set(codes) == {"OK", "RESOURCE_EXHAUSTED"}
        assert process.num_threads() <= threads + 10
        assert (await asyncio.to_thread(server.get, "/healthz"))[0] == 200
        end = time.monotonic() + 10
        while await outcome(create(backend, "three-chunks")) != "OK":
            assert time.monotonic() < end
            await asyncio.sleep(0.05)  # the bucket fills with the server's clock
        three = [AudioChunk(pcm16=silence(1.0), sample_rate=16_000, session_id="three-chunks") for _ in range(3)]
        assert (await stream(backend, three)).code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.process.poll() is None


async def outcome(call: Any) -> str:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"
