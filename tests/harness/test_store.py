"""A run folder gives back what was put in, or says why it cannot."""

from __future__ import annotations

import dataclasses
import math
import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pyarrow as pa
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

RECORDED = ("packets.parquet", "references.parquet", "streams.parquet", "timeline.parquet")
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
            arrival_ns=draw(st.none() | NS),
            held_ns=draw(st.lists(st.integers(0, 2**62), max_size=3)),
            entries=draw(st.lists(ENTRIES, max_size=6)),
        )
        for stream in draw(st.lists(st.integers(0, 2**31 - 1), max_size=4, unique=True))
    ]


@settings(max_examples=60, deadline=None)
@given(records())
def test_records_come_back_with_times_to_a_tick(written: list[StreamRecord]) -> None:
    with tempfile.TemporaryDirectory() as name:
        store.write_records(Path(name), written)
        found = store.read_records(Path(name))
        store.write_records(Path(name), found)
        assert store.read_records(Path(name)) == found  # what was rounded once stays as it is
    assert [untimed(one) for one in found] == [untimed(one) for one in written]
    for one, other in zip(found, written, strict=True):
        for entry, original in zip(one.entries, other.entries, strict=True):
            assert abs(entry.t_ns - original.t_ns) <= store.TICK_NS // 2
            assert (entry.due_ns is None) == (original.due_ns is None)
            assert abs((entry.due_ns or 0) - (original.due_ns or 0)) <= store.TICK_NS // 2


def untimed(record: StreamRecord) -> StreamRecord:
    return dataclasses.replace(
        record, entries=[dataclasses.replace(entry, t_ns=0, due_ns=None) for entry in record.entries]
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(NS, min_size=2, max_size=6).map(sorted), NS, st.lists(st.booleans(), min_size=6, max_size=6))
def test_rounding_never_turns_the_order_of_times_round(times: list[int], t0_ns: int, sent: list[bool]) -> None:
    entries = [
        Entry(t_ns, Kind.PACKET if packet else Kind.TENTATIVE, t_ns - 7 if packet else None)
        for t_ns, packet in zip(times, sent, strict=False)
    ]
    with tempfile.TemporaryDirectory() as name:
        store.write_records(Path(name), [dataclasses.replace(record(None), t0_ns=t0_ns, entries=entries)])
        found = [entry.t_ns for entry in store.read_records(Path(name))[0].entries]
    assert found == sorted(found)


def test_a_schedule_on_the_grid_comes_back_exactly(tmp_path: Path) -> None:
    # Planned times count from t0, which may lie anywhere: 80 ms are 4000 ticks.
    entries = [Entry(at(0.08 * k) + 12_345, Kind.PACKET, at(0.08 * k), 0.08 * k) for k in range(1, 50)]
    written = dataclasses.replace(record(None), t0_ns=at(0), entries=entries)
    store.write_records(tmp_path, [written])
    assert [one.due_ns for one in store.read_records(tmp_path)[0].entries] == [one.due_ns for one in entries]


def test_a_run_of_the_first_schema_is_read(tmp_path: Path) -> None:
    words = [{"text": "one", "start": 0.5, "end": 1.0}]
    stream = {
        "stream": 3, "utterance": "u", "t0_ns": at(0), "audio_seconds": 2.0, "reference": "one", "speaker": "s",
        "language": "en", "words": words, "tags": [("kind", "short")], "lane": 1, "speed": 1.0, "scored": True,
        "delay_ms": 480, "delay_ms_in_force": None, "outcome": "ok", "error": None, "hypothesis": "one",
        "hypothesis_words": [], "usage": [], "entries": 2,
    }  # fmt: skip
    named = {"earmark_schema": "1"}
    table = pa.Table.from_pylist(
        [stream],
        schema=pa.schema(
            [
                *((name, pa.infer_type([stream[name]])) for name in stream if name not in ("tags", "usage")),
                ("tags", pa.map_(pa.string(), pa.string())),
                ("usage", pa.map_(pa.string(), pa.int64())),
            ]
        ),
    )
    pq.write_table(table.replace_schema_metadata(named), tmp_path / "streams.parquet")
    timeline = pa.table(
        {
            "stream": [3, 3],
            "kind": ["packet", "final"],
            "t_ns": [at(0.0801234), at(1)],
            "due_ns": [at(0.08), None],
            "value": [0.08, None],
            "text": [None, "one"],
        }
    )
    pq.write_table(timeline.replace_schema_metadata(named), tmp_path / "timeline.parquet")
    (found,) = store.read_records(tmp_path)
    assert found.words == (TimedWord("one", 0.5, 1.0),)
    assert (found.hypothesis, found.tags, found.delay_ms, found.lane) == ("one", {"kind": "short"}, 480, 1)
    assert found.entries == [
        Entry(at(0.0801234), Kind.PACKET, at(0.08), 0.08),
        Entry(at(1), Kind.FINAL, text="one"),
    ]
    assert store.read_references(tmp_path)["u"]["words"] == found.words
    assert store.first_packet_seconds(tmp_path) == {3: pytest.approx(0.0801234)}


def test_when_the_first_packet_left_is_told_of_every_stream_that_sent_one(tmp_path: Path) -> None:
    def sent(stream: int, *late_seconds: float) -> StreamRecord:
        entries = [Entry(at(0.08 * k + late), Kind.PACKET, at(0.08 * k)) for k, late in enumerate(late_seconds, 1)]
        return dataclasses.replace(record(None, stream=stream), t0_ns=at(0), entries=entries)

    store.write_records(tmp_path, [sent(4, 0.01, 0.002), sent(2), sent(0, 0.003)])
    assert store.first_packet_seconds(tmp_path) == {4: pytest.approx(0.09), 0: pytest.approx(0.083)}


def test_what_was_said_is_written_once_for_all_streams_that_say_it(tmp_path: Path) -> None:
    same = [record(per_second("one two"), final(3, "one too"), stream=k) for k in range(5)]
    other = record(per_second("one two"), final(3, "one two"), stream=9, speaker="else")
    store.write_records(tmp_path, [*same, other])
    assert pq.ParquetFile(tmp_path / "references.parquet").metadata.num_rows == 2
    assert store.read_records(tmp_path) == [*same, other]


@pytest.mark.parametrize("shown", [[], ["one", " two"], [" one", " two"], ["one two", " three"]])
def test_a_hypothesis_comes_back_however_it_was_shown(tmp_path: Path, shown: list[str]) -> None:
    times = (TimedWord("one", 0.1, 0.4), TimedWord("two", 0.4, 0.9))
    entries = [*(appended(k + 1, text) for k, text in enumerate(shown)), final(5, "one two")]
    written = [
        record(None, *entries, stream=0, hypothesis_words=times),
        record(None, *entries, stream=1, hypothesis_words=(TimedWord("One,", 0.1, 0.4), times[1])),
    ]
    store.write_records(tmp_path, written)
    assert store.read_records(tmp_path) == written


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
    assert store.read_timeline(tmp_path).to_pylist() == [
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
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(RECORDED)


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
    for name in ("streams.parquet", "timeline.parquet", "packets.parquet", "references.parquet"):
        table = pq.read_table(tmp_path / name)
        pq.write_table(table.replace_schema_metadata({"earmark_schema": "3"}), tmp_path / name)
        with pytest.raises(StoreError, match=f"{name} has schema 3"):
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
    # 300 us of jitter in steps of 20 us are 15 values alike, 3.9 bits; everything else must cost next to nothing.
    chance = random.Random(1)
    written = [
        record(
            None,
            *(
                Entry(at(0.08 * k) + chance.randrange(300_000), Kind.PACKET, at(0.08 * k), 0.08 * k)
                for k in range(1, 201)
            ),
            stream=stream,
        )
        for stream in range(200)
    ]
    store.write_records(tmp_path, written)
    assert (tmp_path / "packets.parquet").stat().st_size / (200 * 200) < 0.75
