"""``earmark compare``: what changes from one run to another."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.folders import expand
from harness.commands.terminal import console

if TYPE_CHECKING:
    from harness.gate import CellRecord, GateResult, Judged
    from harness.report import Change, Comparison


def compare(
    one: Annotated[
        Path, typer.Argument(help="A run folder, a bench, a folder of runs or a baseline file.", metavar="A")
    ],
    other: Annotated[Path, typer.Argument(help="What to hold against it.", metavar="B")],
    tolerances: Annotated[
        Path | None, typer.Option(help="Tolerance file (TOML) of the testbed.", show_default="own-machine")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Also write the result here.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with both here.", metavar="FILE.html")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> int:
    """What changes from A to B, on the same audio: delays, engines or protocols may differ. 0, or 2 if they cannot be compared."""
    from harness import gate as gates

    allowed = gates.read_tolerances(tolerances).tolerances if tolerances else None
    sides, refused = [], []
    for path in (one, other):
        cells, why = _side(path)
        sides.append(cells)
        refused += why
    result = gates.GateResult(refused=refused) if refused else gates.compare_runs(sides[0], sides[1], allowed)
    out = console(stderr=as_json)
    if not refused:
        out.print(f"A  {_named(sides[0], one)}\nB  {_named(sides[1], other)}\n", soft_wrap=True, markup=False)
    out.print(gates.table(result, gating=False))
    if markdown is not None:
        markdown.write_text(gates.markdown(result, gating=False), encoding="utf-8")
    if html is not None:
        _write_page(one, other, result, html)
        out.print(f"report: {html}", soft_wrap=True)
    if as_json:
        print(json.dumps(gates.summary(result)))
    return 2 if result.refused else 0


def _write_page(one: Path, other: Path, result: GateResult, html: Path) -> None:
    """Raises NoRunsError where a side is a baseline file, which has figures to compare but nothing to look at."""
    from harness import report as reports
    from harness.report.cells import NoRunsError

    for path in (one, other):
        if path.is_file():
            raise NoRunsError(f"--html shows runs, and {path} is a baseline file: name run folders or a bench")
    reports.compare(expand([one]), expand([other]), _comparison(result), html)


def _comparison(result: GateResult) -> Comparison:
    from harness import gate as gates
    from harness.report import Comparison

    texts = gates.frame(result).to_dict("records")
    told = [_change(judged, row) for judged, row in zip(result.judged, texts, strict=True)]
    return Comparison(result.changes(), told, result.refused, result.notes)


def _change(judged: Judged, texts: Mapping[Hashable, str]) -> Change:
    from harness.gate import METRICS
    from harness.report import Change
    from harness.report.figures import Shift

    test, metric = judged.test, METRICS[judged.test.metric]
    change, allowed = test.change, test.tolerance
    shift = None
    if change.value is not None and allowed > 0:
        low, high = (None if end is None else end / allowed for end in (change.low, change.high))
        shift = Shift(metric.label, change.value / allowed, low, high, str(judged.verdict))
    return Change(
        cell=test.cell,
        measure=texts["metric"],
        label=metric.label,
        before=texts["before"],
        now=texts["now"],
        change="–" if change.value is None else metric.signed(change.value),
        interval=judged.interval().strip(),
        allowed=texts["allowed"],
        sees=texts["sees"],
        n=test.n,
        verdict=str(judged.verdict),
        why=texts["why"],
        shift=shift,
    )


def _side(path: Path) -> tuple[list[CellRecord], list[str]]:
    from harness import gate as gates

    if not path.is_file():
        return gates.read(expand([path]), "run")
    try:
        return gates.opened(json.loads(path.read_text(encoding="utf-8"))).cells, []
    except (OSError, ValueError, TypeError, gates.GateError) as error:
        return [], [f"{path} is neither a run folder nor a baseline: {error}"]


def _named(cells: list[CellRecord], path: Path) -> str:
    engines = ", ".join(dict.fromkeys(f"{cell.engine} {cell.model}".strip() for cell in cells))
    commits = ", ".join(dict.fromkeys(cell.commit[:12] for cell in cells if cell.commit))
    return f"{path} ({engines}{', ' + commits if commits else ''})"
