"""Where the start of a window may be cut off, so that decoding it again does not cost more and more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from wire.words import TimedWord

__all__ = ["cut_point", "prompt_of"]

SENTENCE_ENDS = (".", "!", "?", "。", "！", "？", "…", "।", "؟")
CLOSING = "\"'”’»)]」』"


def cut_point(
    committed: Sequence[TimedWord], start_seconds: float, end_seconds: float, most_seconds: float
) -> float | None:
    """Where the window from ``start_seconds`` to ``end_seconds`` should begin instead; ``None`` while it may stay as it is.

    The last committed word stays in it, so that the next hypothesis can be held against something. Of the words before that, the last
    one that ends a sentence is the place, if the window is short enough then, else the last one at all. The cut is made in the midst of
    the pause behind it.
    """
    if end_seconds - start_seconds <= most_seconds:
        return None
    cuts = [
        ((word.end + after.start) / 2, ends_sentence(word.text))
        for word, after in pairwise(committed)
        if word.end > start_seconds
    ]
    if not cuts:
        return None
    sentences = [at for at, sentence in cuts if sentence and end_seconds - at <= most_seconds]
    return sentences[-1] if sentences else cuts[-1][0]


def ends_sentence(text: str) -> bool:
    """Whether a sentence ends with this word."""
    return text.strip().rstrip(CLOSING).endswith(SENTENCE_ENDS)


def prompt_of(text: str, most_characters: int) -> str:
    """The end of a text that is no longer heard, beginning with a whole word."""
    cut = max(0, len(text) - most_characters)
    end = text[cut:]
    if cut and text[cut - 1] != " ":
        _, space, rest = end.partition(" ")
        end = rest if space else end  # some languages have no spaces
    return end.strip()
