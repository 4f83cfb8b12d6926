"""Measures every cell of a study's grid, one server per server-side setting, into a folder that a rerun completes."""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import statistics
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count, groupby
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import msgspec
import pyarrow as pa

from harness import bench, grid, launch, score, store
from harness.arrivals import parse as parse_arrivals
from harness.audio import AudioError
from harness.bench import BenchError, Load, Plan, Watcher
from harness.corpus import Corpus
from harness.corpus.mix import load_mix
from harness.grid import Cell, Setting, Study, StudyError
from harness.impairment import Impairment, parse_stalls
from harness.launch import Server, ServerError
from harness.normalise import normaliser
from harness.replay import ReplayError
from harness.resources import Load as Used
from harness.resources import by_source
from harness.statistics import Distribution, Estimate

STUDIES = Path("reports/studies")
SCHEMA = 1
START_SECONDS = 8.0  # guessed, until a server of the study has been started
CELL_SECONDS = 3.0  # beside the replay: the warm-up's answer, scoring
UNPACED_SPEED = 10.0  # guessed, for forecasts only
LONGEST_REASON = 400


class Done(msgspec.Struct):
    """What became of a cell. ``run`` is its folder under ``runs``; a failed cell may have one too."""

    server: dict[str, Setting]
    harness: dict[str, Setting]
    corpus_sha256: str
    outcome: str  # "ok" or "failed"
    reason: str = ""
    run: str | None = None
    measured: str = ""  # ISO 8601 UTC
    seconds: float = 0.0  # that the cell took, without the start of its server
    start_seconds: float | None = None  # that its server took to start


class Ledger(msgspec.Struct):
    """What cells.json holds: the cells of a folder by their keys, whichever version of the study's file they come from."""

    schema: int = SCHEMA
    cells: dict[str, Done] = {}


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell made ready: its bench, what it replays and how long that takes at least."""

    cell: Cell
    key: str
    plan: Plan
    corpus: Corpus
    seconds: float


@dataclass(slots=True)
class Result:
    """What a study left behind. ``rows`` are those of ``table``, one per cell of the grid."""

    folder: Path
    table: Path
    rows: list[dict[str, Any]]
    complete: bool
    measured: int = 0  # cells measured this time
    notes: list[str] = field(default_factory=list)


def prepare(study: Study, folder: Path, command: Sequence[str] = ()) -> list[Planned]:
    """Every cell of the study with all that it needs, so that nothing can be wrong with the settings of the harness later.

    Raises:
        StudyError: a setting that the harness refuses, with its reason.
        CorpusError: a dataset that is not there.
    """
    corpora: dict[tuple[Setting, Setting], Corpus] = {}
    planned = []
    for cell in study.cells():
        wanted = cell.harness["dataset"], cell.harness["limit"]
        if wanted not in corpora:
            limit = wanted[1] if isinstance(wanted[1], int) else None
            corpora[wanted] = load_mix(str(wanted[0]), limit=limit)
        try:
            plan = _plan(study, cell, folder / "runs", command)
            bench.check_target(plan)
        except (BenchError, ValueError) as error:
            raise StudyError(f"{study.name}: {error}") from error
        replayed = corpora[wanted]
        planned.append(Planned(cell, cell.key(replayed.sha256), plan, replayed, _replay_seconds(replayed, plan)))
    return planned


def _plan(study: Study, cell: Cell, out: Path, command: Sequence[str]) -> Plan:
    asked: dict[str, Any] = dict(cell.harness)
    named = None if asked["normaliser"] == grid.HARNESS_DEFAULTS["normaliser"] else str(asked["normaliser"])
    if named is not None:
        normaliser(named)
    options = "" if asked["driver-options"] == "none" else asked["driver-options"]
    return Plan(
        concurrencies=[asked["concurrency"]],
        delays_ms=[None if asked["delay-ms"] == "server" else asked["delay-ms"]],
        packet_ms=0 if asked["packet-ms"] == "protocol" else asked["packet-ms"],
        speed=float(asked["speed"]),
        seed=asked["seed"],
        repeat=asked["repeat"],
        protocol=asked["protocol"],
        engine=str(cell.server.get("engine", "auto")),
        server_options=cell.options,
        normaliser=named,
        driver_options=dict(pair.split("=", 1) for pair in shlex.split(options)),
        label=study.name,
        out=out,
        command=command,
        load=_load(asked),
    )


def _load(asked: Mapping[str, Any]) -> Load:
    """Raises ValueError for what cannot be."""
    return Load(
        arrivals=parse_arrivals(asked["arrival"]),
        seconds=None if asked["seconds"] == "all" else asked["seconds"],
        think_seconds=asked["think-seconds"],
        duty_cycle=None if asked["duty-cycle"] == "off" else asked["duty-cycle"],
        impairment=Impairment(
            asked["jitter-ms"], asked["burst"], parse_stalls("" if asked["stall"] == "none" else asked["stall"])
        ),
        per_connection=asked["per-connection"],
        retries=asked["retries"],
        generators=asked["generators"],
    )


def _replay_seconds(replayed: Corpus, plan: Plan) -> float:
    """The replay with its warm-up of the shortest utterance."""
    paced = plan if math.isfinite(plan.speed) else replace(plan, speed=UNPACED_SPEED)
    warm_up_seconds = min(utterance.seconds for utterance in replayed.utterances) / paced.speed
    return bench.forecast_seconds(paced, plan.concurrencies[0], replayed) + warm_up_seconds


def read_ledger(folder: Path) -> Ledger:
    """What is done already; nothing in a new folder. Raises StoreError when the file is damaged or newer."""
    path = folder / "cells.json"
    return store.read_json(path, Ledger, SCHEMA) if path.exists() else Ledger()


def pending(planned: Sequence[Planned], ledger: Ledger, folder: Path, *, retry: bool = False) -> list[Planned]:
    """The cells that are still to be measured; with ``retry`` also those that failed and those whose run is invalid."""

    def settled(one: Planned) -> bool:
        done = ledger.cells.get(one.key)
        if done is None:
            return False
        scores = _scores(folder, done)
        if done.outcome == "ok" and scores is None:
            return False  # somebody cleared the run away
        return not retry or (done.outcome == "ok" and scores is not None and scores.valid)

    return [one for one in planned if not settled(one)]


def forecast_seconds(waiting: Sequence[Planned], ledger: Ledger, pace: float = 1.0) -> float:
    """How long cells will take: their audio, and one start for each server, as long as starts took so far."""
    known = [done.start_seconds for done in ledger.cells.values() if done.start_seconds is not None]
    start_seconds = statistics.median(known) if known else START_SECONDS
    servers = len({one.cell.options for one in waiting})
    return servers * start_seconds + pace * sum(one.seconds + CELL_SECONDS for one in waiting)


def run(
    study: Study, planned: Sequence[Planned], folder: Path, watcher: Watcher | None = None, *, retry: bool = False
) -> Result:
    """Measure what is not done yet, and write ``study.parquet`` anew after every cell.

    A cell that fails is kept with its reason, and the study goes on. An interrupt ends it; what is done stays.

    Raises:
        StoreError: the folder holds something else.
        OSError: the folder cannot be written.
    """
    watcher = watcher or Watcher()
    folder.mkdir(parents=True, exist_ok=True)
    ledger = read_ledger(folder)
    store.write_bytes(folder / "study.toml", study.source.encode())
    waiting = pending(planned, ledger, folder, retry=retry)
    measuring = _Measuring(study, planned, folder, ledger, watcher, waiting)
    complete = True
    with _termination_interrupts():
        try:
            for _, group in groupby(waiting, key=lambda one: one.cell.options):
                measuring.on_one_server(deque(group))
        except KeyboardInterrupt:
            complete = False
    return Result(folder, measuring.write_table(), measuring.rows(), complete, measuring.measured)


class _Measuring:
    """One pass over the cells of a study that are still to be measured."""

    def __init__(
        self,
        study: Study,
        planned: Sequence[Planned],
        folder: Path,
        ledger: Ledger,
        watcher: Watcher,
        waiting: Sequence[Planned],
    ) -> None:
        self._study, self._planned, self._folder, self._ledger, self._watcher = study, planned, folder, ledger, watcher
        self._left = list(waiting)
        self._total = len(waiting)
        self._spent_seconds = self._expected_seconds = 0.0
        self._rows: dict[str, dict[str, Any]] = {}
        self.measured = 0

    def on_one_server(self, waiting: deque[Planned]) -> None:
        """Measure cells that want the same server. One that dies is started again for the cells after the one it died in."""
        while waiting:
            options = waiting[0].cell.options
            self._watcher.say(f"starting the server: {' '.join(options) or 'as it comes'}")
            began = monotonic()
            try:
                server = launch.start(options, self._log(waiting[0]), ready_seconds=self._study.ready_seconds)
            except ServerError as error:
                for one in waiting:
                    self._keep(one, "failed", _reason(error), None, 0.0, None)
                return
            start_seconds = round(monotonic() - began, 3)
            with server:
                alive = True
                while waiting and alive:
                    alive = self._measure(waiting.popleft(), server, start_seconds)

    def _measure(self, one: Planned, server: Server, start_seconds: float) -> bool:
        """Measure one cell; whether the server can be used for another one."""
        self._announce(one)
        began = monotonic()

        def keep(outcome: str, reason: str = "", run: str | None = None) -> None:
            self._keep(one, outcome, reason, run, monotonic() - began, start_seconds)

        try:
            outcome = bench.run_on(server, one.plan, one.corpus, self._watcher)
        except ServerError as error:
            keep("failed", _reason(error))
            return False
        except (ReplayError, BenchError, AudioError) as error:
            keep("failed", _reason(error))
            return True
        if not outcome.complete:
            raise KeyboardInterrupt
        folder = outcome.runs[0]
        scores = score.score(folder)
        if scores.outcomes.get("ok", 0):
            keep("ok", run=folder.name)
        else:
            keep("failed", _why_no_transcript(folder), folder.name)
        return True

    def _announce(self, one: Planned) -> None:
        pace = self._spent_seconds / self._expected_seconds if self._expected_seconds else 1.0
        left = forecast_seconds(self._left, self._ledger, max(1.0, pace))
        number = self._total - len(self._left) + 1
        self._watcher.say(
            f"cell {number} of {self._total}, about {duration(left)} left: {described(self._study, one.cell)}"
        )

    def _keep(
        self, one: Planned, outcome: str, reason: str, run: str | None, seconds: float, start_seconds: float | None
    ) -> None:
        self._ledger.cells[one.key] = Done(
            server=dict(one.cell.server),
            harness=dict(one.cell.harness),
            corpus_sha256=one.corpus.sha256,
            outcome=outcome,
            reason=reason,
            run=run,
            measured=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(seconds, 3),
            start_seconds=start_seconds,
        )
        store.write_json(self._folder / "cells.json", self._ledger)
        self._rows.pop(one.key, None)
        self._left.remove(one)
        self.measured += 1
        if outcome == "ok":
            self._spent_seconds += seconds
            self._expected_seconds += one.seconds + CELL_SECONDS
        else:
            self._watcher.say(f"failed: {described(self._study, one.cell)}: {reason}")
        self.write_table()

    def _log(self, one: Planned) -> Path:
        """A log of its own for every server that is started, numbered by the setting's place in the grid: the one of a
        server that died is worth keeping."""
        number = list(dict.fromkeys(planned.cell.options for planned in self._planned)).index(one.cell.options) + 1
        folder = self._folder / "servers"
        names = (f"{number:03d}{f'-{again}' if again > 1 else ''}.log" for again in count(1))
        return next(folder / name for name in names if not (folder / name).exists())

    def rows(self) -> list[dict[str, Any]]:
        """One row per cell of the grid."""
        for one in self._planned:
            if one.key not in self._rows:
                self._rows[one.key] = row(self._study, one, self._ledger.cells.get(one.key), self._folder)
        return [self._rows[one.key] for one in self._planned]

    def write_table(self) -> Path:
        """Write ``study.parquet``."""
        path = self._folder / "study.parquet"
        rows = self.rows()
        schema = _schema(rows)
        texts = {name for name in rows[0] if "." in name and schema.field(name).type == pa.string()}
        store.write_rows(path, [{**one, **{name: _as_text(one[name]) for name in texts}} for one in rows], schema)
        return path


@contextlib.contextmanager
def _termination_interrupts() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl+C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # nobody else may listen to signals
        yield
        return
    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _reason(error: Exception) -> str:
    """An error in a line: what failed, and the last thing that the server had to say."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if len(lines) < 2 else f"{lines[0].partition('. The end of ')[0]}: {lines[-1]}"
    return text if len(text) <= LONGEST_REASON else f"{text[: LONGEST_REASON - 3]}..."


def _why_no_transcript(folder: Path) -> str:
    errors = Counter(found["error"] or found["outcome"] for found in store.read_rows(folder / "utterances.parquet"))
    common, times = errors.most_common(1)[0]
    return f"no stream got a transcript; {times} of {errors.total()} ended with: {common}"[:LONGEST_REASON]


def described(study: Study, cell: Cell) -> str:
    """A cell by the settings that vary."""
    parts = {"server": cell.server, "harness": cell.harness}
    named = [(place.partition(".")[2], parts[place.partition(".")[0]]) for place in study.varied]
    return ", ".join(f"{name} {grid.text(of[name])}" for name, of in named) or "the only one"


def duration(seconds: float) -> str:
    """A time for people: seconds below two minutes, then minutes, then hours."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


# ---- the table -------------------------------------------------------------------------------------------------

QUANTILES: Mapping[str, tuple[str, str]] = {
    "first_token_p50": ("first_token_from_onset", "p50"),
    "first_token_p95": ("first_token_from_onset", "p95"),
    "word_latency_p50": ("word_emission_latency", "p50"),
    "word_latency_p95": ("word_emission_latency", "p95"),
    "word_latency_p99": ("word_emission_latency", "p99"),
    "time_to_final_p50": ("time_to_final", "p50"),
    "time_to_final_p95": ("time_to_final", "p95"),
    "excess_p50": ("excess_latency", "p50"),
    "excess_p95": ("excess_latency", "p95"),
    "drift_p50": ("drift", "p50"),
    "flush_latency_p50": ("flush_latency", "p50"),
    "pacing_p99": ("pacing", "p99"),
}
"""Columns of the table, in seconds (drift: seconds per second), with ``_low`` and ``_high`` beside each."""

COUNTS = (
    "stalls", "lost_tail_words", "dropped_seconds", "errors", "rejected", "empty", "streams_falling_behind",
    "audio_seconds", "audio_seconds_per_second",
)  # fmt: skip
RATES = ("wer", "cer")
SYSTEM = (
    "server_cpu_percent",  # of one core, mean
    "server_cpu_seconds_per_audio_second",
    "server_rss_bytes",  # highest
    "gpu_percent",  # mean of the busiest
    "gpu_memory_bytes",  # highest
    "gpu_watts",
)


def row(study: Study, one: Planned, done: Done | None, folder: Path) -> dict[str, Any]:
    """A cell as a row: its settings, what became of it and its scores, ``None`` where there is nothing."""
    found: dict[str, Any] = {"study": study.name}
    found |= {f"server.{name}": one.cell.server.get(name) for name in study.server}
    found |= {f"harness.{name}": _column_value(name, value) for name, value in one.cell.harness.items()}
    found |= {"cell": one.key, "corpus_sha256": one.corpus.sha256}
    found |= {"outcome": "not measured", "reason": ""} if done is None else _told(done)
    scores = None if done is None else _scores(folder, done)
    return found if done is None or scores is None else found | measures(scores, folder / "runs" / str(done.run))


def _column_value(name: str, value: Setting) -> Setting | None:
    """The words that ask for no value of ours are no value in a column of numbers."""
    if name == "speed":
        return float(value)
    return None if value == grid.WORDS.get(name) else value


def _told(done: Done) -> dict[str, Any]:
    names = ("outcome", "reason", "run", "measured", "seconds", "start_seconds")
    return {name: getattr(done, name) for name in names}


def _scores(folder: Path, done: Done) -> score.Scores | None:
    if done.run is None or not (folder / "runs" / done.run / "scores.json").exists():
        return None
    return score.read_scores(folder / "runs" / done.run)


def measures(scores: score.Scores, run_folder: Path) -> dict[str, Any]:
    """The headline figures of a run, flat: what it was, rates and quantiles with their intervals, counts, what the server used."""
    config = store.read_run(run_folder).config
    found: dict[str, Any] = {
        "engine": config.engine,
        "model": config.model,
        "caveat": config.caveat,
        "valid": scores.valid,
        "invalid_because": "; ".join(scores.invalid_because),
        "complete": scores.complete,
        "headline": scores.accuracy.headline,
        "streams": scores.streams,
        "words": scores.accuracy.reference_words,
    }
    for name in RATES:
        found |= _with_interval(name, getattr(scores.accuracy, name))
    measured: dict[str, Distribution] = {**scores.latency, "pacing": scores.pacing}
    for column, (measure, quantile) in QUANTILES.items():
        if measure in measured:
            found |= _with_interval(column, getattr(measured[measure], quantile))
    found |= {name: scores.counts.get(name) for name in COUNTS}
    return found | _system(by_source(store.read_system(run_folder)), found["audio_seconds_per_second"])


def _with_interval(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _system(loads: Mapping[str, Used], audio_per_second: float | None) -> dict[str, Any]:
    """What server and GPUs used while the cell ran; nothing where nothing was sampled."""
    server = loads.get("server", Used(0))
    gpus = [load for source, load in loads.items() if source.startswith("gpu")]
    mean = server.cpu_percent_mean
    watts = [load.gpu_watts_mean for load in gpus if load.gpu_watts_mean is not None]
    return {
        "server_cpu_percent": mean,
        "server_cpu_seconds_per_audio_second": mean / 100 / audio_per_second if mean and audio_per_second else None,
        "server_rss_bytes": server.rss_bytes_max,
        "gpu_percent": max((load.gpu_percent_mean for load in gpus if load.gpu_percent_mean is not None), default=None),
        "gpu_memory_bytes": max(
            (load.gpu_memory_bytes_max for load in gpus if load.gpu_memory_bytes_max is not None), default=None
        ),
        "gpu_watts": sum(watts) if watts else None,
    }


def _schema(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Settings in the type of their values, texts where these differ; scores as numbers even if no cell has one yet."""
    settings = [(name, _setting_type([one[name] for one in rows])) for name in rows[0] if "." in name]
    measures = [*RATES, *QUANTILES]
    return pa.schema(
        [
            ("study", pa.string()),
            *settings,
            *((name, pa.string()) for name in ("cell", "corpus_sha256", "outcome", "reason", "run", "measured")),
            ("seconds", pa.float64()),
            ("start_seconds", pa.float64()),
            *((name, pa.string()) for name in ("engine", "model", "caveat", "headline", "invalid_because")),
            ("valid", pa.bool_()),
            ("complete", pa.bool_()),
            ("streams", pa.int64()),
            ("words", pa.int64()),
            *((f"{name}{end}", pa.float64()) for name in measures for end in ("", "_low", "_high")),
            *((name, pa.float64()) for name in (*COUNTS, *SYSTEM)),
        ]
    )


def _as_text(value: Setting | None) -> str | None:
    return None if value is None else grid.text(value)


def _setting_type(values: Sequence[Setting | None]) -> Any:
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int} or not kinds:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()
