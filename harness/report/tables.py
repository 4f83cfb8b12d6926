"""The smaller tables of a page: what differs on the same utterances, and what the figures rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from harness.report.blocks import BAD, NOTHING, UNSURE, Head, Row, Table, Value
from harness.report.cells import Cell, delay_pairs, load_pairs, speaker_wer, wer_change
from harness.report.marking import delay_said
from harness.report.measures import heads, rate
from harness.report.terms import OUTCOME_TERMS
from harness.report.wording import interval_points, plain, signed_points, streams_said
from harness.server_side import Between, ServerFigure
from harness.statistics import Difference

PAIRS_SHOWN = 24
ERRORS_SHOWN = 8
FEWEST_SPEAKERS, MOST_SPEAKERS = 2, 12
CHANGE_HEADS = [Head("points"), Head("a change?"), Head("would have seen"), Head("n")]


def paired(cells: Sequence[Cell]) -> Table | None:
    """What a longer delay and what more streams change, on the same utterances."""
    pairs = [
        (f"{_sided(a)}{delay_said(a.run.config)} → {delay_said(b.run.config)}, {streams_said(a.run.config.concurrency)}", a, b)
        for a, b in delay_pairs(cells)
    ]  # fmt: skip
    pairs += [
        (f"{_sided(a)}{a.run.config.concurrency} → {b.run.config.concurrency} streams, {delay_said(a.run.config)}", a, b)
        for a, b in load_pairs(cells)
    ]  # fmt: skip
    rows = []
    for name, a, b in pairs[:PAIRS_SHOWN]:
        change = wer_change(a, b)
        rows.append(Row(name, _change(change, change.n)))
    note = "Would have seen: the smallest true change, in points, that would have shown four times out of five."
    return Table([Head("change of WER, same utterances", left=True), *CHANGE_HEADS], rows, note=note) if rows else None


def _sided(cell: Cell) -> str:
    return f"{cell.side}: " if cell.side else ""


def _change(change: Difference, n: int) -> list[Value]:
    told = change.low is not None and change.high is not None and (change.low > 0 or change.high < 0)
    seen = "–" if change.detectable is None else f"{change.detectable * 100:.1f}"
    return [
        Value(signed_points(change.value), interval_points(change), change.note),
        Value("yes") if told else Value("cannot tell", mood=UNSURE),
        Value(seen),
        Value(str(n)),
    ]


def against(cells: Sequence[Cell]) -> Table | None:
    """What scoring found against other runs: what load does, what streaming costs, or what simply differs."""
    rows = []
    for cell in cells:
        for one in cell.scores.against:
            if one.wer.value is not None:
                name = f"{cell.label}: {one.relation}"
                small = f"against {one.run}" + (f"; differs in {', '.join(one.differs)}" if one.differs else "")
                rows.append(Row(name, _change(one.wer, one.utterances), small=small))
    head = Head("change of WER against another run", left=True)
    return Table([head, *CHANGE_HEADS], rows[:PAIRS_SHOWN]) if rows else None


def by_speaker(cells: Sequence[Cell]) -> Table | None:
    """The WER of each of a few speakers."""
    named = speakers(cells)
    rows = [
        Row(
            f"{speaker} ({(cells[0].scored['speaker'] == speaker).sum()} utterances)",
            [rate(speaker_wer(cell, speaker)) for cell in cells],
        )
        for speaker in named
    ]
    return Table([Head("WER by speaker", left=True), *heads(cells)], rows) if rows else None


def speakers(cells: Sequence[Cell]) -> list[str]:
    """Those who speak, if they are few enough to be told one by one."""
    found = sorted({str(name) for cell in cells for name in cell.utterances["speaker"].dropna() if name})
    return found if FEWEST_SPEAKERS <= len(found) <= MOST_SPEAKERS else []


def by_language(cells: Sequence[Cell]) -> Table | None:
    """The error rate that counts in each of several languages."""
    languages = sorted({language for cell in cells for language in cell.scores.accuracy.by_language})
    rows = []
    for language in languages:
        found = [cell.scores.accuracy.by_language.get(language) for cell in cells]
        kind = next((one.headline.upper() for one in found if one is not None), "WER")
        values = [NOTHING if one is None else rate(one.cer if one.headline == "cer" else one.wer) for one in found]
        rows.append(Row(language, values, small=kind))
    return Table([Head("error rate by language", left=True), *heads(cells)], rows) if rows else None


def sensitivity(cells: Sequence[Cell]) -> Table | None:
    """The WER of the same transcripts under each normaliser."""
    names = list(dict.fromkeys(one.normaliser for cell in cells for one in cell.scores.accuracy.sensitivity))
    if len(names) < 2:
        return None
    used = {cell.scores.accuracy.normaliser for cell in cells}
    rows = []
    for name in names:
        found = [
            next((one for one in cell.scores.accuracy.sensitivity if one.normaliser == name), None) for cell in cells
        ]
        values = [NOTHING if one is None else rate(one.wer) for one in found]
        rows.append(Row(name, values, key=name in used, small="the one that counts" if name in used else ""))
    note = "The same transcripts, counted by other rules of spelling. Rates by different normalisers do not compare."
    return Table([Head("WER by normaliser", left=True), *heads(cells)], rows, note=note)


def alignment(cells: Sequence[Cell]) -> Table | None:
    """Where word times come from, and how many words have none."""
    found = [cell.scores.alignment for cell in cells]
    if not any(one.timed_words or one.untimed_words for one in found):
        return None
    sources = list(dict.fromkeys(one.source or "of unknown origin" for one in found if one.timed_words))
    rows = [
        Row("words with a time", [Value(plain(one.timed_words)) for one in found]),
        Row("words without", [Value(plain(one.untimed_words), mood=BAD if one.untimed_words else "") for one in found]),
        Row("streams without any", [Value(plain(one.untimed_streams)) for one in found]),
        Row("timed words never recognised", [Value(plain(c.scores.counts.get("unmatched_words", 0))) for c in cells]),
    ]
    note = f"Word times: {'; '.join(sources) or 'none'}. Only words that have one can have a latency."
    return Table([Head("word times", left=True), *heads(cells)], rows, note=note)


def server_side(cells: Sequence[Cell]) -> Table | None:
    """The server's own histograms with the client's measures beside them."""
    rows = []
    for cell in cells:
        if cell.scores.server_side and len(cells) > 1:
            rows.append(Row(cell.label))
        for figure in cell.scores.server_side:
            named = figure.client_count is not None
            name = figure.name.replace("_", " ") if named else figure.meaning
            rows.append(Row(name, _beside(figure), term=figure.meaning if named else ""))
    if not rows:
        return None
    columns = (Head("server, mean"), Head("p50"), Head("p95"), Head("n"), Head("client, mean"), Head("between the two"))
    note = "The server knows its mean exactly, a quantile by its bucket. Between the two lie network, kernel and the receiver."
    return Table([Head("server's own histograms, ms", left=True), *columns], rows, note=note)


def _beside(figure: ServerFigure) -> list[Value]:
    between = "–" if figure.difference is None else _ms(figure.difference)
    return [
        Value(_ms(figure.mean)),
        Value(_bounds(figure.p50)),
        Value(_bounds(figure.p95)),
        Value(f"{figure.count:,}"),
        Value("–" if figure.client_mean is None else _ms(figure.client_mean)),
        Value(between, "not the same streams" if figure.note else "", figure.note),
    ]


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.1f}"


def _bounds(between: Between) -> str:
    low = f"{1000 * between.low:g}"
    return f"over {low}" if between.high is None else f"{low}–{1000 * between.high:g}"


RESOURCES = (  # field of Load, what it is called, unit, scale
    ("cpu_percent_mean", "processor, mean", "% of a core", 1.0),
    ("cpu_percent_max", "processor, most", "% of a core", 1.0),
    ("rss_bytes_max", "memory, most", "MiB", 2.0**-20),
    ("gpu_percent_mean", "GPU busy, mean", "%", 1.0),
    ("gpu_memory_bytes_max", "GPU memory, most", "GiB", 2.0**-30),
    ("gpu_watts_mean", "GPU power, mean", "W", 1.0),
    ("gpu_watts_max", "GPU power, most", "W", 1.0),
)


def resources(cells: Sequence[Cell]) -> Table | None:
    """What the server, the load generator, the machine and each accelerator took."""
    rows = []
    for source in dict.fromkeys(source for cell in cells for source in cell.scores.system):
        loads = [cell.scores.system.get(source) for cell in cells]
        made = []
        for field, name, unit, scale in RESOURCES:
            found = [None if load is None else getattr(load, field) for load in loads]
            if any(one is not None for one in found):
                values = [NOTHING if one is None else Value(f"{one * scale:,.0f}") for one in found]
                made.append(Row(name, values, small=unit))
        rows += [Row(source), *made] if made else []
    return Table([Head("resources", left=True), *heads(cells)], rows) if rows else None


def outcomes(cells: Sequence[Cell]) -> Table:
    """How streams ended."""
    names = [name for name in OUTCOME_TERMS if name == "ok" or any(cell.scores.outcomes.get(name) for cell in cells)]
    rows = []
    for cell in cells:
        counts = [(name, cell.scores.outcomes.get(name, 0)) for name in names]
        rows.append(
            Row(cell.label, [Value(plain(count), mood=BAD if count and name != "ok" else "") for name, count in counts])
        )
    return Table([Head("", left=True), *(Head(name, term=OUTCOME_TERMS[name]) for name in names)], rows)


def errors(cells: Sequence[Cell]) -> list[tuple[str, int, str]]:
    """What failed streams said: cell, how often, text."""
    return [
        (cell.label, count, text[:300])
        for cell in cells
        for text, count in Counter(str(error) for error in cell.utterances["error"].dropna() if error).most_common(
            ERRORS_SHOWN
        )
    ]
