"""How every figure looks: fonts, sizes, and what tells series apart in colour, in grey and to the colour-blind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, FuncFormatter

# Each colour is also the key of a CSS variable: in a report the page decides what it looks like, in light, dark and print.
INK = "#1c2430"
MUTED = "#5b6676"
GRID = "#dfe4ea"
PAPER = "#fefefe"
# Okabe and Ito's colours, darkened where thin lines on white asked for it, and ordered so that neighbours differ in lightness:
# they survive colour-blindness and, with the line styles, a grey print.
SERIES = ("#0b4f8a", "#d55e00", "#017a5b", "#b3599a", "#8a6d00", "#4aa3df")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
THEME = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    colour: f"--s{i}" for i, colour in enumerate(SERIES)
}

MARKERS = ("o", "s", "^", "D", "v", "P")  # one beside each colour: points have no line style

STYLE: Any = {  # keys as matplotlib spells them
    "svg.fonttype": "none",
    "svg.hashsalt": "earmark",
    "font.size": 10.6,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.2,
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "path.simplify": True,
}
SIZE = (5.0, 3.3)


def per_cent() -> Formatter:
    """Of an axis of fractions: as many digits as its ticks need."""
    return FuncFormatter(lambda value, _: f"{100 * value:.3g}%")


def styled(draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> Figure:
    """A figure of one panel in the house style; nothing global is touched."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
    return figure
