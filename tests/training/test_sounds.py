"""Pronunciations, and how sounds share out the time of a word."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.grammar import WORDS
from training.sounds import PRONUNCIATIONS, SOUNDS, spans


def test_every_word_has_a_pronunciation_and_only_homophones_share_one() -> None:
    assert set(PRONUNCIATIONS) == set(WORDS)
    words_of: dict[tuple[str, ...], set[str]] = {}
    for word, sounds in PRONUNCIATIONS.items():
        words_of.setdefault(sounds, set()).add(word)
    shared = {frozenset(words) for words in words_of.values() if len(words) > 1}
    assert shared == {frozenset(pair) for pair in (("two", "to"), ("four", "for"), ("eight", "ate"))}


@given(st.sampled_from(WORDS), st.floats(0, 100), st.floats(0.01, 2))
def test_sounds_fill_their_word_in_order(word: str, start: float, length: float) -> None:
    found = spans(word, start, start + length)
    assert tuple(SOUNDS[index] for index, _, _ in found) == PRONUNCIATIONS[word]
    assert found[0][1] == start
    assert found[-1][2] == pytest.approx(start + length)
    for (_, begin, end), (_, following, _) in itertools.pairwise(found):
        assert begin < end == following
