"""What people look at: one self-contained page, or one table in the terminal, for the cells of a bench."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from rich import box
from rich.table import Table
from rich.text import Text

from harness import accuracy
from harness.normalise import Normaliser, normaliser
from harness.report import figures
from harness.report.cells import (
    Cell,
    curve,
    delay_pairs,
    error_rates,
    lag_lines,
    lengths_and_rates,
    load,
    load_lines,
    load_pairs,
    published_for,
    speaker_wer,
    typical_stream,
    wer_by_delay,
    wer_change,
    worst,
)
from harness.report.figures import Line
from harness.report.findings import findings, headline, streams_at_once, subject
from harness.report.wording import (
    interval_milliseconds,
    interval_percent,
    interval_plain,
    interval_points,
    interval_ratio,
    interval_seconds,
    milliseconds,
    percent,
    plain,
    ratio,
    seconds,
    signed_points,
)  # fmt: skip
from harness.score import Scores
from harness.statistics import Distribution, Estimate
from harness.store import Run

WORST_SHOWN = 12  # per cell; the rest is in utterances.parquet
ERRORS_SHOWN = 8
PAIRS_SHOWN = 24
MOST_PANELS = 6  # cells that get a panel of their own; the table and the shared plots show all
FAILURES = ("failed", "rejected")

TERMS = {
    "WER": "Word error rate: substituted + deleted + inserted words, over the reference words. Counts are added over the corpus "
    "before dividing; failed and empty streams count as all deleted.",
    "raw WER": "The same before any normalisation: case, punctuation and spelling variants count as errors.",
    "CER": "Character error rate, after normalisation.",
    "95 % interval": "Where the figure would fall in 95 of 100 repetitions with other recordings, from a bootstrap over "
    "recordings or speakers. A p95 needs 72 independent streams for one, a p99 368.",
    "transcription delay": "How long the recogniser is allowed to listen on before it commits to a word.",
    "first token": "First text received, less the moment the first word was spoken (from onset) or the stream's planned start.",
    "word latency": "Word emission latency: when a word was first shown correctly, less when it had been spoken. It contains the "
    "transcription delay. Words never recognised have none; they are counted.",
    "word finality": "The same, up to the moment after which the word never changed again.",
    "excess latency": "Median word latency less the transcription delay: what serving, network, packets and alignment cost.",
    "time to final": "Final transcript received, less the end of the last spoken word.",
    "flush latency": "Final transcript received, less the sending of the end-of-audio message.",
    "stalls": "Gaps without new text longer than 2 s plus the delay while three or more words were spoken.",
    "unstable words": "Words of partial transcripts that were later changed or removed, over the words of the final.",
    "lost tail": "Reference words after the last one recognised correctly.",
    "transcript lag": "Audio sent less the end of the newest word transcribed. Its slope is the drift: a stream "
    "keeps up when that is not above 0.",
    "pacing": "How late packets left the load generator. Above 20 ms (or half a packet) at p99 the run measures "
    "the generator and is invalid.",
    "real-time factor": "Wall time over audio time, for unpaced runs only; below 1 is faster than the audio.",
    "streams at once": "How many utterances were in flight at any time.",
    "valid": "The load generator kept its own schedule and the run was scored in full; only valid runs pass a gate.",
}
OUTCOME_TERMS = {
    "ok": "a final transcript came",
    "failed": "the server said error, the connection broke, or no final came in time",
    "rejected": "the server refused the session for want of capacity",
    "abandoned": "the run was interrupted while the stream was in flight",
}


def report(folders: Sequence[Path], out: Path) -> Path:
    """Writes one self-contained page about the runs in ``folders`` to ``out`` and returns its path."""
    page = render(load(folders))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def render(cells: Sequence[Cell]) -> str:
    """The page as text."""
    pages = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = resources.files("harness.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    first = cells[0]
    return pages.get_template("report.html").render(
        css=css,
        title=f"{subject(cells)} · Earmark",
        when=_when(first.run),
        machine=_machine(first.run.environment),
        headline=headline(cells),
        caveats=_caveats(cells),
        banners=_banners(cells),
        findings=findings(cells),
        block=first.scores.block,
        columns=[_column(cell) for cell in cells],
        tables=_tables(cells),
        sections=_sections(cells),
        worst=[_worst(cell) for cell in cells],
        normaliser=first.run.config.normaliser,
        outcomes=_outcomes(cells),
        commands="\n".join(dict.fromkeys(_command(cell.run) for cell in cells)),
        facts=_facts(cells),
        more_facts=list(_flat(first.run.environment)),
        terms=list(TERMS.items()),
        folders=[cell.folder.name for cell in cells],
    )


# --- warnings -------------------------------------------------------------------------------------------------------------


def _caveats(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.run.config.caveat for cell in cells if cell.run.config.caveat))


def _banners(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    invalid = [cell for cell in cells if not cell.scores.valid]
    unfinished = [cell for cell in cells if not cell.scores.complete]
    banners: list[dict[str, Any]] = []
    if invalid:
        reasons = [
            f"{_column_label(cell)}: {why}"
            for cell in invalid
            for why in cell.scores.invalid_because or ["no reason recorded"]
        ]
        advice = "Do not quote these figures; a gate refuses them. Free the machine or lower the concurrency, then run again."
        banners.append({"title": "✗ Invalid run", "advice": advice, "reasons": reasons})
    if unfinished:
        reasons = [
            f"{_column_label(cell)}: {cell.scores.streams} streams were scored before it stopped" for cell in unfinished
        ]
        advice = "The run was interrupted. What is shown covers only the part of the corpus that was replayed."
        banners.append({"title": "✗ Incomplete run", "advice": advice, "reasons": reasons})
    return banners


# --- the table of numbers --------------------------------------------------------------------------------------------------


def _column_label(cell: Cell) -> str:
    delay = cell.run.config.delay_ms
    return "server's delay" if delay is None else f"{delay} ms"


def _column(cell: Cell) -> dict[str, Any]:
    dash = figures.DASHES.index(cell.mark.dash)
    return {
        "label": _column_label(cell),
        "sub": streams_at_once(cell.run),
        "hue": figures.SERIES.index(cell.mark.colour),
        "dash": ("solid", "dashed", "dotted", "dashed")[dash],
        "valid": cell.sound,
        "trouble": "invalid" if not cell.scores.valid else "incomplete",
    }


def _rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows of the table, one value per cell; rows that no cell has are left out."""

    def row(name: str, values: list[dict[str, Any] | None], term: str = "", key: bool = False) -> None:
        if any(value is not None for value in values):
            rows.append(
                {
                    "name": name,
                    "term": TERMS.get(term, ""),
                    "key": key,
                    "values": [value or {"text": "–"} for value in values],
                }
            )

    def latency(name: str, label: str, term: str, quantiles: Sequence[str], key: str = "") -> None:
        if not paced:
            return  # without a schedule nothing is late
        for quantile in quantiles:
            measured = [cell.scores.latency.get(name) for cell in cells]
            values = [None if d is None else _value(getattr(d, quantile), seconds, interval_seconds) for d in measured]
            row(f"{label} {quantile}", values, term, key=quantile == key)

    paced = any(math.isfinite(cell.run.config.speed) for cell in cells)
    rows: list[dict[str, Any]] = [{"group": "Accuracy"}]
    scores = [cell.scores for cell in cells]
    row("WER", [_value(s.accuracy.wer, percent, interval_percent) for s in scores], "WER", key=True)
    row("substituted / deleted / inserted", [{"text": _split(s)} for s in scores], "WER")
    row("raw WER", [_value(s.accuracy.raw_wer, percent, interval_percent) for s in scores], "raw WER")
    row("CER", [_value(s.accuracy.cer, percent, interval_percent) for s in scores], "CER")
    row(
        "reference words",
        [{"text": f"{s.accuracy.reference_words:,}", "small": f"{s.streams} utterances"} for s in scores],
    )
    row("hallucinated words per minute", [
        None if s.hallucinated_words_per_minute.value is None else _value(s.hallucinated_words_per_minute, plain, interval_plain)
        for s in scores
    ])  # fmt: skip
    rows.append({"group": "Latency, from the planned schedule"})
    latency("first_token_from_onset", "first token", "first token", ("p50", "p95"))
    latency("word_emission_latency", "word latency", "word latency", ("p50", "p95", "p99"), key="p50")
    latency("word_finality_latency", "word finality", "word finality", ("p50",))
    latency("excess_latency", "excess latency", "excess latency", ("p50",))
    latency("time_to_final", "time to final", "time to final", ("p50", "p95", "p99"))
    factors = [one.latency.get("real_time_factor") for one in scores]
    told = [None if factor is None else _value(factor.p50, ratio, interval_ratio) for factor in factors]
    row("real-time factor p50", told, "real-time factor")
    row("audio seconds per second", [_throughput(s) for s in scores], "real-time factor")
    rows.append({"group": "Stability"})
    for name, label in (
        ("unstable_partial_word_ratio", "unstable words"),
        ("normalized_erasure", "erased words"),
        ("edit_overhead", "edit overhead"),
    ):
        row(
            label,
            [_value(s.stability[name], percent, interval_percent) if name in s.stability else None for s in scores],
            "unstable words",
        )
    for name, term in (
        ("stalls", "stalls"),
        ("lost_tail_words", "lost tail"),
        ("unmatched_words", "word latency"),
        ("dropped_seconds", ""),
    ):
        row(COUNTS[name], [{"text": plain(s.counts[name])} if name in s.counts else None for s in scores], term)
    rows.append({"group": "Run"})
    row("errors", [_failed(s) for s in scores])
    row("pacing lateness p99", [_value(s.pacing.p99, milliseconds, interval_milliseconds) for s in scores], "pacing")
    row(
        "valid",
        [{"text": "✓ yes", "mood": "good"} if c.sound else {"text": "✗ no", "mood": "bad"} for c in cells],
        "valid",
    )
    return [
        row
        for row, after in zip(rows, [*rows[1:], {"group": ""}], strict=True)
        if not ("group" in row and "group" in after)
    ]


def _tables(cells: Sequence[Cell]) -> list[list[dict[str, Any]]]:
    """The rows in one table, or side by side in two where few cells leave room."""
    rows = _rows(cells)
    if len(cells) > 2:
        return [rows]
    starts = [index for index, row in enumerate(rows) if "group" in row]
    groups = [rows[a:b] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
    latency = [row for group in groups if str(group[0]["group"]).startswith("Latency") for row in group]
    others = [row for group in groups if not str(group[0]["group"]).startswith("Latency") for row in group]
    return [part for part in (others, latency) if part]


COUNTS = {
    "stalls": "stalls",
    "lost_tail_words": "lost tail words",
    "unmatched_words": "words without a latency",
    "dropped_seconds": "dropped audio (s)",
}


def _throughput(scores: Scores) -> dict[str, Any] | None:
    """Only unpaced runs have one: a paced run is as fast as its audio."""
    if "real_time_factor" not in scores.latency or "audio_seconds_per_second" not in scores.counts:
        return None
    return {"text": plain(round(scores.counts["audio_seconds_per_second"], 1))}


def _failed(scores: Scores) -> dict[str, Any]:
    failed = sum(scores.outcomes.get(name, 0) for name in FAILURES)
    return {"text": f"{failed} of {scores.streams}", "mood": "bad" if failed else ""}


def _split(scores: Scores) -> str:
    accuracy_ = scores.accuracy
    return f"{accuracy_.substitutions} / {accuracy_.deletions} / {accuracy_.insertions}"


def _value(estimate: Estimate, said: Any, interval: Any) -> dict[str, Any]:
    if estimate.value is None:
        return {"text": "–", "small": "none", "why": estimate.note}
    if estimate.low is None or estimate.high is None:
        return {"text": said(estimate.value), "small": _why_none(estimate.note), "why": estimate.note}
    return {"text": said(estimate.value), "small": interval(estimate), "why": estimate.note}


def _why_none(note: str) -> str:
    """In place of an interval: the reason, short where it is the usual one."""
    few = re.match(r"n = (\d+) [\w ]+, an interval needs (\d+)$", note)
    return f"n {few[1]} < {few[2]}" if few else note or "no interval"


# --- plots -----------------------------------------------------------------------------------------------------------------


def _sections(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [
        {
            "id": "accuracy",
            "title": "Accuracy",
            "caveats": _caveats(cells),
            "plots": _accuracy_plots(cells),
            "tables": _accuracy_tables(cells),
        },
        {"id": "latency", "title": "Latency", "plots": _latency_plots(cells)},
        {"id": "lag", "title": "Keeping up", "plots": [*_lag_plots(cells), *_typical_plot(cells[0])]},
        {"id": "load", "title": "Load on the machine", "plots": _load_plots(cells)},
    ]


def _plot(figure: Any, name: str, label: str, caption: str) -> dict[str, str]:
    return {"svg": figures.svg(figure, name, label), "caption": caption}


def _accuracy_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    series = wer_by_delay(cells)
    if series:
        published = published_for(cells)
        caption = (
            "Bars are 95 % intervals of each rate alone. The cells share their utterances, so differences between them "
        )
        caption += "are surer than the bars suggest: see the table below."
        plots.append(
            _plot(
                figures.rate_by_delay(series, published=published),
                "wer",
                "Word error rate by transcription delay",
                caption,
            )
        )
    splits = error_rates(cells)
    if splits:
        caption = "Many deletions mean that words are missed or the tail is lost; many insertions, that words are made up or repeated."
        plots.append(
            _plot(
                figures.error_split(splits),
                "split",
                "Substitutions, deletions and insertions per reference word",
                caption,
            )
        )
    if len(cells) == 1 and cells[0].scores.accuracy.reference_words:
        title = "Error rate by length of the utterance"
        figure = figures.rates([(cells[0].mark, *lengths_and_rates(cells[0]))], title, "audio (s)", "word error rate")
        plots.append(
            _plot(
                figure,
                "length",
                title,
                "One dot per utterance. Short utterances scatter more: a single error weighs more in them.",
            )
        )
    return plots


def _accuracy_tables(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [table for table in (_paired(cells), _by_speaker(cells)) if table is not None]


def _paired(cells: Sequence[Cell]) -> dict[str, Any] | None:
    """What a longer delay and what more streams change, on the same utterances."""
    pairs = [
        (f"{_column_label(a)} → {_column_label(b)}, {streams_at_once(a.run)}", a, b) for a, b in delay_pairs(cells)
    ]
    for a, b in load_pairs(cells):
        pairs.append((f"{a.run.config.concurrency} → {b.run.config.concurrency} streams, {_column_label(a)}", a, b))
    lines = []
    for name, a, b in pairs[:PAIRS_SHOWN]:
        change = wer_change(a, b)
        told = change.low is not None and change.high is not None and (change.low > 0 or change.high < 0)
        seen = "–" if change.detectable is None else f"{change.detectable * 100:.1f}"
        values = [
            {"text": signed_points(change.value), "small": interval_points(change), "why": change.note},
            {"text": "yes" if told else "cannot tell"},
            {"text": seen},
            {"text": str(change.n)},
        ]
        lines.append({"name": name, "values": values})
    head = ["WER change on the same utterances", "points", "a change?", "would have seen", "n"]
    return {"head": head, "lines": lines} if lines else None


def _by_speaker(cells: Sequence[Cell]) -> dict[str, Any] | None:
    speakers = sorted({str(name) for cell in cells for name in cell.utterances["speaker"].dropna() if name})
    if not 2 <= len(speakers) <= 12:
        return None
    lines = []
    for speaker in speakers:
        values = [_value(speaker_wer(cell, speaker), percent, interval_percent) for cell in cells]
        lines.append(
            {"name": f"{speaker} ({(cells[0].scored['speaker'] == speaker).sum()} utterances)", "values": values}
        )
    return {"head": ["WER by speaker", *(cell.mark.label for cell in cells)], "lines": lines}


def _latency_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    drawn = (
        ("word_emission_latency", "Word latency",
         "Each curve is one cell; the thin dotted line in its colour is its transcription delay. It ends below 100 % by the words "
         "never recognised."),
        ("first_token_from_onset", "First token, from the first spoken word", "One value per stream."),
        ("time_to_final", "Time to final", "From the end of the last spoken word to the final transcript. One value per stream."),
    )  # fmt: skip
    for name, title, caption in drawn:
        curves = [curve(cell, name, nominal=name == "word_emission_latency") for cell in cells]
        if any(len(one.values) for one in curves):
            text = f"{caption} Dots are p50 and p95, with bars for their intervals."
            plots.append(_plot(figures.distribution(curves, title), f"ecdf-{name}".replace("_", "-"), title, text))
    measured = [
        (cell.mark, cell.scores.latency["word_emission_latency"])
        for cell in cells
        if "word_emission_latency" in cell.scores.latency
    ]
    if len(measured) > 1:
        caption = "The same figures side by side. Hollow marks have no interval: too few streams for that quantile."
        plots.append(
            _plot(
                figures.quantile_rows(measured, "Word latency by cell"),
                "rows",
                "Word latency quantiles by cell",
                caption,
            )
        )
    return plots


def _lag_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    for index, cell in enumerate(cells[:MOST_PANELS]):
        lines = lag_lines(cell)
        if lines:
            title = f"Transcript lag, {cell.mark.label}"
            caption = "Measured whenever new words came. Level: the stream keeps up. Rising: it falls further behind with every second."
            plots.append(
                _plot(figures.lag_over_time(lines, cell.mark, title, cell.delay_seconds), f"lag{index}", title, caption)
            )
    return plots


def _typical_plot(cell: Cell) -> list[dict[str, str]]:
    if not cell.scored["word_emission_latency_p50"].notna().any():
        return []
    caption = "The stream whose median word latency is the median. Each bar spans from when a word was spoken to when it was shown."
    return [_plot(typical_stream(cell), "typical", "One utterance as it happened", f"{cell.mark.label}: {caption}")]


LOADS = (  # column of system.parquet, title, unit, scale
    ("cpu_percent", "Processor", "% of one core", 1.0),
    ("gpu_percent", "GPU", "% busy", 1.0),
    ("gpu_memory_bytes", "GPU memory", "GiB", 2.0**-30),
    ("gpu_watts", "GPU power", "W", 1.0),
)


def _load_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots, memory = [], []
    for index, cell in enumerate(cells[:MOST_PANELS]):
        for column, title, unit, scale in LOADS:
            lines = load_lines(cell, column, scale)
            if lines:
                named = f"{title}, {cell.mark.label}"
                figure = figures.load_over_time(lines, named, unit)
                plots.append(_plot(figure, f"{column}{index}", named, _peaks(lines, unit)))
        # The machine's own memory in use says little of either program.
        resident = [(source, line) for source, line in load_lines(cell, "rss_bytes", 2.0**-20) if source != "machine"]
        memory += [(f"{source}, {cell.mark.label}" if len(cells) > 1 else source, line) for source, line in resident]
    if memory:
        figure = figures.load_over_time(memory, "Memory", "resident MiB")
        plots.append(_plot(figure, "memory", "Resident memory", _peaks(memory, "MiB")))
    return plots


def _peaks(lines: Sequence[tuple[str, Line]], unit: str) -> str:
    return f"Peak in {unit}: {', '.join(f'{source} {np.max(line.y):,.0f}' for source, line in lines)}."


# --- utterances, outcomes, environment -------------------------------------------------------------------------------------


def _worst(cell: Cell) -> dict[str, Any]:
    shown, wrong = worst(cell, WORST_SHOWN), len(worst(cell, len(cell.utterances)))
    return {
        "label": cell.mark.label,
        "summary": f"the {len(shown)} with most errors, of {wrong} with any, of {len(cell.scored)}",
        "utterances": [
            _worst_item(row, normaliser(cell.run.config.normaliser).of(row["language"]))
            for row in shown.to_dict("records")
        ],
    }


def _worst_item(row: Mapping[Any, Any], counted_by: Normaliser) -> dict[str, Any]:
    errors, words = int(row["errors"]), int(row["reference_words"])
    return {
        "errors": f"{errors} error{'s' if errors != 1 else ''} in {words} words",
        "utterance": row["utterance"],
        "speaker": row["speaker"],
        "seconds": f"{row['audio_seconds']:.1f} s",
        "outcome": row["outcome"],
        "error": row["error"],
        # What a failed stream had shown is not scored, so it is not shown as recognised either.
        "steps": steps(row["reference"], row["hypothesis"] if row["outcome"] == "ok" else "", counted_by),
    }


def steps(reference: str, hypothesis: str, normaliser: Normaliser) -> list[dict[str, str]]:
    """The aligned words for the page, one entry per pair: ``kind`` is same, sub, del or ins."""
    made = []
    for kind, left, right in accuracy.diff(reference, hypothesis, normaliser):
        for said, heard in zip_longest(left, right, fillvalue=""):
            name = "same" if kind == "equal" else "sub" if said and heard else "del" if said else "ins"
            made.append({"kind": name, "reference": said, "hypothesis": heard})
    return made


def _outcomes(cells: Sequence[Cell]) -> dict[str, Any]:
    names = [name for name in OUTCOME_TERMS if name == "ok" or any(cell.scores.outcomes.get(name) for cell in cells)]
    lines = []
    for cell in cells:
        said = Counter(str(error) for error in cell.utterances["error"].dropna() if error)
        lines.append(
            {
                "label": cell.mark.label,
                "counts": [
                    {"count": cell.scores.outcomes.get(n, 0), "bad": n != "ok" and cell.scores.outcomes.get(n)}
                    for n in names
                ],
                "errors": [{"text": text[:300], "count": count} for text, count in said.most_common(ERRORS_SHOWN)],
            }
        )
    return {"names": names, "terms": OUTCOME_TERMS, "lines": lines}


def _command(run: Run) -> str:
    recorded = run.environment.get("command")
    if recorded:
        return recorded if isinstance(recorded, str) else " ".join(str(word) for word in recorded)
    config = run.config
    words = [
        "earmark bench",
        f"--dataset {config.dataset}",
        f"--protocol {config.protocol}",
        f"--concurrency {config.concurrency}",
    ]
    words += [f"--delay-ms {config.delay_ms}"] if config.delay_ms is not None else []
    words += [f"--packet-ms {config.packet_ms}", f"--seed {config.seed}"]
    words += [f"--target {config.target}"] if config.target != "started" else []
    return " ".join(words)


def _facts(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    def values(read: Any) -> str:
        return "; ".join(dict.fromkeys(str(read(cell)) for cell in cells))

    delays = values(
        lambda cell: (
            f"{cell.mark.label}: {plain((cell.delay_seconds or 0) * 1000)} ms" if cell.delay_seconds else "not said"
        )
    )
    return [
        ("runs", ", ".join(cell.run.id for cell in cells)),
        ("engine, model", values(lambda cell: f"{cell.run.config.engine}, {cell.run.config.model}")),
        ("protocol, target", values(lambda cell: f"{cell.run.config.protocol}, {cell.run.config.target}")),
        ("server options", values(lambda cell: " ".join(cell.run.config.server_options) or "none")),
        ("packets, speed, arrival", values(lambda cell: _schedule(cell.run))),
        ("delay in force", delays),
        ("seed", values(lambda cell: cell.run.config.seed)),
        ("corpus", values(lambda cell: f"{cell.run.config.dataset}, sha256 {cell.run.config.corpus_sha256}")),
        ("normaliser", values(lambda cell: cell.run.config.normaliser)),
        ("wall time", values(lambda cell: f"{cell.run.wall_seconds:.0f} s")),
        ("notes", values(lambda cell: " ".join(cell.run.notes) or "none")),
    ]  # fmt: skip


def _schedule(run: Run) -> str:
    return f"{run.config.packet_ms} ms, {run.config.speed:g}×, {run.config.arrival}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield (
                f"{prefix}{name}",
                ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value),
            )


def _when(run: Run) -> str:
    try:
        moment = datetime.fromisoformat(run.created)
    except ValueError:
        return run.created
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def _machine(environment: Mapping[str, Any]) -> str:
    known = [environment.get(name) for name in ("machine", "cpu", "gpu")]
    said = [str(value) for value in known if value and not isinstance(value, Mapping)]
    return ", ".join(dict.fromkeys(said)) or "machine not recorded"


# --- tables ----------------------------------------------------------------------------------------------------------------


def numbers(cells: Sequence[Cell]) -> pd.DataFrame:
    """The table of the page as text: a row per measure, a column per cell, intervals in brackets."""
    columns = [f"{_column_label(cell)}, {streams_at_once(cell.run)}" for cell in cells]
    rows = [row for row in _rows(cells) if "values" in row]
    said = [[f"{value['text']} {value.get('small', '')}".strip() for value in row["values"]] for row in rows]
    return pd.DataFrame(said, columns=columns, index=pd.Index([row["name"] for row in rows], name="measure"))


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
