"""Pages about two sides, a study and a capacity search: true to what they are made from."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness import gate, report, store
from harness.commands.compare import compare
from harness.corpus import load
from harness.report import cells, ladders, sound
from harness.report.cells import NoRunsError
from tests.harness.made_runs import Recipe, make
from tests.harness.test_report import Elements, text_of
from tests.harness.test_report_browser import capacity
from tests.harness.test_studies import cell, failed, seqs


def both(root: Path, utterances: int = 16, **changes: Any) -> tuple[Path, Path]:
    """A side, and another that differs from it in this."""
    recipe = Recipe(utterances=utterances)
    make(root / "a", recipe)
    make(root / "b", recipe, noise_seed=2, **changes)
    return root / "a", root / "b"


def page_of(one: Path, other: Path, out: Path) -> str:
    compare(one, other, html=out)
    return out.read_text(encoding="utf-8")


def test_the_page_of_two_sides_says_what_the_verdicts_say(tmp_path: Path) -> None:
    one, other = both(tmp_path, utterances=80, substituted=0.4)
    page = page_of(one, other, tmp_path / "ab.html")
    assert Elements(page).open == []
    before, after = (gate.read(list(side.iterdir()), "run")[0] for side in (one, other))
    result = gate.compare_runs(before, after)
    wer = next(one for one in result.judged if one.test.metric == "wer")
    assert wer.verdict is gate.Verdict.WORSE
    assert wer.test.change.value is not None
    seen = text_of(page)
    figures = f"{gate.METRICS['wer'].figure(wer.test.baseline)} → {gate.METRICS['wer'].figure(wer.test.candidate)}"
    assert f"<h1>B is worse than A in WER ({figures})" in page.replace("\N{NO-BREAK SPACE}", " ")
    row = seen[seen.index("What changed from A to B") :]
    assert f"{100 * wer.test.change.value:+.2f} {wer.interval().strip()}" in row
    assert seen.count("cannot tell") >= sum(one.verdict is gate.Verdict.CANNOT_TELL for one in result.judged)


def test_where_nothing_changed_the_page_cannot_tell(tmp_path: Path) -> None:
    page = page_of(*both(tmp_path), tmp_path / "ab.html")
    assert "Whether B is better or worse than A these runs cannot tell" in page


def test_sides_that_cannot_be_compared_are_shown_with_the_reason(tmp_path: Path) -> None:
    page = page_of(*both(tmp_path, corpus="d" * 64), tmp_path / "ab.html")
    assert "<h1>A and B cannot be compared.</h1>" in page
    assert "corpus_sha256" in re.findall(r'<div class="banner".*?</div>', page, flags=re.DOTALL)[0]
    assert 'id="numbers"' in page


def test_a_baseline_file_has_no_page(tmp_path: Path) -> None:
    one, other = both(tmp_path)
    kept = tmp_path / "baseline.json"
    kept.write_text(json.dumps(gate.save(list(one.iterdir()))))
    with pytest.raises(NoRunsError, match="baseline file"):
        compare(kept, other, html=tmp_path / "ab.html")


def test_what_changed_most_is_what_has_most_errors_more_or_fewer(tmp_path: Path) -> None:
    one, other = both(tmp_path, substituted=0.3)
    loaded = cells.load_sides(list(one.iterdir()), list(other.iterdir()))
    assert [cell.label for cell in loaded] == ["A", "B"]
    named = cells.most_changed(loaded, 5)
    errors = [c.scored.set_index("utterance")[["substitutions", "deletions", "insertions"]].sum(axis=1) for c in loaded]
    changes = (errors[1] - errors[0]).abs()
    assert [changes[name] for name in named] == sorted(changes, reverse=True)[:5]


def test_a_capacity_folder_has_its_ladder_and_the_runs_at_its_ends(tmp_path: Path) -> None:
    rungs = [(1, "idle", "holds", 0.6), (5, "confirm", "holds", 1.12), (6, "search", "fails", 1.9)]
    told: Any = capacity(rungs)
    for rung in told["ladder"]:
        rung["run"] = make(tmp_path / "runs", utterances=8, concurrency=rung["streams"]).name
    (tmp_path / "capacity.json").write_text(json.dumps(told))
    ladder = ladders.read(tmp_path)
    assert [store.read_run(folder).config.concurrency for folder in ladder.runs] == [1, 5, 6]
    page = report.report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    seen = text_of(page).replace("\N{NO-BREAK SPACE}", " ")
    assert "5 streams at once keep to the limits at a delay of 480 ms, on 2 cores." in seen
    assert "limit 1.2 s" in seen
    assert "p95 word latency over 1.2 s" in seen
    assert 'id="behind"' in page


def test_a_search_that_was_interrupted_has_no_answer(tmp_path: Path) -> None:
    told = capacity([(1, "idle", "holds", 0.6)]) | {
        "complete": False,
        "streams": None,
        "above": None,
        "limited_by": None,
    }
    (tmp_path / "capacity.json").write_text(json.dumps(told))
    assert "not known yet" in report.report([tmp_path], tmp_path / "r.html").read_text(encoding="utf-8")
    (tmp_path / "capacity.json").write_text("{}")
    with pytest.raises(store.StoreError, match=r"capacity\.json is not the JSON"):
        ladders.read(tmp_path)


def test_a_study_has_a_page_with_its_choice_and_its_failures(tmp_path: Path) -> None:
    rows = [
        cell(seqs(8), wer=(0.10, 0.08, 0.12)),
        cell(seqs(32), wer=(0.30, 0.28, 0.32)),
        failed(seqs(64), "out of memory"),
    ]
    store.write_rows(tmp_path / "study.parquet", rows)
    page = report.report([tmp_path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert Elements(page).open == []
    assert "<h1>Choose max-num-seqs 8: WER 10.0" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert "out of memory" in page


def test_audio_is_taken_only_where_it_is_what_was_replayed() -> None:
    one = next(iter(load("spoken-en", limit=1).utterances))
    assert sound.recordings("spoken-en", {one.id: (one.text, one.seconds)}).keys() == {one.id}
    assert sound.recordings("spoken-en", {one.id: (one.text, one.seconds)}, [one.speaker]).keys() == {one.id}
    assert sound.recordings("spoken-en", {one.id: (one.text + " indeed", one.seconds)}) == {}
    assert sound.recordings("spoken-en", {one.id: (one.text, one.seconds + 1)}) == {}
    assert sound.recordings("no-such-dataset", {one.id: (one.text, one.seconds)}) == {}


def test_the_audio_of_a_page_is_as_small_as_foretold() -> None:
    one = next(iter(load("spoken-en", limit=1).utterances))
    samples = sound.pcm(one)
    assert samples is not None
    uri = sound.data_uri(samples)
    assert uri.startswith("data:audio/mpeg;base64,")
    assert len(uri) <= 1.15 * sound.encoded_size(one.seconds)


def test_the_outline_reaches_both_edges_where_the_audio_is_loudest() -> None:
    silence_then_full = bytes(2000) + b"\xff\x7f\x01\x80" * 500
    path = sound.outline(silence_then_full, columns=20)
    heights = [int(number) for number in re.findall(r"\d+ (\d+)", path)]
    assert (min(heights), max(heights)) == (2, 98)
    assert heights[0] == 50


def test_a_large_run_stays_below_three_megabytes(tmp_path: Path) -> None:
    folder = make(tmp_path, utterances=800, concurrency=40)
    assert len(report.report([folder], tmp_path / "large.html").read_bytes()) < 3_000_000
