"""The run folder: what is in it, and how it is written and read."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.words import TimedWord

SCHEMA = 1  # of run.json and of the computed and sampled tables
RECORDED_SCHEMA = (
    2  # of what is recorded; 1 had one table of all entries in nanoseconds, and the reference with every stream
)
ENTRIES_BY_GROUP = 1 << 19
TICK_NS = 100_000
"""Recorded times are kept to 0.1 ms since their stream's planned start: the rest is noise of the clock, and most of the bytes."""
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class StoreError(ValueError):
    """A run folder cannot be read as one: the message names the file and says what to do."""


class RunConfig(msgspec.Struct, frozen=True):
    """What was asked for. Two runs are comparable when everything but ``target`` and ``label`` agrees."""

    dataset: str
    corpus_sha256: str
    protocol: str  # name of the driver: "yap", "realtime", "deepgram", ...
    target: str  # ws:// URL; "started" when the run started the server itself
    engine: str  # name of the engine, as the server says; "unknown" when it does not
    model: str
    concurrency: int
    delay_ms: int | None  # None: the server's own
    packet_ms: int
    speed: float  # 1.0 is real time, inf unpaced
    seed: int
    normaliser: str  # name/version
    arrival: str = "closed"
    caveat: str = ""  # a sentence that must stand beside the accuracy, e.g. that the recogniser is a weak one
    server_options: list[str] = []
    driver_options: list[str] = []  # NAME=VALUE, what was asked of the service beyond model and delay
    label: str = ""
    load: dict[
        str, Any
    ] = {}  # what makes the load another than the plain one: seconds, think_seconds, jitter_ms, retries, ...
    alignment: str = ""  # where the words' times come from, with version


class Run(msgspec.Struct):
    """What run.json holds. The folder beside it: timeline.parquet, packets.parquet, references.parquet and streams.parquet
    (recorded), system.parquet (sampled), utterances.parquet, scores.json, report.html and summary.md (computed, can be made
    again from the recorded ones).
    """

    schema: int
    id: str  # the folder's name: <UTC>-<engine>-<dataset>-c<N>-d<ms>
    created: str  # ISO 8601 UTC, the only wall-clock time in a run
    config: RunConfig
    environment: dict[str, Any]  # git state, packages, python, machine, cpu count, gpu
    complete: bool = False
    wall_seconds: float = 0.0
    notes: list[str] = []
    generator: dict[
        str, Any
    ] = {}  # processes and their clocks, CPU seconds, retries, blocked writes, why it stopped early


class Standing(msgspec.Struct, frozen=True):
    """What progress.json holds while a run is under way: how it stands, for whoever watches. Counts are named as the replay's."""

    server: str  # ws:// URL; empty for a service, which has no metrics to ask for
    total: int
    active: int
    done: int
    failed: int
    retries: int
    words: int
    worst_lateness_seconds: float


class StandingFile:
    """progress.json of a run under way, gone when it ends.

    It is written in place, always at the same length: replacing or truncating a file can make a file system write to disk at once, and
    whoever writes here has packets to send.
    """

    BYTES = 1024

    def __init__(self, folder: Path) -> None:
        self._path = folder / "progress.json"

    def __enter__(self) -> StandingFile:
        self._file = os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)
        self._path.unlink(missing_ok=True)

    def write(self, standing: Standing) -> None:
        """Replace what the file says."""
        told = msgspec.json.encode(standing)
        if len(told) <= self.BYTES:
            with contextlib.suppress(OSError):  # a full disk is found out when the run is kept
                os.pwrite(self._file, told.ljust(self.BYTES), 0)


def read_standing(folder: Path) -> tuple[Standing, float] | None:
    """How the run of a folder stands, and when (epoch seconds) that was written; ``None`` where none is under way."""
    path = folder / "progress.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Standing), path.stat().st_mtime
    except (OSError, msgspec.DecodeError):  # ended meanwhile, or not written yet
        return None


_WORD = pa.struct([("text", pa.string()), ("start", pa.float64()), ("end", pa.float64())])
_STREAMS = pa.schema(
    [
        ("stream", pa.int32()),
        ("spoken", pa.int32()),  # the row of references.parquet
        ("t0_ns", pa.int64()),
        ("lane", pa.int32()),
        ("speed", pa.float64()),
        ("scored", pa.bool_()),
        ("delay_ms", pa.int32()),
        ("delay_ms_in_force", pa.int32()),
        ("outcome", pa.string()),
        ("error", pa.string()),
        ("hypothesis", pa.string()),  # null where `hypothesis_is` says how it follows from what was shown
        ("hypothesis_is", pa.int8()),
        ("hypothesis_words", pa.list_(_WORD)),  # texts are null where they are the words of the hypothesis
        ("usage", pa.map_(pa.string(), pa.int64())),
        ("arrival_ns", pa.int64()),
        ("held_ns", pa.list_(pa.int64())),
        ("packets", pa.int64()),  # how many rows of packets.parquet are this stream's
        ("events", pa.int64()),  # how many rows of timeline.parquet are this stream's
    ]
)
_REFERENCES = pa.schema(
    [
        *((name, pa.string()) for name in ("utterance", "reference", "speaker", "language")),
        ("audio_seconds", pa.float64()),
        ("words", pa.list_(_WORD)),
        ("tags", pa.map_(pa.string(), pa.string())),
    ]
)
_PACKETS = pa.schema(
    [
        ("stream", pa.int32()),
        ("due", pa.int64()),  # ticks since t0
        ("late", pa.int64()),  # ticks since due, or since t0 where it was never due
        ("value", pa.float64()),
    ]
)
_TIMELINE = pa.schema(
    [
        ("stream", pa.int32()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("packets", pa.int64()),  # how many packets stand between the event before and this one
        ("after", pa.int64()),  # ticks since the last packet before it was due, since t0 before the first
        ("due", pa.int64()),  # ticks since t0
        ("value", pa.float64()),
        ("text", pa.string()),
        ("is_hypothesis", pa.bool_()),  # the text, then null, is the stream's hypothesis
    ]
)
_STORED, _JOINED, _STRIPPED = (
    0,
    1,
    2,
)  # the hypothesis is written down; is the appended texts joined; the same, stripped
_KINDS = {kind: code for code, kind in enumerate(Kind)}
_KIND_NAMES = pa.array([kind.value for kind in Kind])
_COMPRESSION = {"compression": "zstd", "compression_level": 12, "write_statistics": False, "data_page_size": 1 << 24}


def create(root: Path, config: RunConfig, created: datetime | None = None) -> Path:
    """Makes an empty run folder ``<UTC>-<engine>-<dataset>-c<N>-d<ms>`` under ``root``; its name is the run's id.

    A name that is taken gets ``-2``, ``-3`` and so on behind it. ``created`` is now unless given.
    """
    moment = (created or datetime.now(UTC)).astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    delay = "own" if config.delay_ms is None else str(config.delay_ms)
    parts = (moment, config.engine, config.dataset, f"c{config.concurrency}", f"d{delay}")
    name = "-".join(re.sub(r"[^A-Za-z0-9._-]+", "_", part).strip("._-") or "unnamed" for part in parts)
    root.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise StoreError(f"{root} has a thousand runs called {name}; clear some away")


def write_run(folder: Path, run: Run) -> None:
    """Writes run.json, whole or not at all. Call it at the start with ``complete`` false and again at the end."""
    write_json(folder / "run.json", run)


def read_run(folder: Path) -> Run:
    """Raises StoreError when the folder has no readable run.json or a later version wrote it."""
    path = folder / "run.json"
    data = _versioned(path, SCHEMA)
    config = data.get("config")
    if isinstance(config, dict) and config.get("speed", 1.0) is None:
        config["speed"] = math.inf  # JSON has no infinity: an unpaced run has null there
    return _converted(path, data, Run)


def write_json(path: Path, value: msgspec.Struct) -> None:
    """Writes ``value`` as indented JSON, whole or not at all."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[_Struct], newest: int) -> _Struct:
    """Reads what `write_json` wrote, of schema ``newest`` at most.

    Raises:
        StoreError: no such file, not that JSON, or a schema later than ``newest``.
    """
    return _converted(path, _versioned(path, newest), kind)


def _versioned(path: Path, newest: int) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; is {path.parent} a run folder?") from None
    except msgspec.DecodeError as error:
        raise StoreError(f"{path} is not the JSON it should be: {error}") from error
    schema = data.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise StoreError(f"{path} has no schema number: it was not written by Earmark")
    if schema > newest:
        raise StoreError(
            f"{path} has schema {schema}, this Earmark knows {newest} and older: update Earmark to read it"
        )
    return data


def _converted(path: Path, data: dict[str, Any], kind: type[_Struct]) -> _Struct:
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise StoreError(f"{path} cannot be read as {kind.__name__}: {error}") from error


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces ``path`` by ``data`` in one step: a reader sees the old file or the new one, never a part."""
    with _replacing(path) as temporary:
        temporary.write_bytes(data)


class _replacing:  # noqa: N801 - reads as a statement
    """A temporary path beside ``path`` that takes its place when the block ends well and vanishes when it does not."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        os.close(handle)
        self._temporary = Path(name)
        return self._temporary

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is not None:
            self._temporary.unlink(missing_ok=True)
            return
        with self._temporary.open("rb") as written:
            os.fsync(written.fileno())
        self._temporary.chmod(0o644)
        self._temporary.replace(self._path)


def write_records(folder: Path, records: Sequence[StreamRecord]) -> None:
    """Writes timeline.parquet (a row per event), packets.parquet (a row per packet), references.parquet (a row per utterance with
    what was said) and streams.parquet (a row per record), all in the records' order.

    streams.parquet comes last: it says how many rows of the others each stream has, so a folder with it is whole.
    """
    numbers = {record.stream for record in records}
    if len(numbers) != len(records):
        raise ValueError("two records have the same stream number; every stream of a run needs its own")
    with (
        _replacing(folder / "timeline.parquet") as timeline,
        _replacing(folder / "packets.parquet") as packets,
        pq.ParquetWriter(
            timeline,
            _with_schema_number(_TIMELINE, RECORDED_SCHEMA),
            use_dictionary=["kind", "value", "text", "packets"],
            column_encoding={
                **dict.fromkeys(("stream", "due"), "DELTA_BINARY_PACKED"),
                "after": "BYTE_STREAM_SPLIT",
            },
            **_COMPRESSION,
        ) as timeline_writer,
        pq.ParquetWriter(
            packets,
            _with_schema_number(_PACKETS, RECORDED_SCHEMA),
            use_dictionary=["stream", "due", "value"],
            column_encoding={"late": "BYTE_STREAM_SPLIT"},
            **_COMPRESSION,
        ) as packets_writer,
    ):
        for batch in _batches(records):
            timeline_writer.write_batch(_event_batch(batch))
            packets_writer.write_batch(_packet_batch(batch))
    spoken, references = _references(records)
    _write_table(folder / "references.parquet", pa.Table.from_pylist(references, schema=_REFERENCES), RECORDED_SCHEMA)
    rows = [_stream_row(record, row) for record, row in zip(records, spoken, strict=True)]
    table = pa.Table.from_pylist(rows, schema=_STREAMS)
    plain = {"stream": "DELTA_BINARY_PACKED", "t0_ns": "DELTA_BINARY_PACKED", "hypothesis": "DELTA_LENGTH_BYTE_ARRAY"}
    _write_table(folder / "streams.parquet", table, RECORDED_SCHEMA, plain)


def _batches(records: Iterable[StreamRecord]) -> Iterator[list[StreamRecord]]:
    """Records of about `ENTRIES_BY_GROUP` entries in all, so that memory stays bounded."""
    waiting: list[StreamRecord] = []
    size = 0
    for record in records:
        waiting.append(record)
        size += len(record.entries)
        if size >= ENTRIES_BY_GROUP:
            yield waiting
            waiting, size = [], 0
    yield waiting


def _ticks(span_ns: int) -> int:
    return (span_ns + TICK_NS // 2) // TICK_NS


def _is_plain_packet(entry: Entry) -> bool:
    """One of packets.parquet, which has no texts; no packet has one, and should one have, it is an event."""
    return entry.kind is Kind.PACKET and entry.text is None


def _packet_batch(records: Sequence[StreamRecord]) -> Any:
    streams, dues, lates, values = [], [], [], []
    for record in records:
        for entry in filter(_is_plain_packet, record.entries):
            due = None if entry.due_ns is None else _ticks(entry.due_ns - record.t0_ns)
            streams.append(record.stream)
            dues.append(due)
            lates.append(_ticks(entry.t_ns - record.t0_ns) - (due or 0))
            values.append(entry.value)
    columns = [
        pa.array(column, field.type) for column, field in zip((streams, dues, lates, values), _PACKETS, strict=True)
    ]
    return pa.record_batch(columns, schema=_with_schema_number(_PACKETS, RECORDED_SCHEMA))


def _event_batch(records: Sequence[StreamRecord]) -> Any:
    rows: list[tuple[Any, ...]] = []
    for record in records:
        packets = base = 0  # since the event before; when the latest of all was due
        for entry in record.entries:
            due = None if entry.due_ns is None else _ticks(entry.due_ns - record.t0_ns)
            if _is_plain_packet(entry):
                packets, base = packets + 1, due or 0
                continue
            after = _ticks(entry.t_ns - record.t0_ns) - base
            same = entry.kind is Kind.FINAL and entry.text == record.hypothesis
            text = None if same else entry.text
            rows.append((record.stream, _KINDS[entry.kind], packets, after, due, entry.value, text, same))
            packets = 0
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(_TIMELINE)
    arrays = [
        pa.DictionaryArray.from_arrays(pa.array(column, pa.int8()), _KIND_NAMES)
        if field.name == "kind"
        else pa.array(column, field.type)
        for column, field in zip(columns, _TIMELINE, strict=True)
    ]
    return pa.record_batch(arrays, schema=_with_schema_number(_TIMELINE, RECORDED_SCHEMA))


def _references(records: Iterable[StreamRecord]) -> tuple[list[int], list[dict[str, Any]]]:
    """Which row each record's reference is, and the rows: one for all records that say the same."""
    rows: list[dict[str, Any]] = []
    known: dict[Any, int] = {}
    spoken = []
    for record in records:
        key = (
            *(getattr(record, name) for name in ("utterance", "reference", "speaker", "language", "audio_seconds")),
            record.words,
            tuple(record.tags.items()),
        )
        if key not in known:
            known[key] = len(rows)
            row: dict[str, Any] = {name: getattr(record, name) for name in _REFERENCES.names}
            row["words"] = None if record.words is None else [msgspec.structs.asdict(word) for word in record.words]
            row["tags"] = list(record.tags.items())
            rows.append(row)
        spoken.append(known[key])
    return spoken, rows


def _stream_row(record: StreamRecord, spoken: int) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in _STREAMS.names if name in StreamRecord.__slots__}
    row["spoken"] = spoken
    row["hypothesis_is"] = _how_it_follows(record)
    if row["hypothesis_is"] != _STORED:
        row["hypothesis"] = None
    told = [word.text for word in record.hypothesis_words] != record.hypothesis.split()
    row["hypothesis_words"] = [
        {"text": word.text if told else None, "start": word.start, "end": word.end} for word in record.hypothesis_words
    ]
    row["outcome"] = record.outcome.value
    row["usage"] = list(record.usage.items())
    row["packets"] = sum(map(_is_plain_packet, record.entries))
    row["events"] = len(record.entries) - row["packets"]
    return row


def _how_it_follows(record: StreamRecord) -> int:
    joined = _appended(record.entries)
    return _JOINED if record.hypothesis == joined else _STRIPPED if record.hypothesis == joined.strip() else _STORED


def _appended(entries: Iterable[Entry]) -> str:
    return "".join(entry.text or "" for entry in entries if entry.kind is Kind.APPENDED)


def read_records(folder: Path) -> list[StreamRecord]:
    """The records as they were written, entries and order included, times to `TICK_NS`."""
    return list(iter_records(folder))


def iter_records(folder: Path) -> Iterator[StreamRecord]:
    """The records one by one; memory holds one row group of the timeline, not all its entries as objects.

    Raises:
        StoreError: a file is missing, is not ours, comes from a later version, or they do not belong together.
    """
    streams = _open(folder / "streams.parquet", RECORDED_SCHEMA)
    if _schema_number(streams) == 1:
        yield from _iter_records_1(folder, streams)
        return
    references = [
        {**row, "words": _timed(row["words"]), "tags": dict(row["tags"])}
        for row in _open(folder / "references.parquet", RECORDED_SCHEMA).read().to_pylist()
    ]
    packets = _Rows(folder / "packets.parquet", _PACKETS.names)
    events = _Rows(folder / "timeline.parquet", _TIMELINE.names)
    for group in range(streams.num_row_groups):
        for row in streams.read_row_group(group).to_pylist():
            numbers = [row.pop(name) for name in ("packets", "events")]
            how, words, spoken = (row.pop(name) for name in ("hypothesis_is", "hypothesis_words", "spoken"))
            if not 0 <= spoken < len(references):
                raise StoreError(f"{folder}: references.parquet and streams.parquet do not belong together; {_CUT_OFF}")
            usage, outcome = dict(row.pop("usage")), Outcome(row.pop("outcome"))
            record = StreamRecord(**references[spoken], **row, usage=usage, outcome=outcome)
            sent, told = (
                rows.take(count, record.stream) for rows, count in zip((packets, events), numbers, strict=True)
            )
            hypothesis = record.hypothesis
            if how != _STORED:
                hypothesis = "".join(text or "" for _, kind, *_, text, _ in told if kind == Kind.APPENDED)
            record.hypothesis = hypothesis.strip() if how == _STRIPPED else hypothesis
            record.entries = list(_merged(record, sent, told))
            record.hypothesis_words = _words_of(record.hypothesis, words)
            yield record


_CUT_OFF = "the run was cut off while it was written"


class _Rows:
    """The rows of a table in order, so many at a time."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._path, self._names = path, names
        self._rows = self._read(_open(path, RECORDED_SCHEMA))

    def _read(self, file: Any) -> Iterator[tuple[Any, ...]]:
        for batch in file.iter_batches(batch_size=1 << 16):
            yield from zip(*(batch.column(name).to_pylist() for name in self._names), strict=True)

    def take(self, count: int, stream: int) -> list[tuple[Any, ...]]:
        """The next ``count`` rows, which must be those of the stream."""
        rows = list(islice(self._rows, count))
        if len(rows) < count or any(row[0] != stream for row in rows):
            raise StoreError(
                f"{self._path} and streams.parquet do not belong together (at stream {stream}); {_CUT_OFF}"
            )
        return rows


_KIND_OF = {kind.value: kind for kind in Kind}


def _merged(record: StreamRecord, packets: list[tuple[Any, ...]], events: list[tuple[Any, ...]]) -> Iterator[Entry]:
    """The entries of a stream in the order in which they were recorded."""
    t0_ns, base, given = record.t0_ns, 0, 0

    def until(place: int) -> Iterator[Entry]:
        nonlocal base, given
        for _, due, late, value in packets[given:place]:
            base = due or 0
            due_ns = None if due is None else t0_ns + due * TICK_NS
            yield Entry(t0_ns + (base + late) * TICK_NS, Kind.PACKET, due_ns, value)
        given = place

    for _, kind, between, after, due, value, text, is_hypothesis in events:
        if between:
            yield from until(given + between)
        due_ns = None if due is None else t0_ns + due * TICK_NS
        shown = record.hypothesis if is_hypothesis else text
        yield Entry(t0_ns + (base + after) * TICK_NS, _KIND_OF[kind], due_ns, value, shown)
    yield from until(len(packets))


def _timed(words: list[dict[str, Any]] | None) -> tuple[TimedWord, ...] | None:
    return None if words is None else tuple(TimedWord(**word) for word in words)


def _words_of(hypothesis: str, words: list[dict[str, Any]]) -> tuple[TimedWord, ...]:
    if words and words[0]["text"] is None:
        tokens = hypothesis.split()
        return tuple(TimedWord(text, word["start"], word["end"]) for text, word in zip(tokens, words, strict=True))
    return _timed(words) or ()


def _iter_records_1(folder: Path, streams: Any) -> Iterator[StreamRecord]:
    """Records as the first schema kept them."""
    timeline = _open(folder / "timeline.parquet", RECORDED_SCHEMA)
    if _schema_number(timeline) != 1:
        raise StoreError(f"{folder}: timeline.parquet and streams.parquet do not belong together; {_CUT_OFF}")
    entries = _entries_1(timeline)
    for group in range(streams.num_row_groups):
        for row in streams.read_row_group(group).to_pylist():
            count = row.pop("entries")
            record = StreamRecord(**{**row, **_restored_1(row)})
            for _ in range(count):
                stream, entry = next(entries, (None, None))
                if entry is None or stream != record.stream:
                    raise StoreError(
                        f"{folder}: timeline.parquet and streams.parquet do not belong together (at stream {record.stream}); "
                        f"{_CUT_OFF}"
                    )
                record.entries.append(entry)
            yield record


def _restored_1(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "words": _timed(row["words"]),
        "hypothesis_words": _timed(row["hypothesis_words"]),
        "outcome": Outcome(row["outcome"]),
        "tags": dict(row["tags"]),
        "usage": dict(row["usage"]),
    }


def _entries_1(timeline: Any) -> Iterator[tuple[int, Entry]]:
    for batch in timeline.iter_batches(batch_size=1 << 16):
        columns = (batch.column(name).to_pylist() for name in ("stream", "kind", "t_ns", "due_ns", "value", "text"))
        for stream, kind, t_ns, due_ns, value, text in zip(*columns, strict=True):
            yield stream, Entry(t_ns, _KIND_OF[kind], due_ns, value, text)


def read_timeline(folder: Path) -> Any:
    """Every entry of a run as one Arrow table, for a notebook: stream, kind, t_ns, due_ns, value, text."""
    rows = [
        (record.stream, entry.kind.value, entry.t_ns, entry.due_ns, entry.value, entry.text)
        for record in iter_records(folder)
        for entry in record.entries
    ]
    names = ("stream", "kind", "t_ns", "due_ns", "value", "text")
    types = (pa.int32(), pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.string())
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return pa.table({name: pa.array(column, kind) for name, column, kind in zip(names, columns, types, strict=True)})


def first_packet_seconds(folder: Path) -> dict[int, float]:
    """When the first packet of each stream had left, in seconds from its planned start; without streams that sent none."""
    if _schema_number(_open(folder / "streams.parquet", RECORDED_SCHEMA)) == 1:
        firsts = ((record, record.first(Kind.PACKET)) for record in iter_records(folder))
        return {record.stream: (entry.t_ns - record.t0_ns) / 1e9 for record, entry in firsts if entry is not None}
    found: dict[int, float] = {}
    for batch in _open(folder / "packets.parquet", RECORDED_SCHEMA).iter_batches(columns=["stream", "due", "late"]):
        streams = batch.column("stream").to_numpy(zero_copy_only=False)
        _, places = np.unique(streams, return_index=True)  # packets of a stream are in order of time
        for row in batch.take(pa.array(places)).to_pylist():
            found.setdefault(row["stream"], ((row["due"] or 0) + row["late"]) * TICK_NS / 1e9)
    return found


def read_references(folder: Path) -> dict[str, dict[str, Any]]:
    """What was said in each utterance by its id: reference, speaker, language, audio_seconds, words (`TimedWord`), tags."""
    streams = _open(folder / "streams.parquet", RECORDED_SCHEMA)
    table = streams if _schema_number(streams) == 1 else _open(folder / "references.parquet", RECORDED_SCHEMA)
    rows = table.read(columns=_REFERENCES.names).to_pylist()
    return {row["utterance"]: {**row, "words": _timed(row["words"]), "tags": dict(row["tags"])} for row in rows}


def write_rows(
    path: Path, rows: Sequence[Mapping[str, Any]], schema: Any = None, encodings: Mapping[str, str] | None = None
) -> None:
    """Writes rows as a parquet table; without a schema the columns are those of all rows, ``None`` where a row lacks one.

    ``encodings``: Parquet's encoding of a column (by its path) in place of a dictionary.
    """
    if schema is None:
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
    else:
        table = pa.Table.from_pylist(rows, schema=schema)
    _write_table(path, table, SCHEMA, encodings)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows written by `write_rows`. Raises StoreError as `iter_records` does."""
    rows: list[dict[str, Any]] = _open(path).read().to_pylist()
    return rows


def write_system(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes system.parquet: a row per sample, columns as the rows name them (numbers, strings, ``None``)."""
    write_rows(folder / "system.parquet", rows)


def read_system(folder: Path) -> list[dict[str, Any]]:
    """The samples; an empty list when none were taken."""
    path = folder / "system.parquet"
    return read_rows(path) if path.exists() else []


def _write_table(path: Path, table: Any, schema: int = SCHEMA, encodings: Mapping[str, str] | None = None) -> None:
    table = table.replace_schema_metadata({"earmark_schema": str(schema)})
    encodings = encodings or {}
    dictionary = [path for path in _leaves(table.schema) if path not in encodings]
    with _replacing(path) as temporary:
        pq.write_table(
            table, temporary, use_dictionary=dictionary, column_encoding=dict(encodings) or None, **_COMPRESSION
        )


def _leaves(schema: Any) -> list[str]:
    """The paths by which Parquet names the columns of values, those inside lists included."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty)
    found = pq.ParquetFile(empty).schema
    return [found.column(index).path for index in range(len(found))]


def _with_schema_number(schema: Any, number: int) -> Any:
    return schema.with_metadata({"earmark_schema": str(number)})


def _schema_number(file: Any) -> int:
    return int((file.schema_arrow.metadata or {}).get(b"earmark_schema", b"0"))


def _open(path: Path, newest: int = SCHEMA) -> Any:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; is {path.parent} a run folder with a finished recording?") from None
    except pa.ArrowInvalid as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    schema = _schema_number(file)
    if not 0 < schema <= newest:
        problem = (
            "was not written by Earmark"
            if not schema
            else f"has schema {schema}, this Earmark knows {newest} and older"
        )
        raise StoreError(f"{path} {problem}: update Earmark or pick another run")
    return file
