from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.impairment import Impairment, ImpairmentError, Stall, parse_stalls

MS = 1_000_000
EVERY_80_MS = tuple(80 * MS * (n + 1) for n in range(50))  # 4 s of packets

stalls = st.one_of(
    st.builds(Stall, st.floats(0.01, 3), at=st.floats(0, 5)),
    st.builds(lambda seconds, more: Stall(seconds, every=seconds + more), st.floats(0.01, 3), st.floats(0.01, 5)),
)
impairments = st.builds(Impairment, st.floats(0, 500), st.integers(1, 9), st.lists(stalls, max_size=3).map(tuple))


@given(impairments, st.integers(0, 1000), st.integers(0, 1000))
def test_packets_are_held_and_never_sent_early_or_out_of_order(impairment: Impairment, seed: int, stream: int) -> None:
    held = impairment.held_ns(EVERY_80_MS, seed, stream)
    left = [due + late for due, late in zip(EVERY_80_MS, held, strict=True)]
    assert min(held) >= 0
    assert all(one <= other for one, other in pairwise(left))
    assert impairment.held_ns(EVERY_80_MS, seed, stream) == held


def test_a_good_network_holds_nothing() -> None:
    assert not Impairment()
    assert set(Impairment().held_ns(EVERY_80_MS, 0, 0)) == {0}
    assert Impairment().described() == {}


@given(st.floats(1, 500), st.integers(0, 100))
def test_jitter_stays_within_its_bound(jitter_ms: float, stream: int) -> None:
    held = Impairment(jitter_ms).held_ns(tuple(10_000 * MS * (n + 1) for n in range(40)), 1, stream)
    assert max(held) <= jitter_ms * MS
    assert len(set(held)) > 30  # it varies


def test_jitter_differs_between_streams_and_seeds() -> None:
    one = Impairment(100.0)
    assert len({one.held_ns(EVERY_80_MS, seed, stream) for seed in range(3) for stream in range(3)}) == 9


def test_a_burst_leaves_when_its_last_packet_is_due() -> None:
    held = Impairment(burst=4).held_ns(EVERY_80_MS[:10], 0, 0)
    assert held == tuple(n * 80 * MS for n in (3, 2, 1, 0, 3, 2, 1, 0, 1, 0))  # the last group has two


def test_a_stall_holds_what_is_due_in_it_until_its_end() -> None:
    held = Impairment(stalls=(Stall(0.4, at=1.0),)).held_ns(EVERY_80_MS, 0, 0)
    for due, late in zip(EVERY_80_MS, held, strict=True):
        assert late == (1400 * MS - due if 1000 * MS <= due < 1400 * MS else 0)


def test_a_repeated_stall_takes_its_part_of_the_time() -> None:
    minute = tuple(10 * MS * (n + 1) for n in range(6000))
    held = Impairment(stalls=(Stall(2.0, every=10.0),)).held_ns(minute, 5, 9)
    assert sum(late > 0 for late in held) / len(held) == pytest.approx(0.2, abs=0.035)
    assert max(held) <= 2000 * MS


def test_stalls_are_read_and_written_alike() -> None:
    found = parse_stalls("2@10, 0.5/30")
    assert found == (Stall(2.0, at=10.0), Stall(0.5, every=30.0))
    assert [str(stall) for stall in found] == ["2@10", "0.5/30"]
    assert parse_stalls("") == ()
    assert Impairment(5.0, 3, found).described() == {"jitter_ms": 5.0, "burst_packets": 3, "stalls": ["2@10", "0.5/30"]}


@pytest.mark.parametrize("text", ["2", "2@", "@3", "0@1", "-1@1", "2/2", "3/2", "a/b", "nan@1", "1@inf"])
def test_stalls_that_make_no_sense_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ImpairmentError, match="2@10"):
        parse_stalls(text)


@pytest.mark.parametrize("wrong", [{"jitter_ms": -1.0}, {"jitter_ms": 1e9}, {"burst": 0}, {"burst": 10**6}])
def test_impairments_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ImpairmentError, match="choose"):
        Impairment(**wrong)  # type: ignore[arg-type]
