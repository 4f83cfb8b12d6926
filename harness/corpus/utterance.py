"""The two nouns of a corpus, the fault it can have, and the hash that says whether two corpora are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wire.words import TimedWord


class CorpusError(ValueError):
    """A corpus cannot be read as asked; the message names the file, the line and what to do."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One recording and what is said in it.

    ``words`` are the reference words in order with start and end in seconds, or ``None`` when the corpus has no alignment.
    ``audio`` is the file to decode; when ``parts`` is set the audio is those files joined, each part preceded by so many
    seconds of silence. ``seconds`` is the length of the decoded audio. A clip with an empty ``text`` is non-speech.
    ``audio_sha256`` is over the bytes of the audio file, or over the hashes and gaps of the parts.
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
    audio_sha256: str = ""


@dataclass(frozen=True, slots=True)
class Corpus:
    """``sha256`` covers ids, texts, words and audio hashes: two runs are comparable when it is the same.

    ``language`` is that of the utterances, or ``mul`` when they are in several.
    """

    name: str
    language: str
    utterances: tuple[Utterance, ...]
    sha256: str
    licence: str = ""
    alignment: str = ""  # where the word times come from, with version; empty when there are none
    normaliser: str = ""  # that the texts are made for, where it is not the usual one of the language
    notes: str = ""  # what was left out or skipped while loading, a line each
    source: Path | None = None  # the manifest or folder it was read from

    @property
    def seconds(self) -> float:
        """Total audio in seconds."""
        return sum(utterance.seconds for utterance in self.utterances)


def corpus_sha256(utterances: Iterable[Utterance]) -> str:
    """Hash over ids, texts, words and audio hashes; the same on every machine, whatever the order and wherever the files lie.

    Times enter as whole microseconds, so that no platform's way of printing a float can matter.
    """
    digest = hashlib.sha256(b"earmark-corpus/1\n")
    for utterance in sorted(utterances, key=lambda utterance: utterance.id):
        words = utterance.words and [
            [word.text, *map(_microseconds, (word.start, word.end))] for word in utterance.words
        ]
        row = [utterance.id, utterance.text, words or None, utterance.audio_sha256]
        digest.update(json.dumps(row, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
