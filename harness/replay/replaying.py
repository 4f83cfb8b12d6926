"""Replays a corpus against a server in one process: closed lanes or open arrivals, each utterance a stream."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from time import perf_counter_ns, process_time
from typing import Any, Protocol

from harness.arrivals import Arrivals, Closed
from harness.corpus import Utterance
from harness.impairment import Impairment
from harness.pacing import NS, Order, lane_delays_seconds, start_jitter_ns
from harness.replay.carrying import Destination
from harness.replay.exchange import Line, Patience, Progress, Retries
from harness.replay.jobs import Job, Share, jobs, share_of, think_seconds
from harness.replay.stream import Departure, Prepared, Stream
from harness.replay.timetable import Timetable
from harness.timeline import Outcome, StreamRecord
from wire.pcm import BYTES_PER_SECOND, bytes_of

LoadAudio = Callable[[Utterance], bytes]
"""PCM16, 16 kHz, mono of an utterance."""

SMALLEST_RAMP_SECONDS_PER_LANE = 0.002
WARM_UP_SECONDS = 20.0
"""Of audio: an hour in one utterance is not heard twice."""
PROGRESS_SECONDS = 1.0
"""Drawing progress takes the loop a few milliseconds, so it is not done often."""


class ReplayError(Exception):
    """The replay cannot go on; the message says what to do."""


class Watch(Protocol):
    """Who may end a replay early because nothing more can be learnt from it. Goes to every generator process by pickle."""

    def begun(self) -> Watch:
        """One for a new replay, which has seen nothing."""

    def ended(self, stream: Stream) -> None:
        """A stream came to its end."""

    def look(self, active: Collection[Stream], now_ns: int) -> str | None:
        """Called every second; a reason to end the replay, or ``None``."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a bench: so many lanes, so paced.

    ``ramp_seconds`` spreads the first connections (``None``: 2 ms a lane, at least one packet). With ``only_steady`` only
    streams that ran while all lanes were busy are scored; with open arrivals, those that began between the length of the longest
    utterance and the last arrival. With ``seconds`` no stream begins after that time, and utterances come again as often as needed.
    ``concurrency`` is the number of lanes of closed arrivals; open ones have no bound but their number.
    ``think_seconds`` or ``duty_cycle`` let a lane be silent between its streams. ``per_connection`` streams of a lane share
    a connection (0: all of them).
    """

    concurrency: int = 1
    packet_ms: int = 80
    speed: float = 1.0
    seed: int = 0
    repeat: int = 1
    order: Order = Order.LONGEST_FIRST
    ramp_seconds: float | None = None
    only_steady: bool = False
    warm_up: int = 1
    prepared_bytes: int = 1 << 30  # of audio kept ready to send
    arrivals: Arrivals = Closed()
    seconds: float | None = None
    think_seconds: float = 0.0
    duty_cycle: float | None = None
    impairment: Impairment = Impairment()
    per_connection: int = 1
    retries: Retries = Retries()

    def __post_init__(self) -> None:
        for name in ("concurrency", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"seconds is {self.seconds}, must be positive")
        if not 0 <= self.think_seconds < math.inf:
            raise ValueError(f"think_seconds is {self.think_seconds}, must be 0 or more")
        if self.duty_cycle is not None and not 0 < self.duty_cycle <= 1:
            raise ValueError(f"duty_cycle is {self.duty_cycle}, must be above 0 and at most 1")
        if self.duty_cycle is not None and self.think_seconds:
            raise ValueError("think_seconds and duty_cycle say the same in two ways: give one of them")
        if self.per_connection < 0:
            raise ValueError(f"per_connection is {self.per_connection}, must be 1 or more, or 0 for all")
        if not isinstance(self.arrivals, Closed):
            for name, plain in (("think_seconds", 0.0), ("duty_cycle", None), ("per_connection", 1)):
                if getattr(self, name) != plain:
                    raise ValueError(f"{name} is of closed arrivals: with {self.arrivals} every stream comes by itself")
        if self.impairment and math.isinf(self.speed):
            raise ValueError("jitter, bursts and stalls need a schedule to keep packets from: not with infinite speed")


@dataclass(slots=True)
class Replayed:
    """What a cell left behind. Times in the records are ``perf_counter_ns`` less ``origin_ns``.

    ``busy_ns`` is the first and last moment of each lane. ``clocks`` has one entry per generator process beyond one: how far its clock
    was from ours and how well that is known.
    """

    records: list[StreamRecord] = field(repr=False)
    complete: bool
    origin_ns: int
    wall_seconds: float
    generator_cpu_seconds: float  # of the generator's processes while streams were under way
    priority: str  # of the generator's process: "real-time" where the system allowed it, else "normal"
    blocked_writes: int  # packets that the kernel did not take at once because the server did not read
    notes: list[str]
    retries: int = 0
    stopped_because: str = ""  # why a watch ended it early
    busy_ns: list[tuple[int, int]] = field(default_factory=list)
    clocks: list[dict[str, Any]] = field(default_factory=list)


class Shelf:
    """Prepared utterances, the most lately used kept within a bound of bytes."""

    def __init__(self, destination: Destination, cell: Cell, load: LoadAudio) -> None:
        self._destination, self._cell, self._load = destination, cell, load
        self._kept: dict[str, Prepared] = {}
        self._kept_bytes = 0

    def fill(self, utterances: Sequence[Utterance]) -> None:
        """Prepare as many as fit, before load begins."""
        for utterance in {utterance.id: utterance for utterance in utterances}.values():
            if self._kept_bytes + utterance.seconds * BYTES_PER_SECOND * 4 / 3 > self._cell.prepared_bytes:
                return
            self._keep(self._make(utterance))

    async def get(self, utterance: Utterance) -> Prepared:
        """The prepared utterance; one that is not kept is made in a thread, so that streams under way keep their pace."""
        prepared = self._kept.pop(utterance.id, None)
        if prepared is None:
            prepared = await asyncio.to_thread(self._make, utterance)
            self._keep(prepared)
        else:
            self._kept[utterance.id] = prepared
        return prepared

    async def beginning(self, utterance: Utterance, seconds: float) -> Prepared:
        """At most its first ``seconds``, prepared and not kept."""
        return await asyncio.to_thread(self._make, utterance, seconds)

    def _make(self, utterance: Utterance, seconds: float = math.inf) -> Prepared:
        pcm = self._load(utterance)
        if seconds < utterance.seconds:
            pcm = pcm[: bytes_of(seconds)]
        return Prepared(utterance, pcm, self._destination, self._cell.packet_ms, self._cell.speed)

    def _keep(self, prepared: Prepared) -> None:
        self._kept[prepared.utterance.id] = prepared
        self._kept_bytes += prepared.byte_count
        while len(self._kept) > 1 and self._kept_bytes > self._cell.prepared_bytes:
            self._kept_bytes -= self._kept.pop(next(iter(self._kept))).byte_count


async def replay(
    utterances: Sequence[Utterance],
    destination: Destination,
    cell: Cell,
    load: LoadAudio,
    *,
    patience: Patience | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
    when_warm: Callable[[], None] | None = None,
) -> Replayed:
    """Replay every utterance ``cell.repeat`` times, or for ``cell.seconds``. When ``stop`` is set no stream is begun and those in flight
    are abandoned. ``when_warm`` is called, in a thread, between the warm-up and the first stream.

    Raises:
        ReplayError: there is nothing to replay, or the warm-up did not get through.
    """
    generator = Generator(utterances, destination, cell, load, patience=patience, watch=watch)
    stop = stop or asyncio.Event()
    await generator.warm_up(stop)
    if when_warm is not None:
        await asyncio.to_thread(when_warm)
    replayed = await generator.run(on_progress=on_progress, stop=stop)
    return finished(replayed, utterances, cell)


class Generator:
    """One process' part in a replay: everything is made ready by ``__init__``, and ``run`` sends it."""

    def __init__(
        self,
        utterances: Sequence[Utterance],
        destination: Destination,
        cell: Cell,
        load: LoadAudio,
        *,
        share: Share | None = None,
        patience: Patience | None = None,
        watch: Watch | None = None,
    ) -> None:
        if not utterances:
            raise ReplayError("there is nothing to replay: the dataset has no utterances")
        self._utterances, self._destination, self._cell = utterances, destination, cell
        self._share, self._patience = share or Share(), patience or Patience()
        self._eye = None if watch is None else watch.begun()
        self._shelf = Shelf(destination, cell, load)
        self._shelf.fill(utterances)
        self._jobs, self._total, self._lanes = self._planned()
        self._progress = Progress(total=self._expected() if self._total is None else self._total)
        self._streams: list[Stream] = []
        self._active: dict[int, Stream] = {}
        self._busy_ns: list[tuple[int, int]] = []
        self._end_ns: int | None = None
        self._left_over = False
        self._timetable = Timetable()

    def _planned(self) -> tuple[Iterator[Job], int | None, range]:
        """The jobs of this share, how many there are (``None``: as many as the time allows), and its lanes."""
        cell = self._cell
        try:
            found = share_of(
                jobs(
                    self._utterances,
                    cell.arrivals,
                    repeat=cell.repeat,
                    seconds=cell.seconds,
                    order=cell.order,
                    seed=cell.seed,
                ),
                self._share,
            )
            if isinstance(cell.arrivals, Closed) and cell.seconds is not None:
                return found, None, self._share.lanes(cell.concurrency)
            listed = list(found)
        except ValueError as error:
            raise ReplayError(str(error)) from None
        lanes = self._share.lanes(min(cell.concurrency, len(self._utterances) * cell.repeat))
        return iter(listed), len(listed), lanes

    def _expected(self) -> int:
        """About how many streams lanes that go on for a time will have."""
        seconds = sum(utterance.seconds for utterance in self._utterances) / len(self._utterances) / self._cell.speed
        return max(1, round(len(self._lanes) * max(1.0, (self._cell.seconds or 0.0) / seconds))) if seconds else 1

    async def warm_up(self, stop: asyncio.Event) -> None:
        """Replay the shortest utterance, or its beginning, a few times, unrecorded: a server that fails it is not worth a run.

        Raises:
            ReplayError: it failed.
        """
        shortest = min(self._utterances, key=lambda utterance: utterance.seconds)
        for _ in range(self._cell.warm_up):
            prepared = await self._shelf.beginning(shortest, WARM_UP_SECONDS)
            stream = Stream(-1, -1, prepared, self._destination, self._patience, Progress())
            running = asyncio.create_task(stream.run(self._timetable))
            stopped = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait((running, stopped), return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopped.cancel()
                running.cancel()
            if stop.is_set():
                return
            await running  # raises what went wrong on our side
            if stream.outcome is not Outcome.OK:
                raise ReplayError(
                    f"the warm-up utterance got no transcript from {_public(self._destination.url)}: {stream.error}"
                )

    async def run(
        self,
        *,
        stop: asyncio.Event,
        on_progress: Callable[[Progress], None] | None = None,
        origin_ns: int | None = None,
    ) -> Replayed:
        """Send it all. ``origin_ns`` is the planned beginning, now unless given."""
        cell = self._cell
        with _quiet_collector(), _real_time_priority(cell.speed) as priority:
            if origin_ns is None:
                origin_ns = perf_counter_ns()
            else:
                await asyncio.sleep(max(0.0, (origin_ns - perf_counter_ns()) / NS))
            cpu_seconds = process_time()
            self._end_ns = None if cell.seconds is None else origin_ns + round(cell.seconds * NS)
            stopped_because = await self._send(origin_ns, stop, on_progress)
            wall_seconds, cpu_seconds = (perf_counter_ns() - origin_ns) / NS, process_time() - cpu_seconds
        if not self._left_over and self._total is not None:
            self._left_over = next(self._jobs, None) is not None
        return Replayed(
            records=sorted((stream.record(origin_ns) for stream in self._streams), key=lambda record: record.stream),
            complete=not stop.is_set() and not stopped_because and not self._left_over,
            origin_ns=origin_ns,
            wall_seconds=wall_seconds,
            generator_cpu_seconds=cpu_seconds,
            priority=priority,
            blocked_writes=sum(stream.blocked_writes for stream in self._streams),
            notes=[],
            retries=sum(stream.retries for stream in self._streams),
            stopped_because=stopped_because,
            busy_ns=[(began - origin_ns, ended - origin_ns) for began, ended in self._busy_ns],
        )

    async def _send(self, origin_ns: int, stop: asyncio.Event, on_progress: Callable[[Progress], None] | None) -> str:
        """Run lanes or arrivals to their end; why a watch ended them early, if one did."""
        quit_ = asyncio.Event()  # set by whoever ends it early
        async with asyncio.TaskGroup() as group:
            if isinstance(self._cell.arrivals, Closed):
                delays = self._lane_delays()
                tasks = [group.create_task(self._lane(number, delays[number], quit_)) for number in self._lanes]
            else:
                tasks = [group.create_task(self._arrivals(origin_ns, quit_))]
            watching = group.create_task(self._look(tasks, stop, quit_, on_progress))
            if tasks:
                await asyncio.wait(tasks)
            watching.cancel()
            await asyncio.wait((watching,))
        return "" if watching.cancelled() else watching.result()

    def _lane_delays(self) -> list[float]:
        cell = self._cell
        lanes = self._lanes.stop
        ramp_seconds = cell.ramp_seconds
        if ramp_seconds is None:
            ramp_seconds = max(cell.packet_ms / 1000, lanes * SMALLEST_RAMP_SECONDS_PER_LANE)
        return lane_delays_seconds(lanes, ramp_seconds)

    async def _lane(self, number: int, delay_seconds: float, quit_: asyncio.Event) -> None:
        """One utterance after the other, on connections that carry ``per_connection`` of them."""
        await asyncio.sleep(delay_seconds)
        began_ns, cell = perf_counter_ns(), self._cell
        line: Line | None = None
        on_line = 0
        try:
            while not quit_.is_set() and (self._end_ns is None or perf_counter_ns() < self._end_ns):
                job = next(self._jobs, None)
                if job is None:
                    break
                on_line = 1 if line is None else on_line + 1
                keep = cell.per_connection == 0 or on_line < cell.per_connection
                line = await self._stream(job, number, line=line, keep=keep)
                think = think_seconds(
                    cell.seed, job.index, job.utterance.seconds / cell.speed, cell.think_seconds, cell.duty_cycle
                )
                if think:
                    await asyncio.sleep(think)
        finally:
            if line is not None:
                line.connection.close()
                line.connection.abort()
        self._busy_ns.append((began_ns, perf_counter_ns()))

    async def _arrivals(self, origin_ns: int, quit_: asyncio.Event) -> None:
        """Begin each stream when its time has come, however many are under way. A lane number is the lowest that is free."""
        free: list[int] = []
        numbers = count(self._share.first, self._share.of)

        async def one(job: Job, arrival_ns: int) -> None:
            number = heappop(free) if free else next(numbers)
            try:
                await self._stream(job, number, arrival_ns=arrival_ns)
            finally:
                heappush(free, number)

        async with asyncio.TaskGroup() as group:
            for job in self._jobs:
                arrival_ns = origin_ns + round((job.start_seconds or 0.0) * NS)
                wait_seconds = (arrival_ns - perf_counter_ns()) / NS
                if wait_seconds > 0:
                    await asyncio.sleep(wait_seconds)
                if quit_.is_set():
                    self._left_over = True
                    return
                group.create_task(one(job, arrival_ns))

    async def _stream(
        self, job: Job, lane: int, *, line: Line | None = None, keep: bool = False, arrival_ns: int | None = None
    ) -> Line | None:
        cell, progress = self._cell, self._progress
        prepared = await self._shelf.get(job.utterance)
        stream = Stream(job.index, lane, prepared, self._destination, self._patience, progress, arrival_ns=arrival_ns)
        held_ns = cell.impairment.held_ns(prepared.offsets_ns, cell.seed, job.index) if cell.impairment else ()
        departure = Departure(start_jitter_ns(cell.seed, job.index, cell.packet_ms, cell.speed), held_ns)
        self._streams.append(stream)
        self._active[job.index] = stream
        progress.active += 1
        try:
            return await stream.run(
                self._timetable, departure, line=line, keep=keep, retries=cell.retries, seed=cell.seed
            )
        finally:
            del self._active[job.index]
            progress.active -= 1
            progress.done += stream.outcome is Outcome.OK
            progress.failed += stream.outcome in (Outcome.FAILED, Outcome.REJECTED)
            progress.audio_seconds += prepared.seconds
            if self._eye is not None:
                self._eye.ended(stream)

    async def _look(
        self,
        tasks: Sequence[asyncio.Task[None]],
        stop: asyncio.Event,
        quit_: asyncio.Event,
        on_progress: Callable[[Progress], None] | None,
    ) -> str:
        """Report progress until told to stop, or until nothing more is to be learnt; then cancel what is under way."""
        reason: str | None = None
        while not stop.is_set() and reason is None:
            if on_progress is not None:
                on_progress(self._progress)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await stop.wait()
            if self._eye is not None and not stop.is_set():
                reason = self._eye.look(self._active.values(), perf_counter_ns())
        quit_.set()
        for task in tasks:
            task.cancel()
        return reason or ""


def finished(replayed: Replayed, utterances: Sequence[Utterance], cell: Cell) -> Replayed:
    """The replay with everything that can only be said of all of it: which streams are scored, and notes."""
    notes: list[str] = []
    if isinstance(cell.arrivals, Closed):
        lanes = len(replayed.busy_ns)
        available = len(utterances) * cell.repeat
        if cell.seconds is None and available < cell.concurrency:
            notes.append(f"only {available} of {cell.concurrency} lanes were used: there are no more utterances")
        if cell.only_steady and lanes == (cell.concurrency if cell.seconds else min(cell.concurrency, available)):
            _mark_steady(
                replayed.records,
                max(began for began, _ in replayed.busy_ns),
                min(ended for _, ended in replayed.busy_ns),
            )
    elif cell.only_steady and replayed.records:
        filled_ns = round(max(utterance.seconds for utterance in utterances) / cell.speed * NS)
        last_ns = max(record.arrival_ns or 0 for record in replayed.records)
        for record in replayed.records:
            record.scored = filled_ns <= (record.arrival_ns or 0) <= last_ns
    notes += _delay_notes(replayed.records)
    if replayed.retries:
        notes.append(f"{replayed.retries} refused or failed connections were tried again")
    if replayed.stopped_because:
        notes.append(f"ended early: {replayed.stopped_because}")
    return replace(replayed, notes=[*replayed.notes, *notes])


def _public(url: str) -> str:
    """A URL without its query, which may hold a key."""
    return url.partition("?")[0]


def _mark_steady(records: Sequence[StreamRecord], from_ns: int, to_ns: int) -> None:
    for record in records:
        last_ns = max((entry.t_ns for entry in record.entries), default=record.t0_ns)
        record.scored = from_ns <= record.t0_ns and last_ns <= to_ns


def _delay_notes(records: Sequence[StreamRecord]) -> list[str]:
    """What the server said about the delay that was asked for, where it is not the same."""
    asked = {record.delay_ms for record in records} - {None}
    said = {record.delay_ms_in_force for record in records if record.outcome is Outcome.OK}
    if not asked or not said or said == asked:
        return []
    if said == {None}:
        return [f"a transcription delay of {asked.pop()} ms was asked for; the server did not say which is in force"]
    in_force = ", ".join(sorted(str(delay_ms) for delay_ms in said))
    return [f"a transcription delay of {asked.pop()} ms was asked for, the server says {in_force} ms is in force"]


@contextlib.contextmanager
def _real_time_priority(speed: float) -> Iterator[str]:
    """Let packets go before any other work of the machine, where the system allows it; yields what is in force.

    A waking process of ordinary priority may wait for the next tick of a core that a recogniser keeps busy: 4 ms and more on a kernel
    with lazy preemption. Replaying at infinite speed would be no waking process but a busy one, so it gets no priority.
    """
    if math.isinf(speed) or not hasattr(os, "sched_setscheduler"):
        yield "normal"
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        yield "normal"
        return
    try:
        yield "real-time"
    finally:
        os.sched_setscheduler(0, policy, parameters)


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """No garbage collection while packets are due; what was made before is not looked at again."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
