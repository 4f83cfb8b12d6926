"""Whether two samples differ, by how much, and what difference would have been seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.intervals import (
    CONFIDENCE,
    POWER,
    Bootstrap,
    Floats,
    Resampled,
    harrell_davis,
    minimum_n,
    narrow,
    resampled_ratio,
    too_few,
)

_TAIL = (1 - CONFIDENCE) / 2
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(1 - _TAIL)
_LAID_OUT = 500  # differences up to which the mean of each two is laid out
_CELLS_LIMIT = 20_000_000  # draws x values of one resampling: beyond, fewer draws are made, so that time stays bounded


class Difference(msgspec.Struct, frozen=True):
    """How far the second of two samples lies above the first.

    ``low``/``high`` is the 95 % interval of ``value`` and ``p_value`` two-sided; ``None`` when n is too small. ``detectable`` is the
    smallest true difference that this test would have shown in 4 of 5 such comparisons (power 0.8 at 5 %).
    """

    value: float | None
    low: float | None
    high: float | None
    p_value: float | None
    n: int  # independent pairs, or blocks of them; for unpaired samples the smaller of the two
    detectable: float | None
    test: str
    note: str = ""


# Pairs: both sides of a pair are drawn together, so what makes an utterance hard for both cancels out.


def paired_wer_difference(
    errors: Sequence[float],
    other_errors: Sequence[float],
    words: Sequence[float],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
) -> Difference:
    """WER of the other less WER of the first over the same utterances, by a paired studentised bootstrap over blocks."""
    change = np.subtract(other_errors, errors).astype(np.float64)
    total = float(np.sum(words))
    count = len(set(blocks))
    test = "paired block bootstrap"
    if not total:
        return Difference(None, None, None, None, count, None, test, "nothing to divide by")
    if count < minimum_n(0.5):
        value = float(change.sum()) / total
        return Difference(value, None, None, None, count, None, test, too_few(count, minimum_n(0.5)))
    return _from_draws(resampled_ratio(change, words, blocks, bootstrap), count, test)


def ratio_difference(
    errors: Sequence[float],
    words: Sequence[float],
    other_errors: Sequence[float],
    other_words: Sequence[float],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
) -> Difference:
    """One rate less another, each a sum over a sum of the same units, by a bootstrap over their blocks.

    Two rates of the same utterances with denominators of their own (two normalisers), or of parts of them (one speaker and the rest):
    blocks are drawn for both at once, so what they have in common is kept. Each side needs blocks enough of its own.
    """
    columns = np.column_stack([errors, words, other_errors, other_words]).astype(np.float64)
    of, units = bootstrap.units(blocks)
    by_unit = np.zeros((units, 4))
    np.add.at(by_unit, of, columns)
    test = "block bootstrap of two rates"
    totals = by_unit.sum(axis=0)
    count = int(min(np.count_nonzero(by_unit[:, 1]), np.count_nonzero(by_unit[:, 3]))) if units else 0
    if not totals[1] or not totals[3]:
        return Difference(None, None, None, None, count, None, test, "nothing to divide by")
    value = float(totals[2] / totals[3] - totals[0] / totals[1])
    if not by_unit[:, 0].any() or not by_unit[:, 2].any():
        return Difference(value, None, None, None, count, None, test, "no errors on one side: nothing to resample")
    if count < minimum_n(0.5):
        return Difference(value, None, None, None, count, None, test, too_few(count, minimum_n(0.5)))
    sums = bootstrap.weights(units).astype(np.float64) @ by_unit
    sums = sums[(sums[:, 1] > 0) & (sums[:, 3] > 0)]
    draws = sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1]
    return _from_draws(Resampled(value, draws, count), count, test)


def paired_quantile_difference(
    values: Sequence[float],
    others: Sequence[float],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
    share: float,
) -> Difference:
    """The quantile of the others less that of the first, over the same utterances, by a bootstrap over blocks.

    Quantiles are those of Harrell and Davis, with which a paired bootstrap keeps its level (Wilcox & Erceg-Hurn, 2012). It is
    not the quantile of the differences: of pure noise that one is above 0 for every share above one half.
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    count = min(len(set(blocks)), a.size)
    test = f"paired bootstrap of p{100 * share:g}"
    if not a.size:
        return Difference(None, None, None, None, 0, None, test, "no pairs")
    value = float(harrell_davis(b, share)[0] - harrell_davis(a, share)[0])
    needed = minimum_n(0.5)
    if a.size < minimum_n(share):
        return Difference(value, None, None, None, count, None, test, too_few(a.size, minimum_n(share), "pairs"))
    if count < needed:
        return Difference(value, None, None, None, count, None, test, too_few(count, needed))
    of, units = bootstrap.units(blocks)
    weights = bootstrap.weights(units)[: max(1000, _CELLS_LIMIT // a.size)]
    draws = [
        harrell_davis(b, share, weights[i : i + 500][:, of]) - harrell_davis(a, share, weights[i : i + 500][:, of])
        for i in range(0, len(weights), 500)
    ]
    return _from_draws(Resampled(value, np.concatenate(draws), units), count, test)


def _from_draws(resampled: Resampled, blocks: int, test: str) -> Difference:
    low, high = resampled.interval()
    detectable = _detectable_factor() * resampled.spread
    return Difference(resampled.value, low, high, resampled.p_value(), blocks, detectable, test, narrow(blocks))


def paired_shift(values: ArrayLike, others: ArrayLike, blocks: Sequence[Hashable]) -> Difference:
    """By how much the others are shifted over the same utterances: signed-rank test and Hodges-Lehmann estimate, over blocks.

    The sign of a whole block of pairs is what chance decides when nothing has changed, so the variance is the sum of squared
    block sums (Rosner, Glynn & Lee, Biometrics 62, 2006). With one pair per block it is Wilcoxon's test with zeros as Pratt treats them.
    The interval holds the shifts that the test does not reject.
    """
    differences = np.subtract(others, values).astype(np.float64)
    numbers: dict[Hashable, int] = {}
    of = np.array([numbers.setdefault(block, len(numbers)) for block in blocks], dtype=np.int64)
    count, test = len(numbers), "signed-rank test, Hodges-Lehmann"
    if not differences.size:
        return Difference(None, None, None, None, 0, None, test, "no pairs")
    signed_rank = _SignedRank(differences, of, count)
    value = signed_rank.centre()
    if count < minimum_n(0.5):
        return Difference(value, None, None, None, count, None, test, too_few(count, minimum_n(0.5), "pairs"))
    statistic = abs(signed_rank.standardised(0.0))
    p_value = 2 * (1 - _NORMAL.cdf(statistic))
    low, high = signed_rank.interval(value)
    error = (high - low) / (2 * _Z)
    note = narrow(count) if count < differences.size else ""
    return Difference(value, low, high, p_value, count, _detectable_factor() * error, test, note)


class _SignedRank:
    """The signed-rank statistic of differences less a shift. It never rises with the shift, so its crossings are found by halving."""

    def __init__(self, differences: Floats, block: NDArray[np.int64], blocks: int) -> None:
        self._differences = differences
        self._block = block
        self._blocks = blocks
        self._least, self._most = float(differences.min()), float(differences.max())
        # Far below what a clock can tell, and above what rounding does to differences that ought to be equal.
        self._close = 1e-9 * max(1e-3, abs(self._least), abs(self._most))

    def _sums(self, shift: float) -> Floats:
        moved = np.rint((self._differences - shift) / self._close)
        sizes = np.abs(moved)
        ordered = np.sort(sizes)
        ranks = np.searchsorted(ordered, sizes, "left") + np.searchsorted(
            ordered, sizes, "right"
        )  # twice the mean rank, less 1
        return np.bincount(self._block, np.sign(moved) * (ranks + 1), self._blocks).astype(np.float64)

    def standardised(self, shift: float) -> float:
        sums = self._sums(shift)
        spread = math.sqrt(float((sums**2).sum()))
        return float(sums.sum()) / spread if spread else 0.0

    def centre(self) -> float:
        """The shift at which the statistic is 0: the median of all means of two differences."""
        n = self._differences.size
        if n <= _LAID_OUT:
            return float(np.median(np.add.outer(self._differences, self._differences)[np.triu_indices(n)])) / 2
        return (self._crossing(lambda z: z > 0) + self._crossing(lambda z: z >= 0)) / 2

    def interval(self, centre: float) -> tuple[float, float]:
        low = self._crossing(lambda z: z > _Z, most=centre)
        high = self._crossing(lambda z: z >= -_Z, least=centre)
        return low, high

    def _crossing(
        self, before: Callable[[float], bool], least: float | None = None, most: float | None = None
    ) -> float:
        """The shift up to which ``before`` holds of the statistic."""
        low = self._least - 2 * self._close if least is None else least
        high = self._most + 2 * self._close if most is None else most
        while high - low > self._close:
            middle = low + (high - low) / 2
            if before(self.standardised(middle)):
                low = middle
            else:
                high = middle
        return (low + high) / 2


def mapsswe(errors: ArrayLike, other_errors: ArrayLike) -> Difference:
    """Matched-pairs test of the errors per segment, other less first (Gillick & Cox 1989).

    A segment here is an utterance: errors in one do not depend on errors in another, which the test asks for. ``value`` is the
    mean difference in errors per segment; the statistic is normal for many segments.
    """
    differences = np.subtract(other_errors, errors).astype(np.float64)
    n = int(differences.size)
    test = "MAPSSWE"
    if n < 2:
        return Difference(
            float(differences.mean()) if n else None, None, None, None, n, None, test, too_few(n, 2, "segments")
        )
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    z = abs(mean) / error if error else math.inf if mean else 0.0
    p_value = 2 * (1 - _NORMAL.cdf(z))
    margin = _Z * error
    note = "" if n >= 30 else f"n = {n} segments: the normal approximation is rough"
    return Difference(mean, mean - margin, mean + margin, p_value, n, _detectable_factor() * error, test, note)


# Samples that are not paired


def rank_shift(values: ArrayLike, others: ArrayLike) -> Difference:
    """Mann-Whitney test and Hodges-Lehmann shift, other less first, for values that are not paired.

    The interval is made of the pairwise differences whose ranks bound the test's statistic (Hollander & Wolfe, 4.3).
    ``detectable`` is that of a t test for the same samples, widened by the rank test's worst efficiency, 0.864.
    """
    from scipy.stats import mannwhitneyu

    first, second = np.sort(np.asarray(values, dtype=np.float64)), np.sort(np.asarray(others, dtype=np.float64))
    n, m = int(first.size), int(second.size)
    test = "Mann-Whitney, Hodges-Lehmann"
    if not n or not m:
        return Difference(None, None, None, None, 0, None, test, "no values")
    pairs = n * m
    shift = (_pairwise(first, second, (pairs + 1) // 2) + _pairwise(first, second, pairs // 2 + 1)) / 2
    if min(n, m) < 4:  # 4 against 4 is the least that can come out below 5 %
        return Difference(shift, None, None, None, min(n, m), None, test, too_few(min(n, m), 4, "values"))
    p_value = float(mannwhitneyu(second, first, alternative="two-sided").pvalue)
    spread = math.sqrt(pairs * (n + m + 1) / 12)
    # The least rank q with P(statistic <= q) >= 2.5 %, by the normal law with its continuity correction.
    rank = max(1, math.ceil(pairs / 2 - _Z * spread - 0.5))
    low, high = _pairwise(first, second, rank), _pairwise(first, second, pairs + 1 - rank)
    error = math.sqrt((float(first.var(ddof=1)) / n + float(second.var(ddof=1)) / m) / 0.864)
    return Difference(shift, low, high, p_value, min(n, m), _detectable_factor() * error, test)


def _pairwise(first: Floats, second: Floats, rank: int) -> float:
    """The ``rank``-th smallest of all ``second[j] - first[i]``, both sorted, in memory of one side only.

    Bisects on the value: how many differences are at most x is a sorted search per value of the first.
    """
    if first.size * second.size <= 250_000:
        return float(np.partition(np.subtract.outer(second, first).ravel(), rank - 1)[rank - 1])
    low, high = float(second[0] - first[-1]), float(second[-1] - first[0])
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if int(np.searchsorted(second, first + middle, side="right").sum()) >= rank:
            high = middle
        else:
            low = middle
    return high


def _detectable_factor() -> float:
    return _Z + _NORMAL.inv_cdf(POWER)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the adjusted p is below 5 % and the chance of any false alarm stays below 5 %."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return adjusted


def detectable_events(significance: float) -> float:
    """How many events must be expected, where none were before, for a sign test to call them significant in 4 of 5 cases.

    Where no utterance changed there is no spread to tell what would have been seen. But a change that adds so few errors that
    fewer than k show cannot be significant: k equal signs have the chance 2 * 0.5**k. The expected number is that of a Poisson
    law which reaches k with the power wanted.
    """
    from scipy.stats import chi2

    k = math.ceil(math.log2(2 / significance))
    return float(chi2.ppf(POWER, 2 * k) / 2)
