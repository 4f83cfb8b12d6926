"""The figures of all runs that were kept, and since which commit they lie where they lie."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from harness import statistics, store
from harness.gate.records import COORDINATES, IDENTITY, CellRecord
from harness.gate.testing import figures
from harness.gate.tolerances import METRICS, TOLERANCES, Tolerance
from harness.statistics import LONGEST_SERIES, Change

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
        return len(self.values) < statistics.smallest_series(SIGNIFICANCE, max(3, len(self.values) // 2))


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
