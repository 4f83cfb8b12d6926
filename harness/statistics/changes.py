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
    are then searched in turn, and ends that do not hold against their neighbours alone are dropped. Ranks stand for the values, so
    that a run on a busy machine neither makes a change nor hides one.

    Raises:
        ValueError: more than `LONGEST_SERIES` values, or one that is not finite.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.size > LONGEST_SERIES:
        raise ValueError(f"{series.size} values; change points are searched in {LONGEST_SERIES} at most")
    if not np.isfinite(series).all():
        raise ValueError("values must be finite")
    cuts: set[int] = set()
    waiting = [(0, series.size)]
    while waiting:
        begin, end = waiting.pop()
        found = _stretch(series[begin:end], significance, least, np.random.default_rng([seed, begin, end]))
        inner = {begin + edge for edge in found if 0 < edge < end - begin}
        cuts |= inner
        waiting += pairwise(sorted({begin, end, *inner})) if inner else []
    return _holding(series, sorted(cuts), significance, least, seed)


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
    centred = _centred_ranks(series[start:stop])
    ends = _Stretches(centred.size, least, only_cuts=True)
    between = ends.between(centred[None, :])[0]
    here = between[ends.until == at - start][0]
    p_value = _chance_of(here, centred, ends, 0.0, np.random.default_rng([seed, start, at, stop]))
    total = float((centred**2).sum())
    within = np.maximum(total - between, 1e-12 * total)
    best = max(total - here, 1e-12 * total)
    near = ends.until[centred.size * np.log(within / best) <= _NEAR]
    return Change(
        at, start + int(near.min()), start + int(near.max()), float(np.median(series[start:at])),
        float(np.median(series[at:stop])), p_value,
    )  # fmt: skip


def _centred_ranks(series: Floats) -> Floats:
    from scipy.stats import rankdata

    return np.asarray(rankdata(series), dtype=np.float64) - (series.size + 1) / 2


def _stretch(series: Floats, significance: float, least: int, random: np.random.Generator) -> tuple[int, ...]:
    """Begin and end of the stretch that differs most from the rest; nothing where chance does as well."""
    n = series.size
    if n < 2 * least:
        return ()
    centred = _centred_ranks(series)
    if not centred.any():
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
    # As good are the orders that keep the new level together, wherever it lies, and those that keep as many of the other end together.
    while 2 * (n - least + 1) / math.comb(n, least) > significance:
        n += 1
    return n
