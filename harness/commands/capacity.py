"""``earmark capacity``: how many streams a server sustains within given limits."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import load as loads
from harness.commands.drivers import DriverOption, options_of
from harness.commands.terminal import Terminal, public_arguments

if TYPE_CHECKING:
    from harness.capacity.measuring import Search
    from harness.corpus import Corpus

SEARCHES = Path("reports/capacity")
INTERRUPTED, FAILED = 130, 3


def capacity(
    engine: Annotated[str, typer.Option(help="Engine of the server that is started: auto, sphinx, ...")] = "auto",
    target: Annotated[
        str | None, typer.Option(help="Measure this server (ws://host:port) instead of starting one.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(help="Key for the target.", show_default="EARMARK_API_KEY, or what 'earmark drivers NAME' says"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to ask for.", show_default="what the server serves")] = None,
    protocol: Annotated[
        str, typer.Option(help="How to speak to the server: 'earmark drivers' lists all.")
    ] = "realtime",
    driver_option: DriverOption = None,
    delay_ms: Annotated[
        str | None,
        typer.Option(
            help="Transcription delay; 'server' leaves it to the server.", show_default="480; --target: server"
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            help="A limit: word_p95=0.8, final_p95=1, first_p50=..., errors=0.01, drift=0.01, wer=0; NAME=off lifts it; repeatable.",
            show_default="word_p95=delay+0.4, final_p95=1, errors=0.01, drift=0.01, wer=0",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of a dataset, or a path.", show_default="as earmark bench")
    ] = None,
    idle_seconds: Annotated[
        float, typer.Option(help="Audio that is replayed: so much that one stream alone takes about so long.", min=1)
    ] = 90.0,
    seconds: Annotated[float, typer.Option(help="How long streams begin in each rung.", min=1)] = 60.0,
    repeats: Annotated[int, typer.Option(help="How often the answer has to hold.", min=1)] = 3,
    start: Annotated[int, typer.Option(help="The first rung after one stream.", min=1)] = 2,
    most: Annotated[int, typer.Option(help="The most streams to try.", min=1, max=20_000)] = 512,
    step: Annotated[int, typer.Option(help="How closely to search, in streams.", min=1)] = 1,
    soak: Annotated[
        str | None,
        typer.Option(help="Hold the answer for so long at last, e.g. 10m, 90s or 1h.", show_default="no soak"),
    ] = None,
    packet_ms: Annotated[
        int | None,
        typer.Option(
            help="Audio per packet.", min=5, max=10_000, show_default="80, or what 'earmark drivers NAME' says"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of order and phases.")] = 0,
    generators: loads.Generators = 1,
    jitter_ms: loads.JitterMs = 0.0,
    burst: loads.Burst = 1,
    stall: loads.Stall = "",
    server_option: Annotated[
        list[str] | None,
        typer.Option(help="Passed to the server that is started, e.g. --server-option=--sphinx-workers=2."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The search's folder; what it holds is used again.", show_default="reports/capacity/..."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> int:
    """Find the largest number of streams that keeps to the limits; a search that was left goes on where it was."""
    from harness import bench, drivers
    from harness.capacity import answer as answers
    from harness.capacity import limits, measuring
    from harness.capacity.search import Bounds

    target = target or drivers.find(protocol).home
    if target is not None and server_option:
        raise measuring.CapacityError(
            "--server-option is for a server that is started; it cannot be combined with --target"
        )
    terminal = Terminal(everything_to_stderr=as_json)
    delay = _delay(delay_ms or ("server" if target else "480"))
    soak_seconds = None if soak is None else duration_seconds(soak)
    plan = bench.Plan(
        concurrencies=[1],
        delays_ms=[delay],
        packet_ms=packet_ms or 0,
        seed=seed,
        protocol=protocol,
        engine=engine,
        target=target,
        api_key=api_key,
        driver_options=options_of(driver_option or []),
        model=model,
        server_options=server_option or [],
        command=public_arguments(sys.argv[1:]),
        load=loads.load_of(jitter_ms=jitter_ms, burst=burst, stall=stall, generators=generators),
    )
    try:
        bounds = Bounds(min(start, most), most, step, repeats, soak_seconds is not None)
    except ValueError as error:
        raise measuring.CapacityError(str(error)) from None
    search = measuring.Search(
        plan, limits.parse(slo or [], delay, whole=plan.driver.whole), bounds, seconds, soak_seconds
    )
    corpus = _corpus(dataset or bench.default_dataset(plan), idle_seconds)
    folder = out or SEARCHES / _name(search, corpus)
    terminal.say(
        f"{corpus.name}: {len(corpus.utterances)} utterances, {corpus.seconds:.0f} s; rungs of {seconds:g} s in {folder}; "
        f"limits: {search.limits.sentence()}"
    )
    result = measuring.measure(search, corpus, folder, terminal.watcher())
    paths = answers.write(result)
    terminal.out.print(answers.table(result))
    for note in answers.as_json(result)["notes"]:
        terminal.out.print(note, soft_wrap=True, markup=False)
    terminal.out.print(answers.sentence(result), soft_wrap=True, markup=False, style="bold")
    terminal.out.print(f"ladder: {paths[1]}", soft_wrap=True)
    if as_json:
        print(json.dumps(answers.as_json(result)))
    return 0 if result.answer is not None else INTERRUPTED


def _delay(text: str) -> int | None:
    from harness.capacity.measuring import CapacityError

    if text == "server":
        return None
    try:
        return int(text)
    except ValueError:
        raise CapacityError(f"--delay-ms {text}: one delay in milliseconds is expected, or 'server'") from None


def duration_seconds(text: str) -> float:
    """``90s``, ``10m`` or ``1h``; a number alone is seconds. Raises CapacityError for anything else."""
    from harness.capacity.measuring import CapacityError

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0.0
    if not 0 < seconds <= 86_400:
        raise CapacityError(f"--soak {text}: a time of at most a day is expected, e.g. 90s, 10m or 1h")
    return seconds


def _corpus(name: str, idle_seconds: float) -> Corpus:
    """So many utterances, spread over the speakers, that one stream replays them in about this time."""
    from harness.corpus import load

    whole = load(name)
    count = max(1, round(len(whole.utterances) * idle_seconds / whole.seconds))
    return whole if count >= len(whole.utterances) else load(name, limit=count)


def _name(search: Search, corpus: Corpus) -> str:
    """A folder for what is measured, so that the same question finds it again."""
    told = json.dumps(search.identity(corpus), sort_keys=True, default=str)
    digest = hashlib.sha256(told.encode()).hexdigest()[:8]
    what = search.plan.engine if search.plan.target is None else "target"
    delay = "own" if search.delay_ms is None else str(search.delay_ms)
    return f"{what}-{corpus.name}-d{delay}-{digest}"
