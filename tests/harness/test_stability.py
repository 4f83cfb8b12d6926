"""Stability measures against transcripts whose changes are counted by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.stability import StreamStability, measure
from harness.timeline import Entry, Kind
from tests.harness.streams import appended, at, final, record, tentative


def test_append_only_is_perfectly_stable_even_when_words_come_in_pieces() -> None:
    found = measure(
        record(None, appended(1, "sev"), appended(2, "enteen tr"), appended(3, "ees."), final(4, "seventeen trees."))
    )
    assert found == StreamStability(final_words=2, unstable_words=0, erased_words=0, edits_made=2)
    assert (found.unstable_partial_word_ratio, found.normalized_erasure, found.edit_overhead) == (0, 0, 0)


def test_changed_and_removed_words() -> None:
    # "a b" -> "a x c": b changed (1), behind the common "a" one word goes and two come.
    # "a x c" -> "a c": x removed (1), behind "a" two go and one comes. Final the same.
    found = measure(record(None, tentative(1, "a b"), tentative(2, "a x c"), tentative(3, "a c"), final(4, "a c")))
    assert found.unstable_words == 2
    assert found.erased_words == 3
    assert found.edits_made == 2 + (1 + 2) + (2 + 1)
    assert found.unstable_partial_word_ratio == 1.0
    assert found.normalized_erasure == 1.5
    assert found.edit_overhead == pytest.approx(6 / 8)


def test_the_final_may_change_the_last_partial() -> None:
    assert measure(record(None, appended(1, "one too"), final(2, "one two"))).unstable_words == 1


def test_a_tentative_word_that_grows_was_changed() -> None:
    assert (
        measure(record(None, tentative(1, "seven"), tentative(2, "seventeen"), final(3, "seventeen"))).unstable_words
        == 1
    )


def test_case_and_punctuation_are_no_change() -> None:
    assert measure(record(None, tentative(1, "hello world"), final(2, "Hello, world."))).unstable_words == 0


def test_tentative_words_that_become_stable_are_unchanged() -> None:
    found = measure(
        record(
            None, tentative(1, "one two"), appended(2, "one"), tentative(2.1, " two three"), final(3, "one two three")
        )
    )
    # appending "one" alone takes the tentative "two" off for a moment, as the screen does
    assert (found.unstable_words, found.final_words) == (1, 3)
    together = measure(record(None, tentative(1, "one two"), appended(2, "one two"), final(3, "one two")))
    assert together.unstable_words == 0


def test_no_final_words_no_ratio() -> None:
    found = measure(record(None, tentative(1, "noise"), final(2, "")))
    assert found == StreamStability(final_words=0, unstable_words=1, erased_words=1, edits_made=2)
    assert found.unstable_partial_word_ratio is None
    assert found.normalized_erasure is None
    assert found.edit_overhead == 1.0
    assert measure(record(None)).edit_overhead is None


TEXTS = st.lists(st.sampled_from(["a", "b", "seven", "Seven,"]), max_size=6).map(" ".join)


@given(st.lists(TEXTS, max_size=8), TEXTS)
def test_counts_hold_together(partials: list[str], last: str) -> None:
    found = measure(record(None, *(tentative(k, text) for k, text in enumerate(partials)), final(20, last)))
    assert found.final_words == len(last.split())
    assert 0 <= found.unstable_words <= found.erased_words
    # Every word made stands at the end or was erased.
    assert found.edits_made == found.final_words + 2 * found.erased_words
    assert found.edit_overhead is None or 0 <= found.edit_overhead <= 1


@given(st.lists(st.text(alphabet="ab ,.", max_size=5), max_size=10))
def test_text_that_is_only_appended_is_never_unstable(pieces: list[str]) -> None:
    entries = [Entry(at(k), Kind.APPENDED, text=piece) for k, piece in enumerate(pieces)]
    found = measure(record(None, *entries, final(20, "".join(pieces))))
    assert (found.unstable_words, found.erased_words) == (0, 0)
    assert found.edits_made == found.final_words
