from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.pacing import (
    NS,
    Order,
    due_offsets_ns,
    lane_delays_seconds,
    order_of,
    packet_ends,
    poisson_starts_seconds,
    start_jitter_ns,
)
from wire.pcm import BYTES_PER_SECOND

samples = st.integers(1, 400_000)
packet_lengths = st.integers(5, 10_000)


@given(samples, packet_lengths)
def test_packets_cover_the_audio_once_in_whole_samples(count: int, packet_ms: int) -> None:
    ends = packet_ends(2 * count, packet_ms)
    assert ends[-1] == 2 * count
    lengths = [end - start for start, end in zip((0, *ends), ends, strict=False)]
    assert all(length == packet_ms * 32 for length in lengths[:-1])
    assert 0 < lengths[-1] <= packet_ms * 32
    assert lengths[-1] % 2 == 0


def test_a_packet_is_due_when_its_last_sample_has_been_spoken() -> None:
    assert due_offsets_ns(packet_ends(2 * BYTES_PER_SECOND // 10, 80), 1.0) == (80_000_000, 160_000_000, 200_000_000)
    assert due_offsets_ns(packet_ends(BYTES_PER_SECOND // 10, 80), 2.0) == (40_000_000, 50_000_000)
    assert due_offsets_ns(packet_ends(BYTES_PER_SECOND // 10, 80), math.inf) == (0, 0)


@given(samples, packet_lengths, st.floats(0.1, 100))
def test_due_times_never_go_back_and_end_with_the_audio(count: int, packet_ms: int, speed: float) -> None:
    offsets = due_offsets_ns(packet_ends(2 * count, packet_ms), speed)
    assert list(offsets) == sorted(offsets)
    assert offsets[-1] == pytest.approx(count / 16_000 / speed * NS, abs=1)


@pytest.mark.parametrize(("pcm_bytes", "packet_ms"), [(0, 80), (3, 80), (320, 4), (320, 10_001)])
def test_impossible_packets_are_refused(pcm_bytes: int, packet_ms: int) -> None:
    with pytest.raises(ValueError, match=str(pcm_bytes if packet_ms == 80 else packet_ms)):
        packet_ends(pcm_bytes, packet_ms)


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_a_speed_that_is_not_positive_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        due_offsets_ns((320,), speed)


@given(st.lists(st.floats(0.1, 30), max_size=50), st.sampled_from(Order), st.integers())
def test_every_utterance_is_started_exactly_once(seconds: list[float], order: Order, seed: int) -> None:
    found = order_of(seconds, order, seed)
    assert sorted(found) == list(range(len(seconds)))
    assert found == order_of(seconds, order, seed)


@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=80), st.integers(1, 12), st.integers())
def test_longest_first_keeps_the_lanes_busy_until_near_the_end(seconds: list[float], lanes: int, seed: int) -> None:
    free = [0.0] * lanes
    last_started = 0.0
    for index in order_of(seconds, Order.LONGEST_FIRST, seed):
        lane = free.index(min(free))
        last_started = max(last_started, free[lane])
        free[lane] += seconds[index]
    # Graham's bound for longest-processing-time scheduling: at most 4/3 of the best possible
    best_possible = max(sum(seconds) / lanes, max(seconds))
    pairs = sorted(seconds, reverse=True)[lanes - 1 : lanes + 1]
    best_possible = max(best_possible, sum(pairs) if len(pairs) == 2 else 0)
    assert max(free) <= best_possible * 4 / 3 + 1e-6


def test_equal_lengths_are_shuffled_by_the_seed() -> None:
    assert order_of([1.0] * 50, Order.LONGEST_FIRST, 1) != order_of([1.0] * 50, Order.LONGEST_FIRST, 2)


@given(st.integers(), st.integers(0, 10_000))
def test_jitter_is_less_than_a_packet_and_repeats_with_the_seed(seed: int, stream: int) -> None:
    jitter_ns = start_jitter_ns(seed, stream, 80, 1.0)
    assert 0 <= jitter_ns <= 80_000_000
    assert jitter_ns == start_jitter_ns(seed, stream, 80, 1.0)


def test_jitter_spreads_the_phases_of_many_streams() -> None:
    eighths = [start_jitter_ns(0, stream, 80, 1.0) // 10_000_000 for stream in range(800)]
    counts = [eighths.count(eighth) for eighth in range(8)]
    assert all(60 < count < 140 for count in counts), counts  # 100 expected, standard deviation 9.4


def test_lanes_start_evenly_over_the_ramp() -> None:
    assert lane_delays_seconds(4, 2.0) == [0.0, 0.5, 1.0, 1.5]


def test_open_arrivals_come_at_the_rate_asked_for() -> None:
    starts = poisson_starts_seconds(4000, 20.0, seed=3)
    assert starts == sorted(starts)
    assert starts[-1] == pytest.approx(200, rel=0.06)  # standard deviation of the sum: 1.6 %
    with pytest.raises(ValueError, match="rate"):
        poisson_starts_seconds(1, 0.0, seed=0)
