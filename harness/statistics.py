"""Intervals, quantiles and tests."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.8
UNITS_LIMIT = 1000  # blocks beyond this many are dealt into groups, so that cost and memory stay bounded
FEW_BLOCKS = 20  # a percentile bootstrap over fewer blocks is too narrow
_GRID = 1024
_TAIL = (1 - CONFIDENCE) / 2

Floats = NDArray[np.float64]


class Estimate(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval. ``low``/``high`` are ``None`` when n is too small to give one; ``note`` then says so."""

    value: float | None
    low: float | None = None
    high: float | None = None
    note: str = ""


class Distribution(msgspec.Struct, frozen=True):
    """Quantiles of a measure. ``streams`` is the number of independent streams, ``values`` the number of values pooled."""

    unit: str
    streams: int
    values: int
    p50: Estimate
    p90: Estimate
    p95: Estimate
    p99: Estimate
    max: float | None
    missing: int = 0  # streams or words for which the measure does not exist, e.g. words never recognised


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


def minimum_n(share: float) -> int:
    """The least n for which the sample's extremes enclose the quantile in 95 % of samples: 72 for p95, 368 for p99.

    An interval from order statistics ends at the maximum at most, which lies above the quantile unless all n values lie below it:
    share**n <= 0.025, and likewise at the other end.
    """
    return math.ceil(max(math.log(_TAIL) / math.log(share), math.log(_TAIL) / math.log(1 - share)))


def order_statistic_interval(ordered: Sequence[float], share: float) -> tuple[float, float] | None:
    """Distribution-free 95 % interval of a quantile from sorted independent values; ``None`` below `minimum_n`.

    The number of values below the quantile is binomial, so ranks follow from its quantiles (David & Nagaraja, 2003, 7.1).
    """
    from scipy.stats import binom

    n = len(ordered)
    if n < minimum_n(share):
        return None
    low, high = int(binom.ppf(_TAIL, n, share)), int(binom.ppf(1 - _TAIL, n, share)) + 1
    return float(ordered[low - 1]), float(ordered[high - 1])


class Bootstrap:
    """Resampled weights of independent blocks, from a seed: the same seed and blocks give the same intervals.

    More than `UNITS_LIMIT` blocks are dealt at random into that many groups, which are then resampled whole. Groups of
    independent blocks are independent too, so the intervals stay right; only their own precision is that of 1000 blocks.
    """

    def __init__(self, seed: int, resamples: int = RESAMPLES) -> None:
        self.seed = seed
        self.resamples = resamples
        self._weights: dict[int, NDArray[np.float32]] = {}

    def weights(self, units: int) -> NDArray[np.float32]:
        """``resamples`` x ``units``: how often each unit was drawn, with replacement, ``units`` at a time."""
        if units not in self._weights:
            random = np.random.default_rng([self.seed, units])
            rows = []
            for begin in range(0, self.resamples, 500):
                count = min(500, self.resamples - begin)
                draws = random.integers(0, units, size=(count, units))
                draws += np.arange(count)[:, None] * units
                rows.append(
                    np.bincount(draws.ravel(), minlength=count * units).reshape(count, units).astype(np.float32)
                )
            self._weights[units] = np.concatenate(rows)
        return self._weights[units]

    def units(self, blocks: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
        """The unit of each of ``blocks``, numbered from 0, and how many units there are."""
        numbers: dict[Hashable, int] = {}
        of = np.array([numbers.setdefault(block, len(numbers)) for block in blocks], dtype=np.int64)
        if len(numbers) <= UNITS_LIMIT:
            return of, len(numbers)
        group = np.random.default_rng([self.seed, len(numbers)]).permutation(len(numbers)) % UNITS_LIMIT
        return group[of], UNITS_LIMIT

    def sums(self, columns: ArrayLike, blocks: Sequence[Hashable]) -> tuple[Floats, int]:
        """Resampled sums of each column (``len(blocks)`` x k): ``resamples`` x k, and the number of distinct blocks."""
        values = np.asarray(columns, dtype=np.float64)
        of, units = self.units(blocks)
        by_unit = np.zeros((units, values.shape[1]))
        np.add.at(by_unit, of, values)
        return self.weights(units).astype(np.float64) @ by_unit, len(set(blocks))


def ratio_of_sums(
    numerators: Sequence[float], denominators: Sequence[float], blocks: Sequence[Hashable], bootstrap: Bootstrap
) -> Estimate:
    """Sum over sum, with a percentile bootstrap over blocks: counts add, rates do not."""
    total = float(np.sum(denominators)) if len(denominators) else 0.0
    if not total:
        return Estimate(None, note="nothing to divide by")
    value = float(np.sum(numerators)) / total
    count = len(set(blocks))
    if count < minimum_n(0.5):
        return Estimate(value, note=_too_few(count, minimum_n(0.5)))
    sums, _ = bootstrap.sums(np.column_stack([numerators, denominators]), blocks)
    sums = sums[sums[:, 1] > 0]
    low, high = np.quantile(sums[:, 0] / sums[:, 1], [_TAIL, 1 - _TAIL])
    return Estimate(value, float(low), float(high), _narrow(count))


def distribution(
    groups: Sequence[ArrayLike],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
    *,
    unit: str = "s",
    missing: int = 0,
) -> Distribution:
    """Quantiles of the values of all ``groups`` (one per stream, each in its block) pooled.

    One value per block: intervals from order statistics, exact and distribution-free. Else values of a block are not
    independent: bootstrap over blocks. An interval needs as many streams as `minimum_n` says, whatever number of values they hold.
    """
    arrays = [np.asarray(group, dtype=np.float64).ravel() for group in groups]
    kept = [(array, block) for array, block in zip(arrays, blocks, strict=True) if array.size]
    streams = len(kept)
    if not streams:
        nothing = Estimate(None, note="no values")
        return Distribution(unit, 0, 0, nothing, nothing, nothing, nothing, None, missing)
    values = np.concatenate([array for array, _ in kept])
    of_stream = [block for _, block in kept]
    distinct = len(set(of_stream))
    shares = (0.5, 0.9, 0.95, 0.99)
    points = np.quantile(values, shares)
    single = values.size == distinct
    ordered: list[float] = np.sort(values).tolist() if single else []
    resampled = None
    if not single and distinct >= minimum_n(0.5) and streams >= minimum_n(0.5):
        resampled = _resampled_quantiles([array for array, _ in kept], of_stream, shares, bootstrap)
    estimates = []
    for index, (share, point) in enumerate(zip(shares, points, strict=True)):
        low = high = None
        if streams < minimum_n(share):
            note = _too_few(streams, minimum_n(share), "streams")
        elif single:
            note = ""
            bounds = order_statistic_interval(ordered, share)
            if bounds is not None:
                low, high = bounds
        elif resampled is None:
            note = _too_few(distinct, minimum_n(0.5))
        else:
            note = _narrow(distinct)
            low, high = (float(bound) for bound in np.quantile(resampled[:, index], [_TAIL, 1 - _TAIL]))
        estimates.append(Estimate(float(point), low, high, note))
    p50, p90, p95, p99 = estimates
    return Distribution(unit, streams, int(values.size), p50, p90, p95, p99, float(values.max()), missing)


def _resampled_quantiles(
    arrays: Sequence[Floats], blocks: Sequence[Hashable], shares: Sequence[float], bootstrap: Bootstrap
) -> Floats:
    """``resamples`` x shares. Values are counted per unit in at most 1024 bins of equal counts; the weighted counts give the quantile.

    A bin is an order statistic, so for up to 1024 different values this is exact, beyond that right to 0.1 % of the ranks.
    """
    of, units = bootstrap.units(blocks)
    values = np.concatenate(arrays)
    edges = np.unique(values)
    if edges.size > _GRID:
        ordered = np.sort(values)
        edges = np.unique(ordered[np.linspace(0, ordered.size - 1, _GRID).round().astype(np.int64)])
    bins = np.searchsorted(edges, values)
    unit_of = np.repeat(of, [array.size for array in arrays])
    counts = np.bincount(unit_of * edges.size + bins, minlength=units * edges.size).reshape(units, edges.size)
    cumulated = counts.cumsum(axis=1).astype(np.float32)
    weights = bootstrap.weights(units)
    result = np.empty((len(weights), len(shares)))
    for begin in range(0, len(weights), 500):
        reached = weights[begin : begin + 500] @ cumulated
        for index, share in enumerate(shares):
            below = (reached < share * reached[:, -1:]).sum(axis=1)
            result[begin : begin + 500, index] = edges[np.minimum(below, edges.size - 1)]
    return result


def _too_few(n: int, needed: int, what: str = "blocks") -> str:
    return f"n = {n} {what}, an interval needs {needed}"


def _narrow(blocks: int) -> str:
    return f"only {blocks} blocks: the interval is likely too narrow" if blocks < FEW_BLOCKS else ""


# Comparisons of two samples


def paired_wer_difference(
    errors: Sequence[float],
    other_errors: Sequence[float],
    words: Sequence[float],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
) -> Difference:
    """WER of the other less WER of the first over the same utterances, by a paired bootstrap over blocks.

    Both sides of a pair are drawn together, so what makes an utterance hard for both cancels out.
    """
    change = np.subtract(other_errors, errors).astype(np.float64)
    total = float(np.sum(words))
    count = len(set(blocks))
    test = "paired block bootstrap"
    if not total:
        return Difference(None, None, None, None, count, None, test, "nothing to divide by")
    value = float(change.sum()) / total
    if count < minimum_n(0.5):
        return Difference(value, None, None, None, count, None, test, _too_few(count, minimum_n(0.5)))
    sums, _ = bootstrap.sums(np.column_stack([change, words]), blocks)
    sums = sums[sums[:, 1] > 0]
    return _from_resamples(value, sums[:, 0] / sums[:, 1], count, test)


def paired_latency_difference(
    values: Sequence[float],
    others: Sequence[float],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
    share: float = 0.5,
) -> Difference:
    """Quantile (the median unless said) over utterances of other less first, by a bootstrap over blocks of the differences."""
    differences = np.subtract(others, values).astype(np.float64)
    count = len(set(blocks))
    test = "paired bootstrap of the difference"
    if not differences.size:
        return Difference(None, None, None, None, 0, None, test, "no pairs")
    value = float(np.quantile(differences, share))
    if min(count, differences.size) < minimum_n(share):
        note = _too_few(min(count, differences.size), minimum_n(share), "pairs")
        return Difference(value, None, None, None, count, None, test, note)
    resampled = _resampled_quantiles(
        [differences[i : i + 1] for i in range(differences.size)], blocks, [share], bootstrap
    )
    return _from_resamples(value, resampled[:, 0], count, test)


def paired_quantile_difference(
    values: Sequence[float],
    others: Sequence[float],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap,
    share: float,
) -> Difference:
    """The quantile of the others less that of the first, over the same utterances, by a bootstrap that draws both sides together.

    Not the quantile of the differences: of pure noise that one is above 0 for every share above one half.
    """
    a, b = np.asarray(values, dtype=np.float64), np.asarray(others, dtype=np.float64)
    count = min(len(set(blocks)), a.size)
    test = f"paired bootstrap of p{100 * share:g}"
    if not a.size:
        return Difference(None, None, None, None, 0, None, test, "no pairs")
    value = float(np.quantile(b, share) - np.quantile(a, share))
    if count < minimum_n(share):
        return Difference(value, None, None, None, count, None, test, _too_few(count, minimum_n(share), "pairs"))
    first, second = (
        _resampled_quantiles([side[i : i + 1] for i in range(side.size)], blocks, [share], bootstrap)[:, 0]
        for side in (a, b)
    )
    return _from_resamples(value, second - first, count, test)


def _from_resamples(value: float, resampled: Floats, blocks: int, test: str) -> Difference:
    low, high = np.quantile(resampled, [_TAIL, 1 - _TAIL])
    tail = min(float(np.mean(resampled <= 0)), float(np.mean(resampled >= 0)))
    p_value = min(1.0, max(2 * tail, 2 / (len(resampled) + 1)))  # a bootstrap cannot show a p below its own resolution
    detectable = _detectable_factor() * float(resampled.std(ddof=1))
    return Difference(value, float(low), float(high), p_value, blocks, detectable, test, _narrow(blocks))


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
            float(differences.mean()) if n else None, None, None, None, n, None, test, _too_few(n, 2, "segments")
        )
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    normal = NormalDist()
    z = abs(mean) / error if error else math.inf if mean else 0.0
    p_value = 2 * (1 - normal.cdf(z))
    margin = normal.inv_cdf(1 - _TAIL) * error
    note = "" if n >= 30 else f"n = {n} segments: the normal approximation is rough"
    return Difference(mean, mean - margin, mean + margin, p_value, n, _detectable_factor() * error, test, note)


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
        return Difference(shift, None, None, None, min(n, m), None, test, _too_few(min(n, m), 4, "values"))
    p_value = float(mannwhitneyu(second, first, alternative="two-sided").pvalue)
    spread = math.sqrt(pairs * (n + m + 1) / 12)
    # The least rank q with P(statistic <= q) >= 2.5 %, by the normal law with its continuity correction.
    rank = max(1, math.ceil(pairs / 2 - NormalDist().inv_cdf(1 - _TAIL) * spread - 0.5))
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
    normal = NormalDist()
    return normal.inv_cdf(1 - _TAIL) + normal.inv_cdf(POWER)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment: reject where the adjusted p is below 5 % and the chance of any false alarm stays below 5 %."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = running
    return adjusted


def resampling_block(speakers: Sequence[str]) -> tuple[str, str]:
    """What to resample, ``speaker`` or ``recording``, and why, for one speaker label per stream."""
    named = {speaker for speaker in speakers if speaker}
    if speakers and all(speakers) and len(named) >= FEW_BLOCKS:
        return "speaker", f"{len(named)} speakers, at least {FEW_BLOCKS}"
    if not all(speakers):
        return "recording", "not every recording names its speaker"
    return "recording", f"{len(named)} speakers, fewer than {FEW_BLOCKS}: too few to resample"
