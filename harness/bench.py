"""One bench: a grid of cells replayed against one server, each kept as a run folder, scored and reported together."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from harness import audio, drivers, environment, store
from harness.alignment import with_word_times
from harness.arrivals import Arrivals, Closed, Recorded, planned
from harness.corpus import Corpus, Utterance
from harness.drivers.base import Driver, DriverError, Request, Transport, address
from harness.impairment import Impairment
from harness.launch import Server, start
from harness.replay import Cell, Replayed, ReplayError, Watch, replay, replay_by_processes
from harness.replay.carrying import Destination
from harness.replay.exchange import Progress, Retries
from harness.replay.jobs import MOST_STREAMS
from harness.replay.loop import new_event_loop
from harness.replay.processes import MOST_PROCESSES
from harness.server_side import AFTER, BEFORE
from harness.system import Sampler
from harness.timeline import Kind
from wire.pcm import BYTES_PER_SAMPLE

ASK_SECONDS = 5.0
LARGEST_ANSWER_BYTES = 8 * 1024 * 1024
WORST_VALID_LATENESS_SECONDS = 0.020
WORST_ARRIVAL_LATENESS_SECONDS = 0.050


class BenchError(Exception):
    """The bench cannot be run as asked; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Load:
    """How streams come and what befalls their packets; the plain load replays each utterance in closed lanes over a good network.

    The fields are those of `harness.replay.Cell`; ``generators`` is the number of processes that make the load.
    """

    arrivals: Arrivals = Closed()
    seconds: float | None = None
    think_seconds: float = 0.0
    duty_cycle: float | None = None
    impairment: Impairment = Impairment()
    per_connection: int = 1
    retries: int = 0
    only_steady: bool = False
    generators: int = 1

    def described(self) -> dict[str, Any]:
        """What is not plain, for the record of a run. Arrivals have a place of their own there."""
        plain = Load()
        names = ("seconds", "think_seconds", "duty_cycle", "per_connection", "retries", "only_steady", "generators")
        found = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return found | self.impairment.described()


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked for. A delay of ``None`` is the server's own. Without ``target`` a server is started for the bench."""

    concurrencies: Sequence[int] = (8,)
    delays_ms: Sequence[int | None] = (160, 480, 2400)
    packet_ms: int = 0  # 0: what the protocol has by itself
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
    driver_options: Mapping[str, str] = field(default_factory=dict)
    server_options: Sequence[str] = ()
    normaliser: str | None = None
    label: str = ""
    out: Path = Path("reports/runs")
    command: Sequence[str] = ()  # as given, for the record; without the key
    load: Load = Load()

    def __post_init__(self) -> None:
        driver = self.driver
        object.__setattr__(self, "packet_ms", self.packet_ms or driver.packet_ms)
        if driver.home is not None and self.target is None:
            raise BenchError(
                f"{driver.name} is a service, not a server to start; its address is --target {driver.home}"
            )
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
        self._check_packets(driver)
        self._check_load(driver)

    def _check_packets(self, driver: Driver) -> None:
        largest = driver.largest_packet_bytes
        packet_bytes = self.packet_ms * driver.sample_rate // 1000 * BYTES_PER_SAMPLE
        if largest is not None and packet_bytes > largest:
            longest_ms = largest * 1000 // (driver.sample_rate * BYTES_PER_SAMPLE)
            raise BenchError(f"packets of {self.packet_ms} ms: {driver.name} takes at most {longest_ms} ms")

    def _check_load(self, driver: Driver) -> None:
        if not 1 <= self.load.generators <= MOST_PROCESSES:
            raise BenchError(f"{self.load.generators} generator processes: choose 1 to {MOST_PROCESSES}")
        if self.load.retries < 0:
            raise BenchError(f"{self.load.retries} retries: choose 0 or more")
        if self.load.per_connection != 1 and not driver.takes_several:
            raise BenchError(f"with {driver.name} every connection carries one utterance: --per-connection 1")
        if not isinstance(self.load.arrivals, Closed) and len(self.concurrencies) > 1:
            raise BenchError(
                f"arrival {self.load.arrivals} decides how many streams there are at once: name one concurrency"
            )
        for concurrency in self.concurrencies:
            try:
                self.cell(concurrency)
            except ValueError as error:
                raise BenchError(str(error)) from None

    @property
    def driver(self) -> Driver:
        """Who speaks the protocol. Raises BenchError when nobody does."""
        try:
            return drivers.find(self.protocol)
        except DriverError as error:
            raise BenchError(str(error)) from None

    @property
    def key(self) -> str | None:
        """The key for the target: as given, else from the variable in which the protocol's users keep it."""
        return self.api_key or os.environ.get(self.driver.key_variable) or None

    def cell(self, concurrency: int) -> Cell:
        """What is replayed at so many lanes."""
        load = self.load
        return Cell(
            concurrency=concurrency,
            packet_ms=self.packet_ms,
            speed=self.speed,
            seed=self.seed,
            repeat=self.repeat,
            warm_up=self.warm_up,
            only_steady=load.only_steady,
            arrivals=load.arrivals,
            seconds=load.seconds,
            think_seconds=load.think_seconds,
            duty_cycle=load.duty_cycle,
            impairment=load.impairment,
            per_connection=load.per_connection,
            retries=Retries(load.retries),
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """The server under test, as far as it says what it is. ``http_side`` is where models and metrics can be asked for; empty: nowhere."""

    url: str
    engine: str = "unknown"
    model: str = ""
    caveat: str = ""
    api_key: str | None = None
    server: Server | None = None
    http_side: str = ""


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


def forecast_seconds(plan: Plan, lanes: int, corpus: Corpus) -> float:
    """How long a cell takes at least."""
    load = plan.load
    longest = max(utterance.seconds for utterance in corpus.utterances) / plan.speed
    if load.seconds is not None:
        return load.seconds + longest
    count = len(corpus.utterances) * plan.repeat
    match load.arrivals:
        case Closed():
            speech = corpus.seconds * plan.repeat / plan.speed
            silence = count * load.think_seconds if load.duty_cycle is None else speech * (1 / load.duty_cycle - 1)
            return max((speech + silence) / lanes, longest)
        case arrivals:
            most = MOST_STREAMS if isinstance(arrivals, Recorded) else count
            return planned(arrivals, plan.seed, most)[-1][0] + longest


def run(plan: Plan, corpus: Corpus, watcher: Watcher | None = None) -> Outcome:
    """Replay ``corpus`` once per delay and concurrency of the plan, and keep each as a run folder under ``plan.out``.

    An interrupt ends the bench early; what was recorded until then is kept and marked incomplete.

    Raises:
        BenchError: the plan cannot be carried out.
        ServerError: the server did not start, or died.
        ReplayError: the server transcribes nothing.
    """
    watcher = watcher or Watcher()
    check_target(plan)
    corpus = with_word_times(corpus, watcher.say).corpus
    outcome = Outcome(_folder(plan, corpus))
    try:
        with _Interrupts() as interrupts, reached(plan, outcome.folder, watcher) as measured:
            _run_cells(plan, corpus, measured, watcher, interrupts, outcome)
    except BaseException:
        if not any(outcome.folder.iterdir()):
            outcome.folder.rmdir()
        raise
    return outcome


def check_target(plan: Plan) -> None:
    """Refuse, before anything is started or sent, what the driver cannot carry.

    Raises:
        BenchError: the target is no address, the driver cannot do what is asked, or its service wants a key.
    """
    driver = plan.driver
    try:
        if plan.target is not None:
            address(driver, plan.target, None)
        for delay_ms in plan.delays_ms:  # the model of a server that can be asked is known later
            named = plan.model or (driver.describes_itself and "any") or None
            driver.check(Request(named, delay_ms, options=plan.driver_options))
    except ValueError as error:
        raise BenchError(str(error)) from None
    signed = plan.key or any(name.lower() == "authorization" for name in plan.headers)
    if driver.home is not None and plan.target == driver.home and not signed:
        raise BenchError(f"{driver.name} wants a key: set {driver.key_variable} or give --api-key")


def run_on(
    server: Server, plan: Plan, corpus: Corpus, watcher: Watcher | None = None, *, watch: Watch | None = None
) -> Outcome:
    """As `run`, on a server that somebody else has started and will end. There is no folder but those of the runs.

    Raises:
        ServerError: the server died.
        ReplayError: the server transcribes nothing.
    """
    return run_against(started(server, plan), plan, corpus, watcher, watch=watch)


def run_against(
    measured: Measured, plan: Plan, corpus: Corpus, watcher: Watcher | None = None, *, watch: Watch | None = None
) -> Outcome:
    """As `run_on`, against whatever server `started` or `target` has described. ``watch`` may end each run early.

    Words of ``corpus`` without times are aligned first, or their times taken from where they are kept.
    """
    watcher, outcome = watcher or Watcher(), Outcome(plan.out)
    corpus = with_word_times(corpus, watcher.say).corpus
    with _Interrupts() as interrupts:
        _run_cells(plan, corpus, measured, watcher, interrupts, outcome, watch)
    return outcome


def _run_cells(
    plan: Plan,
    corpus: Corpus,
    measured: Measured,
    watcher: Watcher,
    interrupts: _Interrupts,
    outcome: Outcome,
    watch: Watch | None = None,
) -> None:
    interrupts.server = measured.server
    for delay_ms, concurrency in product(plan.delays_ms, plan.concurrencies):
        _run_cell(plan, corpus, measured, concurrency, delay_ms, watcher, interrupts, outcome, watch)
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
def reached(plan: Plan, folder: Path, watcher: Watcher) -> Iterator[Measured]:
    """The server of a plan: its target, or one that is started now, lives as long as the context and logs to ``folder``.

    Raises:
        BenchError: the target does not say which model it serves, where that must be known.
        ServerError: the server did not start.
    """
    if plan.target is not None:
        yield target(plan)
        return
    watcher.say(f"starting the server (engine {plan.engine})")
    options = ["--engine", plan.engine, *plan.driver.server_options, *plan.server_options]
    with start(options, folder / "server.log") as server:
        told = server.announcement
        watcher.say(f"serving {told.engine} ({told.model}) at {server.url}")
        yield started(server, plan)


def started(server: Server, plan: Plan) -> Measured:
    """A server that was started, as it announced itself.

    Raises:
        BenchError: it does not listen where the driver would speak to it.
    """
    told = server.announcement
    url: str | None = server.grpc_url if plan.driver.transport is Transport.GRPC else server.url
    if url is None:
        raise BenchError(f"the server does not listen for gRPC; start it with {' '.join(plan.driver.server_options)}")
    return Measured(url, told.engine, plan.model or told.model, told.caveat, server.api_key, server, server.url)


def target(plan: Plan) -> Measured:
    """What a target says about itself at ``/v1/models``; few servers say much, and none has to."""
    assert plan.target is not None
    driver = plan.driver
    url, _ = address(driver, plan.target, None)
    if not driver.describes_itself:
        return Measured(url, driver.name, plan.model or driver.default_model or "", api_key=plan.key)
    answer = _get(url, "/v1/models", plan)
    try:
        models = msgspec.json.decode(answer or b"", type=_Models).data
    except msgspec.DecodeError:
        models = []
    found = next((model for model in models if plan.model in (None, model.id)), models[0] if models else _Model())
    name = plan.model or found.id
    if not name and driver.needs_model:
        raise BenchError(f"{plan.target} does not say at /v1/models which model it serves; name it with --model")
    return Measured(url, found.engine, name, found.caveat, plan.key, http_side=url)


class _Model(msgspec.Struct):
    id: str = ""
    engine: str = "unknown"
    caveat: str = ""


class _Models(msgspec.Struct):
    data: list[_Model] = []


def _get(url: str, path: str, plan: Plan) -> bytes | None:
    """A small answer of the server's HTTP side, or ``None``."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme in ("wss", "https") else "http"
    headers = {**plan.headers, **({"Authorization": f"Bearer {plan.key}"} if plan.key else {})}
    try:
        answer = httpx.get(f"{scheme}://{parts.netloc}{path}", headers=headers, timeout=ASK_SECONDS, trust_env=False)
    except httpx.HTTPError:
        return None
    return answer.content if answer.status_code == 200 and len(answer.content) <= LARGEST_ANSWER_BYTES else None


def destination(plan: Plan, measured: Measured, delay_ms: int | None, language: str | None) -> Destination:
    """Where the streams of a plan go."""
    driver = plan.driver
    request = Request(measured.model or None, delay_ms, language, plan.driver_options)
    url, headers = address(driver, measured.url, measured.api_key, request)
    return Destination(driver, url, {**headers, **plan.headers}, request)


def _run_cell(
    plan: Plan,
    corpus: Corpus,
    measured: Measured,
    concurrency: int,
    delay_ms: int | None,
    watcher: Watcher,
    interrupts: _Interrupts,
    outcome: Outcome,
    watch: Watch | None,
) -> None:
    place = destination(plan, measured, delay_ms, None if corpus.language == "mul" else corpus.language)
    record = _new_run(plan, corpus, measured, concurrency, delay_ms)
    folder = store.create(plan.out, record.config)
    record.id = folder.name
    store.write_run(folder, record)
    watcher.begin(folder.name, _expected_streams(plan, concurrency, corpus))
    cell = plan.cell(concurrency)
    server = measured.server
    try:
        with Sampler(server_pid=server.pid if server else None) as sampler, store.StandingFile(folder) as standing:
            replayed = _replay(
                corpus.utterances,
                place,
                cell,
                plan.load.generators,
                _also_kept(watcher, standing, measured.http_side),
                interrupts,
                watch,
                lambda: _keep_metrics(folder / BEFORE, measured, plan),
            )
    except ReplayError:
        _forget(folder)
        if server is not None:
            server.check()  # a dead server is the better explanation
        raise
    finally:
        watcher.end()
    outcome.complete = replayed.complete or bool(replayed.stopped_because)
    if not replayed.records:
        _forget(folder)
        return
    outcome.runs.append(folder)
    _keep_metrics(folder / AFTER, measured, plan)
    store.write_records(folder, replayed.records)
    store.write_system(folder, sampler.rows(replayed.origin_ns))
    record.complete, record.wall_seconds = replayed.complete, round(replayed.wall_seconds, 3)
    record.environment["generator_priority"] = replayed.priority
    record.generator = _generator(replayed)
    record.notes += _notes(replayed, corpus)
    store.write_run(folder, record)
    if server is not None:
        server.check()


def _also_kept(watcher: Watcher, file: store.StandingFile, url: str) -> Watcher:
    """The watcher, told after the run's own folder."""

    def progress(now: Progress) -> None:
        counts = {name: getattr(now, name) for name in store.Standing.__struct_fields__ if name != "server"}
        file.write(store.Standing(server=url, **counts))
        watcher.progress(now)

    return replace(watcher, progress=progress)


def _expected_streams(plan: Plan, concurrency: int, corpus: Corpus) -> int:
    """How many streams a cell will have, or about how many where its time decides."""
    load, count = plan.load, len(corpus.utterances) * plan.repeat
    if isinstance(load.arrivals, Closed):
        if load.seconds is None:
            return count
        return max(concurrency, round(concurrency * load.seconds * plan.speed * count / corpus.seconds))
    most = MOST_STREAMS if load.seconds is not None or isinstance(load.arrivals, Recorded) else count
    return len(planned(load.arrivals, plan.seed, most, load.seconds))


def _generator(replayed: Replayed) -> dict[str, Any]:
    """What the generator says of itself, for the record of a run."""
    found: dict[str, Any] = {
        "priority": replayed.priority,
        "cpu_seconds": round(replayed.generator_cpu_seconds, 3),
        "blocked_writes": replayed.blocked_writes,
        "retries": replayed.retries,
    }
    arrived = [
        (connecting.t_ns - record.arrival_ns) / 1e9
        for record in replayed.records
        if record.arrival_ns is not None and (connecting := record.first(Kind.CONNECTING)) is not None
    ]
    if arrived:
        found["worst_arrival_lateness_seconds"] = round(max(arrived), 6)
    if replayed.stopped_because:
        found["stopped_because"] = replayed.stopped_because
    if replayed.clocks:
        found["processes"] = replayed.clocks
    return found


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
        normaliser=plan.normaliser or corpus.normaliser or default_name(corpus.language),
        caveat=measured.caveat,
        server_options=list(plan.server_options),
        driver_options=[f"{name}={value}" for name, value in plan.driver_options.items()],
        label=plan.label,
        arrival=str(plan.load.arrivals),
        load=plan.load.described(),
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
    utterances: Sequence[Utterance],
    destination: Destination,
    cell: Cell,
    generators: int,
    watcher: Watcher,
    interrupts: _Interrupts,
    watch: Watch | None,
    when_warm: Callable[[], None],
) -> Replayed:
    stop = asyncio.Event()
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        loop = runner.get_loop()
        interrupts.stop = lambda: loop.call_soon_threadsafe(stop.set)
        try:
            if generators == 1:
                one = replay(
                    utterances,
                    destination,
                    cell,
                    audio.load,
                    on_progress=watcher.progress,
                    stop=stop,
                    watch=watch,
                    when_warm=when_warm,
                )
                return runner.run(one)
            several = replay_by_processes(
                utterances,
                destination,
                cell,
                audio.load,
                generators,
                on_progress=watcher.progress,
                stop=stop,
                watch=watch,
                when_warm=when_warm,
            )
            return runner.run(several)
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
    answer = _get(measured.http_side, "/metrics", plan) if measured.http_side else None
    if answer:
        path.write_bytes(answer)


def _notes(replayed: Replayed, corpus: Corpus) -> list[str]:
    notes = [*replayed.notes]
    if corpus.notes:
        notes.append(corpus.notes)
    if not replayed.complete and not replayed.stopped_because:
        notes.append("interrupted: not every utterance was replayed")
    late = _generator(replayed).get("worst_arrival_lateness_seconds", 0.0)
    if late > WORST_ARRIVAL_LATENESS_SECONDS:
        notes.append(f"streams began up to {1000 * late:.0f} ms after their arrival: the generator could not keep up")
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
