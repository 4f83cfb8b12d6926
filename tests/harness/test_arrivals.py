from __future__ import annotations

import math
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.arrivals import ArrivalError, Closed, Fixed, Poisson, Ramp, Recorded, parse, planned, read, starts

rates = st.floats(0.01, 500)


def times(arrivals: Poisson | Fixed | Ramp | Recorded, count: int, seed: int = 0) -> list[float]:
    return [seconds for seconds, _ in islice(starts(arrivals, seed), count)]


@pytest.mark.parametrize(
    ("text", "process"),
    [
        ("closed", Closed()),
        ("poisson:2.5", Poisson(2.5)),
        ("fixed:4", Fixed(4.0)),
        ("ramp:0.5-4:60", Ramp(0.5, 4.0, 60.0)),
        ("ramp:0-4:60", Ramp(0.0, 4.0, 60.0)),
    ],
)
def test_what_is_written_is_read_and_written_again(text: str, process: object) -> None:
    assert parse(text) == process
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "open", "closed:1", "poisson", "poisson:0", "poisson:-1", "poisson:nan", "poisson:inf", "fixed:1e9", "fixed:x",
     "ramp:1:5", "ramp:1-2", "ramp:1-0:5", "ramp:1-2:0", "file:", "file:/nowhere/at/all.csv"],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ArrivalError, match=r"expected|cannot be read"):
        parse(text)


@given(rates, st.integers(0, 2**31))
def test_starts_of_every_process_ascend_from_nought_on(rate: float, seed: int) -> None:
    for process in (Poisson(rate), Fixed(rate), Ramp(0.0, rate, 30.0), Ramp(rate, rate / 2, 10.0)):
        found = times(process, 50, seed)
        assert found[0] >= 0
        assert all(one <= other for one, other in pairwise(found))


def test_fixed_starts_are_evenly_spaced() -> None:
    assert times(Fixed(4.0), 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() -> None:
    gaps = [after - before for before, after in pairwise([0.0, *times(Poisson(5.0), 20_000, seed=1)])]
    mean = sum(gaps) / len(gaps)
    assert mean == pytest.approx(1 / 5, rel=0.03)  # the standard error is 0.7 %
    assert math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) == pytest.approx(mean, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.02)


def test_a_ramp_begins_as_many_streams_as_the_area_under_its_rate() -> None:
    ramp = Ramp(10.0, 50.0, 100.0)  # 3000 in the ramp, 50 a second after it
    found = times(ramp, 6000, seed=3)
    for until, expected in ((50.0, 1000), (100.0, 3000), (140.0, 5000)):
        count = sum(seconds < until for seconds in found)
        assert abs(count - expected) < 5 * math.sqrt(expected)


def test_the_same_seed_gives_the_same_starts_and_another_one_others() -> None:
    assert times(Poisson(3.0), 20, seed=7) == times(Poisson(3.0), 20, seed=7)
    assert times(Poisson(3.0), 20, seed=7) != times(Poisson(3.0), 20, seed=8)


@given(rates, st.floats(0.1, 20), st.integers(1, 100))
def test_as_many_are_planned_as_fit(rate: float, seconds: float, most: int) -> None:
    found = planned(Fixed(rate), 0, most, seconds)
    assert len(found) == min(most, len([n for n in range(most) if n / rate < seconds]))


def test_a_schedule_is_read_with_and_without_a_header(tmp_path: Path) -> None:
    plain, headed = tmp_path / "plain.csv", tmp_path / "headed.csv"
    plain.write_text("# peak hour\n100.5\n\n100,\n102.25\n")
    headed.write_text("utterance,start_seconds\nb,100.5\n,100\na,102.25\n")
    assert read(plain).starts == ((0.0, None), (0.5, None), (2.25, None))
    assert read(headed).starts == ((0.0, None), (0.5, "b"), (2.25, "a"))
    assert str(read(headed)).startswith("file:headed#")
    assert read(plain).sha256 != read(headed).sha256


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no start"), ("1\nsoon\n", r":2: start_seconds is 'soon'"), ("0\n9999999\n", "week"), ("nan\n", "nan")],
)
def test_a_schedule_that_makes_no_sense_names_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ArrivalError, match=said) as told:
        read(path)
    assert "bad.csv" in str(told.value)
