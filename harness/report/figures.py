"""Plots of runs in one style, as matplotlib figures for notebooks and as themed SVG for reports."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from harness.report.style import (
    DASHES,
    GRID,
    INK,
    MARKERS,
    MUTED,
    PAPER,
    SERIES,
    SIZE,
    STYLE,
    THEME,
    per_cent,
    styled,
)
from harness.statistics import Distribution, Estimate

CURVE_POINTS = (
    400  # an empirical distribution is drawn with at most so many steps: finer is not visible and costs bytes
)
FEW_POINTS = 8  # as many have room for their figures
MOST_TICKS = 9  # labels side by side on a logarithmic axis
FURTHEST_SHIFT = 2000.0
LINEAR_SHIFT = 12.0  # an axis that reaches further is logarithmic beyond 1
LINE_POINTS = 240  # a single line is drawn with at most about so many points
PLOT_POINTS = 6000  # and all the lines of a plot together
DOTS = 1500  # in a scatter plot; more only blacken it
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


def rate_by_delay(
    series: Sequence[tuple[Mark, Sequence[Point]]],
    title: str = "Word error rate by transcription delay",
    published: tuple[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Error rate against the transcription delay in milliseconds, with 95 % intervals; ``published`` lies faintly behind."""

    def behind(axes: Axes) -> None:
        if published is not None:
            label, points = published
            axes.plot(*zip(*points, strict=True), color=MUTED, linewidth=1, marker="x", markersize=5, label=label)

    known = [] if published is None else [at for at, _ in published[1]]
    return _rate_over(series, title, "transcription delay (ms, log scale)", 10, behind, known)


def rate_by_load(
    series: Sequence[tuple[Mark, Sequence[Point]]], title: str = "Word error rate by streams at once"
) -> Figure:
    """Error rate against the number of streams at once, with 95 % intervals."""
    return _rate_over(series, title, "streams at once (log scale)", 2, lambda _: None, [])


def _rate_over(
    series: Sequence[tuple[Mark, Sequence[Point]]],
    title: str,
    xlabel: str,
    base: int,
    behind: Callable[[Axes], None],
    more_ticks: Sequence[float],
) -> Figure:
    many = len(series) > 1 or bool(more_ticks)

    def draw(axes: Axes) -> None:
        behind(axes)
        top = max((float(np.max(np.asarray(line.get_ydata()))) for line in axes.lines), default=0.0)
        ticks = set(more_ticks)
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
            if len(series) == 1 and len(known) <= FEW_POINTS:
                for at, value, above in zip(x, y, high, strict=True):
                    axes.annotate(
                        f"{value:.1%}", (at, above), (0, 4), textcoords="offset points", ha="center", fontsize=9.8
                    )
        axes.set_xscale("log", base=base)
        axes.xaxis.set_minor_locator(NullLocator())
        shown = _apart(sorted(ticks))
        axes.set_xticks(shown, [f"{tick:g}" for tick in shown])
        axes.set_xlim(min(ticks, default=80) / 1.25, max(ticks, default=2400) * 1.25)
        axes.set_ylim(0, top * 1.18 or 1)
        axes.yaxis.set_major_formatter(per_cent())
        axes.set_xlabel(xlabel)
        axes.set_ylabel("error rate")
        axes.set_title(title)
        if many:
            axes.figure.legend(loc="outside lower center", ncols=_columns([mark.label for mark, _ in series]))

    rows = -(-(len(series) + bool(more_ticks)) // _columns([mark.label for mark, _ in series])) if many else 0
    return styled(draw, (SIZE[0], SIZE[1] + 0.22 * rows))


def _apart(ticks: Sequence[float]) -> list[float]:
    """Those of rising ticks on a logarithmic axis whose labels do not run into each other."""
    if not ticks:
        return []
    least = (ticks[-1] / ticks[0]) ** (1 / MOST_TICKS)
    shown = [ticks[-1]]
    for tick in reversed(ticks[:-1]):
        if shown[-1] / tick >= least:
            shown.append(tick)
    return shown[::-1]


def _columns(labels: Sequence[str]) -> int:
    """In how many columns a legend below a figure fits: each takes its line, its gaps and about 4.9 points for a letter."""
    width, gap = 72 * SIZE[0], 13
    return max(1, min(3, int((width + gap) // (44 + 4.9 * max(map(len, labels), default=1)))))


def share_rows(rows: Sequence[tuple[str, Sequence[tuple[Mark, Estimate]]]], title: str, xlabel: str) -> Figure:
    """A rate with its interval per name (a speaker, a normaliser), one mark per cell; hollow where it has no interval."""
    cells = max((len(marks) for _, marks in rows), default=1)

    def draw(axes: Axes) -> None:
        labelled: set[str] = set()
        for at, (_, estimates) in enumerate(rows):
            for place, (mark, estimate) in enumerate(estimates):
                if estimate.value is None:
                    continue
                y = at + 0.62 * ((place + 0.5) / len(estimates) - 0.5)
                if estimate.low is not None and estimate.high is not None:
                    axes.plot([estimate.low, estimate.high], [y, y], color=mark.colour, linewidth=2.2, alpha=0.5)
                axes.plot(
                    [estimate.value], [y], mark.symbol, color=mark.colour,
                    label=None if mark.label in labelled else mark.label, linestyle="none",
                    markerfacecolor=PAPER if estimate.low is None else mark.colour,
                )  # fmt: skip
                labelled.add(mark.label)
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_formatter(per_cent())
        axes.set_xlabel(xlabel)
        axes.set_title(title)
        if cells > 1:
            labels = sorted(labelled)
            axes.figure.legend(loc="outside lower center", ncols=_columns(labels), handletextpad=0.1)

    return styled(draw, (SIZE[0], max(2.0, 1.25 + len(rows) * (0.22 + 0.13 * cells))))


def stability(panels: Sequence[tuple[str, bool, Sequence[tuple[Mark, Estimate]]]], title: str) -> Figure:
    """One small panel per measure, ``(name, is a share, values)``, one bar per cell with its figure behind it."""
    cells = max(len(values) for _, _, values in panels)

    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(SIZE[0], 0.75 + -(-len(panels) // 2) * (0.5 + 0.26 * max(cells, 2))), layout="constrained"
        )
        grid = figure.subplots(-(-len(panels) // 2), 2, squeeze=False, sharey=True)
        for axes, (name, share, values) in zip(grid.flat, panels, strict=False):
            _bars(axes, name, values, share=share)
        for axes in list(grid.flat)[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11.2, fontweight="bold", color=INK)
    return figure


def _bars(axes: Axes, name: str, values: Sequence[tuple[Mark, Estimate]], *, share: bool) -> None:
    known = [(at, mark, found) for at, (mark, found) in enumerate(values) if found.value is not None]
    reach = max((found.high or found.value or 0.0 for _, _, found in known), default=0.0)
    for at, mark, found in known:
        value = found.value or 0.0
        axes.barh([at], [value], height=0.6 if len(values) > 1 else 0.3, color=mark.colour)
        edge = max(value, found.high or 0.0)
        if found.low is not None and found.high is not None and found.high > found.low:
            axes.plot([found.low, found.high], [at, at], color=INK, linewidth=1.2)
        text = f"{value:.1%}" if share else f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
        axes.annotate(text, (edge, at), (4, 0), textcoords="offset points", va="center", fontsize=9.8)
    axes.set_xlim(0, reach * 1.45 or 1)
    axes.set_yticks(range(len(values)), [mark.label for mark, _ in values])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(name, fontweight="normal", fontsize=10, color=MUTED)


@dataclass(frozen=True, slots=True)
class Shift:
    """The change of one measure between two sides, in multiples of what is allowed; above 0 is worse."""

    name: str
    value: float
    low: float | None
    high: float | None
    verdict: str  # "better", "worse" or "cannot tell"


VERDICT_LOOKS = {  # colour, symbol
    "worse": (SERIES[1], "X"),
    "better": (SERIES[0], "o"),
    "cannot tell": (MUTED, "s"),
}


def shifts(rows: Sequence[Shift], title: str) -> Figure:
    """How far each measure moved between two sides, by what is allowed of it."""
    ends = [abs(end) for row in rows for end in (row.low, row.high, row.value) if end]
    reach = min(FURTHEST_SHIFT, 1.4 * max([2.0, *ends]))
    far = reach > LINEAR_SHIFT

    def draw(axes: Axes) -> None:
        axes.axvspan(-1, 1, color=GRID, alpha=0.7, linewidth=0)
        axes.axvline(0, color=MUTED, linewidth=1)
        seen: set[str] = set()
        for at, row in enumerate(rows):
            colour, symbol = VERDICT_LOOKS[row.verdict]
            if row.low is not None and row.high is not None:
                ends = np.clip([row.low, row.high], -reach, reach)
                axes.plot(ends, [at, at], color=colour, linewidth=2.2, alpha=0.6)
            axes.plot(
                [float(np.clip(row.value, -reach, reach))], [at], symbol, color=colour, markersize=7.5, clip_on=False,
                markeredgecolor=PAPER, linestyle="none",
            )  # fmt: skip
            seen.add(row.verdict)
        for verdict in (name for name in VERDICT_LOOKS if name in seen):
            colour, symbol = VERDICT_LOOKS[verdict]
            axes.plot([], [], symbol, color=colour, markersize=7, label=verdict)
        axes.set_yticks(range(len(rows)), [row.name for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if far:
            axes.set_xscale("symlog", linthresh=1)
            ticks = [tick for tick in (-1000, -10, -1, 0, 1, 10, 1000) if abs(tick) <= reach]
            axes.set_xticks(ticks, [f"{tick:+d}" if tick else "0" for tick in ticks])
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlim(-reach, reach)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("change ÷ allowed")
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.1)

    return styled(draw, (SIZE[0], 1.35 + 0.27 * max(3, len(rows))))


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
                        start + value / 2, at, f"{value:.1%}", ha="center", va="center", fontsize=9.8, color=INK,
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

    columns = _columns([f"{curve.mark.label} (n = {len(curve.values)})" for curve in drawn])
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


def lag_over_time(
    lines: Sequence[Line],
    mark: Mark,
    title: str,
    nominal: float | None = None,
    top: float | None = None,
    seconds: float | None = None,
) -> Figure:
    """Transcript lag of every stream, thin, and their median, thick, over the audio sent.

    ``top`` and ``seconds`` end the axes; unless given they are those of the lines.
    """

    def draw(axes: Axes) -> None:
        most = max(20, min(LINE_POINTS, PLOT_POINTS // max(1, len(lines))))
        for line in (thinned(line, most) for line in lines):
            axes.plot(line.x, line.y, color=mark.colour, linewidth=0.7, alpha=0.42)
        grid, median, count = median_line(lines)
        if len(grid):
            axes.plot(grid, median, color=INK, linewidth=2, label=f"median of {len(lines)}")
        if nominal is not None:
            axes.axhline(nominal, color=mark.colour, linewidth=1.1, linestyle=(0, (1, 2)), label=f"delay {nominal:g} s")
        if count:
            lowest = min(float(line.y.min()) for line in lines)
            axes.set_xlim(0, 1.03 * (seconds or max(float(line.x.max()) for line in lines)))
            axes.set_ylim(min(0.0, lowest), 1.1 * (top or lag_reach(lines, nominal)) or 1)
        axes.set_xlabel("audio sent (s)")
        axes.set_ylabel("transcript behind by (s)")
        axes.set_title(title)
        if axes.get_legend_handles_labels()[0]:  # nothing to tell apart where every transcript came in one piece
            axes.figure.legend(loc="outside lower center", ncols=2)

    return styled(draw, (SIZE[0], SIZE[1] + 0.1))


def lag_reach(lines: Sequence[Line], nominal: float | None) -> float:
    """The highest lag but for the highest of two hundred, or the delay where that is more."""
    reach = np.concatenate([line.y for line in lines]) if lines else np.zeros(1)
    return max(float(np.quantile(reach, 0.995)), nominal or 0.0)


def thinned(line: Line, most: int) -> Line:
    """The line with at most so many points: of each stretch its lowest and its highest, so that no peak is lost."""
    if len(line.x) <= most:
        return line
    kept: set[int] = {0, len(line.x) - 1}
    for stretch in np.array_split(np.arange(len(line.x)), max(1, (most - 2) // 2)):
        kept |= {int(stretch[np.argmin(line.y[stretch])]), int(stretch[np.argmax(line.y[stretch])])}
    places = np.array(sorted(kept))
    return Line(line.x[places], line.y[places])


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
                axes.annotate(label, (x.value, y.value), (6, 5), textcoords="offset points", fontsize=9.8)
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
                    color=colour, markersize=9, markeredgecolor=PAPER, label=label,
                )  # fmt: skip
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=1.1, linestyle=(0, (4, 2)))
            axes.annotate(
                f"limit {limit:g} s", (1, limit), (-2, 3), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha="right", fontsize=9.8,
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

    return styled(draw, (SIZE[0], SIZE[1] + 0.3))


def load_over_time(sources: Sequence[tuple[str, Line]], title: str, ylabel: str) -> Figure:
    """One line per sampled source: the server, the harness, the machine."""

    def draw(axes: Axes) -> None:
        peak = 0.0
        for index, (name, whole) in enumerate(sources):
            line = thinned(whole, LINE_POINTS)
            axes.plot(
                line.x, line.y, color=SERIES[index % len(SERIES)], linestyle=DASHES[index % len(DASHES)], label=name
            )
            peak = max(peak, float(np.max(line.y, initial=0.0)))
        axes.set_ylim(0, peak * 1.15 or 1)
        axes.set_xlabel("time in the run (s)")
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=_columns([name for name, _ in sources]))

    return styled(draw, (SIZE[0], 2.7))


def rates(series: Sequence[tuple[Mark, Floats, Floats]], title: str, xlabel: str, ylabel: str) -> Figure:
    """One dot per utterance, or per each of so many evenly picked: a rate over something."""

    def draw(axes: Axes) -> None:
        for mark, x, y in series:
            shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), DOTS)).round().astype(int)) if len(x) else slice(0)
            axes.plot(
                x[shown], y[shown], mark.symbol, color=mark.colour, alpha=0.65, markersize=4, markeredgewidth=0,
                label=mark.label,
            )  # fmt: skip
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
