"""A run folder gives back what was put in, or says why it cannot."""

from __future__ import annotations

import math
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import store
from harness.store import Run, RunConfig, StoreError
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from tests.harness.streams import appended, at, final, per_second, record
from wire.words import TimedWord

CONFIG = RunConfig("spoken-en", "ab12", "yap", "started", "sphinx", "", 8, 480, 80, 1.0, 7, "basic/1")
RUN = Run(store.SCHEMA, "id", "2026-11-20T10:00:00Z", CONFIG, {"git": {"commit": "c0ffee"}, "cpus": 2})

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
SECONDS = st.floats(allow_nan=False, width=64)
NS = st.integers(-(2**62), 2**62)
ENTRIES = st.builds(Entry, NS, st.sampled_from(Kind), st.none() | NS, st.none() | SECONDS, st.none() | TEXT)
WORD_TUPLES = st.lists(st.builds(TimedWord, TEXT, SECONDS, SECONDS), max_size=3).map(tuple)
DELAYS = st.none() | st.integers(0, 10_000)


@st.composite
def records(draw: st.DrawFn) -> list[StreamRecord]:
    return [
        StreamRecord(
            stream=stream,
            utterance=draw(TEXT),
            t0_ns=draw(NS),
            audio_seconds=draw(SECONDS),
            reference=draw(TEXT),
            speaker=draw(TEXT),
            language=draw(TEXT),
            words=draw(st.none() | WORD_TUPLES),
            tags=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
            lane=draw(st.integers(0, 1000)),
            speed=draw(SECONDS),
            scored=draw(st.booleans()),
            delay_ms=draw(DELAYS),
            delay_ms_in_force=draw(DELAYS),
            outcome=draw(st.sampled_from(Outcome)),
            error=draw(st.none() | TEXT),
            hypothesis=draw(TEXT),
            hypothesis_words=draw(WORD_TUPLES),
            usage=draw(st.dictionaries(TEXT, st.integers(-(2**62), 2**62), max_size=2)),
            entries=draw(st.lists(ENTRIES, max_size=6)),
        )
        for stream in draw(st.lists(st.integers(0, 2**31 - 1), max_size=4, unique=True))
    ]


@settings(max_examples=60, deadline=None)
@given(records())
def test_records_come_back_exactly(written: list[StreamRecord]) -> None:
    with tempfile.TemporaryDirectory() as name:
        store.write_records(Path(name), written)
        assert store.read_records(Path(name)) == written


def test_records_larger_than_a_row_group_come_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ENTRIES_BY_GROUP", 10)
    written = [
        record(None, *(appended(k, f"w{k}") for k in range(count)), stream=stream)
        for stream, count in enumerate((7, 0, 12, 1, 30, 0))
    ]
    store.write_records(tmp_path, written)
    assert pq.ParquetFile(tmp_path / "timeline.parquet").num_row_groups > 1
    assert store.read_records(tmp_path) == written


def test_the_timeline_has_the_columns_that_notebooks_read(tmp_path: Path) -> None:
    packet = Entry(at(0.09), Kind.PACKET, due_ns=at(0.08), value=0.08)
    store.write_records(tmp_path, [record(None, packet, final(1, "yes"), stream=4)])
    rows = pq.read_table(tmp_path / "timeline.parquet").to_pylist()
    assert rows == [
        {"stream": 4, "kind": "packet", "t_ns": at(0.09), "due_ns": at(0.08), "value": 0.08, "text": None},
        {"stream": 4, "kind": "final", "t_ns": at(1), "due_ns": None, "value": None, "text": "yes"},
    ]


def test_two_records_of_one_stream_number_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="same stream number"):
        store.write_records(tmp_path, [record(None), record(None)])
    assert list(tmp_path.iterdir()) == []


def test_run_comes_back(tmp_path: Path) -> None:
    store.write_run(tmp_path, RUN)
    assert store.read_run(tmp_path) == RUN
    assert (tmp_path / "run.json").read_text().startswith('{\n  "schema": 1,')


def test_an_unpaced_run_comes_back_unpaced(tmp_path: Path) -> None:
    unpaced = msgspec.structs.replace(RUN, config=msgspec.structs.replace(CONFIG, speed=math.inf, delay_ms=None))
    store.write_run(tmp_path, unpaced)
    assert store.read_run(tmp_path) == unpaced


def test_system_samples_come_back_with_their_gaps(tmp_path: Path) -> None:
    store.write_system(tmp_path, [{"t_ns": 1, "cpu": 0.5}, {"t_ns": 2, "cpu": None, "gpu": "H200"}])
    assert store.read_system(tmp_path) == [
        {"t_ns": 1, "cpu": 0.5, "gpu": None},
        {"t_ns": 2, "cpu": None, "gpu": "H200"},
    ]


def test_no_system_samples_are_an_empty_list(tmp_path: Path) -> None:
    assert store.read_system(tmp_path) == []
    store.write_system(tmp_path, [])
    assert store.read_system(tmp_path) == []


def test_a_run_is_named_by_when_what_and_how(tmp_path: Path) -> None:
    moment = datetime(2026, 11, 20, 9, 8, 7, tzinfo=UTC)
    first = store.create(tmp_path / "runs", CONFIG, moment)
    assert first.name == "20261120T090807Z-sphinx-spoken-en-c8-d480"
    assert first.is_dir()
    assert store.create(tmp_path / "runs", CONFIG, moment).name == first.name + "-2"


def test_a_name_is_safe_whatever_the_engine_calls_itself(tmp_path: Path) -> None:
    config = msgspec.structs.replace(CONFIG, engine="../Vox tral:4B", dataset="", delay_ms=None)
    folder = store.create(tmp_path, config, datetime(2026, 1, 1, tzinfo=UTC))
    assert folder.parent == tmp_path
    assert folder.name == "20260101T000000Z-Vox_tral_4B-unnamed-c8-down"


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    store.write_records(tmp_path, [record(None, final(1, "kept"), hypothesis="kept")])
    broken = record(None, Entry("no time", Kind.FINAL), stream=1)  # type: ignore[arg-type]
    with pytest.raises((TypeError, ValueError)):
        store.write_records(tmp_path, [broken])
    assert [one.hypothesis for one in store.read_records(tmp_path)] == ["kept"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["streams.parquet", "timeline.parquet"]


def test_a_timeline_of_another_recording_is_noticed(tmp_path: Path) -> None:
    store.write_records(tmp_path, [record(None, final(1, "a"), stream=1)])
    streams = (tmp_path / "streams.parquet").read_bytes()
    store.write_records(tmp_path, [record(None, final(1, "b"), stream=2)])
    (tmp_path / "streams.parquet").write_bytes(streams)
    with pytest.raises(StoreError, match="do not belong together"):
        store.read_records(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"run\.json does not exist"):
        store.read_run(tmp_path)
    with pytest.raises(StoreError, match=r"streams\.parquet does not exist"):
        store.read_records(tmp_path)


def test_a_later_schema_asks_for_an_update(tmp_path: Path) -> None:
    store.write_run(tmp_path, msgspec.structs.replace(RUN, schema=store.SCHEMA + 1))
    with pytest.raises(StoreError, match="schema 2, this Earmark knows 1 and older: update Earmark"):
        store.read_run(tmp_path)
    store.write_records(tmp_path, [record(per_second("one"), final(1, "one"))])
    for name in ("streams.parquet", "timeline.parquet"):
        table = pq.read_table(tmp_path / name)
        pq.write_table(table.replace_schema_metadata({"earmark_schema": "2"}), tmp_path / name)
        with pytest.raises(StoreError, match=f"{name} has schema 2"):
            store.read_records(tmp_path)
        pq.write_table(table, tmp_path / name)


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{not json")
    with pytest.raises(StoreError, match="is not the JSON it should be"):
        store.read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"name": "other"}')
    with pytest.raises(StoreError, match="no schema number"):
        store.read_run(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": 1}')
    with pytest.raises(StoreError, match="cannot be read as Run: Object missing required field"):
        store.read_run(tmp_path)
    (tmp_path / "streams.parquet").write_text("nonsense")
    with pytest.raises(StoreError, match="cannot be read"):
        store.read_records(tmp_path)


def test_packets_of_many_streams_take_few_bytes(tmp_path: Path) -> None:
    # Times with 300 us of jitter at 1 ns hold 18 random bits; everything else must cost next to nothing.
    chance = random.Random(1)
    written = [
        record(
            None,
            *(
                Entry(at(0.08 * k) + chance.randrange(300_000), Kind.PACKET, at(0.08 * k), 0.08 * k)
                for k in range(1, 1000)
            ),
            stream=stream,
        )
        for stream in range(20)
    ]
    store.write_records(tmp_path, written)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size / (20 * 999) < 4.5
