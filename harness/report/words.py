"""Where the errors of runs are: at which words, with which speakers, of which kind, and what a longer delay mends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import pandas as pd

from harness import statistics
from harness.accuracy import diff
from harness.normalise import normaliser
from harness.report.cells import Cell, delay_pairs, errors_by_utterance, worst_together
from harness.report.utterances import steps
from harness.report.wording import interval_points, percent, signed_points
from harness.statistics import Bootstrap, Difference

SIGNIFICANCE = 0.05  # over all that one table tests, after Holm's correction
WORDS_TESTED = 40  # the commonest; each further one makes the correction stricter for all
TOLD = 3  # what a sentence names
KINDS = ("substitutions", "deletions", "insertions")


@dataclass(frozen=True, slots=True)
class Contrast:
    """A rate and how far it lies above another one. ``adjusted_p`` is corrected for all contrasts made with it."""

    name: str
    words: float
    rate: float
    change: Difference
    adjusted_p: float

    @property
    def verdict(self) -> str:
        if self.change.value is None or self.change.low is None or self.adjusted_p > SIGNIFICANCE:
            return "cannot tell"
        return "more" if self.change.value > 0 else "fewer"


def contrasts(found: Sequence[tuple[str, float, float, Difference]]) -> list[Contrast]:
    """Each ``(name, words, rate, difference)`` with its p corrected by Holm; those that have none take no part in the correction."""
    known = [change.p_value for *_, change in found if change.p_value is not None]
    adjusted = iter(statistics.holm(known))
    return [
        Contrast(name, words, rate, change, 1.0 if change.p_value is None else next(adjusted))
        for name, words, rate, change in found
    ]


def table(found: Iterable[Contrast], what: str, against: str) -> pd.DataFrame:
    """Contrasts for people: rates in per cent, differences in points."""
    rows = [
        {
            what: one.name,
            "reference words": f"{one.words:g}",
            "error rate": percent(one.rate),
            f"{against} (points)": f"{signed_points(one.change.value)} {interval_points(one.change)}".strip(),
            "n": one.change.n,
            "p (Holm)": f"{one.adjusted_p:.3f}" if one.change.p_value is not None else "",
            "errors": one.verdict,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


# ---- words -----------------------------------------------------------------------------------------------------


def occurrences(cell: Cell) -> pd.DataFrame:
    """A row per word that was said or heard: ``utterance``, ``speaker``, ``said``, ``heard``, and ``weight``.

    ``heard`` is empty for a lost word, ``said`` for one that was made up. Words are those that the run's normaliser counts. An utterance
    replayed several times weighs as one.
    """
    rules = normaliser(cell.run.config.normaliser)
    speech = cell.scored[cell.scored["reference_words"] > 0]
    times = speech["utterance"].value_counts()
    rows = []
    for row in speech.to_dict("records"):
        counted_by = rules.of(row["language"])
        # What a failed stream had shown is not scored: all of its words count as lost.
        hypothesis = row["hypothesis"] if row["outcome"] == "ok" else ""
        weight = 1 / times[row["utterance"]]
        for _, left, right in diff(row["reference"], hypothesis, counted_by):
            for said, heard in zip_longest(left, right, fillvalue=""):
                rows.append((row["utterance"], row["speaker"] or "", said, heard, weight))
    return pd.DataFrame(rows, columns=["utterance", "speaker", "said", "heard", "weight"])


def hard_words(cell: Cell, most: int = WORDS_TESTED) -> list[Contrast]:
    """The commonest words, each against all others: how often it was lost or replaced. Highest rate first.

    Made-up words belong to no word that was said and are left out.
    """
    said = _said(occurrences(cell))
    whole = _by_utterance(said)
    blocks = cell.bootstrap_blocks(list(whole.index), list(whole["speaker"]))
    bootstrap = Bootstrap(cell.run.config.seed)
    common = said.groupby("said")["weight"].sum().sort_values(ascending=False, kind="stable").head(most)
    found = []
    for word in common.index:
        own = _by_utterance(said[said["said"] == word])[["errors", "words"]].reindex(whole.index, fill_value=0.0)
        rest = whole[["errors", "words"]] - own
        change = statistics.ratio_difference(
            list(rest["errors"]), list(rest["words"]), list(own["errors"]), list(own["words"]), blocks, bootstrap
        )
        found.append((str(word), float(own["words"].sum()), float(own["errors"].sum() / own["words"].sum()), change))
    return sorted(contrasts(found), key=lambda one: -one.rate)


def _said(rows: pd.DataFrame) -> pd.DataFrame:
    said = rows[rows["said"] != ""]
    return said.assign(errors=said["weight"].where(said["said"] != said["heard"], 0.0))


def _by_utterance(said: pd.DataFrame) -> pd.DataFrame:
    return said.groupby("utterance").agg(
        errors=("errors", "sum"), words=("weight", "sum"), speaker=("speaker", "first")
    )


def mended_words(before: Cell, after: Cell, most: int = WORDS_TESTED) -> list[Contrast]:
    """What ``after`` changes in how often each of the commonest words is lost or replaced, paired over recordings. Largest change first."""
    sides = [_said(occurrences(cell)) for cell in (before, after)]
    both = sorted(set(sides[0]["utterance"]) & set(sides[1]["utterance"]))
    sides = [side[side["utterance"].isin(both)] for side in sides]
    common = sides[0].groupby("said")["weight"].sum().sort_values(ascending=False, kind="stable").head(most)
    bootstrap = Bootstrap(before.run.config.seed)
    found = []
    for word in common.index:
        first, second = (_by_utterance(side[side["said"] == word]) for side in sides)
        blocks = before.bootstrap_blocks(list(first.index), list(first["speaker"]))
        change = statistics.paired_wer_difference(
            list(first["errors"]), list(second["errors"]), list(first["words"]), blocks, bootstrap
        )
        found.append(
            (str(word), float(first["words"].sum()), float(second["errors"].sum() / first["words"].sum()), change)
        )
    return sorted(contrasts(found), key=lambda one: -abs(one.change.value or 0.0))


def confusions_by_cell(cells: Sequence[Cell], most: int) -> pd.DataFrame:
    """What was said and what was heard for it, most frequent first, with a column of counts per cell and one of how often it was said.

    Empty on one side where a word was lost or made up. An utterance replayed several times counts once.
    """
    counted: list[pd.Series] = []
    said: dict[str, float] = {}
    for cell in cells:
        rows = occurrences(cell)
        wrong = rows[rows["said"] != rows["heard"]]
        counted.append(wrong.groupby(["said", "heard"])["weight"].sum())
        for word, times in rows.groupby("said")["weight"].sum().items():
            said[str(word)] = said.get(str(word), 0.0) + float(times)
    labels = [cell.label for cell in cells]
    made = pd.concat(counted, axis=1, keys=labels).fillna(0.0)
    made = made.loc[made.sum(axis=1).sort_values(ascending=False, kind="stable").index].head(most)
    made = made.round(1).reset_index()
    made.insert(1, "said so often", [f"{said[word] / len(cells):g}" if word else "" for word in made["said"]])
    return made


# ---- speakers and kinds ----------------------------------------------------------------------------------------


def speakers(cell: Cell) -> list[Contrast]:
    """Each speaker against all others, resampled by recording. Highest rate first; none where there are not two."""
    counts = _counts(cell)
    names = sorted(name for name in counts["speaker"].unique() if name)
    bootstrap = Bootstrap(cell.run.config.seed)
    found = []
    for name in names if len(names) > 1 else ():
        mine = counts["speaker"] == name
        parts = [list(counts[column].where(who, 0.0)) for who in (~mine, mine) for column in ("errors", "words")]
        change = statistics.ratio_difference(parts[0], parts[1], parts[2], parts[3], list(counts.index), bootstrap)
        found.append((name, sum(parts[3]), sum(parts[2]) / sum(parts[3]), change))
    return sorted(contrasts(found), key=lambda one: -one.rate)


def kinds_by_delay(cells: Sequence[Cell]) -> list[tuple[str, list[Contrast]]]:
    """What each longer delay changes in substitutions, deletions and insertions per reference word, paired over utterances.

    One entry per step with its name; all contrasts are corrected together.
    """
    found, steps = [], []
    for before, after in delay_pairs(cells):
        one, other = (_counts(cell) for cell in (before, after))
        both = one.merge(other, left_index=True, right_index=True, suffixes=("_a", "_b"))
        blocks = before.bootstrap_blocks(list(both.index), list(both["speaker_a"]))
        streams = (
            f", {before.run.config.concurrency} at once" if len({c.run.config.concurrency for c in cells}) > 1 else ""
        )
        steps.append(f"{before.run.config.delay_ms} → {after.run.config.delay_ms} ms{streams}")
        words = float(both["words_a"].sum())
        for kind in KINDS:
            change = statistics.paired_wer_difference(
                list(both[f"{kind}_a"]), list(both[f"{kind}_b"]), list(both["words_a"]), blocks,
                Bootstrap(before.run.config.seed),
            )  # fmt: skip
            found.append((kind, words, float(both[f"{kind}_b"].sum()) / words, change))
    made = contrasts(found)
    return [(step, made[3 * at : 3 * at + 3]) for at, step in enumerate(steps)]


def _counts(cell: Cell) -> pd.DataFrame:
    """Errors by kind and reference words per utterance with speech; the mean of its repetitions."""
    speech = cell.scored[cell.scored["reference_words"] > 0]
    counts = speech.assign(speaker=speech["speaker"].fillna(""), errors=speech[list(KINDS)].sum(axis=1))
    return counts.groupby("utterance").agg(
        **{name: (name, "mean") for name in (*KINDS, "errors")},
        words=("reference_words", "mean"),
        speaker=("speaker", "first"),
    )


# ---- utterances ------------------------------------------------------------------------------------------------


def marked(reference: str, hypothesis: str, cell: Cell, language: str = "en") -> str:
    """The aligned words on one line: ``[said→heard]``, ``[−lost]``, ``[+made up]``."""
    parts = []
    for step in steps(reference, hypothesis, normaliser(cell.run.config.normaliser).of(language)):
        said, heard = step.reference, step.hypothesis
        match step.kind:
            case "same":
                parts.append(said)
            case "sub":
                parts.append(f"[{said}→{heard}]")
            case "del":
                parts.append(f"[−{said}]")
            case _:
                parts.append(f"[+{heard}]")
    return " ".join(parts)


def worst_everywhere(cells: Sequence[Cell], most: int) -> pd.DataFrame:
    """The utterances with most errors over all cells: their errors in each, and how the last cell heard them."""
    names = worst_together(cells, most)
    last = cells[-1].scored.drop_duplicates("utterance").set_index("utterance").reindex(names)
    made = pd.DataFrame({"speaker": last["speaker"]}, index=pd.Index(names, name="utterance"))
    for cell in cells:
        made[f"errors, {cell.label}"] = errors_by_utterance(cell).reindex(names)
    made["words"] = last["reference_words"]
    made["aligned"] = [
        "" if pd.isna(row["reference"]) else marked(
            row["reference"], row["hypothesis"] if row["outcome"] == "ok" else "", cells[-1], row["language"]
        )
        for _, row in last.iterrows()
    ]  # fmt: skip
    return made.reset_index()


# ---- in sentences ----------------------------------------------------------------------------------------------


def conclude(cells: Sequence[Cell]) -> list[str]:
    """What can be said of the errors, each with its interval, and what cannot be told."""
    last = cells[-1]
    said = [
        _sentence("Words", hard_words(last), "lost or replaced {} often than the other words"),
        _sentence("Speakers", speakers(last), "misheard {} often than the other speakers"),
    ]
    for step, kinds in kinds_by_delay(cells):
        said.append(
            _sentence(f"{step}", kinds, "{} than before", known=lambda one: one.rate > 0 or bool(one.change.value))
        )
    if len({cell.run.config.delay_ms for cell in cells}) > 1:
        first, last = ends(cells)
        where = f"Words from {first.run.config.delay_ms} to {last.run.config.delay_ms} ms"
        said.append(_sentence(where, mended_words(first, last), "wrong {} often"))
    return said


def ends(cells: Sequence[Cell]) -> tuple[Cell, Cell]:
    """The shortest and the longest delay at the least concurrency that has both."""
    fewest = min(cell.run.config.concurrency for cell in cells)
    row = [cell for cell in cells if cell.run.config.concurrency == fewest]
    return row[0], row[-1]


def _sentence(
    what: str,
    found: Sequence[Contrast],
    how: str,
    known: Callable[[Contrast], bool] = lambda one: one.change.low is not None,
) -> str:
    tested = [one for one in found if known(one) and one.change.low is not None]
    clear = [one for one in tested if one.verdict != "cannot tell"]
    if not clear:
        many = f"{len(tested)} tested, none of them surely different" if tested else "too few recordings to test any"
        widest = max((one.change.detectable for one in tested if one.change.detectable is not None), default=None)
        seen = f"; a difference of {100 * widest:.0f} points would have been seen in each" if widest is not None else ""
        return f"{what}: cannot tell ({many}{seen})."
    named = [
        f"{one.name} {how.format('more' if one.verdict == 'more' else 'less' if 'often' in how else 'fewer')} "
        f"({signed_points(one.change.value)} {interval_points(one.change)} points)"
        for one in clear[:TOLD]
    ]
    more = f"; and {len(clear) - TOLD} more" if len(clear) > TOLD else ""
    return f"{what}: {'; '.join(named)}{more}; of {len(tested)} tested, Holm-corrected."
