"""What the samples of system.parquet come to: one line of figures for the server, the generator, the machine and each GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import msgspec


class Load(msgspec.Struct, frozen=True):
    """Figures that were never sampled are ``None``. Processor time is in percent of one core, so two busy cores are 200."""

    samples: int
    cpu_percent_mean: float | None = None
    cpu_percent_max: float | None = None
    rss_bytes_max: int | None = None
    gpu_percent_mean: float | None = None
    gpu_memory_bytes_max: int | None = None
    gpu_watts_mean: float | None = None
    gpu_watts_max: float | None = None


def by_source(samples: Sequence[Mapping[str, Any]]) -> dict[str, Load]:
    """One `Load` per source, in the order in which they were first sampled."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(str(sample["source"]), []).append(sample)
    return {source: _load(group) for source, group in groups.items()}


def _load(group: Sequence[Mapping[str, Any]]) -> Load:
    def values(name: str) -> list[float]:
        return [value for sample in group if (value := sample.get(name)) is not None]

    def mean(name: str) -> float | None:
        return fmean(found) if (found := values(name)) else None

    def whole(name: str) -> int | None:
        return int(max(found)) if (found := values(name)) else None

    return Load(
        samples=len(group),
        cpu_percent_mean=mean("cpu_percent"),
        cpu_percent_max=max(values("cpu_percent"), default=None),
        rss_bytes_max=whole("rss_bytes"),
        gpu_percent_mean=mean("gpu_percent"),
        gpu_memory_bytes_max=whole("gpu_memory_bytes"),
        gpu_watts_mean=mean("gpu_watts"),
        gpu_watts_max=max(values("gpu_watts"), default=None),
    )
