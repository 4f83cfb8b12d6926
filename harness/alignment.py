"""Word times for a corpus that has none: forced alignment by PocketSphinx, made once and kept beside the manifest."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from harness import audio
from harness.corpus.utterance import Corpus, Utterance, corpus_sha256
from harness.pronunciation import readings
from harness.references import has_choices, plain
from harness.store import write_bytes
from wire.words import TimedWord

RULES = 1  # of ours: how tokens are pronounced, and what is done with the aligner's answer
LONGEST_SECONDS = 900.0
FRAMES_PER_SECOND = 100
_OUTER = re.compile(r"^\W+|\W+$")
_SILENCE = bytes(audio.SAMPLE_BYTES * audio.SAMPLE_RATE // 4)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Aligned:
    """A corpus with all the word times that could be had, and what became of it."""

    corpus: Corpus
    made: int  # utterances that were aligned, now or earlier
    failed: int  # utterances that could not be


class _Line(msgspec.Struct):
    """A line of the cache: the times of an utterance's words, or why there are none."""

    key: str
    id: str
    words: list[TimedWord] | None = None
    why: str = ""


def aligner() -> str | None:
    """Name and version of the aligner, ``None`` where it is not installed."""
    try:
        return f"pocketsphinx {version('pocketsphinx')} en-us, rules {RULES}"
    except PackageNotFoundError:
        return None


def with_word_times(
    corpus: Corpus, say: Say = lambda _: None, load: Callable[[Utterance], bytes] = audio.load
) -> Aligned:
    """The corpus with word times for every English utterance that has a text and no times, as far as they can be had.

    Times that were made before are taken from the cache (see `cache_file`). Where the aligner is not installed, the corpus is returned as
    it is. With times its hash is another: latencies of a run with them are not to be compared with those of one without.
    """
    wanting = [one for one in corpus.utterances if _wanted(one)]
    name = aligner()
    if not wanting or name is None:
        if wanting:
            say(f"{len(wanting)} utterances have no word times: pip install 'earmark[sphinx]' to align them")
        return Aligned(corpus, 0, 0)
    path = cache_file(corpus, name)
    known = _read(path)
    missing = list(
        {_key(one): one for one in wanting if _key(one) not in known}.values()
    )  # a mix has some more than once
    if missing:
        minutes = sum(one.seconds for one in missing) / 60
        say(f"aligning the words of {len(missing)} utterances ({minutes:.1f} minutes of audio) with {name}")
        made = {line.key: line for line in _align(missing, load)}
        known |= made
        path = _write(path, known.values(), corpus, name)
        say(f"word times are kept in {path}")
    timed = {one.id: known[_key(one)].words for one in wanting}
    failed = sum(words is None for words in timed.values())
    if failed:
        say(f"{failed} of {len(wanting)} utterances could not be aligned: their text and audio do not go together")
    utterances = tuple(
        replace(one, words=None if (words := timed.get(one.id)) is None else tuple(words)) if one.id in timed else one
        for one in corpus.utterances
    )
    sources = [corpus.alignment] if any(one.words is not None for one in corpus.utterances) else []
    aligned = replace(
        corpus,
        utterances=utterances,
        sha256=corpus_sha256(utterances),
        alignment="; ".join(filter(None, [*sources, name])),
    )
    return Aligned(aligned, len(wanting) - failed, failed)


def _wanted(utterance: Utterance) -> bool:
    english = re.split("[-_]", utterance.language.lower())[0] == "en"
    spoken = (
        bool(plain(utterance.text).strip()) and "<*>" not in utterance.text
    )  # words nobody wrote down cannot be aligned
    return utterance.words is None and english and spoken and utterance.seconds <= LONGEST_SECONDS


def cache_file(corpus: Corpus, name: str) -> Path:
    """``NAME.words.jsonl`` beside the corpus, where the aligner's name and version are part of it; else in the user's cache folder."""
    label = re.sub(r"[^a-z0-9.]+", "-", name.lower())
    if corpus.source is not None:
        folder = corpus.source if corpus.source.is_dir() else corpus.source.parent
        stem = "" if corpus.source.is_dir() else f"{corpus.source.stem}."
        beside = folder / f".{stem}{label}.words.jsonl"
        if beside.exists() or os.access(folder, os.W_OK):
            return beside
    where = hashlib.sha256(str(corpus.source or corpus.name).encode()).hexdigest()[:12]
    return _user_cache() / f"{corpus.name}-{where}.{label}.words.jsonl"


def _user_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "earmark" / "alignments"


def _key(utterance: Utterance) -> str:
    """What the times hang on: the audio and the text."""
    return hashlib.sha256(f"{utterance.audio_sha256}\n{utterance.text}".encode()).hexdigest()


def _read(path: Path) -> dict[str, _Line]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    try:
        found = [msgspec.json.decode(line, type=_Line) for line in lines[1:] if line]
    except msgspec.DecodeError:
        return {}  # made again
    return {line.key: line for line in found}


def _write(path: Path, lines: Iterable[_Line], corpus: Corpus, name: str) -> Path:
    head = {"aligner": name, "corpus": corpus.name}
    data = b"\n".join([msgspec.json.encode(head), *map(msgspec.json.encode, lines)]) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    except OSError:
        path = _user_cache() / path.name.lstrip(".")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)
    return path


def _align(utterances: Iterable[Utterance], load: Callable[[Utterance], bytes]) -> Iterable[_Line]:
    aligning = Aligner()
    for one in utterances:
        words = aligning.align(load(one), plain(one.text) if has_choices(one.text) else one.text)
        yield _Line(_key(one), one.id, words, "" if words else "no path through the audio")


class Aligner:
    """A PocketSphinx decoder that is told what was said and asked when. One after another, not for two threads."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._decoder: Any = Decoder(loglevel="FATAL")
        self._entries: dict[str, str | None] = {}  # token -> its entry in the dictionary

    def align(self, pcm: bytes, text: str) -> list[TimedWord] | None:
        """When each blank-separated token of ``text`` is said in the 16 kHz audio, without its outer punctuation; in order.

        ``None`` where the recogniser finds no way to hear the text in the audio. A token without anything to say (a dash) gets
        no time of its own and is left out.
        """
        tokens = [(token, entry) for token in text.split() if (entry := self._entry(token))]
        if not tokens:
            return None
        # a model of what is said, then the audio at once: so its own mean is taken off, and nothing heard before matters
        try:
            self._decoder.set_align_text(" ".join(entry for _, entry in tokens))
        except RuntimeError:  # all that the library says when it cannot make the model
            return None
        for sound in (_SILENCE, pcm):  # what is left of the sound before is always that of the same silence
            self._decoder.start_utt()
            self._decoder.process_raw(sound, full_utt=True)
            self._decoder.end_utt()
        segments = self._decoder.seg()
        if segments is None:
            return None
        spans = [
            (segment.start_frame / FRAMES_PER_SECOND, (segment.end_frame + 1) / FRAMES_PER_SECOND)
            for segment in segments
            if not segment.word.startswith(("<", "[", "("))
        ]
        if len(spans) != len(tokens):
            return None
        seconds = len(pcm) / (audio.SAMPLE_BYTES * audio.SAMPLE_RATE)
        return [
            TimedWord(_OUTER.sub("", token) or token, start, min(end, seconds))
            for (token, _), (start, end) in zip(tokens, spans, strict=True)
        ]

    def _entry(self, token: str) -> str | None:
        """The dictionary's entry for a token; one is made, with every way it may be said, where there is none."""
        if token not in self._entries:
            known = re.sub(r"[^a-z']", "", token.lower()).strip("'")
            if token.isalpha() and token == known and self._decoder.lookup_word(known):
                self._entries[token] = known
            else:
                self._entries[token] = self._make(token)
        return self._entries[token]

    def _make(self, token: str) -> str | None:
        bare = _OUTER.sub("", token)
        plain_word = bare.lower()
        if (
            re.fullmatch(r"[A-Za-z']+", bare)
            and self._decoder.lookup_word(plain_word)
            and not (bare.isupper() and len(bare) > 1)
        ):
            return plain_word
        ways = readings(token, self._decoder.lookup_word)
        if not ways:
            return None
        entry = f"earmark{len(self._entries)}"
        for number, phones in enumerate(ways, start=1):
            self._decoder.add_word(entry if number == 1 else f"{entry}({number})", phones, number == len(ways))
        return entry
