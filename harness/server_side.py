"""The server's own histograms over a run, laid beside what the client measured.

They are scraped before and after (``metrics-before.txt``, ``metrics-after.txt``), so their difference is the run. Sums are exact and
buckets are not: means can be subtracted, quantiles are known to lie between two bounds. Where both sides saw the same streams, the
difference of the means is what lies between the two: sending the frame, network, kernel, and the generator's own receiving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness import store

BEFORE, AFTER = "metrics-before.txt", "metrics-after.txt"


class Between(msgspec.Struct, frozen=True):
    """A quantile from a histogram: the bounds of the bucket in which it lies. ``high`` is ``None`` in the last, open one."""

    low: float
    high: float | None


class ServerFigure(msgspec.Struct, frozen=True):
    """One histogram of the server, in seconds. ``client_*`` and ``difference`` are ``None`` where the client has no such measure.

    ``difference`` is client mean less server mean, ``None`` where the two did not see the same; ``note`` says why.
    """

    name: str  # the client's measure, or the server's histogram where there is none
    meaning: str
    count: int
    mean: float
    p50: Between
    p95: Between
    p99: Between
    client_count: int | None = None
    client_mean: float | None = None
    client_p50: float | None = None
    client_p95: float | None = None
    difference: float | None = None
    note: str = ""


# ---- histograms --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Histogram:
    """``counts`` are of observations not above each of the rising ``bounds``, the last of which is infinite; they accumulate."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]
    total: float

    @property
    def count(self) -> int:
        return int(self.counts[-1])

    @property
    def mean(self) -> float:
        """Exact, as the sum is kept beside the buckets. Only for a histogram with observations."""
        return self.total / self.counts[-1]

    def less(self, earlier: Histogram) -> Histogram | None:
        """What was observed since; ``None`` when the two are of different servers or of one that has started again."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=False))
        if self.bounds != earlier.bounds or min(counts) < 0:
            return None
        return Histogram(self.bounds, counts, self.total - earlier.total)

    def quantile(self, share: float) -> Between:
        """Where the observation of rank ``ceil(share * count)`` lies. Only for a histogram with observations."""
        low = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count > 0 and count >= share * self.counts[-1]:
                return Between(low, bound if isfinite(bound) else None)
            low = bound
        raise ValueError("a histogram without observations has no quantiles")


def read(text: str) -> dict[str, Histogram]:
    """The histograms of a Prometheus exposition by name, each summed over its labels.

    Raises:
        ValueError: the text is no such thing.
    """
    from prometheus_client.parser import text_string_to_metric_families

    return histograms(text_string_to_metric_families(text))


def histograms(families: Iterable[Any]) -> dict[str, Histogram]:
    """As `read`, of families that were parsed already."""
    found = {}
    for family in families:
        if family.type == "histogram":
            made = _summed(family.name, family.samples)
            if made is not None:
                found[family.name] = made
    return found


def _summed(name: str, samples: Iterable[Any]) -> Histogram | None:
    buckets: dict[float, float] = {}
    total = 0.0
    for sample in samples:
        if sample.name == f"{name}_bucket":
            bound = float(sample.labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + sample.value
        elif sample.name == f"{name}_sum":
            total += sample.value
    bounds = tuple(sorted(buckets))
    if not bounds or bounds[-1] != inf:
        return None
    return Histogram(bounds, tuple(buckets[bound] for bound in bounds), total)


# ---- beside the client -------------------------------------------------------------------------------------------

_BESIDE = {
    "earmark_first_token_seconds": ("first_token", "first audio received to first text ready"),
    "earmark_finalisation_seconds": ("flush_latency", "end of audio received to final ready"),
}
"""Histograms that begin and end with the frames between which the client measures: name of its measure, meaning."""

_ALONE = {
    "earmark_frame_delay_seconds": "frame ready to frame written to the socket",
    "earmark_event_loop_delay_seconds": "how much later than asked the server's event loop woke up",
    "earmark_audio_lag_seconds": "audio received, not yet heard by the engine, when text is sent",
    "vllm:time_to_first_token_seconds": "vLLM: 80 ms of a stream taken in to their token",
}
"""Histograms that tell of the server what no client can see. vLLM (0.32) takes every step of a stream for a first token; what it measures
of whole requests, it never does of streams."""


def beside(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[ServerFigure]:
    """The server's figures of a run with the client's beside them; none where the server gave none.

    ``rows`` are those of utterances.parquet, of every stream, scored or not, for the server counts them all.
    """
    observed = over_run(folder)
    if not observed:
        return []
    measured = {
        "first_token": _first_token_seconds(folder, rows),
        "flush_latency": [row["flush_latency"] for row in rows if row["flush_latency"] is not None],
    }
    figures = []
    for name, histogram in observed.items():
        if name in _BESIDE:
            measure, meaning = _BESIDE[name]
            figures.append(_compared(measure, meaning, histogram, measured[measure]))
        elif name in _ALONE:
            figures.append(_figure(name, _ALONE[name], histogram))
    order = [*(measure for measure, _ in _BESIDE.values()), *_ALONE]
    return sorted(figures, key=lambda figure: order.index(figure.name))


def over_run(folder: Path) -> dict[str, Histogram]:
    """The histograms of the server with what it observed during the run, and only those with anything."""
    try:
        before, after = (read((folder / name).read_text(encoding="utf-8")) for name in (BEFORE, AFTER))
    except (FileNotFoundError, ValueError):  # UnicodeDecodeError is one
        return {}
    grown = {
        name: histogram if name not in before else histogram.less(before[name]) for name, histogram in after.items()
    }
    return {name: histogram for name, histogram in grown.items() if histogram is not None and histogram.count > 0}


def _first_token_seconds(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """First text received less first packet sent, of every stream that has both."""
    left = store.first_packet_seconds(folder)
    return [
        row["first_token_from_start"] - left[row["stream"]]
        for row in rows
        if row["first_token_from_start"] is not None and row["stream"] in left
    ]


def _figure(name: str, meaning: str, histogram: Histogram, **client: Any) -> ServerFigure:
    p50, p95, p99 = (histogram.quantile(share) for share in (0.5, 0.95, 0.99))
    return ServerFigure(name, meaning, histogram.count, histogram.mean, p50, p95, p99, **client)


def _compared(name: str, meaning: str, histogram: Histogram, values: Sequence[float]) -> ServerFigure:
    if not values:
        return _figure(name, meaning, histogram, client_count=0, note="the client measured none")
    same = len(values) == histogram.count
    mean = float(np.mean(values))
    p50, p95 = np.quantile(values, (0.5, 0.95)).tolist()
    return _figure(
        name,
        meaning,
        histogram,
        client_count=len(values),
        client_mean=mean,
        client_p50=p50,
        client_p95=p95,
        difference=mean - histogram.mean if same else None,
        note="" if same else f"the server counted {histogram.count}, the client {len(values)}: not the same streams",
    )


# ---- for people --------------------------------------------------------------------------------------------------


def as_markdown(figures: Sequence[ServerFigure]) -> list[str]:
    """Lines of a table; none where there are no figures."""
    if not figures:
        return []
    lines = [
        "| the server's own, ms | mean | p50 | p95 | n | client's mean | difference |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {_title(figure)} | {_ms(figure.mean)} | {_bounds(figure.p50)} | {_bounds(figure.p95)} | {figure.count} "
        f"| {_ms(figure.client_mean)} | {_ms(figure.difference) or figure.note} |"
        for figure in figures
    ]
    return [*lines, ""]


def _title(figure: ServerFigure) -> str:
    return f"{figure.name} ({figure.meaning})" if figure.client_count is not None else figure.meaning


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f}"


def _bounds(between: Between) -> str:
    low = f"{1000 * between.low:g}"
    return f"over {low}" if between.high is None else f"{low}..{1000 * between.high:g}"
