"""What is said of the errors of runs: at which words, with which speakers, of which kind, under which normaliser."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.report import cells as report_cells
from harness.report import charts, figures, normalisers, words
from harness.report.cells import Cell
from harness.statistics import Bootstrap, paired_wer_difference, ratio_difference
from tests.harness.made_runs import make


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[Cell]:
    """Two delays over the same utterances; the longer one has half the substitutions, and deletions as before."""
    root = tmp_path_factory.mktemp("runs")
    short = make(root, delay_ms=160, utterances=48, substituted=0.24)
    return report_cells.load([short, make(root, delay_ms=960, utterances=48, noise_seed=2, substituted=0.06)])


def test_every_error_that_was_scored_is_at_some_word(pair: list[Cell]) -> None:
    for cell in pair:
        rows, counted = words.occurrences(cell), cell.scores.accuracy
        lost, made_up = rows["heard"] == "", rows["said"] == ""
        assert int(rows["weight"][lost].sum()) == counted.deletions
        assert int(rows["weight"][made_up].sum()) == counted.insertions
        wrong = (rows["said"] != rows["heard"]) & ~lost & ~made_up
        assert int(rows["weight"][wrong].sum()) == counted.substitutions
        assert int(rows["weight"][~made_up].sum()) == counted.reference_words


def test_a_word_that_is_always_misheard_is_named_first_and_surely(pair: list[Cell]) -> None:
    cell = pair[1]
    heard = cell.utterances["hypothesis"].str.replace(r"\bthe\b", "duh", regex=True)
    found = words.hard_words(replace(cell, utterances=cell.utterances.assign(hypothesis=heard)))
    assert (found[0].name, found[0].rate, found[0].verdict) == ("the", 1.0, "more")


def test_a_speaker_with_three_times_the_errors_is_told_from_the_others(pair: list[Cell]) -> None:
    cell = pair[1]
    frame = cell.utterances.copy()
    frame.loc[frame["speaker"] == "awb", list(words.KINDS)] += 4
    found = words.speakers(replace(cell, utterances=frame))
    assert (found[0].name, found[0].verdict) == ("awb", "more")
    assert {one.name for one in found} == {"awb", "kal16", "rms", "slt"}


def test_fewer_substitutions_at_the_longer_delay_are_told_and_equal_deletions_are_not(pair: list[Cell]) -> None:
    [(step, kinds)] = words.kinds_by_delay(pair)
    verdicts = {kind.name: kind.verdict for kind in kinds}
    assert step == "160 → 960 ms"
    assert (verdicts["substitutions"], verdicts["deletions"]) == ("fewer", "cannot tell")
    assert any("substitutions fewer than before" in sentence for sentence in words.conclude(pair))


def test_with_too_few_recordings_nothing_is_told(pair: list[Cell]) -> None:
    few = [replace(cell, utterances=cell.utterances[cell.utterances["stream"] < 4]) for cell in pair]
    assert all("cannot tell" in sentence for sentence in words.conclude(few))


def test_an_utterance_is_marked_word_by_word(pair: list[Cell]) -> None:
    assert words.marked("Turn the lights off.", "turn a lights off", pair[0]) == "turn [the→a] lights off"
    assert words.marked("We go home tonight.", "we go tonight", pair[0]) == "we go [−home] tonight"
    assert words.marked("We go home tonight.", "we go home tonight then", pair[0]) == "we go home tonight [+then]"


def test_counts_under_each_normaliser_are_those_of_the_scores(pair: list[Cell]) -> None:
    counted = normalisers.recounts(pair[0])
    for one in pair[0].scores.accuracy.sensitivity:
        assert sum(recount.counts[one.normaliser].errors for recount in counted) == one.errors
        assert sum(recount.counts[one.normaliser].reference_words for recount in counted) == one.reference_words


def test_capitals_and_full_stops_raise_the_rate_without_a_normaliser_and_the_examples_show_them(
    pair: list[Cell],
) -> None:
    cell = pair[0]
    counted = normalisers.recounts(cell)
    by_name = {choice.name: choice for choice in normalisers.choices(cell, counted)}
    assert by_name["none"].verdict == "higher"
    assert by_name["none"].change.low is not None
    assert by_name["none"].change.low > 0
    shown = normalisers.examples(cell, counted, "none", 1)
    assert list(shown["normaliser"]) == [cell.run.config.normaliser, "none"]
    assert shown["said"][1].endswith(".")
    assert not shown["said"][0].endswith(".")


def test_charts_are_drawn_also_of_differences_that_have_no_interval(pair: list[Cell], tmp_path: Path) -> None:
    nothing = paired_wer_difference([1], [2], [3], ["a"], Bootstrap(0, 100))
    drawn = [
        charts.differences([charts.Bar("one", nothing, False)], "title", "points", 100, 0.01),
        figures.share_rows(normalisers.rates(pair), "title", "rate"),
        charts.rise_by_load([(2, nothing), (4, nothing)], 0.1, "title", "rise (ms)"),
        charts.over_runs([0.1, 0.2], ["a", "b"], [(0, 1, 0.1), (1, 2, 0.2)], [(1, 1)], "title", "WER", percent=True),
    ]
    for number, figure in enumerate(drawn):
        figure.savefig(tmp_path / f"{number}.png")


def test_a_rate_difference_is_that_of_the_sums_and_turns_round_with_its_sides() -> None:
    a, b, words_a, words_b, blocks = (
        [1, 0, 2, 1, 0, 3, 1],
        [2, 1, 2, 1, 1, 3, 0],
        [9, 8, 7, 9, 8, 7, 9],
        [5] * 7,
        list("abcdefg"),
    )
    one = ratio_difference(a, words_a, b, words_b, blocks, Bootstrap(0, 2000))
    other = ratio_difference(b, words_b, a, words_a, blocks, Bootstrap(0, 2000))
    assert one.value == pytest.approx(10 / 35 - 8 / 57)
    assert (one.low, one.high) == pytest.approx((-(other.high or 0), -(other.low or 0)))


def test_a_side_without_errors_has_no_interval() -> None:
    found = ratio_difference([0.0] * 9, [5] * 9, [1.0] * 9, [5] * 9, list(range(9)), Bootstrap(0, 500))
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high, found.p_value) == (None, None, None)


def test_equal_rates_of_two_halves_are_seldom_told_apart() -> None:
    random = np.random.default_rng(5)
    sizes = random.integers(6, 20, 60)
    mine = np.arange(60) % 3 == 0
    alarms = 0
    for _ in range(300):
        errors = random.binomial(sizes, random.beta(2, 10, 60))
        theirs, their_words, ours, our_words = (
            list(np.where(side, values, 0)) for side in (~mine, mine) for values in (errors, sizes)
        )
        change = ratio_difference(theirs, their_words, ours, our_words, list(range(60)), Bootstrap(0, 500))
        alarms += change.p_value is not None and change.p_value < 0.05
    assert alarms <= 27  # at 5 % more than 27 of 300 come in 1 of 785 such tests
