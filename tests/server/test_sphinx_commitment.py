"""The commit rule on hypotheses that change in every way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engines.sphinx.commitment import Commitment, Hypothesis, PlacedWord

# On a machine with other work a single example may take any time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
STEP = 8
DELAYS = st.integers(1, 30).map(lambda steps: steps * STEP)
TEXTS = st.sampled_from(["the", "a", "cat", "sat"])  # few, so that repetitions are common


@st.composite
def sequences(draw: st.DrawFn) -> list[Hypothesis]:
    """One arbitrary hypothesis per step, each consistent in itself and unrelated to the one before."""
    hypotheses = []
    for step in range(1, draw(st.integers(1, 30)) + 1):
        words = []
        end = 0
        edge = max(0, step * STEP - draw(st.integers(0, 12)))
        while end < edge:
            start = end + draw(st.integers(0, 20))  # silence before the word
            end = min(start + draw(st.integers(1, 40)), edge)
            if start < end:
                words.append(PlacedWord(draw(TEXTS), start, end))
        hypotheses.append(Hypothesis(words, edge))
    return hypotheses


@patient
@given(sequences(), DELAYS)
def test_committed_words_stay_in_order_of_time(hypotheses: list[Hypothesis], delay: int) -> None:
    words = commit(hypotheses, delay)
    assert all(word.start <= word.end for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))


@patient
@given(sequences(), DELAYS)
def test_no_word_is_committed_before_its_end_lies_the_delay_behind(hypotheses: list[Hypothesis], delay: int) -> None:
    commitment = Commitment(delay)
    for step, hypothesis in enumerate(hypotheses, 1):
        committed, _ = commitment.advance(hypothesis, step * STEP)
        assert all(word.end <= step * STEP - delay for word in committed)


@patient
@given(sequences(), DELAYS)
def test_a_word_that_reaches_the_edge_stays_tentative(hypotheses: list[Hypothesis], delay: int) -> None:
    commitment = Commitment(delay)
    for step, hypothesis in enumerate(hypotheses, 1):
        committed, rest = commitment.advance(hypothesis, step * STEP)
        if hypothesis.words and hypothesis.words[-1].end == hypothesis.edge:
            assert hypothesis.words[-1] not in committed
            assert not committed or rest


@patient
@given(sequences(), DELAYS)
def test_tentative_words_lie_behind_the_committed_ones_and_are_the_hypothesis_end(
    hypotheses: list[Hypothesis], delay: int
) -> None:
    commitment = Commitment(delay)
    last_end = 0
    for step, hypothesis in enumerate(hypotheses, 1):
        committed, rest = commitment.advance(hypothesis, step * STEP)
        last_end = committed[-1].end if committed else last_end
        assert list(rest) == list(hypothesis.words[len(hypothesis.words) - len(rest) :])
        assert all(word.end > last_end for word in rest)


@patient
@given(sequences())
def test_an_endless_delay_gives_the_last_hypothesis(hypotheses: list[Hypothesis]) -> None:
    assert commit(hypotheses, math.inf) == list(hypotheses[-1].words)


@patient
@given(sequences(), DELAYS)
def test_settled_words_may_be_left_out(hypotheses: list[Hypothesis], delay: int) -> None:
    whole, short = Commitment(delay), Commitment(delay)
    for step, hypothesis in enumerate(hypotheses, 1):
        left = [word for word in hypothesis.words if word.end > short.settled]
        assert whole.advance(hypothesis, step * STEP) == short.advance(Hypothesis(left, hypothesis.edge), step * STEP)


@st.composite
def trembling(draw: st.DrawFn) -> tuple[list[str], list[Hypothesis]]:
    """A text, and hypotheses that all agree with it but place every border up to ``most`` frames off."""
    most = draw(st.integers(0, 3))
    texts = draw(st.lists(TEXTS, min_size=1, max_size=8))
    borders = [0]
    for _ in texts:
        borders.append(borders[-1] + draw(st.integers(4 * most + 1, 40)))
    hypotheses = []
    for heard in range(STEP, borders[-1] + 60, STEP):
        edge = min(heard, borders[-1] + most)
        moved = [max(0, border + draw(st.integers(-most, most))) for border in borders]
        words = [
            PlacedWord(text, start, min(end, edge))
            for text, start, end in zip(texts, moved, moved[1:], strict=False)
            if start < edge
        ]
        # Silence follows the last word, as the recogniser would place it there.
        hypotheses.append(Hypothesis(words, edge if edge == heard else heard))
    return texts, hypotheses


@patient
@given(trembling(), DELAYS)
def test_borders_that_tremble_neither_double_nor_lose_a_word(
    spoken: tuple[list[str], list[Hypothesis]], delay: int
) -> None:
    texts, hypotheses = spoken
    assert [word.text for word in commit(hypotheses, delay)] == texts


def test_a_word_is_committed_in_the_first_step_that_allows_it() -> None:
    commitment = Commitment(48)
    said = Hypothesis([PlacedWord("now", 10, 40)], edge=200)
    assert commitment.advance(said, 80) == ([], [PlacedWord("now", 10, 40)])
    assert commitment.advance(said, 88) == ([PlacedWord("now", 10, 40)], [])


def test_a_committed_word_that_grows_is_not_said_again() -> None:
    commitment = Commitment(8)
    commitment.advance(Hypothesis([PlacedWord("the", 10, 18)], edge=25), 26)
    grown = Hypothesis([PlacedWord("the", 10, 40), PlacedWord("cat", 40, 60)], edge=70)
    assert commitment.advance(grown, 80) == ([PlacedWord("cat", 40, 60)], [])


def test_a_repeated_word_is_said_twice_though_its_border_moves() -> None:
    commitment = Commitment(8)
    commitment.advance(Hypothesis([PlacedWord("that", 0, 30)], edge=35), 38)
    both = Hypothesis([PlacedWord("that", 0, 28), PlacedWord("that", 28, 60)], edge=70)
    assert commitment.advance(both, 80) == ([PlacedWord("that", 30, 60)], [])


def test_a_contradiction_after_the_commitment_changes_nothing() -> None:
    commitment = Commitment(8)
    commitment.advance(Hypothesis([PlacedWord("ice", 0, 20), PlacedWord("cream", 20, 50)], edge=60), 60)
    assert commitment.finish(Hypothesis([PlacedWord("I", 0, 12), PlacedWord("scream", 12, 50)], edge=60)) == []


def commit(hypotheses: Sequence[Hypothesis], delay: float) -> list[PlacedWord]:
    commitment = Commitment(delay)
    words: list[PlacedWord] = []
    for step, hypothesis in enumerate(hypotheses, 1):
        words += commitment.advance(hypothesis, step * STEP)[0]
    return [*words, *commitment.finish(hypotheses[-1])]
