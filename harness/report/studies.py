"""A study's table read back: what varies, what it did to each measure, which setting to choose, and how sure that is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich import box
from rich.table import Table as ConsoleTable
from rich.text import Text

from harness import store
from harness.report import figures
from harness.report.blocks import BAD, GOOD, Head, Plot, Row, Value
from harness.report.blocks import Table as Figures
from harness.report.style import DASHES, MARKERS, SERIES, SIZE, STYLE, per_cent
from harness.report.wording import interval_percent, interval_seconds, percent, seconds, shortened
from harness.statistics import Estimate

STUDIES = Path("reports/studies")
LOAD = "harness.concurrency"
LATENCIES = ("word_latency_p95", "word_latency_p50", "time_to_final_p95", "time_to_final_p50", "first_token_p50")
TITLES = {
    "wer": "word error rate",
    "cer": "character error rate",
    "first_token_p50": "first token p50 (s)",
    "first_token_p95": "first token p95 (s)",
    "word_latency_p50": "word latency p50 (s)",
    "word_latency_p95": "word latency p95 (s)",
    "time_to_final_p50": "time to final p50 (s)",
    "time_to_final_p95": "time to final p95 (s)",
    "excess_p50": "excess latency p50 (s)",
    "server_cpu_seconds_per_audio_second": "server CPU s per audio s",
    "audio_seconds_per_second": "audio seconds per second",
    "gpu_percent": "GPU busy (%)",
}
ACROSS = 2  # panels beside each other
NAMED_LINES = 6  # more series than these are drawn alike, without a legend
LISTED = 6  # settings named in a sentence


Line = tuple[tuple[str, ...], pd.DataFrame]  # the settings that cells have in common, and the cells


@dataclass(frozen=True, slots=True)
class Table:
    """A study: one row per cell. ``varied`` are the columns of settings that differ between cells, in the file's order.

    ``values`` holds for each of them how a value is shown: cut to what tells it from the others where it is long.
    """

    path: Path
    frame: pd.DataFrame
    varied: tuple[str, ...]
    values: Mapping[str, Mapping[str, str]]

    @property
    def name(self) -> str:
        """As the study's file is called."""
        return str(self.frame["study"].iloc[0])

    @property
    def measured(self) -> pd.DataFrame:
        """Cells with scores."""
        return self.frame[self.frame["outcome"] == "ok"]

    @property
    def sound(self) -> pd.DataFrame:
        """Cells whose figures may be quoted."""
        measured = self.measured
        return measured[measured["valid"].eq(True) & measured["complete"].eq(True)]

    @property
    def latency(self) -> str | None:
        """The first latency of `LATENCIES` that every sound cell has with its interval, else the first that any has at all.

        Few streams give no interval of a p95, and a corpus without word times no word latency.
        """
        sound = self.sound
        certain = (name for name in LATENCIES if len(sound) and sound[f"{name}_high"].notna().all())
        return next(certain, next((name for name in LATENCIES if sound[name].notna().any()), None))

    @property
    def rate(self) -> str:
        """The error rate that counts in the corpus's language: ``wer`` or ``cer``."""
        found = self.measured["headline"].dropna()
        return str(found.iloc[0]) if len(found) else "wer"

    def label(self, setting: str) -> str:
        """A setting's own name, with the side it belongs to only where both sides vary one of that name."""
        name = setting.partition(".")[2]
        return setting if sum(other.partition(".")[2] == name for other in self.varied) > 1 else name

    def described(self, row: pd.Series, settings: Sequence[str] | None = None) -> str:
        """A cell by the settings that vary, or by those given."""
        chosen = self.varied if settings is None else settings
        return ", ".join(f"{self.label(name)} {self.shown(row[name], name)}" for name in chosen) or "the only setting"

    def shown(self, value: object, setting: str) -> str:
        """A value of a setting for people."""
        text = spelt(value, setting)
        return self.values.get(setting, {}).get(text, text)


def read(path: Path) -> Table:
    """The table at ``path``, a study.parquet or the folder with one.

    Raises:
        StoreError: it is not there or is something else.
    """
    path = path / "study.parquet" if path.is_dir() else path
    rows = store.read_rows(path)
    if not rows or "study" not in rows[0]:
        raise store.StoreError(f"{path} holds no study; `earmark study FILE.toml` makes one")
    frame = pd.DataFrame(rows)
    for name in frame.columns:
        if name.startswith(("server.", "harness.")):
            frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    settings = [name for name in frame.columns if name.startswith(("server.", "harness."))]
    texts = {name: list(dict.fromkeys(spelt(value, name) for value in frame[name])) for name in settings}
    varied = tuple(name for name in settings if len(texts[name]) > 1)
    return Table(path, frame, varied, {name: shortened(texts[name]) for name in varied})


def newest(root: Path = STUDIES, varying: str | None = None) -> Path | None:
    """The study that ``EARMARK_STUDY`` names (a folder or its study.parquet), else the one measured last under ``root``.

    With ``varying`` only studies count in which that setting differs between cells.
    """
    if named := os.environ.get("EARMARK_STUDY"):
        found = [Path(named)]
    else:
        found = sorted(root.glob("*/study.parquet"), key=lambda path: path.stat().st_mtime, reverse=True)
    return next((path for path in found if varying is None or varying in read(path).varied), None)


def spelt(value: object, setting: str) -> str:
    """A setting's value in full: equal values are spelt alike."""
    match value:
        case None:
            return {"harness.delay-ms": "server's", "harness.limit": "all"}.get(setting, "default")
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def estimate(row: pd.Series, measure: str) -> Estimate:
    """A measure of a cell with its interval."""
    found = [row.get(f"{measure}{end}") for end in ("", "_low", "_high")]
    value, low, high = (None if one is None or pd.isna(one) else float(one) for one in found)
    return Estimate(value, low, high)


# ---- in the terminal -------------------------------------------------------------------------------------------


def console_table(table: Table) -> ConsoleTable:
    """The end of a study in the terminal, one line per cell."""
    made = ConsoleTable(
        box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0), caption_justify="left"
    )
    for name in (*(table.label(setting) for setting in table.varied), f"{table.rate.upper()} % [95 %]"):
        made.add_column(name, justify="right")
    for name in ("first", "word p50/p95", "final p50/p95", "excess", "stalls", "err", "CPU %", "pace"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("", no_wrap=True)
    for _, row in table.frame.iterrows():
        made.add_row(
            *(table.shown(row[name], name) for name in table.varied),
            *_console_measures(table, row),
            _console_state(row),
        )
    made.caption = "\n".join(
        [
            "Latencies in s, pacing p99 in ms, server CPU in % of one core. ~: n too small for an interval.",
            *caveats(table),
        ]
    )
    return made


def failures(table: Table) -> dict[str, list[str]]:
    """The cells that failed, by their reason."""
    found: dict[str, list[str]] = {}
    for _, row in table.frame[table.frame["outcome"] == "failed"].iterrows():
        found.setdefault(str(row["reason"]), []).append(table.described(row))
    return found


def caveats(table: Table) -> list[str]:
    """What engines say must stand beside their accuracy."""
    return list(dict.fromkeys(text for text in table.measured["caveat"].dropna() if text))


def _console_measures(table: Table, row: pd.Series) -> list[str]:
    if row["outcome"] != "ok":
        return ["-"] * 9
    rate = estimate(row, table.rate)
    return [
        "-" if rate.value is None else f"{100 * rate.value:.1f} {interval_percent(rate)}".rstrip(),
        _console(row, "first_token_p50"),
        "/".join(_console(row, name) for name in ("word_latency_p50", "word_latency_p95")),
        "/".join(_console(row, name) for name in ("time_to_final_p50", "time_to_final_p95")),
        _console(row, "excess_p50"),
        f"{row['stalls']:g}",
        f"{row['errors'] + row['rejected']:g}",
        "-" if pd.isna(row["server_cpu_percent"]) else f"{row['server_cpu_percent']:.0f}",
        "-" if pd.isna(row["pacing_p99"]) else f"{1000 * row['pacing_p99']:.1f}",
    ]


def _console(row: pd.Series, measure: str) -> str:
    found = estimate(row, measure)
    return "-" if found.value is None else f"{'~' if found.low is None else ''}{found.value:.2f}"


def _console_state(row: pd.Series) -> Text:
    match row["outcome"]:
        case "ok" if row["valid"] and row["complete"]:
            return Text("valid", style="green")
        case "ok":
            return Text("✗ INVALID" if not row["valid"] else "✗ PARTIAL", style="bold red")
        case "failed":
            return Text("✗ FAILED", style="bold red")
        case other:
            return Text(str(other), style="dim")


# ---- in a notebook ---------------------------------------------------------------------------------------------


def numbers(table: Table) -> pd.DataFrame:
    """The cells with the settings that vary and the headline measures, intervals in brackets."""
    rows = []
    for _, row in table.frame.iterrows():
        one = {table.label(name): table.shown(row[name], name) for name in table.varied}
        rate, latency = estimate(row, table.rate), table.latency
        one[TITLES[table.rate]] = "" if rate.value is None else f"{percent(rate.value)} {interval_percent(rate)}"
        for name in ("word_latency_p50", latency) if latency else ():
            one[TITLES[name]] = _seconds(estimate(row, name))
        one["errors"] = "" if pd.isna(row["errors"]) else f"{row['errors'] + row['rejected']:g}"
        cpu = row["server_cpu_seconds_per_audio_second"]
        one[TITLES["server_cpu_seconds_per_audio_second"]] = "" if pd.isna(cpu) else f"{cpu:.3f}"
        one["outcome"] = _outcome(row)
        rows.append(one)
    return pd.DataFrame(rows)


def _seconds(found: Estimate) -> str:
    return "" if found.value is None else f"{seconds(found.value)} {interval_seconds(found)}".rstrip()


def _outcome(row: pd.Series) -> str:
    if row["outcome"] == "ok":
        return (
            "valid"
            if row["valid"] and row["complete"]
            else f"not to be quoted: {row['invalid_because'] or 'incomplete'}"
        )
    return f"{row['outcome']}: {row['reason']}" if row["reason"] else str(row["outcome"])


def by_setting(table: Table, measure: str) -> Figure:
    """A measure over the values of each setting that varies, one panel each; a line joins cells that agree in all else."""
    panels = table.varied or ("study",)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(max(SIZE[0], 3.4 * min(len(panels), ACROSS)), 3.1 * -(-len(panels) // ACROSS)),
            layout="constrained",
        )
        grid = figure.subplots(-(-len(panels) // ACROSS), min(len(panels), ACROSS), sharey=True, squeeze=False)
        places = list(grid.flat)
        for axes, setting in zip(places, panels, strict=False):
            _panel(axes, table, setting, measure)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[:, 0]:
            axes.set_ylabel(TITLES.get(measure, measure))
    return figure


def _panel(axes: Axes, table: Table, setting: str, measure: str) -> None:
    values = _in_order(table.frame[setting])
    ticks = [table.shown(value, setting) for value in values]
    places = {spelt(value, setting): at for at, value in enumerate(values)}
    others = [name for name in table.varied if name != setting]
    lines = _drawn(_lines(table.sound, others))
    differing = [at for at in range(len(others)) if len({key[at] for key, _ in lines}) > 1]
    named = len(lines) <= NAMED_LINES
    for number, (_, rows) in enumerate(lines):
        points = {places[spelt(row[setting], setting)]: estimate(row, measure) for _, row in rows.iterrows()}
        known = [
            (at, found) for at, found in sorted(points.items(), key=lambda point: point[0]) if found.value is not None
        ]
        if not known:
            continue
        shift = (number - (len(lines) - 1) / 2) * (0.3 / max(len(lines), 1))
        colour = SERIES[number % len(SERIES)] if named else SERIES[0]
        x = np.array([at + shift for at, _ in known])
        y = np.array([found.value for _, found in known], dtype=float)
        low = np.array([found.value if found.low is None else found.low for _, found in known], dtype=float)
        high = np.array([found.value if found.high is None else found.high for _, found in known], dtype=float)
        axes.errorbar(
            x, y, yerr=[np.maximum(y - low, 0), np.maximum(high - y, 0)], color=colour, capsize=3,
            marker=MARKERS[number % len(MARKERS)] if named else "o",
            elinewidth=1.2, linewidth=1.4, alpha=1 if named else 0.45,
            linestyle=DASHES[number % len(DASHES)] if named else "-",
            label=table.described(rows.iloc[0], [others[at] for at in differing]) if named else None,
        )  # fmt: skip
    flat = max(map(len, ticks)) < 12
    if flat:
        axes.set_xticks(range(len(ticks)), ticks)
    else:
        axes.set_xticks(range(len(ticks)), ticks, rotation=20, ha="right", fontsize=9)
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    axes.set_title(table.label(setting))
    axes.margins(y=0.15)
    lowest, highest = axes.get_ylim()
    bottom = min(0.0, lowest) if measure.startswith(("excess", "drift")) else 0.0
    axes.set_ylim(bottom, highest + 0.08 * (highest - bottom))
    if measure in ("wer", "cer"):
        axes.yaxis.set_major_formatter(per_cent())
    if named and len(lines) > 1:
        axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.12 if flat else -0.36))


def _drawn(lines: Sequence[Line]) -> Sequence[Line]:
    """The lines that show what a setting does: cells that nothing is to be compared with are left out, unless there are only such."""
    return [(key, rows) for key, rows in lines if len(rows) > 1] or lines


def _in_order(values: pd.Series) -> list[object]:
    """Unlike values: numbers by size, anything else as it came."""
    found = list({spelt(value, str(values.name)): value for value in values}.values())
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in found)
    return sorted(found) if numbers else found


def _lines(frame: pd.DataFrame, others: Sequence[str]) -> list[Line]:
    """The cells that agree in ``others``, group by group."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for place, (_, row) in enumerate(frame.iterrows()):
        groups.setdefault(tuple(spelt(row[name], name) for name in others), []).append(place)
    return [(key, frame.iloc[places]) for key, places in groups.items()]


def effects(table: Table) -> pd.DataFrame:
    """What each step of a setting changes: the median of the differences between cells that agree in all else, and their range."""
    measures = [name for name in (table.latency, table.rate, "server_cpu_seconds_per_audio_second") if name]
    rows = []
    for setting in table.varied:
        others = [name for name in table.varied if name != setting]
        for before, after in pairwise(_in_order(table.frame[setting])):
            ends = spelt(before, setting), spelt(after, setting)
            one: dict[str, object] = {"setting": table.label(setting)}
            one |= {"from": table.shown(before, setting), "to": table.shown(after, setting)}
            for measure in measures:
                changes = _changes(table.sound, setting, others, measure, *ends)
                one["pairs"] = len(changes)
                one[TITLES[measure]] = (
                    "" if not changes else f"{np.median(changes):+.3f} ({min(changes):+.3f} .. {max(changes):+.3f})"
                )
            rows.append(one)
    return pd.DataFrame(rows)


def _changes(
    frame: pd.DataFrame, setting: str, others: Sequence[str], measure: str, before: str, after: str
) -> list[float]:
    found = []
    for _, rows in _lines(frame, others):
        values = {
            spelt(row[setting], setting): float(row[measure]) for _, row in rows.dropna(subset=[measure]).iterrows()
        }
        if before in values and after in values:
            found.append(values[after] - values[before])
    return found


# ---- which setting? --------------------------------------------------------------------------------------------


def conclude(table: Table, bound_seconds: float) -> list[str]:
    """Which setting to choose if the tail of the latency may be at most so long, in sentences computed from the cells.

    A cell keeps the bound when no stream failed and the upper end of the latency's interval lies below it. Of settings that keep it the one
    with most streams at once is best, then the one with the lowest error rate, then the one with the lowest latency; what
    overlapping intervals do not tell apart is not told apart.
    """
    said = _set_aside(table)
    latency, sound = table.latency, table.sound
    if latency is None:
        return [*said, "No cell has a latency that may be quoted: there is nothing to choose from."]
    what = TITLES[latency].removesuffix(" (s)")
    if latency != LATENCIES[0]:
        said.append(
            f"Judged by {what}: the cells have no {TITLES[LATENCIES[0]].removesuffix(' (s)')} with an interval."
        )
    judged = [(row, _keeps(row, latency, bound_seconds)) for _, row in sound.iterrows()]
    keeping = [row for row, kept in judged if kept is True]
    unsure = [row for row, kept in judged if kept is None]
    if unsure:
        said.append(
            f"Cannot tell whether {_named(table, unsure)} keep{'s' if len(unsure) == 1 else ''} {what} within {seconds(bound_seconds)}: "
            "the interval contains the bound, or there are too few streams for one."
        )
    if not keeping:
        lowest = min((row for row, _ in judged), key=lambda row: _or_inf(row[latency]))
        return [
            *said,
            f"No setting surely keeps {what} within {seconds(bound_seconds)}; the lowest is "
            f"{_seconds(estimate(lowest, latency))} with {table.described(lowest)}.",
        ]
    said.append(
        f"{len(keeping)} of {len(judged)} cells keep {what} within {seconds(bound_seconds)} without a failed stream."
    )
    best = keeping
    if LOAD in table.varied:
        most = max(row[LOAD] for row in keeping)
        best = [row for row in keeping if row[LOAD] == most]
        said.append(f"The most streams at once within the bound are {most}, of {max(sound[LOAD])} tried.")
    return [*said, *_chosen(table, best, latency, bound_seconds)]


def _set_aside(table: Table) -> list[str]:
    """What does not count, and why."""
    said = [
        f"Failed: {cells[0]}{f' and {len(cells) - 1} more' if len(cells) > 1 else ''}: {reason}"
        for reason, cells in list(failures(table).items())[:LISTED]
    ]
    if invalid := len(table.measured) - len(table.sound):
        said.append(
            f"{invalid} cells are invalid or incomplete and do not count (earmark study --retry measures them again)."
        )
    if left := int((table.frame["outcome"] == "not measured").sum()):
        said.append(f"{left} cells are not measured yet.")
    return said


def _keeps(row: pd.Series, latency: str, bound_seconds: float) -> bool | None:
    """Whether a cell surely keeps the bound; ``None`` when that cannot be told."""
    found = estimate(row, latency)
    if found.value is None or row["errors"] + row["rejected"] > 0 or found.value > bound_seconds:
        return False if found.low is None or found.low > bound_seconds or row["errors"] + row["rejected"] > 0 else None
    return None if found.high is None or found.high > bound_seconds else True


def _chosen(table: Table, best: list[pd.Series], latency: str, bound_seconds: float) -> list[str]:
    if len(best) == 1:
        return [f"Choose {table.described(best[0])}: {_praise(table, best[0], latency)}."]
    reasons = []
    for measure in (table.rate, latency):
        kept = _not_worse(best, measure)
        if len(kept) < len(best):
            name = TITLES[measure].removesuffix(" (s)")
            reasons.append(f"{len(best) - len(kept)} of {len(best)} have a higher {name}, intervals apart")
        best = kept
    if len(best) == 1:
        return [f"Choose {table.described(best[0])}: {_praise(table, best[0], latency)} ({'; '.join(reasons)})."]
    text = f"Cannot tell which is best under {seconds(bound_seconds)}: the intervals of {_named(table, best)} overlap"
    said = [f"{text}{f' ({chr(59).join(reasons)})' if reasons else ''}. More utterances make them narrower."]
    cpu = [row for row in best if not pd.isna(row["server_cpu_seconds_per_audio_second"])]
    if cpu:
        least = min(cpu, key=lambda row: row["server_cpu_seconds_per_audio_second"])
        said.append(
            f"Of these {table.described(least)} used the least server CPU, "
            f"{least['server_cpu_seconds_per_audio_second']:.3f} s per second of audio (measured once, without an interval)."
        )
    return said


def _not_worse(rows: Sequence[pd.Series], measure: str) -> list[pd.Series]:
    """Those that cannot be told from the lowest: their intervals overlap its, or there is none."""
    known = [row for row in rows if estimate(row, measure).value is not None]
    if not known:
        return list(rows)
    lowest = estimate(min(known, key=lambda row: row[measure]), measure)
    if lowest.high is None:
        return list(rows)
    apart = [row for row in known if (low := estimate(row, measure).low) is not None and low > lowest.high]
    return [row for row in rows if not any(row is one for one in apart)]


def _praise(table: Table, row: pd.Series, latency: str) -> str:
    rate = estimate(row, table.rate)
    return (
        f"{table.rate.upper()} {percent(rate.value)} {interval_percent(rate)}, "
        f"{TITLES[latency].removesuffix(' (s)')} {_seconds(estimate(row, latency))}"
    )


def _named(table: Table, rows: Sequence[pd.Series]) -> str:
    names = [f"({table.described(row)})" for row in rows[:LISTED]]
    more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    return f"{', '.join(names)}{more}"


def _or_inf(value: float) -> float:
    return float("inf") if pd.isna(value) else float(value)


# ---- on a page -------------------------------------------------------------------------------------------------

BOUND_SECONDS = 1.0


def bound_seconds() -> float:
    """The bound of the latency under which a setting is chosen: ``EARMARK_BOUND_SECONDS``, 1 unless set."""
    return float(os.environ.get("EARMARK_BOUND_SECONDS", BOUND_SECONDS))


def plots(table: Table) -> list[Plot]:
    """The error rate and the latency over each setting that varies."""
    made = []
    for place, measure in enumerate(name for name in (table.rate, table.latency) if name):
        caption = "Bars are 95 % intervals. A line joins cells that agree in all else; invalid cells are left out."
        title = f"{TITLES[measure]} by setting"
        made.append(Plot(figures.svg(by_setting(table, measure), f"setting{place}", title), caption, wide=True))
    return made


def page_table(table: Table) -> Figures:
    """Every cell with what varies and the headline measures."""
    frame = numbers(table)
    settings = [table.label(name) for name in table.varied]
    rows = [
        Row(
            ", ".join(str(row[name]) for name in settings) or "the only setting",
            [_cell_value(name, str(row[name])) for name in frame.columns if name not in settings],
        )
        for _, row in frame.iterrows()
    ]
    heads = [Head(", ".join(settings) or "setting", left=True)]
    return Figures([*heads, *(Head(str(name)) for name in frame.columns if name not in settings)], rows)


def _cell_value(name: str, text: str) -> Value:
    if name == "outcome":
        return Value(f"✓ {text}", mood=GOOD) if text == "valid" else Value(f"✗ {text}", mood=BAD)
    figure, bracket, interval = text.partition(" [")
    return Value(figure or "–", f"[{interval}" if bracket else "")


def effects_table(table: Table) -> Figures:
    """What each step of a setting changes."""
    frame = effects(table)
    measures = [name for name in frame.columns if name not in ("setting", "from", "to")]
    rows = [
        Row(f"{row['setting']}: {row['from']} → {row['to']}", [Value(str(row[name]) or "–") for name in measures])
        for _, row in frame.iterrows()
    ]
    note = "The median of the differences between cells that agree in all else, and their range."
    return Figures([Head("step", left=True), *(Head(str(name)) for name in measures)], rows, note=note)
