"""What can be wrong with a corpus: every finding at once, with the audio decoded and the hashes recomputed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.corpus.catalogue import complete, find, read_rows
from harness.corpus.formats import BadRow, Row
from harness.corpus.lengths import UnreadableAudioError, decoded_seconds, file_sha256
from harness.corpus.utterance import Utterance
from harness.references import plain, problem
from wire.words import TimedWord

LENGTH_TOLERANCE_SECONDS = 0.06  # MP3 and AAC pad by up to two frames, and manifests round
SHORTEST_SECONDS = 0.1
LONGEST_SECONDS = 7_200.0
FASTEST_CHARACTERS_PER_SECOND = 40.0  # twice a fast reader: the text belongs to another recording, or the audio is cut
SLOWEST_CHARACTERS_PER_SECOND = 1.0
LONG_ENOUGH_TO_BE_SLOW_SECONDS = 10.0  # a single "yes" in a few seconds is nothing odd
OVERLAP_TOLERANCE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, and where: FILE:LINE, with the utterance's id when it has one."""

    where: str
    utterance: str
    what: str

    def __str__(self) -> str:
        """As shown to people."""
        return f"{self.where}: {self.utterance + ': ' if self.utterance else ''}{self.what}"


@dataclass(frozen=True, slots=True)
class Findings:
    """What was looked at, and what is wrong with it."""

    name: str
    utterances: int
    seconds: float
    speakers: int
    timed_words: int
    problems: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.problems


def check(
    name_or_path: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    language: str | None = None,
    decode: bool = True,
    datasets: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Findings:
    """Looks at every row; ``decode=False`` skips decoding and hashing. ``progress`` is called with the number of rows seen.

    Raises CorpusError only when there is nothing to look at: an unknown name, path or format.
    """
    card, path = find(name_or_path, datasets)
    problems: list[Finding] = []
    utterances: list[Utterance] = []
    for number, row in enumerate(read_rows(card, path, format=format, split=split, language=language), 1):
        match complete(row) if isinstance(row, Row) else row:
            case BadRow(where, why):
                problems.append(Finding(where, row.utterance.id if isinstance(row, Row) else "", why))
            case Row(where, utterance):
                utterances.append(utterance)
                stated = isinstance(row, Row) and row.utterance.audio_sha256 != ""
                problems += (Finding(where, utterance.id, what) for what in _wrong(utterance, decode, stated))
        if progress is not None:
            progress(number)
    if not utterances:
        problems.append(Finding(str(path), "", "no utterance that can be used"))
    return Findings(
        name=card.name,
        utterances=len(utterances),
        seconds=sum(utterance.seconds for utterance in utterances),
        speakers=len({utterance.speaker for utterance in utterances if utterance.speaker}),
        timed_words=sum(len(utterance.words or ()) for utterance in utterances),
        problems=tuple(problems),
    )


def _wrong(utterance: Utterance, decode: bool, hash_stated: bool) -> Iterator[str]:
    if not SHORTEST_SECONDS <= utterance.seconds <= LONGEST_SECONDS:
        yield f"odd length: {utterance.seconds:.3f} s"
    pace = len(utterance.text) / utterance.seconds
    slow = pace < SLOWEST_CHARACTERS_PER_SECOND and utterance.seconds > LONG_ENOUGH_TO_BE_SLOW_SECONDS
    if utterance.text and (slow or pace > FASTEST_CHARACTERS_PER_SECOND):
        yield (
            f"odd length: {len(utterance.text)} characters in {utterance.seconds:.2f} s;"
            " text and audio may not belong together"
        )
    if wrong := problem(utterance.text):
        yield wrong
    if utterance.words is not None:
        yield from _wrong_words(utterance, utterance.words)
    if decode and utterance.audio is not None:
        yield from _wrong_audio(utterance, utterance.audio, hash_stated)
    elif decode:
        yield from _wrong_parts(utterance)


def _wrong_words(utterance: Utterance, words: tuple[TimedWord, ...]) -> Iterator[str]:
    before = words[0].start if words else 0.0
    for number, word in enumerate(words, 1):
        name = f"word {number} ({word.text!r}, {word.start:.3f} to {word.end:.3f} s)"
        if word.end < word.start:
            yield f"{name} ends before it starts"
        if word.start < 0 or word.end > utterance.seconds:
            yield f"{name} lies outside the audio of {utterance.seconds:.3f} s"
        if word.start < before - OVERLAP_TOLERANCE_SECONDS:
            yield f"{name} starts before the word in front of it has ended at {before:.3f} s"
        before = max(before, word.end)
    said, timed = _tokens(plain(utterance.text)), [token for word in words for token in _tokens(word.text)]
    if said != timed:
        place = next(
            (i for i, (a, b) in enumerate(zip(said, timed, strict=False)) if a != b), min(len(said), len(timed))
        )
        yield (
            f"words are not those of the text: {len(timed)} against {len(said)}, first at word {place + 1}:"
            f" {_at(timed, place)} against {_at(said, place)}"
        )


def _wrong_audio(utterance: Utterance, audio: Path, hash_stated: bool) -> Iterator[str]:
    if hash_stated and (found := file_sha256(audio)) != utterance.audio_sha256:
        yield f"{audio}: sha256 is {found}, the manifest says {utterance.audio_sha256}"
    try:
        seconds = decoded_seconds(audio)
    except UnreadableAudioError as error:
        yield str(error)
        return
    if abs(seconds - utterance.seconds) > LENGTH_TOLERANCE_SECONDS:
        yield f"{audio}: decodes to {seconds:.3f} s, but is said to last {utterance.seconds:.3f} s"


def _wrong_parts(utterance: Utterance) -> Iterator[str]:
    """Lengths only: the hashes of the parts are those of the dataset they come from, and are checked there."""
    try:
        lengths = {path: decoded_seconds(path) for path in {path for path, _ in utterance.parts}}
    except UnreadableAudioError as error:
        yield str(error)
        return
    seconds = sum(gap_seconds + lengths[path] for path, gap_seconds in utterance.parts)
    if abs(seconds - utterance.seconds) > LENGTH_TOLERANCE_SECONDS:
        yield f"its parts decode to {seconds:.3f} s together, but are said to last {utterance.seconds:.3f} s"


def _tokens(text: str) -> list[str]:
    """Words without case and outer punctuation, so that ``Well,`` in the text is ``well`` among the words."""
    return [token for part in text.casefold().split() if (token := re.sub(r"^\W+|\W+$", "", part))]


def _at(tokens: list[str], place: int) -> str:
    return repr(tokens[place]) if place < len(tokens) else "nothing"
