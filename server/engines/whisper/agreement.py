"""Which words of a window that is decoded again and again are said for good: those on which two decodings in a row agree.

This is LocalAgreement-2 of Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System" (2023), with the transcription
delay as one more condition. Where a hypothesis goes on behind the committed words is found by aligning it with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from wire.words import TimedWord

__all__ = ["Agreement", "following"]

ROUNDING_SECONDS = 1e-6


class Agreement:
    """Commits the words of one segment; times are seconds of the segment, texts have their own spacing.

    A word is committed once this hypothesis and the one before agree on it and on all before it, and its end lies ``delay_seconds``
    behind the audio heard. What is committed stays, whatever later hypotheses say about that stretch of audio.
    """

    def __init__(self, delay_seconds: float) -> None:
        self.committed: list[TimedWord] = []
        """Committed words that still lie in the window, oldest first."""
        self.candidates: Sequence[TimedWord] = ()
        """The words behind the committed ones, as they were understood last."""
        self._delay_seconds = delay_seconds
        self._end_seconds = 0.0  # of all that was ever committed

    def advance(self, words: Sequence[TimedWord], heard_seconds: float) -> Sequence[TimedWord]:
        """The words committed now, given what was understood of audio up to ``heard_seconds``."""
        fresh = following(self.committed, words, self._end_seconds)
        latest = heard_seconds - self._delay_seconds + ROUNDING_SECONDS
        agreed = takewhile(
            lambda pair: pair[0].text.strip() == pair[1].text.strip() and pair[0].end <= latest,
            zip(fresh, self.candidates, strict=False),
        )
        count = sum(1 for _ in agreed)
        self.candidates = fresh[count:]
        return self._commit(fresh[:count])

    def commit_until(self, until_seconds: float) -> Sequence[TimedWord]:
        """Commit the words of the last hypothesis that end by then, agreed on or not."""
        count = sum(1 for _ in takewhile(lambda word: word.end <= until_seconds, self.candidates))
        words, self.candidates = self.candidates[:count], self.candidates[count:]
        return self._commit(words)

    def finish(self) -> Sequence[TimedWord]:
        """Commit the rest of the last hypothesis."""
        return self.commit_until(float("inf"))

    def forget(self, before_seconds: float) -> Sequence[TimedWord]:
        """The window begins there now: the committed words that no hypothesis will hold any more."""
        count = sum(1 for _ in takewhile(lambda word: word.end <= before_seconds, self.committed))
        gone, self.committed = self.committed[:count], self.committed[count:]
        return gone

    def _commit(self, words: Sequence[TimedWord]) -> Sequence[TimedWord]:
        committed = []
        for word in words:
            # borders move from one decoding to the next; the times that are given out stay in order
            start = max(word.start, self._end_seconds)
            self._end_seconds = max(start, word.end)
            committed.append(TimedWord(word.text, start, self._end_seconds))
        self.committed += committed
        return committed


def following(committed: Sequence[TimedWord], words: Sequence[TimedWord], end_seconds: float) -> Sequence[TimedWord]:
    """The words of a window's hypothesis that come behind the committed ones in that window, the last of which ended at ``end_seconds``.

    Some number of words at the start of a hypothesis are the committed ones heard again, perhaps otherwise understood. That number is taken
    which costs least: one for each word put in, left out or replaced, and one for each second between the last one's end, if there is one,
    and that of the last committed word. Unless that word itself was found again, times have to tell: words whose middle lies before its
    end are no new ones.
    """
    first = 0
    if committed:
        costs = [float(cost) for cost in _changes([w.text.strip() for w in committed], [w.text.strip() for w in words])]
        for index, word in enumerate(words, 1):
            costs[index] += abs(word.end - end_seconds)
        first = costs.index(min(costs))
        if first and words[first - 1].text.strip() == committed[-1].text.strip():
            return words[first:]
    while first < len(words) and (words[first].start + words[first].end) / 2 <= end_seconds - ROUNDING_SECONDS:
        first += 1
    return words[first:]


def _changes(said: Sequence[str], again: Sequence[str]) -> list[int]:
    """How many changes of words make ``said`` into the first 0, 1, 2... of ``again``."""
    row = list(range(len(again) + 1))
    for done, text in enumerate(said, 1):
        above, row = row, [done]
        for index, other in enumerate(again, 1):
            row.append(min(above[index] + 1, row[-1] + 1, above[index - 1] + (text != other)))
    return row
