"""Word and character errors of one utterance, as counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from harness.normalise import UNSPACED_LANGUAGES, Normaliser
from harness.normalise import normaliser as named
from harness.references import Stretch, has_choices, resolve
from harness.timeline import Outcome, StreamRecord

DiffOp = tuple[str, tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class WordErrors:
    """Counts of an alignment with the fewest errors: hits + substitutions + deletions = ``reference_words``."""

    hits: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def reference_words(self) -> int:
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float | None:
        """Errors by reference word; ``None`` for an empty reference, where a rate says nothing."""
        return self.errors / self.reference_words if self.reference_words else None


@dataclass(frozen=True, slots=True)
class UtteranceAccuracy:
    """``words`` after normalisation, ``raw`` before it; characters are those of the normalised text.

    ``by_normaliser`` has the counts under others as well, for the table of how much hangs on the choice.
    """

    words: WordErrors
    raw: WordErrors
    reference_characters: int
    character_errors: int
    non_speech: bool
    by_normaliser: Mapping[str, WordErrors]

    @property
    def hallucinated_words(self) -> int:
        """Words heard where nothing was said. They are no part of the WER, which has no word to divide them by."""
        return self.words.insertions if self.non_speech else 0


def word_errors(reference: list[str], hypothesis: list[str]) -> WordErrors:
    """Counts for two lists of words. Where several alignments are shortest, the split into S, D and I is one of them."""
    substitutions = deletions = insertions = 0
    for op in Levenshtein.editops(reference, hypothesis):
        match op.tag:
            case "replace":
                substitutions += 1
            case "delete":
                deletions += 1
            case "insert":
                insertions += 1
    hits = len(reference) - substitutions - deletions
    return WordErrors(hits, substitutions, deletions, insertions)


def scored_hypothesis(record: StreamRecord) -> str:
    """The text that is scored: nothing unless the stream ended well, so that a failed one counts as all deletions."""
    return record.hypothesis if record.outcome is Outcome.OK else ""


def is_non_speech(record: StreamRecord) -> bool:
    """True when nothing is said in the clip, by the reference as the corpus has it."""
    return not record.reference.strip()


def measure(record: StreamRecord, normaliser: Normaliser, others: Iterable[Normaliser] = ()) -> UtteranceAccuracy:
    """The errors of one stream; ``others`` are normalisers under which the words are counted as well.

    Characters are counted without blanks in languages that write none between words, with single blanks elsewhere.
    """
    hypothesis = scored_hypothesis(record)
    rules = normaliser.of(record.language)
    compared = _compared(record.reference, hypothesis, rules)
    counted = {rules.name: _total(compared)}
    for other in (*others, _RAW):
        other_rules = other.of(record.language)
        if other_rules.name not in counted:
            counted[other_rules.name] = _total(_compared(record.reference, hypothesis, other_rules))
        counted[other.name] = counted[other_rules.name]
    characters = _characters(record, hypothesis, rules, compared)
    return UtteranceAccuracy(
        words=counted[rules.name],
        raw=counted[_RAW.name],
        reference_characters=sum(len(said) for said, _ in characters),
        character_errors=sum(Levenshtein.distance(said, heard) for said, heard in characters),
        non_speech=is_non_speech(record),
        by_normaliser={normaliser.name: counted[rules.name], **counted},
    )


_RAW = named("none")


def _compared(reference: str, hypothesis: str, rules: Normaliser) -> list[Stretch]:
    return resolve(reference, rules.words(hypothesis), rules.words)


def _total(stretches: list[Stretch]) -> WordErrors:
    counts = [word_errors(said, heard) for said, heard in stretches]
    if len(counts) == 1:
        return counts[0]
    return WordErrors(
        sum(one.hits for one in counts),
        sum(one.substitutions for one in counts),
        sum(one.deletions for one in counts),
        sum(one.insertions for one in counts),
    )


def _characters(
    record: StreamRecord, hypothesis: str, rules: Normaliser, compared: list[Stretch]
) -> list[tuple[str, str]]:
    unspaced = record.language.split("-")[0].lower() in UNSPACED_LANGUAGES
    if unspaced and has_choices(record.reference):
        # A word there is a whole phrase: what was chosen is decided by characters.
        def characters(text: str) -> list[str]:
            return list("".join(rules.words(text)))

        compared = resolve(record.reference, characters(hypothesis), characters)
    blank = "" if unspaced else " "
    return [(blank.join(said), blank.join(heard)) for said, heard in compared]


def diff(reference: str, hypothesis: str, normaliser: Normaliser) -> list[DiffOp]:
    """What to do to the reference to get the hypothesis: ``(op, reference words, hypothesis words)`` in order.

    ``op`` is ``equal``, ``replace``, ``delete`` or ``insert``; joined up, the words of each side are that side's words, without what stands
    where the reference allows anything.
    """
    return [
        (op.tag, tuple(left[op.src_start : op.src_end]), tuple(right[op.dest_start : op.dest_end]))
        for left, right in _compared(reference, hypothesis, normaliser)
        for op in Levenshtein.opcodes(left, right)
    ]
