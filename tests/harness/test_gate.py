"""The gate: what passes, what fails, what it refuses, and how often it is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
        ({"load": {"jitter_ms": 20.0}}, "load is '' in the baseline and 'jitter_ms=20.0' in the candidate"),
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


def test_the_same_load_from_more_processes_is_the_same(baseline: Mapping[str, Any], made: Make) -> None:
    assert gate.compare(baseline, [made(noise_seed=2, load={"generators": 2})]).exit_code == 0


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
