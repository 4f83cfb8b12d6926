"""What the notebooks on capacity, history and protocols read, and what they conclude from it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from harness import example, gate, overhead
from harness.capacity import reading
from harness.gate import history
from harness.report import ladders
from harness.report.studies import Table
from harness.statistics import Difference
from harness.store import StoreError
from tests.harness.made_runs import make


def rise(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high, 0.5, 20, None, "test")


def test_the_knee_lies_between_the_last_rung_within_and_the_first_beyond() -> None:
    ladder = [(2, rise(-0.01, 0.01)), (4, rise(0.0, 0.05)), (6, rise(0.05, 0.2)), (8, rise(0.3, 0.4)), (12, rise(1, 2))]
    assert reading.knee(ladder) == (4, 8)
    assert reading.knee(ladder[:2]) == (4, None)
    assert reading.knee(ladder[3:]) == (None, 8)
    assert reading.knee([]) == (None, None)


def test_a_rung_that_recovers_is_no_knee() -> None:
    assert reading.knee([(2, rise(0.2, 0.3)), (4, rise(0.0, 0.05)), (8, rise(0.3, 0.4))]) == (None, 8)


def test_a_rise_without_an_interval_tells_nothing() -> None:
    unsure = Difference(0.5, None, None, None, 3, None, "test")
    assert reading.knee([(2, unsure), (4, unsure)]) == (None, None)


@pytest.fixture(scope="module")
def search(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capacity")
    idle = make(folder / "runs", concurrency=1, utterances=24, overhead=0.05)
    loaded = make(folder / "runs", concurrency=6, utterances=24, noise_seed=2, overhead=0.45)
    ladder = [
        {"streams": 1, "purpose": "idle", "verdict": "holds", "reasons": [], "run": idle.name, "word_p95": 0.7},
        {
            "streams": 6,
            "purpose": "search",
            "verdict": "fails",
            "reasons": ["p95"],
            "run": loaded.name,
            "word_p95": 1.1,
        },
        {"streams": 9, "purpose": "search", "verdict": "fails", "reasons": ["the server died"], "run": None},
    ]
    told = {
        "schema": 1, "complete": True, "sentence": "One stream.", "place": "2 cores", "streams": 1, "above": 6, "limited_by": "slo",
        "notes": [],
        "limits": {"word_p95": 0.9, "errors": 0.01, "drift": 0.01, "wer": 0.0}, "delay_ms": 480, "ladder": ladder,
    }  # fmt: skip
    (folder / "capacity.json").write_text(json.dumps(told))
    return folder


def test_a_search_is_read_back_with_the_rise_that_its_runs_show(search: Path) -> None:
    found = reading.read(search)
    [(streams, change)] = reading.rises(found)
    assert streams == 6
    assert change.low is not None
    assert change.high is not None
    assert change.low < 0.4 < change.high  # what the loaded run was made slower by
    rungs = ladders.table(found.ladder).frame()
    assert list(rungs.index) == ["1", "6", "9"]
    assert "the server died" in rungs["remarks"]["9"]
    assert any("rises by more than 100 ms from 6 streams on" in sentence for sentence in reading.conclude(found))
    ladders.figure(found.ladder).savefig(search / "ladder.png")


def test_a_folder_without_a_search_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="earmark capacity --out"):
        reading.read(tmp_path)


def test_a_change_that_was_drawn_in_is_found_where_it_is_and_no_other(search: Path) -> None:
    run = next((search / "runs").glob("*-c1-*"))
    [record], _ = gate.read([run], "run")
    found = {series.metric: series for series in gate.since_when(example.history(record))}
    [level] = found["word_p50"].levels
    assert level.change.at == 10
    shift = found["word_p50"].shift(0)
    assert shift.low is not None
    assert shift.high is not None
    assert shift.low <= 0.2 <= shift.high
    assert found["wer"].levels == []
    assert "since drawn-11" in found["word_p50"].sentences()[0]


def test_a_short_history_cannot_tell_and_says_how_many_runs_it_takes(search: Path) -> None:
    run = next((search / "runs").glob("*-c1-*"))
    records, _ = gate.read([run], "run")
    series = gate.since_when(gate.collected(search / "none.parquet", [*records, *records]))
    assert {len(one.values) for one in series} == {1}
    assert f"{history.shortest_that_tells()} are the fewest" in history.conclude(series)[0]
    long_enough = [float(number >= 5) for number in range(history.shortest_that_tells())]
    assert gate.since_when(_rows(long_enough))[0].levels
    assert not gate.since_when(_rows(long_enough[1:]))[0].levels


def _rows(values: list[float]) -> list[dict[str, object]]:
    keys = dict.fromkeys((*history.KEY, "cell", "commit"), "")
    return [
        {**keys, "created": f"{n:03d}", "run": f"{n}", "metric": "word_p50", "value": v} for n, v in enumerate(values)
    ]


def test_baselines_are_runs_of_the_day_that_their_names_say(search: Path, tmp_path: Path) -> None:
    made = gate.save([next((search / "runs").glob("*-c1-*"))])
    kept = gate.opened(made)
    older = [msgspec.structs.replace(cell, created="", run="20300506T070809Z-x") for cell in kept.cells]
    (tmp_path / "old.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(kept, cells=older)))
    cells, left_out = gate.known([], [tmp_path / "old.json"])
    assert (cells[0].created[:10], left_out) == ("2030-05-06", [])


def test_bytes_are_those_of_the_frames_on_the_wire() -> None:
    raw = overhead.upstream("deepgram", 80)  # binary frames of 2560 bytes, a header of 2 + 2 and a mask of 4
    assert raw.bytes_per_second == (2560 + 8) * 12.5
    text = overhead.upstream("realtime", 80)
    assert 1 + 1 / 3 < text.times_pcm < 1.4  # base64 takes four bytes for three


def test_protocols_are_compared_utterance_by_utterance(tmp_path: Path) -> None:
    runs = [
        make(tmp_path / "runs", protocol=name, utterances=24, overhead=cost)
        for name, cost in (("yap", 0.05), ("realtime", 0.25))
    ]
    frame = pd.DataFrame(
        [
            {"study": "s", "outcome": "ok", "valid": True, "complete": True, "harness.protocol": name, "run": run.name}
            for name, run in zip(("yap", "realtime"), runs, strict=True)
        ]
    )
    table = Table(tmp_path / "study.parquet", frame, (overhead.PROTOCOL,), {})
    [pair] = overhead.pairs(table)
    assert pair.name == "realtime less yap"
    [middle] = [bar for bar in overhead.bars([pair]) if bar.label == "word latency p50"]
    assert middle.clear
    assert middle.change.low is not None
    assert middle.change.low > 0.15
    said = overhead.conclude([pair])
    assert any("the same in each of 24 utterances" in sentence for sentence in said if "WER" in sentence)
    assert any("word latency p50 +200" in sentence or "word latency p50 +19" in sentence for sentence in said)
    assert "Cannot tell" in overhead.conclude([])[0]
