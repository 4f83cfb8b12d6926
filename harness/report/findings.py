"""What runs say, in sentences computed from them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.report.cells import Cell, delay_pairs, wer_change
from harness.report.wording import (
    bracketed,
    interval_percent,
    interval_points,
    interval_seconds,
    percent,
    percent_with_interval,
    seconds,
    signed_points,
    streams_said,
)
from harness.statistics import Bootstrap, Difference, ratio_of_sums


def headline(cells: Sequence[Cell]) -> str:
    """One sentence that answers how good this recogniser is, with "cannot tell" where these runs cannot."""
    if len(cells) == 1:
        return _headline_of_one(cells[0])
    if any(True for _ in delay_pairs(cells)) and len({cell.group for cell in cells}) == 1:
        return _headline_over_delays(cells)
    return _headline_of_many(cells)


def _headline_of_one(cell: Cell) -> str:
    said = f"{subject([cell])} gets {_wrong(cell)} {at_delay(cell)}"
    word = cell.scores.latency.get("word_emission_latency")
    if word is not None and word.p50.value is not None:
        said += f"; it shows half of the words it recognises within {seconds(word.p50.value)}"
        said += f", 95 % within {seconds(word.p95.value)}" if word.p95.value is not None else ""
    return f"{said}{_behind([cell])}."


def _headline_over_delays(cells: Sequence[Cell]) -> str:
    first, last = cells[0], cells[-1]
    change = wer_change(first, last)
    a, b = percent(first.rate.value), percent(last.rate.value)
    unit = _unit(cells)
    said = f"{subject(cells)} gets {a} of {unit} wrong {at_delay(first)} and {b} {at_delay(last)}"
    said += "" if _direction(change) else ", a difference these runs cannot tell from none"
    p50 = [_p50(cell) for cell in (first, last)]
    if None not in p50:
        shown = " and ".join(seconds(value) for value in p50 if value is not None)
        said += f"; half of the recognised words are shown within {shown}"
    return f"{said}{_behind(cells)}."


def _headline_of_many(cells: Sequence[Cell]) -> str:
    known = [(cell.rate.value, cell) for cell in cells if cell.rate.value is not None]
    if not known:
        return f"{subject(cells)}: how many words are wrong cannot be told{_behind(cells)}."
    (low, best), (high, worst) = (choose(known, key=lambda one: one[0]) for choose in (min, max))
    said = f"{subject(cells)}: {percent(low)} of {_unit(cells)} wrong ({best.label})"
    said += f" to {percent(high)} ({worst.label})" if worst is not best else ""
    if worst is not best and best.run.config.corpus_sha256 == worst.run.config.corpus_sha256:
        clear = _direction(wer_change(best, worst))
        said += "" if clear else ", which these runs cannot tell apart"
    p50 = [value for cell in cells if (value := _p50(cell)) is not None]
    if p50:
        spread = " to ".join(dict.fromkeys((seconds(min(p50)), seconds(max(p50)))))
        said += f"; half of the recognised words are shown within {spread}"
    return f"{said}{_behind(cells)}."


def deck(cells: Sequence[Cell]) -> str:
    """What the headline rests on: how much was replayed, what failed, whether it may be quoted."""
    concurrencies = sorted({cell.run.config.concurrency for cell in cells})
    streams = (
        streams_said(concurrencies[0])
        if len(concurrencies) == 1
        else " and ".join(map(str, concurrencies)) + " streams at once"
        if len(concurrencies) < 3
        else f"{concurrencies[0]} to {concurrencies[-1]} streams at once"
    )
    words = sum(cell.scores.accuracy.reference_words for cell in cells)
    return f"{errors_said(cells)}; {words:,} words; {streams}; {soundness(cells)}."


def _wrong(cell: Cell) -> str:
    rate, unit = cell.rate, _unit([cell])
    if rate.value is None:
        return f"an unknown share of {unit} wrong ({rate.note or 'nothing was said'})"
    if rate.low is None or rate.high is None:
        return f"{percent(rate.value)} of {unit} wrong (on how much speech that holds, it cannot tell: {rate.note})"
    return f"{percent(rate.value)} of {unit} wrong [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def _unit(cells: Sequence[Cell]) -> str:
    return "characters" if all(cell.by_character for cell in cells) else "words"


def _p50(cell: Cell) -> float | None:
    word = cell.scores.latency.get("word_emission_latency")
    return None if word is None else word.p50.value


def _behind(cells: Sequence[Cell]) -> str:
    """Only what speaks against it: that a stream keeps up is what everybody expects."""
    slow = [cell for cell in cells if cell.keeps_up is False]
    if not slow:
        return ""
    if len(slow) == len(cells):
        return "; it does not keep up with the audio"
    return f"; it does not keep up with the audio at {', '.join(cell.label for cell in slow[:3])}"


def findings(cells: Sequence[Cell]) -> list[str]:
    """A few sentences about what is worth a look, each computed from the runs."""
    return [
        *_what_delay_buys(cells),
        *_concentration(cells),
        *_excess(cells),
        *_missing(cells),
        *_stalls(cells),
        *_falling_behind(cells),
        *_other_work(cells),
    ]


def _what_delay_buys(cells: Sequence[Cell]) -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for before, after in delay_pairs(cells):
        change = wer_change(before, after)
        clear = "" if _direction(change) else ", not distinguishable from none"
        delays = f"{before.run.config.delay_ms} → {after.run.config.delay_ms} ms"
        said = f"{delays} changes the WER by {signed_points(change.value)} {interval_points(change)} points{clear}"
        groups.setdefault(before.group, []).append(said)
    for group, steps in list(groups.items())[:GROUPS_TOLD]:
        where = f" with {group}" if len(groups) > 1 else ""
        yield f"Same utterances compared{where}: " + "; ".join(steps) + "."


def _concentration(cells: Sequence[Cell]) -> Iterable[str]:
    shares = []
    for cell in cells:
        errors = cell.scored[["substitutions", "deletions", "insertions"]].sum(axis=1).sort_values(ascending=False)
        if len(errors) >= 10 and errors.sum() > 0:
            shares.append(float(errors.head(len(errors) // 10).sum() / errors.sum()))
    if shares:
        yield f"The worst tenth of the utterances holds {_span([share * 100 for share in shares], ' %')} of the errors."


def _excess(cells: Sequence[Cell]) -> Iterable[str]:
    medians = [d.p50 for cell in cells if (d := cell.scores.latency.get("excess_latency")) and d.p50.value is not None]
    if medians:
        cost = _span([(one.value or 0.0) * 1000 for one in medians], " ms")
        cost += f" {bracketed(medians[0], 1000, 0)}".rstrip() if len(medians) == 1 else ""
        yield f"Beyond the transcription delay itself, serving, network and packets cost {cost} at the median stream."


def _missing(cells: Sequence[Cell]) -> Iterable[str]:
    shares = [
        cell.scores.counts["unmatched_words"] / words
        for cell in cells
        if (words := cell.scores.counts.get("timed_words"))
    ]
    if shares and max(shares) > 0:
        missed = _span([share * 100 for share in shares], " %")
        missed += f" {_missing_interval(cells[0])}".rstrip() if len(cells) == 1 else ""
        yield f"{missed} of the words were never recognised: they have no latency, and no latency figure speaks for them."


def _missing_interval(cell: Cell) -> str:
    rows = cell.scored
    timed = [len(ends) for ends in rows["word_end_seconds"]]
    blocks = cell.bootstrap_blocks(list(rows["utterance"]), list(rows["speaker"].fillna("")))
    share = ratio_of_sums(list(rows["unmatched_words"].fillna(0.0)), timed, blocks, Bootstrap(cell.run.config.seed))
    return interval_percent(share)


def _stalls(cells: Sequence[Cell]) -> Iterable[str]:
    stalls = sum(cell.scores.counts.get("stalls", 0) for cell in cells)
    if stalls:
        places = f"{stalls:.0f} place{'s' if stalls != 1 else ''}"
        yield f"In {places} the transcript stood still for more than 2 s beyond the delay while words were spoken."


def _falling_behind(cells: Sequence[Cell]) -> Iterable[str]:
    for cell in cells:
        drift = cell.scores.latency.get("drift")
        if drift is not None and cell.keeps_up is False:
            behind = f"{(drift.p50.value or 0.0) * 1000:.0f} ms in every second of audio"
            yield f"{cell.label} does not keep up: the median stream falls behind by {behind}."


def _other_work(cells: Sequence[Cell]) -> Iterable[str]:
    """What the machine did beyond server and harness: latencies of a busy machine are not those of the server alone."""
    shares = [share for cell in cells if (share := cell.other_work) is not None]
    if shares and max(shares) > BUSY:
        taken = _span([share * 100 for share in shares], " %")
        yield f"Other work took {taken} of the machine's processors (median over the run): expect better latencies on a free one."


def _span(values: Sequence[float], unit: str) -> str:
    low, high = f"{min(values):.0f}", f"{max(values):.0f}"
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _direction(change: Difference) -> str:
    if change.low is not None and change.low > 0:
        return "rises"
    return "falls" if change.high is not None and change.high < 0 else ""


def subject(cells: Sequence[Cell]) -> str:
    """What ran on what."""
    engines = dict.fromkeys(cell.run.config.engine for cell in cells)
    datasets = dict.fromkeys(cell.run.config.dataset for cell in cells)
    return f"{' and '.join(engines)} on {' and '.join(datasets)}"


def at_delay(cell: Cell) -> str:
    """The delay in force, for use behind a figure."""
    delay = cell.delay_seconds
    return "at the server's own delay" if delay is None else f"at {delay * 1000:.0f} ms"


def errors_said(cells: Sequence[Cell]) -> str:
    """How many streams, and how many of them failed."""
    streams = sum(cell.scores.streams for cell in cells)
    failed = sum(cell.scores.outcomes.get(name, 0) for cell in cells for name in ("failed", "rejected"))
    utterances = "utterance" if streams == 1 else "utterances"
    return f"{streams} {utterances}, " + ("no errors" if not failed else f"{failed} of them failed")


def soundness(cells: Sequence[Cell]) -> str:
    """Whether the figures may be quoted."""
    bad = [cell for cell in cells if not cell.sound]
    if not bad:
        return "valid" if len(cells) == 1 else f"all {len(cells)} cells valid"
    if len(cells) == 1:
        return "INVALID" if not bad[0].scores.valid else "INCOMPLETE"
    return f"{len(bad)} of {len(cells)} cells NOT VALID"


GROUPS_TOLD = 3
BUSY = 0.2  # share of the processors taken by other work from which on it is worth a warning
WORSE_BY = 0.01  # a shorter delay is good enough when its WER is not proven worse than the best by more than this


def choose_delay(cells: Sequence[Cell]) -> str:
    """Which transcription delay these runs speak for, in words, and how surely."""
    known = [cell for cell in cells if cell.delay_seconds is not None and cell.scores.accuracy.wer.value is not None]
    concurrency = min((cell.run.config.concurrency for cell in known), default=0)
    row = [cell for cell in known if cell.run.config.concurrency == concurrency]
    if len({cell.delay_seconds for cell in row}) < 2:
        return (
            "Only one delay was run, so there is nothing to choose between: run `nox -s bench -- --delay-ms 160,480,960,2400`. "
            + headline(cells)
        )
    best = min(row, key=lambda cell: cell.scores.accuracy.wer.value or 0.0)
    lines = [f"Lowest WER: {percent_with_interval(best.scores.accuracy.wer)} {at_delay(best)}."]
    for cell in row:
        change = wer_change(best, cell)
        if cell is not best and change.low is not None and change.low > WORSE_BY:
            said = f"surely worse by more than {WORSE_BY * 100:g} point: {signed_points(change.value)} {interval_points(change)} points"
        elif cell is best:
            said = "the best"
        else:
            said = f"not surely worse by more than {WORSE_BY * 100:g} point: {signed_points(change.value)} {interval_points(change)} points"
        lines.append(f"  {at_delay(cell)}: {said}; median word shown after {_median_word(cell)}.")
    enough = [cell for cell in row if cell is best or not ((wer_change(best, cell).low or 0.0) > WORSE_BY)]
    pick = min(enough, key=lambda cell: cell.delay_seconds or 0.0)
    lines.append(f"So the shortest delay that is not surely worse is the one {at_delay(pick)}; {soundness(cells)}.")
    lines += list(dict.fromkeys(cell.run.config.caveat for cell in cells if cell.run.config.caveat))
    return "\n".join(lines)


def _median_word(cell: Cell) -> str:
    latency = cell.scores.latency.get("word_emission_latency")
    if latency is None or latency.p50.value is None:
        return "an unknown time"
    return f"{seconds(latency.p50.value)} {interval_seconds(latency.p50)}".rstrip()
