"""Word and character errors of one utterance, as counts."""

from __future__ import annotations

from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from harness.normalise import UNSPACED_LANGUAGES, Normaliser
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
    """``words`` after normalisation, ``raw`` before it; characters are those of the normalised text."""

    words: WordErrors
    raw: WordErrors
    reference_characters: int
    character_errors: int
    non_speech: bool

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


def measure(record: StreamRecord, normaliser: Normaliser) -> UtteranceAccuracy:
    """The errors of one stream.

    Characters are counted without blanks in languages that write none between words, with single blanks elsewhere.
    """
    hypothesis = scored_hypothesis(record)
    reference_words, hypothesis_words = normaliser.words(record.reference), normaliser.words(hypothesis)
    blank = "" if record.language.split("-")[0].lower() in UNSPACED_LANGUAGES else " "
    reference_text, hypothesis_text = blank.join(reference_words), blank.join(hypothesis_words)
    return UtteranceAccuracy(
        words=word_errors(reference_words, hypothesis_words),
        raw=word_errors(record.reference.split(), hypothesis.split()),
        reference_characters=len(reference_text),
        character_errors=Levenshtein.distance(reference_text, hypothesis_text),
        non_speech=is_non_speech(record),
    )


def diff(reference: str, hypothesis: str, normaliser: Normaliser) -> list[DiffOp]:
    """What to do to the reference to get the hypothesis: ``(op, reference words, hypothesis words)`` in order.

    ``op`` is ``equal``, ``replace``, ``delete`` or ``insert``; joined up, the words of each side are that side's words.
    """
    left, right = normaliser.words(reference), normaliser.words(hypothesis)
    return [
        (op.tag, tuple(left[op.src_start : op.src_end]), tuple(right[op.dest_start : op.dest_end]))
        for op in Levenshtein.opcodes(left, right)
    ]
