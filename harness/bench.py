"""One bench: a grid of cells replayed against one server, each kept as a run folder, scored and reported together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from harness import audio, environment, store
from harness.alignment import with_word_times
from harness.corpus import Corpus, Utterance
from harness.drivers import DRIVERS
from harness.drivers.base import Request, address
from harness.launch import Server, start
from harness.replay import Cell, Replayed, ReplayError, replay
from harness.replay.loop import new_event_loop
from harness.replay.stream import Destination, Progress
from harness.system import Sampler

ASK_SECONDS = 5.0
LARGEST_ANSWER_BYTES = 8 * 1024 * 1024
WORST_VALID_LATENESS_SECONDS = 0.020


class BenchError(Exception):
    """The bench cannot be run as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. A delay of ``None`` is the server's own. Without ``target`` a server is started for the bench."""

    concurrencies: Sequence[int] = (8,)
    delays_ms: Sequence[int | None] = (160, 480, 2400)
    packet_ms: int = 80
    speed: float = 1.0
    seed: int = 0
    repeat: int = 1
    warm_up: int = 1  # utterances before each cell
    protocol: str = "yap"
    engine: str = "auto"
    target: str | None = None
    api_key: str | None = None
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    server_options: Sequence[str] = ()
    normaliser: str | None = None
    label: str = ""
    out: Path = Path("reports/runs")
    command: Sequence[str] = ()  # as given, for the record; without the key

    def __post_init__(self) -> None:
        if self.protocol not in DRIVERS:
            raise BenchError(f"unknown protocol {self.protocol!r}; there are {', '.join(DRIVERS)}")
        if not self.concurrencies or not self.delays_ms:
            raise BenchError("name at least one concurrency and one delay")
        for concurrency in self.concurrencies:
            if not 1 <= concurrency <= 20_000:
                raise BenchError(f"concurrency {concurrency}: choose 1 to 20000")
        for delay_ms in self.delays_ms:
            if delay_ms is not None and not 0 <= delay_ms <= 60_000:
                raise BenchError(f"delay {delay_ms} ms: choose 0 to 60000, or 'server' for the server's own")
        if not self.speed > 0:
            raise BenchError(f"speed {self.speed}: choose a positive number (1 is real time, inf as fast as possible)")


@dataclass(frozen=True, slots=True)
class Measured:
    """The server under test, as far as it says what it is."""

    url: str
    engine: str = "unknown"
    model: str = ""
    caveat: str = ""
    api_key: str | None = None
    server: Server | None = None


@dataclass(slots=True)
class Outcome:
    """What a bench left behind. ``folder`` holds what belongs to all cells: the server's log and the report."""

    folder: Path
    runs: list[Path] = field(default_factory=list)
    complete: bool = True
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Watcher:
    """Whom a bench tells how it goes."""

    say: Callable[[str], None] = lambda _: None
    begin: Callable[[str, int], None] = lambda _label, _total: None
    progress: Callable[[Progress], None] = lambda _: None
    end: Callable[[], None] = lambda: None


def default_dataset(plan: Plan) -> str:
    """What to replay when nobody says: sentences of the small model's own vocabulary where the server will serve that."""
    own_model = os.environ.get("VOXTRAL_MODEL_DIR") or any(
        option.startswith("--model-dir") for option in plan.server_options
    )
    cuda_or_voxtral = Path("/dev/nvidiactl").exists() or Path("models/voxtral/params.json").exists()
    small = plan.engine == "vllm" and plan.target is None and not own_model and not cuda_or_voxtral
    return "spoken-numbers" if small else "spoken-en"


def run(plan: Plan, corpus: Corpus, watcher: Watcher | None = None) -> Outcome:
    """Replay ``corpus`` once per delay and concurrency of the plan, and keep each as a run folder under ``plan.out``.

    An interrupt ends the bench early; what was recorded until then is kept and marked incomplete.

    Raises:
        BenchError: the plan cannot be carried out.
        ServerError: the server did not start, or died.
        ReplayError: the server transcribes nothing.
    """
    watcher = watcher or Watcher()
    try:
        address(DRIVERS[plan.protocol], plan.target or "ws://127.0.0.1", plan.api_key)
    except ValueError as error:
        raise BenchError(str(error)) from None
    corpus = with_word_times(corpus, watcher.say).corpus
    outcome = Outcome(_folder(plan, corpus))
    try:
        with _Interrupts() as interrupts, _measured(plan, outcome.folder, watcher) as measured:
            _run_cells(plan, corpus, measured, watcher, interrupts, outcome)
    except BaseException:
        if not any(outcome.folder.iterdir()):
            outcome.folder.rmdir()
        raise
    return outcome


def run_on(server: Server, plan: Plan, corpus: Corpus, watcher: Watcher | None = None) -> Outcome:
    """As `run`, on a server that somebody else has started and will end. There is no folder but those of the runs.

    Raises:
        ServerError: the server died.
        ReplayError: the server transcribes nothing.
    """
    watcher, outcome = watcher or Watcher(), Outcome(plan.out)
    corpus = with_word_times(corpus, watcher.say).corpus
    with _Interrupts() as interrupts:
        _run_cells(plan, corpus, _started(server, plan), watcher, interrupts, outcome)
    return outcome


def _run_cells(
    plan: Plan, corpus: Corpus, measured: Measured, watcher: Watcher, interrupts: _Interrupts, outcome: Outcome
) -> None:
    interrupts.server = measured.server
    for delay_ms, concurrency in product(plan.delays_ms, plan.concurrencies):
        _run_cell(plan, corpus, measured, concurrency, delay_ms, watcher, interrupts, outcome)
        if not outcome.complete:
            outcome.notes.append("interrupted: what was not replayed until then is missing")
            break


def _folder(plan: Plan, corpus: Corpus) -> Path:
    """A new folder for what belongs to all cells."""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    plan.out.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = plan.out / (f"{moment}-bench-{corpus.name}" + (f"-{number}" if number > 1 else ""))
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise BenchError(f"{plan.out} has a thousand benches of this second; clear some away")


@contextlib.contextmanager
def _measured(plan: Plan, folder: Path, watcher: Watcher) -> Iterator[Measured]:
    """The server to measure: the target, or one that lives as long as the bench."""
    if plan.target is not None:
        yield _ask(plan)
        return
    watcher.say(f"starting the server (engine {plan.engine})")
    with start(["--engine", plan.engine, *plan.server_options], folder / "server.log") as server:
        told = server.announcement
        watcher.say(f"serving {told.engine} ({told.model}) at {server.url}")
        yield _started(server, plan)


def _started(server: Server, plan: Plan) -> Measured:
    told = server.announcement
    return Measured(server.url, told.engine, plan.model or told.model, told.caveat, server.api_key, server)


def _ask(plan: Plan) -> Measured:
    """What a target says about itself at ``/v1/models``; few servers say much, and none has to."""
    assert plan.target is not None
    url, _ = address(DRIVERS[plan.protocol], plan.target, None)
    answer = _get(url, "/v1/models", plan)
    try:
        models = msgspec.json.decode(answer or b"", type=_Models).data
    except msgspec.DecodeError:
        models = []
    found = next((model for model in models if plan.model in (None, model.id)), models[0] if models else _Model())
    name = plan.model or found.id
    if not name and plan.protocol == "realtime":
        raise BenchError(f"{plan.target} does not say at /v1/models which model it serves; name it with --model")
    return Measured(url, found.engine, name, found.caveat, plan.api_key)


class _Model(msgspec.Struct):
    id: str = ""
    engine: str = "unknown"
    caveat: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


def _get(url: str, path: str, plan: Plan) -> bytes | None:
    """A small answer of the server's HTTP side, or ``None``."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    headers = {**plan.headers, **({"Authorization": f"Bearer {plan.api_key}"} if plan.api_key else {})}
    try:
        answer = httpx.get(f"{scheme}://{parts.netloc}{path}", headers=headers, timeout=ASK_SECONDS, trust_env=False)
    except httpx.HTTPError:
        return None
    return answer.content if answer.status_code == 200 and len(answer.content) <= LARGEST_ANSWER_BYTES else None


def _run_cell(
    plan: Plan,
    corpus: Corpus,
    measured: Measured,
    concurrency: int,
    delay_ms: int | None,
    watcher: Watcher,
    interrupts: _Interrupts,
    outcome: Outcome,
) -> None:
    driver = DRIVERS[plan.protocol]
    url, headers = address(driver, measured.url, measured.api_key)
    destination = Destination(driver, url, {**headers, **plan.headers}, Request(measured.model or None, delay_ms))
    record = _new_run(plan, corpus, measured, concurrency, delay_ms)
    folder = store.create(plan.out, record.config)
    record.id = folder.name
    store.write_run(folder, record)
    watcher.begin(folder.name, len(corpus.utterances) * plan.repeat)
    cell = Cell(
        concurrency=concurrency,
        packet_ms=plan.packet_ms,
        speed=plan.speed,
        seed=plan.seed,
        repeat=plan.repeat,
        warm_up=plan.warm_up,
    )
    _keep_metrics(folder / "metrics-before.txt", measured, plan)
    server = measured.server
    try:
        with Sampler(server_pid=server.pid if server else None) as sampler:
            replayed = _replay(corpus.utterances, destination, cell, watcher, interrupts)
    except ReplayError:
        _forget(folder)
        if server is not None:
            server.check()  # a dead server is the better explanation
        raise
    finally:
        watcher.end()
    outcome.complete = replayed.complete
    if not replayed.records:
        _forget(folder)
        return
    outcome.runs.append(folder)
    _keep_metrics(folder / "metrics-after.txt", measured, plan)
    store.write_records(folder, replayed.records)
    store.write_system(folder, sampler.rows(replayed.origin_ns))
    record.complete, record.wall_seconds = replayed.complete, round(replayed.wall_seconds, 3)
    record.environment["generator_priority"] = replayed.priority
    record.notes += _notes(replayed, corpus)
    store.write_run(folder, record)
    if server is not None:
        server.check()


def _forget(folder: Path) -> None:
    """Remove a run folder in which nothing was recorded."""
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def _new_run(plan: Plan, corpus: Corpus, measured: Measured, concurrency: int, delay_ms: int | None) -> store.Run:
    from harness.normalise import default_name

    parts = urlsplit(measured.url)
    config = store.RunConfig(
        dataset=corpus.name,
        corpus_sha256=corpus.sha256,
        protocol=plan.protocol,
        target="started"
        if plan.target is None
        else f"{parts.scheme}://{parts.hostname}:{parts.port or ''}{parts.path}",
        engine=measured.engine,
        model=measured.model or "unknown",
        concurrency=concurrency,
        delay_ms=delay_ms,
        packet_ms=plan.packet_ms,
        speed=plan.speed,
        seed=plan.seed,
        normaliser=plan.normaliser or default_name(corpus.language),
        caveat=measured.caveat,
        server_options=list(plan.server_options),
        label=plan.label,
        alignment=corpus.alignment,
    )
    return store.Run(
        schema=store.SCHEMA,
        id="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        config=config,
        environment=environment.describe(plan.command or None),
    )


def _replay(
    utterances: Sequence[Utterance], destination: Destination, cell: Cell, watcher: Watcher, interrupts: _Interrupts
) -> Replayed:
    stop = asyncio.Event()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        loop = runner.get_loop()
        interrupts.stop = lambda: loop.call_soon_threadsafe(stop.set)
        try:
            return runner.run(
                replay(utterances, destination, cell, audio.load, on_progress=watcher.progress, stop=stop)
            )
        finally:
            interrupts.stop = None


class _Interrupts:
    """The first interrupt ends a replay in good order, and whatever else at once; the second one ends everything."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.stop: Callable[[], object] | None = None  # ends the replay that is under way
        self._count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():  # nobody else may listen to signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._interrupted)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _interrupted(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            if self.server is not None:
                self.server.kill()
            os._exit(130)
        if self.stop is None:
            raise KeyboardInterrupt
        self.stop()


def _keep_metrics(path: Path, measured: Measured, plan: Plan) -> None:
    """The server's own figures as it gives them."""
    answer = _get(measured.url, "/metrics", plan)
    if answer:
        path.write_bytes(answer)


def _notes(replayed: Replayed, corpus: Corpus) -> list[str]:
    notes = [*replayed.notes]
    if corpus.notes:
        notes.append(corpus.notes)
    if not replayed.complete:
        notes.append("interrupted: not every utterance was replayed")
    if replayed.blocked_writes:
        notes.append(f"{replayed.blocked_writes} packets had to wait for the server to read")
    return notes


def score_runs(folders: Sequence[Path], say: Callable[[str], None], against: Path | None = None) -> None:
    """Compute scores.json and utterances.parquet of each run folder; where one has an idle counterpart, also what load did to its WER."""
    from harness.paired import LOAD_IDLE, relation
    from harness.score import score

    gc.unfreeze()
    configs = {folder: store.read_run(folder).config for folder in folders}
    by_load = sorted(folders, key=lambda folder: configs[folder].concurrency)
    for folder in by_load:
        say(f"scoring {folder.name}")
        idle = next((one for one in by_load if relation(configs[folder], configs[one]) == LOAD_IDLE), None)
        score(folder, [other for other in (idle, against) if other is not None and other != folder])


def index(outcome: Outcome) -> dict[str, Any]:
    """What ``bench.json`` holds: which runs belong together."""
    return {
        "schema": 1,
        "complete": outcome.complete,
        "runs": [folder.name for folder in outcome.runs],
        "notes": outcome.notes,
    }
