"""Drivers that go over more than a WebSocket, against small servers that speak as the contracts of those surfaces have it."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import grpc
import psutil
import pytest

from harness.corpus import Utterance
from harness.drivers import DRIVERS
from harness.drivers.base import Answer, DriverError, Fault, Request, address
from harness.drivers.recordings import refusal, wav
from harness.latency import measure
from harness.replay import Cell, Replayed, ReplayError, replay
from harness.replay.carrying import Destination
from harness.replay.exchange import Patience, Progress, Retries
from harness.replay.http import Events
from harness.replay.stream import Prepared, Stream
from harness.replay.timetable import Timetable
from harness.timeline import Kind, Outcome, StreamRecord
from tests.harness.surfaces import KEY, Surface, chunks, over_grpc, over_http, pcm_of, recordings, sessions
from tests.harness.tones import sing, words_of

TEXTS = ("one two three four five six seven", "eight one eight two", "five four three two one")
QUICK = Patience(connect_seconds=5, ready_seconds=5, final_seconds=5, done_seconds=0.3, close_seconds=1)
SPEED = 4.0
PIECES = {"rest": 1, "openai-files": 1}


def corpus() -> list[Utterance]:
    found = []
    for index, text in enumerate(TEXTS):
        words = words_of(text, 0.3)
        found.append(Utterance(f"u{index}", text, round(words[-1].end + 0.3, 2), words=words, speaker=f"s{index}"))
    return found


def sound(utterance: Utterance) -> bytes:
    return sing(utterance.words or (), utterance.seconds)


def surface(name: str, **settings: Any) -> AbstractAsyncContextManager[Surface]:
    match name:
        case "grpc":
            return over_grpc(**settings)
        case "sessions":
            return over_http(sessions, **settings)
        case "rest-stream":
            return over_http(chunks, **settings)
        case _:
            return over_http(recordings, **settings)


def destination(name: str, server: Surface, request: Request | None = None, key: str | None = KEY) -> Destination:
    driver = DRIVERS[name]
    scheme = {"grpc": "grpc", "sessions": "ws", "rest-stream": "ws"}.get(name, "http")
    url, headers = address(driver, server.url(scheme), key, request)
    return Destination(driver, url, headers, request or ask())


def ask(options: Mapping[str, str] | None = None, delay_ms: int | None = None) -> Request:
    return Request("a-model", delay_ms, "en", options or {})


async def run(
    name: str,
    server: Surface,
    options: Mapping[str, str] | None = None,
    *,
    cell: Cell | None = None,
    utterances: list[Utterance] | None = None,
    delay_ms: int | None = None,
) -> Replayed:
    request = ask(options, delay_ms)
    DRIVERS[name].check(request)
    where = destination(name, server, request)
    packet_ms = 300 if name == "rest-stream" else 80  # a word and the gap behind it
    cell = cell or Cell(concurrency=3, warm_up=0, speed=SPEED, packet_ms=packet_ms)
    return await replay(utterances or corpus(), where, cell, sound, patience=QUICK)


def outcomes(replayed: Replayed) -> list[tuple[Outcome, str | None]]:
    return [(record.outcome, record.error) for record in replayed.records]


def due_seconds(record: StreamRecord, kind: Kind) -> list[float]:
    """When each was due, in seconds of audio."""
    return [round((entry.due_ns - record.t0_ns) / 1e9 * record.speed, 3) for entry in record.of(kind) if entry.due_ns]


def states(record: StreamRecord) -> list[str]:
    return [stable + tentative for _, stable, tentative in record.shown()]


# ---- the whole way over a socket ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rest", "openai-files", "sessions", "rest-stream", "grpc"])
async def test_what_was_said_is_what_the_server_hears_and_what_the_harness_records(name: str) -> None:
    async with surface(name) as server:
        replayed = await run(name, server)
    assert server.faults == []
    assert outcomes(replayed) == [(Outcome.OK, None)] * len(TEXTS)
    assert [record.hypothesis for record in replayed.records] == list(TEXTS)
    for record in replayed.records:
        assert len(list(record.of(Kind.FINAL))) == 1
        kinds = [entry.kind for entry in record.entries]
        assert kinds[:3] == [Kind.CONNECTING, Kind.CONNECTED, Kind.READY]
        assert [entry.t_ns for entry in record.entries] == sorted(entry.t_ns for entry in record.entries)
        assert states(record)[-1] == record.hypothesis


@pytest.mark.parametrize("name", ["sessions", "rest-stream", "grpc"])
async def test_text_grows_while_it_is_spoken(name: str) -> None:
    async with surface(name) as server:
        replayed = await run(name, server)
    for record in replayed.records:
        words = record.hypothesis.split()
        seen = [state for state in states(record) if state]
        assert seen[: len(words) - 1] == [" ".join(words[: count + 1]) for count in range(len(words) - 1)]
        last_packet = list(record.of(Kind.PACKET))[-1]
        first_text = next(entry for entry in record.entries if entry.kind in (Kind.APPENDED, Kind.TENTATIVE))
        assert first_text.t_ns < last_packet.t_ns


@pytest.mark.parametrize("name", ["rest", "openai-files"])
async def test_a_recording_leaves_when_its_last_sample_was_spoken(name: str) -> None:
    async with surface(name) as server:
        replayed = await run(name, server)
    for record in replayed.records:
        assert due_seconds(record, Kind.PACKET) == [record.audio_seconds] == due_seconds(record, Kind.END_OF_AUDIO)
        (packet,) = record.of(Kind.PACKET)
        assert packet.due_ns is not None
        assert packet.t_ns >= packet.due_ns
        assert packet.value == record.audio_seconds
        latency = measure(record)
        assert latency.time_to_final is not None
        tail_seconds = (record.audio_seconds - (record.words or ())[-1].end) / SPEED
        assert latency.time_to_final > tail_seconds  # nothing can come before the recording is whole
        for emitted, word in zip(latency.word_emission_latencies, record.words or (), strict=True):
            assert emitted == pytest.approx(latency.time_to_final + ((record.words or ())[-1].end - word.end) / SPEED)


async def test_the_time_of_the_answer_is_that_of_its_arrival() -> None:
    async with surface("rest", thinks_seconds=0.15) as server:
        replayed = await run("rest", server, cell=Cell(warm_up=0, speed=SPEED), utterances=corpus()[:1])
    (record,) = replayed.records
    (packet,), (final,) = record.of(Kind.PACKET), record.of(Kind.FINAL)
    assert packet.t_ns + replayed.origin_ns <= server.arrived_ns[0]
    assert server.arrived_ns[0] + 150_000_000 <= final.t_ns + replayed.origin_ns
    assert server.answered_ns[0] <= final.t_ns + replayed.origin_ns


async def test_an_unpaced_recording_leaves_at_once() -> None:
    async with surface("rest") as server:
        replayed = await run("rest", server, cell=Cell(warm_up=0, speed=float("inf")))
    assert outcomes(replayed) == [(Outcome.OK, None)] * len(TEXTS)
    assert all(due_seconds(record, Kind.PACKET) != [] for record in replayed.records)


@pytest.mark.parametrize("name", ["sessions", "rest", "openai-files"])
async def test_utterances_on_one_connection_have_transcripts_of_their_own(name: str) -> None:
    async with surface(name) as server:
        cell = Cell(concurrency=1, per_connection=0, warm_up=0, speed=SPEED)
        replayed = await run(name, server, cell=cell)
    assert outcomes(replayed) == [(Outcome.OK, None)] * len(TEXTS)
    assert [record.hypothesis for record in replayed.records] == list(TEXTS)
    assert len([record for record in replayed.records if record.first(Kind.CONNECTING)]) == 1


@pytest.mark.parametrize("name", ["rest", "sessions", "grpc"])
async def test_nobody_there_is_a_failure_at_once(name: str) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound, but nobody listens
        where = destination(name, Surface(port=bound.getsockname()[1]))
        with pytest.raises(ReplayError, match="cannot connect"):
            await replay(corpus(), where, Cell(speed=SPEED), sound, patience=QUICK)


# ---- recordings ------------------------------------------------------------------------------------------------


async def test_what_is_asked_of_rest_is_in_its_body() -> None:
    async with surface("rest") as server:
        await run("rest", server, {"language": "en", "temperature": "0.5"})
    asked = {"format": "wav", "language": "en", "temperature": 0.5}
    assert server.seen == [{"authorization": f"Bearer {KEY}", **asked}] * len(TEXTS)


async def test_what_is_asked_of_openai_files_is_in_its_form() -> None:
    async with surface("openai-files") as server:
        replayed = await run("openai-files", server, {"language": "en", "prompt": "numbers — spoken"})
    asked = {"model": "a-model", "response_format": "json", "language": "en", "prompt": "numbers — spoken"}
    assert server.seen == [{"authorization": f"Bearer {KEY}", **asked}] * len(TEXTS)
    assert [record.usage["output_tokens"] for record in replayed.records] == [len(text.split()) for text in TEXTS]


@pytest.mark.parametrize("like", ["openai", "vllm"])
async def test_deltas_of_a_recording_come_one_by_one(like: str) -> None:
    async with surface("openai-files", like=like) as server:
        replayed = await run("openai-files", server, {"stream": "true"})
    assert outcomes(replayed) == [(Outcome.OK, None)] * len(TEXTS)
    for record in replayed.records:
        assert [entry.text for entry in record.of(Kind.APPENDED)] == [
            f" {word}" if index else word for index, word in enumerate(record.reference.split())
        ]
        assert record.hypothesis == record.reference


async def test_events_that_end_before_the_transcript_does_are_a_failure() -> None:
    async with surface("openai-files", breaks_off=True) as server:
        replayed = await run("openai-files", server, {"stream": "true"})
    assert {record.outcome for record in replayed.records} == {Outcome.FAILED}
    assert {record.error for record in replayed.records} == {"incomplete: the events ended before the transcript did"}


@pytest.mark.parametrize(
    ("status", "body", "outcome", "said"),
    [
        (429, '{"error":{"code":"RATE_LIMIT_EXCEEDED","message":"slower"}}', Outcome.REJECTED, "RATE_LIMIT_EXCEEDED"),
        (400, '{"error":{"code":"AUDIO_PROCESSING_ERROR","message":"too long"}}', Outcome.FAILED, "too long"),
        (401, '{"detail":"no key"}', Outcome.FAILED, "is the key right"),
        (500, "oops", Outcome.FAILED, "HTTP 500: oops"),
    ],
)
async def test_a_refused_recording_says_why(status: int, body: str, outcome: Outcome, said: str) -> None:
    async with surface("rest", status=status, body=body) as server:
        replayed = await run("rest", server)
    assert {record.outcome for record in replayed.records} == {outcome}
    assert all(said in (record.error or "") for record in replayed.records)


async def test_a_server_that_hangs_up_without_an_answer_is_a_failure() -> None:
    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _.read(1)
        writer.transport.abort()

    async with plain(hang_up) as server:
        replayed = await run("rest", server)
    assert {record.outcome for record in replayed.records} == {Outcome.FAILED}
    assert all("ended before the answer did" in (record.error or "") for record in replayed.records)


async def test_what_is_no_http_is_a_failure() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"SSH-2.0-nobody\r\n\r\n")
        await writer.drain()
        await reader.read()
        writer.close()

    async with plain(babble) as server:
        replayed = await run("rest", server)
    assert all("this is no HTTP answer" in (record.error or "") for record in replayed.records)


async def test_an_idle_connection_that_the_server_closed_is_opened_again() -> None:
    requests = 0

    async def closes_the_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        if requests == 0:
            requests += 1
            writer.close()
            return
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        body = b'{"transcription":"again","processing_time_ms":1}'
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    async with plain(closes_the_first) as server:
        replayed = await run("rest", server, cell=Cell(warm_up=0, speed=SPEED), utterances=corpus()[:1])
    assert [(record.outcome, record.hypothesis) for record in replayed.records] == [(Outcome.OK, "again")]


@asynccontextmanager
async def plain(handler: Any) -> AsyncIterator[Surface]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield Surface(port=server.sockets[0].getsockname()[1])


def test_a_recording_is_a_wav_file_with_the_samples_as_they_are() -> None:
    pcm = bytes(range(200))
    assert pcm_of(wav(pcm, 8000)) == (pcm, 8000)
    assert wav(b"\x01\x02", 16_000) == bytes.fromhex(
        "52494646 26000000 57415645 666d7420 10000000 0100 0100 803e0000 007d0000 0200 1000 64617461 02000000 0102"
    )


@pytest.mark.parametrize("cut", range(1, 24))
def test_events_are_read_wherever_they_are_cut(cut: int) -> None:
    text = b": hi\r\ndata: a\r\ndata:b\r\n\r\nid: 7\n\ndata: c\n\nevent: x\rdata:  d\r\rdata: unfinished"
    events = Events()
    found = [event for part in (text[:cut], text[cut : cut + 9], text[cut + 9 :]) for event in events.feed(part)]
    assert found == ["a\nb", "c", " d"]


def test_a_refusal_in_an_unknown_shape_is_quoted() -> None:
    assert refusal(Answer(502, b"<html>bad gateway"), "K") == Fault("HTTP 502", "<html>bad gateway")


# ---- sessions --------------------------------------------------------------------------------------------------


async def test_a_session_is_created_asked_for_partials_and_deleted() -> None:
    async with surface("sessions") as server:
        replayed = await run(
            "sessions",
            server,
            {"language": "en"},
            delay_ms=960,
            utterances=corpus()[:1],
            cell=Cell(warm_up=0, speed=SPEED),
        )
    assert [record.delay_ms_in_force for record in replayed.records] == [960]
    assert server.seen == [
        {"authorization": f"Bearer {KEY}"},
        {
            "type": "control",
            "control_type": "configure",
            "delay_ms": 960,
            "partials": True,
            "language": "en",
            "vad": "off",
        },
        {"type": "control", "control_type": "end"},
    ]
    assert server.sessions == {"s-1": False}


async def test_without_additions_silence_ends_the_utterance() -> None:
    async with surface("sessions", additions=False) as server:
        replayed = await run("sessions", server, {"end": "silence"})
    assert outcomes(replayed) == [(Outcome.OK, None)] * len(TEXTS)
    assert [record.hypothesis for record in replayed.records] == list(TEXTS)
    for record in replayed.records:
        sent_seconds = record.audio_seconds + 1.5
        assert due_seconds(record, Kind.PACKET)[-1] == pytest.approx(sent_seconds, abs=0.001)
        latency = measure(record)
        assert latency.time_to_final is not None
        assert latency.time_to_final >= 1.0 / SPEED  # the silence that the server waits for
        (final,) = record.of(Kind.FINAL)
        assert final.t_ns < list(record.of(Kind.PACKET))[-1].t_ns + 1e9 / SPEED


async def test_pieces_that_silence_cut_make_one_transcript() -> None:
    words = (*words_of("one two"), *words_of("three", 2.2))
    utterance = Utterance("u", "one two three", 2.6, words=words)
    async with surface("sessions", additions=False) as server:
        silent = {"end": "silence", "silence_ms": "1200"}
        replayed = await run("sessions", server, silent, cell=Cell(warm_up=0, speed=SPEED), utterances=[utterance])
    assert server.heard == [("one", "two"), ("three",)]
    (record,) = replayed.records
    assert (record.outcome, record.hypothesis) == (Outcome.OK, "one two three")
    assert [entry.text for entry in record.of(Kind.APPENDED)] == ["one two", " three"]
    assert len(list(record.of(Kind.FINAL))) == 1


async def test_a_server_that_knows_no_end_message_is_told_apart() -> None:
    async with surface("sessions", additions=False) as server:
        where = destination("sessions", server)
        patience = Patience(connect_seconds=5, ready_seconds=0.2, final_seconds=0.2, close_seconds=1)
        replayed = await replay(corpus()[1:2], where, Cell(warm_up=0, speed=20.0), sound, patience=patience)
    (record,) = replayed.records
    assert record.outcome is Outcome.FAILED
    assert "--driver-option end=silence" in (record.error or "")


async def test_silence_has_an_empty_transcript() -> None:
    utterance = Utterance("quiet", "", 0.5, words=())
    for name in ("sessions", "grpc"):
        async with surface(name) as server:
            replayed = await run(name, server, cell=Cell(warm_up=0, speed=SPEED), utterances=[utterance])
        (record,) = replayed.records
        assert (record.outcome, record.hypothesis, record.error) == (Outcome.OK, "", None)


async def test_a_session_that_is_refused_is_tried_again_when_that_is_asked_for() -> None:
    async with surface("sessions", status=429) as server:
        cell = Cell(warm_up=0, speed=SPEED, retries=Retries(2, first_seconds=0.01))
        replayed = await run("sessions", server, cell=cell, utterances=corpus()[:1])
    (record,) = replayed.records
    assert record.outcome is Outcome.REJECTED
    assert record.error is not None
    assert record.error.startswith("HTTP 429:")
    assert len(server.seen) == 3


# ---- chunks ----------------------------------------------------------------------------------------------------


async def test_chunks_are_numbered_files_and_the_last_one_says_so() -> None:
    async with surface("rest-stream") as server:
        cell = Cell(warm_up=0, speed=SPEED, packet_ms=1000)
        await run("rest-stream", server, cell=cell, utterances=corpus()[:1])
    seconds = corpus()[0].seconds
    assert server.seen == [
        {"chunk_id": 0, "is_final": False, "seconds": 1.0},
        {"chunk_id": 1, "is_final": False, "seconds": 1.0},
        {"chunk_id": 2, "is_final": True, "seconds": pytest.approx(seconds - 2)},
    ]


async def test_a_chunk_that_fails_fails_the_stream_by_its_number() -> None:
    async with surface("rest-stream", fails=1) as server:
        replayed = await run("rest-stream", server)
    assert {record.error for record in replayed.records} == {"PROCESSING_ERROR: chunk 1: no"}


# ---- gRPC ------------------------------------------------------------------------------------------------------


async def test_a_grpc_session_asks_for_what_the_run_asks_for() -> None:
    async with surface("grpc") as server:
        options = {"language": "de", "decode_profile": "accurate"}
        await run("grpc", server, options, utterances=corpus()[:1], cell=Cell(warm_up=0, speed=SPEED))
    (asked,) = server.seen
    (name,) = server.sessions
    assert asked.pop("attributes") == {"session_id": name, "api_key": KEY, "model_id": "a-model"}
    assert asked == {"override": 0.0, "language": "de", "profile": 2, "authorization": f"Bearer {KEY}"}


async def test_with_voice_detection_a_grpc_session_asks_for_a_final_of_each_utterance() -> None:
    async with surface("grpc") as server:
        await run("grpc", server, {"vad_threshold": "0.5"}, utterances=corpus()[:1], cell=Cell(warm_up=0, speed=SPEED))
    (asked,) = server.seen
    assert asked["override"] == 0.5
    assert asked["attributes"]["emit_final_on_vad"] == "true"


async def test_the_part_of_a_grpc_result_that_stands_is_appended_and_the_rest_is_tentative() -> None:
    async with surface("grpc", splits=True) as server:
        replayed = await run("grpc", server, utterances=corpus()[:1], cell=Cell(warm_up=0, speed=SPEED))
    (record,) = replayed.records
    words = TEXTS[0].split()
    assert "".join(entry.text or "" for entry in record.of(Kind.APPENDED)) == TEXTS[0]
    seen = [(stable, tentative) for _, stable, tentative in record.shown() if tentative]
    assert seen == [(" ".join(words[:n]), f" {words[n]}" if n else words[0]) for n in range(len(words))]


async def test_a_grpc_stream_that_is_refused_for_want_of_room_is_rejected() -> None:
    refusal = grpc.StatusCode.RESOURCE_EXHAUSTED, "ERR1011 too many sessions"
    async with surface("grpc", refuses=refusal) as server:
        replayed = await run("grpc", server)
    assert outcomes(replayed) == [(Outcome.REJECTED, "RESOURCE_EXHAUSTED: ERR1011 too many sessions")] * len(TEXTS)


async def test_a_fault_in_the_middle_of_a_grpc_stream_is_its_own() -> None:
    async with surface("grpc", faults="ERR2003 too many bytes") as server:
        replayed = await run("grpc", server)
    assert outcomes(replayed) == [(Outcome.FAILED, "RESOURCE_EXHAUSTED: ERR2003 too many bytes")] * len(TEXTS)


async def test_packets_of_a_grpc_stream_leave_no_earlier_than_they_are_due() -> None:
    async with surface("grpc") as server:
        replayed = await run("grpc", server)
    for record in replayed.records:
        packets = list(record.of(Kind.PACKET))
        assert sum(1 for _ in record.of(Kind.END_OF_AUDIO)) == 1
        assert due_seconds(record, Kind.PACKET)[-1] == pytest.approx(record.audio_seconds, abs=0.001)
        assert all(packet.due_ns is not None and packet.t_ns >= packet.due_ns for packet in packets)


async def test_connections_of_streams_that_are_over_are_closed_whoever_still_holds_the_streams() -> None:
    process = psutil.Process()
    async with surface("grpc") as server:
        request = ask()
        where = destination("grpc", server, request)
        prepared = Prepared(corpus()[1], sound(corpus()[1]), where, 80, float("inf"))
        streams = [Stream(number, 0, prepared, where, QUICK, Progress()) for number in range(5)]
        await asyncio.gather(*(stream.run(Timetable()) for stream in streams))
        assert [stream.outcome for stream in streams] == [Outcome.OK] * 5
        end = time.monotonic() + 10
        while any(one.raddr and one.raddr.port == server.port for one in process.net_connections()):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)  # the library closes them in threads of its own


async def test_an_unpaced_grpc_stream_is_whole() -> None:
    async with surface("grpc") as server:
        replayed = await run("grpc", server, cell=Cell(warm_up=0, concurrency=3, speed=float("inf")))
    assert outcomes(replayed) == [(Outcome.OK, None)] * len(TEXTS)
    assert sorted(server.heard) == sorted(tuple(text.split()) for text in TEXTS)


# ---- what cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("rest", {"language": "xx"}, "choose one of en"),
        ("rest", {"temperature": "3"}, "a number from 0 to 2"),
        ("rest-stream", {"language": "xx"}, "choose one of en"),
        ("openai-files", {"stream": "yes"}, "true or false"),
        ("sessions", {"end": "whistle"}, "choose one of control, silence"),
        ("sessions", {"silence_ms": "900"}, "for end=silence"),
        ("sessions", {"end": "silence", "silence_ms": "long"}, "whole number"),
        ("grpc", {"vad_threshold": "2"}, "from 0 to 1"),
        ("grpc", {"decode_profile": "fast"}, "choose one of realtime, accurate"),
    ],
)
def test_options_that_make_no_sense_are_refused(name: str, options: dict[str, str], expected: str) -> None:
    with pytest.raises(DriverError, match=expected):
        DRIVERS[name].check(ask(options))


@pytest.mark.parametrize(
    ("name", "target", "url"),
    [
        ("rest", "h:1", "http://h:1/transcribe/"),
        ("rest", "wss://h", "https://h/transcribe/"),
        ("openai-files", "http://h/v1/other?x=1", "http://h/v1/other?x=1"),
        ("sessions", "https://h", "wss://h/session/create"),
        ("grpc", "h:1", "grpc://h:1/stt.STTBackend/StreamingRecognize"),
        ("grpc", "grpcs://h:1", "grpcs://h:1/stt.STTBackend/StreamingRecognize"),
    ],
)
def test_a_target_is_completed_for_its_transport(name: str, target: str, url: str) -> None:
    assert address(DRIVERS[name], target, None)[0] == url


@pytest.mark.parametrize(("name", "target"), [("grpc", "ws://h:1"), ("grpc", "grpc://h"), ("rest", "grpc://h:1")])
def test_a_target_of_another_transport_is_refused_with_an_example(name: str, target: str) -> None:
    with pytest.raises(ValueError, match=r"e\.g\. (grpc|http)://127"):
        address(DRIVERS[name], target, None)
