"""Plots of runs in one style, as matplotlib figures for notebooks and as themed SVG for reports."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from harness.report.style import DASHES as DASHES
from harness.report.style import INK as INK
from harness.report.style import MARKERS as MARKERS
from harness.report.style import MUTED as MUTED
from harness.report.style import PAPER as PAPER
from harness.report.style import SERIES as SERIES
from harness.report.style import SIZE as SIZE
from harness.report.style import STYLE as STYLE
from harness.report.style import THEME as THEME
from harness.report.style import per_cent, styled
from harness.statistics import Distribution, Estimate

CURVE_POINTS = (
    400  # an empirical distribution is drawn with at most so many steps: finer is not visible and costs bytes
)
LINES_DRAWN = 60  # streams in one plot; more only blacken it
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """How a series is told apart: by colour, by line style, by the symbol of its points and by its label."""

    label: str
    colour: str = SERIES[0]
    dash: Any = "-"
    symbol: str = MARKERS[0]


@dataclass(frozen=True, slots=True)
class Curve:
    """Values of one cell for a distribution plot. ``nominal`` is drawn as a thin vertical line: the delay asked for."""

    mark: Mark
    values: Floats
    quantiles: Distribution | None = None
    nominal: float | None = None
    beyond: int = 0  # values that do not exist, such as words never recognised; they keep the curve below 100 %


@dataclass(frozen=True, slots=True)
class Line:
    """``y`` over ``x`` for one stream or one sampled source."""

    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True)
class Point:
    """One estimate at ``x``."""

    x: float
    estimate: Estimate


def mark(label: str, place: int) -> Mark:
    """The mark of the so-manieth series of a plot."""
    return Mark(label, SERIES[place % len(SERIES)], DASHES[place % len(DASHES)], MARKERS[place % len(MARKERS)])


def marks(cells: Sequence[tuple[int | None, int]]) -> list[Mark]:
    """One mark per ``(delay in ms, concurrency)``: the delay picks the colour, the concurrency the line style."""
    delays = sorted({delay for delay, _ in cells}, key=lambda delay: -1 if delay is None else delay)
    streams = sorted({concurrency for _, concurrency in cells})
    one_delay, one_concurrency = len(delays) == 1, len(streams) == 1
    made = []
    for delay, concurrency in cells:
        words = []
        if not one_delay or one_concurrency:
            words.append("server's delay" if delay is None else f"{delay} ms")
        if not one_concurrency:
            words.append(f"{concurrency} stream{'s' if concurrency != 1 else ''}")
        hue, dash = delays.index(delay), streams.index(concurrency)
        if one_delay:
            hue = dash
        made.append(
            Mark(
                ", ".join(words),
                SERIES[hue % len(SERIES)],
                DASHES[(hue if one_concurrency else dash) % len(DASHES)],
                MARKERS[(hue if one_concurrency else dash) % len(MARKERS)],
            )
        )
    return made


def rate_by_delay(
    series: Sequence[tuple[Mark, Sequence[Point]]],
    title: str = "Word error rate by transcription delay",
    published: tuple[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Error rate against the transcription delay in milliseconds, with 95 % intervals; ``published`` lies faintly behind."""

    def draw(axes: Axes) -> None:
        if published is not None:
            label, points = published
            axes.plot(
                *zip(*points, strict=True), color=MUTED, linewidth=1, marker="x", markersize=4, alpha=0.7, label=label
            )
        ticks = set()
        top = 0.0 if published is None else max(rate for _, rate in published[1])
        for index, (mark, points_of) in enumerate(series):
            spread = 1.025 ** (index - (len(series) - 1) / 2)  # side by side, so that intervals do not hide each other
            known = [(p.x, p.estimate) for p in points_of if p.estimate.value is not None]
            x = np.array([at for at, _ in known])
            y = np.array([estimate.value for _, estimate in known], dtype=float)
            low = np.array([e.value if e.low is None else e.low for _, e in known], dtype=float)
            high = np.array([e.value if e.high is None else e.high for _, e in known], dtype=float)
            ticks |= {float(at) for at in x}
            top = max(top, *high, 0.0)
            axes.errorbar(
                x * spread, y, yerr=[y - low, high - y], color=mark.colour, linestyle=mark.dash,
                marker=mark.symbol, capsize=3, elinewidth=1.2, label=mark.label,
            )  # fmt: skip
            for at, value, above in zip(x, y, high, strict=True):
                if len(series) == 1:
                    axes.annotate(
                        f"{value:.1%}", (at, above), (0, 4), textcoords="offset points", ha="center", fontsize=9
                    )
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
        axes.set_xlim(min(ticks, default=80) / 1.25, max(ticks, default=2400) * 1.25)
        axes.set_ylim(0, top * 1.18 or 1)
        axes.yaxis.set_major_formatter(per_cent())
        axes.set_xlabel("transcription delay (ms, log scale)")
        axes.set_ylabel("word error rate")
        axes.set_title(title)
        if len(series) > 1 or published is not None:
            axes.figure.legend(loc="outside lower center", ncols=2)

    return styled(draw, (SIZE[0], SIZE[1] + 0.3 * (len(series) > 1 or published is not None)))


def error_split(rows: Sequence[tuple[str, float, float, float]], title: str = "What the errors are") -> Figure:
    """Substitutions, deletions and insertions per reference word, stacked; one row ``(label, S, D, I)`` per cell."""

    def draw(axes: Axes) -> None:
        y = np.arange(len(rows), dtype=float)
        left = np.zeros(len(rows))
        kinds = (
            (0, "substituted", SERIES[0], ""),
            (1, "deleted", SERIES[1], "////"),
            (2, "inserted", SERIES[2], "...."),
        )
        for column, name, colour, hatch in kinds:
            width = np.array([(row[1], row[2], row[3])[column] for row in rows])
            axes.barh(
                y, width, left=left, height=0.62, color=colour, hatch=hatch, edgecolor=PAPER, linewidth=0.5, label=name
            )
            for at, start, value in zip(y, left, width, strict=True):
                if value > 0.18 * max(s + d + i for _, s, d, i in rows):
                    axes.text(
                        start + value / 2, at, f"{value:.1%}", ha="center", va="center", fontsize=9, color=INK,
                        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1.5, "alpha": 0.9},
                    )  # fmt: skip
            left += width
        axes.set_yticks(y, [row[0] for row in rows])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(per_cent())
        axes.set_xlabel("errors per reference word")
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3)

    return styled(draw, (SIZE[0], max(2.0, 1.3 + 0.42 * len(rows))))


def distribution(curves: Sequence[Curve], title: str, xlabel: str = "seconds") -> Figure:
    """Cumulative distribution per cell; dots with whiskers are p50 and p95 with their intervals."""

    drawn = [curve for curve in curves if len(curve.values)]

    def draw(axes: Axes) -> None:
        for curve in drawn:
            x, y = _steps(curve.values, curve.beyond)
            axes.step(
                x, y, where="post", color=curve.mark.colour, linestyle=curve.mark.dash,
                label=f"{curve.mark.label} (n = {len(curve.values)})",
            )  # fmt: skip
            if curve.nominal is not None:
                axes.axvline(curve.nominal, color=curve.mark.colour, linewidth=1.1, alpha=0.85, linestyle=(0, (1, 2)))
            for quantile, share in (("p50", 0.5), ("p95", 0.95)):
                _whisker(axes, curve, getattr(curve.quantiles, quantile, None), share)
        beyond = _quantile_window(axes, drawn) if drawn else ""
        axes.set_ylim(0, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 0.95])
        axes.yaxis.set_major_formatter(per_cent())
        axes.set_xlabel(f"{xlabel} ({beyond})" if beyond else xlabel)
        axes.set_title(title)
        if drawn:
            axes.figure.legend(loc="outside lower center", ncols=columns, handlelength=2.4, columnspacing=1.4)

    columns = max(1, min(3, 92 // (14 + max((len(curve.mark.label) + 8 for curve in drawn), default=1))))
    return styled(draw, (SIZE[0], SIZE[1] + 0.22 * (-(-len(drawn) // columns))))


def _steps(values: Floats, beyond: int) -> tuple[Floats, Floats]:
    ordered = np.sort(values)
    share = np.arange(1, len(ordered) + 1) / (len(ordered) + beyond)
    if len(ordered) > CURVE_POINTS:
        keep = np.unique(np.linspace(0, len(ordered) - 1, CURVE_POINTS).round().astype(int))
        ordered, share = ordered[keep], share[keep]
    return np.concatenate([ordered[:1], ordered]), np.concatenate([[0.0], share])


def _whisker(axes: Axes, curve: Curve, estimate: Estimate | None, share: float) -> None:
    if estimate is None or estimate.value is None:
        return
    height = share * len(curve.values) / (len(curve.values) + curve.beyond)
    if estimate.low is not None and estimate.high is not None:
        axes.plot(
            [estimate.low, estimate.high],
            [height, height],
            color=curve.mark.colour,
            linewidth=3.2,
            alpha=0.45,
            zorder=3,
        )
    axes.plot(
        [estimate.value],
        [height],
        curve.mark.symbol,
        color=curve.mark.colour,
        markeredgecolor=PAPER,
        markersize=6,
        zorder=4,
    )


def _quantile_window(axes: Axes, curves: Sequence[Curve]) -> str:
    """Ends the axis a little beyond the slowest p99, and says what lies outside.

    One stray value would press everything else against the left edge.
    """
    low = min(float(np.quantile(curve.values, 0.005)) for curve in curves)
    high = max(float(np.quantile(curve.values, 0.99)) for curve in curves)
    nominal = [curve.nominal for curve in curves if curve.nominal is not None]
    low, high = min([low, *nominal]), max([high, *nominal])
    pad = 0.06 * (high - low) or 0.1
    axes.set_xlim(low - pad, high + pad)
    outside = [curve.values[curve.values > high + pad] for curve in curves]
    count = sum(len(values) for values in outside)
    return (
        f"{count} beyond the axis, up to {max(float(values.max(initial=0)) for values in outside):.2f} s"
        if count
        else ""
    )


def quantile_rows(rows: Sequence[tuple[Mark, Distribution]], title: str, xlabel: str = "seconds") -> Figure:
    """p50, p95 and p99 of each cell on one line, with their intervals."""

    def draw(axes: Axes) -> None:
        for at, (mark, measured) in enumerate(rows):
            for symbol, name, offset in (("o", "p50", -0.18), ("s", "p95", 0.0), ("D", "p99", 0.18)):
                estimate: Estimate = getattr(measured, name)
                if estimate.value is None:
                    continue
                if estimate.low is not None and estimate.high is not None:
                    axes.plot(
                        [estimate.low, estimate.high], [at + offset] * 2, color=mark.colour, linewidth=3, alpha=0.4
                    )
                hollow = estimate.low is None
                axes.plot(
                    [estimate.value],
                    [at + offset],
                    symbol,
                    color=mark.colour,
                    markerfacecolor=PAPER if hollow else mark.colour,
                )
        for symbol, name in (("o", "p50"), ("s", "p95"), ("D", "p99")):
            axes.plot([], [], symbol, color=MUTED, label=name)
        axes.plot([], [], "o", color=MUTED, markerfacecolor=PAPER, label="too few streams for an interval")
        axes.set_yticks(range(len(rows)), [mark.label for mark, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(xlabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=4, handletextpad=0.1, columnspacing=1.0)

    return styled(draw, (SIZE[0], max(2.2, 1.4 + 0.5 * len(rows))))


def lag_over_time(lines: Sequence[Line], mark: Mark, title: str, nominal: float | None = None) -> Figure:
    """Transcript lag of every stream, thin, and their median, thick, over the audio sent."""

    def draw(axes: Axes) -> None:
        for line in lines:
            axes.plot(line.x, line.y, color=mark.colour, linewidth=0.7, alpha=0.32)
        grid, median, count = median_line(lines)
        if len(grid):
            axes.plot(grid, median, color=INK, linewidth=2, label=f"median of {len(lines)}")
        if nominal is not None:
            axes.axhline(nominal, color=mark.colour, linewidth=1.1, linestyle=(0, (1, 2)), label=f"delay {nominal:g} s")
        if count:
            reach = np.concatenate([line.y for line in lines])
            axes.set_ylim(min(0.0, float(reach.min())), max(float(np.quantile(reach, 0.995)), nominal or 0.0) * 1.25)
        axes.set_xlabel("audio sent (s)")
        axes.set_ylabel("transcript behind by (s)")
        axes.set_title(title)
        axes.legend(loc="upper right", ncols=2)

    return styled(draw)


def median_line(lines: Sequence[Line], bins: int = 60) -> tuple[Floats, Floats, int]:
    """Median over streams at each of ``bins`` times, as long as a fifth of them and three (or all, if fewer) are going."""
    alive = [line for line in lines if len(line.x)]
    if not alive:
        return np.empty(0), np.empty(0), 0
    grid = np.linspace(min(line.x[0] for line in alive), max(line.x[-1] for line in alive), bins)
    table = np.full((len(alive), bins), np.nan)
    for row, line in zip(table, alive, strict=True):
        inside = (grid >= line.x[0]) & (grid <= line.x[-1])
        row[inside] = np.interp(grid[inside], line.x, line.y)
    enough = (~np.isnan(table)).sum(axis=0) >= min(len(alive), max(3, len(alive) / 5))
    return grid[enough], np.nanmedian(table[:, enough], axis=0), len(alive)


def one_stream(sent: Line, shown: Line, missed: Floats, title: str) -> Figure:
    """One utterance as it happened: audio sent, and each word at the place where it was spoken and the moment it was shown."""

    def draw(axes: Axes) -> None:
        axes.plot(sent.x, sent.y, color=MUTED, linewidth=1.4, label="audio sent")
        axes.hlines(shown.y, shown.y, shown.x, color=SERIES[0], linewidth=0.8, alpha=0.5)
        axes.plot(shown.x, shown.y, "o", color=SERIES[0], markersize=4.5, label="word shown")
        if len(missed):
            axes.plot(
                missed, missed, "x", color=SERIES[1], markersize=6, markeredgewidth=1.8, label="word never recognised"
            )
        axes.set_xlabel("time since the planned start (s)")
        axes.set_ylabel("place in the audio (s)")
        axes.set_title(title)
        axes.legend(loc="lower right")

    return styled(draw)


def trade_off(
    series: Sequence[tuple[Mark, Sequence[tuple[str, Estimate, Estimate]]]], title: str, xlabel: str
) -> Figure:
    """Error rate against a latency, each ``(label, latency, rate)`` with both intervals: lower left is better."""

    def draw(axes: Axes) -> None:
        reach = [0.0]
        for mark, points in series:
            at = [(x.value, y.value) for _, x, y in points if x.value is not None and y.value is not None]
            axes.plot(
                *zip(*at, strict=True),
                color=mark.colour,
                linestyle=mark.dash,
                linewidth=1,
                alpha=0.6,
                marker=mark.symbol,
                label=mark.label,
            )
            for label, x, y in points:
                if x.value is None or y.value is None:
                    continue
                if x.low is not None and x.high is not None:
                    axes.plot([x.low, x.high], [y.value] * 2, color=mark.colour, linewidth=1.6)
                if y.low is not None and y.high is not None:
                    axes.plot([x.value] * 2, [y.low, y.high], color=mark.colour, linewidth=1.6)
                axes.annotate(label, (x.value, y.value), (6, 5), textcoords="offset points", fontsize=9)
                reach.append(y.high or y.value)
        axes.set_ylim(0, max(reach) * 1.15 or 1)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.1)
        axes.yaxis.set_major_formatter(per_cent())
        axes.set_xlabel(xlabel)
        axes.set_ylabel("word error rate")
        axes.set_title(title)
        if len(series) > 1:
            axes.legend()

    return styled(draw)


@dataclass(frozen=True, slots=True)
class Rung:
    """One measurement of a capacity ladder: streams, the latency that was held against a limit, and whether the rung held all limits
    (``None``: the generator was at fault, so nobody knows)."""

    streams: int
    latency: Estimate
    holds: bool | None


def capacity_ladder(rungs: Sequence[Rung], limit: float | None, answer: int, title: str, ylabel: str) -> Figure:
    """Latency against concurrent streams, one mark per measurement with its interval, the limit, and the largest number that held."""

    def draw(axes: Axes) -> None:
        known = [rung for rung in rungs if rung.latency.value is not None]
        top = max([rung.latency.high or rung.latency.value or 0.0 for rung in known] + [limit or 0.0], default=1.0)
        low = min([rung.latency.low or rung.latency.value or 0.0 for rung in known] + [limit or top], default=0.0)
        log = bool(known) and low > 0 and top / low > 20
        kinds = (
            (True, "within all limits", SERIES[0], "o"),
            (False, "beyond a limit", SERIES[1], "X"),
            (None, "generator late, says nothing", MUTED, "s"),
        )
        for holds, label, colour, symbol in kinds:
            group = [rung for rung in known if rung.holds is holds]
            for rung in group:
                if rung.latency.low is not None and rung.latency.high is not None:
                    axes.plot(
                        [rung.streams] * 2, [rung.latency.low, rung.latency.high], color=colour, linewidth=3, alpha=0.35
                    )
            if group:
                axes.plot(
                    [rung.streams for rung in group], [rung.latency.value or 0.0 for rung in group], symbol,
                    color=colour, markersize=7, markeredgecolor=PAPER, label=label,
                )  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            axes.annotate(
                f"limit {limit:g} s", (1, limit), (-2, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=9,
            )  # fmt: skip
        if answer:
            axes.axvline(answer, color=SERIES[2], linewidth=1.1, linestyle=(0, (1, 2)))
            axes.annotate(
                f"{answer}", (answer, 1), (4, -10), xycoords=("data", "axes fraction"), textcoords="offset points",
                color=SERIES[2], fontsize=11, fontweight="bold",
            )  # fmt: skip
        streams = sorted({rung.streams for rung in rungs}) or [1]
        if streams[-1] > 8 * max(1, len(streams)):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticks(streams, [str(count) for count in streams])
        else:
            axes.set_xlim(0, streams[-1] * 1.08 + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(min(0.0, low), top * 1.15 or 1)
        axes.set_xlabel("streams at once")
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2, columnspacing=1.2)

    return styled(draw, (SIZE[0] + 0.8, SIZE[1] + 0.3))


def load_over_time(sources: Sequence[tuple[str, Line]], title: str, ylabel: str) -> Figure:
    """One line per sampled source: the server, the harness, the machine."""

    def draw(axes: Axes) -> None:
        peak = 0.0
        for index, (name, line) in enumerate(sources):
            axes.plot(
                line.x, line.y, color=SERIES[index % len(SERIES)], linestyle=DASHES[index % len(DASHES)], label=name
            )
            peak = max(peak, float(np.max(line.y, initial=0.0)))
        axes.set_ylim(0, peak * 1.15 or 1)
        axes.set_xlabel("time in the run (s)")
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3)

    return styled(draw, (SIZE[0], 2.7))


def rates(series: Sequence[tuple[Mark, Floats, Floats]], title: str, xlabel: str, ylabel: str) -> Figure:
    """One dot per utterance: a rate over something."""

    def draw(axes: Axes) -> None:
        for mark, x, y in series:
            axes.plot(
                x, y, mark.symbol, color=mark.colour, alpha=0.65, markersize=4, markeredgewidth=0, label=mark.label
            )
        axes.yaxis.set_major_formatter(per_cent())
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        if len(series) > 1:
            axes.legend()

    return styled(draw)


def progress(series: Mapping[str, Sequence[tuple[float, float]]], title: str, xlabel: str) -> Figure:
    """A rate as it changes: points by name."""

    def draw(axes: Axes) -> None:
        for place, (name, points) in enumerate(series.items()):
            x, y = zip(*points, strict=True)
            axes.plot(
                x,
                y,
                marker=MARKERS[place % len(MARKERS)],
                markersize=3,
                color=SERIES[place % len(SERIES)],
                linestyle=DASHES[place % len(DASHES)],
                label=name,
            )
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(per_cent())
        axes.set_xlabel(xlabel)
        axes.set_ylabel("word error rate")
        axes.set_title(title)
        axes.legend()

    return styled(draw)


def svg(figure: Figure, name: str, label: str) -> str:
    """The figure as inline SVG: its ids begin with ``name``, ``label`` is what a screen reader says, colours are CSS variables."""
    drawn = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]+)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{_escaped(label)}">',
        text,
        count=1,
    )
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'url\(#([^)]+)\)|xlink:href="#([^"]+)"', lambda m: _reference(m, name), text)
    text = re.sub(
        r"<[^>]+>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _two_digits, tag[0]), text
    )  # coordinates, never labels
    for colour, variable in THEME.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text)


def _two_digits(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _reference(match: re.Match[str], name: str) -> str:
    return f"url(#{name}-{match[1]})" if match[1] else f'href="#{name}-{match[2]}"'


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
