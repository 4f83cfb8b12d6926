"""Measures the rungs that the search asks for, each a run folder that is kept, so that a search goes on where it was left."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import msgspec

from harness import bench, environment, launch, score, store
from harness.bench import Load, Measured, Plan, Watcher
from harness.capacity.limits import Judgement, Limits, judge
from harness.capacity.saturation import Saturation
from harness.capacity.search import Answer, Bounds, Purpose, Trial, Verdict, Wanted, next_step
from harness.corpus import Corpus
from harness.launch import Server, ServerError
from harness.replay import ReplayError

SCHEMA = 1
LONGEST_REASON = 400


class CapacityError(Exception):
    """The search cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Search:
    """What is asked for. ``plan`` holds everything but the number of streams; its first delay is used. ``seconds`` is how long streams
    begin in a rung, ``soak_seconds`` in the soak.
    """

    plan: Plan
    limits: Limits
    bounds: Bounds = Bounds()
    seconds: float = 60.0
    soak_seconds: float | None = None

    @property
    def delay_ms(self) -> int | None:
        """The transcription delay that is asked for; ``None``: the server's own."""
        return self.plan.delays_ms[0]

    def identity(self, corpus: Corpus) -> dict[str, Any]:
        """What has to be the same for a rung to be used again. Limits are not part of it: they are held against what was measured."""
        plan = self.plan
        return {
            "dataset": corpus.name,
            "corpus_sha256": corpus.sha256,
            "engine": plan.engine,
            "target": plan.target and plan.target.partition("?")[0],  # a query may hold a key
            "model": plan.model,
            "protocol": plan.protocol,
            "driver_options": dict(plan.driver_options),
            "delay_ms": self.delay_ms,
            "packet_ms": plan.packet_ms,
            "seed": plan.seed,
            "seconds": self.seconds,
            "normaliser": plan.normaliser,
            "server_options": list(plan.server_options),
            "load": plan.load.described(),
        }


class Rung(msgspec.Struct):
    """One measurement. ``run`` is its folder under ``runs``, ``None`` where the server did not get that far, with the ``reason``."""

    streams: int
    purpose: str
    run: str | None
    measured: str  # ISO 8601 UTC
    seconds: float  # that it took
    reason: str = ""
    stopped_because: str = ""  # why it was ended early
    stopped_under: dict[str, float | None] = {}  # the limits in force then


class Ledger(msgspec.Struct):
    """What rungs.json holds."""

    identity: dict[str, Any]
    schema: int = SCHEMA
    commit: str = ""
    rungs: list[Rung] = []


@dataclass(frozen=True, slots=True)
class Judged:
    """A rung and what became of it."""

    rung: Rung
    judgement: Judgement


@dataclass(slots=True)
class Result:
    """What a search left behind. ``answer`` is ``None`` when it was interrupted."""

    folder: Path
    search: Search
    answer: Answer | None
    rungs: list[Judged]
    place: str  # where it was measured, in words
    measured: int = 0  # rungs measured this time
    notes: list[str] = field(default_factory=list)


def read_ledger(folder: Path, identity: Mapping[str, Any]) -> Ledger:
    """What was measured already; nothing in a new folder.

    Raises:
        CapacityError: the folder belongs to a search with other settings.
        StoreError: the file is damaged or newer.
    """
    path = folder / "rungs.json"
    if not path.exists():
        return Ledger(dict(identity))
    ledger = store.read_json(path, Ledger, SCHEMA)
    other = [name for name in identity if ledger.identity.get(name) != identity[name]]
    if other:
        told = ", ".join(f"{name} was {ledger.identity.get(name)!r} and is {identity[name]!r}" for name in other)
        raise CapacityError(f"{folder} holds a search with other settings ({told}); choose another folder with --out")
    return ledger


def judged(ledger: Ledger, folder: Path, limits: Limits) -> list[Judged]:
    """Every rung that can still be used, held against the limits.

    A rung is measured again when its run is gone, or when it was ended early under limits that are not in force any more.
    """
    kept = [rung for rung in ledger.rungs if not rung.stopped_because or rung.stopped_under == limits.described()]
    kept = [rung for rung in kept if rung.run is None or (folder / "runs" / rung.run / "scores.json").exists()]
    idle = next((rung for rung in kept if rung.purpose == Purpose.IDLE and rung.run is not None), None)
    idle_rows = None if idle is None else store.read_rows(folder / "runs" / str(idle.run) / "utterances.parquet")
    found = []
    for rung in kept:
        if rung.run is None:
            found.append(Judged(rung, Judgement(Verdict.FAILS, (rung.reason,), {})))
            continue
        run = folder / "runs" / rung.run
        rows = None if rung is idle else idle_rows
        judgement = judge(
            score.read_scores(run),
            store.read_rows(run / "utterances.parquet"),
            rows,
            limits,
            saturated=rung.stopped_because,
        )
        found.append(Judged(rung, judgement))
    return found


def trials(rungs: Sequence[Judged]) -> list[Trial]:
    """The rungs as the search sees them."""
    return [Trial(one.rung.streams, one.judgement.verdict, one.rung.purpose == Purpose.SOAK) for one in rungs]


def measure(
    search: Search,
    corpus: Corpus,
    folder: Path,
    watcher: Watcher | None = None,
    *,
    decide: Callable[[Sequence[Trial], Bounds], Wanted | Answer] = next_step,
) -> Result:
    """Search, from whatever ``folder`` already holds. ``decide`` says what is measured next.

    Raises:
        BenchError: the driver cannot do what is asked.
        CapacityError: not even one stream gets through, or the folder holds another search.
        LimitError: a limit cannot be judged on this dataset.
        ServerError: the server did not start.
        StoreError: the folder holds something that cannot be read.
    """
    watcher = watcher or Watcher()
    bench.check_target(search.plan)
    longest = max(utterance.seconds for utterance in corpus.utterances)
    if search.seconds < longest:
        raise CapacityError(
            f"rungs of {search.seconds:g} s are too short for utterances of up to {longest:.0f} s: no stream would begin and "
            f"end while all lanes are busy; choose --seconds {2 * longest:.0f} or more"
        )
    folder.mkdir(parents=True, exist_ok=True)
    ledger = read_ledger(folder, search.identity(corpus))
    told = environment.describe()
    commit = str(told.get("git", {}).get("commit", ""))
    notes = []
    if ledger.rungs and ledger.commit != commit:
        notes.append("some rungs were measured at another revision of the source")
    ledger.commit = ledger.commit or commit
    measured = 0
    answer: Answer | None = None
    with _Measuring(search, corpus, folder, ledger, watcher) as measuring, contextlib.suppress(KeyboardInterrupt):
        while True:
            rungs = judged(ledger, folder, search.limits)
            step = decide(trials(rungs), search.bounds)
            if isinstance(step, Answer):
                answer = step
                break
            watcher.say(f"{_told(step)}, about {measuring.seconds(step):.0f} s")
            measuring.rung(step)
            measured += 1
            last = judged(ledger, folder, search.limits)[-1].judgement
            watcher.say(f"  {step.streams}: {last.verdict}{': ' if last.reasons else ''}{'; '.join(last.reasons)}")
    return Result(folder, search, answer, judged(ledger, folder, search.limits), _place(search, told), measured, notes)


def _told(step: Wanted) -> str:
    streams = f"{step.streams} stream{'s' if step.streams != 1 else ''}"
    return {
        Purpose.IDLE: f"{streams}: the idle baseline",
        Purpose.SEARCH: streams,
        Purpose.CONFIRM: f"{streams} once more",
        Purpose.SOAK: f"{streams}: soak",
    }[step.purpose]


def _place(search: Search, told: Mapping[str, Any]) -> str:
    """The machine under test in words: ours, unless the server is somebody else's."""
    if search.plan.target is not None:
        return search.plan.target.partition("?")[0]
    processor = told.get("gpu") or told.get("cpu") or ""
    return f"{told.get('machine', 'this machine')}{f' ({processor})' if processor else ''}"


class _Measuring:
    """The server under test, started when the first rung is to be measured, and again when it has died."""

    def __init__(self, search: Search, corpus: Corpus, folder: Path, ledger: Ledger, watcher: Watcher) -> None:
        self._search, self._corpus, self._folder = search, corpus, folder
        self._ledger, self._watcher = ledger, watcher
        self._measured: Measured | None = None
        self._server: Server | None = None

    def __enter__(self) -> _Measuring:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.stop()
        self._server = self._measured = None

    def _target(self) -> Measured:
        if self._measured is None:
            plan = self._search.plan
            if plan.target is not None:
                self._measured = bench.target(plan)
            else:
                self._watcher.say(f"starting the server (engine {plan.engine})")
                log = next(path for path in _numbered(self._folder / "servers") if not path.exists())
                self._server = launch.start(["--engine", plan.engine, *plan.server_options], log)
                self._measured = bench.started(self._server, plan)
        return self._measured

    def seconds(self, step: Wanted) -> float:
        """About how long a rung takes."""
        plan = self.plan_of(step)
        return bench.forecast_seconds(plan, step.streams, self._corpus) + min(
            one.seconds for one in self._corpus.utterances
        )

    def plan_of(self, step: Wanted) -> Plan:
        """One stream replays every utterance once; all others go on for a time, and are scored while all lanes are busy."""
        search = self._search
        number = sum(rung.streams == step.streams for rung in self._ledger.rungs)
        load: Load = search.plan.load
        if step.purpose is not Purpose.IDLE:
            seconds = search.soak_seconds if step.purpose is Purpose.SOAK and search.soak_seconds else search.seconds
            load = replace(load, seconds=seconds, only_steady=True)
        return replace(
            search.plan,
            concurrencies=[step.streams],
            delays_ms=[search.delay_ms],
            seed=search.plan.seed + number,
            repeat=1,
            out=self._folder / "runs",
            label=f"capacity: {step.purpose}",
            load=load,
        )

    def rung(self, step: Wanted) -> None:
        """Measure it and write it into the ledger. Raises KeyboardInterrupt when it was interrupted; then nothing is written."""
        began, measured = monotonic(), self._target()
        plan = self.plan_of(step)
        run: Path | None = None
        reason = ""
        try:
            outcome = bench.run_against(measured, plan, self._corpus, self._watcher, watch=self._watch(plan, step))
        except (ServerError, ReplayError) as error:
            if step.purpose is Purpose.IDLE:
                raise
            reason = str(error).splitlines()[0][:LONGEST_REASON]
            self._stop()
        else:
            if not outcome.complete or not outcome.runs:
                raise KeyboardInterrupt
            run = outcome.runs[0]
            score.score(run)
        stopped = "" if run is None else str(store.read_run(run).generator.get("stopped_because", ""))
        self._ledger.rungs.append(
            Rung(
                streams=step.streams,
                purpose=step.purpose.value,
                run=None if run is None else run.name,
                measured=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(monotonic() - began, 3),
                reason=reason,
                stopped_because=stopped,
                stopped_under=self._search.limits.described() if stopped else {},
            )
        )
        store.write_json(self._folder / "rungs.json", self._ledger)
        if step.purpose is Purpose.IDLE and run is not None and not score.read_scores(run).outcomes.get("ok", 0):
            raise CapacityError(f"a single stream gets no transcript; see {run}")

    def _watch(self, plan: Plan, step: Wanted) -> Saturation | None:
        if step.purpose is Purpose.IDLE or plan.load.seconds is None:
            return None
        limits, generators = self._search.limits, min(plan.load.generators, step.streams)
        mean = self._corpus.seconds / len(self._corpus.utterances)
        finals = [seconds for name, seconds in limits.latencies.items() if name in ("final_p95", "final_p99")]
        expected = step.streams * max(1.0, plan.load.seconds / mean) / generators
        return Saturation(min(finals, default=None), limits.errors, expected)


def _numbered(folder: Path) -> Iterator[Path]:
    return (folder / f"{number:03d}.log" for number in range(1, 100_000))
