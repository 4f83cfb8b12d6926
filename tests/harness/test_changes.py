"""Change points: found where they are, and not where there is only chance."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.statistics import LONGEST_SERIES, change_points, smallest_series


def test_a_new_level_is_found_where_it_begins() -> None:
    random = np.random.default_rng(1)
    found = change_points([*random.normal(0.5, 0.01, 20), *random.normal(0.6, 0.01, 8)])
    assert [change.at for change in found] == [20]
    assert found[0].before == pytest.approx(0.5, abs=0.01)
    assert found[0].after == pytest.approx(0.6, abs=0.01)
    assert found[0].earliest <= 20 <= found[0].latest


def test_a_level_that_came_and_went_is_two_changes() -> None:
    random = np.random.default_rng(2)
    series = [*random.normal(0, 1, 20), *random.normal(9, 1, 6), *random.normal(0, 1, 20)]
    assert [change.at for change in change_points(series)] == [20, 26]


def test_one_odd_run_is_no_level() -> None:
    series = np.random.default_rng(3).normal(0, 1, 25)
    series[12] += 20
    assert change_points(series.tolist()) == []


def test_steady_histories_raise_few_alarms() -> None:
    random = np.random.default_rng(4)
    alarms = sum(bool(change_points(random.normal(0, 1, 20).tolist(), seed=n)) for n in range(200))
    assert alarms <= 0.05 * 200 + 2 * (200 * 0.05 * 0.95) ** 0.5


def test_a_shift_of_four_deviations_is_found_within_a_run() -> None:
    random = np.random.default_rng(5)
    near = 0
    for n in range(60):
        found = change_points([*random.normal(0, 1, 18), *random.normal(4, 1, 7)], seed=n)
        near += any(abs(change.at - 18) <= 1 for change in found)
    assert near >= 54


def test_what_cannot_be_searched_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        change_points([1.0, float("nan")])
    with pytest.raises(ValueError, match=str(LONGEST_SERIES)):
        change_points([0.0] * (LONGEST_SERIES + 1))


def test_the_shortest_series_that_can_tell() -> None:
    # As good as "the 3 largest last" are the 3 largest first, or in one of the places that leave 3 on both sides: of 8 values
    # that is 2 of 56 choices, 3.6 %, of 7 it is 2 of 35, 5.7 %. Of 23 it is 17 of 1771, 0.96 %, of 22 16 of 1540, 1.04 %.
    assert smallest_series(0.05, 3) == 8
    assert smallest_series(0.01, 3) == 23
    series = [0.01 * (7 * k % 13) for k in range(13)] + [9.0, 9.1, 9.05]
    assert change_points(series[-7:]) == []
    assert [change.at for change in change_points(series)] == [13]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-100, 100), max_size=40), st.integers(0, 5))
def test_levels_cover_the_series_without_gap_and_keep_their_distance(values: list[float], seed: int) -> None:
    found = change_points(values, seed=seed)
    edges = [0, *(change.at for change in found), len(values)]
    assert edges == sorted(edges)
    assert all(later - earlier >= 3 for earlier, later in pairwise(edges)) or not found
    for change in found:
        assert change.earliest <= change.at <= change.latest
    assert found == change_points(values, seed=seed)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(-50, 50))
def test_scale_and_offset_change_nothing(seed: int, scale: float, offset: float) -> None:
    random = np.random.default_rng(seed)
    series = np.concatenate([random.normal(0, 1, 12), random.normal(3, 1, 8)])
    here, there = change_points(series.tolist()), change_points((series * scale + offset).tolist())
    assert [change.at for change in here] == [change.at for change in there]
