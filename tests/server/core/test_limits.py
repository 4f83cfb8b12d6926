"""Limiters: what passes in any stretch of time, what is told of the rest, and how much is remembered."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.limits import FixedWindows, TokenBuckets

MOMENTS = st.lists(st.floats(0, 100), max_size=120).map(sorted)


@given(MOMENTS, st.floats(0.1, 20), st.floats(1, 30))
def test_no_stretch_of_time_lets_more_pass_than_a_burst_and_its_rate(
    at: list[float], rate: float, burst: float
) -> None:
    buckets = TokenBuckets(rate, burst)
    passed = [now for now in at if buckets.take("a", now)]
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            assert last - first + 1 <= burst + rate * (passed[last] - passed[first]) + 1e-6
    assert buckets.refused == len(at) - len(passed)


@given(MOMENTS, st.floats(0.1, 20), st.floats(1, 30), st.floats(0.01, 40))
def test_who_waits_as_long_as_told_passes_and_who_does_not_wait_does_not(
    at: list[float], rate: float, burst: float, amount: float
) -> None:
    buckets = TokenBuckets(rate, burst)
    for now in at:
        buckets.take("a", now)
    now = at[-1] if at else 0.0
    wait = buckets.wait_seconds("a", now, amount)
    if amount > burst:
        assert math.isinf(wait), "a bucket never holds more than it holds"
        assert not buckets.take("a", now + 1000, amount)
        return
    if wait > 1e-6:
        assert not buckets.take("a", now + wait / 2, amount), "and nothing is taken by asking in vain"
    assert buckets.take("a", now + wait + 1e-9, amount)


@given(MOMENTS, st.floats(0.5, 5), st.floats(1, 5))
def test_keys_do_not_concern_each_other(at: list[float], rate: float, burst: float) -> None:
    together, alone = TokenBuckets(rate, burst), TokenBuckets(rate, burst)
    for now in at:
        together.take("other", now)
        assert together.take("a", now) == alone.take("a", now)


def test_a_bucket_without_a_rate_lets_all_pass_and_one_without_a_burst_holds_a_second() -> None:
    assert all(TokenBuckets(0, 1).take("a", 0.0) for _ in range(1000))
    buckets = TokenBuckets(3)
    assert [buckets.take("a", 0.0) for _ in range(4)] == [True, True, True, False]
    assert TokenBuckets(0).wait_seconds("a", 0.0, 1e9) == 0


@pytest.mark.spec("operations-12")
def test_at_most_ten_thousand_are_remembered_those_seen_longest_ago_forgotten_first() -> None:
    buckets = TokenBuckets(0.001, 1)
    assert buckets.take("first", 0.0)
    assert buckets.take("second", 0.0)
    assert not buckets.take("first", 0.1), "now the second one was seen longest ago"
    for number in range(9_999):
        buckets.take(f"client {number}", 0.2)
    assert len(buckets) == 10_000
    assert not buckets.take("first", 0.3)
    assert buckets.take("second", 0.4), "forgotten: it has its whole allowance again"
    assert len(buckets) == 10_000


@pytest.mark.spec("operations-12")
def test_who_was_not_seen_for_five_minutes_is_forgotten() -> None:
    buckets = TokenBuckets(0.001, 1)
    buckets.take("a", 0.0)
    buckets.take("b", 100.0)
    buckets.take("c", 300.0)
    assert len(buckets) == 3
    buckets.take("c", 301.0)
    assert len(buckets) == 2


@given(MOMENTS, st.integers(1, 10), st.floats(0.5, 30))
def test_no_window_lets_more_pass_than_its_limit_and_what_remains_is_told(
    at: list[float], limit: int, window_seconds: float
) -> None:
    windows = FixedWindows(limit, window_seconds)
    passed: Counter[float] = Counter()
    for now in at:
        told = windows.take("a", now)
        assert told.limit == limit
        assert 0 < told.reset_seconds <= window_seconds + 1e-9
        end = round(now + told.reset_seconds, 6)
        passed[end] += told.allowed
        assert told.remaining == limit - passed[end]
        assert told.allowed or told.remaining == 0
    assert all(count <= limit for count in passed.values())
    assert windows.refused == len(at) - passed.total()


def test_a_window_begins_with_its_first_and_ends_on_time() -> None:
    windows = FixedWindows(2, 10.0)
    assert [windows.take("a", now).allowed for now in (5.0, 6.0, 14.9)] == [True, True, False]
    again = windows.take("a", 15.0)
    assert (again.allowed, again.remaining, again.reset_seconds) == (True, 1, 10.0)
    assert windows.take("b", 6.0).remaining == 1, "another client has a window of its own"


def test_without_a_limit_all_pass_and_nothing_is_remembered() -> None:
    windows = FixedWindows(None)
    assert all(windows.take("a", 0.0).allowed for _ in range(1000))
    assert windows.refused == 0
