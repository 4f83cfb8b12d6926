"""Replays a corpus against a server, N utterances at a time, each over a connection of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns, process_time

from harness.corpus import Utterance
from harness.pacing import NS, Order, lane_delays_seconds, order_of, start_jitter_ns
from harness.replay.stream import Destination, Patience, Prepared, Progress, Stream
from harness.replay.timetable import Timetable
from harness.timeline import Outcome, StreamRecord
from wire.pcm import BYTES_PER_SECOND

LoadAudio = Callable[[Utterance], bytes]
"""PCM16, 16 kHz, mono of an utterance."""

SMALLEST_RAMP_SECONDS_PER_LANE = 0.002
PROGRESS_SECONDS = 1.0
"""Drawing progress takes the loop a few milliseconds, so it is not done often."""


class ReplayError(Exception):
    """The replay cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of a bench: so many lanes, so paced.

    ``ramp_seconds`` spreads the first connections (``None``: 2 ms a lane, at least one packet). With ``only_steady`` only
    streams that ran while all lanes were busy are scored.
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

    def __post_init__(self) -> None:
        for name in ("concurrency", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")


@dataclass(slots=True)
class Replayed:
    """What a cell left behind. Times in the records are ``perf_counter_ns`` less ``origin_ns``."""

    records: list[StreamRecord] = field(repr=False)
    complete: bool
    origin_ns: int
    wall_seconds: float
    generator_cpu_seconds: float  # of this process while streams were under way
    priority: str  # of the generator's process: "real-time" where the system allowed it, else "normal"
    blocked_writes: int  # packets that the kernel did not take at once because the server did not read
    notes: list[str]


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

    def _make(self, utterance: Utterance) -> Prepared:
        return Prepared(utterance, self._load(utterance), self._destination, self._cell.packet_ms, self._cell.speed)

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
    when_warm: Callable[[], None] | None = None,
) -> Replayed:
    """Replay every utterance ``cell.repeat`` times. When ``stop`` is set no stream is begun and those in flight are abandoned.

    ``when_warm`` is called, in a thread, between the warm-up and the first stream.

    Raises:
        ReplayError: there is nothing to replay, or the warm-up did not get through.
    """
    if not utterances:
        raise ReplayError("there is nothing to replay: the dataset has no utterances")
    patience, stop = patience or Patience(), stop or asyncio.Event()
    shelf = Shelf(destination, cell, load)
    order = order_of([utterance.seconds for utterance in utterances] * cell.repeat, cell.order, cell.seed)
    waiting = deque((index, utterances[index % len(utterances)]) for index in order)
    shelf.fill(utterances)
    timetable = Timetable()
    notes: list[str] = []
    await _warm_up(utterances, shelf, destination, cell, patience, timetable, stop)
    if when_warm is not None:
        await asyncio.to_thread(when_warm)
    streams: list[Stream] = []
    progress = Progress(total=len(waiting))
    busy: list[tuple[int, int]] = []  # first and last moment of each lane

    async def lane(number: int, delay_seconds: float) -> None:
        await asyncio.sleep(delay_seconds)
        began_ns = perf_counter_ns()
        while waiting and not stop.is_set():
            index, utterance = waiting.popleft()
            prepared = await shelf.get(utterance)
            stream = Stream(index, number, prepared, destination, patience, progress)
            streams.append(stream)
            progress.active += 1
            try:
                await stream.run(timetable, start_jitter_ns(cell.seed, index, cell.packet_ms, cell.speed))
            finally:
                progress.active -= 1
                progress.done += stream.outcome is Outcome.OK
                progress.failed += stream.outcome in (Outcome.FAILED, Outcome.REJECTED)
                progress.audio_seconds += prepared.seconds
        busy.append((began_ns, perf_counter_ns()))

    lanes = min(cell.concurrency, len(waiting))
    if lanes < cell.concurrency:
        notes.append(f"only {lanes} of {cell.concurrency} lanes were used: there are no more utterances")
    ramp_seconds = cell.ramp_seconds
    if ramp_seconds is None:
        ramp_seconds = max(cell.packet_ms / 1000, lanes * SMALLEST_RAMP_SECONDS_PER_LANE)
    with _quiet_collector(), _real_time_priority(cell.speed) as priority:
        origin_ns, cpu_seconds = perf_counter_ns(), process_time()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(lane(number, delay))
                for number, delay in enumerate(lane_delays_seconds(lanes, ramp_seconds))
            ]
            watch = group.create_task(_watch(tasks, stop, progress, on_progress))
            await asyncio.wait(tasks)
            watch.cancel()
        wall_seconds, cpu_seconds = (perf_counter_ns() - origin_ns) / NS, process_time() - cpu_seconds
    records = [stream.record(origin_ns) for stream in streams]
    if cell.only_steady and len(busy) == lanes:
        _mark_steady(records, max(began for began, _ in busy) - origin_ns, min(ended for _, ended in busy) - origin_ns)
    notes += _delay_notes(records)
    return Replayed(
        records=sorted(records, key=lambda record: record.stream),
        complete=not stop.is_set() and not waiting,
        origin_ns=origin_ns,
        wall_seconds=wall_seconds,
        generator_cpu_seconds=cpu_seconds,
        priority=priority,
        blocked_writes=sum(stream.blocked_writes for stream in streams),
        notes=notes,
    )


async def _watch(
    tasks: Sequence[asyncio.Task[None]],
    stop: asyncio.Event,
    progress: Progress,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Report progress until told to stop; then cancel the lanes."""
    while not stop.is_set():
        if on_progress is not None:
            on_progress(progress)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROGRESS_SECONDS):
                await stop.wait()
    for task in tasks:
        task.cancel()


async def _warm_up(
    utterances: Sequence[Utterance],
    shelf: Shelf,
    destination: Destination,
    cell: Cell,
    patience: Patience,
    timetable: Timetable,
    stop: asyncio.Event,
) -> None:
    """Replay the shortest utterance a few times, unrecorded: a server that fails it is not worth a run."""
    shortest = min(utterances, key=lambda utterance: utterance.seconds)
    for _ in range(cell.warm_up):
        stream = Stream(-1, -1, await shelf.get(shortest), destination, patience, Progress())
        running, stopped = asyncio.create_task(stream.run(timetable, 0)), asyncio.create_task(stop.wait())
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
                f"the warm-up utterance got no transcript from {_public(destination.url)}: {stream.error}"
            )


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
