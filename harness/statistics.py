"""Intervals, quantiles and tests."""

from __future__ import annotations

import msgspec


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
