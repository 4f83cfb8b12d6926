"""Intervals and tests against scipy, worked examples and simulations with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from harness.statistics import (
    UNITS_LIMIT,
    Bootstrap,
    distribution,
    holm,
    mapsswe,
    minimum_n,
    order_statistic_interval,
    paired_latency_difference,
    paired_wer_difference,
    rank_shift,
    ratio_of_sums,
    resampling_block,
)


def test_minimum_n_of_the_usual_quantiles() -> None:
    # The least n with share**n <= 0.025: 0.5**6 = 0.0156, 0.9**36 = 0.0225, 0.95**72 = 0.0249, 0.99**368 = 0.0248.
    assert [minimum_n(share) for share in (0.5, 0.9, 0.95, 0.99)] == [6, 36, 72, 368]
    assert minimum_n(0.05) == 72


def test_order_statistic_interval_of_a_median_has_the_tabled_ranks() -> None:
    # Conover's and every table of the binomial: for n = 100 the ranks are 40 and 61.
    assert order_statistic_interval([float(rank) for rank in range(1, 101)], 0.5) == (40.0, 61.0)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_order_statistics_enclose_from_the_minimum_n_on_and_never_below(share: float) -> None:
    n = minimum_n(share)
    assert order_statistic_interval([float(rank) for rank in range(n - 1)], share) is None
    interval = order_statistic_interval([float(rank) for rank in range(n)], share)
    assert interval is not None
    assert interval[1] == n - 1  # at the least n it reaches to the maximum


def test_order_statistic_coverage_by_the_binomial_law() -> None:
    for n, share in ((80, 0.5), (200, 0.95), (500, 0.99)):
        interval = order_statistic_interval([float(rank) for rank in range(1, n + 1)], share)
        assert interval is not None
        low, high = (int(rank) for rank in interval)
        law = scipy.stats.binom(n, share)
        assert law.cdf(high - 1) - law.cdf(low - 1) >= 0.95


# Ratios of sums


def test_a_ratio_of_sums_is_no_mean_of_ratios() -> None:
    # 1 error in 2 words and 1 in 98: 2 %, while the mean of the rates would be 25.5 %.
    found = ratio_of_sums([1, 1], [2, 98], ["a", "b"], Bootstrap(1))
    assert found.value == 0.02
    assert found.low is None
    assert "n = 2 blocks" in found.note


def test_nothing_to_divide_by_is_none() -> None:
    assert ratio_of_sums([], [], [], Bootstrap(1)).value is None
    assert ratio_of_sums([3], [0], ["a"], Bootstrap(1)).value is None


def test_ratio_interval_agrees_with_scipy() -> None:
    random = np.random.default_rng(7)
    words = random.integers(5, 30, 60)
    errors = random.binomial(words, 0.2)
    ours = ratio_of_sums(errors.tolist(), words.tolist(), list(range(60)), Bootstrap(1))
    theirs = scipy.stats.bootstrap(
        (errors, words),
        lambda e, w, axis: e.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=10_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.05 * width)  # two bootstraps differ by their own chance
    assert ours.high == pytest.approx(theirs.high, abs=0.05 * width)
    assert ours.note == ""


def test_streams_of_one_block_are_drawn_together() -> None:
    # 30 speakers with 10 streams each, all error or none: as streams there seem to be 300 draws, in truth 30.
    errors = [1.0 if speaker % 3 == 0 else 0.0 for speaker in range(30) for _ in range(10)]
    speakers = [speaker for speaker in range(30) for _ in range(10)]
    blocked = ratio_of_sums(errors, [1.0] * 300, speakers, Bootstrap(1))
    alone = ratio_of_sums(errors, [1.0] * 300, list(range(300)), Bootstrap(1))
    assert None not in (blocked.low, blocked.high, alone.low, alone.high)
    # sd of a mean of 30 (of 300) draws of p = 1/3: intervals differ by the square root of 10
    assert (blocked.high - blocked.low) / (alone.high - alone.low) == pytest.approx(math.sqrt(10), rel=0.1)  # type: ignore[operator]


def test_the_same_seed_gives_the_same_interval() -> None:
    arguments = ([k % 7 for k in range(50)], [7 + k % 11 for k in range(50)], list(range(50)))
    assert ratio_of_sums(*arguments, Bootstrap(5)) == ratio_of_sums(*arguments, Bootstrap(5))
    assert ratio_of_sums(*arguments, Bootstrap(5)) != ratio_of_sums(*arguments, Bootstrap(6))


def test_intervals_of_a_ratio_cover_the_truth() -> None:
    # 60 speakers of uneven size whose error rates vary about 0.2; 300 simulated corpora. A percentile bootstrap over 60 blocks
    # covers a little less than 95 %; 300 trials have a standard error of 1.3 %.
    random = np.random.default_rng(11)
    covered = 0
    for _ in range(300):
        words = random.integers(10, 60, 60)
        errors = random.binomial(words, random.beta(8, 32, 60))
        found = ratio_of_sums(errors.tolist(), words.tolist(), list(range(60)), Bootstrap(1, resamples=1000))
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.2 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_more_blocks_than_the_limit_are_grouped_without_widening_the_interval() -> None:
    random = np.random.default_rng(3)
    errors = random.binomial(10, 0.1, 4 * UNITS_LIMIT)
    found = ratio_of_sums(errors.tolist(), [10] * errors.size, list(range(errors.size)), Bootstrap(1))
    assert found.low is not None
    assert found.high is not None
    error = errors.std() / 10 / math.sqrt(errors.size)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


# Distributions


def test_one_value_per_block_gets_order_statistics() -> None:
    found = distribution([[float(k)] for k in range(1, 101)], list(range(100)), Bootstrap(1))
    assert (found.streams, found.values, found.max, found.unit) == (100, 100, 100.0, "s")
    assert found.p50.value == 50.5
    assert (found.p50.low, found.p50.high) == (40.0, 61.0)
    assert found.p95.high == 100.0  # rank 100: P(fewer than 100 of 100 below p95) is 99.4 %, for rank 99 only 96.3 %
    assert (found.p99.low, found.p99.high) == (None, None)
    assert found.p99.value == pytest.approx(99.01)
    assert "n = 100 streams, an interval needs 368" in found.p99.note


def test_pooled_values_do_not_count_as_streams() -> None:
    # 10 streams of 100 words: 1000 values, yet 10 are too few for a p90.
    found = distribution([[0.1 * k + 0.001 * j for j in range(100)] for k in range(10)], list(range(10)), Bootstrap(1))
    assert (found.streams, found.values) == (10, 1000)
    assert found.p50.low is not None
    assert "only 10 blocks" in found.p50.note
    assert found.p90.low is None


def test_pooled_interval_agrees_with_a_plain_bootstrap() -> None:
    random = np.random.default_rng(5)
    groups = [random.gamma(4, 0.1, random.integers(5, 40)) + random.normal(0, 0.1) for _ in range(100)]
    found = distribution(groups, list(range(100)), Bootstrap(1))
    medians, tails = [], []
    for _ in range(2000):
        drawn = np.concatenate([groups[k] for k in random.integers(0, 100, 100)])
        medians.append(np.quantile(drawn, 0.5))
        tails.append(np.quantile(drawn, 0.95))
    for estimate, plain in ((found.p50, medians), (found.p95, tails)):
        low, high = np.quantile(plain, [0.025, 0.975])
        assert estimate.low == pytest.approx(low, abs=0.1 * (high - low))
        assert estimate.high == pytest.approx(high, abs=0.1 * (high - low))


def test_empty_groups_are_missing_and_not_streams() -> None:
    found = distribution([[], [1.0], []], ["a", "b", "c"], Bootstrap(1), missing=2)
    assert (found.streams, found.values, found.missing, found.p50.value) == (1, 1, 2, 1.0)
    nothing = distribution([[], []], ["a", "b"], Bootstrap(1), missing=2)
    assert (nothing.streams, nothing.p50.value, nothing.max, nothing.missing) == (0, None, None, 2)


def test_a_recording_replayed_often_is_one_block() -> None:
    # 80 streams, but of 4 recordings only: no number of replays makes more than 4 independent ones.
    found = distribution([[float(k % 7)] for k in range(80)], [k % 4 for k in range(80)], Bootstrap(1))
    assert found.p50.low is None
    assert "n = 4 blocks" in found.p50.note


@given(st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=30))
def test_an_interval_lies_among_the_values(groups: list[list[float]]) -> None:
    found = distribution(groups, list(range(len(groups))), Bootstrap(1, resamples=200))
    values = [value for group in groups for value in group]
    for estimate in (found.p50, found.p90, found.p95, found.p99):
        for bound in (estimate.low, estimate.high):
            assert bound is None or min(values) <= bound <= max(values)
        assert estimate.low is None or estimate.high is None or estimate.low <= estimate.high


# Comparisons


def test_paired_wer_difference_of_a_steady_change() -> None:
    # Each of 40 utterances of 10 words has one error more: 10 points, in every resample the same.
    found = paired_wer_difference([2.0] * 40, [3.0] * 40, [10.0] * 40, list(range(40)), Bootstrap(1))
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    assert found.p_value == pytest.approx(2 / 10_001)
    assert found.detectable == pytest.approx(0.0)


def test_no_change_has_no_effect_and_p_of_one() -> None:
    found = paired_wer_difference([1.0, 2.0] * 10, [1.0, 2.0] * 10, [9.0] * 20, list(range(20)), Bootstrap(1))
    assert (found.value, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_pairing_sees_what_two_separate_intervals_hide() -> None:
    random = np.random.default_rng(9)
    words = np.full(100, 20)
    errors = random.binomial(words, random.uniform(0, 0.6, 100))  # utterances differ widely
    worse = errors + random.binomial(1, 0.3, 100)  # each a little worse
    found = paired_wer_difference(errors.tolist(), worse.tolist(), words.tolist(), list(range(100)), Bootstrap(1))
    assert found.low is not None
    assert found.low > 0
    one = ratio_of_sums(errors.tolist(), words.tolist(), list(range(100)), Bootstrap(1))
    other = ratio_of_sums(worse.tolist(), words.tolist(), list(range(100)), Bootstrap(1))
    assert one.high is not None
    assert other.low is not None
    assert one.high > other.low  # the separate intervals overlap


def test_paired_wer_difference_is_antisymmetric() -> None:
    random = np.random.default_rng(1)
    one, other, words = random.integers(0, 5, 50), random.integers(0, 6, 50), random.integers(5, 20, 50)
    there = paired_wer_difference(one.tolist(), other.tolist(), words.tolist(), list(range(50)), Bootstrap(1))
    back = paired_wer_difference(other.tolist(), one.tolist(), words.tolist(), list(range(50)), Bootstrap(1))
    assert there.value == pytest.approx(-(back.value or 0))
    assert there.low == pytest.approx(-(back.high or 0))
    assert there.p_value == back.p_value


def test_too_few_pairs_give_a_value_and_no_verdict() -> None:
    found = paired_wer_difference([1, 0], [2, 0], [10, 10], ["a", "b"], Bootstrap(1))
    assert found.value == 0.05
    assert (found.low, found.p_value, found.detectable) == (None, None, None)
    assert "n = 2" in found.note


def test_mapsswe_by_hand() -> None:
    # Differences 1, 0, 2, 1: mean 1, sample variance 2/3, standard error sqrt(2/3/4) = 0.40825, Z = 2.4495, p = 0.01431.
    found = mapsswe([0, 1, 1, 2], [1, 1, 3, 3])
    assert found.value == 1.0
    assert found.p_value == pytest.approx(0.014306, abs=1e-6)
    assert found.low == pytest.approx(1 - 1.959964 * math.sqrt(1 / 6))
    assert found.detectable == pytest.approx((1.959964 + 0.841621) * math.sqrt(1 / 6), rel=1e-5)
    assert "rough" in found.note


def test_mapsswe_is_the_paired_test_for_many_segments() -> None:
    random = np.random.default_rng(2)
    one = random.poisson(2, 3000)
    other = one + random.integers(-1, 2, 3000)
    # with 3000 segments Student's t is the normal law to four digits
    assert mapsswe(one, other).p_value == pytest.approx(scipy.stats.ttest_rel(other, one).pvalue, abs=1e-3)


def test_mapsswe_of_equal_and_of_uniform_differences() -> None:
    assert mapsswe([1, 2, 3], [1, 2, 3]).p_value == 1.0
    assert mapsswe([1, 2, 3], [2, 3, 4]).p_value == 0.0
    assert mapsswe([1], [2]).p_value is None
    assert mapsswe([], []).value is None


def test_detectable_difference_is_found_in_four_of_five_trials() -> None:
    random = np.random.default_rng(4)
    n, trials = 50, 1500
    detectable = (1.959964 + 0.841621) / math.sqrt(n)  # for differences of unit variance
    assert mapsswe(np.zeros(20_000), random.normal(0, 1, 20_000)).detectable == pytest.approx(
        2.801585 / math.sqrt(20_000), rel=0.02
    )
    found = sum((mapsswe(np.zeros(n), random.normal(detectable, 1, n)).p_value or 0) < 0.05 for _ in range(trials))
    assert found / trials == pytest.approx(0.8, abs=0.04)  # 1500 trials: standard error 1 %


def test_mann_whitney_and_hodges_lehmann_worked_example() -> None:
    # Hollander & Wolfe, Nonparametric Statistical Methods, example 4.1: permeability of the human chorioamnion. One-sided
    # exact p 0.1272 for "term is higher", shift of the preterm values -0.305.
    term = [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46]
    preterm = [1.15, 0.88, 0.90, 0.74, 1.21]
    found = rank_shift(term, preterm)
    assert found.p_value == pytest.approx(2 * 0.1272, abs=2e-4)
    assert found.value == pytest.approx(-0.305)
    assert found.n == 5
    # The book gives (-0.76, 0.15) for an exact confidence of 96 %; the normal approximation takes the same ranks.
    assert (found.low, found.high) == pytest.approx((-0.76, 0.15))


def test_rank_shift_of_large_samples_is_the_one_of_all_pairs() -> None:
    random = np.random.default_rng(6)
    one, other = random.normal(0, 1, 700), random.normal(0.3, 1, 600)  # over the size at which pairs are not laid out
    found = rank_shift(one, other)
    pairs = np.subtract.outer(other, one).ravel()
    assert found.value == pytest.approx(float(np.median(pairs)), abs=1e-12)
    assert found.p_value == pytest.approx(scipy.stats.mannwhitneyu(one, other).pvalue)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.3 < found.high
    assert found.low > 0


def test_rank_shift_needs_four_values_on_each_side() -> None:
    assert rank_shift([1, 2, 3], [4, 5, 6, 7]).p_value is None
    assert rank_shift([1, 2, 3], [4, 5, 6, 7]).value == 3.5  # pairwise 1..6, median 3.5
    assert rank_shift([], [1.0]).value is None
    least = rank_shift([1, 2, 3, 4], [5, 6, 7, 8])
    assert least.p_value == pytest.approx(2 / 70)  # one of the 70 ways to split 8 values, both sides
    # P(statistic <= 0) = 1/70 is under 2.5 %, P(<= 1) = 2/70 over it: the interval is that of the extreme pairs.
    assert (least.low, least.high) == (1.0, 7.0)


@given(st.lists(st.integers(-50, 50), min_size=4, max_size=20), st.integers(-20, 20))
def test_a_shifted_sample_has_that_shift(values: list[int], shift: int) -> None:
    found = rank_shift(values, [value + shift for value in values])
    assert found.value == shift
    assert found.low is not None
    assert found.high is not None
    assert found.low <= shift <= found.high


def test_rank_shift_interval_covers_the_truth() -> None:
    random = np.random.default_rng(8)
    covered = 0
    for _ in range(400):
        found = rank_shift(random.exponential(1, 25), random.exponential(1, 30) + 0.5)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.5 <= found.high
    assert covered / 400 == pytest.approx(0.95, abs=0.035)  # 400 trials: standard error 1.1 %


def test_paired_latency_difference_finds_a_constant_delay() -> None:
    values = [0.1 * (k % 9) for k in range(60)]
    found = paired_latency_difference(values, [value + 0.5 for value in values], list(range(60)), Bootstrap(1))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert found.p_value == pytest.approx(2 / 10_001)


def test_paired_latency_difference_of_a_tail_needs_its_n() -> None:
    found = paired_latency_difference([0.0] * 71, [1.0] * 71, list(range(71)), Bootstrap(1), share=0.95)
    assert found.value == 1.0
    assert found.low is None
    assert "needs 72" in found.note
    assert paired_latency_difference([], [], [], Bootstrap(1)).value is None


def test_holm_worked_example() -> None:
    # By hand: sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; never falling: 0.02, 0.03, 0.06, 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.9]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p_value, corrected in zip(p_values, adjusted, strict=True):
        assert p_value <= corrected <= min(1.0, len(p_values) * p_value) + 1e-12
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    assert [adjusted[index] for index in order] == sorted(adjusted)


def test_speakers_are_resampled_when_there_are_twenty() -> None:
    assert resampling_block([f"s{k % 20}" for k in range(40)])[0] == "speaker"
    assert resampling_block([f"s{k % 19}" for k in range(40)]) == (
        "recording",
        "19 speakers, fewer than 20: too few to resample",
    )
    assert resampling_block(["", *(f"s{k}" for k in range(40))])[0] == "recording"
    assert resampling_block([])[0] == "recording"
