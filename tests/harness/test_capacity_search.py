from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.capacity.search import MOST_UNCLEAR, Answer, Bounds, Purpose, Trial, Verdict, Wanted, next_step

Server = Callable[[int, int], Verdict]
"""What the measurement of so many streams says, and how many there were of that rung before."""


def search(server: Server, bounds: Bounds, trials: list[Trial] | None = None) -> tuple[Answer, list[Trial]]:
    """Measure what is asked for until there is an answer."""
    done = list(trials or [])
    for _ in range(2000):
        match next_step(done, bounds):
            case Answer() as answer:
                return answer, done
            case Wanted(streams, purpose):
                before = sum(trial.streams == streams for trial in done)
                done.append(Trial(streams, server(streams, before), purpose is Purpose.SOAK))
    raise AssertionError("the search does not end")


def carries(limit: int) -> Server:
    return lambda streams, _: Verdict.HOLDS if streams <= limit else Verdict.FAILS


bounds_of = st.builds(
    Bounds,
    start=st.integers(1, 20),
    most=st.integers(20, 600),
    step=st.integers(1, 7),
    repeats=st.integers(1, 4),
    soak=st.booleans(),
)


@given(st.integers(1, 700), bounds_of)
def test_the_answer_is_the_limit_to_within_a_step(limit: int, bounds: Bounds) -> None:
    answer, trials = search(carries(limit), bounds)
    assert answer.streams <= min(limit, bounds.most)
    assert answer.repeats >= bounds.repeats
    if limit >= bounds.most:
        assert (answer.streams, answer.above, answer.limited_by) == (bounds.most, None, "most")
    else:
        assert answer.above is not None
        assert answer.streams <= limit < answer.above <= answer.streams + bounds.step
        assert answer.limited_by == "slo"
        assert sum(trial.streams == answer.above for trial in trials) == 2  # one step above is looked at twice
    assert trials[0].streams == 1
    assert any(trial.soak for trial in trials) == bounds.soak


@given(st.integers(1, 500))
def test_it_takes_about_twice_the_logarithm_of_the_answer(limit: int) -> None:
    bounds = Bounds(start=2, most=1024, repeats=2)
    _, trials = search(carries(limit), bounds)
    assert len(trials) <= 2 * math.log2(limit) + 5


@pytest.mark.parametrize("limit", range(10, 40))
@pytest.mark.parametrize("repeats", [2, 3])
def test_it_takes_at_most_half_the_runs_of_a_ladder_from_ten_streams_on(limit: int, repeats: int) -> None:
    _, trials = search(carries(limit), Bounds(repeats=repeats))
    ladder = limit * repeats + 1  # every rung so often, up to the first that fails
    assert 2 * len(trials) <= ladder


def test_the_rungs_of_a_plain_search() -> None:
    _, trials = search(carries(11), Bounds(repeats=2))
    assert [trial.streams for trial in trials] == [1, 2, 4, 8, 16, 12, 10, 11, 11, 12]


def test_a_server_that_cannot_carry_one_stream_has_the_answer_nought() -> None:
    answer, trials = search(carries(0), Bounds())
    assert (answer.streams, answer.above, answer.limited_by) == (0, 1, "slo")
    assert len(trials) == 2


def test_a_rung_that_fails_when_it_is_confirmed_is_no_answer() -> None:
    def flickering(streams: int, before: int) -> Verdict:
        return Verdict.HOLDS if streams < 6 or (streams == 6 and before == 0) else Verdict.FAILS

    answer, _ = search(flickering, Bounds(repeats=3))
    assert (answer.streams, answer.above) == (5, 6)
    assert "edge is not sharp" in answer.notes[0]


def test_a_soak_that_fails_sends_the_search_down() -> None:
    soaked: list[int] = []
    done: list[Trial] = []
    bounds = Bounds(repeats=2, soak=True)
    while isinstance(step := next_step(done, bounds), Wanted):
        soak = step.purpose is Purpose.SOAK
        if soak:
            soaked.append(step.streams)
        holds = step.streams <= (4 if soak else 6)
        done.append(Trial(step.streams, Verdict.HOLDS if holds else Verdict.FAILS, soak))
    assert soaked == [6, 5, 4]
    assert step.streams == 4


def test_a_generator_that_is_at_its_end_is_not_taken_for_the_server() -> None:
    def weak_generator(streams: int, _: int) -> Verdict:
        return Verdict.HOLDS if streams <= 20 else Verdict.UNCLEAR

    answer, trials = search(weak_generator, Bounds(repeats=2))
    assert (answer.streams, answer.above, answer.limited_by) == (20, 21, "generator")
    assert sum(trial.streams == 21 for trial in trials) == MOST_UNCLEAR


def test_a_disturbed_rung_is_measured_again() -> None:
    def disturbed_at_first(streams: int, before: int) -> Verdict:
        return Verdict.UNCLEAR if before == 0 else carries(5)(streams, before)

    answer, _ = search(disturbed_at_first, Bounds(repeats=2))
    assert (answer.streams, answer.above) == (5, 6)


@given(st.integers(1, 60), st.randoms(use_true_random=False), bounds_of)
def test_the_search_ends_whatever_the_measurements_say(limit: int, chance: object, bounds: Bounds) -> None:
    def noisy(streams: int, _: int) -> Verdict:
        sure = carries(limit)(streams, 0)
        return chance.choice([sure, sure, Verdict.HOLDS, Verdict.FAILS, Verdict.UNCLEAR])  # type: ignore[attr-defined, no-any-return]

    answer, trials = search(noisy, bounds)
    failed = {trial.streams for trial in trials if trial.verdict is Verdict.FAILS}
    assert answer.streams not in failed
    assert answer.streams == 0 or any(
        trial.streams == answer.streams and trial.verdict is Verdict.HOLDS for trial in trials
    )


@given(st.integers(1, 100), bounds_of, st.data())
def test_a_search_goes_on_where_it_was_left(limit: int, bounds: Bounds, data: st.DataObject) -> None:
    answer, trials = search(carries(limit), bounds)
    left_at = data.draw(st.integers(0, len(trials)))
    assert search(carries(limit), bounds, trials[:left_at]) == (answer, trials)


@pytest.mark.parametrize("wrong", [{"start": 0}, {"step": 0}, {"repeats": 0}, {"start": 9, "most": 8}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is"):
        Bounds(**wrong)  # type: ignore[arg-type]
