"""The run folder: what is in it, and how it is written and read."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.words import TimedWord

SCHEMA = 1
ENTRIES_BY_GROUP = 1 << 19
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


class Run(msgspec.Struct):
    """What run.json holds. The folder beside it: timeline.parquet and streams.parquet (recorded), system.parquet (sampled),
    utterances.parquet, scores.json, report.html and summary.md (computed, can be made again from the recorded ones).
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


_WORD = pa.struct([("text", pa.string()), ("start", pa.float64()), ("end", pa.float64())])
_STREAMS = pa.schema(
    [
        ("stream", pa.int32()),
        ("utterance", pa.string()),
        ("t0_ns", pa.int64()),
        ("audio_seconds", pa.float64()),
        ("reference", pa.string()),
        ("speaker", pa.string()),
        ("language", pa.string()),
        ("words", pa.list_(_WORD)),
        ("tags", pa.map_(pa.string(), pa.string())),
        ("lane", pa.int32()),
        ("speed", pa.float64()),
        ("scored", pa.bool_()),
        ("delay_ms", pa.int32()),
        ("delay_ms_in_force", pa.int32()),
        ("outcome", pa.string()),
        ("error", pa.string()),
        ("hypothesis", pa.string()),
        ("hypothesis_words", pa.list_(_WORD)),
        ("usage", pa.map_(pa.string(), pa.int64())),
        ("arrival_ns", pa.int64()),
        ("held_ns", pa.list_(pa.int64())),
        ("entries", pa.int64()),  # how many rows of the timeline are this stream's
    ]
)
_TIMELINE = pa.schema(
    [
        ("stream", pa.int32()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("t_ns", pa.int64()),
        ("due_ns", pa.int64()),
        ("value", pa.float64()),
        ("text", pa.string()),
    ]
)
_KINDS = {kind: code for code, kind in enumerate(Kind)}
_KIND_NAMES = pa.array([kind.value for kind in Kind])


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
    """Writes streams.parquet (a row per record) and timeline.parquet (a row per entry, in the records' order).

    The timeline comes first: streams.parquet says how many entries each stream has, so a folder with it is whole.
    """
    numbers = {record.stream for record in records}
    if len(numbers) != len(records):
        raise ValueError("two records have the same stream number; every stream of a run needs its own")
    with (
        _replacing(folder / "timeline.parquet") as path,
        pq.ParquetWriter(
            path,
            _with_schema_number(_TIMELINE),
            compression="zstd",
            compression_level=9,
            use_dictionary=["kind", "value", "text"],
            column_encoding=dict.fromkeys(("stream", "t_ns", "due_ns"), "DELTA_BINARY_PACKED"),
            write_statistics=False,
        ) as writer,
    ):
        for batch in _batches(records):
            writer.write_batch(batch)
    rows = [_stream_row(record) for record in records]
    _write_table(folder / "streams.parquet", pa.Table.from_pylist(rows, schema=_STREAMS))


def _batches(records: Iterable[StreamRecord]) -> Iterator[Any]:
    """Record batches of the timeline of about `ENTRIES_BY_GROUP` rows, so that memory stays bounded."""
    waiting: list[StreamRecord] = []
    size = 0
    for record in records:
        waiting.append(record)
        size += len(record.entries)
        if size >= ENTRIES_BY_GROUP:
            yield _batch(waiting)
            waiting, size = [], 0
    yield _batch(waiting)


def _batch(records: Sequence[StreamRecord]) -> Any:
    entries = [entry for record in records for entry in record.entries]
    codes = pa.array([_KINDS[entry.kind] for entry in entries], pa.int8())
    columns = [
        pa.array([record.stream for record in records for _ in record.entries], pa.int32()),
        pa.DictionaryArray.from_arrays(codes, _KIND_NAMES),
        pa.array([entry.t_ns for entry in entries], pa.int64()),
        pa.array([entry.due_ns for entry in entries], pa.int64()),
        pa.array([entry.value for entry in entries], pa.float64()),
        pa.array([entry.text for entry in entries], pa.string()),
    ]
    return pa.record_batch(columns, schema=_with_schema_number(_TIMELINE))


def _stream_row(record: StreamRecord) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(record, name) for name in _STREAMS.names}
    row["words"] = None if record.words is None else [msgspec.structs.asdict(word) for word in record.words]
    row["hypothesis_words"] = [msgspec.structs.asdict(word) for word in record.hypothesis_words]
    row["outcome"] = record.outcome.value
    row["tags"], row["usage"] = list(record.tags.items()), list(record.usage.items())
    row["entries"] = len(record.entries)
    return row


def read_records(folder: Path) -> list[StreamRecord]:
    """The records as they were written, entries and order included."""
    return list(iter_records(folder))


def iter_records(folder: Path) -> Iterator[StreamRecord]:
    """The records one by one; memory holds one row group of the timeline, not all its entries as objects.

    Raises:
        StoreError: a file is missing, is not ours, comes from a later version, or the two do not belong together.
    """
    streams = _open(folder / "streams.parquet")
    timeline = _open(folder / "timeline.parquet")
    entries = _entries(timeline)
    for group in range(streams.num_row_groups):
        for row in streams.read_row_group(group).to_pylist():
            count = row.pop("entries")
            record = StreamRecord(**{**row, **_restored(row)})
            for _ in range(count):
                stream, entry = next(entries, (None, None))
                if entry is None or stream != record.stream:
                    raise StoreError(
                        f"{folder}: timeline.parquet and streams.parquet do not belong together (at stream {record.stream}); "
                        "the run was cut off while it was written"
                    )
                record.entries.append(entry)
            yield record


def _restored(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "words": None if row["words"] is None else tuple(TimedWord(**word) for word in row["words"]),
        "hypothesis_words": tuple(TimedWord(**word) for word in row["hypothesis_words"]),
        "outcome": Outcome(row["outcome"]),
        "tags": dict(row["tags"]),
        "usage": dict(row["usage"]),
    }


def _entries(timeline: Any) -> Iterator[tuple[int, Entry]]:
    kinds = {kind.value: kind for kind in Kind}
    for batch in timeline.iter_batches(batch_size=1 << 16):
        columns = (batch.column(name).to_pylist() for name in ("stream", "kind", "t_ns", "due_ns", "value", "text"))
        for stream, kind, t_ns, due_ns, value, text in zip(*columns, strict=True):
            yield stream, Entry(t_ns, kinds[kind], due_ns, value, text)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], schema: Any = None) -> None:
    """Writes rows as a parquet table; without a schema the columns are those of all rows, ``None`` where a row lacks one."""
    if schema is None:
        names = dict.fromkeys(name for row in rows for name in row)
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
    else:
        table = pa.Table.from_pylist(rows, schema=schema)
    _write_table(path, table)


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


def _write_table(path: Path, table: Any) -> None:
    table = table.replace_schema_metadata({"earmark_schema": str(SCHEMA)})
    with _replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=9)


def _with_schema_number(schema: Any) -> Any:
    return schema.with_metadata({"earmark_schema": str(SCHEMA)})


def _open(path: Path) -> Any:
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; is {path.parent} a run folder with a finished recording?") from None
    except pa.ArrowInvalid as error:
        raise StoreError(f"{path} cannot be read: {error}") from error
    schema = int((file.schema_arrow.metadata or {}).get(b"earmark_schema", b"0"))
    if not 0 < schema <= SCHEMA:
        problem = (
            "was not written by Earmark"
            if not schema
            else f"has schema {schema}, this Earmark knows {SCHEMA} and older"
        )
        raise StoreError(f"{path} {problem}: update Earmark or pick another run")
    return file
