"""The gate: what passes, what fails, what it refuses, and how often it is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from harness import gate
from harness.gate import CellRecord, Tolerance, Verdict
from tests.harness.made_runs import Recipe, make

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes each distinct run once."""
    root, known = tmp_path_factory.mktemp("runs"), {}

    def once(**changes: Any) -> Path:
        key = tuple(sorted(changes.items()))
        if key not in known:
            known[key] = make(root, **changes)
        return known[key]

    return once


@pytest.fixture(scope="module")
def baseline(made: Make) -> Mapping[str, Any]:
    """As it is after a way through a file."""
    kept: Mapping[str, Any] = json.loads(json.dumps(gate.save([made()])))
    return kept


def verdict_of(result: gate.GateResult, metric: str) -> Verdict:
    return next(judged.verdict for judged in result.judged if judged.test.metric == metric)


def test_an_unchanged_copy_passes_and_no_metric_is_called_changed(baseline: Mapping[str, Any], made: Make) -> None:
    result = gate.compare(baseline, [made()])
    assert result.exit_code == 0
    assert {judged.verdict for judged in result.judged} == {Verdict.CANNOT_TELL}
    assert {judged.test.change.value for judged in result.judged} == {0.0}


def test_another_draw_of_the_same_server_passes(baseline: Mapping[str, Any], made: Make) -> None:
    assert gate.compare(baseline, [made(noise_seed=2)]).exit_code == 0


def test_ten_points_more_substitutions_fail_on_the_wer_alone(baseline: Mapping[str, Any], made: Make) -> None:
    result = gate.compare(baseline, [made(noise_seed=2, substituted=0.22)])
    assert result.exit_code == 1
    assert [judged.test.metric for judged in result.judged if judged.verdict is Verdict.WORSE] == ["wer"]


def test_fewer_errors_are_better_and_pass(baseline: Mapping[str, Any], made: Make) -> None:
    result = gate.compare(baseline, [made(noise_seed=2, substituted=0.02)])
    assert (result.exit_code, result.verdict) == (0, Verdict.BETTER)


@pytest.mark.parametrize("profile", sorted(gate.PROFILES))
def test_half_a_second_on_every_final_fails_on_any_machine(
    baseline: Mapping[str, Any], made: Make, profile: str
) -> None:
    result = gate.compare(baseline, [made(noise_seed=3, late_final=0.5)], gate.PROFILES[profile])
    assert result.exit_code == 1
    assert verdict_of(result, "time_to_final") is Verdict.WORSE
    assert verdict_of(result, "wer") is Verdict.CANNOT_TELL


def test_thirty_milliseconds_on_every_word_are_real_but_allowed(baseline: Mapping[str, Any], made: Make) -> None:
    result = gate.compare(baseline, [made(overhead=0.11)])
    word = next(judged for judged in result.judged if judged.test.metric == "word_p50")
    assert result.exit_code == 0
    assert word.adjusted_p <= 0.05
    assert word.remark == "real, but allowed"


def test_a_new_failure_fails_and_a_known_one_does_not(baseline: Mapping[str, Any], made: Make) -> None:
    failing = made(failing=1)
    assert verdict_of(gate.compare(baseline, [failing]), "errors") is Verdict.WORSE
    assert gate.compare(gate.save([failing]), [failing]).exit_code == 0


def test_what_one_of_two_accuracy_tests_doubts_does_not_fail() -> None:
    """Eight utterances worse by 1 and one of them by 9: no resample is ever better, but MAPSSWE has z = 2, p = 0.05."""
    cell = synthetic(seed=1, utterances=8)
    more = [errors + (9.0 if i == 7 else 1.0) for i, errors in enumerate(cell.substitutions)]
    result = gate.judge([cell], [msgspec.structs.replace(cell, substitutions=more)], NONE_ALLOWED)
    wer = next(judged for judged in result.judged if judged.test.metric == "wer")
    assert wer.test.change.p_value is not None
    assert wer.test.change.p_value < 0.01
    assert wer.verdict is Verdict.CANNOT_TELL


def test_a_slow_tail_fails_though_the_median_stays() -> None:
    quick, slow = synthetic(seed=1), synthetic(seed=1)
    late: list[float | None] = [value + (2.0 if i % 10 == 0 else 0.0) for i, value in enumerate(finals(slow))]
    slow = msgspec.structs.replace(slow, latencies={**slow.latencies, "time_to_final": late})
    result = gate.judge([quick], [slow])
    assert verdict_of(result, "time_to_final") is Verdict.CANNOT_TELL
    assert verdict_of(result, "time_to_final_tail") is Verdict.WORSE


def test_words_in_silence_fail_as_hallucination_not_as_wer(made: Make) -> None:
    clean = gate.save([made(non_speech=20)])
    cell = msgspec.convert(clean, gate.Baseline).cells[0]
    silent = [words == 0 for words in cell.reference]
    assert sum(silent) == 20
    babbling = msgspec.structs.replace(cell, hallucinated=[3.0 if quiet else 0.0 for quiet in silent])
    result = gate.judge([cell], [babbling])
    assert [judged.test.metric for judged in result.judged if judged.verdict is Verdict.WORSE] == [
        "hallucinated_words_per_minute"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"corpus": "d" * 64}, "corpus_sha256 is cccccccccccc… in the baseline and dddddddddddd… in the candidate"),
        ({"concurrency": 4}, "concurrency is 8 in the baseline and 4 in the candidate"),
        ({"delay_ms": 960}, "delay_ms is 480 in the baseline and 960 in the candidate"),
        ({"engine": "whisper"}, "engine is 'sphinx' in the baseline and 'whisper' in the candidate"),
        ({"protocol": "yap"}, "protocol is 'realtime' in the baseline and 'yap' in the candidate"),
        ({"load": (("jitter_ms", 20.0),)}, "load is none in the baseline and 'jitter_ms=20.0' in the candidate"),
        ({"load": (("generators", 2),)}, "load is none in the baseline and 'generators=2' in the candidate"),
        ({"load": (("stalls", ("2@10",)),)}, "load is none in the baseline and 'stalls=2@10' in the candidate"),
        ({"arrival": "poisson:2"}, "arrival is 'closed' in the baseline and 'poisson:2' in the candidate"),
        (
            {"driver_options": ("tier=fast", "mood=calm")},
            "driver_options is none in the baseline and 'mood=calm tier=fast'",
        ),
        ({"pacing_late": 0.01}, "is invalid: pacing lateness p99"),
        ({"complete": False}, "is incomplete"),
    ],
)
def test_what_cannot_be_compared_exits_2_and_names_the_reason(
    baseline: Mapping[str, Any], made: Make, changes: dict[str, Any], said: str
) -> None:
    result = gate.compare(baseline, [made(**changes)])
    assert result.exit_code == 2
    assert said in result.sentence()
    assert said in gate.markdown(result)


def test_options_of_a_driver_are_the_same_in_any_order(made: Make) -> None:
    asked = gate.save([made(driver_options=("tier=fast", "mood=calm"))])
    through_a_file = json.loads(json.dumps(asked))
    assert gate.compare(through_a_file, [made(driver_options=("mood=calm", "tier=fast"))]).exit_code == 0
    assert gate.compare(through_a_file, [made()]).exit_code == 2


def test_a_history_keeps_options_of_a_driver_apart_and_reads_one_without_them(made: Make, tmp_path: Path) -> None:
    runs, refused = gate.read([made(), made(driver_options=("mood=calm",))], "run")
    assert not refused
    gate.appended(tmp_path / "history.parquet", runs)
    rows = gate.read_history(tmp_path / "history.parquet")
    metrics = {row["metric"] for row in rows}
    assert len(gate.since_when(rows)) == 2 * len(metrics)
    older = [{name: value for name, value in row.items() if name != "driver_options"} for row in rows]
    assert len(gate.since_when(older)) == len(metrics)


def test_a_missing_candidate_cell_exits_2(made: Make) -> None:
    two = gate.save([made(), made(delay_ms=960)])
    result = gate.compare(two, [made(noise_seed=2)])
    assert result.exit_code == 2
    assert "no candidate for the baseline's cell (realtime 960 ms ×8)" in result.sentence()
    assert gate.compare(two, [made(noise_seed=2), made(delay_ms=960, noise_seed=2)]).exit_code == 0


def test_a_latency_that_vanished_exits_2() -> None:
    cell = synthetic(seed=1)
    mute = msgspec.structs.replace(cell, latencies=cell.latencies | {"time_to_final": [None] * len(cell.utterances)})
    result = gate.judge([cell], [mute])
    assert result.exit_code == 2
    assert (
        "time to final was measured on 80 utterances of the baseline and on none of the candidate" in result.sentence()
    )


@pytest.mark.parametrize("broken", [{}, {"schema": 1, "kind": "x", "tolerances": {}, "cells": [{"run": 3}]}])
def test_a_baseline_that_is_none_exits_2(broken: dict[str, Any], made: Make) -> None:
    result = gate.compare(broken, [made()])
    assert result.exit_code == 2
    assert "the baseline cannot be read" in result.sentence()


def test_a_folder_without_a_run_exits_2(baseline: Mapping[str, Any], tmp_path: Path) -> None:
    assert gate.compare(baseline, [tmp_path]).exit_code == 2
    assert gate.compare(baseline, []).exit_code == 2


def test_no_baseline_is_made_of_an_invalid_run(made: Make) -> None:
    with pytest.raises(gate.GateError, match="is invalid: pacing lateness"):
        gate.save([made(pacing_late=0.01)])


def test_repetitions_of_a_cell_become_the_mean_of_each_utterance(made: Make) -> None:
    one, two = (msgspec.convert(gate.save([made(noise_seed=n)]), gate.Baseline).cells[0] for n in (1, 2))
    both = msgspec.convert(gate.save([made(noise_seed=1), made(noise_seed=2)]), gate.Baseline).cells
    assert len(both) == 1
    assert both[0].substitutions == [(a + b) / 2 for a, b in zip(one.substitutions, two.substitutions, strict=True)]


def test_tolerances_in_the_file_are_obeyed(made: Make) -> None:
    worse = made(noise_seed=2, substituted=0.22)
    lenient = gate.save([made()], {"wer": Tolerance(0.30)})
    assert gate.compare(lenient, [worse]).exit_code == 0


def test_a_committed_baseline_is_small(baseline: Mapping[str, Any]) -> None:
    assert len(json.dumps(baseline)) < 20_000  # 80 utterances


def test_table_and_markdown_say_verdict_change_and_power(baseline: Mapping[str, Any], made: Make) -> None:
    result = gate.compare(baseline, [made(noise_seed=2, substituted=0.22)])
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(gate.table(result))
    shown = console.export_text()
    console.file.close()
    for part in ("REGRESSION: WER", "✗ worse", "realtime 480 ms ×8", "sees"):
        assert part in shown
        assert part in gate.markdown(result)
    assert all(judged.seen is not None for judged in result.judged)


# How often it is wrong: records with known truth, no files.


def finals(cell: CellRecord) -> list[float]:
    return [value for value in cell.latencies["time_to_final"] if value is not None]


def synthetic(seed: int, rate: float = 0.2, shift: float = 0.0, utterances: int = 80, corpus: int = 0) -> CellRecord:
    """Words and hardness of an utterance come from ``corpus``, what was recognised and when from ``seed``."""
    same, fresh = np.random.default_rng(corpus), np.random.default_rng((corpus, seed))
    words = same.integers(5, 30, utterances)
    hardness = np.clip(rate * same.gamma(4, 0.25, utterances), 0, 1)
    base = same.gamma(9, 0.03, utterances)
    errors = fresh.binomial(words, hardness)
    latencies: dict[str, list[float | None]] = {
        name: [float(v) for v in level + base + shift + fresh.gamma(2, 0.03, utterances)]
        for name, level in (("first_token", 0.6), ("word_p50", 0.5), ("word_p95", 0.7), ("time_to_final", 0.2))
    }
    recipe = Recipe()
    return CellRecord(
        run=f"run-{seed}", protocol=recipe.protocol, concurrency=8, delay_ms=480, delay_ms_in_force=480.0, packet_ms=80, speed=1.0,
        arrival="closed", engine="sphinx", model="", dataset="spoken-en", corpus_sha256=recipe.corpus, normaliser="basic/1",
        normaliser_sha256="", counted="words", server_options=[], seed=1, machine="", caveat="", block="recording", streams=utterances,
        failed_streams=0, scores={}, utterances=[f"u{i}" for i in range(utterances)], speakers=[""] * utterances,
        audio_seconds=[5.0] * utterances, reference=[float(w) for w in words], substitutions=[float(e) for e in errors],
        deletions=[0.0] * utterances, insertions=[0.0] * utterances, hallucinated=[0.0] * utterances, latencies=latencies,
    )  # fmt: skip


NONE_ALLOWED = {name: Tolerance(0.0) for name in gate.TOLERANCES}


def test_false_alarms_stay_within_five_per_cent_even_with_nothing_allowed() -> None:
    pairs = 250
    alarms = sum(
        gate.judge(
            [synthetic(2 * n, corpus=n)], [synthetic(2 * n + 1, corpus=n)], NONE_ALLOWED, resamples=1000
        ).exit_code
        for n in range(pairs)
    )
    assert alarms <= 0.05 * pairs


def test_a_machine_that_drifts_by_thirty_milliseconds_between_runs_raises_no_alarm() -> None:
    drift = np.random.default_rng(5).normal(0, 0.03, 100)
    alarms = sum(
        gate.judge([synthetic(1, corpus=n)], [synthetic(2, shift=float(late), corpus=n)], resamples=500).exit_code
        for n, late in enumerate(drift)
    )
    assert alarms <= 5


def test_the_change_it_claims_to_see_is_seen_four_times_out_of_five() -> None:
    seen, fails = [], 0
    for n in range(120):
        result = gate.judge([synthetic(1, corpus=n)], [synthetic(2, corpus=n)], resamples=500)
        seen.append(next(judged.seen or 0.0 for judged in result.judged if judged.test.metric == "wer"))
    change = float(np.median(seen))
    for n in range(120):
        worse = gate.judge([synthetic(1, corpus=n)], [synthetic(2, rate=0.2 + change, corpus=n)], resamples=500)
        fails += verdict_of(worse, "wer") is Verdict.WORSE
    assert 0.65 <= fails / 120 <= 0.95  # 0.8, give or take three standard errors of 120 draws


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.4, 0.4), st.integers(0, 1000))
def test_swapping_the_sides_turns_the_effect_round(shift: float, seed: int) -> None:
    a, b = synthetic(seed, utterances=20), synthetic(seed + 1, shift=shift, utterances=20)
    there, back = (gate.judge(old, new, resamples=200) for old, new in (([a], [b]), ([b], [a])))
    for one, other in zip(there.judged, back.judged, strict=True):
        assert one.test.change.value == pytest.approx(-(other.test.change.value or 0.0), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 0.5))
def test_a_larger_tolerance_never_turns_a_pass_into_a_failure(seed: int, allowed: float) -> None:
    a, b = synthetic(seed, utterances=20), synthetic(seed + 1, rate=0.35, shift=0.1, utterances=20)
    strict = gate.judge([a], [b], NONE_ALLOWED, resamples=200)
    lenient = gate.judge([a], [b], {name: Tolerance(allowed) for name in NONE_ALLOWED}, resamples=200)
    assert lenient.exit_code <= strict.exit_code


# What the packages around it do: outputs, tolerance files, calibration, comparison, history.


@pytest.fixture(scope="module")
def regression(baseline: Mapping[str, Any], made: Make) -> gate.GateResult:
    return gate.compare(baseline, [made(noise_seed=2, substituted=0.22, failing=1)])


def test_junit_has_a_case_per_metric_and_a_failure_per_regression(regression: gate.GateResult) -> None:
    root = ElementTree.fromstring(gate.junit(regression))
    cases = root.findall("testsuite/testcase")
    assert len(cases) == len(regression.judged)
    assert {case.get("name") for case in cases if case.find("failure") is not None} == {"wer", "errors"}
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == (str(len(cases)), "2")


def test_junit_of_a_refusal_is_an_error(baseline: Mapping[str, Any], made: Make) -> None:
    refused = gate.compare(baseline, [made(concurrency=4)])
    root = ElementTree.fromstring(gate.junit(refused))
    error = root.find("testsuite/testcase/error")
    assert error is not None
    assert "concurrency" in (error.get("message") or "")


@given(st.text(max_size=30))
def test_junit_is_xml_whatever_the_reason_holds(reason: str) -> None:
    root = ElementTree.fromstring(gate.junit(gate.GateResult(refused=[reason])))
    assert root.find("testsuite/testcase/error") is not None


def test_github_gets_an_error_per_regression_and_nothing_that_breaks_a_line(regression: gate.GateResult) -> None:
    lines = gate.github(regression).splitlines()
    assert [line.split(" ")[0] for line in lines if line.startswith("::error")] == ["::error", "::error"]
    assert all(line.startswith("::") for line in lines)
    hostile = gate.github(gate.GateResult(refused=["100 %\n::error::second"])).splitlines()
    assert hostile == ["::error title=Gate%3A cannot compare::100 %25%0A::error::second"]


def test_benchmark_entries_are_smaller_is_better(regression: gate.GateResult) -> None:
    entries = json.loads(gate.benchmark(regression))
    wer = next(entry for entry in entries if entry["name"].endswith("WER"))
    judged = next(one for one in regression.judged if one.test.metric == "wer")
    assert (wer["unit"], wer["value"]) == ("%", pytest.approx(100 * (judged.test.candidate or 0.0), abs=1e-5))
    assert {"name", "unit", "value"} <= set(wer)


def test_markdown_shows_what_decides_and_folds_the_rest(regression: gate.GateResult) -> None:
    shown, _, folded = gate.markdown(regression).partition("<details>")
    assert "✗ worse" in shown
    assert "cannot tell" not in shown.split("\n\n")[-2]
    assert "time to final" in folded
    assert "✗" not in folded


def test_the_summary_holds_only_what_json_can(regression: gate.GateResult) -> None:
    told = json.loads(json.dumps(gate.summary(regression), allow_nan=False))
    assert (told["exit"], told["verdict"]) == (1, "worse")
    assert {one["metric"] for one in told["metrics"] if one["verdict"] == "worse"} == {"wer", "errors"}


def test_stalls_and_lost_tails_and_flicker_are_gated() -> None:
    cell = synthetic(seed=1)
    nothing = [0.0] * 80
    quiet = msgspec.structs.replace(
        cell, events=dict.fromkeys(("stalls", "lost_tail_words", "dropped_seconds", "unstable_words"), nothing)
    )
    for name, metric in (
        ("stalls", "stalls_per_minute"),
        ("lost_tail_words", "lost_tail_words"),
        ("unstable_words", "unstable_words"),
        ("dropped_seconds", "dropped"),
    ):
        worse = msgspec.structs.replace(
            quiet, events={**quiet.events, name: [3.0 if i % 4 == 0 else 0.0 for i in range(80)]}
        )
        result = gate.judge([quiet], [worse], resamples=1000)
        assert [one.test.metric for one in result.of(Verdict.WORSE)] == [metric]
        assert gate.judge([worse], [quiet], resamples=1000).verdict is Verdict.BETTER
    assert all("stalls" not in one.test.metric for one in gate.judge([quiet], [quiet], resamples=200).judged)


def test_an_older_baseline_without_them_says_so(made: Make) -> None:
    kept = gate.save([made()])
    for cell in kept["cells"]:
        del cell["events"]
    result = gate.compare(kept, [made(noise_seed=2)])
    assert result.exit_code == 0
    assert any("stalls, lost tail words" in note for note in result.notes)


def test_runs_that_agree_to_the_word_do_not_claim_to_see_everything() -> None:
    """Nothing differs, so there is no spread; but 1500 words cannot show a change of one error, whatever the tolerance."""
    cell = synthetic(seed=1)
    wer = next(
        one for one in gate.judge([cell], [cell], NONE_ALLOWED, resamples=500).judged if one.test.metric == "wer"
    )
    assert wer.seen is not None
    assert (
        wer.seen * sum(cell.reference) > 8
    )  # about eleven errors, for nine signs of one kind at Holm's strictest step


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tolerances.wre]\nabsolute = 0.1", "no metric 'wre'"),
        ("[tolerances.wer]\nabsolute = -0.1", "wer.absolute = -0.1 must be 0 or more"),
        ("[tolerances.wer]\nabsolute = nan", "must be 0 or more"),
        ("[tolerances.wer]\nabsolut = 0.1", "absolut"),
        ("[tolerances.wer]\nabsolute = '1 %'", "absolute"),
        ("tolerances =", "is not one"),
    ],
)
def test_a_tolerance_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tolerances.toml"
    path.write_text(text)
    with pytest.raises(gate.GateError, match=re.escape(said)):
        gate.read_tolerances(path)


@given(
    st.dictionaries(
        st.sampled_from(sorted(gate.METRICS)),
        st.builds(Tolerance, st.floats(0, 1e6), st.floats(0, 10)),
    ),
    st.text(max_size=20),
)
def test_a_tolerance_file_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, tolerances: dict[str, Tolerance], machine: str
) -> None:
    path = tmp_path_factory.mktemp("tolerances") / "t.toml"
    file = gate.ToleranceFile(gate.Testbed(machine=machine), tolerances)
    path.write_bytes(gate.as_toml(file).encode())
    assert gate.read_tolerances(path) == file


def test_calibration_allows_what_runs_of_one_build_differ_by() -> None:
    cells = [
        synthetic(seed=n, shift=0.1 * (n % 2)) for n in range(4)
    ]  # every second run 100 ms later, as on a machine with a neighbour
    found = gate.propose(cells)
    proposed = {one.metric: one for one in found.proposals}
    assert (found.runs, found.cells, found.pairs) == (4, 1, 6)
    assert found.alarms > 0
    assert found.alarms_left == 0
    for name in ("first_token", "word_p50", "word_p95", "time_to_final"):
        assert proposed[name].largest == pytest.approx(0.1, abs=0.03)
        assert proposed[name].absolute > 0.1
    allowed = {one.metric: Tolerance(one.absolute) for one in found.proposals}
    assert (
        gate.judge([cells[0]], [synthetic(seed=9, shift=1.0)], allowed, resamples=500).exit_code == 1
    )  # it still can fail


def test_calibration_needs_repetitions() -> None:
    with pytest.raises(gate.GateError, match="2 runs of realtime 480 ms ×8"):
        gate.propose([synthetic(1), synthetic(2)])


def test_any_two_runs_on_one_corpus_can_be_compared_and_the_difference_is_told(made: Make) -> None:
    slow, fast = gate.read([made(delay_ms=960)], "run")[0], gate.read([made()], "run")[0]
    result = gate.compare_runs(slow, fast)
    assert verdict_of(result, "word_p50") is Verdict.BETTER
    assert "delay_ms differs: 960 before, 480 now" in result.notes
    assert "B is better" in result.changes()


def test_benches_over_several_delays_pair_by_delay(made: Make) -> None:
    ones = gate.read([made(), made(delay_ms=960)], "run")[0]
    others = gate.read([made(protocol="yap", delay_ms=960), made(protocol="yap")], "run")[0]
    result = gate.compare_runs(ones, others)
    assert list(dict.fromkeys(one.test.cell for one in result.judged)) == ["realtime 480 ms ×8", "realtime 960 ms ×8"]
    assert any("protocol differs" in note for note in result.notes)


def test_what_has_no_common_ground_is_refused_by_compare_too(made: Make) -> None:
    result = gate.compare_runs(gate.read([made()], "run")[0], gate.read([made(corpus="d" * 64)], "run")[0])
    assert result.exit_code == 2
    assert "corpus_sha256" in result.sentence()


def told_of(seed: int, created: str, commit: str, shift: float = 0.0) -> CellRecord:
    return msgspec.structs.replace(synthetic(seed, shift=shift), run=f"run-{created}", created=created, commit=commit)


def test_the_history_says_since_which_commit_words_are_late(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "history.parquet"
    days = [f"2030-01-{day:02d}T00:00:00+00:00" for day in range(1, 27)]
    cells = [told_of(n, day, f"c{n:02d}", shift=0.2 if n >= 18 else 0.0) for n, day in enumerate(days)]
    assert gate.appended(path, cells[:20]) == (20, 20)
    assert gate.appended(path, cells[15:]) == (6, 26)  # what is there already is not added twice
    series = {one.metric: one for one in gate.since_when(gate.read_history(path))}
    late = series["word_p50"]
    assert [(level.before, level.since, level.worse) for level in late.levels] == [("c17", "c18", True)]
    assert late.levels[0].change.after - late.levels[0].change.before == pytest.approx(0.2, abs=0.03)
    assert len(late.values) == 26
    assert series["wer"].levels == []


def test_a_history_of_other_machines_and_delays_keeps_them_apart(tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    here = [told_of(n, f"2030-01-{n:02d}", "c") for n in range(1, 13)]
    there = [
        msgspec.structs.replace(told_of(n, f"2030-02-{n:02d}", "c", shift=0.5), machine="other") for n in range(1, 13)
    ]
    gate.appended(path, here + there)
    found = gate.since_when(gate.read_history(path))
    assert {(one.machine, len(one.values)) for one in found} == {("", 12), ("other", 12)}
    assert not any(one.levels for one in found)


def test_a_change_within_the_tolerance_is_not_told_and_few_runs_say_so() -> None:
    rows = gate.as_rows([told_of(n, f"2030-01-{n:02d}", "c", shift=0.03 if n > 12 else 0.0) for n in range(1, 25)])
    found = {one.metric: one for one in gate.since_when(rows)}
    assert found["word_p50"].levels == []
    strict = {one.metric: one for one in gate.since_when(rows, NONE_ALLOWED)}
    assert [level.change.at for level in strict["word_p50"].levels] == [12]
    few = gate.since_when([row for row in rows if row["created"] < "2030-01-08"])
    assert all(one.too_short for one in few)


def test_figures_of_the_history_are_those_of_the_gate(made: Make) -> None:
    cell = gate.read([made()], "run")[0][0]
    rows = {row["metric"]: row["value"] for row in gate.as_rows([cell])}
    result = gate.judge([cell], [cell], resamples=200)
    assert len(result.judged) >= 7
    for judged in result.judged:
        assert rows[judged.test.metric] == pytest.approx(judged.test.baseline)
