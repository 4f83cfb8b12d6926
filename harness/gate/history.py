"""The figures of all runs that were kept, and since which commit they lie where they lie."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa

from harness import statistics, store
from harness.gate.records import COORDINATES, IDENTITY, CellRecord, opened, read
from harness.gate.testing import figures
from harness.gate.tolerances import METRICS, TOLERANCES, Tolerance
from harness.statistics import LEAST_ON_A_SIDE, LONGEST_SERIES, Change, Difference

SIGNIFICANCE = 0.01  # for each series: of a hundred that never changed, one seems to
KEY = (*COORDINATES, *IDENTITY, "machine")  # figures are of one series when these agree
_TEXT = (
    "created",
    "run",
    "commit",
    "cell",
    *(name for name in KEY if name not in ("concurrency", "delay_ms", "packet_ms")),
)
ROWS = pa.schema(
    [
        *((name, pa.string()) for name in _TEXT),
        *((name, pa.int32()) for name in ("concurrency", "delay_ms", "packet_ms")),
        ("model", pa.string()),
        ("server_options", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("n", pa.int32()),
    ]
)


class Level(msgspec.Struct, frozen=True):
    """A change of level, with the runs that it lies between."""

    change: Change
    before: str  # commit of the last run on the old level
    since: str  # commit of the first run on the new one
    earliest: str  # the first and the last commit at which it may have come instead
    latest: str
    run: str
    created: str

    @property
    def worse(self) -> bool:
        return self.change.after > self.change.before


class Series(msgspec.Struct, frozen=True):
    """One metric of one cell on one machine, in the order of time."""

    cell: str
    metric: str
    machine: str
    dataset: str
    engine: str
    values: list[float]
    runs: list[str]
    commits: list[str]
    levels: list[Level]

    @property
    def too_short(self) -> bool:
        """Whether no change, whatever its size, could have been told yet."""
        return len(self.values) < statistics.smallest_series(SIGNIFICANCE, max(LEAST_ON_A_SIDE, len(self.values) // 2))

    @property
    def names(self) -> list[str]:
        """Each run by its commit, or by its day where that is not known."""
        return [commit[:9] or run[:8] for commit, run in zip(self.commits, self.runs, strict=True)]

    @property
    def stretches(self) -> list[tuple[int, int, float]]:
        """The levels: first run, run behind the last, median."""
        edges = [0, *(level.change.at for level in self.levels), len(self.values)]
        return [(a, b, median(self.values[a:b])) for a, b in pairwise(edges)]

    def shift(self, number: int) -> Difference:
        """How far a level lies above the one before it, with its interval. The same values chose the place, which flatters a little."""
        (a, b, _), (c, d, _) = self.stretches[number : number + 2]
        return statistics.rank_shift(self.values[a:b], self.values[c:d])

    def sentences(self) -> list[str]:
        """Each change of level, by how much and since when; none where there is none."""
        metric, found = METRICS[self.metric], []
        for number, level in enumerate(self.levels):
            shift = self.shift(number)
            change = "-" if shift.value is None else metric.signed(shift.value)
            if shift.low is not None and shift.high is not None:
                change += f" [{metric.signed(shift.low)}, {metric.signed(shift.high)}]"
            earliest, latest = self.names[level.change.earliest], self.names[level.change.latest]
            place = "" if earliest == latest else f" (95 %: from {earliest} to {latest})"
            verdict = "worse" if level.worse else "better"
            found.append(
                f"{metric.label}, {self.engine} on {self.dataset}, {self.cell}: {verdict} by {change} {metric.unit} "
                f"since {self.names[level.change.at]}{place}."
            )
        return found


def shortest_that_tells() -> int:
    """With fewer runs than this no change of any size is told."""
    length = 2 * LEAST_ON_A_SIDE
    while length < statistics.smallest_series(SIGNIFICANCE, max(LEAST_ON_A_SIDE, length // 2)):
        length += 1
    return length


def conclude(found: Sequence[Series]) -> list[str]:
    """What changed and since when, how many series did not, and of how many nothing can be told yet."""
    said = [sentence for series in found for sentence in series.sentences()]
    quiet = [series for series in found if not series.levels and not series.too_short]
    short = [series for series in found if series.too_short]
    if quiet:
        said.append(f"{len(quiet)} series: no change beyond what is allowed can be told, over {_lengths(quiet)}.")
    if short:
        said.append(
            f"{len(short)} series: cannot tell, they have {_lengths(short)} and {shortest_that_tells()} are the fewest that can "
            "show a change."
        )
    if found:
        said.append(f"Of {len(found)} series that never changed, {SIGNIFICANCE * len(found):.2g} would seem to have.")
    return said or ["Cannot tell: there is no run yet."]


def _lengths(series: Sequence[Series]) -> str:
    few, many = min(len(one.values) for one in series), max(len(one.values) for one in series)
    return f"{few} to {many} runs" if few < many else f"{few} run{'s' if few != 1 else ''}"


def frame(found: Sequence[Series]) -> pd.DataFrame:
    """A row per series: how long it is, its first and newest figure, and what became of it."""
    rows = []
    for one in found:
        metric = METRICS[one.metric]
        verdict = "worse" if one.levels and one.levels[-1].worse else "better" if one.levels else "no change"
        rows.append(
            {
                "engine, dataset": f"{one.engine} on {one.dataset}",
                "cell": one.cell,
                "metric": metric.label if metric.percent else f"{metric.label} ({metric.unit})",
                "runs": len(one.values),
                "oldest": metric.figure(one.values[0]),
                "newest": metric.figure(one.values[-1]),
                "level": "cannot tell" if one.too_short else verdict,
            }
        )
    return pd.DataFrame(rows)


def as_rows(cells: Iterable[CellRecord]) -> list[dict[str, Any]]:
    """One row per figure of each run."""
    return [
        {
            **{name: getattr(cell, name) for name in KEY},
            "speed": str(cell.speed),
            "driver_options": " ".join(cell.driver_options),
            "created": cell.created,
            "run": cell.run,
            "commit": cell.commit,
            "cell": cell.label,
            "model": cell.model,
            "server_options": " ".join(cell.server_options),
            "metric": metric,
            "value": value,
            "n": n,
        }
        for cell in cells
        for metric, (value, n) in figures(cell).items()
    ]


def read_history(path: Path) -> list[dict[str, Any]]:
    """All rows kept; none where there is no file yet. Raises `harness.store.StoreError` for a file that is none of ours."""
    return store.read_rows(path) if path.exists() else []


def known(folders: Sequence[Path], baselines: Sequence[Path]) -> tuple[list[CellRecord], list[str]]:
    """The records of runs and of baseline files, and what was left out with its reason.

    Raises:
        GateError: a baseline that cannot be read.
    """
    cells, refused = read(folders, "run") if folders else ([], [])
    for file in baselines:
        cells += [_dated(cell) for cell in opened(json.loads(file.read_text(encoding="utf-8"))).cells]
    return cells, refused


def collected(path: Path, cells: Sequence[CellRecord]) -> list[dict[str, Any]]:
    """The rows of a history file and of runs, each run once, in the order of time. Nothing is written.

    Raises:
        harness.store.StoreError: a history file that is none of ours.
    """
    kept = read_history(path)
    there = {row["run"] for row in kept}
    rows = kept + as_rows({cell.run: cell for cell in cells if cell.run not in there}.values())
    return sorted(rows, key=lambda row: (row["created"], row["run"]))


def _dated(cell: CellRecord) -> CellRecord:
    """Older baselines do not say when their runs were made, but the runs' names do."""
    if cell.created:
        return cell
    try:
        made = datetime.strptime(cell.run[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError:
        return cell
    return msgspec.structs.replace(cell, created=made.isoformat())


def appended(path: Path, cells: Sequence[CellRecord]) -> tuple[int, int]:
    """Adds the figures of runs to a history file. A run that is there already is replaced: scores may have been made again.

    Returns how many runs are new, and how many there are in all.
    """
    kept = read_history(path)
    known, added = {row["run"] for row in kept}, {cell.run for cell in cells}
    rows = [row for row in kept if row["run"] not in added] + as_rows(cells)
    rows.sort(key=lambda row: (row["created"], row["run"]))
    path.parent.mkdir(parents=True, exist_ok=True)
    store.write_rows(path, rows, ROWS)
    return len(added - known), len(known | added)


def since_when(
    rows: Iterable[Mapping[str, Any]],
    tolerances: Mapping[str, Tolerance] | None = None,
    significance: float = SIGNIFICANCE,
) -> list[Series]:
    """The series of a history with their changes of level. A change within the tolerance of its metric is not told.

    A series is as long as its newest `LONGEST_SERIES` runs.
    """
    allowed = TOLERANCES | dict(tolerances or {})
    grouped: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((*(_of(row, name) for name in KEY), row["metric"]), []).append(row)
    order = list(METRICS)
    found = []
    for group in grouped.values():
        newest = sorted(group, key=lambda row: (row["created"], row["run"]))[-LONGEST_SERIES:]
        if newest[0]["metric"] in METRICS:  # a later version may know more of them
            found.append(_series(newest, allowed[newest[0]["metric"]], significance))
    return sorted(found, key=lambda one: (one.machine, one.dataset, one.engine, one.cell, order.index(one.metric)))


def _of(row: Mapping[str, Any], name: str) -> Any:
    """Histories begun before there were options of drivers have no column of them."""
    return row.get(name, "") or "" if name == "driver_options" else row[name]


def _series(rows: Sequence[Mapping[str, Any]], tolerance: Tolerance, significance: float) -> Series:
    values = [float(row["value"]) for row in rows]
    changes = statistics.change_points(values, significance=significance)
    beyond = [change for change in changes if abs(change.after - change.before) > tolerance.around(change.before)]
    return Series(
        cell=rows[0]["cell"],
        metric=rows[0]["metric"],
        machine=rows[0]["machine"],
        dataset=rows[0]["dataset"],
        engine=rows[0]["engine"],
        values=values,
        runs=[row["run"] for row in rows],
        commits=[row["commit"] for row in rows],
        levels=[_level(change, rows) for change in beyond],
    )


def _level(change: Change, rows: Sequence[Mapping[str, Any]]) -> Level:
    first = rows[change.at]
    return Level(
        change=change,
        before=rows[change.at - 1]["commit"],
        since=first["commit"],
        earliest=rows[change.earliest]["commit"],
        latest=rows[change.latest]["commit"],
        run=first["run"],
        created=first["created"],
    )
