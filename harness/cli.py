"""The ``earmark`` command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands import compare as commands_compare
from harness.commands import gate as commands_gate
from harness.commands import history as commands_history
from harness.commands import load as loads
from harness.commands import log as commands_log
from harness.commands import serve as commands_serve
from harness.commands.align import align_dataset
from harness.commands.capacity import capacity as capacity_command
from harness.commands.certificate import certificate as certificate_command
from harness.commands.clean import clean as clean_command
from harness.commands.doctor import doctor as doctor_command
from harness.commands.drivers import DriverOption, options_of
from harness.commands.drivers import drivers as drivers_command
from harness.commands.errors import UsageError
from harness.commands.folders import expand as _expand
from harness.commands.report import report as report_command
from harness.commands.report import show
from harness.commands.terminal import Terminal, public_arguments
from harness.commands.watch import watch as watch_command

if TYPE_CHECKING:
    from harness.corpus import Corpus

OK, REGRESSION, CANNOT_COMPARE, FAILED, INTERRUPTED = 0, 1, 2, 3, 130
"""Exit codes. 3: a run failed, or was asked for in a way that cannot be."""

DEFAULT_DELAYS_MS = "160,480,2400"
RUNS = Path("reports/runs")

app = typer.Typer(
    name="earmark",
    help="Measure streaming speech-to-text: how accurate, how fast, how stable, with error bars.",
    epilog="Exit codes: 0 fine, 1 regression (gate), 2 cannot compare (gate), 3 failed or invalid usage, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
datasets_app = typer.Typer(help="What can be replayed.", no_args_is_help=True)
app.add_typer(datasets_app, name="datasets")
app.command("capacity")(capacity_command)
app.command("drivers")(drivers_command)
app.command("watch")(watch_command)
app.command("log")(commands_log.log)
app.command(context_settings=commands_serve.SERVER_OPTIONS)(commands_serve.serve)
for _command in (commands_serve.status, commands_serve.logs, commands_serve.stop, commands_serve.restart):
    app.command()(_command)
app.command("clean")(clean_command)
app.command("certificate")(certificate_command)
app.command("doctor")(doctor_command)
datasets_app.command("align")(align_dataset)


def main() -> None:
    """Run the command line."""
    try:
        sys.exit(app(standalone_mode=False) or OK)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:  # noqa: BLE001 - those that are not expected are raised again
        _report(error)
        sys.exit(FAILED)


def _report(error: Exception) -> None:
    """Errors that people can do something about are one sentence; everything else is ours and keeps its traceback."""
    show = getattr(error, "show", None)  # typer's own complaints about arguments, wherever it keeps their classes
    if show is not None:
        show()
    elif isinstance(error, _expected()):
        print(f"earmark: {error}", file=sys.stderr)
    else:
        raise error


def _expected() -> tuple[type[Exception], ...]:
    """The errors whose message tells what to do. Only what was imported can have been raised."""
    names = {
        "harness.bench": "BenchError",
        "harness.drivers.base": "DriverError",
        "harness.launch": "ServerError",
        "harness.replay": "ReplayError",
        "harness.corpus": "CorpusError",  # downloads that fail are such ones too
        "harness.audio": "AudioError",
        "harness.store": "StoreError",
        "harness.report.cells": "NoRunsError",
        "harness.gate.tolerances": "GateError",
        "sizing.shape": "SizingError",
        "harness.grid": "StudyError",
        "harness.capacity.measuring": "CapacityError",
        "harness.capacity.limits": "LimitError",
        "harness.tracking": "TrackingError",
        "harness.lifecycle.record": "StateError",
    }
    return (
        UsageError,
        *(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules),
    )


# ---- bench -----------------------------------------------------------------------------------------------------


@app.command()
def bench(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Name of a dataset ('earmark datasets list'), a path, or a mix: spoken-en*3+non-speech.",
            show_default="spoken-en; spoken-numbers for the small model that comes along",
        ),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(help="Streams at once; several, comma-separated, make several runs.", show_default="8"),
    ] = None,
    delay_ms: Annotated[
        str | None,
        typer.Option(
            help="Transcription delays, comma-separated; 'server' leaves it to the server.",
            show_default=f"{DEFAULT_DELAYS_MS}; with --target: server",
        ),
    ] = None,
    packet_ms: Annotated[int, typer.Option(help="Audio per packet.", min=5, max=10_000)] = 80,
    protocol: Annotated[str, typer.Option(help="How to speak to the server: 'earmark drivers' lists all.")] = "yap",
    driver_option: DriverOption = None,
    engine: Annotated[
        str, typer.Option(help="Engine of the server that is started: auto, sphinx, scripted, ...")
    ] = "auto",
    target: Annotated[
        str | None, typer.Option(help="Measure this server (ws://host:port) instead of starting one.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key for the target.", show_default="EARMARK_API_KEY, or what 'earmark drivers NAME' says"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for.", show_default="what the server serves")] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="'Name: value' sent with every handshake; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many utterances, spread over the speakers.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the order and of the phases of the streams.")] = 0,
    speed: Annotated[float, typer.Option(help="Audio seconds per second; 'inf' sends unpaced.")] = 1.0,
    repeat: Annotated[int, typer.Option(help="How often each utterance is replayed in a run.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Where run folders go.")] = RUNS,
    label: Annotated[str, typer.Option(help="A note kept with the runs.")] = "",
    normaliser: Annotated[
        str | None, typer.Option(help="How texts are made comparable.", show_default="by language")
    ] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows of the dataset out.")] = False,
    report: Annotated[bool, typer.Option(help="Write the HTML report.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
    server_option: Annotated[
        list[str] | None,
        typer.Option(help="Passed to the server that is started, e.g. --server-option=--sphinx-workers=2."),
    ] = None,
    arrival: loads.Arrival = "closed",
    seconds: loads.Seconds = None,
    think_seconds: loads.ThinkSeconds = 0.0,
    duty_cycle: loads.DutyCycle = None,
    jitter_ms: loads.JitterMs = 0.0,
    burst: loads.Burst = 1,
    stall: loads.Stall = "",
    per_connection: loads.PerConnection = 1,
    retries: loads.Retries = 0,
    generators: loads.Generators = 1,
    log_to: commands_log.LogTo = None,
) -> int:
    """Start a server (or take --target), replay a dataset against it, score, report."""
    from harness import bench as benches
    from harness import drivers
    from harness.corpus.mix import load_mix

    terminal = Terminal(everything_to_stderr=as_json)
    target = target or drivers.find(protocol).home
    if target is not None and server_option:
        raise UsageError("--server-option is for the server that bench starts; it cannot be combined with --target")
    if arrival != "closed" and concurrency is not None:
        raise UsageError(
            f"--concurrency is for closed arrivals: --arrival {arrival} decides how many streams there are"
        )
    plan = benches.Plan(
        concurrencies=_numbers(concurrency or ("8" if arrival == "closed" else "1"), "--concurrency"),
        delays_ms=_delays(delay_ms or ("server" if target else DEFAULT_DELAYS_MS)),
        packet_ms=packet_ms,
        speed=speed,
        seed=seed,
        repeat=repeat,
        protocol=protocol,
        engine=engine,
        target=target,
        api_key=api_key,
        model=model,
        headers=_headers(header or []),
        driver_options=options_of(driver_option or []),
        server_options=server_option or [],
        normaliser=normaliser,
        label=label,
        out=out,
        command=public_arguments(sys.argv[1:]),
        load=loads.load_of(
            arrival=arrival,
            seconds=seconds,
            think_seconds=think_seconds,
            duty_cycle=duty_cycle,
            jitter_ms=jitter_ms,
            burst=burst,
            stall=stall,
            per_connection=per_connection,
            retries=retries,
            generators=generators,
        ),
    )
    if normaliser is not None:
        _check_normaliser(normaliser)
    commands_log.check(log_to or [])
    corpus = load_mix(dataset or benches.default_dataset(plan), limit=limit, skip_bad=skip_bad)
    terminal.say(_forecast(plan, corpus))
    outcome = benches.run(plan, corpus, terminal.watcher())
    if not outcome.runs:
        terminal.say("interrupted before anything was recorded")
        return INTERRUPTED
    benches.score_runs(outcome.runs, terminal.say)
    page = show(outcome.runs, outcome.folder / "report.html" if report else None, terminal)
    (outcome.folder / "bench.json").write_text(json.dumps(benches.index(outcome), indent=2) + "\n", encoding="utf-8")
    for note in outcome.notes:
        terminal.say(note)
    logged = not log_to or commands_log.tell_of_bench(log_to, outcome.runs, page, terminal.say)
    if as_json:
        print(json.dumps(_summary(outcome.runs, page, complete=outcome.complete)))
    if not outcome.complete:
        return INTERRUPTED
    return OK if logged and all(_transcribed(folder) for folder in outcome.runs) else FAILED


def _forecast(plan: Any, corpus: Corpus) -> str:
    from harness.bench import forecast_seconds

    cells = len(plan.concurrencies) * len(plan.delays_ms)
    seconds = len(plan.delays_ms) * sum(forecast_seconds(plan, lanes, corpus) for lanes in plan.concurrencies)
    return (
        f"{corpus.name}: {len(corpus.utterances)} utterances, {corpus.seconds / 60:.1f} minutes of audio; "
        f"{cells} run{'s' if cells > 1 else ''}, about {math.ceil(seconds)} s"
    )


def _summary(folders: list[Path], page: Path | None, *, complete: bool) -> dict[str, Any]:
    import msgspec

    from harness.score import read_scores

    return {
        "complete": complete,
        "report": None if page is None else str(page),
        "runs": [{"folder": str(folder), "scores": msgspec.to_builtins(read_scores(folder))} for folder in folders],
    }


def _transcribed(folder: Path) -> bool:
    """A run in which no stream got a transcript has measured nothing."""
    from harness.score import read_scores

    return read_scores(folder).outcomes.get("ok", 0) > 0


def _numbers(text: str, option: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",") if part.strip()))
    except ValueError:
        raise UsageError(f"{option} {text}: whole numbers, comma-separated, are expected, e.g. 1,4,8") from None


def _delays(text: str) -> list[int | None]:
    return [None] if text.strip() == "server" else [*_numbers(text, "--delay-ms")]


def _headers(lines: list[str]) -> dict[str, str]:
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or any(character in line for character in "\r\n"):
            raise UsageError(f"--header {line!r}: 'Name: value' is expected")
        headers[name.strip()] = value.strip()
    return headers


def _check_normaliser(name: str) -> None:
    from harness.normalise import normaliser

    try:
        normaliser(name)
    except ValueError as error:
        raise UsageError(f"--normaliser: {error}") from None


# ---- study -----------------------------------------------------------------------------------------------------


@app.command()
def study(
    file: Annotated[Path, typer.Argument(help="The study's TOML file.", metavar="FILE.toml")],
    out: Annotated[Path | None, typer.Option(help="The study's folder.", show_default="reports/studies/NAME")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Replace a setting, e.g. --set harness.limit=8 or --set 'server.engine=vllm'; repeatable."
        ),
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Measure failed and invalid cells again.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the cells and how long they take, start nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> int:
    """Measure a grid of server and harness settings; cells that are done already are skipped."""
    from harness import grid
    from harness import study as studies

    terminal = Terminal(everything_to_stderr=as_json)
    asked = grid.read(file).with_settings(settings or [])
    grid.check_options(asked, grid.server_help())
    folder = out or studies.STUDIES / asked.name
    planned = studies.prepare(asked, folder, public_arguments(sys.argv[1:]))
    ledger = studies.read_ledger(folder)
    waiting = studies.pending(planned, ledger, folder, retry=retry)
    servers = len({one.cell.options for one in waiting})
    terminal.say(
        f"{asked.name}: {len(planned)} cells, {len(planned) - len(waiting)} done; {len(waiting)} to measure "
        f"on {servers} server{'s' if servers != 1 else ''}, about {studies.duration(studies.forecast_seconds(waiting, ledger))}"
    )
    if dry_run:
        _list_cells(asked, planned, waiting, ledger, terminal)
        return OK
    result = studies.run(asked, planned, folder, terminal.watcher(), retry=retry)
    return _show_study(result, terminal, as_json=as_json)


def _list_cells(asked: Any, planned: list[Any], waiting: list[Any], ledger: Any, terminal: Terminal) -> None:
    from harness.study import described

    keys = {one.key for one in waiting}
    for one in planned:
        done = ledger.cells.get(one.key)
        state = f"about {math.ceil(one.seconds)} s" if one.key in keys else done.outcome if done else "done"
        terminal.out.print(f"{one.key}  {described(asked, one.cell)}  ({state})", soft_wrap=True, markup=False)


def _show_study(result: Any, terminal: Terminal, *, as_json: bool) -> int:
    from harness.report import studies

    table = studies.read(result.table)
    terminal.out.print(studies.console_table(table))
    for reason, cells in studies.failures(table).items():
        terminal.out.print(f"✗ {'; '.join(cells)}: {reason}", soft_wrap=True, markup=False)
    terminal.out.print(f"study: {result.table}", soft_wrap=True)
    failed = sum(row["outcome"] == "failed" for row in result.rows)
    left = sum(row["outcome"] == "not measured" for row in result.rows)
    if failed:
        terminal.say(f"{failed} failed; --retry measures failed and invalid cells again")
    if not result.complete:
        terminal.say(f"interrupted: {left} not measured; the same command goes on from here")
    if as_json:
        told = {"complete": result.complete, "table": str(result.table), "measured": result.measured}
        print(json.dumps({**told, "cells": len(result.rows), "failed": failed, "not_measured": left}))
    if not result.complete:
        return INTERRUPTED
    return FAILED if failed else OK


# ---- score, report, gate ---------------------------------------------------------------------------------------

Runs = Annotated[list[Path], typer.Argument(help="Run folders, or folders of a bench.", metavar="RUN...")]


@app.command()
def score(
    runs: Runs,
    against: Annotated[
        Path | None,
        typer.Option(help="A scored run of the same utterances; the change in WER from it is told as well."),
    ] = None,
) -> int:
    """Compute the scores of recorded runs again."""
    from harness.bench import score_runs

    terminal = Terminal()
    folders = _expand(runs)
    score_runs(folders, terminal.say, against)
    show(folders, None, terminal)
    return OK


app.command("report")(report_command)
app.command()(commands_gate.gate)
app.command()(commands_compare.compare)
app.command()(commands_history.history)


# ---- plan ------------------------------------------------------------------------------------------------------


@app.command()
def plan(
    gpu: Annotated[str, typer.Option(help="E.g. H100, B200, L40S, RTX-4090; 'list' shows all.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder or its params.json.", show_default="Voxtral-Mini-4B-Realtime-2602"),
    ] = None,
    delay_ms: Annotated[int, typer.Option(help="Transcription delay.")] = 480,
    max_model_len: Annotated[int, typer.Option(help="Tokens of one engine segment.")] = 1024,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="Tokens of one engine step.", show_default="by GPU", min=0)
    ] = 0,
    gpu_memory_utilization: Annotated[float, typer.Option(help="Part of the GPU's memory that vLLM may take.")] = 0.92,
    weights: Annotated[str, typer.Option(help="bf16, fp8 or int4.")] = "bf16",
    kv_dtype: Annotated[str, typer.Option(help="auto, bf16, fp8 or float32.")] = "auto",
    front_end_ms: Annotated[
        float | None, typer.Option(help="CPU time to take in a second of audio.", show_default="as measured")
    ] = None,
    front_end_cores: Annotated[int, typer.Option(help="Cores that take in audio.", min=1)] = 1,
    compute_efficiency: Annotated[float, typer.Option(help="Part of the GPU's arithmetic that is reached.")] = 0.4,
    bandwidth_efficiency: Annotated[float, typer.Option(help="Part of its memory bandwidth that is reached.")] = 0.6,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> int:
    """How many live streams a GPU carries, what bounds them, and which of it is fact and which estimate."""
    from sizing import capacity, gpus, shape

    if gpu == "list":
        for one in gpus.GPUS:
            print(
                f"{one.name:<14}{one.memory_gib:6.1f} GiB{one.bf16_tflops:6g} TFLOP/s{one.bandwidth_tb_per_second:7g} TB/s"
            )
        return OK
    setup = capacity.Setup(
        gpus.find_gpu(gpu),
        delay_ms=delay_ms,
        max_model_len=max_model_len,
        max_num_batched_tokens=max_num_batched_tokens,
        gpu_memory_utilization=gpu_memory_utilization,
        weights=weights,
        kv_dtype=kv_dtype,
        front_end_ms=capacity.FRONT_END_MS if front_end_ms is None else front_end_ms,
        front_end_cores=front_end_cores,
        compute_efficiency=compute_efficiency,
        bandwidth_efficiency=bandwidth_efficiency,
    )
    made = capacity.plan(shape.VOXTRAL_MINI_4B_REALTIME if model is None else shape.read_shape(model), setup)
    print(json.dumps(capacity.as_json(made)) if as_json else capacity.as_text(made))
    return OK


# ---- datasets --------------------------------------------------------------------------------------------------


@datasets_app.command("list")
def list_datasets() -> int:
    """What can be replayed by name."""
    from rich.table import Table

    from harness.corpus import available
    from harness.fetch import FLEURS_LANGUAGES, fetchable

    table = Table("name", "where from", "language", "what", box=None)
    here = available()
    for dataset in here:
        origin = "fetched" if dataset.fetched else "comes along"
        table.add_row(dataset.name, origin, dataset.card.language, dataset.card.description)
    terminal = Terminal()
    terminal.out.print(table)
    others = [name for name in fetchable() if not name.startswith("fleurs-") and name not in {one.name for one in here}]
    terminal.out.print(
        f"\nTo be had by 'earmark datasets fetch NAME': {', '.join([*others, 'fleurs-LANG'])} "
        f"(LANG is one of {len(FLEURS_LANGUAGES)}, e.g. en_us, de_de, fr_fr).",
        soft_wrap=True,
    )
    return OK


@datasets_app.command("check")
def check_dataset(
    name: Annotated[str, typer.Argument(help="Name of a dataset, or a path.")],
    decode: Annotated[bool, typer.Option(help="Decode and hash the audio too.")] = True,
) -> int:
    """Look at every row of a dataset; exit code 3 when something is wrong."""
    from harness.corpus import check

    terminal = Terminal()
    findings = check(name, decode=decode)
    for problem in findings.problems:
        terminal.out.print(str(problem), soft_wrap=True, markup=False)
    terminal.out.print(
        f"{findings.name}: {findings.utterances} utterances, {findings.seconds / 60:.1f} minutes, {findings.speakers} speakers, "
        f"{findings.timed_words} timed words, {len(findings.problems)} problems"
    )
    return OK if findings.ok else FAILED


@datasets_app.command("show")
def show_dataset(
    name: Annotated[str, typer.Argument(help="Name of a dataset, or a path.")],
    limit: Annotated[int, typer.Option(help="How many utterances.", min=1)] = 10,
) -> int:
    """Some utterances of a dataset, spread over its speakers."""
    from rich.table import Table

    from harness.corpus import load

    corpus = load(name, limit=limit)
    table = Table("id", "speaker", "seconds", "text", box=None)
    for utterance in corpus.utterances:
        table.add_row(utterance.id, utterance.speaker, f"{utterance.seconds:.1f}", utterance.text)
    Terminal().out.print(table)
    return OK


@datasets_app.command("fetch")
def fetch_dataset(
    name: Annotated[str, typer.Argument(help="E.g. librispeech-test-clean, librispeech-test-other, fleurs-en_us.")],
    into: Annotated[Path | None, typer.Option(help="Folder to put it in.", show_default="datasets/.cache")] = None,
) -> int:
    """Download a public dataset from its own site; what was broken off is taken up again."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from harness import fetch as fetching

    terminal = Terminal()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=terminal.err, disable=not terminal.err.is_terminal) as bars:
        tasks: dict[tuple[str, str], Any] = {}

        def progress(now: fetching.Progress) -> None:
            key = now.file, now.stage
            if key not in tasks:
                tasks[key] = bars.add_task(f"{now.stage} {now.file}", total=now.total_bytes)
                if bars.disable:
                    terminal.say(f"{now.stage} {now.file}")
            bars.update(tasks[key], completed=now.done_bytes, total=now.total_bytes)

        folder = fetching.fetch(name, into=into, progress=progress)
    terminal.out.print(f"{name}: {folder}", soft_wrap=True)
    return OK


if __name__ == "__main__":
    main()
