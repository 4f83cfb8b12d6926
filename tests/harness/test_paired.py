"""Changes in accuracy between two runs, against counts made by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import bench, paired, store
from harness.paired import LOAD_IDLE, OTHER, STREAM_OFFLINE
from harness.score import read_scores, score
from harness.statistics import Bootstrap
from harness.store import Run, RunConfig
from tests.harness.test_score import CONFIG, stream

QUIET = msgspec.structs.replace(CONFIG, concurrency=1)


def run(folder: Path, config: RunConfig, hypotheses: dict[str, list[str]]) -> Path:
    """Every utterance says "one two three four"; ``hypotheses`` of its repetitions by utterance."""
    folder.mkdir()
    said = [(name, text) for name, texts in hypotheses.items() for text in texts]
    records = [
        stream(number, "one two three four", text, utterance=name, speaker="s")
        for number, (name, text) in enumerate(said)
    ]
    store.write_records(folder, records)
    store.write_run(folder, Run(store.SCHEMA, folder.name, "2026-11-20T10:00:00Z", config, {}, complete=True))
    return folder


RIGHT, ONE_OFF, TWO_OFF = "one two three four", "one two tree four", "one too tree four"


def test_load_less_idle_is_over_the_utterances_of_both(tmp_path: Path) -> None:
    idle = run(tmp_path / "idle", QUIET, {f"u{k}": [RIGHT] for k in range(10)} | {"only-idle": [TWO_OFF]})
    loaded = run(
        tmp_path / "loaded", CONFIG, {f"u{k}": [ONE_OFF if k < 4 else RIGHT] for k in range(10)} | {"new": [TWO_OFF]}
    )
    bench.score_runs([loaded, idle], lambda _: None)
    (found,) = read_scores(loaded).against
    assert (found.run, found.relation, found.differs) == ("idle", LOAD_IDLE, ["concurrency"])
    assert (found.utterances, found.only_here, found.only_there) == (10, 1, 1)
    assert found.wer.value == pytest.approx(4 / 40)
    assert found.wer.low is not None
    assert found.wer.low < 0.1 < (found.wer.high or 0)
    assert found.mapsswe.value == pytest.approx(0.4)  # errors per utterance
    assert found.cer.value == pytest.approx(4 / (10 * len(RIGHT)))  # an "h" lost in each
    assert read_scores(idle).against == []
    assert "WER, load - idle (idle): +10.00" in (loaded / "summary.md").read_text()


def test_repetitions_of_an_utterance_count_by_their_mean(tmp_path: Path) -> None:
    one = run(tmp_path / "one", QUIET, {"a": [RIGHT], "b": [RIGHT, RIGHT]})
    other = run(tmp_path / "other", CONFIG, {"a": [TWO_OFF, RIGHT], "b": [RIGHT]})
    score(one)
    (found,) = score(other, [one]).against
    assert found.wer.value == pytest.approx(1 / 8)


def test_a_run_against_itself_shows_nothing(tmp_path: Path) -> None:
    texts = {f"u{k}": [ONE_OFF if k % 3 else RIGHT] for k in range(12)}
    one, other = run(tmp_path / "one", CONFIG, texts), run(tmp_path / "other", CONFIG, texts)
    score(one)
    (found,) = score(other, [one]).against
    assert (found.relation, found.differs, found.wer.value, found.wer.low, found.wer.high) == (OTHER, [], 0.0, 0.0, 0.0)


def test_scoring_again_keeps_the_comparison(tmp_path: Path) -> None:
    one, other = (run(tmp_path / name, CONFIG, {f"u{k}": [RIGHT] for k in range(8)}) for name in ("one", "other"))
    score(one)
    first = score(other, [one])
    assert score(other) == first


def test_a_run_that_is_not_scored_cannot_be_compared_with(tmp_path: Path) -> None:
    one, other = (run(tmp_path / name, CONFIG, {"u": [RIGHT]}) for name in ("one", "other"))
    with pytest.raises(store.StoreError, match=r"utterances\.parquet does not exist"):
        score(other, [one])


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        ({"concurrency": 8}, {"concurrency": 1}, LOAD_IDLE),
        ({"concurrency": 1}, {"concurrency": 8}, OTHER),
        ({"concurrency": 8, "delay_ms": 960}, {"concurrency": 1}, OTHER),
        ({}, {"speed": math.inf}, STREAM_OFFLINE),
        ({}, {"protocol": "transcriptions", "delay_ms": None}, STREAM_OFFLINE),
        ({"speed": math.inf}, {}, OTHER),
        ({"label": "mine"}, {}, OTHER),
    ],
)
def test_what_a_comparison_says(here: dict[str, Any], there: dict[str, Any], expected: str) -> None:
    replaced = [msgspec.structs.replace(CONFIG, **changes) for changes in (here, there)]
    assert paired.relation(*replaced) == expected


def test_failed_streams_and_streams_of_the_ramp_are_what_they_are_in_the_wer() -> None:
    rows = [
        {"utterance": "a", "speaker": None, "scored": True, "reference_words": 4, "substitutions": 0, "deletions": 4,
         "insertions": 0, "character_errors": 10, "reference_characters": 10},
        {"utterance": "b", "speaker": None, "scored": False, "reference_words": 4, "substitutions": 0, "deletions": 0,
         "insertions": 0, "character_errors": 0, "reference_characters": 10},
        {"utterance": "c", "speaker": None, "scored": True, "reference_words": 0, "substitutions": 0, "deletions": 0,
         "insertions": 3, "character_errors": 9, "reference_characters": 0},
    ]  # fmt: skip
    found = paired.counts(rows)
    assert list(found) == ["a"]  # "b" was ramp-up, in "c" nothing was said
    assert found["a"].errors == 4
    assert paired.wer_change(found, found, "recording", Bootstrap(1)).value == 0.0
