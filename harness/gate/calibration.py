"""Tolerances from runs of one build: what differs between them although nothing has changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import msgspec
import numpy as np
from scipy.stats import t as student

from harness.gate.records import CellRecord
from harness.gate.tolerances import TOLERANCES, GateError, Tolerance
from harness.gate.verdicts import Judged, Verdict, judge

FEWEST_RUNS = 3
BEYOND = 0.99  # of the changes between two runs of one build stay within a proposed tolerance, if they are normal
RESAMPLES = 1000
LEAST = 0.001  # no tolerance is below what the stored figures resolve: 0.1 points, 1 ms


class Proposal(msgspec.Struct, frozen=True):
    """The tolerance proposed for one metric, with what it rests on."""

    metric: str
    absolute: float
    typical: float  # root mean square of the changes between two runs
    largest: float
    in_force: float  # what is allowed now, at the runs' own level
    sees: float | None  # the smallest true worsening that fails with the proposed tolerance, median over pairs
    pairs: int


class Calibration(msgspec.Struct, frozen=True):
    """What the runs of one build say."""

    proposals: list[Proposal]
    runs: int  # of the cell that has fewest
    cells: int
    pairs: int
    alarms: int  # pairs that fail with the tolerances in force
    alarms_left: int  # pairs that fail with those proposed


def propose(cells: Sequence[CellRecord], tolerances: dict[str, Tolerance] | None = None) -> Calibration:
    """Tolerances that the scatter between repetitions of each cell asks for.

    Raises:
        GateError: there are fewer than `FEWEST_RUNS` repetitions of a cell, or two of them cannot be compared.
    """
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault(cell.key, []).append(cell)
    if not groups:
        raise GateError("nothing to calibrate on: no run given")
    for group in groups.values():
        if len(group) < FEWEST_RUNS:
            raise GateError(
                f"{len(group)} runs of {group[0].label}; what differs between runs needs {FEWEST_RUNS} at least, better 5 or more"
            )
    in_force = TOLERANCES | (tolerances or {})
    found, alarms = _changes(groups, in_force)
    freedom = sum(len(group) - 1 for group in groups.values())
    factor = float(student.ppf((1 + BEYOND) / 2, freedom))
    absolute = {name: _tolerance(judged, factor) for name, judged in found.items()}
    again, left = _changes(groups, in_force | {name: Tolerance(value) for name, value in absolute.items()})
    proposals = [_proposal(name, absolute[name], found[name], again[name]) for name in found]
    fewest = min(len(group) for group in groups.values())
    pairs = sum(math.comb(len(group), 2) for group in groups.values())
    return Calibration(proposals, fewest, len(groups), pairs, alarms, left)


def _changes(
    groups: dict[tuple[Any, ...], list[CellRecord]], tolerances: dict[str, Tolerance]
) -> tuple[dict[str, list[Judged]], int]:
    """What each metric came to in each pair of runs, and how many pairs failed."""
    found: dict[str, list[Judged]] = {}
    alarms = 0
    for group in groups.values():
        for one, other in combinations(group, 2):
            result = judge([one], [other], tolerances, RESAMPLES)
            if result.refused:
                raise GateError(result.sentence())
            # A change for the better is the same pair seen from the other side.
            alarms += any(judged.verdict is not Verdict.CANNOT_TELL for judged in result.judged)
            for judged in result.judged:
                if (
                    judged.seen is not None and judged.test.change.value is not None
                ):  # what cannot fail needs no tolerance
                    found.setdefault(judged.test.metric, []).append(judged)
    return found, alarms


def _tolerance(judged: Sequence[Judged], factor: float) -> float:
    changes = np.array([one.test.change.value for one in judged], dtype=np.float64)
    if judged[0].test.metric == "errors":
        return float(np.abs(changes).max())  # failures are not spread about a mean: allow what was seen
    typical = float(np.sqrt((changes**2).mean()))
    wanted = max(factor * typical, float(np.abs(changes).max()), LEAST)
    return math.ceil(wanted * 1000) / 1000


def _proposal(name: str, absolute: float, judged: Sequence[Judged], again: Sequence[Judged]) -> Proposal:
    changes = np.array([one.test.change.value for one in judged], dtype=np.float64)
    seen = [one.seen for one in again if one.seen is not None]
    return Proposal(
        metric=name,
        absolute=absolute,
        typical=float(np.sqrt((changes**2).mean())),
        largest=float(np.abs(changes).max()),
        in_force=float(np.median([one.test.tolerance for one in judged])),
        sees=float(np.median(seen)) if seen else None,
        pairs=len(judged),
    )
