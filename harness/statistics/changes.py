"""Since when a series of figures lies at another level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.statistics.intervals import Floats

LEAST_ON_A_SIDE = 3  # one run that differs is a run that differs, not a new level
LONGEST_SERIES = 200
_NEAR = 3.84  # 95 % point of chi-squared with one degree of freedom
_AT_ONCE = 2_000_000  # numbers held at a time


class Change(msgspec.Struct, frozen=True):
    """A new level from ``at`` on. The change itself lies anywhere from ``earliest`` to ``latest`` with 95 %, roughly."""

    at: int  # index of the first value at the new level
    earliest: int
    latest: int
    before: float  # median of the level before, from the change before this one on
    after: float
    p_value: float  # before any correction for more series than one


def change_points(
    values: Sequence[float], *, significance: float = 0.05, least: int = LEAST_ON_A_SIDE, seed: int = 0
) -> list[Change]:
    """Where the level of ``values`` changes, in their order, by circular binary segmentation (Olshen et al., Biostatistics 5, 2004).

    The stretch that differs most from the rest is looked for, so that a level that came and went again is seen as well. It counts
    if in at most ``significance`` of the orders that chance could have put the values into some stretch is as good; the parts
    are then searched in turn, and ends that do not hold against their neighbours alone are dropped. Single odd values are
    drawn in first, so that one run on a busy machine neither makes a change nor hides one.

    Raises:
        ValueError: more than `LONGEST_SERIES` values, or one that is not finite.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.size > LONGEST_SERIES:
        raise ValueError(f"{given.size} values; change points are searched in {LONGEST_SERIES} at most")
    if not np.isfinite(given).all():
        raise ValueError("values must be finite")
    series = _tamed(given)
    cuts: set[int] = set()
    waiting = [(0, series.size)]
    while waiting:
        begin, end = waiting.pop()
        found = _stretch(series[begin:end], significance, least, np.random.default_rng([seed, begin, end]))
        inner = {begin + edge for edge in found if 0 < edge < end - begin}
        cuts |= inner
        waiting += pairwise(sorted({begin, end, *inner})) if inner else []
    return _holding(series, _refined(series, sorted(cuts), least), significance, least, seed)


def _refined(series: Floats, cuts: list[int], least: int) -> list[int]:
    """Each cut where the distances from the medians on its two sides are least."""
    for place in range(len(cuts)):
        edges = [0, *cuts, series.size]
        start, stop = edges[place], edges[place + 2]
        costs = _distances(series[start:stop], least)
        cuts = [*cuts[:place], start + least + int(costs.argmin()), *cuts[place + 1 :]]
    return cuts


def _distances(piece: Floats, least: int) -> Floats:
    """For each cut that leaves ``least`` values on both sides: the sum of distances from the median of their side."""
    return np.array(
        [
            float(np.abs(side[0] - np.median(side[0])).sum() + np.abs(side[1] - np.median(side[1])).sum())
            for side in (np.split(piece, [at]) for at in range(least, piece.size - least + 1))
        ]
    )


def _holding(series: Floats, cuts: list[int], significance: float, least: int, seed: int) -> list[Change]:
    """The cuts that two neighbouring levels alone confirm; the weakest one goes first, and its neighbours grow by its going."""
    while True:
        edges = [0, *cuts, series.size]
        changes = [
            _change(series, start, at, stop, least, seed)
            for start, at, stop in zip(edges, edges[1:], edges[2:], strict=False)
        ]
        weakest = max(changes, key=lambda change: change.p_value, default=None)
        if weakest is None or weakest.p_value <= significance:
            return changes
        cuts = [cut for cut in cuts if cut != weakest.at]


def _change(series: Floats, start: int, at: int, stop: int, least: int, seed: int) -> Change:
    centred = series[start:stop] - series[start:stop].mean()
    ends = _Stretches(centred.size, least, only_cuts=True)
    between = ends.between(centred[None, :])[0]
    here = between[ends.until == at - start][0]
    p_value = _chance_of(here, centred, ends, 0.0, np.random.default_rng([seed, start, at, stop]))
    costs = np.maximum(_distances(series[start:stop], least), 1e-12)
    # Twice the log likelihood of distances that are exponential (Laplace), less that of the best place.
    near = least + np.flatnonzero(2 * centred.size * np.log(costs / costs.min()) <= _NEAR)
    near = np.append(near, at - start)
    return Change(
        at, start + int(near.min()), start + int(near.max()), float(np.median(series[start:at])),
        float(np.median(series[at:stop])), p_value,
    )  # fmt: skip


def _tamed(series: Floats) -> Floats:
    """The series with odd values drawn in to three standard deviations from the median of the five around them (Hampel's filter).

    The deviation is that of successive differences, which a new level widens in one place only.
    """
    if series.size < 5:
        return series
    deviation = float(np.median(np.abs(np.diff(series)))) / 0.6745 / math.sqrt(2)
    around = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(series, 2, mode="reflect"), 5), axis=1)
    tamed: Floats = np.clip(series, around - 3 * deviation, around + 3 * deviation)
    return tamed


def _stretch(series: Floats, significance: float, least: int, random: np.random.Generator) -> tuple[int, ...]:
    """Begin and end of the stretch that differs most from the rest; nothing where chance does as well."""
    n = series.size
    if n < 2 * least:
        return ()
    centred = series - series.mean()
    if float((centred**2).sum()) <= 1e-24 * max(1.0, float(np.abs(series).max())) ** 2 * n:
        return ()
    stretches = _Stretches(n, least)
    between = stretches.between(centred[None, :])[0]
    best = int(between.argmax())
    if _chance_of(between[best], centred, stretches, significance, random) > significance:
        return ()
    return int(stretches.since[best]), int(stretches.until[best])


class _Stretches:
    """All stretches of a series of n values that leave at least so many values inside, and none or so many on either side.

    A cut is a stretch that begins with the series. One that ends with it is the same cut, seen from the other side.
    """

    def __init__(self, n: int, least: int, *, only_cuts: bool = False) -> None:
        edges: NDArray[np.int64] = np.array([0, *range(least, n - least + 1)])
        since, until = (axis.ravel() for axis in np.meshgrid(edges[:1] if only_cuts else edges, edges, indexing="ij"))
        kept = until - since >= least
        self.since, self.until = since[kept], until[kept]
        sizes = (self.until - self.since).astype(np.float64)
        self._factor = n / (sizes * (n - sizes))

    def between(self, rows: Floats) -> Floats:
        """Sum of squares between a stretch and the rest, for each row (of mean 0) and stretch."""
        sums = np.concatenate([np.zeros((len(rows), 1)), np.cumsum(rows, axis=1)], axis=1)
        found: Floats = (sums[:, self.until] - sums[:, self.since]) ** 2 * self._factor
        return found

    def __len__(self) -> int:
        return int(self.since.size)


def _chance_of(
    found: float, centred: Floats, stretches: _Stretches, significance: float, random: np.random.Generator
) -> float:
    """In what share of orders some stretch is as good. Stops early once that surely exceeds ``significance``, if that is not 0."""
    orders = 1999 if significance == 0 or significance >= 0.005 else 9999
    enough = 2 * significance * orders + 20 if significance else math.inf
    as_good = tried = 0
    while tried < orders and as_good <= enough:
        count = min(orders - tried, max(1, _AT_ONCE // len(stretches)), 500)
        shuffled = random.permuted(np.broadcast_to(centred, (count, centred.size)), axis=1)
        as_good += int((stretches.between(shuffled).max(axis=1) >= found * (1 - 1e-9)).sum())
        tried += count
    return (1 + as_good) / (tried + 1)


def smallest_series(significance: float, least: int = LEAST_ON_A_SIDE) -> int:
    """How many values it takes at the least to show a change after which there are only ``least``, whatever its size."""
    n = 2 * least
    # As good are the orders that keep the new level together, at either end or with enough values on both sides.
    while (2 + max(0, n - 3 * least + 1)) / math.comb(n, least) > significance:
        n += 1
    return n
