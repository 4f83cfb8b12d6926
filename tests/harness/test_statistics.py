"""Intervals and tests against scipy, worked examples and simulations with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats.mstats import hdquantiles

from harness.statistics import (
    UNITS_LIMIT,
    Bootstrap,
    detectable_events,
    distribution,
    harrell_davis,
    holm,
    interpolated_interval,
    mapsswe,
    minimum_n,
    order_statistic_interval,
    paired_quantile_difference,
    paired_shift,
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


def test_ratio_interval_is_near_scipys_bca() -> None:
    random = np.random.default_rng(7)
    words = random.integers(5, 30, 60)
    errors = random.binomial(words, 0.2)
    ours = ratio_of_sums(errors.tolist(), words.tolist(), list(range(60)), Bootstrap(1))
    theirs = scipy.stats.bootstrap(
        (errors, words),
        lambda e, w, axis: e.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="BCa",
        n_resamples=10_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(
        theirs.low, abs=0.1 * width
    )  # both right to second order, and each with its own chance
    assert ours.high == pytest.approx(theirs.high, abs=0.1 * width)
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
    assert (found.p50.low, found.p50.high) == interpolated_interval([float(k) for k in range(1, 101)], 0.5)
    # The upper end is beyond rank 99 (96.3 % of samples have fewer below p95) and within rank 100 (99.4 %).
    assert found.p95.high is not None
    assert 99.0 < found.p95.high < 100.0
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


def test_pooled_interval_is_about_that_of_a_plain_bootstrap() -> None:
    random = np.random.default_rng(5)
    groups = [random.gamma(4, 0.1, random.integers(5, 40)) + random.normal(0, 0.1) for _ in range(100)]
    found = distribution(groups, list(range(100)), Bootstrap(1))
    medians, tails = [], []
    for _ in range(2000):
        drawn = np.concatenate([groups[k] for k in random.integers(0, 100, 100)])
        medians.append(np.quantile(drawn, 0.5))
        tails.append(np.quantile(drawn, 0.95))
    # In the tail a plain bootstrap covers less than 95 %, mostly by ending too low: there ours may be wider.
    for estimate, plain, wider in ((found.p50, medians, 0.15), (found.p95, tails, 0.4)):
        low, high = np.quantile(plain, [0.025, 0.975])
        assert estimate.low is not None
        assert estimate.high is not None
        assert -wider <= (estimate.low - low) / (high - low) <= 0.15
        assert -0.15 <= (estimate.high - high) / (high - low) <= wider


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


@settings(deadline=None)
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
    assert found.p_value is not None
    assert found.p_value < 0.001
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
    assert there.p_value == pytest.approx(back.p_value)


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


def test_wilcoxon_and_hodges_lehmann_worked_example() -> None:
    # Hollander & Wolfe, Nonparametric Statistical Methods, example 3.1: depression scale before and after a tranquilliser. T+ = 5,
    # normal approximation two-sided p = 0.038; estimate -0.46, interval (-0.786, -0.010) at an exact confidence of 96.1 %.
    before = [1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30]
    after = [0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29]
    found = paired_shift(before, after, list(range(9)))
    assert (found.value, found.low, found.high) == pytest.approx((-0.46, -0.786, -0.010), abs=1e-6)
    assert found.p_value == pytest.approx(0.0382, abs=1e-4)
    assert (found.n, found.note) == (9, "")


@pytest.mark.parametrize("grain", [0.0, 0.08])
def test_paired_shift_is_scipys_signed_rank_test(grain: float) -> None:
    random = np.random.default_rng(12)
    one = random.gamma(4, 0.1, 60)
    other = one + random.normal(0.02, 0.1, 60)
    if grain:  # as from a server that answers in frames: ties and zeros
        one, other = np.round(one / grain) * grain, np.round(other / grain) * grain
    differences = np.round(other - one, 9)
    theirs = scipy.stats.wilcoxon(differences, zero_method="pratt", correction=False, method="approx")
    found = paired_shift(one, other, list(range(60)))
    assert found.p_value == pytest.approx(theirs.pvalue, rel=1e-6)
    means = np.add.outer(differences, differences)[np.triu_indices(60)] / 2
    assert found.value == pytest.approx(float(np.median(means)), abs=1e-8)


def test_pairs_of_one_block_count_once() -> None:
    # 20 speakers whose ten utterances all moved alike, by chance up or down: 20 pairs, not 200.
    random = np.random.default_rng(3)
    base, speakers, false = np.zeros(200), np.repeat(np.arange(20), 10).tolist(), [0, 0]
    for _ in range(200):
        moved = np.repeat(random.normal(0, 0.2, 20), 10)
        for place, blocks in enumerate((speakers, list(range(200)))):
            false[place] += (paired_shift(base, moved, blocks).p_value or 0.0) < 0.05
    assert false[0] <= 0.05 * 200 + 2 * math.sqrt(200 * 0.05 * 0.95)
    assert false[1] > 0.3 * 200


def test_paired_shift_finds_a_constant_delay_and_no_delay() -> None:
    values = [0.1 * (k % 9) for k in range(60)]
    found = paired_shift(values, [value + 0.5 for value in values], list(range(60)))
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-8)
    assert found.p_value is not None
    assert found.p_value < 1e-10
    same = paired_shift(values, values, list(range(60)))
    assert (same.value, same.p_value) == (0.0, 1.0)
    assert paired_shift([], [], []).value is None
    assert paired_shift([0.0] * 5, [1.0] * 5, list(range(5))).low is None


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=6, max_size=25), st.floats(-3, 3))
def test_moving_the_others_moves_the_paired_shift(differences: list[float], by: float) -> None:
    base, blocks = np.zeros(len(differences)), list(range(len(differences)))
    here = paired_shift(base, differences, blocks)
    there = paired_shift(base, np.array(differences) + by, blocks)
    assert there.value == pytest.approx((here.value or 0.0) + by, abs=1e-6)
    assert there.low is not None
    assert here.low is not None
    assert there.low == pytest.approx(here.low + by, abs=1e-6)


def test_harrell_davis_is_scipys() -> None:
    values = np.random.default_rng(14).gamma(3, 1, 150)
    for share in (0.5, 0.95):
        assert harrell_davis(values, share)[0] == pytest.approx(hdquantiles(values, [share])[0], rel=1e-4)
    drawn = np.random.default_rng(1).integers(0, 150, 150)
    weights = np.bincount(drawn, minlength=150)[None, :].astype(np.float32)
    assert harrell_davis(values, 0.95, weights)[0] == pytest.approx(hdquantiles(values[drawn], [0.95])[0], rel=1e-4)


def test_a_difference_of_tails_needs_its_n_and_finds_a_longer_tail() -> None:
    random = np.random.default_rng(15)
    values = random.gamma(4, 0.1, 200)
    late = values + np.where(np.arange(200) % 10 == 0, 1.0, 0.0)
    found = paired_quantile_difference(values.tolist(), late.tolist(), list(range(200)), Bootstrap(1), 0.95)
    assert found.low is not None
    assert found.low > 0
    assert found.p_value is not None
    assert found.p_value < 0.001
    few = paired_quantile_difference([0.0] * 71, [1.0] * 71, list(range(71)), Bootstrap(1), 0.95)
    assert few.value == pytest.approx(1.0)
    assert few.low is None
    assert "needs 72" in few.note


def test_the_studentised_interval_is_that_of_a_plain_double_loop() -> None:
    random = np.random.default_rng(7)
    words = random.integers(5, 30, 60)
    errors = random.binomial(words, random.beta(1, 15, 60))  # skewed
    ours = ratio_of_sums(errors.tolist(), words.tolist(), list(range(60)), Bootstrap(1))

    def estimate(of: np.ndarray) -> tuple[float, float]:
        rate = errors[of].sum() / words[of].sum()
        jackknife = [(errors[of].sum() - errors[i]) / (words[of].sum() - words[i]) for i in of]
        return rate, math.sqrt(59 / 60 * sum((one - np.mean(jackknife)) ** 2 for one in jackknife))

    rate, error = estimate(np.arange(60))
    drawn = [estimate(random.integers(0, 60, 60)) for _ in range(1500)]
    low, high = np.quantile([(one - rate) / of for one, of in drawn], [0.025, 0.975])
    width = (high - low) * error
    assert ours.low == pytest.approx(
        rate - high * error, abs=0.06 * width
    )  # the jackknife's error for the linearised one
    assert ours.high == pytest.approx(rate - low * error, abs=0.06 * width)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(20, 40))
def test_an_interval_excludes_0_just_when_p_is_below_five_per_cent(seed: int, n: int) -> None:
    random = np.random.default_rng(seed)
    words = random.integers(5, 30, n)
    one, other = random.binomial(words, 0.2), random.binomial(words, random.uniform(0.1, 0.4))
    found = paired_wer_difference(one.tolist(), other.tolist(), words.tolist(), list(range(n)), Bootstrap(1, 2000))
    assert found.low is not None
    assert found.high is not None
    assert found.p_value is not None
    if abs(found.p_value - 0.05) > 0.01:  # 2000 draws resolve no more
        assert (found.p_value < 0.05) == (found.low > 0 or found.high < 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 20)), min_size=6, max_size=40))
def test_a_rate_lies_in_its_interval_and_that_one_not_below_0(counted: list[tuple[int, int]]) -> None:
    errors, words = [float(e) for e, _ in counted], [float(w) for _, w in counted]
    found = ratio_of_sums(errors, words, list(range(len(counted))), Bootstrap(1, 500))
    assert found.value == pytest.approx(sum(errors) / sum(words))
    if found.low is None:
        assert not any(errors)
        return
    assert found.high is not None
    assert found.value is not None
    assert 0 <= found.low <= found.value + 1e-9
    assert found.value - 1e-9 <= found.high < math.inf


def test_no_error_anywhere_has_no_interval_rather_than_a_false_one() -> None:
    found = ratio_of_sums([0] * 40, [10] * 40, list(range(40)), Bootstrap(1))
    assert (found.value, found.low) == (0.0, None)
    assert "nothing to resample" in found.note


@pytest.mark.parametrize(("n", "share"), [(8, 0.5), (60, 0.5), (72, 0.95), (90, 0.95), (200, 0.95), (400, 0.99)])
def test_interpolated_intervals_cover_95_per_cent(n: int, share: float) -> None:
    # Uniform values, so the quantile is the share. 4000 samples have a standard error of 0.34 %.
    samples = np.sort(np.random.default_rng(n).random((4000, n)), axis=1)
    covered = 0
    for sample in samples:
        interval = interpolated_interval(sample, share)
        assert interval is not None
        covered += interval[0] <= share <= interval[1]
    assert covered / 4000 == pytest.approx(0.95, abs=0.0125)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-10, 10), min_size=72, max_size=120))
def test_an_interpolated_interval_lies_within_the_one_of_whole_ranks(values: list[float]) -> None:
    ordered = sorted(values)
    for share in (0.5, 0.9, 0.95):
        inner, outer = interpolated_interval(ordered, share), order_statistic_interval(ordered, share)
        assert inner is not None
        assert outer is not None
        assert outer[0] - 1e-12 <= inner[0] <= inner[1] <= outer[1] + 1e-12


def test_streams_that_agree_in_themselves_count_as_one_value_each() -> None:
    # 100 streams of 20 equal words are 100 values; 100 streams of 20 independent words are nearly 2000.
    random = np.random.default_rng(16)
    alike = distribution([[value] * 20 for value in random.random(100)], list(range(100)))
    apart = distribution(list(random.random((100, 20))), list(range(100)))
    assert alike.p50.low is not None
    assert alike.p50.high is not None
    assert apart.p50.low is not None
    assert apart.p50.high is not None
    wide, tight = alike.p50.high - alike.p50.low, apart.p50.high - apart.p50.low
    assert wide / tight == pytest.approx(math.sqrt(20), rel=0.35)
    assert wide == pytest.approx(2 * 1.98 * 0.5 / math.sqrt(100), rel=0.35)  # a share of one half among 100


def test_latencies_in_steps_of_a_frame_keep_their_interval() -> None:
    # A server that answers every 80 ms: ties everywhere, yet as much is known as without them.
    random = np.random.default_rng(17)
    streams = [random.gamma(2, 0.1) + random.gamma(2, 0.1, 20) for _ in range(150)]
    fine = distribution(streams, list(range(150)))
    coarse = distribution([np.ceil(one / 0.08) * 0.08 for one in streams], list(range(150)))
    for smooth, stepped in ((fine.p50, coarse.p50), (fine.p95, coarse.p95)):
        assert stepped.low is not None
        assert stepped.high is not None
        assert smooth.low is not None
        assert smooth.high is not None
        assert 0 <= stepped.low - smooth.low <= 0.08 + 0.02
        assert 0 <= stepped.high - smooth.high <= 0.08 + 0.02
    same = distribution([[0.5, 0.5]] * 8, list(range(8)))
    assert (same.p50.low, same.p50.high) == (0.5, 0.5)


def test_so_many_events_are_seen_in_four_of_five_cases() -> None:
    # At 5 %, six equal signs are needed (2 * 0.5**6 = 0.031 and 0.5**5 * 2 = 0.0625 is too much).
    expected = detectable_events(0.05)
    assert scipy.stats.poisson(expected).sf(5) == pytest.approx(0.8)


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
