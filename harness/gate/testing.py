"""The tests of one cell: how each metric of the candidate is held against the baseline's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import statistics
from harness.gate.matching import Pair
from harness.gate.records import EVENTS, CellRecord
from harness.gate.tolerances import LATENCIES, METRICS, TAILS, GateError, Tolerance
from harness.statistics import Bootstrap, Difference

FEWEST_PAIRS = 6  # below, not even the most extreme outcome of a signed-rank test is significant
TAIL = 0.95
RATES = {  # name -> what is counted, per what
    "hallucinated_words_per_minute": ("hallucinated", "minutes"),
    "unstable_words": ("unstable_words", "reference"),
    "lost_tail_words": ("lost_tail_words", "reference"),
    "stalls_per_minute": ("stalls", "minutes"),
    "dropped": ("dropped_seconds", "seconds"),
}

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Test:
    """One metric of one cell. ``change`` is candidate less baseline, so above 0 is worse; ``p`` is before Holm's correction."""

    cell: str
    metric: str
    n: int
    baseline: float | None
    candidate: float | None
    change: Difference
    p: float
    tolerance: float
    paired: bool = True
    counted_over: float | None = None  # for counted events: the words or minutes that they were counted in


def figures(cell: CellRecord) -> dict[str, tuple[float, int]]:
    """Each metric that a run has, with the number of utterances (streams, for failures) that it rests on."""
    frame = cell.frame()
    found = {"errors": (cell.failed_streams / max(1, cell.streams), cell.streams)}
    for metric, (count, per) in _rates(cell).items():
        counted = _counted(frame, count, per)
        if count in frame and counted[per].sum():
            found[metric] = float(counted[count].sum() / counted[per].sum()), len(counted)
    for name in LATENCIES:
        values = frame[name].dropna().to_numpy(float)
        if len(values):
            found[name] = _middle(values), len(values)
        if name in TAILS and len(values) >= statistics.minimum_n(TAIL):
            found[TAILS[name]] = _tail(values), len(values)
    return found


def _rates(cell: CellRecord) -> dict[str, tuple[str, str]]:
    return {"cer" if cell.counted == "characters" else "wer": ("errors", "reference")} | RATES


def _counted(frame: pd.DataFrame, count: str, per: str, side: str = "") -> pd.DataFrame:
    """The utterances that a rate is over: what is heard in silence counts there alone, audio is dropped anywhere."""
    if per == "seconds":
        return frame
    speech = frame[f"reference{side}"] > 0
    return frame[~speech if count == "hallucinated" else speech]


def _middle(values: Floats) -> float:
    return float(np.median(values))


def _tail(values: Floats) -> float:
    return float(statistics.harrell_davis(values, TAIL)[0])


def tests(pair: Pair, tolerances: Mapping[str, Tolerance], bootstrap: Bootstrap) -> Iterator[Test]:
    """One test per metric that the two have. Raises `GateError` where the candidate lacks one that the baseline has."""
    old, new = pair
    before, after = old.frame(), new.frame()
    both = before.merge(after, left_index=True, right_index=True, suffixes=("_a", "_b"))
    if both.empty:
        raise GateError(
            f"the candidate has none of the baseline's utterances scored ({old.label}); was it a complete run?"
        )
    yield from _rate_tests(old, both, tolerances, bootstrap)
    yield _error_test(old, new, tolerances["errors"])
    for name in LATENCIES:
        a, b = before[name].dropna().to_numpy(float), after[name].dropna().to_numpy(float)
        if not len(a):
            continue
        if not len(b):
            raise GateError(
                f"{METRICS[name].label} was measured on {len(a)} utterances of the baseline "
                f"and on none of the candidate ({new.label})"
            )
        yield _shift_test(old, name, both, a, b, tolerances[name])
        if name in TAILS:
            yield from _tail_test(old, name, both, tolerances[TAILS[name]], bootstrap)


def untested(pair: Pair) -> Iterator[str]:
    """What the two sides cannot be tested for, though one of them has it."""
    old, new = pair
    for side, lacking, other in (("baseline", old, new), ("candidate", new, old)):
        missing = [name.replace("_", " ") for name in EVENTS if name in other.events and name not in lacking.events]
        if missing:
            yield f"the {side} does not know {', '.join(missing)}, which are not gated: make it again"


def _rate_tests(
    old: CellRecord, both: pd.DataFrame, tolerances: Mapping[str, Tolerance], bootstrap: Bootstrap
) -> Iterator[Test]:
    for metric, (count, per) in _rates(old).items():
        frame = _counted(both, count, per, "_a")
        if f"{count}_a" not in frame or not frame[f"{per}_a"].sum():
            continue
        a, b = frame[f"{count}_a"].to_numpy(float), frame[f"{count}_b"].to_numpy(float)
        if metric in RATES and not (a.any() or b.any()):
            continue  # nothing on either side: there is nothing to test, and nothing to correct for
        yield _rate_test(old, metric, frame, a, b, frame[f"{per}_a"].to_numpy(float), tolerances[metric], bootstrap)


def _rate_test(
    old: CellRecord,
    metric: str,
    frame: pd.DataFrame,
    a: Floats,
    b: Floats,
    size: Floats,
    tolerance: Tolerance,
    bootstrap: Bootstrap,
) -> Test:
    change = statistics.paired_wer_difference(list(a), list(b), list(size), _blocks(old, frame), bootstrap)
    p = _p(change)
    if metric in ("wer", "cer"):
        # The cross-check: where the two tests disagree the larger p counts, so nothing fails on one of them alone.
        p = max(p, _p(statistics.mapsswe(list(a), list(b))))
    total = float(size.sum())
    base, now = float(a.sum()) / total, float(b.sum()) / total
    counted_over = None if metric == "dropped" else total  # seconds are an amount, not events
    return Test(old.label, metric, len(frame), base, now, change, p, tolerance.around(base), counted_over=counted_over)


def _blocks(old: CellRecord, frame: pd.DataFrame) -> list[str]:
    """What is resampled: what the run's own intervals resampled."""
    return [str(name) for name in (frame["speaker_a"] if old.block == "speaker" else frame.index)]


def _p(change: Difference) -> float:
    return 1.0 if change.p_value is None else change.p_value


def _error_test(old: CellRecord, new: CellRecord, tolerance: Tolerance) -> Test:
    """New errors are faults, not noise: any beyond the tolerance fail, so the p stands for certainty and not for a test."""
    before, after = old.failed_streams / max(1, old.streams), new.failed_streams / max(1, new.streams)
    allowed = tolerance.around(before)
    certain = 0.0 if abs(after - before) > allowed else 1.0
    change = Difference(after - before, None, None, certain, new.streams, None, "counted")
    return Test(old.label, "errors", new.streams, before, after, change, certain, allowed)


def _shift_test(old: CellRecord, name: str, both: pd.DataFrame, a: Floats, b: Floats, tolerance: Tolerance) -> Test:
    """A shift of the middle: of the differences per utterance where most of them pair, else between the two samples."""
    pair = both.dropna(subset=[f"{name}_a", f"{name}_b"])
    paired = len(pair) >= FEWEST_PAIRS and len(pair) >= min(len(a), len(b)) / 2
    if paired:
        a, b = pair[f"{name}_a"].to_numpy(float), pair[f"{name}_b"].to_numpy(float)
        change = statistics.paired_shift(a, b, _blocks(old, pair))
    else:
        change = statistics.rank_shift(a, b)
    base, n = _middle(a), len(pair) if paired else change.n
    return Test(old.label, name, n, base, _middle(b), change, _p(change), tolerance.around(base), paired=paired)


def _tail_test(
    old: CellRecord, name: str, both: pd.DataFrame, tolerance: Tolerance, bootstrap: Bootstrap
) -> Iterator[Test]:
    """The p95 over utterances: what a shift of the middle does not show, such as one final in ten coming seconds late."""
    pair = both.dropna(subset=[f"{name}_a", f"{name}_b"])
    if pair.empty:
        return
    before, after = pair[f"{name}_a"].to_numpy(float), pair[f"{name}_b"].to_numpy(float)
    change = statistics.paired_quantile_difference(list(before), list(after), _blocks(old, pair), bootstrap, TAIL)
    base = _tail(before)
    yield Test(old.label, TAILS[name], len(pair), base, _tail(after), change, _p(change), tolerance.around(base))
