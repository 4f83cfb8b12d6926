from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import store
from harness.report import studies
from harness.report.studies import Table, conclude, read
from harness.report.wording import shortened

MEASURES = [
    "wer", "cer", "first_token_p50", "first_token_p95", "word_latency_p50", "word_latency_p95",
    "time_to_final_p50", "time_to_final_p95", "excess_p50", "pacing_p99",
]  # fmt: skip
Interval = tuple[float, float, float]


def cell(
    settings: Mapping[str, Any],
    latency: Interval | float | None = (0.5, 0.45, 0.55),
    wer: Interval | None = (0.10, 0.08, 0.12),
    **others: Any,
) -> dict[str, Any]:
    """A row whose p95 of word latency and error rate are given with their intervals."""
    row: dict[str, Any] = {
        "study": "made", "outcome": "ok", "reason": "", "valid": True, "complete": True, "invalid_because": "",
        "headline": "wer", "caveat": "", "errors": 0.0, "rejected": 0.0, "stalls": 0.0, "server_cpu_percent": 10.0,
        "server_cpu_seconds_per_audio_second": 0.01, "audio_seconds_per_second": 8.0,
    }  # fmt: skip
    row |= {f"{name}{end}": None for name in MEASURES for end in ("", "_low", "_high")}
    given_latency = (latency, None, None) if isinstance(latency, float) else latency or (None, None, None)
    row |= dict(zip(("word_latency_p95", "word_latency_p95_low", "word_latency_p95_high"), given_latency, strict=True))
    row |= dict(zip(("wer", "wer_low", "wer_high"), wer or (None, None, None), strict=True))
    return {**row, **settings, **others}


def failed(settings: Mapping[str, Any], reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(name for name in cell({}) if name not in ("study", "outcome", "reason"))
    return {**nothing, "study": "made", "outcome": "failed", "reason": reason, **settings}


def table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Table:
    store.write_rows(folder / "study.parquet", rows)
    return read(folder)


def seqs(count: int, streams: int = 8) -> dict[str, Any]:
    return {"server.max-num-seqs": count, "harness.concurrency": streams, "harness.packet-ms": 80}


def test_settings_that_differ_are_what_varies(tmp_path: Path) -> None:
    made = table(tmp_path, [cell(seqs(8)), cell(seqs(32))])
    assert made.varied == ("server.max-num-seqs",)
    assert made.described(made.frame.iloc[1]) == "max-num-seqs 32"


def test_a_name_that_both_sides_vary_is_told_with_its_side(tmp_path: Path) -> None:
    rows = [cell({"server.delay-ms": own, "harness.delay-ms": asked}) for own in (80, 160) for asked in (None, 480)]
    made = table(tmp_path, rows)
    assert made.described(made.frame.iloc[0]) == "server.delay-ms 80, harness.delay-ms server's"
    assert made.described(made.frame.iloc[3]) == "server.delay-ms 160, harness.delay-ms 480"


def test_the_setting_that_is_surely_better_is_chosen(tmp_path: Path) -> None:
    said = " ".join(
        conclude(table(tmp_path, [cell(seqs(8), (0.9, 0.85, 0.95)), cell(seqs(32), (0.5, 0.45, 0.55))]), 1.0)
    )
    assert "2 of 2 cells keep word latency p95 within 1.00 s" in said
    assert "Choose max-num-seqs 32" in said
    assert "0.50 s [0.45, 0.55]" in said


def test_overlapping_intervals_cannot_be_told_apart(tmp_path: Path) -> None:
    said = " ".join(
        conclude(table(tmp_path, [cell(seqs(8), (0.52, 0.45, 0.6)), cell(seqs(32), (0.5, 0.45, 0.55))]), 1.0)
    )
    assert "Cannot tell which is best" in said
    assert "Choose" not in said


def test_accuracy_decides_before_latency_and_load_before_both(tmp_path: Path) -> None:
    accurate = cell(seqs(8), (0.9, 0.85, 0.95), (0.05, 0.04, 0.06))
    quick = cell(seqs(32), (0.5, 0.45, 0.55), (0.10, 0.08, 0.12))
    (tmp_path / "a").mkdir()
    assert "Choose max-num-seqs 8:" in " ".join(conclude(table(tmp_path / "a", [accurate, quick]), 1.0))
    (tmp_path / "b").mkdir()
    loaded = cell(seqs(32, 16), (0.95, 0.92, 0.98), (0.10, 0.08, 0.12))
    said = " ".join(conclude(table(tmp_path / "b", [accurate, quick, loaded]), 1.0))
    assert "The most streams at once within the bound are 16, of 16 tried" in said
    assert "Choose max-num-seqs 32, concurrency 16" in said


@pytest.mark.parametrize(
    ("latency", "others", "told"),
    [
        ((1.2, 1.1, 1.3), {}, "No setting surely keeps"),
        ((0.9, 0.7, 1.1), {}, "Cannot tell whether"),
        ((1.05, 0.9, 1.2), {}, "Cannot tell whether"),
        (0.5, {}, "Cannot tell whether"),
        ((0.5, 0.4, 0.6), {"errors": 1.0}, "No setting surely keeps"),
        ((0.5, 0.4, 0.6), {"rejected": 2.0}, "No setting surely keeps"),
        ((0.5, 0.4, 0.6), {"valid": False}, "invalid or incomplete"),
        ((0.5, 0.4, 0.6), {"complete": False}, "invalid or incomplete"),
        (None, {}, "No cell has a latency"),
    ],
)
def test_the_bound_is_kept_only_where_that_is_sure(
    tmp_path: Path, latency: Any, others: dict[str, Any], told: str
) -> None:
    said = " ".join(conclude(table(tmp_path, [cell(seqs(8), latency, **others)]), 1.0))
    assert told in said
    assert "Choose" not in said


def test_failed_cells_are_told_and_never_chosen(tmp_path: Path) -> None:
    made = table(tmp_path, [failed(seqs(512), "the server ended: out of memory"), cell(seqs(8))])
    said = conclude(made, 1.0)
    assert said[0] == "Failed: max-num-seqs 512: the server ended: out of memory"
    assert "Choose max-num-seqs 8" in said[-1]
    assert "out of memory" in studies.numbers(made)["outcome"][0]


@pytest.mark.parametrize("rows", [[cell(seqs(8))], [failed(seqs(8), "why"), failed(seqs(9), "why")]])
def test_a_study_of_little_is_drawn_and_concluded_all_the_same(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    made = table(tmp_path, rows)
    assert conclude(made, 1.0)
    assert len(studies.numbers(made)) == len(rows)
    assert studies.console_table(made).row_count == len(rows)
    studies.effects(made)
    for measure in ("wer", "word_latency_p95"):
        assert studies.by_setting(made, measure).axes


def test_effects_compare_cells_that_agree_in_all_else(tmp_path: Path) -> None:
    rows = [cell(seqs(8, 1), (0.1, 0.1, 0.1)), cell(seqs(32, 1), (0.2, 0.2, 0.2)),
            cell(seqs(8, 4), (0.4, 0.4, 0.4)), cell(seqs(32, 4), (0.9, 0.9, 0.9)), failed(seqs(8, 16), "why")]  # fmt: skip
    found = studies.effects(table(tmp_path, rows)).set_index(["setting", "from", "to"]).to_dict("index")
    step = found["max-num-seqs", "8", "32"]
    assert step["pairs"] == 2
    assert step["word latency p95 (s)"] == "+0.300 (+0.100 .. +0.500)"
    assert found["concurrency", "4", "16"]["pairs"] == 0


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(store.StoreError, match=r"study\.parquet"):
        read(tmp_path)
    store.write_rows(tmp_path / "study.parquet", [{"a": 1}])
    with pytest.raises(store.StoreError, match="holds no study"):
        read(tmp_path)


def test_long_values_are_shown_by_what_differs() -> None:
    scripts = ['{"latency_ms":20,"jitter_ms":30,"seed":1}', '{"latency_ms":220,"jitter_ms":30,"seed":1}']
    assert list(shortened(scripts).values()) == ['…"latency_ms":20…', '…"latency_ms":220…']
    folders = ["/models/of/some/considerable/depth/tiny", "/models/of/some/considerable/depth/large"]
    assert list(shortened(folders).values()) == ["…tiny", "…large"]


@given(st.lists(st.text("ab,{}/", max_size=60), min_size=1, max_size=5, unique=True))
def test_shortened_values_stay_unlike(texts: list[str]) -> None:
    short = shortened(texts)
    assert list(short) == texts
    assert len(set(short.values())) == len(texts)


def test_the_newest_study_is_taken_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EARMARK_STUDY", raising=False)
    assert studies.newest(tmp_path) is None
    (tmp_path / "one").mkdir()
    store.write_rows(tmp_path / "one" / "study.parquet", [cell(seqs(8))])
    assert studies.newest(tmp_path) == tmp_path / "one" / "study.parquet"
    monkeypatch.setenv("EARMARK_STUDY", "elsewhere")
    assert studies.newest(tmp_path) == Path("elsewhere")
