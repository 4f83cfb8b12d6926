"""How sure a rate or a quantile is."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
CONFIDENCE = 0.95
POWER = 0.8
UNITS_LIMIT = 1000  # blocks beyond this many are dealt into groups, so that cost and memory stay bounded
FEW_BLOCKS = 20  # below, intervals over blocks are too narrow whatever the method
_GRID = 4096
_TOLD_BY_DRAWS = 5  # draws beyond a point, below which their share says little
_TAIL = (1 - CONFIDENCE) / 2
_NORMAL = NormalDist()

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


def interpolated_interval(ordered: Sequence[float] | Floats, share: float) -> tuple[float, float] | None:
    """The interval of `order_statistic_interval` drawn in to a confidence of 95 % instead of at least 95 %; ``None`` below `minimum_n`.

    Ranks are whole, so an interval that ends at one covers up to 98 %. Each end lies between the last rank that is far enough out
    and the next one in, at the place that an exponential spacing of the values gives it (Nyblom, Biometrika 79, 1992; for the median
    that is Hettmansperger & Sheather, 1986).
    """
    n = len(ordered)
    if n < minimum_n(share):
        return None
    values = np.asarray(ordered, dtype=np.float64)
    rank, weight = _place(n, share)
    low = (1 - weight) * values[rank - 1] + weight * values[rank]
    rank, weight = _place(n, 1 - share)  # the upper end is the lower one of the values turned round
    high = (1 - weight) * values[-rank] + weight * values[-rank - 1]
    return float(low), float(high)


@lru_cache(maxsize=4096)
def _place(n: int, share: float) -> tuple[int, float]:
    """Where the lower end lies: behind which rank, and what part of the way to the next one."""
    from scipy.stats import binom

    rank = int(binom.ppf(_TAIL, n, share))
    outer, inner = float(binom.cdf(rank - 1, n, share)), float(binom.cdf(rank, n, share))  # chances to miss
    if outer >= _TAIL:
        return rank, 0.0
    odds = rank * (1 - share) / ((n - rank) * share) * (inner - _TAIL) / (_TAIL - outer)
    return rank, 1 / (1 + odds)


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


@dataclass(frozen=True, slots=True)
class Resampled:
    """A figure with its bootstrap draws, and the standard error of it and of each draw where they are known.

    Draws alone are too narrow: they lack the uncertainty of their own spread, and lean where the figure is skewed, as
    error rates near 0 are. With standard errors they are read as draws of (figure - truth) / error, which makes up for both (the
    studentised bootstrap; Efron & Tibshirani, 1993, 12.5). Without, their quantiles are taken as far out as Student's t for so many
    blocks asks for (Hesterberg, 2015).
    """

    value: float
    draws: Floats
    blocks: int
    error: float | None = None
    errors: Floats | None = None

    @property
    def spread(self) -> float:
        return float(self.draws.std(ddof=1))

    def interval(self) -> tuple[float, float]:
        """The 95 % interval."""
        if not self._varied:
            return self.value, self.value
        ratios = self._studentised()
        if self.error is not None and ratios is not None:
            low, high = np.quantile(ratios, [_TAIL, 1 - _TAIL])
            return float(self.value - high * self.error), float(self.value - low * self.error)
        share = _NORMAL.cdf(-student_t(self.blocks - 1) * self._widening)
        low, high = np.quantile(self.draws, [share, 1 - share])
        return float(low), float(high)

    def p_value(self) -> float:
        """Two-sided, of no difference: the level at which the interval would end at 0.

        Few draws lie in the tail, and none beyond their number. There it is taken to be normal, as wide as the draws on that side are.
        """
        from scipy.stats import t

        if not self._varied:
            return 2 / (self.draws.size + 1) if self.value else 1.0
        ratios = self._studentised()
        studentised = self.error is not None and ratios is not None
        if ratios is not None and self.error is not None:
            statistic, drawn = self.value / self.error, ratios
        else:
            statistic, drawn = self.value, self.value - self.draws
        if statistic < 0:
            statistic, drawn = -statistic, -drawn
        share = float(np.mean(drawn >= statistic))
        resolved = _TOLD_BY_DRAWS / drawn.size
        if share < resolved:
            reach = float(np.quantile(drawn, 1 - _TAIL))
            share = (
                min(resolved, _NORMAL.cdf(-_NORMAL.inv_cdf(1 - _TAIL) * statistic / reach)) if reach > 0 else resolved
            )
        if studentised:
            return min(1.0, max(2 * share, 1e-12))
        z = -_NORMAL.inv_cdf(min(0.5, max(share, 1e-12)))
        return 2 * float(t.sf(z / self._widening, self.blocks - 1))

    @property
    def _varied(self) -> bool:
        return float(np.ptp(self.draws)) > 1e-12 * max(1.0, abs(self.value))

    @property
    def _widening(self) -> float:
        return math.sqrt(self.blocks / (self.blocks - 1))

    def _studentised(self) -> Floats | None:
        """``None`` where errors are not known, or too many draws have none: those of very few errors are of blocks without any."""
        if self.error is None or self.errors is None or self.error <= 0:
            return None
        sound = self.errors > 1e-9 * self.error
        if np.count_nonzero(sound) < 0.995 * sound.size:
            return None
        ratios: Floats = (self.draws[sound] - self.value) / self.errors[sound]
        return ratios


@lru_cache(maxsize=4096)
def student_t(degrees: float) -> float:
    """The two-sided 95 % point of Student's t."""
    from scipy.stats import t

    return float(t.ppf(1 - _TAIL, degrees))


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
        return Estimate(value, note=too_few(count, minimum_n(0.5)))
    if not any(numerators):
        return Estimate(value, note=f"0 in each of {count} blocks: nothing to resample")
    low, high = resampled_ratio(numerators, denominators, blocks, bootstrap).interval()
    if min(numerators) >= 0:
        low = max(0.0, low)  # a rate of counts is not below 0, whatever so many standard errors below it is
    return Estimate(value, low, high, narrow(count))


def resampled_ratio(
    numerators: ArrayLike, denominators: ArrayLike, blocks: Sequence[Hashable], bootstrap: Bootstrap
) -> Resampled:
    """Sum over sum, drawn again by blocks."""
    columns = np.column_stack([numerators, denominators]).astype(np.float64)
    of, units = bootstrap.units(blocks)
    by_unit = np.zeros((units, 2))
    np.add.at(by_unit, of, columns)
    weights = bootstrap.weights(units).astype(np.float64)
    sums = weights @ by_unit
    sound = sums[:, 1] > 0
    if not sound.all():
        weights, sums = weights[sound], sums[sound]
    draws = sums[:, 0] / sums[:, 1]
    value = float(by_unit[:, 0].sum() / by_unit[:, 1].sum())
    # The variance of a ratio by linearisation: the sum of squared residuals, here opened up so that all draws go in one product.
    squares = weights @ np.column_stack([by_unit[:, 0] ** 2, by_unit[:, 0] * by_unit[:, 1], by_unit[:, 1] ** 2])
    residuals = squares[:, 0] - 2 * draws * squares[:, 1] + draws**2 * squares[:, 2]
    own = float(((by_unit[:, 0] - value * by_unit[:, 1]) ** 2).sum())
    grown = units / (units - 1)
    return Resampled(
        value,
        draws,
        units,
        math.sqrt(grown * own) / float(by_unit[:, 1].sum()),
        np.sqrt(grown * np.maximum(residuals, 0.0)) / sums[:, 1],
    )


SHARES = (0.5, 0.9, 0.95, 0.99)


def distribution(
    groups: Sequence[ArrayLike],
    blocks: Sequence[Hashable],
    bootstrap: Bootstrap | None = None,  # noqa: ARG001 - summaries are called alike; quantiles need no draws
    *,
    unit: str = "s",
    missing: int = 0,
) -> Distribution:
    """Quantiles of the values of all ``groups`` (one per stream, each in its block) pooled.

    One value per block: intervals from order statistics, distribution-free. Else values of a block are not independent, and count
    for as many as `_independent_values` says. An interval needs as many streams as `minimum_n` says, and as many independent
    values, whatever number of values the streams hold.
    """
    arrays = [np.asarray(group, dtype=np.float64).ravel() for group in groups]
    kept = [(array, block) for array, block in zip(arrays, blocks, strict=True) if array.size]
    streams = len(kept)
    if not streams:
        nothing = Estimate(None, note="no values")
        return Distribution(unit, 0, 0, nothing, nothing, nothing, nothing, None, missing)
    values = np.concatenate([array for array, _ in kept])
    numbers: dict[Hashable, int] = {}
    of_stream = [numbers.setdefault(block, len(numbers)) for _, block in kept]
    of_value = np.repeat(of_stream, [array.size for array, _ in kept])
    order = np.argsort(values, kind="stable")
    ordered = _Ordered(values[order], of_value[order], len(numbers), streams)
    p50, p90, p95, p99 = (_quantile(ordered, share) for share in SHARES)
    return Distribution(unit, streams, int(values.size), p50, p90, p95, p99, float(values.max()), missing)


@dataclass(frozen=True, slots=True)
class _Ordered:
    """Values in ascending order, the block of each and how many blocks and streams they are from."""

    values: Floats
    block: NDArray[np.int64]
    blocks: int
    streams: int


def _quantile(ordered: _Ordered, share: float) -> Estimate:
    values, blocks = ordered.values, ordered.blocks
    point = float(np.quantile(values, share))
    if ordered.streams < minimum_n(share):
        return Estimate(point, note=too_few(ordered.streams, minimum_n(share), "streams"))
    if values.size == blocks:
        low, high = interpolated_interval(values, share) or (None, None)
        return Estimate(point, low, high)
    if blocks < minimum_n(0.5):
        return Estimate(point, note=too_few(blocks, minimum_n(0.5)))
    n = _independent_values(ordered, share)
    if n < minimum_n(share):
        return Estimate(point, note=too_few(math.floor(n), minimum_n(share), "independent values"))
    low, high = _beta_interval(values, share, n)
    return Estimate(point, low, high, narrow(blocks))


def _independent_values(ordered: _Ordered, share: float) -> float:
    """How many independent values would make the quantile as sure as these are that come in blocks (Korn & Graubard, 1998).

    All values over the design effect: the variance of the share of values below a point, taken between blocks, over that of
    independent values. In the tail a few blocks decide, and when they are missing so are quantile and variance. So the larger of
    the effect at the quantile and its mean over the tail from there is taken, and a t with as many degrees of freedom as the
    variance over these blocks is worth (Satterthwaite) is allowed for.
    """
    values, blocks = ordered.values, ordered.blocks
    sizes = np.bincount(ordered.block, minlength=blocks)

    def excess(level: float) -> tuple[Floats, float]:
        """How many more values of each block lie up to the quantile than of all blocks, and the share of all that do: with ties, more."""
        below = int(np.searchsorted(values, np.quantile(values, level), side="right"))
        reached = below / values.size
        return np.bincount(ordered.block[:below], minlength=blocks) - reached * sizes, reached

    def effect(level: float) -> float:
        found, reached = excess(level)
        chance = values.size * reached * (1 - reached)
        return blocks / (blocks - 1) * float((found**2).sum()) / chance if chance else 0.0

    around = effect(share)
    if share > 0.5:
        inward, outward = 2 * share - 1, min((1 + share) / 2, 1 - 1 / blocks)
        levels = np.linspace(inward, max(inward, outward), 9)
        around = max(around, float(np.mean([effect(float(level)) for level in levels if 0 < level < 1])))
    squares = excess(share)[0] ** 2
    second, fourth = float(squares.sum()), float((squares**2).sum())
    scatter = fourth - second**2 / blocks
    degrees = min(max(2 * second**2 / scatter, 3.0), blocks - 1.0) if scatter > 0 else blocks - 1.0
    fewer = (_NORMAL.inv_cdf(1 - _TAIL) / student_t(round(degrees, 1))) ** 2
    return min(values.size / max(around, 1e-9) * fewer, float(values.size))


def _beta_interval(values: Floats, share: float, n: float) -> tuple[float, float]:
    """The values where the share below may lie, by Jeffreys' interval of a share, for n that need not be whole."""
    from scipy.stats import beta

    low, high = (float(beta.ppf(tail, n * share + 0.5, n * (1 - share) + 0.5)) for tail in (_TAIL, 1 - _TAIL))
    return float(np.quantile(values, low, method="weibull")), float(np.quantile(values, high, method="weibull"))


def harrell_davis(values: ArrayLike, share: float, weights: NDArray[np.float32] | None = None) -> Floats:
    """A quantile as a mean of all order statistics, weighted by how likely each is to be it (Harrell & Davis, Biometrika 69, 1982).

    Steadier in a tail of few values than the one or two at the rank. ``weights``
    (draws x values: how often each was drawn) gives one quantile per draw, else there is one of the values as they are.
    """
    from scipy.special import betainc

    found = np.asarray(values, dtype=np.float64)
    order = np.argsort(found, kind="stable")
    ordered, n = found[order], found.size
    drawn = np.ones((1, n), dtype=np.float32) if weights is None else weights[:, order]
    reached = np.cumsum(drawn, axis=1)
    steps = n * math.ceil(_GRID / n)  # a whole number per value: exact where each is a unit of its own
    mass = betainc((n + 1) * share, (n + 1) * (1 - share), np.linspace(0, 1, steps + 1))
    total = reached[:, -1:]
    # Values far from the quantile have no weight in any draw: most of them, and most of the work.
    least = (np.searchsorted(mass, 1e-12) - 1) / steps
    begin = int(np.searchsorted((reached / total).max(axis=0), least)) if weights is not None else 0
    places = np.rint(reached[:, begin:] * (steps / total)).astype(np.intp)
    result: Floats = np.diff(mass[places], axis=1, prepend=0.0) @ ordered[begin:]
    return result


def too_few(n: int, needed: int, what: str = "blocks") -> str:
    """Why there is no interval."""
    return f"n = {n} {what}, an interval needs {needed}"


def narrow(blocks: int) -> str:
    """What to know of an interval over so many blocks."""
    return f"only {blocks} blocks: the interval is likely too narrow" if blocks < FEW_BLOCKS else ""


def resampling_block(speakers: Sequence[str]) -> tuple[str, str]:
    """What to resample, ``speaker`` or ``recording``, and why, for one speaker label per stream."""
    named = {speaker for speaker in speakers if speaker}
    if speakers and all(speakers) and len(named) >= FEW_BLOCKS:
        return "speaker", f"{len(named)} speakers, at least {FEW_BLOCKS}"
    if not all(speakers):
        return "recording", "not every recording names its speaker"
    return "recording", f"{len(named)} speakers, fewer than {FEW_BLOCKS}: too few to resample"
