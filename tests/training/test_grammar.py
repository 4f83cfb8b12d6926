"""Every sentence is made of the vocabulary, every word comes often enough, and words tell about their neighbours."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.normalise import default_name, normaliser
from training.grammar import LONGEST_WORDS, RULES, WORDS, part, sentence, sentence_of

DRAWN = 20_000


@pytest.fixture(scope="module")
def sentences() -> list[list[str]]:
    random = np.random.default_rng(5)
    return [sentence(random) for _ in range(DRAWN)]


@given(st.integers(0, 2**63))
def test_a_sentence_is_short_and_of_the_vocabulary(seed: int) -> None:
    words = sentence(np.random.default_rng(seed))
    assert 1 <= len(words) <= LONGEST_WORDS
    assert set(words) <= set(WORDS)
    assert words == sentence(np.random.default_rng(seed))


def test_the_vocabulary_is_what_the_rules_can_say() -> None:
    symbols = {symbol for options in RULES.values() for option in options for symbol in option.parts}
    assert {symbol for symbol in symbols if not symbol.startswith("<")} == set(WORDS)
    assert len(WORDS) == len(set(WORDS))
    assert {symbol[1:-1] for symbol in symbols if symbol.startswith("<")} == set(RULES) - {"sentence"}


def test_no_word_is_starved(sentences: list[list[str]]) -> None:
    counts = Counter(word for words in sentences for word in words)
    share = {word: counts[word] * len(WORDS) / counts.total() for word in WORDS}
    assert min(share.values()) > 1 / 4, min(share.items(), key=lambda entry: entry[1])
    assert max(share.values()) < 5, max(share.items(), key=lambda entry: entry[1])


def test_sentences_hardly_repeat(sentences: list[list[str]]) -> None:
    assert len(set(map(tuple, sentences))) > 0.55 * DRAWN
    assert 0.02 < sum(len(words) == 1 for words in sentences) / DRAWN < 0.12


def test_the_word_after_tells_much_about_the_word_before(sentences: list[list[str]]) -> None:
    """Bits that the next word takes from the uncertainty about a word; words drawn by chance would give next to none."""
    pairs = [pair for words in sentences for pair in zip(words, [*words[1:], ""], strict=True)]
    assert _mutual_information_bits(pairs) > 1.5
    shuffled = np.random.default_rng(6).permutation([after for _, after in pairs])
    assert (
        _mutual_information_bits([(word, str(after)) for (word, _), after in zip(pairs, shuffled, strict=True)]) < 0.3
    )


@pytest.mark.parametrize(
    ("one", "other", "settled"),
    [
        ("two", "to", 0.5),
        ("four", "for", 0.6),
        ("eight", "ate", 0.65),
        ("seventeen", "seventy", 0.4),
        ("fifteen", "fifty", 0.4),
    ],
)
def test_the_word_after_settles_what_sounds_alike(
    sentences: list[list[str]], one: str, other: str, settled: float
) -> None:
    """Of the uncertainty between two words, the part that is gone once the next word is known, at least."""
    pairs = [
        pair for words in sentences for pair in zip(words, [*words[1:], ""], strict=True) if pair[0] in (one, other)
    ]
    share = sum(word == one for word, _ in pairs) / len(pairs)
    uncertainty = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert 0.08 < share < 0.92
    assert _mutual_information_bits(pairs) / uncertainty > settled


def test_normalising_for_scores_keeps_different_sentences_apart(sentences: list[list[str]]) -> None:
    """Words are kept or become digits; none vanishes, and the homophones stay different."""
    normalise = normaliser(default_name("en")).apply
    for pair in (("to", "two"), ("for", "four"), ("ate", "eight"), ("fifteen", "fifty")):
        assert normalise(pair[0]) != normalise(pair[1])
    for word in WORDS:
        assert normalise(word), word
    for words in sentences[:300]:
        assert normalise(" ".join(words)) == normalise(" ".join(words).upper())


def test_the_parts_share_no_sentence(sentences: list[list[str]]) -> None:
    parts = Counter(part(words) for words in sentences)
    assert 0.02 < parts["development"] / DRAWN < 0.06
    assert 0.02 < parts["test"] / DRAWN < 0.06
    random = np.random.default_rng(7)
    for wanted in ("train", "development", "test"):
        assert all(part(sentence_of(wanted, random)) == wanted for _ in range(50))
    assert part(["wait", "for", "ten", "minutes"]) == part(("wait", "for", "ten", "minutes"))
    assert part(["yes", "please"]) == "train"


def _mutual_information_bits(pairs: list[tuple[str, str]]) -> float:
    both, before, after = Counter(pairs), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    return sum(
        count / len(pairs) * math.log2(count * len(pairs) / (before[a] * after[b])) for (a, b), count in both.items()
    )
