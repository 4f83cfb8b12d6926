"""Transcripts with word times as subtitles: cut into cues, written as SubRip and WebVTT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wire.words import TimedWord

PAUSE_SECONDS = 0.6
"""A pause of this length ends a cue."""

MOST_SECONDS = 7.0
MOST_CHARACTERS = 84
"""Of one cue: two lines of 42 letters that stay for seven seconds, as subtitlers have it."""

_ENDS = (".", "!", "?", "。", "！", "？")


@dataclass(frozen=True, slots=True)
class Cue:
    """Text to show from ``start`` to ``end``, in seconds."""

    start: float
    end: float
    text: str


def cues(words: Sequence[TimedWord], text: str, seconds: float) -> list[Cue]:
    """The transcript in cues; without word times it is one cue over the whole recording, since nothing is known about where it lies."""
    if not words:
        return [Cue(0.0, seconds, text.strip())] if text.strip() else []
    found: list[list[TimedWord]] = [[]]
    for word in words:
        if found[-1] and _over(found[-1], word):
            found.append([])
        found[-1].append(word)
    return [Cue(group[0].start, group[-1].end, " ".join(word.text for word in group)) for group in found]


def _over(group: Sequence[TimedWord], word: TimedWord) -> bool:
    """Whether the group of words ends before this one."""
    characters = sum(len(one.text) + 1 for one in group) + len(word.text)
    return (
        word.start - group[-1].end >= PAUSE_SECONDS
        or word.end - group[0].start > MOST_SECONDS
        or characters > MOST_CHARACTERS
        or group[-1].text.endswith(_ENDS)
    )


def srt(shown: Iterable[Cue]) -> str:
    """SubRip: numbered cues, times with a comma."""
    return "".join(
        f"{number}\n{_time(cue.start, ',')} --> {_time(cue.end, ',')}\n{cue.text}\n\n"
        for number, cue in enumerate(shown, 1)
    )


def vtt(shown: Iterable[Cue]) -> str:
    """WebVTT (W3C): a header, times with a point; ``&`` and ``<`` are escaped."""
    escaped = ((cue, cue.text.replace("&", "&amp;").replace("<", "&lt;")) for cue in shown)
    return "WEBVTT\n\n" + "".join(
        f"{_time(cue.start, '.')} --> {_time(cue.end, '.')}\n{text}\n\n" for cue, text in escaped
    )


def _time(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{mark}{rest % 1000:03d}"
