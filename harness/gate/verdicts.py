"""The decision whether a candidate is worse than a baseline, from their per-utterance counts and latencies alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from scipy.stats import norm

from harness import statistics
from harness.gate.matching import Pair, differences, like_with_like, whatever_pairs
from harness.gate.records import CellRecord, opened, pooled, read
from harness.gate.testing import Test, tests, untested
from harness.gate.tolerances import METRICS, TOLERANCES, GateError, Tolerance
from harness.statistics import POWER, RESAMPLES, Bootstrap

SIGNIFICANCE = 0.05  # over all tests of one gate, after Holm's correction
TOLD = 4  # changes that a sentence names
SEED = 0  # of the bootstrap: the same two files always get the same verdict


class Verdict(StrEnum):
    """What a comparison came to."""

    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"


@dataclass(frozen=True, slots=True)
class Judged:
    """A test with its verdict. ``seen`` is the smallest true change that would have failed the gate with power 0.8."""

    test: Test
    adjusted_p: float
    verdict: Verdict
    seen: float | None
    remark: str

    def told(self) -> str:
        """In a few words."""
        metric = METRICS[self.test.metric]
        change = self.test.change.value
        return (
            f"{metric.label} {metric.figure(self.test.baseline)} → {metric.figure(self.test.candidate)} "
            f"({'-' if change is None else metric.signed(change)}{self.interval()} {metric.unit}, {self.test.cell})"
        )

    def interval(self) -> str:
        """The change's interval in brackets, where there is one."""
        change, metric = self.test.change, METRICS[self.test.metric]
        if change.low is None or change.high is None:
            return ""
        return f" [{metric.signed(change.low)}, {metric.signed(change.high)}]"


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate came to: judged metrics, or the reasons why nothing could be compared."""

    judged: Sequence[Judged] = ()
    refused: Sequence[str] = ()
    notes: Sequence[str] = ()
    caveats: Sequence[str] = ()

    @property
    def verdict(self) -> Verdict:
        verdicts = {judged.verdict for judged in self.judged}
        if Verdict.WORSE in verdicts:
            return Verdict.WORSE
        return Verdict.BETTER if Verdict.BETTER in verdicts else Verdict.CANNOT_TELL

    @property
    def exit_code(self) -> int:
        """0: no regression, 1: a regression, 2: the two cannot be compared."""
        if self.refused:
            return 2
        return 1 if self.verdict is Verdict.WORSE else 0

    def of(self, verdict: Verdict) -> list[Judged]:
        return [judged for judged in self.judged if judged.verdict is verdict]

    def sentence(self) -> str:
        """The result in one sentence."""
        if self.refused:
            return f"CANNOT COMPARE: {'; '.join(self.refused)}"
        if worse := self.of(Verdict.WORSE):
            return f"REGRESSION: {_told(worse)}"
        if better := self.of(Verdict.BETTER):
            return f"PASS, and better: {_told(better)}"
        blind = sum(judged.seen is None for judged in self.judged)
        unable = f" ({blind} of them on too few utterances to see anything)" if blind else ""
        return f"PASS: nothing got worse by more than its tolerance in {len(self.judged)} tests{unable}"

    def changes(self) -> str:
        """What differs, in one sentence, where nobody asked for a pass."""
        if self.refused:
            return self.sentence()
        parts = [
            f"{verdict}: {_told(found)}" for verdict in (Verdict.WORSE, Verdict.BETTER) if (found := self.of(verdict))
        ]
        rest = len(self.of(Verdict.CANNOT_TELL))
        return "; ".join([*(f"B is {part}" for part in parts), f"{rest} of {len(self.judged)} metrics: cannot tell"])


def _told(found: Sequence[Judged]) -> str:
    """The largest changes, as multiples of what is allowed, and how many more there are."""
    least = 1e-9
    largest = sorted(found, key=lambda one: -abs(one.test.change.value or 0.0) / max(one.test.tolerance, least))
    more = f"; and {len(found) - TOLD} more" if len(found) > TOLD else ""
    return "; ".join(one.told() for one in largest[:TOLD]) + more


def compare(
    baseline: Mapping[str, Any], folders: Sequence[Path], tolerances: Mapping[str, Tolerance] | None = None
) -> GateResult:
    """Judges the run folders against a baseline made by `save`. ``tolerances`` go before those in the baseline.

    Never raises for what cannot be compared: the result then says why, and its exit code is 2.
    """
    try:
        kept = opened(baseline)
    except GateError as error:
        return GateResult(refused=[str(error)])
    candidates, refused = read(folders, "candidate")
    if refused:
        return GateResult(refused=refused)
    return judge(kept.cells, pooled(candidates), TOLERANCES | kept.tolerances | dict(tolerances or {}))


def compare_runs(
    ones: Sequence[CellRecord], others: Sequence[CellRecord], tolerances: Mapping[str, Tolerance] | None = None
) -> GateResult:
    """What changes from the one side to the other, which may be measured differently (delay, engine, protocol) on the same corpus."""
    return judge(pooled(ones), pooled(others), tolerances, match=whatever_pairs)


def judge(
    baselines: Sequence[CellRecord],
    candidates: Sequence[CellRecord],
    tolerances: Mapping[str, Tolerance] | None = None,
    resamples: int = RESAMPLES,
    match: Callable[[Sequence[CellRecord], Sequence[CellRecord]], list[Pair]] = like_with_like,
) -> GateResult:
    """The decision alone, from records already read."""
    try:
        pairs = match(baselines, candidates)
        allowed, bootstrap = TOLERANCES | dict(tolerances or {}), Bootstrap(SEED, resamples)
        made = [test for pair in pairs for test in tests(pair, allowed, bootstrap)]
    except GateError as error:
        return GateResult(refused=[str(error)])
    notes = [*differences(pairs), *(note for pair in pairs for note in untested(pair))]
    for left, what in (
        (len(baselines) - len({id(old) for old, _ in pairs}), "cells of the baseline have no counterpart"),
        (len(candidates) - len({id(new) for _, new in pairs}), "candidate cells are not in the baseline"),
    ):
        if left > 0:
            notes.append(f"{left} {what} and were left out")
    return GateResult(
        judged=decide(made),
        notes=list(dict.fromkeys(notes)),
        caveats=list(dict.fromkeys(cell.caveat for _, cell in pairs if cell.caveat)),
    )


def decide(made: Sequence[Test]) -> list[Judged]:
    """The verdict of each test, given all those that were made with it."""
    # Failures are counted, not tested: they take no part in the correction.
    corrected = iter(statistics.holm([test.p for test in made if test.metric != "errors"]))
    adjusted = [test.p if test.metric == "errors" else next(corrected) for test in made]
    count = sum(test.metric != "errors" for test in made)
    return [_judged(test, p, count) for test, p in zip(made, adjusted, strict=True)]


def _judged(test: Test, adjusted: float, tests: int) -> Judged:
    change, seen = test.change.value, could_have_seen(test, tests)
    significant = adjusted <= SIGNIFICANCE
    if change is None:
        return Judged(test, adjusted, Verdict.CANNOT_TELL, seen, test.change.note or "too little data")
    if significant and abs(change) > test.tolerance:
        return Judged(test, adjusted, Verdict.WORSE if change > 0 else Verdict.BETTER, seen, "")
    return Judged(test, adjusted, Verdict.CANNOT_TELL, seen, _why_not(test, significant, seen))


def _why_not(test: Test, significant: bool, seen: float | None) -> str:
    low, high = test.change.low, test.change.high
    if test.metric == "errors":
        return "no new failures" if not test.change.value else "within allowed"
    if seen is None or low is None or high is None:
        return test.change.note or "too few utterances"
    if low == high == 0:
        return "identical"
    if significant:
        return "real, but allowed"
    if -test.tolerance <= low and high <= test.tolerance:
        return "within allowed"
    return "not significant"


def could_have_seen(test: Test, tests: int) -> float | None:
    """The smallest true worsening that this gate fails with power 0.8, or ``None`` when the sample gives no interval.

    The standard error is read off the 95 % interval. A failure needs an estimate beyond the tolerance and beyond the significance
    bound at the strictest step of Holm's procedure; the estimate exceeds the larger of the two in 80 % of cases when the true
    change lies 0.84 standard errors above it. Where errors are counted there is more: a change brings a spread of its own,
    which runs that agree do not show, and too few new errors are never significant.
    """
    low, high = test.change.low, test.change.high
    if test.metric == "errors":
        return (math.floor(test.tolerance * test.n) + 1) / test.n if test.n else None
    if low is None or high is None:
        return None
    strictest = SIGNIFICANCE / max(1, tests)
    standard_error = float((high - low) / (2 * norm.ppf(0.975)))
    bound = max(test.tolerance, float(norm.ppf(1 - strictest / 2)) * standard_error)
    if test.counted_over is None:
        return bound + float(norm.ppf(POWER)) * standard_error
    standard_error = max(standard_error, math.sqrt(bound / test.counted_over))
    least = statistics.detectable_events(strictest) / test.counted_over
    return max(bound + float(norm.ppf(POWER)) * standard_error, least)
