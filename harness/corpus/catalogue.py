"""From a name or a path to a corpus: where datasets lie, which there are, and which of their utterances are wanted."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from harness.corpus.formats import FORMATS, NOT_MEASURED, BadRow, Row, Rows, recognise
from harness.corpus.lengths import UnreadableAudioError, file_sha256, stated_seconds
from harness.corpus.utterance import Corpus, CorpusError, Utterance, corpus_sha256

CARD = "dataset.json"
CACHE = ".cache"
SHOWN_SKIPS = 20


class Card(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a dataset's ``dataset.json`` says; ``path`` is relative to its folder, ``split`` the one that is meant.

    ``normaliser`` is the one its texts are made for, where that is not the usual one of its language.
    """

    name: str
    description: str = ""
    language: str = "en"
    licence: str = ""
    alignment: str = ""
    source: str = ""
    format: str = "jsonl"
    path: str = "manifest.jsonl"
    split: str | None = None
    normaliser: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset that can be loaded by name; ``fetched`` is false for those that come with the project."""

    card: Card
    folder: Path
    fetched: bool

    @property
    def name(self) -> str:
        """The name that ``load`` takes."""
        return self.card.name


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which utterances are asked for; ``None`` and empty collections ask for all."""

    languages: Collection[str] = ()
    speakers: Collection[str] = ()
    tags: Mapping[str, str] | None = None
    min_seconds: float = 0.0
    max_seconds: float | None = None
    limit: int | None = None

    def wants(self, utterance: Utterance) -> bool:
        """By everything that is known without opening the audio."""
        return (
            (not self.languages or utterance.language in self.languages)
            and (not self.speakers or utterance.speaker in self.speakers)
            and all(utterance.tags.get(key) == value for key, value in (self.tags or {}).items())
        )

    def wants_length(self, seconds: float) -> bool:
        """By the length of the audio."""
        return self.min_seconds <= seconds and (self.max_seconds is None or seconds <= self.max_seconds)


def datasets_folder() -> Path:
    """``EARMARK_DATASETS``, else ``datasets`` in the working directory, else ``datasets`` beside the package."""
    if named := os.environ.get("EARMARK_DATASETS"):
        folder = Path(named)
        if not folder.is_dir():
            raise CorpusError(f"EARMARK_DATASETS={named}: no such folder")
        return folder
    here = Path("datasets")
    return here if here.is_dir() else Path(__file__).resolve().parents[2] / "datasets"


def available(datasets: Path | None = None) -> list[Dataset]:
    """Every dataset that ``load`` knows by name, those that come with the project first, each group by name."""
    datasets = datasets or datasets_folder()
    return [
        Dataset(_card(path), path.parent, fetched)
        for folder, fetched in ((datasets, False), (datasets / CACHE, True))
        for path in sorted(folder.glob(f"*/{CARD}"))
    ]


def load(
    name_or_path: str | Path,
    *,
    format: str | None = None,
    split: str | None = None,
    language: str | None = None,
    languages: Collection[str] = (),
    speakers: Collection[str] = (),
    tags: Mapping[str, str] | None = None,
    min_seconds: float = 0.0,
    max_seconds: float | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
    datasets: Path | None = None,
) -> Corpus:
    """A dataset by name, or whatever lies at a path, its format recognised by content unless ``format`` forces one.

    ``language`` is what rows that state none are in. ``limit`` takes utterances in turn from each speaker, in file order, so that
    few still cover many; the corpus keeps file order. No audio is decoded: where the format states lengths and hashes they are
    believed (``check`` verifies them), else the file's header is read and its bytes are hashed, for the chosen utterances only.

    Raises CorpusError for a name or format nobody knows, for an empty corpus, and for the first bad row, naming file and line;
    with ``skip_bad`` bad rows are left out and listed in ``Corpus.notes``.
    """
    if limit is not None and limit < 1:
        raise CorpusError(f"limit={limit}: ask for at least one utterance")
    card, path = find(name_or_path, datasets)
    rows = read_rows(card, path, format=format, split=split, language=language)
    wanted = Wanted(languages, speakers, tags, min_seconds, max_seconds, limit)
    bad: list[BadRow] = []

    def report(row: BadRow) -> None:
        if not skip_bad:
            raise CorpusError(f"{row}. Mend the row, or pass --skip-bad (skip_bad=True) to leave such rows out")
        bad.append(row)

    utterances = _choose(rows, wanted, report)
    if not utterances:
        skipped = f"; bad rows skipped: {len(bad)}, the first: {bad[0]}" if bad else ""
        raise CorpusError(f"{card.name}: no utterance left, of those in {path}, by the given filters{skipped}")
    spoken = {utterance.language for utterance in utterances}
    return Corpus(
        name=card.name,
        language=spoken.pop() if len(spoken) == 1 else "mul",
        utterances=utterances,
        sha256=corpus_sha256(utterances),
        licence=card.licence,
        alignment=card.alignment,
        normaliser=card.normaliser,
        notes=_notes(bad),
        source=path,
    )


def read_rows(card: Card, path: Path, *, format: str | None, split: str | None, language: str | None) -> Rows:
    """The rows as the format's reader gives them, with repeated ids turned into bad rows."""
    kind, path = (format, path) if format else recognise(path)
    if kind not in FORMATS:
        raise CorpusError(f"format {kind!r}: there are {', '.join(FORMATS)}")
    return _without_repeats(FORMATS[kind](path, language or card.language, split or card.split))


def complete(row: Row) -> Row | BadRow:
    """The row with the length and hash that its format did not state, or why its audio cannot be used."""
    utterance = row.utterance
    files = [utterance.audio] if utterance.audio is not None else [path for path, _ in utterance.parts]
    for path in files:
        if not path.is_file():
            return BadRow(row.where, f"no such audio file: {path}")
    if utterance.audio is None:
        return row
    try:
        seconds = stated_seconds(utterance.audio) if utterance.seconds == NOT_MEASURED else utterance.seconds
        sha256 = utterance.audio_sha256 or file_sha256(utterance.audio)
    except (UnreadableAudioError, OSError) as error:
        return BadRow(row.where, str(error))
    return replace(row, utterance=replace(utterance, seconds=seconds, audio_sha256=sha256))


def find(name_or_path: str | Path, datasets: Path | None = None) -> tuple[Card, Path]:
    """The card and the data of a dataset by name, or a card with nothing but a name for a path."""
    name = str(name_or_path)
    if isinstance(name_or_path, str) and Path(name).name == name:
        datasets = datasets or datasets_folder()
        for folder in (datasets / name, datasets / CACHE / name):
            if (folder / CARD).is_file():
                return _card_and_data(folder)
    path = Path(name_or_path)
    if not path.exists():
        known = ", ".join(dataset.name for dataset in available(datasets)) or "none"
        raise CorpusError(
            f"no dataset and no path is called {name!r}; datasets here: {known}."
            " Others are had by 'earmark datasets fetch NAME'"
        )
    if (path / CARD).is_file():
        return _card_and_data(path)
    return Card(name=path.resolve().name if path.is_dir() else path.stem), path


def _card_and_data(folder: Path) -> tuple[Card, Path]:
    card = _card(folder / CARD)
    return card, folder / card.path


def _card(path: Path) -> Card:
    try:
        card = msgspec.json.decode(path.read_bytes(), type=Card)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: {error}") from error
    if card.name != path.absolute().parent.name:
        raise CorpusError(f"{path}: its name {card.name!r} is not that of its folder, by which it is looked up")
    return card


def _without_repeats(rows: Rows) -> Rows:
    first: dict[str, str] = {}
    for row in rows:
        match row:
            case Row(where, utterance) if utterance.id in first:
                yield BadRow(where, f"id {utterance.id!r} again; it was first at {first[utterance.id]}")
            case Row(where, utterance):
                first[utterance.id] = where
                yield row
            case BadRow():
                yield row


def _choose(rows: Rows, wanted: Wanted, report: Callable[[BadRow], None]) -> tuple[Utterance, ...]:
    candidates: list[tuple[int, Row]] = []
    for place, row in enumerate(rows):
        match row:
            case BadRow():
                report(row)
            case Row(_, utterance) if wanted.wants(utterance):
                candidates.append((place, row))
    chosen: list[tuple[int, Utterance]] = []
    for place, row in candidates if wanted.limit is None else _in_turn(candidates):
        if len(chosen) == wanted.limit:
            break
        match complete(row):
            case BadRow() as bad:
                report(bad)
            case Row(_, utterance) if wanted.wants_length(utterance.seconds):
                chosen.append((place, utterance))
    return tuple(utterance for _, utterance in sorted(chosen, key=lambda entry: entry[0]))


def _in_turn(candidates: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
    """One of each speaker, in the order the speakers appear, then another of each, and so on."""
    of_speaker: dict[str, deque[tuple[int, Row]]] = {}
    for entry in candidates:
        of_speaker.setdefault(entry[1].utterance.speaker, deque()).append(entry)
    while of_speaker:
        for speaker, entries in list(of_speaker.items()):
            yield entries.popleft()
            if not entries:
                del of_speaker[speaker]


def _notes(bad: list[BadRow]) -> str:
    if not bad:
        return ""
    lines = [f"bad rows skipped: {len(bad)}", *map(str, bad[:SHOWN_SKIPS])]
    if len(bad) > SHOWN_SKIPS:
        lines.append(f"... and {len(bad) - SHOWN_SKIPS} more")
    return "\n".join(lines)
