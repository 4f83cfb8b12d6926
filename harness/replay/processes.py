"""Replays a corpus from several generator processes at once, each its share of the streams, on one timeline."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection as Pipe
from time import perf_counter_ns
from typing import Any

from harness.arrivals import Closed
from harness.corpus import Utterance
from harness.drivers.base import Driver
from harness.pacing import NS
from harness.replay.carrying import Destination
from harness.replay.exchange import Patience, Progress
from harness.replay.jobs import Share
from harness.replay.loop import new_event_loop
from harness.replay.replaying import Cell, Generator, LoadAudio, Replayed, ReplayError, Watch, finished

MOST_PROCESSES = 64
CLOCK_ROUNDS = 32
HEAD_START_SECONDS = 0.25
START_SECONDS = 300.0  # for a process to import and to make its audio ready
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """How far a process' clock is ahead of ours, by the exchange with the shortest round trip; the truth lies within the uncertainty."""

    offset_ns: int
    uncertainty_ns: int

    @property
    def correction_ns(self) -> int:
        """What to add to our clock for theirs: nothing, where the two may well be the same clock."""
        return self.offset_ns if abs(self.offset_ns) > self.uncertainty_ns else 0


def clock_offset(exchanges: Sequence[tuple[int, int, int]]) -> ClockOffset:
    """From exchanges ``(asked, answered, heard)``: the first and last on our clock, the middle one on theirs (Cristian 1989)."""
    asked, answered, heard = min(exchanges, key=lambda exchange: exchange[2] - exchange[0])
    return ClockOffset(answered - (asked + heard) // 2, (heard - asked + 1) // 2)


@dataclass(frozen=True, slots=True)
class Task:
    """Everything that a generator process has to know. Goes to it by pickle."""

    utterances: Sequence[Utterance]
    destination: Destination
    cell: Cell
    load: LoadAudio
    share: Share
    patience: Patience | None
    watch: Watch | None


async def replay_by_processes(
    utterances: Sequence[Utterance],
    destination: Destination,
    cell: Cell,
    load: LoadAudio,
    processes: int,
    *,
    patience: Patience | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
    watch: Watch | None = None,
    when_warm: Callable[[], None] | None = None,
) -> Replayed:
    """As `replay`, from ``processes`` processes that begin together. What is replayed is the same as from one process; with closed arrivals
    each process has its own share of the utterances, so the lanes run dry less evenly. A watch sees the streams of one process.
    ``when_warm`` is called once, after the only warm-up.

    Raises:
        ReplayError: there is nothing to replay, the warm-up did not get through, a process died, or the driver cannot be handed to one.
        ValueError: a number of processes outside 1..64.
    """
    if not 1 <= processes <= MOST_PROCESSES:
        raise ValueError(f"{processes} generator processes: choose 1 to {MOST_PROCESSES}")
    if isinstance(cell.arrivals, Closed):
        processes = min(processes, cell.concurrency)
    stop = stop or asyncio.Event()
    _check_portable(destination.driver)
    await Generator(utterances, destination, cell, load, patience=patience).warm_up(stop)
    if when_warm is not None:
        await asyncio.to_thread(when_warm)
    children: list[_Child] = []
    try:
        for number in range(processes):
            share = Share(number, processes)
            children.append(_Child(Task(utterances, destination, cell, load, share, patience, watch)))
        parts, origin_ns = await _conduct(children, on_progress, stop)
    finally:
        for child in children:
            child.end()
    return finished(_merged(parts, origin_ns, [child.clock for child in children]), utterances, cell)


def _check_portable(driver: Driver) -> None:
    """Drivers of other packages may hold anything."""
    try:
        pickle.dumps(driver)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise ReplayError(
            f"the driver {driver.name!r} cannot be handed to other generator processes ({error}); use --generators 1"
        ) from error


class _Child:
    """A generator process, as its parent sees it."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit an event loop in full swing
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_generate, args=(theirs,), daemon=True, name="generator")
        self._process.start()
        theirs.close()
        self._sending = threading.Lock()
        self.send(task)
        self.progress = Progress()
        self.clock = ClockOffset(0, 0)

    def send(self, message: object) -> None:
        """Tell it something; what a dead process misses is found out when it is asked for its results."""
        with self._sending, contextlib.suppress(OSError):
            self._pipe.send(message)

    def receive(self, seconds: float | None = None) -> Any:
        """The next thing it says. Raises ReplayError when it has died, or said nothing in so many seconds."""
        try:
            if not self._pipe.poll(seconds):
                raise ReplayError(f"a generator process said nothing for {seconds:g} s")
            message = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(5)
            raise ReplayError(f"a generator process died (status {self._process.exitcode})") from error
        if isinstance(message, ReplayError):
            raise message
        return message

    def make_ready(self) -> None:
        """Wait until it is, and hold its clock against ours."""
        self.receive(START_SECONDS)
        exchanges = []
        for _ in range(CLOCK_ROUNDS):
            asked = perf_counter_ns()
            self.send("time")
            answered = self.receive(START_SECONDS)
            exchanges.append((asked, answered, perf_counter_ns()))
        self.clock = clock_offset(exchanges)

    def results(self) -> Replayed:
        """Listen until it is through."""
        while True:
            message = self.receive()
            if isinstance(message, Replayed):
                return message
            self.progress = message

    def end(self) -> None:
        """Make sure that it is gone."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join(10)


async def _conduct(
    children: Sequence[_Child], on_progress: Callable[[Progress], None] | None, stop: asyncio.Event
) -> tuple[list[Replayed], int]:
    await asyncio.gather(*(asyncio.to_thread(child.make_ready) for child in children))
    origin_ns = perf_counter_ns() + round(HEAD_START_SECONDS * NS)
    for child in children:
        child.send(origin_ns + child.clock.correction_ns)
    listening = [asyncio.create_task(asyncio.to_thread(child.results)) for child in children]
    told = False
    stopping = asyncio.create_task(stop.wait())
    try:
        while waiting := [task for task in listening if not task.done()]:
            await asyncio.wait(
                [*waiting, *([] if told else [stopping])], timeout=1.0, return_when=asyncio.FIRST_COMPLETED
            )
            early = any(task.done() and not task.exception() and task.result().stopped_because for task in listening)
            failed = any(task.done() and task.exception() for task in listening)
            if not told and (stop.is_set() or early or failed):
                told = True
                for child in children:
                    child.send("stop")
            if on_progress is not None:
                on_progress(_summed([child.progress for child in children]))
    finally:
        stopping.cancel()
    return [await task for task in listening], origin_ns


def _summed(parts: Sequence[Progress]) -> Progress:
    total = Progress()
    for field in fields(Progress):
        values = [getattr(part, field.name) for part in parts]
        setattr(total, field.name, max(values) if field.name == "worst_lateness_seconds" else sum(values))
    return total


def _merged(parts: Sequence[Replayed], origin_ns: int, clocks: Sequence[ClockOffset]) -> Replayed:
    """One replay of all: each part counts from the same moment, told to it on its own clock."""
    priorities = sorted({part.priority for part in parts})
    return Replayed(
        records=sorted((record for part in parts for record in part.records), key=lambda record: record.stream),
        complete=all(part.complete for part in parts),
        origin_ns=origin_ns,
        wall_seconds=max(part.wall_seconds for part in parts),
        generator_cpu_seconds=sum(part.generator_cpu_seconds for part in parts),
        priority=" and ".join(priorities),
        blocked_writes=sum(part.blocked_writes for part in parts),
        notes=list(dict.fromkeys(note for part in parts for note in part.notes)),
        retries=sum(part.retries for part in parts),
        stopped_because=next((part.stopped_because for part in parts if part.stopped_because), ""),
        busy_ns=[busy for part in parts for busy in part.busy_ns],
        clocks=[
            {
                "offset_ns": clock.offset_ns,
                "uncertainty_ns": clock.uncertainty_ns,
                "corrected_ns": clock.correction_ns,
                "streams": len(part.records),
                "cpu_seconds": round(part.generator_cpu_seconds, 3),
            }
            for clock, part in zip(clocks, parts, strict=True)
        ],
    )


# ---- in the process --------------------------------------------------------------------------------------------


def _generate(pipe: Pipe) -> None:
    """The life of a generator process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and tells us
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        try:
            task: Task = pipe.recv()
            result: Replayed | ReplayError = runner.run(_take_part(task, pipe))
        except ReplayError as error:
            result = error
        except (EOFError, ConnectionError):
            return  # the parent is gone
    gc.enable()
    with contextlib.suppress(OSError):
        pipe.send(result)


async def _take_part(task: Task, pipe: Pipe) -> Replayed:
    generator = Generator(
        task.utterances,
        task.destination,
        task.cell,
        task.load,
        share=task.share,
        patience=task.patience,
        watch=task.watch,
    )
    pipe.send("ready")
    while (message := pipe.recv()) == "time":
        pipe.send(perf_counter_ns())
    if message == "stop":
        raise ReplayError("stopped before it began")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def heard() -> None:
        with contextlib.suppress(EOFError, OSError):  # the parent says stop, or is gone
            pipe.recv()
        loop.remove_reader(pipe.fileno())
        stop.set()

    loop.add_reader(pipe.fileno(), heard)
    try:
        return await generator.run(stop=stop, on_progress=pipe.send, origin_ns=message)
    finally:
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(pipe.fileno())
