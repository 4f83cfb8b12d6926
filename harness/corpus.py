"""What is replayed: utterances with their reference text, word times and speakers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wire.words import TimedWord


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording and what is said in it.

    ``words`` are the reference words in order with start and end in seconds, or ``None`` when the corpus has no alignment.
    ``audio`` is the file to decode; when ``parts`` is set the audio is those files joined, each part preceded by so many
    seconds of silence. ``seconds`` is the length of the decoded audio. A clip with an empty ``text`` is non-speech.
    """

    id: str
    text: str
    seconds: float
    speaker: str = ""
    language: str = "en"
    audio: Path | None = None
    parts: Sequence[tuple[Path, float]] = ()
    words: tuple[TimedWord, ...] | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Corpus:
    """``sha256`` covers ids, texts, words and audio hashes: two runs are comparable when it is the same."""

    name: str
    language: str
    utterances: tuple[Utterance, ...]
    sha256: str
    licence: str = ""
    alignment: str = ""  # where the word times come from, with version; empty when there are none
    notes: str = ""

    @property
    def seconds(self) -> float:
        """Total audio in seconds."""
        return sum(utterance.seconds for utterance in self.utterances)
