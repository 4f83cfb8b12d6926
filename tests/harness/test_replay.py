from __future__ import annotations

import asyncio
import math
import os
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import Sequence

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from harness.corpus import Utterance
from harness.drivers import DRIVERS
from harness.drivers.base import Request, address
from harness.replay import Cell, Replayed, ReplayError, replay
from harness.replay.carrying import Destination
from harness.replay.exchange import Patience, Progress
from harness.timeline import Kind, Outcome
from tests.harness.peer import Handler, Peer, hang, peer, speak_realtime, speak_yap
from wire import yap

QUICK = Patience(connect_seconds=2, ready_seconds=0.2, final_seconds=0.3, done_seconds=0.2, close_seconds=0.5)
PACKETS = {"yap": speak_yap, "realtime": speak_realtime}


def utterances(count: int, seconds: float = 0.4) -> list[Utterance]:
    return [Utterance(f"u{n}", f"text {n}", seconds + n * 0.02, speaker=f"s{n % 3}") for n in range(count)]


def audio(utterance: Utterance) -> bytes:
    return random.Random(utterance.id).randbytes(round(utterance.seconds * 16_000) * 2)


def destination(
    peer: Peer, protocol: str = "yap", request: Request | None = None, key: str | None = "k"
) -> Destination:
    url, headers = address(DRIVERS[protocol], peer.url, key)
    return Destination(DRIVERS[protocol], url, headers, request or Request("m", 480))


async def run(
    handler: Handler,
    corpus: Sequence[Utterance],
    cell: Cell,
    *,
    protocol: str = "yap",
    patience: Patience = QUICK,
) -> tuple[Replayed, Peer]:
    async with peer(handler) as server:
        replayed = await replay(corpus, destination(server, protocol), cell, audio, patience=patience)
    return replayed, server


@pytest.mark.parametrize("protocol", PACKETS)
async def test_every_utterance_arrives_once_byte_for_byte(protocol: str) -> None:
    corpus = utterances(9)
    replayed, server = await run(PACKETS[protocol], corpus, Cell(concurrency=3, warm_up=0), protocol=protocol)
    assert sorted(server.heard) == sorted(audio(utterance) for utterance in corpus)
    assert [record.utterance for record in replayed.records] == [utterance.id for utterance in corpus]
    assert {record.outcome for record in replayed.records} == {Outcome.OK}
    assert replayed.complete
    assert server.open_most == 3
    assert {record.lane for record in replayed.records} == {0, 1, 2}


@pytest.mark.parametrize("protocol", PACKETS)
async def test_the_timeline_says_what_was_due_sent_and_heard(protocol: str) -> None:
    (utterance,) = utterances(1)
    replayed, server = await run(PACKETS[protocol], [utterance], Cell(warm_up=0), protocol=protocol)
    (record,) = replayed.records
    kinds = [entry.kind for entry in record.entries]
    assert kinds[:3] == [Kind.CONNECTING, Kind.CONNECTED, Kind.READY]
    assert kinds[-2:] == [Kind.FINAL, Kind.CLOSED]
    assert [entry.t_ns for entry in record.entries] == sorted(entry.t_ns for entry in record.entries)

    packets = list(record.of(Kind.PACKET))
    assert [entry.value for entry in packets] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert [(entry.due_ns or 0) - record.t0_ns for entry in packets] == [n * 80_000_000 for n in range(1, 6)]
    assert all(entry.due_ns is not None and entry.t_ns >= entry.due_ns for entry in packets)
    end = record.first(Kind.END_OF_AUDIO)
    assert end is not None
    assert end.due_ns == packets[-1].due_ns

    said = {"yap": " 0 1 2 3 4", "realtime": " 0 2 4"}[protocol]
    assert record.hypothesis == said == "".join(entry.text or "" for entry in record.of(Kind.APPENDED))
    assert record.delay_ms == record.delay_ms_in_force == 480
    assert record.usage == {"total_tokens": 5}
    assert server.delays == [480]
    assert server.models == ["m"]
    assert (record.reference, record.speaker, record.audio_seconds) == ("text 0", "s0", 0.4)


async def test_the_key_reaches_the_server_as_each_protocol_has_it() -> None:
    _, by_query = await run(speak_yap, utterances(1), Cell(warm_up=0))
    _, by_header = await run(speak_realtime, utterances(1), Cell(warm_up=0), protocol="realtime")
    assert by_query.paths == ["/api/asr-streaming?api_key=k"]
    assert "authorization" not in by_query.headers[0]
    assert by_header.paths == ["/v1/realtime"]
    assert by_header.headers[0]["authorization"] == "Bearer k"


async def test_repeats_replay_every_utterance_that_often() -> None:
    replayed, _ = await run(speak_yap, utterances(3, 0.1), Cell(concurrency=4, repeat=3, warm_up=0))
    assert sorted(record.utterance for record in replayed.records) == ["u0"] * 3 + ["u1"] * 3 + ["u2"] * 3
    assert len({record.stream for record in replayed.records}) == 9


def may_have_real_time_priority() -> bool:
    """What the system allows, asked in a process that ends with the question."""
    question = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    return subprocess.run([sys.executable, "-c", question], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "sched_setscheduler"), reason="the system has no scheduling policies")
@pytest.mark.parametrize("speed", [1.0, math.inf])
async def test_the_generator_says_what_priority_it_had_and_gives_it_back(speed: float) -> None:
    before, during = os.sched_getscheduler(0), set[int]()
    expected = "real-time" if may_have_real_time_priority() and speed == 1.0 else "normal"
    async with peer(speak_yap) as server:
        replayed = await replay(
            utterances(1, 0.1),
            destination(server),
            Cell(warm_up=0, speed=speed),
            audio,
            on_progress=lambda _: during.add(os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK),
        )
    assert replayed.priority == expected
    assert during == {os.SCHED_RR if expected == "real-time" else before}
    assert os.sched_getscheduler(0) == before


async def test_unpaced_audio_arrives_whole() -> None:
    replayed, server = await run(speak_yap, utterances(3, 20.0), Cell(speed=math.inf, warm_up=0), patience=Patience())
    assert {record.outcome for record in replayed.records} == {Outcome.OK}
    assert sorted(map(len, server.heard)) == [640_000, 640_640, 641_280]
    assert replayed.wall_seconds < 20


async def test_a_warm_up_hears_no_more_than_the_beginning_of_a_long_recording() -> None:
    long = Utterance("u", "text", 60.0)
    _, server = await run(speak_yap, [long], Cell(warm_up=1, speed=40))
    warm_up, whole = sorted(server.heard, key=len)
    assert len(warm_up) == 20 * 32_000
    assert whole == audio(long)
    assert whole.startswith(warm_up)


async def test_a_warm_up_that_fails_stops_the_run_with_the_reason() -> None:
    async with peer(speak_yap) as server:
        where = destination(server)
    with pytest.raises(ReplayError, match=r"127\.0\.0\.1.*cannot connect") as told:
        await replay(utterances(1), where, Cell(), audio, patience=QUICK)
    assert "api_key" not in str(told.value)


async def test_nothing_to_replay_is_an_error() -> None:
    async with peer(speak_yap) as server:
        with pytest.raises(ReplayError, match="nothing to replay"):
            await replay([], destination(server), Cell(), audio)


async def failed(handler: Handler, **options: object) -> tuple[Outcome, str, str]:
    """How a single stream ended: outcome, error, what was shown."""
    async with peer(handler, **options) as server:
        replayed = await replay(utterances(1), destination(server), Cell(warm_up=0), audio, patience=QUICK)
    (record,) = replayed.records
    return record.outcome, record.error or "", record.hypothesis


async def test_a_refused_connection_fails_the_stream() -> None:
    async with peer(speak_yap) as server:
        where = destination(server)
    (record,) = (await replay(utterances(1), where, Cell(warm_up=0), audio, patience=QUICK)).records
    assert record.outcome is Outcome.FAILED
    assert "cannot connect" in (record.error or "")


@pytest.mark.parametrize(("status", "outcome"), [(401, Outcome.FAILED), (403, Outcome.FAILED), (503, Outcome.REJECTED)])
async def test_a_handshake_that_is_refused_is_told_by_its_status(status: int, outcome: Outcome) -> None:
    def refuse(connection: ServerConnection, _request: HttpRequest) -> Response:
        return connection.respond(status, "not you\n")

    found, error, _ = await failed(speak_yap, process_request=refuse)
    assert found is outcome
    assert error.startswith(f"HTTP {status}")
    assert "not you" in error


async def test_a_peer_that_is_no_web_server_fails_the_stream() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(babble, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url, headers = address(DRIVERS["yap"], f"127.0.0.1:{port}", None)
        where = Destination(DRIVERS["yap"], url, headers)
        (record,) = (await replay(utterances(1), where, Cell(warm_up=0), audio, patience=QUICK)).records
    assert record.outcome is Outcome.FAILED
    assert "handshake" in (record.error or "")


async def test_a_server_that_is_full_rejects() -> None:
    async def full(_: Peer, client: ServerConnection) -> None:
        error = yap.Error("server_at_capacity", "no room", {"reason_code": "server_at_capacity"})
        await client.send(yap.encode_server(error, yap.UNKNOWN, yap.UNKNOWN))
        await client.close(1013, "no room")

    outcome, error, _ = await failed(full)
    assert (outcome, error) == (Outcome.REJECTED, "server_at_capacity: no room")


async def test_an_error_frame_fails_the_stream_with_its_text() -> None:
    async def faulty(_: Peer, client: ServerConnection) -> None:
        async def once() -> None:
            error = yap.Error("processing_error", "engine gone", {"reason_code": "processing_error"})
            await client.send(yap.encode_server(error, "earmark", "u0"))

        await client.recv()
        await client.recv()
        await once()
        await client.wait_closed()

    outcome, error, _ = await failed(faulty)
    assert (outcome, error) == (Outcome.FAILED, "processing_error: engine gone")


async def test_a_connection_that_breaks_fails_the_stream_and_keeps_what_was_shown() -> None:
    async def brittle(_: Peer, client: ServerConnection) -> None:
        await client.send(yap.encode_server(yap.Token("half a"), "earmark", "u0"))
        for _number in range(4):
            await client.recv()
        client.transport.abort()

    outcome, error, shown = await failed(brittle)
    assert outcome is Outcome.FAILED
    assert "1006" in error
    assert shown == "half a"


async def test_a_close_code_of_the_server_is_told() -> None:
    async def idle(_: Peer, client: ServerConnection) -> None:
        await client.recv()
        await client.close(4000, "idle_timeout")

    outcome, error, _ = await failed(idle)
    assert outcome is Outcome.FAILED
    assert "4000" in error
    assert "idle_timeout" in error


async def test_a_server_that_never_ends_is_given_up() -> None:
    outcome, error, _ = await failed(hang)
    assert (outcome, error) == (Outcome.FAILED, "no final within 0.8 s of the end of the audio")


async def test_a_silent_vllm_is_given_up_with_what_its_silence_may_mean() -> None:
    async with peer(hang) as server:
        where = destination(server, "vllm", Request("m"))
        (record,) = (await replay(utterances(1), where, Cell(warm_up=0), audio, patience=QUICK)).records
    assert record.outcome is Outcome.FAILED
    assert "and no text before: vLLM takes any number of streams" in (record.error or "")


async def test_a_final_without_the_last_message_counts() -> None:
    async def forgetful(_: Peer, client: ServerConnection) -> None:
        async for frame in client:
            if (
                isinstance(yap.client_message(envelope := yap.decode_envelope(frame)), yap.Commit)
                and envelope.payload["final"]
            ):
                await client.send(yap.encode_server(yap.Final("all of it"), "earmark", "u0"))

    assert await failed(forgetful) == (Outcome.OK, "", "all of it")


async def test_dropped_audio_is_noted() -> None:
    async def overloaded(state: Peer, client: ServerConnection) -> None:
        for _number in range(2):
            status = yap.Status("overload_drop", 0.64, 5.0, "pending_buffer")
            await client.send(yap.encode_server(status, "earmark", "u0"))
        await speak_yap(state, client)

    replayed, _ = await run(overloaded, utterances(1), Cell(warm_up=0))
    assert [entry.value for entry in replayed.records[0].of(Kind.DROPPED)] == [0.64, 0.64]


async def test_a_message_in_fragments_is_put_together() -> None:
    async def fragmenting(_: Peer, client: ServerConnection) -> None:
        final = yap.encode_server(yap.Final("größer"), "earmark", "u0").encode()
        at = final.index(b"\xc3") + 1  # inside a character
        await client.send([final[:at].decode(errors="surrogateescape")[:-1], *_halves(final, at - 1)])
        await client.send(yap.encode_server(yap.Done({}), "earmark", "u0"))
        await client.wait_closed()

    def _halves(final: bytes, at: int) -> list[str]:
        rest = final[at:].decode()
        return [rest[:3], "", rest[3:]]

    assert await failed(fragmenting) == (Outcome.OK, "", "größer")


async def test_pings_are_answered() -> None:
    answered: list[float] = []

    async def pinging(state: Peer, client: ServerConnection) -> None:
        answered.append(await asyncio.wait_for(await client.ping(), 2))
        await speak_yap(state, client)

    outcome, _, _ = await failed(pinging)
    assert outcome is Outcome.OK
    assert len(answered) == 1


async def test_a_server_that_does_not_read_delays_packets_but_never_the_sender() -> None:
    released = asyncio.Event()

    async def deaf(state: Peer, client: ServerConnection) -> None:
        client.transport.pause_reading()
        asyncio.get_running_loop().call_later(1.5, released.set)
        await released.wait()
        client.transport.resume_reading()
        await speak_yap(state, client)

    utterance = Utterance("u0", "", 300.0)  # 13 MB on the wire, more than the sockets hold between them
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        async with peer(deaf, sock=listener, ping_interval=None) as server:
            where, patience = destination(server), Patience(ready_seconds=0.05)
            replayed = await replay([utterance], where, Cell(speed=600.0, warm_up=0), audio, patience=patience)
    (record,) = replayed.records
    late_seconds = [(entry.t_ns - (entry.due_ns or 0)) / 1e9 for entry in record.of(Kind.PACKET)]
    assert record.outcome is Outcome.OK
    assert replayed.blocked_writes > 0
    assert len(late_seconds) == 3750
    assert late_seconds[0] < 0.5
    assert (
        max(late_seconds) > 0.5
    )  # all were due after half a second, the last ones could leave after a second and a half


async def test_an_interrupt_abandons_what_is_in_flight_and_starts_nothing() -> None:
    stop = asyncio.Event()
    corpus = [Utterance(f"u{n}", "", 0.2) for n in range(3)] + [Utterance(f"v{n}", "", 30.0) for n in range(6)]
    cell = Cell(concurrency=3, warm_up=0)
    async with peer(speak_yap) as server:
        asyncio.get_running_loop().call_later(2, stop.set)
        replayed = await replay(corpus, destination(server), cell, audio, patience=QUICK, stop=stop)
    assert not replayed.complete
    assert replayed.wall_seconds < 10
    assert [record.outcome for record in replayed.records] == [Outcome.ABANDONED] * 3
    assert all(record.hypothesis for record in replayed.records)


async def test_progress_counts_up() -> None:
    seen: list[tuple[int, int]] = []

    def watch(progress: Progress) -> None:
        seen.append((progress.done, progress.active))

    async with peer(speak_yap) as server:
        await replay(utterances(4, 0.5), destination(server), Cell(concurrency=2, warm_up=0), audio, on_progress=watch)
    assert seen[0] == (0, 0)
    assert seen == sorted(seen, key=lambda one: one[0])
    assert any(active == 2 for _, active in seen)


async def test_a_delay_the_server_does_not_confirm_is_noted() -> None:
    async with peer(speak_yap) as server:
        where = destination(server, request=Request("m", 160))
        agreed = await replay(utterances(1), where, Cell(warm_up=0), audio)
    async with peer(speak_realtime) as server:  # says 480 whatever is asked
        where = destination(server, "realtime", Request("m", 160))
        otherwise = await replay(utterances(1), where, Cell(warm_up=0), audio)
    assert agreed.notes == []
    assert otherwise.notes == ["a transcription delay of 160 ms was asked for, the server says 480 ms is in force"]


async def test_audio_beyond_the_memory_bound_is_prepared_on_the_way() -> None:
    corpus = utterances(6)
    replayed, server = await run(speak_yap, corpus, Cell(concurrency=2, warm_up=0, prepared_bytes=30_000))
    assert sorted(server.heard) == sorted(audio(utterance) for utterance in corpus)
    assert {record.outcome for record in replayed.records} == {Outcome.OK}


async def test_only_streams_under_full_load_are_scored_when_that_is_asked_for() -> None:
    corpus = [Utterance(f"u{n}", "", 0.3) for n in range(12)]
    cell = Cell(concurrency=3, warm_up=0, ramp_seconds=0.6, only_steady=True)
    replayed, _ = await run(speak_yap, corpus, cell)
    scored = [record.scored for record in replayed.records]
    assert True in scored
    assert False in scored


@pytest.mark.parametrize(("name", "value"), [("concurrency", 0), ("repeat", 0)])
def test_cells_that_cannot_be_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=name):
        Cell(**{name: value})  # type: ignore[arg-type]


def test_secure_targets_get_a_context_of_the_system() -> None:
    url, _ = address(DRIVERS["yap"], "wss://example.org", None)
    assert Destination(DRIVERS["yap"], url, tls=ssl.create_default_context()).url.startswith("wss://")
