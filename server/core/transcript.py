"""The text of one utterance, put together from segments that overlap in time, without losing or repeating a word.

Shown text is only ever appended to. Segments speak in order: what segment n+1 says is held back until n is done. At the seam
there are two ways to tell what was said twice:

- by time, when the engine times its words: the overlap is halved, words whose middle lies in the first half belong to the earlier
  segment, the others to the later one, and nothing whose middle lies before the end of the last shown word is shown again;
- by text otherwise: the longest run of whole words that ends the shown text and starts the new segment's text is left out. It is
  looked for in the newest ``SEAM_WINDOW_CHARACTERS`` of shown text and compared character by character.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.core.events import Heard, TimedWord, Usage

SEAM_WINDOW_CHARACTERS = 2000
_SEAM_PATIENCE_SECONDS = 6.0
"""How long a new segment's text may be held while it still could be a repetition of what was shown."""


@dataclass(slots=True)
class Segment:
    """One engine stream of the utterance. Seconds are the utterance's unless named otherwise.

    ``offset_seconds`` is where its first sample lies, ``overlap_seconds`` how much of its start the segment before also heard.
    Once it is closed by a roll, ``rolled_end_seconds`` says where it ends and ``rolled_overlap_seconds`` how much of that end the
    next segment hears again.
    """

    number: int
    offset_seconds: float
    overlap_seconds: float = 0.0
    fed_bytes: int = 0
    heard_seconds: float = 0.0  # in the segment's own time
    closed_at: float | None = None  # the clock's time
    rolled_end_seconds: float | None = None
    rolled_overlap_seconds: float = 0.0
    gaps: list[tuple[float, float]] = field(
        default_factory=list
    )  # (segment seconds, seconds dropped before that point)
    held: list[Heard] = field(default_factory=list)
    text: str = ""  # all committed text, for stitching by text
    stitched: bool = False
    done: bool = False
    usage: Usage = Usage()

    def in_utterance(self, word: TimedWord) -> TimedWord:
        """The word on the utterance's clock: moved by the offset and by all audio that was dropped before it."""
        if not self.gaps:
            return TimedWord(word.text, self.offset_seconds + word.start, self.offset_seconds + word.end)
        before_start = sum(gap for at, gap in self.gaps if at <= word.start)
        before_end = sum(gap for at, gap in self.gaps if at < word.end)
        shift = self.offset_seconds
        return TimedWord(word.text, shift + before_start + word.start, shift + before_end + word.end)


@dataclass(slots=True)
class Shown:
    """What a step adds to the transcript; ``tentative`` is None when it did not change."""

    text: str = ""
    words: list[TimedWord] = field(default_factory=list)
    tentative: str | None = None


class Transcript:
    """Text and words of one utterance so far."""

    def __init__(self, *, timed: bool) -> None:
        self._timed = timed
        self._pieces: list[str] = []
        self._tail = ""  # the newest text, for seams
        self.words: list[TimedWord] = []

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._pieces)

    def hear(self, segment: Segment, heard: Heard) -> Shown:
        """Take in what the oldest unfinished segment says."""
        shown = Shown()
        if self._timed:
            self._hear_words(segment, heard, shown)
        else:
            segment.text += heard.committed
            reached = heard.audio_seconds if heard.transcribed_seconds is None else heard.transcribed_seconds
            self._hear_text(segment, shown, heard.committed, reached)
        if segment.stitched:
            shown.tentative = heard.tentative if self._timed else self._spaced(heard.tentative)
        elif self._timed:
            shown.tentative = self._spaced(heard.tentative)
        return shown

    def finish(self, segment: Segment) -> Shown:
        """The segment has said all: settle what is still held back of its text."""
        shown = Shown()
        if not self._timed and not segment.stitched:
            self._stitch(segment, shown)
        return shown

    # ---- by time

    def _hear_words(self, segment: Segment, heard: Heard, shown: Shown) -> None:
        for word, text in zip(heard.words, pieces(heard), strict=True):
            timed = segment.in_utterance(word)
            if self._belongs(segment, timed):
                # how the first text of a segment joins what was shown nobody knows; the rest has its own spacing
                text = text if segment.stitched and self._pieces else self._spaced(text.lstrip())
                self._show(text, shown)
                self.words.append(timed)
                shown.words.append(timed)
            segment.stitched = True

    def _belongs(self, segment: Segment, word: TimedWord) -> bool:
        middle = (word.start + word.end) / 2
        if segment.overlap_seconds:
            # Two hearings of a word differ by a few hundredths of a second. A word near the seam that the earlier segment put
            # behind it may be put before it by the later one; so the later one's part begins a little earlier, and what
            # the earlier one showed decides.
            own_from = segment.offset_seconds + segment.overlap_seconds / 4
            if middle <= own_from or (self.words and middle <= self.words[-1].end):
                return False
        if segment.rolled_end_seconds is not None and segment.rolled_overlap_seconds:
            overlap_start = segment.rolled_end_seconds - segment.rolled_overlap_seconds
            seam = overlap_start + segment.rolled_overlap_seconds / 2
            # a word that began before the overlap is never heard whole by the next segment
            return middle <= seam or word.start < overlap_start
        return True

    # ---- by text

    def _hear_text(self, segment: Segment, shown: Shown, new: str, reached_seconds: float) -> None:
        if segment.stitched:
            self._show(new, shown)
        elif not segment.overlap_seconds and not self._pieces:
            segment.stitched = True
            self._show(segment.text, shown)
        elif segment.text and (
            not could_repeat(self._tail, segment.text)
            or reached_seconds > segment.overlap_seconds + _SEAM_PATIENCE_SECONDS
        ):
            self._stitch(segment, shown)

    def _stitch(self, segment: Segment, shown: Shown) -> None:
        repeated = repeated_characters(self._tail, segment.text) if segment.overlap_seconds else 0
        rest = segment.text[repeated:]
        segment.stitched = True
        if not repeated and self._tail and rest and not self._tail[-1].isspace() and not rest[0].isspace():
            rest = " " + rest
        self._show(rest, shown)

    def _spaced(self, text: str) -> str:
        return " " + text if text and self._pieces and not text[0].isspace() else text

    def _show(self, text: str, shown: Shown) -> None:
        if text:
            self._pieces.append(text)
            self._tail = (self._tail + text)[-SEAM_WINDOW_CHARACTERS:]
            shown.text += text


def pieces(heard: Heard) -> list[str]:
    """The new text cut up by its words, each with the spacing before it. Languages that write no spaces have words all the same.

    A word that the text does not contain stands alone, with a space.
    """
    texts, at = [], 0
    for word in heard.words:
        start = heard.committed.find(word.text, at)
        if start < 0:
            texts.append(" " + word.text)
        else:
            texts.append(heard.committed[at : start + len(word.text)])
            at = start + len(word.text)
    return texts


def _word_starts(text: str) -> list[int]:
    return [at for at in range(len(text)) if not text[at].isspace() and (at == 0 or text[at - 1].isspace())]


def repeated_characters(shown: str, new: str) -> int:
    """How many characters at the start of ``new`` repeat the end of ``shown``: whole words only, the longest run.

    White space at the joint does not count: " two three" repeats "one two three".
    """
    stripped = new.lstrip()
    lead = len(new) - len(stripped)
    ending = shown.rstrip()
    for start in _word_starts(ending):  # the earliest start is the longest run
        run = ending[start:]
        if stripped.startswith(run) and (len(stripped) == len(run) or stripped[len(run)].isspace()):
            return lead + len(run)
    return 0


def could_repeat(shown: str, new: str) -> bool:
    """Whether ``new``, if it grew, could still turn out to repeat the end of ``shown`` (further than it does now)."""
    stripped = new.lstrip()
    ending = shown.rstrip()
    return any(ending[start:].startswith(stripped.rstrip()) for start in _word_starts(ending)) if stripped else True
