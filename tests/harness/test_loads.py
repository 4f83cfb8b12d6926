"""Ways of making load that are not closed lanes of one utterance a connection."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice, pairwise

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from harness import latency
from harness.arrivals import Closed, Fixed, Poisson, Recorded
from harness.drivers.yap import YapDriver
from harness.impairment import Impairment, Stall
from harness.pacing import Order
from harness.replay import Cell, Replayed, ReplayError, replay, replay_by_processes
from harness.replay.exchange import Patience, Retries
from harness.replay.jobs import Share, jobs, share_of, think_seconds
from harness.replay.processes import ClockOffset, clock_offset
from harness.replay.stream import Stream
from harness.timeline import Kind, Outcome
from tests.harness.peer import Handler, Peer, peer, speak_realtime, speak_yap
from tests.harness.test_replay import audio, destination, utterances
from wire import yap

PATIENT = Patience(ready_seconds=2, close_seconds=2)


async def run(handler: Handler, count: int, cell: Cell, *, protocol: str = "yap") -> tuple[Replayed, Peer]:
    async with peer(handler) as server:
        replayed = await replay(utterances(count), destination(server, protocol), cell, audio, patience=PATIENT)
    return replayed, server


# ---- which stream, and when


def test_closed_jobs_without_a_time_are_every_utterance_so_often() -> None:
    found = list(jobs(utterances(5), Closed(), repeat=2, seed=3))
    assert sorted(job.index for job in found) == list(range(10))
    assert all(job.utterance.id == f"u{job.index % 5}" for job in found)
    assert all(job.start_seconds is None for job in found)


def test_closed_jobs_with_a_time_go_on_and_on_in_ever_new_order() -> None:
    found = list(islice(jobs(utterances(8), Closed(), seconds=1.0), 80))
    turns = [[job.utterance.id for job in found[n : n + 8]] for n in range(0, 80, 8)]
    assert [job.index for job in found] == list(range(80))
    assert all(sorted(turn) == sorted(turns[0]) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 5


def test_jobs_as_listed_stay_so() -> None:
    found = islice(jobs(utterances(3), Closed(), seconds=1.0, order=Order.AS_LISTED), 7)
    assert [job.utterance.id for job in found] == ["u0", "u1", "u2", "u0", "u1", "u2", "u0"]


def test_a_recorded_schedule_may_name_its_utterances() -> None:
    schedule = Recorded(((0.0, "u2"), (1.0, None), (1.5, "u0")))
    found = list(jobs(utterances(3), schedule))
    assert [job.start_seconds for job in found] == [0.0, 1.0, 1.5]
    assert (found[0].utterance.id, found[2].utterance.id) == ("u2", "u0")
    with pytest.raises(ValueError, match="'u9'"):
        list(jobs(utterances(3), Recorded(((0.0, "u9"),))))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_all_of_it_and_nothing_twice(processes: int) -> None:
    whole = list(jobs(utterances(11), Poisson(3.0), seed=1))
    parts = [list(share_of(iter(whole), Share(number, processes))) for number in range(processes)]
    assert sorted(job.index for part in parts for job in part) == list(range(11))
    lanes = [lane for number in range(processes) for lane in Share(number, processes).lanes(8)]
    assert sorted(lanes) == list(range(8))


def test_think_times_have_the_mean_that_the_duty_cycle_asks_for() -> None:
    drawn = [think_seconds(0, stream, 6.0, 0.0, 0.75) for stream in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(2.0, rel=0.04)
    assert think_seconds(0, 1, 6.0, 0.0, None) == 0.0
    assert think_seconds(0, 1, 6.0, 0.0, 1.0) == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"seconds": 0.0},
        {"think_seconds": -1.0},
        {"duty_cycle": 0.0},
        {"duty_cycle": 0.5, "think_seconds": 1.0},
        {"per_connection": -1},
        {"arrivals": Poisson(1.0), "think_seconds": 1.0},
        {"arrivals": Poisson(1.0), "per_connection": 2},
        {"impairment": Impairment(10.0), "speed": math.inf},
    ],
)
def test_loads_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"seconds|duty_cycle|per_connection|schedule|arrivals"):
        Cell(**wrong)  # type: ignore[arg-type]


# ---- over sockets


async def test_open_arrivals_come_at_their_times_however_slow_the_server_is() -> None:
    async def slow(state: Peer, client: ServerConnection) -> None:
        await asyncio.sleep(0.6)  # the server's own slowness: longer than all arrivals take
        await speak_yap(state, client)

    replayed, server = await run(slow, 6, Cell(concurrency=1, arrivals=Fixed(20.0), warm_up=0))
    assert [record.arrival_ns for record in replayed.records] == [n * 50_000_000 for n in range(6)]
    for record in replayed.records:
        connecting = record.first(Kind.CONNECTING)
        assert connecting is not None
        assert connecting.t_ns >= (record.arrival_ns or 0)
    assert {record.outcome for record in replayed.records} == {Outcome.OK}
    assert server.open_most == 6
    assert replayed.complete
    assert sorted(record.lane for record in replayed.records) == list(range(6))


async def test_a_schedule_that_wants_what_there_is_not_stops_the_run() -> None:
    async with peer(speak_yap) as server:
        with pytest.raises(ReplayError, match="u9"):
            await replay(utterances(2), destination(server), Cell(arrivals=Recorded(((0.0, "u9"),)), warm_up=0), audio)


async def test_with_a_time_utterances_come_again_until_it_is_over() -> None:
    replayed, _ = await run(speak_yap, 3, Cell(concurrency=2, seconds=1.5, warm_up=0, only_steady=True))
    begun = [record.t0_ns / 1e9 for record in replayed.records]
    assert len(begun) > 3
    assert replayed.complete
    assert {record.outcome for record in replayed.records} == {Outcome.OK}
    assert [record.stream for record in replayed.records] == list(range(len(begun)))
    assert len(replayed.busy_ns) == 2
    assert all(ended >= 1_500_000_000 for _, ended in replayed.busy_ns)


@pytest.mark.parametrize("protocol", ["yap", "realtime"])
@pytest.mark.parametrize(("per_connection", "connections"), [(1, 6), (2, 3), (4, 2), (0, 1)])
async def test_a_lane_reconnects_after_so_many_utterances(protocol: str, per_connection: int, connections: int) -> None:
    handler = {"yap": speak_yap, "realtime": speak_realtime}[protocol]
    cell = Cell(concurrency=1, per_connection=per_connection, warm_up=0)
    replayed, server = await run(handler, 6, cell, protocol=protocol)
    assert len(server.paths) == connections
    assert sum(record.first(Kind.CONNECTED) is not None for record in replayed.records) == connections
    assert {record.outcome for record in replayed.records} == {Outcome.OK}
    assert sorted(server.heard) == sorted(audio(utterance) for utterance in utterances(6))
    assert {record.delay_ms_in_force for record in replayed.records} == {480}


async def test_a_connection_that_the_server_closes_between_utterances_is_opened_again() -> None:
    async def once(_: Peer, client: ServerConnection) -> None:
        async for frame in client:
            envelope = yap.decode_envelope(frame)
            if yap.client_message(envelope) == yap.Commit(final=True):
                for message in (yap.Final("all"), yap.Done({})):
                    await client.send(yap.encode_server(message, envelope.session_id, envelope.request_id))
                await client.close(1000)

    replayed, server = await run(once, 3, Cell(per_connection=0, think_seconds=0.5, warm_up=0))
    assert len(server.paths) == 3
    assert [record.outcome for record in replayed.records] == [Outcome.OK] * 3


async def test_impairment_shows_in_latencies_and_not_as_lateness_of_the_generator() -> None:
    impairment = Impairment(stalls=(Stall(0.3, at=0.1),))
    replayed, _ = await run(speak_yap, 2, Cell(concurrency=2, impairment=impairment, warm_up=0))
    plain, _ = await run(speak_yap, 2, Cell(concurrency=2, warm_up=0))
    for record in replayed.records:
        packets = list(record.of(Kind.PACKET))
        assert [(entry.due_ns or 0) - record.t0_ns for entry in packets] == [
            round((entry.value or 0) * 1e9) for entry in packets
        ]  # the schedule is the planned one
        assert record.held_ns == list(
            impairment.held_ns([(entry.due_ns or 0) - record.t0_ns for entry in packets], 0, record.stream)
        )
        assert packets[1].t_ns - record.t0_ns >= 400_000_000  # due after 160 ms, the stall ends after 400
        late = latency.lateness(record)
        assert len(late) == len(packets) + 1
        assert min(late) >= 0
        assert late[1] < (packets[1].t_ns - (packets[1].due_ns or 0)) / 1e9 - 0.2
    assert all(record.held_ns == [] for record in plain.records)


async def test_refused_connections_are_tried_again_only_when_asked_and_counted() -> None:
    refused = 0

    def full_at_first(connection: ServerConnection, _request: HttpRequest) -> Response | None:
        nonlocal refused
        refused += 1
        return connection.respond(503, "full\n") if refused in (1, 2, 4) else None

    async def tried(times: int) -> Replayed:
        nonlocal refused
        refused = 0
        async with peer(speak_yap, process_request=full_at_first) as server:
            cell = Cell(concurrency=1, retries=Retries(times, first_seconds=0.01), warm_up=0, order=Order.AS_LISTED)
            return await replay(utterances(2), destination(server), cell, audio, patience=PATIENT)

    without = await tried(0)
    assert [record.outcome for record in without.records] == [Outcome.REJECTED, Outcome.REJECTED]
    assert without.retries == 0

    replayed = await tried(3)
    assert [record.outcome for record in replayed.records] == [Outcome.OK, Outcome.OK]
    assert [len(list(record.of(Kind.RETRY))) for record in replayed.records] == [2, 1]
    assert replayed.retries == 3
    assert any("3 refused or failed" in note for note in replayed.notes)
    first = replayed.records[0]
    assert next(first.of(Kind.RETRY)).text == "HTTP 503: Service Unavailable full"
    assert first.error is None
    kinds = [entry.kind for entry in first.entries]
    assert kinds.count(Kind.CONNECTING) == 3
    assert latency.measure(first).ready_seconds is not None

    given_up = await tried(1)
    assert given_up.records[0].outcome is Outcome.REJECTED
    assert given_up.retries == 1


@dataclass
class After:
    """A watch that has had enough once it saw so many streams end."""

    streams: int
    seen: int = 0

    def begun(self) -> After:
        return After(self.streams)

    def ended(self, stream: Stream) -> None:  # noqa: ARG002
        self.seen += 1

    def look(self, active: Collection[Stream], now_ns: int) -> str | None:  # noqa: ARG002
        return f"{self.seen} are enough" if self.seen >= self.streams else None


async def test_a_watch_ends_a_replay_early_and_says_why() -> None:
    async with peer(speak_yap) as server:
        cell = Cell(concurrency=2, seconds=60.0, warm_up=0)
        replayed = await replay(utterances(4), destination(server), cell, audio, patience=PATIENT, watch=After(2))
    assert replayed.stopped_because.endswith("are enough")
    assert not replayed.complete
    assert replayed.wall_seconds < 30
    assert any(note.startswith("ended early") for note in replayed.notes)
    assert {record.outcome for record in replayed.records} <= {Outcome.OK, Outcome.ABANDONED}


# ---- several processes


def test_a_clock_offset_is_taken_from_the_shortest_exchange_and_bounded_by_it() -> None:
    found = clock_offset([(0, 5_000, 2_000), (10_000, 15_100, 10_200), (20_000, 29_000, 26_000)])
    assert found == ClockOffset(5_000, 100)
    assert found.correction_ns == 5_000
    assert ClockOffset(80, 100).correction_ns == 0  # may well be the same clock


@pytest.mark.parametrize(("ahead", "one_way", "back"), [(1_000_000, 300, 700), (-40_000, 5_000, 100), (0, 10, 10)])
def test_the_true_offset_lies_within_the_uncertainty(ahead: int, one_way: int, back: int) -> None:
    found = clock_offset([(1_000, 1_000 + one_way + ahead, 1_000 + one_way + back)])
    assert abs(found.offset_ns - ahead) <= found.uncertainty_ns


async def by_processes(cell: Cell, count: int, processes: int) -> tuple[Replayed, Peer]:
    async with peer(speak_yap) as server:
        replayed = await replay_by_processes(
            utterances(count), destination(server), cell, audio, processes, patience=PATIENT
        )
    return replayed, server


@pytest.mark.parametrize("arrivals", [Closed(), Fixed(20.0)])
async def test_processes_replay_together_what_one_would(arrivals: Closed | Fixed) -> None:
    cell = Cell(concurrency=3, warm_up=0, arrivals=arrivals)
    replayed, server = await by_processes(cell, 7, 2)
    assert sorted(server.heard) == sorted(audio(utterance) for utterance in utterances(7))
    assert [record.stream for record in replayed.records] == list(range(7))
    assert {record.outcome for record in replayed.records} == {Outcome.OK}
    assert replayed.complete
    assert [clock["streams"] for clock in replayed.clocks] == [4, 3]
    assert all(clock["uncertainty_ns"] > 0 for clock in replayed.clocks)
    for record in replayed.records:  # one timeline: nothing is from before the beginning, or in the wrong order
        assert 0 <= record.entries[0].t_ns <= replayed.wall_seconds * 1e9
        assert all(one.t_ns <= other.t_ns for one, other in pairwise(record.entries))
    if arrivals == Fixed(20.0):
        assert [record.arrival_ns for record in replayed.records] == [n * 50_000_000 for n in range(7)]


async def test_an_interrupt_ends_all_processes() -> None:
    stop = asyncio.Event()

    def soon(_: object) -> None:
        stop.set()

    async with peer(speak_yap) as server:
        replayed = await replay_by_processes(
            utterances(4, 20.0),
            destination(server),
            Cell(concurrency=4, warm_up=0),
            audio,
            2,
            patience=PATIENT,
            stop=stop,
            on_progress=soon,
        )
    assert not replayed.complete
    assert {record.outcome for record in replayed.records} <= {Outcome.ABANDONED}


async def test_a_process_that_cannot_do_its_part_says_why() -> None:
    async with peer(speak_yap) as server:
        cell = Cell(arrivals=Recorded(((0.0, "u9"),)), warm_up=0)
        with pytest.raises(ReplayError, match="u9"):
            await replay_by_processes(utterances(2), destination(server), cell, audio, 2)


@pytest.mark.parametrize("processes", [1, 2])
async def test_the_moment_between_warm_up_and_load_is_told_once(processes: int) -> None:
    warm: list[int] = []
    async with peer(speak_yap) as server:
        cell = Cell(concurrency=2, warm_up=2)

        def when_warm() -> None:
            warm.append(len(server.heard))

        if processes == 1:
            await replay(utterances(3), destination(server), cell, audio, when_warm=when_warm)
        else:
            await replay_by_processes(utterances(3), destination(server), cell, audio, processes, when_warm=when_warm)
    assert warm == [2]
    assert len(server.heard) == 2 + 3


async def test_a_driver_that_cannot_travel_is_refused_before_anything_is_sent() -> None:
    class Local(YapDriver):
        """Of no module, so no other process can find it."""

    async with peer(speak_yap) as server:
        where = replace(destination(server), driver=Local())
        with pytest.raises(ReplayError, match=r"'yap' cannot be handed to other generator processes .*--generators 1"):
            await replay_by_processes(utterances(2), where, Cell(concurrency=2), audio, 2)
    assert server.paths == []
