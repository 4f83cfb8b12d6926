"""The end of a bench in the terminal: one line per cell."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from harness.report.measures import FAILURES
from harness.report.wording import plain
from harness.score import Scores
from harness.statistics import Distribution, Estimate


def console_table(scores: Sequence[Scores], caveats: Sequence[str] = ()) -> Table:
    """The end of a bench in the terminal, one line per cell, within 110 columns. Delay and concurrency are read off the run's id."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    for name in (
        "delay",
        "c",
        "n",
        "WER % [95 %]",
        "first",
        "word p50/p95/p99",
        "final p50/p95",
        "stalls",
        "err",
        "pace",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in sorted(scores, key=_cell_of):
        delay, concurrency = _cell_of(one)
        failed = sum(one.outcomes.get(name, 0) for name in FAILURES)
        word, final, first = (
            one.latency.get(name) for name in ("word_emission_latency", "time_to_final", "first_token_from_onset")
        )
        table.add_row(
            "own" if delay < 0 else str(delay), str(concurrency), str(one.streams), _console_rate(one.accuracy.wer),
            _console(first, "p50"), "/".join(_console(word, name) for name in ("p50", "p95", "p99")),
            "/".join(_console(final, name) for name in ("p50", "p95")),
            plain(one.counts.get("stalls", 0)), Text(str(failed), style="bold red" if failed else ""),
            "-" if one.pacing.p99.value is None else f"{one.pacing.p99.value * 1000:.1f}", _console_state(one),
        )  # fmt: skip
    notes = [
        "c: streams at once. Delay and pacing p99 in ms, latencies in s; word latency contains the delay. ~: n too small for an interval."
    ]
    table.caption = "\n".join(
        [*notes, *caveats, *dict.fromkeys(reason for one in scores for reason in one.invalid_because)]
    )
    return table


def _cell_of(scores: Scores) -> tuple[int, int]:
    found = re.search(r"-c(\d+)-d(\d+|own)(?:-\d+)?$", scores.run)
    if found is None:
        return -1, 0
    return -1 if found[2] == "own" else int(found[2]), int(found[1])


def _console(measured: Distribution | None, name: str) -> str:
    estimate: Estimate | None = None if measured is None else getattr(measured, name)
    if estimate is None or estimate.value is None:
        return "-"
    return f"{'~' if estimate.low is None else ''}{estimate.value:.2f}"


def _console_rate(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"~{estimate.value * 100:.1f}"
    return f"{estimate.value * 100:.1f} [{estimate.low * 100:.1f}, {estimate.high * 100:.1f}]"


def _console_state(scores: Scores) -> Text:
    if not scores.valid:
        return Text("✗ INVALID", style="bold red")
    return Text("valid", style="green") if scores.complete else Text("✗ PARTIAL", style="bold red")
