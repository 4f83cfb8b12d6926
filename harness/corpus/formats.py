"""Readers of the formats people keep speech in: each yields utterances in file order, or what is wrong with a row."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from harness.corpus.utterance import CorpusError, Utterance
from wire.words import TimedWord

AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".webm", ".aif", ".aiff", ".wma"}
)
SAMPLE_RATE = 16_000
UNDECODABLE = "\N{REPLACEMENT CHARACTER}"
NOT_UTF_8 = "not UTF-8; convert the file first"
NOT_MEASURED = 0.0  # a row's ``seconds`` when the format does not state them


@dataclass(frozen=True, slots=True)
class Row:
    """``where`` is FILE:LINE; ``utterance.seconds`` is NOT_MEASURED and ``audio_sha256`` empty where the format is silent."""

    where: str
    utterance: Utterance


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used."""

    where: str
    why: str

    def __str__(self) -> str:
        """As shown to people."""
        return f"{self.where}: {self.why}"


Rows = Iterator[Row | BadRow]


# ---- JSON lines: ours, NeMo's and their kin ----------------------------------------------------------------------------


class _Part(msgspec.Struct, rename={"dataset": "from"}):
    dataset: str
    id: str
    gap: float = 0.0


class _JsonRow(msgspec.Struct):
    """The union of the keys in use: ours (audio, seconds, language) and NeMo's (audio_filepath, duration, lang)."""

    id: str | int = ""
    utt_id: str | int = ""
    audio: str = ""
    audio_filepath: str = ""
    seconds: float | None = None
    duration: float | None = None
    offset: float = 0.0
    text: str | None = None
    speaker: str | int = ""
    speaker_id: str | int = ""
    language: str = ""
    lang: str = ""
    words: list[TimedWord] | None = None
    tags: dict[str, str] = {}
    sha256: str = ""
    parts: list[_Part] | None = None


def read_jsonl(manifest: Path, language: str, _split: str | None) -> Rows:
    """One JSON object a line; audio paths are relative to the manifest's folder, ``parts`` name utterances of a dataset beside it."""
    rows: list[Row | BadRow] = []
    sources: dict[str, dict[str, Utterance]] = {}
    for where, line in _lines(manifest):
        try:
            row = msgspec.json.decode(line, type=_JsonRow)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            rows.append(BadRow(where, f"not a manifest row: {error}"))
            continue
        rows.append(_joined(row, where, manifest, sources) if row.parts else _single(row, where, manifest, language))
    yield from _with_unique_ids(rows, manifest.parent)


def _single(row: _JsonRow, where: str, manifest: Path, language: str) -> Row | BadRow:
    name = row.audio or row.audio_filepath
    if not name:
        return BadRow(where, "no audio: expected the key 'audio' or 'audio_filepath'")
    if row.text is None:
        return BadRow(where, "no 'text'; give an empty one for a clip without speech")
    if row.offset:
        return BadRow(where, f"offset {row.offset:g}: pieces of a longer file are not supported, cut the audio first")
    seconds = row.seconds if row.seconds is not None else row.duration
    if seconds is not None and seconds <= 0:
        return BadRow(where, f"a length of {seconds:g} s")
    return Row(
        where,
        Utterance(
            id=str(row.id or row.utt_id),
            text=row.text,
            seconds=NOT_MEASURED if seconds is None else seconds,
            speaker=str(row.speaker or row.speaker_id),
            language=_language(row.language or row.lang or language),
            audio=manifest.parent / name,
            words=None if row.words is None else tuple(row.words),
            tags=row.tags,
            audio_sha256=row.sha256,
        ),
    )


def _joined(row: _JsonRow, where: str, manifest: Path, sources: dict[str, dict[str, Utterance]]) -> Row | BadRow:
    """An utterance that is others in a row, with silence before each: their words move by where they come to lie."""
    if not row.id:
        return BadRow(where, "parts, but no id")
    pieces: list[tuple[Utterance, int]] = []
    for part in row.parts or ():
        if part.dataset not in sources:
            source = manifest.parent.parent / part.dataset / "manifest.jsonl"
            if not source.is_file():
                return BadRow(where, f"made from {part.dataset!r}, but there is no {source}")
            found = [entry.utterance for entry in read_jsonl(source, "en", None) if isinstance(entry, Row)]
            sources[part.dataset] = {utterance.id: utterance for utterance in found}
        utterance = sources[part.dataset].get(part.id)
        if utterance is None:
            return BadRow(where, f"{part.dataset!r} has no utterance {part.id!r}")
        if utterance.audio is None or not utterance.audio_sha256 or utterance.seconds <= 0:
            return BadRow(where, f"{part.id!r} of {part.dataset!r} lacks a file of its own, its sha256 or its seconds")
        if part.gap < 0:
            return BadRow(where, f"a gap of {part.gap:g} s before {part.id!r}")
        pieces.append((utterance, round(part.gap * SAMPLE_RATE)))
    return Row(where, _join(str(row.id), pieces, row.tags))


def _join(name: str, pieces: Sequence[tuple[Utterance, int]], tags: dict[str, str]) -> Utterance:
    words: list[TimedWord] = []
    samples = 0
    for utterance, gap_samples in pieces:
        start = (samples + gap_samples) / SAMPLE_RATE
        words += (
            TimedWord(word.text, round(word.start + start, 6), round(word.end + start, 6))
            for word in utterance.words or ()
        )
        samples += gap_samples + round(utterance.seconds * SAMPLE_RATE)
    speakers = dict.fromkeys(utterance.speaker for utterance, _ in pieces)
    timed = all(utterance.words is not None for utterance, _ in pieces)
    recipe = json.dumps([[utterance.audio_sha256, gap_samples] for utterance, gap_samples in pieces])
    return Utterance(
        id=name,
        text=" ".join(utterance.text for utterance, _ in pieces if utterance.text),
        seconds=samples / SAMPLE_RATE,
        speaker="+".join(speakers),
        language=pieces[0][0].language,
        parts=tuple((utterance.audio, gap / SAMPLE_RATE) for utterance, gap in pieces if utterance.audio is not None),
        words=tuple(words) if timed else None,
        tags=tags,
        audio_sha256=hashlib.sha256(recipe.encode()).hexdigest(),
    )


# ---- LibriSpeech ---------------------------------------------------------------------------------------------------------


def read_librispeech(folder: Path, language: str, split: str | None) -> Rows:
    """SPLIT/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt, each line an id and its text; the audio lies beside it as ID.flac."""
    transcripts = sorted(folder.rglob("*.trans.txt"))
    splits = sorted({_librispeech_split(path) for path in transcripts})
    if split is not None:
        transcripts = [path for path in transcripts if _librispeech_split(path) == split]
        if not transcripts:
            raise CorpusError(f"{folder}: no split {split!r}; there are: {', '.join(splits)}")
    elif len(splits) > 1:
        raise CorpusError(f"{folder} holds several splits; choose one of: {', '.join(splits)}")
    for transcript in transcripts:
        for where, line in _lines(transcript):
            name, _, text = _decoded(line).partition(" ")
            if UNDECODABLE in text:
                yield BadRow(where, NOT_UTF_8)
                continue
            if not text.strip() or name.count("-") != 2:
                yield BadRow(where, f"expected 'SPEAKER-CHAPTER-NUMBER TEXT', found {_shown(line)}")
                continue
            speaker, chapter, _ = name.split("-")
            audio = next(
                (path for suffix in (".flac", ".wav") if (path := transcript.parent / (name + suffix)).exists()), None
            )
            yield Row(
                where,
                Utterance(
                    id=name,
                    text=text.strip(),
                    seconds=NOT_MEASURED,
                    speaker=speaker,
                    language=language,
                    audio=audio or transcript.parent / f"{name}.flac",
                    tags={"chapter": chapter, "split": _librispeech_split(transcript)},
                ),
            )


def _librispeech_split(transcript: Path) -> str:
    return transcript.absolute().parents[2].name


# ---- Common Voice --------------------------------------------------------------------------------------------------------


def read_common_voice(path: Path, language: str, split: str | None) -> Rows:
    """SPLIT.tsv with a header (client_id, path, sentence, locale, ...) beside a folder ``clips``."""
    table = _split_table(path, split)
    lines = _lines(table)
    header = _decoded(next(lines, ("", b""))[1]).split("\t")
    if missing := {"client_id", "path", "sentence"} - set(header):
        raise CorpusError(
            f"{table}: not a Common Voice table, its first line names no column {', '.join(sorted(missing))}"
        )
    for where, line in lines:
        cells = _decoded(line).split("\t")
        if any(UNDECODABLE in cell for cell in cells):
            yield BadRow(where, NOT_UTF_8)
            continue
        if len(cells) != len(header):
            yield BadRow(where, f"{len(cells)} columns where the header has {len(header)}")
            continue
        row = dict(zip(header, cells, strict=True))
        if not row["path"] or not row["sentence"].strip():
            yield BadRow(where, "no path or no sentence")
            continue
        audio = table.parent / "clips" / row["path"]
        yield Row(
            where,
            Utterance(
                id=Path(row["path"]).stem,
                text=row["sentence"].strip(),
                seconds=NOT_MEASURED,
                speaker=row["client_id"],
                language=_language(row.get("locale", "") or language),
                audio=audio if audio.suffix else audio.with_suffix(".mp3"),  # early releases leave the suffix out
                tags={key: row[key] for key in ("age", "gender", "accents", "variant", "locale") if row.get(key)},
            ),
        )


# ---- FLEURS --------------------------------------------------------------------------------------------------------------

FLEURS_COLUMNS = 7  # sentence id, file name, raw transcription, transcription, characters, samples, gender


def read_fleurs(path: Path, language: str, split: str | None) -> Rows:
    """LANG/SPLIT.tsv without a header, audio in LANG/audio/SPLIT or LANG/SPLIT; the text is the raw transcription.

    FLEURS names no speakers, and one sentence is read by up to three: the sentence's number is the tag ``sentence``.
    """
    table = _split_table(path, split)
    folders = [table.parent / "audio" / table.stem, table.parent / table.stem, table.parent / "audio", table.parent]
    language = _fleurs_language(table.parent.name) or language
    for where, line in _lines(table):
        cells = _decoded(line).split("\t")
        if any(UNDECODABLE in cell for cell in cells):
            yield BadRow(where, NOT_UTF_8)
            continue
        if len(cells) != FLEURS_COLUMNS or not cells[5].isdecimal():
            yield BadRow(
                where,
                f"expected {FLEURS_COLUMNS} columns with the number of samples in the sixth, found {_shown(line)}",
            )
            continue
        sentence, name, raw, plain, _, _, gender = cells
        yield Row(
            where,
            Utterance(
                id=Path(name).stem,
                text=raw.strip(),
                seconds=NOT_MEASURED,
                language=language,
                audio=next((folder / name for folder in folders if (folder / name).exists()), folders[0] / name),
                tags={"sentence": sentence, "gender": gender.lower(), "transcription": plain},
            ),
        )


def _fleurs_language(name: str) -> str:
    """``en_us`` -> ``en``; empty where the folder is not named so."""
    return _language(name) if re.fullmatch(r"[a-z]{2,3}(_[a-z]+)?_[a-z0-9]{2,3}", name) else ""


# ---- a folder of audio and text ------------------------------------------------------------------------------------------


def read_folder(folder: Path, language: str, _split: str | None) -> Rows:
    """Every audio file with a .txt of the same name beside it; a sub-folder's name is taken as the speaker's."""
    audio = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    rows: list[Row | BadRow] = []
    for path in audio:
        transcript = path.with_suffix(".txt")
        if not transcript.is_file():
            rows.append(BadRow(f"{path}", f"no transcript {transcript.name} beside it; an empty file means no speech"))
            continue
        try:
            text = " ".join(transcript.read_text("utf-8-sig").split())
        except UnicodeDecodeError as error:
            rows.append(BadRow(f"{transcript}", f"not UTF-8: {error.reason} at byte {error.start}"))
            continue
        speaker = "" if path.parent == folder else path.parent.name
        rows.append(Row(f"{transcript}", Utterance("", text, NOT_MEASURED, speaker, language, path)))
    yield from _with_unique_ids(rows, folder)


# ---- which format is it? -------------------------------------------------------------------------------------------------

FORMATS: dict[str, Callable[[Path, str, str | None], Rows]] = {
    "jsonl": read_jsonl,
    "librispeech": read_librispeech,
    "common-voice": read_common_voice,
    "fleurs": read_fleurs,
    "folder": read_folder,
}


def recognise(path: Path) -> tuple[str, Path]:
    """The format by what is in the file or folder, and the path its reader wants."""
    if path.is_file():
        return _recognise_file(path), path
    if not path.is_dir():
        raise CorpusError(f"{path}: no such file or folder")
    if (path / "manifest.jsonl").is_file():
        return "jsonl", path / "manifest.jsonl"
    tables = [table for table in sorted(path.glob("*.tsv")) if _table_format(table)]
    if tables:
        return _table_format(tables[0]), path
    manifests = sorted(path.glob("*.jsonl"))
    if len(manifests) > 1:
        raise CorpusError(
            f"{path} holds several manifests; give the path of one: {', '.join(found.name for found in manifests)}"
        )
    if manifests:
        return "jsonl", manifests[0]
    if next(path.rglob("*.trans.txt"), None):
        return "librispeech", path
    if any(found.suffix.lower() in AUDIO_SUFFIXES and found.with_suffix(".txt").is_file() for found in path.rglob("*")):
        return "folder", path
    raise CorpusError(
        f"{path}: no corpus in here. Looked for manifest.jsonl, a single .jsonl, a Common Voice or FLEURS .tsv, LibriSpeech's"
        " *.trans.txt, and audio files with a .txt beside each"
    )


def _recognise_file(path: Path) -> str:
    first = next((line for _, line in _lines(path)), b"")
    if first.lstrip().startswith(b"{"):
        return "jsonl"
    if found := _table_format(path):
        return found
    raise CorpusError(
        f"{path}: not a JSONL manifest, nor a Common Voice or FLEURS table; its first line is {_shown(first)}. Say format="
        f"{'|'.join(FORMATS)} to force one"
    )


def _table_format(table: Path) -> str:
    cells = _decoded(next((line for _, line in _lines(table)), b"")).split("\t")
    if {"client_id", "path", "sentence"} <= set(cells):
        return "common-voice"
    return "fleurs" if len(cells) == FLEURS_COLUMNS and cells[5].isdecimal() else ""


def _split_table(path: Path, split: str | None) -> Path:
    if path.is_file():
        return path
    table = path / f"{split or 'test'}.tsv"
    if not table.is_file():
        there = ", ".join(sorted(found.stem for found in path.glob("*.tsv"))) or "none"
        raise CorpusError(f"{path}: no split {split or 'test'!r} ({table.name}); there are: {there}")
    return table


# ---- lines and names -----------------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Each line that is not blank, without its end and the file's byte-order mark, with FILE:LINE."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            content = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).rstrip(b"\r\n")
            if content.strip():
                yield f"{path}:{number}", content


def _language(tag: str) -> str:
    """``en-US``, ``en_us`` -> ``en``; Mandarin's ``cmn`` -> ``zh``, as engines call it."""
    code = re.split("[-_]", tag, maxsplit=1)[0].lower()
    return "zh" if code == "cmn" else code


def _decoded(line: bytes) -> str:
    """UTF-8, with UNDECODABLE for what is not."""
    return line.decode("utf-8", "replace")


def _shown(line: bytes) -> str:
    text = _decoded(line)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _with_unique_ids(rows: Sequence[Row | BadRow], folder: Path) -> Rows:
    """Rows without an id get their file's name, or where that is not enough their path below ``folder``, without the suffix."""
    stems = Counter(row.utterance.audio.stem for row in rows if isinstance(row, Row) and row.utterance.audio)
    for row in rows:
        match row:
            case Row(where, Utterance(id="", audio=Path() as audio) as utterance):
                below = audio.relative_to(folder) if audio.is_relative_to(folder) else audio
                name = audio.stem if stems[audio.stem] == 1 else below.with_suffix("").as_posix()
                yield Row(where, replace(utterance, id=name))
            case _:
                yield row
