"""``earmark history``: keep the figures of runs, and say since which commit they changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands.folders import expand
from harness.commands.terminal import console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.text import Text

    from harness.gate import Level, Series

HISTORY = Path("reports/history.parquet")
BARS = "▁▂▃▄▅▆▇█"
DRAWN = 32  # newest values in a line of bars


def history(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Runs to add first: folders of runs or of benches.", metavar="[RUN...]")
    ] = None,
    file: Annotated[Path, typer.Option(help="The history.")] = HISTORY,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; repeatable.")] = None,
    tolerances: Annotated[
        Path | None,
        typer.Option(help="Tolerance file (TOML): changes within it are not told.", show_default="own-machine"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> int:
    """Add runs to the history, and show where its figures changed: since which commit, from what to what."""
    import msgspec

    from harness import gate as gates

    for name in metric or []:
        if name not in gates.METRICS:
            raise gates.GateError(f"history: there is no metric {name!r}; there are {', '.join(gates.METRICS)}")
    allowed = gates.read_tolerances(tolerances).tolerances if tolerances else None
    out = console(stderr=as_json)
    if runs:
        cells, refused = gates.read(expand(runs), "run")
        for reason in refused:
            out.print(f"left out: {reason}", style="yellow", soft_wrap=True, markup=False)
        new, total = gates.appended(file, cells)
        out.print(f"history: {file} ({new} new runs, {total} in all)", soft_wrap=True)
    rows = gates.read_history(file)
    if not rows:
        raise gates.GateError(
            f"history: {file} holds no run yet; add some with 'earmark history RUN...' or 'earmark gate --history'"
        )
    found = [one for one in gates.since_when(rows, allowed) if not metric or one.metric in metric]
    out.print(_table(found))
    if as_json:
        print(json.dumps({"file": str(file), "series": msgspec.to_builtins(found)}))
    return 0


def _table(found: Sequence[Series]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from harness.gate import METRICS

    changed = [one for one in found if one.levels]
    parts: list[RenderableType] = [Text(f"{len(changed)} of {len(found)} series changed", style="bold")]
    places = dict.fromkeys((one.machine, one.dataset, one.engine, one.cell) for one in found)
    for place in places:
        machine, dataset, engine, cell = place
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in ("metric", "runs", "newest", f"last {DRAWN}", "since when"):
            table.add_column(
                name, justify="right" if name in ("runs", "newest") else "left", no_wrap=name != "since when"
            )
        for one in found:
            if (one.machine, one.dataset, one.engine, one.cell) != place:
                continue
            metric = METRICS[one.metric]
            unit = f" ({metric.unit})" if not metric.percent else ""
            newest = metric.figure(one.values[-1])
            table.add_row(f"{metric.label}{unit}", str(len(one.values)), newest, bars(one.values[-DRAWN:]), _since(one))
        parts += [
            Text(""),
            Text(f"{cell} · {engine} on {dataset} · {machine or 'unknown machine'}", style="bold underline"),
            table,
        ]
    parts.append(
        Text(f"\n  of {len(found)} series that never changed, {len(found) / 100:.2g} would seem to", style="dim")
    )
    return Group(*parts)


def _since(one: Series) -> Text:
    from rich.text import Text

    if one.levels:
        return Text("\n").join(_told(one, level) for level in reversed(one.levels))
    return Text("too few runs to tell" if one.too_short else "no change", style="dim")


def _told(one: Series, level: Level) -> Text:
    from rich.text import Text

    from harness.gate import METRICS

    metric = METRICS[one.metric]
    sign, style = ("✗", "red") if level.worse else ("✓", "green")
    where = f"{_short(level.since)} (last before: {_short(level.before)})"
    if level.change.earliest != level.change.latest:
        where += f", or from {_short(level.earliest)} to {_short(level.latest)}"
    figures = f"{metric.figure(level.change.before)} → {metric.figure(level.change.after)}"
    return Text(f"{sign} {figures} since {where}, {level.created[:10]}", style=style)


def _short(commit: str) -> str:
    return f"{commit[:10]}{'+' if commit.endswith('+') else ''}" if commit else "an unknown commit"


def bars(values: Sequence[float]) -> str:
    """One bar per value, between the least and the largest."""
    least, most = min(values), max(values)
    if most <= least:
        return BARS[len(BARS) // 2] * len(values)
    return "".join(BARS[min(len(BARS) - 1, int((value - least) / (most - least) * len(BARS)))] for value in values)
