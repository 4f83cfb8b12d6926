"""Which plots a page has: the few that answer the question, and those for who asks further."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.report import figures
from harness.report.blocks import Plot
from harness.report.cells import (
    Cell,
    curve,
    error_rates,
    lag_lines,
    lengths_and_rates,
    load_lines,
    published_for,
    speaker_rates,
    typical_stream,
    wer_by_delay,
    wer_by_load,
)
from harness.report.figures import Line, Mark
from harness.report.tables import speakers
from harness.statistics import Estimate

MOST_PANELS = 6  # cells that get a panel of their own; the table and the shared plots show all
LATENCIES = {  # name -> title, what is to be said of it
    "word_emission_latency": (
        "When words are shown, after they were spoken",
        "A value per word. The thin dotted lines are the transcription delays; a curve ends below 100 % by the words never recognised.",
    ),
    "first_token_from_onset": ("First token, from the first spoken word", "A value per stream."),
    "time_to_final": ("Final transcript, after the last spoken word", "A value per stream."),
}
DOTS = "Dots are p50 and p95, the bars their 95 % intervals."


def plot(figure: Figure, name: str, label: str, caption: str) -> Plot:
    """A figure as it stands on a page; ``name`` must be unique on it."""
    return Plot(figures.svg(figure, name, label), caption)


def answering(cells: Sequence[Cell]) -> list[Plot]:
    """How accurate, how fast, how stable: the plots at the top."""
    made = [*accuracy(cells), *latency(cells, "word_emission_latency")]
    if not any(math.isfinite(cell.run.config.speed) for cell in cells):
        made = accuracy(cells)
    return [*made, *(lag(cells) if len(cells) == 1 else []), *stability(cells)]


def accuracy(cells: Sequence[Cell]) -> list[Plot]:
    """The error rate over what was varied; of one cell alone, by speaker."""
    kind = "Character" if all(cell.by_character for cell in cells) else "Word"
    alone = "Bars are 95 % intervals of each rate alone. Cells share their utterances: differences are surer than the bars suggest."
    made = []
    if by_delay := wer_by_delay(cells):
        title = f"{kind} error rate by transcription delay"
        figure = figures.rate_by_delay(by_delay, title, published_for(cells))
        made.append(plot(figure, "wer", title, alone))
    if by_load := wer_by_load(cells):
        title = f"{kind} error rate by streams at once"
        made.append(plot(figures.rate_by_load(by_load, title), "wer-load", title, alone))
    return made or by_speaker(cells[:MOST_PANELS]) or error_split(cells)


def by_speaker(cells: Sequence[Cell]) -> list[Plot]:
    """The WER of each of a few speakers, and of all."""
    named = speakers(cells)
    if not named:
        return []
    rows = speaker_rates(cells, named)
    rows.append(("all", [(cell.mark, cell.scores.accuracy.wer) for cell in cells]))
    title = "Word error rate by speaker"
    return [plot(figures.share_rows(rows, title, "word error rate"), "speakers", title, "Bars are 95 % intervals.")]


def error_split(cells: Sequence[Cell]) -> list[Plot]:
    """Which kinds of errors there are."""
    splits = error_rates(cells)
    if not splits:
        return []
    label = "Substitutions, deletions and insertions per reference word"
    caption = "Many deletions: words are missed or the tail is lost. Many insertions: words are made up or said again."
    return [plot(figures.error_split(splits), "split", label, caption)]


def latency(cells: Sequence[Cell], *names: str) -> list[Plot]:
    """A latency as a distribution, a curve per cell."""
    made = []
    for name in names:
        title, caption = LATENCIES[name]
        curves = [curve(cell, name, nominal=name == "word_emission_latency") for cell in cells]
        if any(len(one.values) for one in curves):
            figure = figures.distribution(curves, title)
            made.append(plot(figure, f"ecdf-{name}".replace("_", "-"), title, f"{caption} {DOTS}"))
    return made


def latency_rows(cells: Sequence[Cell]) -> list[Plot]:
    """Quantiles of word latency, a line per cell."""
    measured = [
        (cell.mark, cell.scores.latency["word_emission_latency"])
        for cell in cells
        if "word_emission_latency" in cell.scores.latency
    ]
    if len(measured) < 2:
        return []
    caption = "Hollow marks have no interval: too few streams for that quantile."
    return [plot(figures.quantile_rows(measured, "Word latency"), "rows", "Word latency quantiles by cell", caption)]


def lag(cells: Sequence[Cell]) -> list[Plot]:
    """How far transcripts are behind their audio, a panel per cell, all to one scale."""
    drawn = [(cell, lines) for cell in cells[:MOST_PANELS] if (lines := lag_lines(cell))]
    top = max((figures.lag_reach(lines, cell.delay_seconds) for cell, lines in drawn), default=None)
    seconds = max((float(line.x.max()) for _, lines in drawn for line in lines), default=None)
    made = []
    for place, (cell, lines) in enumerate(drawn):
        title = f"Transcript lag, {cell.label}"
        figure = figures.lag_over_time(lines, cell.mark, title, cell.delay_seconds, top, seconds)
        made.append(
            plot(figure, f"lag{place}", title, "A line per stream. Level: it keeps up. Rising: it falls behind.")
        )
    return made


def stability(cells: Sequence[Cell]) -> list[Plot]:
    """What users notice and averages hide: words taken back, pauses, lost ends, dropped audio."""
    shares = [("words taken back", "unstable_partial_word_ratio")]
    counts = [
        ("stalls", "stalls"),
        ("words lost at the end", "lost_tail_words"),
        ("audio dropped (s)", "dropped_seconds"),
    ]
    panels: list[tuple[str, bool, list[tuple[Mark, Estimate]]]] = []
    for name, key in shares:
        found = [(cell.mark, cell.scores.stability[key]) for cell in cells if key in cell.scores.stability]
        panels.append((name, True, found))
    for name, key in counts:
        counted = [cell.scores.counts.get(key) for cell in cells]
        panels.append((name, False, [(cell.mark, Estimate(n)) for cell, n in zip(cells, counted, strict=True)]))
    if not any(estimate.value is not None for _, _, values in panels for _, estimate in values):
        return []
    title = "What the transcript did on the way"
    streams = max(cell.scores.streams for cell in cells)
    caption = (
        f"Words taken back are a share of the final transcript's; counts are over up to {streams:,} streams. "
        "A stall: 2 s beyond the delay without new text while words are spoken."
    )
    return [plot(figures.stability(panels, title), "stability", "Stability: words taken back, stalls, losses", caption)]


def typical(cell: Cell) -> list[Plot]:
    """One utterance as it happened."""
    if not cell.scored["word_emission_latency_p50"].notna().any():
        return []
    caption = f"{cell.label}: the stream whose median word latency is the median. Each bar spans from a word spoken to the word shown."
    return [plot(typical_stream(cell), "typical", "One utterance as it happened", caption)]


def by_length(cell: Cell) -> list[Plot]:
    """Whether long utterances are worse."""
    if not cell.scores.accuracy.reference_words:
        return []
    title = "Error rate by length of the utterance"
    figure = figures.rates([(cell.mark, *lengths_and_rates(cell))], title, "audio (s)", "word error rate")
    caption = "One dot per utterance. Short ones scatter more: a single error weighs more in them."
    return [plot(figure, "length", title, caption)]


LOADS = (  # column of system.parquet, title, unit, scale
    ("cpu_percent", "Processor", "% of one core", 1.0),
    ("gpu_percent", "GPU", "% busy", 1.0),
    ("gpu_memory_bytes", "GPU memory", "GiB", 2.0**-30),
    ("gpu_watts", "GPU power", "W", 1.0),
)


def load(cells: Sequence[Cell]) -> list[Plot]:
    """What server, harness, machine and accelerators were busy with."""
    plots, memory = [], []
    for index, cell in enumerate(cells[:MOST_PANELS]):
        for column, title, unit, scale in LOADS:
            lines = load_lines(cell, column, scale)
            if lines:
                named = f"{title}, {cell.label}"
                figure = figures.load_over_time(lines, named, unit)
                plots.append(plot(figure, f"{column}{index}", named, _peaks(lines, unit)))
        memory += [(cell.label, line) for source, line in load_lines(cell, "rss_bytes", 2.0**-20) if source == "server"]
    if memory:
        figure = figures.load_over_time(memory, "The server's memory", "resident MiB")
        plots.append(plot(figure, "memory", "The server's resident memory", _peaks(memory, "MiB")))
    return plots


def _peaks(lines: Sequence[tuple[str, Line]], unit: str) -> str:
    return f"Peak in {unit}: {', '.join(f'{source} {np.max(line.y):,.0f}' for source, line in lines)}."
