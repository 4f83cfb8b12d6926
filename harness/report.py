"""What people look at: one self-contained page, or one table in the terminal, for the cells of a bench."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape
from rich.table import Table
from rich.text import Text

from harness import accuracy, figures, statistics, store
from harness.figures import Curve, Line, Mark, Point
from harness.normalise import Normaliser, normaliser
from harness.score import Scores
from harness.statistics import Distribution, Estimate
from harness.store import Run

WORST_SHOWN = 12  # per cell; the rest is in utterances.parquet
ERRORS_SHOWN = 8

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
    "transcript lag": "Audio sent less the end of the newest word transcribed. Its slope is the drift: a stream keeps up when that is not above 0.",
    "pacing": "How late packets left the load generator. Above 20 ms (or half a packet) at p99 the run measures the generator and is invalid.",
    "streams at once": "How many utterances were in flight at any time.",
    "valid": "The load generator kept its own schedule and the run was scored in full; only valid runs pass a gate.",
}
OUTCOME_TERMS = {
    "ok": "a final transcript came",
    "failed": "the server said error, the connection broke, or no final came in time",
    "rejected": "the server refused the session for want of capacity",
    "abandoned": "the run was interrupted while the stream was in flight",
}
# Word error rate of Voxtral Realtime on FLEURS, all languages, by delay in ms, as its model card publishes it.
PUBLISHED_VOXTRAL = ((160.0, 0.1260), (240.0, 0.1080), (480.0, 0.0872), (960.0, 0.0770), (2400.0, 0.0673))
PUBLISHED_LABEL = "Voxtral Realtime on FLEURS (model card)"


class ReportError(Exception):
    """There is nothing to show; the message says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One scored run folder, read."""

    folder: Path
    run: Run
    scores: Scores
    utterances: pd.DataFrame
    system: pd.DataFrame
    mark: Mark

    @property
    def delay_seconds(self) -> float | None:
        """The delay in force: what the server said, else what was asked for."""
        said = self.utterances["delay_ms_in_force"].dropna()
        asked = self.run.config.delay_ms
        if len(said):
            return float(said.median()) / 1000
        return None if asked is None else asked / 1000

    @property
    def sound(self) -> bool:
        return self.scores.valid and self.scores.complete


def load(folders: Sequence[Path]) -> list[Cell]:
    """Reads scored run folders, ordered by delay and concurrency. Raises `ReportError` when there is nothing to read."""
    if not folders:
        raise ReportError("no run folder given: pass at least one folder under reports/runs")
    read = [(Path(folder), store.read_run(Path(folder)), store.read_scores(Path(folder))) for folder in folders]
    read.sort(key=lambda one: (one[1].config.delay_ms or 0, one[1].config.concurrency, one[1].id))
    marks = figures.marks([(run.config.delay_ms, run.config.concurrency) for _, run, _ in read])
    return [
        Cell(folder, run, scores, store.read_utterances(folder), store.read_system(folder), mark)
        for (folder, run, scores), mark in zip(read, marks, strict=True)
    ]


def report(folders: Sequence[Path], out: Path) -> Path:
    """Writes one self-contained page about the runs in ``folders`` to ``out`` and returns its path."""
    page = render(load(folders))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding="utf-8")
    return out


def render(cells: Sequence[Cell]) -> str:
    """The page as text."""
    pages = Environment(
        loader=PackageLoader("harness", "templates"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    css = resources.files("harness").joinpath("templates/report.css").read_text(encoding="utf-8")
    first = cells[0]
    return pages.get_template("report.html").render(
        css=css,
        title=f"{_subject(cells)} · Earmark",
        when=first.run.created,
        machine=_machine(first.run.environment),
        headline=headline(cells),
        caveats=_caveats(cells),
        banners=_banners(cells),
        findings=findings(cells),
        block=first.scores.block,
        columns=[_column(cell) for cell in cells],
        rows=_rows(cells),
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


# --- sentences -------------------------------------------------------------------------------------------------------------


def headline(cells: Sequence[Cell]) -> str:
    """One sentence that says what came out."""
    if len(cells) == 1:
        return _headline_of_one(cells[0])
    return _headline_of_many(cells)


def _headline_of_one(cell: Cell) -> str:
    scores, word = cell.scores, cell.scores.latency.get("word_emission_latency")
    parts = [f"{_subject([cell])}: WER {_percent_with_interval(scores.accuracy.wer)} {_at_delay(cell)}"]
    if word is not None and word.p50.value is not None:
        within = f"half of the recognised words shown within {_seconds(word.p50.value)}"
        if word.p95.value is not None:
            within += f", 95 % within {_seconds(word.p95.value)}"
        parts.append(within)
    parts.append(f"{_streams_at_once(cell.run)}, {_errors_said(cells=[cell])}")
    parts.append(_soundness([cell]))
    return "; ".join(parts) + "."


def _headline_of_many(cells: Sequence[Cell]) -> str:
    first, last = cells[0], cells[-1]
    parts = []
    delays = {cell.run.config.delay_ms for cell in cells}
    if len(delays) > 1:
        change = wer_change(first, last)
        a, b = _percent(first.scores.accuracy.wer.value), _percent(last.scores.accuracy.wer.value)
        verb = {"falls": "falls from", "rises": "rises from", "": "goes from"}[_direction(change)]
        said = f"{_subject(cells)}: WER {verb} {a} {_at_delay(first)} to {b} {_at_delay(last)}"
        if not _direction(change):
            said += ", a difference this run cannot tell from none"
        parts.append(said)
    else:
        rates = [cell.scores.accuracy.wer.value for cell in cells if cell.scores.accuracy.wer.value is not None]
        spread = f"{_percent(min(rates))} to {_percent(max(rates))}" if rates else "unknown"
        parts.append(f"{_subject(cells)} {_at_delay(first)}: WER {spread}")
    p50, p95 = (
        [getattr(cell.scores.latency["word_emission_latency"], name).value for cell in cells if "word_emission_latency" in cell.scores.latency]
        for name in ("p50", "p95")
    )  # fmt: skip
    if p50 and None not in p50:
        parts.append(f"the median recognised word is shown after {_seconds(min(p50))} to {_seconds(max(p50))}")
        if None not in p95:
            parts[-1] += f" (95 % within {_seconds(min(p95))} to {_seconds(max(p95))})"
    concurrencies = sorted({cell.run.config.concurrency for cell in cells})
    streams = " and ".join(str(n) for n in concurrencies) if len(concurrencies) < 3 else f"{concurrencies[0]} to {concurrencies[-1]}"
    parts.append(f"{streams} stream{'s' if concurrencies != [1] else ''} at once, {_errors_said(cells)}")
    parts.append(_soundness(cells))
    return "; ".join(parts) + "."


def findings(cells: Sequence[Cell]) -> list[str]:
    """A few sentences about what is worth a look, each computed from the runs."""
    said = []
    if len({cell.run.config.delay_ms for cell in cells}) > 1:
        said.append(_what_delay_buys(cells))
    for cell in cells:
        name = f"{cell.mark.label}: " if len(cells) > 1 else ""
        said += [name + sentence for sentence in _about(cell)]
    return said[:9]


def _what_delay_buys(cells: Sequence[Cell]) -> str:
    steps = []
    for before, after in zip(cells, cells[1:], strict=False):
        if before.run.config.concurrency != after.run.config.concurrency or before.run.config.delay_ms == after.run.config.delay_ms:
            continue
        change = wer_change(before, after)
        points = f"{_signed_points(change.value)} {_interval_points(change)}"
        clear = "" if _direction(change) else ", not distinguishable from none"
        steps.append(f"{before.run.config.delay_ms} → {after.run.config.delay_ms} ms changes the WER by {points} points{clear}")
    return "Same utterances compared: " + "; ".join(steps) + "." if steps else "No two cells differ in the delay alone."


def _about(cell: Cell) -> Iterable[str]:
    scores, frame = cell.scores, cell.utterances[cell.utterances["scored"]]
    errors = (frame["substitutions"] + frame["deletions"] + frame["insertions"]).sort_values(ascending=False)
    if errors.sum() > 0 and len(errors) >= 10:
        tenth = max(1, len(errors) // 10)
        yield f"the worst {tenth} of {len(errors)} utterances hold {errors.head(tenth).sum() / errors.sum():.0%} of the errors."
    excess = scores.latency.get("excess_latency")
    if excess is not None and excess.p50.value is not None:
        yield f"beyond the transcription delay itself a word costs {_seconds(excess.p50.value)} {_interval_seconds(excess.p50)} at the median stream."
    if scores.counts.get("stalls", 0):
        yield f"{scores.counts['stalls']:.0f} stalls: the transcript stood still while words were spoken."
    drift = frame["drift"].dropna()
    if len(drift) and float(drift.median()) > 0.01:
        yield f"the median stream falls behind by {float(drift.median()) * 1000:.0f} ms in every second of audio: it does not keep up."


def wer_change(before: Cell, after: Cell) -> Estimate:
    """WER of ``after`` less that of ``before`` over the utterances both have, with a paired 95 % interval."""
    a, b = (_counts(cell.utterances) for cell in (before, after))
    both = a.join(b, lsuffix="_a", rsuffix="_b", how="inner")
    return statistics.paired_rate_difference(
        both["errors_a"].to_numpy(float), both["errors_b"].to_numpy(float), both["words_a"].to_numpy(float), list(both.index)
    )


def _counts(frame: pd.DataFrame) -> pd.DataFrame:
    scored = frame[frame["scored"] & (frame["reference_words"] > 0)]
    errors = scored["substitutions"] + scored["deletions"] + scored["insertions"]
    table = pd.DataFrame({"errors": errors, "words": scored["reference_words"], "utterance": scored["utterance"]})
    return table.groupby("utterance").mean()


def _direction(change: Estimate) -> str:
    if change.low is not None and change.low > 0:
        return "rises"
    return "falls" if change.high is not None and change.high < 0 else ""


def _subject(cells: Sequence[Cell]) -> str:
    engines = dict.fromkeys(cell.run.config.engine for cell in cells)
    datasets = dict.fromkeys(cell.run.config.dataset for cell in cells)
    return f"{' and '.join(engines)} on {' and '.join(datasets)}"


def _at_delay(cell: Cell) -> str:
    delay = cell.delay_seconds
    return "at the server's own delay" if delay is None else f"at {delay * 1000:.0f} ms"


def _streams_at_once(run: Run) -> str:
    n = run.config.concurrency
    return "one stream at a time" if n == 1 else f"{n} streams at once"


def _errors_said(cells: Sequence[Cell]) -> str:
    streams = sum(cell.scores.streams for cell in cells)
    failed = sum(count for cell in cells for name, count in cell.scores.outcomes.items() if name != "ok")
    utterances = "utterance" if streams == 1 else "utterances"
    return f"{streams} {utterances}, " + ("no errors" if not failed else f"{failed} of them failed")


def _soundness(cells: Sequence[Cell]) -> str:
    bad = [cell for cell in cells if not cell.sound]
    if not bad:
        return "valid" if len(cells) == 1 else f"all {len(cells)} cells valid"
    if len(cells) == 1:
        return "INVALID" if not bad[0].scores.valid else "INCOMPLETE"
    return f"{len(bad)} of {len(cells)} cells NOT VALID"


def _caveats(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.run.config.caveat for cell in cells if cell.run.config.caveat))


def _banners(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    invalid = [cell for cell in cells if not cell.scores.valid]
    unfinished = [cell for cell in cells if not cell.scores.complete]
    banners: list[dict[str, Any]] = []
    if invalid:
        reasons = [f"{_column_label(cell)}: {why}" for cell in invalid for why in cell.scores.invalid_because or ["no reason recorded"]]
        advice = "Do not quote these figures; a gate refuses them. Free the machine or lower the concurrency, then run again."
        banners.append({"title": "✗ Invalid run", "advice": advice, "reasons": reasons})
    if unfinished:
        reasons = [f"{_column_label(cell)}: {cell.scores.streams} streams were scored before it stopped" for cell in unfinished]
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
        "sub": _streams_at_once(cell.run),
        "hue": figures.SERIES.index(cell.mark.colour),
        "dash": ("solid", "dashed", "dotted", "dashed")[dash],
        "valid": cell.sound,
        "trouble": "invalid" if not cell.scores.valid else "incomplete",
    }


def _rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """The rows of the table, one value per cell; rows that no cell has are left out."""

    def row(name: str, values: list[dict[str, Any] | None], term: str = "", key: bool = False) -> None:
        if any(value is not None for value in values):
            rows.append({"name": name, "term": TERMS.get(term, ""), "key": key, "values": [value or {"text": "–"} for value in values]})

    def latency(name: str, label: str, term: str, quantiles: Sequence[str], key: str = "") -> None:
        for quantile in quantiles:
            measured = [cell.scores.latency.get(name) for cell in cells]
            values = [None if d is None else _value(getattr(d, quantile), _seconds, _interval_seconds) for d in measured]
            row(f"{label} {quantile}", values, term, key=quantile == key)

    rows: list[dict[str, Any]] = [{"group": "Accuracy"}]
    scores = [cell.scores for cell in cells]
    row("WER", [_value(s.accuracy.wer, _percent, _interval_percent) for s in scores], "WER", key=True)
    row("substituted / deleted / inserted", [{"text": _split(s)} for s in scores], "WER")
    row("raw WER", [_value(s.accuracy.raw_wer, _percent, _interval_percent) for s in scores], "raw WER")
    row("CER", [_value(s.accuracy.cer, _percent, _interval_percent) for s in scores], "CER")
    row("reference words", [{"text": f"{s.accuracy.reference_words:,}", "small": f"{s.streams} utterances"} for s in scores])
    row("hallucinated words per minute", [
        None if s.hallucinated_words_per_minute.value is None else _value(s.hallucinated_words_per_minute, _plain, _interval_plain)
        for s in scores
    ])  # fmt: skip
    rows.append({"group": "Latency, from the planned schedule"})
    latency("first_token_from_onset", "first token", "first token", ("p50", "p95"))
    latency("word_emission_latency", "word latency", "word latency", ("p50", "p95", "p99"), key="p50")
    latency("word_finality_latency", "word finality", "word finality", ("p50",))
    latency("excess_latency", "excess latency", "excess latency", ("p50",))
    latency("time_to_final", "time to final", "time to final", ("p50", "p95", "p99"))
    rows.append({"group": "Stability"})
    for name, label in (("unstable_partial_word_ratio", "unstable words"), ("normalized_erasure", "erased words"), ("edit_overhead", "edit overhead")):
        row(label, [_value(s.stability[name], _percent, _interval_percent) if name in s.stability else None for s in scores], "unstable words")
    for name, term in (("stalls", "stalls"), ("lost_tail_words", "lost tail"), ("unmatched_words", "word latency"), ("dropped_seconds", "")):
        row(COUNTS[name], [{"text": _plain(s.counts[name])} if name in s.counts else None for s in scores], term)
    rows.append({"group": "Run"})
    row("errors", [_failed(s) for s in scores])
    row("pacing lateness p99", [_value(s.pacing.p99, _milliseconds, _interval_milliseconds) for s in scores], "pacing")
    row("valid", [{"text": "✓ yes", "mood": "good"} if c.sound else {"text": "✗ no", "mood": "bad"} for c in cells], "valid")
    return [row for row, after in zip(rows, [*rows[1:], {"group": ""}], strict=True) if not ("group" in row and "group" in after)]


COUNTS = {
    "stalls": "stalls",
    "lost_tail_words": "lost tail words",
    "unmatched_words": "words without a latency",
    "dropped_seconds": "dropped audio (s)",
}


def _failed(scores: Scores) -> dict[str, Any]:
    failed = sum(count for name, count in scores.outcomes.items() if name != "ok")
    return {"text": f"{failed} of {scores.streams}", "mood": "bad" if failed else ""}


def _split(scores: Scores) -> str:
    accuracy_ = scores.accuracy
    return f"{accuracy_.substitutions} / {accuracy_.deletions} / {accuracy_.insertions}"


def _value(estimate: Estimate, said: Any, interval: Any) -> dict[str, Any]:
    if estimate.value is None:
        return {"text": "–", "small": "none", "why": estimate.note}
    if estimate.low is None or estimate.high is None:
        return {"text": said(estimate.value), "small": "no interval", "why": estimate.note or "too few streams"}
    return {"text": said(estimate.value), "small": interval(estimate), "why": estimate.note}


# --- plots -----------------------------------------------------------------------------------------------------------------


def _sections(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [
        {"id": "accuracy", "title": "Accuracy", "caveats": _caveats(cells), "plots": _accuracy_plots(cells), "table": _by_speaker(cells)},
        {"id": "latency", "title": "Latency", "plots": _latency_plots(cells)},
        {"id": "load", "title": "Keeping up, and load", "plots": [*_lag_plots(cells), *_load_plots(cells)]},
    ]


def _plot(figure: Any, name: str, label: str, caption: str) -> dict[str, str]:
    return {"svg": figures.svg(figure, name, label), "caption": caption}


def _accuracy_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    series = wer_by_delay(cells)
    if series:
        published = published_for(cells)
        caption = "Bars are 95 % intervals of each rate alone. The cells share their utterances, so differences between them are surer than "
        caption += "the bars suggest: see the paired comparison at the top."
        plots.append(_plot(figures.rate_by_delay(series, published=published), "wer", "Word error rate by transcription delay", caption))
    splits = []
    for cell in cells:
        counted = cell.scores.accuracy
        if counted.reference_words:
            rates = [n / counted.reference_words for n in (counted.substitutions, counted.deletions, counted.insertions)]
            splits.append((cell.mark.label, rates[0], rates[1], rates[2]))
    if splits:
        caption = "Many deletions mean that words are missed or the tail is lost; many insertions, that words are made up or repeated."
        plots.append(_plot(figures.error_split(splits), "split", "Substitutions, deletions and insertions per reference word", caption))
    return plots


def wer_by_delay(cells: Sequence[Cell]) -> list[tuple[Mark, list[Point]]]:
    """One series per concurrency for a plot over delays; empty unless there are at least two delays."""
    known = [cell for cell in cells if cell.delay_seconds is not None]
    if len({cell.delay_seconds for cell in known}) < 2:
        return []
    series: dict[int, list[Point]] = {}
    for cell in known:
        points = series.setdefault(cell.run.config.concurrency, [])
        points.append(Point((cell.delay_seconds or 0.0) * 1000, cell.scores.accuracy.wer))
    return [
        (Mark(f"{n} stream{'s' if n != 1 else ''}", figures.SERIES[i % 6], figures.DASHES[i % 4]), points)
        for i, (n, points) in enumerate(sorted(series.items()))
    ]


def published_for(cells: Sequence[Cell]) -> tuple[str, Sequence[tuple[float, float]]] | None:
    """The published curve of the model that ran, if there is one: laid over another model it would only mislead."""
    same = all("voxtral" in f"{cell.run.config.model} {cell.run.config.engine}".lower() for cell in cells)
    return (PUBLISHED_LABEL, PUBLISHED_VOXTRAL) if same else None


def _by_speaker(cells: Sequence[Cell]) -> dict[str, Any] | None:
    speakers = sorted({str(name) for cell in cells for name in cell.utterances["speaker"].dropna() if name})
    if not 2 <= len(speakers) <= 12:
        return None
    lines = []
    for speaker in speakers:
        values = []
        for cell in cells:
            counted = _counts(cell.utterances[cell.utterances["speaker"] == speaker])
            estimate = statistics.rate(counted["errors"].to_numpy(float), counted["words"].to_numpy(float), list(counted.index))
            values.append(_value(estimate, _percent, _interval_percent))
        lines.append({"name": f"{speaker} ({len(counted)} utterances)", "values": values})
    return {"head": ["WER by speaker", *(cell.mark.label for cell in cells)], "lines": lines}


def curve(cell: Cell, name: str, column: str) -> Curve:
    """The values of one latency as a distribution: a list column is one value per word, any other one per stream."""
    frame = cell.utterances[cell.utterances["scored"]]
    measured = cell.scores.latency.get(name)
    if column.endswith("latencies"):
        lists = [np.asarray(values, dtype=float) for values in frame[column] if values is not None]
        values = np.concatenate(lists) if lists else np.empty(0)
    else:
        values = frame[column].to_numpy(dtype=float, na_value=np.nan)
    finite = values[np.isfinite(values)]
    return Curve(cell.mark, finite, measured, beyond=measured.missing if measured else int(len(values) - len(finite)))


def _latency_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    drawn = (
        ("word_emission_latency", "word_emission_latencies", "Word latency",
         "Each curve is one cell; the thin dotted line in its colour is the delay it was asked for. It ends below 100 % by the words never recognised."),
        ("first_token_from_onset", "first_token_from_onset", "First token, from the first spoken word", "One value per stream."),
        ("time_to_final", "time_to_final", "Time to final", "From the end of the last spoken word to the final transcript. One value per stream."),
    )  # fmt: skip
    for name, column, title, caption in drawn:
        curves = [curve(cell, name, column) for cell in cells]
        if name == "word_emission_latency":
            curves = [Curve(c.mark, c.values, c.quantiles, cell.delay_seconds, c.beyond) for c, cell in zip(curves, cells, strict=True)]
        if any(len(one.values) for one in curves):
            text = f"{caption} Dots are p50 and p95, with bars for their intervals."
            plots.append(_plot(figures.distribution(curves, title), f"ecdf-{name}".replace("_", "-"), title, text))
    measured = [(cell.mark, cell.scores.latency["word_emission_latency"]) for cell in cells if "word_emission_latency" in cell.scores.latency]
    if len(measured) > 1:
        caption = "The same figures side by side. Hollow marks have no interval: too few streams for that quantile."
        plots.append(_plot(figures.quantile_rows(measured, "Word latency by cell"), "rows", "Word latency quantiles by cell", caption))
    return plots


def lag_lines(cell: Cell) -> list[Line]:
    """Transcript lag of each scored stream over the audio sent."""
    return [Line(np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for x, y in store.read_lags(cell.folder)]


def _lag_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    for index, cell in enumerate(cells[:6]):
        lines = lag_lines(cell)
        if lines:
            title = f"Transcript lag, {cell.mark.label}"
            caption = "Level: the stream keeps up. Rising: it falls further behind with every second of audio."
            plots.append(_plot(figures.lag_over_time(lines, cell.mark, title, cell.delay_seconds), f"lag{index}", title, caption))
    return plots


def load_lines(cell: Cell, column: str, scale: float = 1.0) -> list[tuple[str, Line]]:
    """One line per sampled source (server, harness, machine) of a column of system.parquet."""
    if cell.system.empty or column not in cell.system:
        return []
    known = cell.system.dropna(subset=[column])
    return [
        (str(source), Line(rows["t_seconds"].to_numpy(float), rows[column].to_numpy(float) * scale))
        for source, rows in known.groupby("source", sort=False)
    ]


def _load_plots(cells: Sequence[Cell]) -> list[dict[str, str]]:
    plots = []
    for index, cell in enumerate(cells[:6]):
        for column, title, unit, scale in (("cpu_percent", "Processor", "% of one core", 1.0), ("rss_bytes", "Memory", "MiB", 2.0**-20)):
            lines = load_lines(cell, column, scale)
            if column == "rss_bytes":
                lines = [(source, line) for source, line in lines if source != "machine"]
            if lines:
                named = f"{title}, {cell.mark.label}"
                peak = ", ".join(f"{source} {np.max(line.y):,.0f}" for source, line in lines)
                plots.append(_plot(figures.load_over_time(lines, named, unit), f"{column}{index}", named, f"Peak in {unit}: {peak}."))
    return plots


# --- utterances, outcomes, environment -------------------------------------------------------------------------------------


def _worst(cell: Cell) -> dict[str, Any]:
    frame = cell.utterances[cell.utterances["scored"]]
    errors = frame["substitutions"] + frame["deletions"] + frame["insertions"]
    ranked = frame.assign(errors=errors)[errors > 0].sort_values(["errors", "wer"], ascending=False)
    shown = ranked.head(WORST_SHOWN)
    return {
        "label": cell.mark.label,
        "summary": f"the {len(shown)} with most errors, of {len(ranked)} with any, of {len(frame)}",
        "utterances": [_worst_item(row, cell.run.config) for row in shown.to_dict("records")],
    }


def _worst_item(row: Mapping[Any, Any], config: store.RunConfig) -> dict[str, Any]:
    errors, words = int(row["errors"]), int(row["reference_words"])
    return {
        "errors": f"{errors} error{'s' if errors != 1 else ''} in {words} words",
        "utterance": row["utterance"],
        "speaker": row["speaker"],
        "seconds": f"{row['audio_seconds']:.1f} s",
        "outcome": str(row["outcome"]),
        "error": row["error"],
        "steps": steps(row["reference"], row["hypothesis"] if row["outcome"] == "ok" else "", normaliser(config.normaliser)),
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
                "counts": [{"count": cell.scores.outcomes.get(n, 0), "bad": n != "ok" and cell.scores.outcomes.get(n)} for n in names],
                "errors": [{"text": text[:300], "count": count} for text, count in said.most_common(ERRORS_SHOWN)],
            }
        )
    return {"names": names, "terms": OUTCOME_TERMS, "lines": lines}


def _command(run: Run) -> str:
    recorded = run.environment.get("command")
    if recorded:
        return recorded if isinstance(recorded, str) else " ".join(str(word) for word in recorded)
    config = run.config
    words = ["earmark bench", f"--dataset {config.dataset}", f"--protocol {config.protocol}", f"--concurrency {config.concurrency}"]
    words += [f"--delay-ms {config.delay_ms}"] if config.delay_ms is not None else []
    words += [f"--packet-ms {config.packet_ms}", f"--seed {config.seed}"]
    words += [f"--target {config.target}"] if config.target != "started" else []
    return " ".join(words)


def _facts(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    def values(read: Any) -> str:
        return "; ".join(dict.fromkeys(str(read(cell)) for cell in cells))

    delays = values(lambda cell: f"{cell.mark.label}: {_plain((cell.delay_seconds or 0) * 1000)} ms" if cell.delay_seconds else "not said")
    return [
        ("runs", ", ".join(cell.run.id for cell in cells)),
        ("engine, model", values(lambda cell: f"{cell.run.config.engine}, {cell.run.config.model}")),
        ("protocol, target", values(lambda cell: f"{cell.run.config.protocol}, {cell.run.config.target}")),
        ("server options", values(lambda cell: " ".join(cell.run.config.server_options) or "none")),
        ("packets, speed, arrival", values(lambda cell: f"{cell.run.config.packet_ms} ms, {cell.run.config.speed:g}×, {cell.run.config.arrival}")),
        ("delay in force", delays),
        ("seed", values(lambda cell: cell.run.config.seed)),
        ("corpus", values(lambda cell: f"{cell.run.config.dataset}, sha256 {cell.run.config.corpus_sha256}")),
        ("normaliser", values(lambda cell: cell.run.config.normaliser)),
        ("wall time", values(lambda cell: f"{cell.run.wall_seconds:.0f} s")),
        ("notes", values(lambda cell: " ".join(cell.run.notes) or "none")),
    ]  # fmt: skip


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)


def _machine(environment: Mapping[str, Any]) -> str:
    known = [environment.get(name) for name in ("machine", "cpu", "gpu")]
    said = [str(value) for value in known if value and not isinstance(value, Mapping)]
    return ", ".join(dict.fromkeys(said)) or "machine not recorded"


# --- numbers as text -------------------------------------------------------------------------------------------------------


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value * 100:.1f} %"


def _percent_with_interval(estimate: Estimate) -> str:
    return f"{_percent(estimate.value)} {_bracketed(estimate, 100, 1)}".rstrip()


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if abs(value) >= 0.0995 else f"{value * 1000:.0f} ms"


def _milliseconds(value: float) -> str:
    return f"{value * 1000:.1f} ms"


def _plain(value: float) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _signed_points(value: float | None) -> str:
    return "?" if value is None else f"{value * 100:+.1f}"


def _bracketed(estimate: Estimate, scale: float, digits: int) -> str:
    if estimate.low is None or estimate.high is None:
        return f"(no interval: {estimate.note})" if estimate.note else ""
    return f"[{estimate.low * scale:.{digits}f}, {estimate.high * scale:.{digits}f}]"


def _interval_percent(estimate: Estimate) -> str:
    return _bracketed(estimate, 100, 1)


def _interval_seconds(estimate: Estimate) -> str:
    return _bracketed(estimate, 1, 2)


def _interval_milliseconds(estimate: Estimate) -> str:
    return _bracketed(estimate, 1000, 1)


def _interval_plain(estimate: Estimate) -> str:
    return _bracketed(estimate, 1, 1)


def _interval_points(estimate: Estimate) -> str:
    return _bracketed(estimate, 100, 1)
