"""Which words of a hypothesis that keeps changing are said for good, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Commitment", "Hypothesis", "PlacedWord"]


@dataclass(frozen=True, slots=True)
class PlacedWord:
    """A word of a hypothesis in frames of 10 ms, from ``start`` up to but not including ``end``."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What the recogniser believes now: words in order of time, and the frame ``edge`` up to which it has searched.

    The edge lies about 0.11 s behind the audio heard, which is how far ahead the features and the search look.
    """

    words: Sequence[PlacedWord] = ()
    edge: int = 0


class Commitment:
    """Commits the words of one segment.

    A word is committed once its end lies ``delay`` frames behind the audio heard, unless it reaches up to the edge of the
    hypothesis: such a word is still being said, and where it will end is not known. What is committed stays, whatever later
    hypotheses say about that stretch of audio: only words behind it are candidates.
    """

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._last: PlacedWord | None = None

    @property
    def settled(self) -> int:
        """Words of a hypothesis that end by this frame change nothing any more, and may be left out of it."""
        return 0 if self._last is None else self._last.start

    def advance(self, hypothesis: Hypothesis, heard: float) -> tuple[Sequence[PlacedWord], Sequence[PlacedWord]]:
        """The words committed now, and the words that may follow them, after ``heard`` frames of audio."""
        fresh = self._behind_committed(hypothesis.words)
        count = 0
        for word in fresh:
            if word.end > heard - self._delay or word.end >= hypothesis.edge:
                break
            count += 1
        return self._commit(fresh[:count]), fresh[count:]

    def finish(self, hypothesis: Hypothesis) -> Sequence[PlacedWord]:
        """The rest of the segment, given its last hypothesis."""
        return self._commit(self._behind_committed(hypothesis.words))

    def _behind_committed(self, words: Sequence[PlacedWord]) -> Sequence[PlacedWord]:
        last = self._last
        if last is None:
            return words
        found = False  # the last committed word itself
        for index, word in enumerate(words):
            same = word.text == last.text and word.start < last.end and word.end > last.start
            if word.start + word.end <= 2 * last.end:  # its middle lies in what is committed
                found = found or same
            elif same and not found:  # the last committed word, which now seems to end later
                found = True
            else:
                return words[index:]
        return ()

    def _commit(self, words: Sequence[PlacedWord]) -> Sequence[PlacedWord]:
        committed = []
        for word in words:
            if self._last is not None and word.start < self._last.end:
                # The border to the committed word has moved since; the times that were given out stay in order.
                word = PlacedWord(word.text, self._last.end, max(word.end, self._last.end))
            self._last = word
            committed.append(word)
        return committed
