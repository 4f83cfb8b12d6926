"""How much of an error rate is spelling: the same transcripts counted under each normaliser, and what each one changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness import accuracy, statistics, store
from harness.accuracy import WordErrors
from harness.normalise import comparable_names, normaliser
from harness.report.cells import Cell, NoRunsError
from harness.report.figures import Mark
from harness.report.wording import interval_points, percent, percent_with_interval, signed_points
from harness.statistics import Bootstrap, Difference, Estimate
from harness.timeline import Outcome

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Recount:
    """One utterance counted under each normaliser, by name; ``weight`` is 1 over how often it was replayed."""

    utterance: str
    speaker: str
    language: str
    reference: str
    hypothesis: str
    weight: float
    counts: dict[str, WordErrors]


@dataclass(frozen=True, slots=True)
class Choice:
    """A normaliser beside the run's own: its rate, and that rate less the own one over the same utterances."""

    name: str
    wer: Estimate
    reference_words: float
    change: Difference
    adjusted_p: float
    touched: int  # utterances whose errors or words it counts otherwise

    @property
    def verdict(self) -> str:
        if self.change.value is None or self.change.low is None or self.adjusted_p > SIGNIFICANCE:
            return "cannot tell"
        return "higher" if self.change.value > 0 else "lower"


def recounts(cell: Cell) -> list[Recount]:
    """The scored utterances with speech, each counted under every normaliser that makes sense for the languages."""
    own = normaliser(cell.run.config.normaliser)
    kept = [
        record
        for record in store.iter_records(cell.folder)
        if record.scored and record.outcome is not Outcome.ABANDONED and not accuracy.is_non_speech(record)
    ]
    names = comparable_names({record.language for record in kept}) if kept else ()
    others = [normaliser(name) for name in names if name != own.name]
    times: dict[str, int] = {}
    for record in kept:
        times[record.utterance] = times.get(record.utterance, 0) + 1
    return [
        Recount(
            record.utterance,
            record.speaker,
            record.language,
            record.reference,
            accuracy.scored_hypothesis(record),
            1 / times[record.utterance],
            {
                name: counted
                for name, counted in accuracy.measure(record, own, others).by_normaliser.items()
                if name in names or name == own.name
            },
        )
        for record in kept
    ]


def choices(cell: Cell, counted: Sequence[Recount]) -> list[Choice]:
    """Every other normaliser against the run's own, paired over utterances, corrected by Holm. Rates are those of scores.json."""
    own, bootstrap = cell.run.config.normaliser, Bootstrap(cell.run.config.seed)
    rates = {one.normaliser: one for one in cell.scores.accuracy.sensitivity}
    blocks = cell.bootstrap_blocks([one.utterance for one in counted], [one.speaker for one in counted])
    found = []
    for name in (name for name in rates if name != own):
        pairs = [(one.weight, one.counts[own], one.counts[name]) for one in counted]
        change = statistics.ratio_difference(
            [weight * a.errors for weight, a, _ in pairs], [weight * a.reference_words for weight, a, _ in pairs],
            [weight * b.errors for weight, _, b in pairs], [weight * b.reference_words for weight, _, b in pairs],
            blocks, bootstrap,
        )  # fmt: skip
        touched = sum((a.errors, a.reference_words) != (b.errors, b.reference_words) for _, a, b in pairs)
        found.append((name, change, touched))
    known = [change.p_value for _, change, _ in found if change.p_value is not None]
    adjusted = iter(statistics.holm(known))
    return [
        Choice(
            name, rates[name].wer, rates[name].reference_words, change,
            1.0 if change.p_value is None else next(adjusted), touched,
        )
        for name, change, touched in found
    ]  # fmt: skip


def rates(cells: Sequence[Cell]) -> list[tuple[str, list[tuple[Mark, Estimate]]]]:
    """The WER under each normaliser in each cell, for `figures.share_rows`.

    Raises:
        NoRunsError: a run that was scored before this was counted.
    """
    for cell in cells:
        if not cell.scores.accuracy.sensitivity:
            raise NoRunsError(f"{cell.folder} has no WER by normaliser: run `earmark score {cell.folder}` first")
    rows: dict[str, list[tuple[Mark, Estimate]]] = {}
    for cell in cells:
        for one in cell.scores.accuracy.sensitivity:
            rows.setdefault(one.normaliser, []).append((cell.mark, one.wer))
    return list(rows.items())


def table(cell: Cell, found: Sequence[Choice]) -> pd.DataFrame:
    """The run's own normaliser first, the others with what they change."""
    own = cell.scores.accuracy
    rows = [
        {
            "normaliser": f"{own.normaliser} (the run's own)",
            "WER": percent_with_interval(own.wer),
            "reference words": own.reference_words,
            "change (points)": "",
            "counts otherwise": "",
            "the WER is": "",
        }
    ]
    rows += [
        {
            "normaliser": one.name,
            "WER": percent_with_interval(one.wer),
            "reference words": one.reference_words,
            "change (points)": f"{signed_points(one.change.value)} {interval_points(one.change)}".strip(),
            "counts otherwise": f"{one.touched} utterances",
            "the WER is": one.verdict,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def examples(cell: Cell, counted: Sequence[Recount], name: str, most: int) -> pd.DataFrame:
    """The utterances whose number of errors changes most from the run's own normaliser to another: what each of them compares."""
    own = cell.run.config.normaliser
    moved = [one for one in counted if one.counts[own].errors != one.counts[name].errors]
    moved.sort(key=lambda one: (-abs(one.counts[name].errors - one.counts[own].errors), one.utterance))
    rows = []
    for one in list({one.utterance: one for one in moved}.values())[:most]:
        for rules_name in (own, name):
            rules = normaliser(rules_name).of(one.language)
            rows.append(
                {
                    "utterance": one.utterance,
                    "normaliser": rules_name,
                    "errors": f"{one.counts[rules_name].errors} in {one.counts[rules_name].reference_words}",
                    "said": " ".join(rules.words(one.reference)),
                    "heard": " ".join(rules.words(one.hypothesis)),
                }
            )
    return pd.DataFrame(rows, columns=["utterance", "normaliser", "errors", "said", "heard"])


def conclude(cell: Cell, found: Sequence[Choice]) -> list[str]:
    """How much hangs on the normaliser, in sentences computed from the counts."""
    own = cell.scores.accuracy
    said = [f"{own.normaliser}, the run's own: WER {percent_with_interval(own.wer)} of {own.reference_words} words."]
    for one in found:
        change = f"{signed_points(one.change.value)} {interval_points(one.change)} points".strip()
        if one.verdict == "cannot tell":
            said.append(f"{one.name}: cannot tell it from the own ({change}).")
        else:
            said.append(f"{one.name}: WER {percent(one.wer.value)}, {one.verdict} by {change}.")
    clear = [one for one in found if one.verdict != "cannot tell" and one.change.value is not None]
    if clear:
        largest = max(clear, key=lambda one: abs(one.change.value or 0.0))
        said.append(
            f"A figure made under {largest.name} and one made under {own.normaliser} differ by spelling alone by "
            f"{signed_points(largest.change.value)} {interval_points(largest.change)} points: never compare the two."
        )
    else:
        said.append("These transcripts cannot tell any normaliser from the run's own.")
    return said
