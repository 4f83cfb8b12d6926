"""The figures of cells as tables: the few to look at first, and all of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import pandas as pd

from harness.report.blocks import BAD, GOOD, NOTHING, UNSURE, Head, Row, Table, Value
from harness.report.cells import Cell
from harness.report.marking import delay_said
from harness.report.style import DASHES, SERIES
from harness.report.terms import TERMS
from harness.report.wording import (
    interval_milliseconds,
    interval_percent,
    interval_plain,
    interval_ratio,
    interval_seconds,
    milliseconds,
    percent,
    plain,
    ratio,
    seconds,
    streams_said,
)
from harness.score import Scores
from harness.statistics import Estimate

FAILURES = ("failed", "rejected")
NARROW = 2  # as many cells leave room for two tables side by side
COUNTS = {
    "stalls": ("stalls", "stalls"),
    "lost_tail_words": ("lost tail words", "lost tail"),
    "unmatched_words": ("words without a latency", "word latency"),
    "empty": ("streams in which nothing was heard", ""),
    "streams_falling_behind": ("streams falling behind", "transcript lag"),
    "dropped_seconds": ("dropped audio (s)", ""),
}


def value(estimate: Estimate, said: Callable[[float], str], interval: Callable[[Estimate], str]) -> Value:
    """A figure with its interval, or with why there is none."""
    if estimate.value is None:
        return Value("–", "none", estimate.note)
    if estimate.low is None or estimate.high is None:
        return Value(said(estimate.value), _why_none(estimate.note), estimate.note)
    return Value(said(estimate.value), interval(estimate), estimate.note)


def rate(estimate: Estimate) -> Value:
    """A share of words or characters."""
    return value(estimate, percent, interval_percent)


def duration(estimate: Estimate) -> Value:
    """A latency."""
    return value(estimate, seconds, interval_seconds)


def _why_none(note: str) -> str:
    """In place of an interval: the reason, short where it is the usual one."""
    if note.startswith("0 in each"):
        return "always 0"
    few = re.match(r"n = (\d+) [\w ]+, an interval needs (\d+)$", note)
    return f"n {few[1]} < {few[2]}" if few else note or "no interval"


def line_of(cell: Cell) -> tuple[int, str]:
    """The number of a cell's colour, and its line style as CSS calls it."""
    dash = DASHES.index(cell.mark.dash)
    return SERIES.index(cell.mark.colour), ("solid", "dashed", "dotted", "dashed")[dash]


def heads(cells: Sequence[Cell]) -> list[Head]:
    """A column per cell."""
    return [_head(cell, cells) for cell in cells]


def _head(cell: Cell, cells: Sequence[Cell]) -> Head:
    hue, dash = line_of(cell)
    many = len(cells) > 1
    trouble = "" if cell.sound else "invalid" if not cell.scores.valid else "incomplete"
    alike = many and len({beneath(one) for one in cells}) == 1  # then the line above says it for all of them
    return Head(cell.label, "" if alike else beneath(cell), hue if many else None, dash, trouble)


def beneath(cell: Cell) -> str:
    """Delay and streams at once, as far as the label does not say them."""
    delay = delay_said(cell.run.config)
    parts = ["" if delay in cell.label else delay]
    parts.append("" if "stream" in cell.label else streams_said(cell.run.config.concurrency))
    return ", ".join(filter(None, parts))


def failed(scores: Scores) -> Value:
    """How many streams failed, of how many."""
    count = sum(scores.outcomes.get(name, 0) for name in FAILURES)
    return Value(f"{count} of {scores.streams}", mood=BAD if count else "")


# --- at a glance -----------------------------------------------------------------------------------------------------------


def glance(cells: Sequence[Cell]) -> Table:
    """One line per cell: how accurate, how fast, whether it keeps up, and whether that may be quoted."""
    paced = any(math.isfinite(cell.run.config.speed) for cell in cells)
    name = "CER" if all(cell.by_character for cell in cells) else "WER"
    columns: list[tuple[Head, Callable[[Cell], Value]]] = [
        (Head(name, term=TERMS[name]), lambda cell: rate(cell.rate)),
    ]
    if paced:
        columns += [
            (Head("half the words within", term=TERMS["word latency"]), _quantile("word_emission_latency", "p50")),
            (Head("95 % within", term=TERMS["word latency"]), _quantile("word_emission_latency", "p95")),
            (Head("final, 95 % within", term=TERMS["time to final"]), _quantile("time_to_final", "p95")),
            (Head("keeps up", term=TERMS["transcript lag"]), _keeps_up),
        ]
    else:
        columns.append((Head("real-time factor", term=TERMS["real-time factor"]), _factor))
    columns += [
        (Head("failed"), lambda cell: failed(cell.scores)),
        (Head("valid", term=TERMS["valid"]), lambda cell: validity(cell)),
    ]
    rows = []
    for cell in cells:
        hue, dash = line_of(cell)
        values = [read(cell) for _, read in columns]
        rows.append(Row(cell.label, values, hue=hue if len(cells) > 1 else None, dash=dash, small=beneath(cell)))
    return Table([Head("", left=True), *(head for head, _ in columns)], rows, glance=True)


def _quantile(name: str, quantile: str) -> Callable[[Cell], Value]:
    def read(cell: Cell) -> Value:
        measured = cell.scores.latency.get(name)
        return NOTHING if measured is None else duration(getattr(measured, quantile))

    return read


def _factor(cell: Cell) -> Value:
    factor = cell.scores.latency.get("real_time_factor")
    return NOTHING if factor is None else value(factor.p50, ratio, interval_ratio)


def _keeps_up(cell: Cell) -> Value:
    drift = cell.scores.latency.get("drift")
    if drift is None or drift.p50.value is None:
        return NOTHING
    small = f"{1000 * drift.p50.value:+.0f} ms/s" if abs(drift.p50.value) >= 0.0005 else "level"
    why = "The slope of the transcript's lag at the median stream."
    match cell.keeps_up:
        case True:
            return Value("✓ yes", small, why, GOOD)
        case False:
            return Value("✗ no", small, why, BAD)
        case _:
            return Value("cannot tell", small, drift.p50.note or why, UNSURE)


def validity(cell: Cell) -> Value:
    """Whether a cell's figures may be quoted."""
    if cell.sound:
        return Value("✓ yes", mood=GOOD)
    return Value("✗ no", "invalid" if not cell.scores.valid else "incomplete", mood=BAD)


# --- all of them -----------------------------------------------------------------------------------------------------------


def _rows(cells: Sequence[Cell]) -> list[Row]:
    """The rows of the table, one value per cell; rows that no cell has are left out."""

    def row(name: str, values: Sequence[Value | None], term: str = "", *, key: bool = False) -> None:
        if any(one is not None for one in values):
            rows.append(Row(name, [one or NOTHING for one in values], TERMS.get(term, ""), key))

    def latency(name: str, label: str, term: str, quantiles: Sequence[str], key: str = "") -> None:
        if not paced:
            return  # without a schedule nothing is late
        for quantile in quantiles:
            measured = [cell.scores.latency.get(name) for cell in cells]
            values = [None if d is None else duration(getattr(d, quantile)) for d in measured]
            row(f"{label} {quantile}", values, term, key=quantile == key)

    paced = any(math.isfinite(cell.run.config.speed) for cell in cells)
    scores = [cell.scores for cell in cells]
    characters = all(cell.by_character for cell in cells)
    rows = [Row("Accuracy")]
    row("WER", [rate(s.accuracy.wer) for s in scores], "WER", key=not characters)
    row("substituted / deleted / inserted", [Value(_split(s)) for s in scores], "WER")
    row("raw WER", [rate(s.accuracy.raw_wer) for s in scores], "raw WER")
    row("CER", [rate(s.accuracy.cer) for s in scores], "CER", key=characters)
    row("reference words", [Value(f"{s.accuracy.reference_words:,}", f"{s.streams} utterances") for s in scores])
    row("hallucinated words per minute", [
        None if s.hallucinated_words_per_minute.value is None else value(s.hallucinated_words_per_minute, plain, interval_plain)
        for s in scores
    ])  # fmt: skip
    rows.append(Row("Latency, from the planned schedule"))
    latency("first_token_from_onset", "first token", "first token", ("p50", "p95"))
    latency("word_emission_latency", "word latency", "word latency", ("p50", "p90", "p95", "p99"), key="p50")
    latency("word_finality_latency", "word finality", "word finality", ("p50", "p95"))
    latency("excess_latency", "excess latency", "excess latency", ("p50", "p95"))
    latency("time_to_final", "time to final", "time to final", ("p50", "p95", "p99"))
    latency("flush_latency", "flush latency", "flush latency", ("p50", "p95"))
    factors = [one.latency.get("real_time_factor") for one in scores]
    told = [None if factor is None else value(factor.p50, ratio, interval_ratio) for factor in factors]
    row("real-time factor p50", told, "real-time factor")
    row("audio seconds per second", [_throughput(s) for s in scores], "real-time factor")
    rows.append(Row("Stability"))
    for name, label in (
        ("unstable_partial_word_ratio", "unstable words"),
        ("normalized_erasure", "erased words"),
        ("edit_overhead", "edit overhead"),
    ):
        row(label, [rate(s.stability[name]) if name in s.stability else None for s in scores], "unstable words")
    for name, (label, term) in COUNTS.items():
        row(label, [Value(plain(s.counts[name])) if name in s.counts else None for s in scores], term)
    rows.append(Row("Run"))
    row("errors", [failed(s) for s in scores])
    row("pacing lateness p99", [value(s.pacing.p99, milliseconds, interval_milliseconds) for s in scores], "pacing")
    row("valid", [validity(cell) for cell in cells], "valid")
    after = [*rows[1:], Row("")]
    return [one for one, follows in zip(rows, after, strict=True) if one.values or follows.values]


def tables(cells: Sequence[Cell]) -> list[Table]:
    """All figures in one table, or side by side in two where few cells leave room."""
    columns = [Head("Measure", left=True), *heads(cells)]
    rows = _rows(cells)
    if len(cells) > NARROW:
        return [Table(columns, rows)]
    starts = [index for index, row in enumerate(rows) if not row.values]
    groups = [rows[a:b] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
    latency = [row for group in groups if group[0].name.startswith("Latency") for row in group]
    others = [row for group in groups if not group[0].name.startswith("Latency") for row in group]
    return [Table(columns, part) for part in (others, latency) if part]


def _throughput(scores: Scores) -> Value | None:
    """Only unpaced runs have one: a paced run is as fast as its audio."""
    if "real_time_factor" not in scores.latency or "audio_seconds_per_second" not in scores.counts:
        return None
    return Value(plain(round(scores.counts["audio_seconds_per_second"], 1)))


def _split(scores: Scores) -> str:
    found = scores.accuracy
    return f"{found.substitutions} / {found.deletions} / {found.insertions}"


def numbers(cells: Sequence[Cell]) -> pd.DataFrame:
    """The table of the page as text: a row per measure, a column per cell, intervals in brackets."""
    return Table([Head("measure"), *heads(cells)], _rows(cells)).frame()
