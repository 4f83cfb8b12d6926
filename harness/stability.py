"""How much of what was shown was taken back."""

from __future__ import annotations

from dataclasses import dataclass

from harness.partials import steps
from harness.timeline import StreamRecord


@dataclass(frozen=True, slots=True)
class StreamStability:
    """Counts of words in light form (case and punctuation are no change), and their ratios. Counts add over streams."""

    final_words: int
    unstable_words: int
    erased_words: int
    edits_made: int

    @property
    def unstable_partial_word_ratio(self) -> float | None:
        """Words in partials later changed or removed, by the shortest alignment of successive states, by final word."""
        return self.unstable_words / self.final_words if self.final_words else None

    @property
    def normalized_erasure(self) -> float | None:
        """Words behind the common beginning of successive states, by final word (Arivazhagan et al. 2020)."""
        return self.erased_words / self.final_words if self.final_words else None

    @property
    def edit_overhead(self) -> float | None:
        """Share of the edits (words added or revoked at the end of the text) that were not needed (Baumann et al. 2009)."""
        return (self.edits_made - self.final_words) / self.edits_made if self.edits_made else None


def measure(record: StreamRecord) -> StreamStability:
    """The stability of one stream; all three ratios are 0 for a transcript that only grew.

    The final transcript is the last state. The final of a stream that broke off is what it showed last.
    """
    final = unstable = erased = made = 0
    for step in steps(record):
        final = len(step.words)
        unstable += step.unstable
        erased += step.erased
        made += step.added + step.erased
    return StreamStability(final, unstable, erased, made)
