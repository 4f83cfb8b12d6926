"""Plots of estimates with their intervals: against zero, over load and over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.style import DASHES, INK, MUTED, PAPER, SERIES, SIZE, per_cent, styled
from harness.statistics import Difference

LABELS_SHOWN = 12  # along a time axis


@dataclass(frozen=True, slots=True)
class Bar:
    """A difference with its interval. ``clear`` is whether it is told from none, after whatever correction was made."""

    label: str
    change: Difference
    clear: bool


def differences(
    bars: Sequence[Bar], title: str, xlabel: str, scale: float = 1.0, allowed: float | None = None
) -> Figure:
    """One row per difference around a line at zero: filled where it is told from none, hollow where not. Between the dotted lines
    lies what is allowed."""

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=INK, linewidth=1)
        for edge in () if allowed is None else (-allowed, allowed):
            axes.axvline(edge * scale, color=MUTED, linewidth=1.1, linestyle=DASHES[2])
        for y, bar in enumerate(bars):
            if bar.change.value is None:
                continue
            colour = MUTED if not bar.clear else SERIES[1] if bar.change.value > 0 else SERIES[0]
            if bar.change.low is not None and bar.change.high is not None:
                axes.plot(
                    [bar.change.low * scale, bar.change.high * scale],
                    [y, y],
                    color=colour,
                    linewidth=2 if bar.clear else 1.4,
                )
            axes.plot(
                [bar.change.value * scale], [y], ">" if bar.change.value > 0 else "<", color=colour,
                markerfacecolor=colour if bar.clear else PAPER,
            )  # fmt: skip
        axes.plot([], [], ">", color=SERIES[1], label="surely more")
        axes.plot([], [], "<", color=SERIES[0], label="surely less")
        axes.plot([], [], ">", color=MUTED, markerfacecolor=PAPER, label="cannot tell")
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(xlabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.2)

    return styled(draw, (SIZE[0] + 1, max(2.2, 1.5 + 0.3 * len(bars))))


def rise_by_load(points: Sequence[tuple[int, Difference]], allowance: float, title: str, ylabel: str) -> Figure:
    """A latency less that of one stream, in milliseconds over streams at once, and how much of a rise is let pass."""

    def draw(axes: Axes) -> None:
        known = [(streams, change, change.value) for streams, change in points if change.value is not None]
        axes.axhline(0, color=INK, linewidth=1)
        axes.axhline(
            allowance * 1000, color=MUTED, linewidth=1.1, linestyle=DASHES[1], label=f"{allowance * 1000:g} ms"
        )
        axes.plot(
            [n for n, _, _ in known], [1000 * value for *_, value in known], color=SERIES[0], linewidth=1, alpha=0.6
        )
        for streams, change, value in known:
            if change.low is not None and change.high is not None:
                axes.plot([streams] * 2, [1000 * change.low, 1000 * change.high], color=SERIES[0], linewidth=2)
            above = change.low is not None and change.low > allowance
            axes.plot(
                [streams], [1000 * value], "s" if above else "o", color=SERIES[1] if above else SERIES[0],
                markerfacecolor=PAPER if change.low is None else None,
            )  # fmt: skip
        axes.plot([], [], "s", color=SERIES[1], label="surely above it")
        axes.plot([], [], "o", color=SERIES[0], label="not surely above it")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlim(left=0)
        axes.set_xlabel("streams at once")
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.4)

    return styled(draw, (SIZE[0], SIZE[1] + 0.3))


def over_runs(
    values: Sequence[float],
    names: Sequence[str],
    levels: Sequence[tuple[int, int, float]],
    begins: Sequence[tuple[int, int]],
    title: str,
    ylabel: str,
    *,
    percent: bool = False,
) -> Figure:
    """A figure of each run in the order of time. ``levels`` are drawn from their first run to before the one behind their last,
    ``begins`` shaded: between which runs each level but the first may have begun."""

    def draw(axes: Axes) -> None:
        x = np.arange(len(values))
        axes.plot(x, values, "o", color=SERIES[0], label="one run")
        for number, (since, until, level) in enumerate(levels):
            label = None if number else "level (median)"
            axes.plot([since - 0.4, until - 0.6], [level] * 2, color=INK, linewidth=2, label=label)
        for number, (earliest, latest) in enumerate(begins):
            axes.axvspan(
                earliest - 0.5, latest + 0.5, facecolor=MUTED, alpha=0.2,
                label=None if number else "first run of a new level (95 %)",
            )  # fmt: skip
        step = max(1, -(-len(names) // LABELS_SHOWN))
        axes.set_xticks(x[::step], [names[place] for place in x[::step]], rotation=40, ha="right", fontsize=8)
        axes.set_xlim(-0.6, len(values) - 0.4)
        low, high = min(0.0, *values), max(values)
        axes.set_ylim(low, high * 1.2 or 1)
        if percent:
            axes.yaxis.set_major_formatter(per_cent())
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("run, by its commit, oldest first")
        axes.set_ylabel(ylabel)
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=3, handletextpad=0.4)

    return styled(draw, (SIZE[0] + 1, SIZE[1] + 0.5))
