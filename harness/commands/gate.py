"""``earmark gate``: judge runs against a baseline, keep one, or find out what this machine's scatter allows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands.folders import expand, newest_bench
from harness.commands.terminal import console

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.gate import Calibration, GateResult, Tolerance

CANNOT_COMPARE = 2
RUNS = Path("reports/runs")
DEFAULT_BASELINE = Path("reports/baselines/sphinx-spoken-en.json")


def gate(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run folders to judge, or folders of a bench, or of many runs. With --calibrate also options of "
            "'earmark bench', behind '--'.",
            metavar="[RUN...]",
        ),
    ] = None,
    candidate: Annotated[
        list[Path] | None, typer.Option("--candidate", "--runs", help="The same as RUN; repeatable.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(
            help="Baseline file that 'gate --save' made, or a run folder.",
            show_default="the one of 'earmark bench' on its defaults",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Write this baseline file from the runs, instead of judging them. With --calibrate: the tolerance file."
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            help="Tolerances: own-machine, or shared-machine where only gross changes of latency count.",
            show_default="those in the baseline",
        ),
    ] = None,
    tolerances: Annotated[
        Path | None,
        typer.Option(help="Tolerance file (TOML) of the testbed; goes before the baseline's and the profile's."),
    ] = None,
    calibrate: Annotated[
        int | None,
        typer.Option(
            help="Run the bench so often, or take the runs named, and propose tolerances from how far they differ.",
            min=3,
        ),
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Also write the result here, for a comment on a change.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML here.")] = None,
    benchmark: Annotated[
        Path | None, typer.Option(help="Also write figures here, as customSmallerIsBetter of github-action-benchmark.")
    ] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github", help="Print annotations for GitHub.", show_default="where it runs in GitHub Actions"
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option(help="Add the runs to this history, e.g. reports/history.parquet.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> int:
    """Judge runs against a baseline: 0 no regression, 1 regression, 2 they cannot be compared."""
    from harness import gate as gates

    options = [text for text in runs or [] if text.startswith("-")]
    if options and calibrate is None:
        raise gates.GateError(f"gate: {options[0]}: options of the bench go with --calibrate")
    if calibrate is None and baseline is not None and save is not None:
        raise gates.GateError(
            "gate: give either --baseline FILE to judge the runs, or --save FILE to make a baseline of them"
        )
    if profile is not None and profile not in gates.PROFILES:
        raise gates.GateError(f"gate: --profile is one of {', '.join(gates.PROFILES)}, not {profile!r}")
    given = gates.read_tolerances(tolerances) if tolerances else None
    allowed = {**(gates.PROFILES[profile] if profile else {}), **(given.tolerances if given else {})}
    if calibrate is not None:
        paths = [*map(Path, () if options else runs or []), *(candidate or [])]
        return _calibrate(calibrate, runs or [] if options else [], paths, allowed, save, as_json=as_json)
    folders = expand([*map(Path, runs or []), *(candidate or [])] or [_newest()])
    out = console(stderr=as_json)
    if save is not None:
        _write(save, json.dumps(gates.save(folders, allowed), indent=1) + "\n")
        out.print(f"baseline: {save}", soft_wrap=True)
        _remember(history, folders, out.print)
        return 0
    try:
        against = _baseline(baseline or DEFAULT_BASELINE)
    except gates.GateError as error:
        result = gates.GateResult(refused=[str(error)])
        print(f"earmark: {error}", file=sys.stderr)
    else:
        result = gates.compare(against, folders, allowed)
    result = _told_of_testbed(result, given.testbed.machine if given else "", folders)
    out.print(gates.table(result))
    for path, text in ((markdown, gates.markdown), (junit, gates.junit), (benchmark, gates.benchmark)):
        if path is not None:
            _write(path, text(result))
    if github if github is not None else os.environ.get("GITHUB_ACTIONS") == "true":
        (sys.stderr if as_json else sys.stdout).write(gates.github(result))
    if not result.refused:
        _remember(history, folders, out.print)
    if as_json:
        print(json.dumps(gates.summary(result)))
    return result.exit_code


def _newest() -> Path:
    from harness.gate import GateError

    found = newest_bench(RUNS)
    if found is None:
        raise GateError(f"gate: no bench in {RUNS}; run 'earmark bench' first or name the runs to judge")
    return found


def _baseline(path: Path) -> dict[str, Any]:
    """A baseline from its file, or made of scored runs."""
    from harness.gate import GateError, save

    if path.is_dir():
        return save(expand([path]))
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GateError(f"the baseline {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise GateError(f"the baseline {path} holds no JSON object")
    return found


def _told_of_testbed(result: GateResult, machine: str, folders: Sequence[Path]) -> GateResult:
    """With a note where the tolerances were measured on another machine than the runs."""
    from dataclasses import replace

    from harness.gate import read

    if not machine or result.refused:
        return result
    others = {cell.machine for cell in read(folders, "run")[0]} - {machine}
    if not others:
        return result
    note = f"the tolerances were calibrated on {machine!r}, the runs are from {', '.join(map(repr, sorted(others)))}"
    return replace(result, notes=[*result.notes, note])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _remember(path: Path | None, folders: Sequence[Path], say: Any) -> None:
    if path is None:
        return
    from harness.gate import appended, read

    new, runs = appended(path, read(folders, "run")[0])
    say(f"history: {path} ({new} new runs, {runs} in all)", soft_wrap=True)


# --- calibration ------------------------------------------------------------------------------------------------------------


def _calibrate(
    times: int,
    options: Sequence[str],
    named: Sequence[Path],
    allowed: dict[str, Tolerance],
    save: Path | None,
    *,
    as_json: bool,
) -> int:
    import msgspec

    from harness.gate import GateError, Testbed, Tolerance, ToleranceFile, as_toml, propose, read

    if options and named:
        raise GateError("gate: --calibrate takes either runs that are there, or options of a bench to run; not both")
    out = console(stderr=as_json)
    folders = expand(named) if named else _benches(times, options, out)
    cells, refused = read(folders, "run")
    for reason in refused:
        out.print(f"left out: {reason}", style="yellow", soft_wrap=True)
    found = propose(cells, allowed)
    if named and found.runs < times:
        raise GateError(f"gate: --calibrate {times} needs {times} runs of every cell; one has {found.runs}")
    out.print(_proposals(found))
    machines = ", ".join(sorted({cell.machine for cell in cells}))
    made = datetime.now(UTC).isoformat(timespec="seconds")
    note = f"{found.cells} cells of {', '.join(sorted({cell.dataset for cell in cells}))}"
    text = as_toml(
        ToleranceFile(
            Testbed(machine=machines, made=made, runs=found.runs, note=note),
            {one.metric: Tolerance(one.absolute) for one in found.proposals},
        ),
        {
            one.metric: f"{one.pairs} pairs: typical change {one.typical:.4f}, largest {one.largest:.4f}"
            for one in found.proposals
        },
    )
    if save is None:
        out.print(
            "\n--save FILE writes them to a tolerance file; 'earmark gate --tolerances FILE' uses it.", style="dim"
        )
    else:
        _write(save, text)
        out.print(f"tolerances: {save}", soft_wrap=True)
    if as_json:
        print(json.dumps(msgspec.to_builtins(found)))
    return 0


def _benches(times: int, options: Sequence[str], out: Any) -> list[Path]:
    """The runs of ``times`` benches, each with a server of its own, in a new folder."""
    from harness.gate import GateError

    if any(option == "--out" or option.startswith("--out=") for option in options):
        raise GateError("gate: --calibrate keeps its runs in a folder of its own; leave --out away")
    root = RUNS / f"{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}-calibration"
    for number in range(times):
        out.print(f"calibration: bench {number + 1} of {times}", style="dim")
        command = [
            sys.executable,
            "-m",
            "harness.cli",
            "bench",
            *options,
            "--no-report",
            "--out",
            str(root / f"{number + 1:02d}"),
        ]
        code = subprocess.call(command, stdout=sys.stderr)
        if code:
            raise GateError(
                f"gate: bench {number + 1} of {times} ended with code {code}; what was recorded is in {root}"
            )
    return [folder for number in range(times) for folder in expand([root / f"{number + 1:02d}"])]


def _proposals(found: Calibration) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from harness.gate import METRICS

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("metric", "typical change", "largest", "allowed now", "proposed", "would see"):
        table.add_column(name, justify="left" if name == "metric" else "right")
    for one in found.proposals:
        metric = METRICS[one.metric]
        tighter = one.absolute < one.in_force
        table.add_row(
            f"{metric.label} ({metric.unit})",
            metric.size(one.typical),
            metric.size(one.largest),
            metric.size(one.in_force),
            Text(metric.size(one.absolute), style="green" if tighter else "yellow"),
            "-" if one.sees is None else f"+{metric.size(one.sees)}",
        )
    headline = (
        f"{found.runs} runs of {found.cells} cell{'s' if found.cells > 1 else ''}: {found.alarms} of {found.pairs} pairs of the same build "
        f"would fail with what is allowed now, {found.alarms_left} with what is proposed"
    )
    few = (
        []
        if found.runs >= 5
        else [Text(f"  {found.runs} runs say little of their scatter; 5 and more propose less", style="dim")]
    )
    return Group(Text(headline, style="bold"), Text(""), table, *few)
