"""Agreement of two hypotheses in a row, on hypotheses written by hand."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.engines.whisper.agreement import Agreement, following
from wire.words import TimedWord


def words(*placed: tuple[str, float, float]) -> list[TimedWord]:
    return [TimedWord(f" {text}", start, end) for text, start, end in placed]


def evenly(text: str, start: float = 0.0, each: float = 0.5) -> list[TimedWord]:
    """Words of half a second, one after the other."""
    return [
        TimedWord(f" {word}", start + each * index, start + each * (index + 1))
        for index, word in enumerate(text.split())
    ]


def text_of(committed: object) -> str:
    return "".join(word.text for word in committed).strip()  # type: ignore[attr-defined]


def test_one_hypothesis_alone_commits_nothing() -> None:
    agreement = Agreement(0.0)
    assert agreement.advance(evenly("the cat sat"), 10.0) == []
    assert text_of(agreement.candidates) == "the cat sat"


def test_the_common_beginning_of_two_in_a_row_is_committed() -> None:
    agreement = Agreement(0.0)
    agreement.advance(evenly("the cat sad"), 1.5)
    assert text_of(agreement.advance(evenly("the cat sat on"), 2.0)) == "the cat"
    assert text_of(agreement.candidates) == "sat on"
    assert text_of(agreement.advance(evenly("the cat sat on a"), 2.5)) == "sat on"


def test_the_one_before_the_last_does_not_count() -> None:
    agreement = Agreement(0.0)
    agreement.advance(evenly("ice cream"), 1.0)
    assert agreement.advance(evenly("I scream"), 1.0) == []
    assert agreement.advance(evenly("ice cream"), 1.0) == []


def test_a_word_waits_until_its_end_lies_the_delay_behind() -> None:
    agreement = Agreement(0.48)
    said = words(("now", 0.1, 0.5))
    agreement.advance(said, 0.6)
    assert agreement.advance(said, 0.97) == []
    assert agreement.advance(said, 0.98) == said


def test_no_word_is_committed_before_one_that_has_to_wait() -> None:
    agreement = Agreement(1.0)
    said = words(("one", 0.0, 2.0), ("two", 0.5, 1.0))  # times of cross-attention are not always in order
    agreement.advance(said, 2.5)
    assert agreement.advance(said, 2.5) == []


def test_another_opinion_about_committed_words_changes_nothing() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.advance(evenly("ice cream"), 1.0)
    assert agreement.advance(evenly("I scream for"), 1.5) == []
    assert text_of(agreement.candidates) == "for"


def test_committed_words_that_are_heard_as_more_words_are_not_said_again() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.advance(words(("cannot", 0.0, 0.6)), 0.6)
    agreement.advance(words(("can", 0.0, 0.3), ("not", 0.3, 0.62), ("go", 0.62, 0.9)), 1.0)
    assert text_of(agreement.candidates) == "go"


def test_a_word_that_is_repeated_is_said_twice_though_its_border_moves() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.advance(words(("that", 0.0, 0.34)), 0.4)
    again = words(("that", 0.0, 0.28), ("that", 0.28, 0.6))
    agreement.advance(again, 0.7)
    assert agreement.advance(again, 0.8) == words(("that", 0.34, 0.6))


def test_a_word_behind_one_that_was_found_again_is_new_wherever_its_borders_are() -> None:
    said = words(("no", 0.0, 0.3), ("no", 0.3, 0.6))
    again = words(("no", 0.0, 0.2), ("no", 0.2, 0.45), ("no", 0.45, 0.7))
    assert following(said, again, 0.6) == words(("no", 0.45, 0.7))


def test_the_end_commits_what_is_left() -> None:
    agreement = Agreement(2.0)
    agreement.advance(evenly("the cat"), 1.0)
    assert text_of(agreement.finish()) == "the cat"
    assert agreement.finish() == []
    assert agreement.candidates == []


def test_what_is_committed_by_force_is_not_candidate_any_more() -> None:
    agreement = Agreement(2.0)
    agreement.advance(evenly("one two three"), 1.5)
    assert text_of(agreement.commit_until(1.0)) == "one two"
    assert text_of(agreement.candidates) == "three"


def test_words_before_the_window_are_forgotten() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.advance(evenly("one two three"), 1.5)
    assert text_of(agreement.forget(1.0)) == "one two"
    assert text_of(agreement.committed) == "three"


def test_a_word_that_follows_its_like_before_the_window_is_new() -> None:
    agreement = Agreement(0.0)
    for _ in range(2):
        agreement.advance(evenly("no"), 0.5)
    agreement.forget(0.5)
    again = words(("no", 0.52, 0.9))
    agreement.advance(again, 1.0)
    assert agreement.advance(again, 1.0) == again


def test_nothing_committed_leaves_all() -> None:
    assert following([], evenly("a b"), 0.0) == evenly("a b")


def test_a_hypothesis_that_has_lost_the_committed_words_goes_on_behind_them() -> None:
    assert following(evenly("a b"), words(("c", 1.1, 1.4)), 1.0) == words(("c", 1.1, 1.4))


def test_a_tail_of_the_last_word_is_not_a_new_word() -> None:
    assert following(words(("seven", 0.0, 0.5)), words(("en", 0.3, 0.5), ("eight", 0.5, 0.9)), 0.5) == words(
        ("eight", 0.5, 0.9)
    )


TEXTS = st.sampled_from(["the", "a", "cat", "sat"])


@st.composite
def hypotheses(draw: st.DrawFn) -> list[list[TimedWord]]:
    """What a recogniser might believe as time goes on, each unrelated to the one before."""
    made = []
    for step in range(1, draw(st.integers(1, 12)) + 1):
        end, said = 0.0, []
        while end < step * 0.5:
            start = end + draw(st.integers(0, 20)) / 100
            end = start + draw(st.integers(1, 40)) / 100
            said.append(TimedWord(f" {draw(TEXTS)}", start, end))
        made.append(said)
    return made


@given(hypotheses(), st.integers(1, 30).map(lambda steps: steps * 0.08))
def test_what_is_committed_is_in_order_and_never_early(sequence: list[list[TimedWord]], delay: float) -> None:
    agreement = Agreement(delay)
    said: list[TimedWord] = []
    for step, hypothesis in enumerate(sequence, 1):
        committed = agreement.advance(hypothesis, step * 0.5)
        assert all(word.end <= step * 0.5 - delay + 1e-5 for word in committed if word.start < word.end)
        said += committed
    said += agreement.finish()
    assert agreement.committed == said
    assert all(word.start <= word.end for word in said)
    assert all(before.end <= after.start for before, after in pairwise(said))
