"""References that allow several answers, against every answer tried one by one."""

from __future__ import annotations

from itertools import combinations, pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import accuracy
from harness.accuracy import WordErrors, diff, word_errors
from harness.normalise import normaliser
from harness.references import Choice, has_choices, parse, plain, problem, resolve
from harness.timeline import Outcome, StreamRecord


def errors(reference: str, hypothesis: str, name: str = "basic/1", language: str = "en") -> WordErrors:
    record = StreamRecord(0, "u", 0, 1.0, reference, outcome=Outcome.OK, hypothesis=hypothesis, language=language)
    return accuracy.measure(record, normaliser(name)).words


def test_places_of_a_reference() -> None:
    assert parse("the {gray|light grey} {uh|} cat <*>") == [
        Choice(("the",)),
        Choice(("gray", "light grey")),
        Choice(("uh", "")),
        Choice(("cat",)),
        Choice(()),
    ]
    assert plain("the {gray|grey} {uh|} cat <*> sat {|now}") == "the gray uh cat sat"
    assert plain("set {x} to <b>") == "set {x} to <b>"
    assert not has_choices("set {x} to <b>")


@pytest.mark.parametrize(
    ("hypothesis", "expected"),
    [
        ("the gray cat", WordErrors(3, 0, 0, 0)),
        ("the light grey cat", WordErrors(4, 0, 0, 0)),
        ("the light gray cat", WordErrors(3, 0, 0, 1)),  # "gray" and a word too many: three of three words are right
        ("the cat", WordErrors(2, 0, 1, 0)),  # the alternative of one word is the one that is missing
        ("", WordErrors(0, 0, 3, 0)),
    ],
)
def test_any_alternative_is_right(hypothesis: str, expected: WordErrors) -> None:
    assert errors("the {gray|light grey} cat", hypothesis) == expected


def test_the_alternative_with_the_fewest_errors_is_chosen() -> None:
    # One error under "light grey" (a substitution), two under "grey".
    assert errors("{grey|light grey}", "light gray") == WordErrors(1, 1, 0, 0)


def test_a_word_that_may_be_missing() -> None:
    assert errors("{well|} I think", "I think") == WordErrors(2, 0, 0, 0)
    assert errors("{well|} I think", "well I think") == WordErrors(3, 0, 0, 0)
    assert errors("{well|} I think", "so I think") == WordErrors(2, 1, 0, 0)  # one error either way: the first listed


def test_anything_may_stand_where_nobody_could_understand() -> None:
    assert errors("before <*> after", "before whatever was said there after") == WordErrors(2, 0, 0, 0)
    assert errors("before <*> after", "before after") == WordErrors(2, 0, 0, 0)
    assert errors("before <*>", "be whatever") == WordErrors(0, 1, 0, 0)
    assert errors("<*>", "all of this") == WordErrors(0, 0, 0, 0)


def test_a_word_before_the_gap_is_not_taken_for_one_after_it() -> None:
    # "b" stands for the wrong "a" and "x y" for anything: the "b" behind the gap is missing too.
    assert errors("a <*> b", "b x y").errors == 2


def test_numbers_in_an_alternative_are_normalised_by_themselves() -> None:
    digitwise = "whisper-english-digitwise/1"
    assert errors("it is {one hundred|a hundred}", "it is 100", digitwise) == WordErrors(5, 0, 0, 0)
    assert errors("room {one oh one|101}", "room one oh one", digitwise) == WordErrors(4, 0, 0, 0)


def test_choices_are_by_character_where_no_blanks_are_written() -> None:
    record = StreamRecord(0, "u", 0, 1.0, "我{有|没有}钱", outcome=Outcome.OK, hypothesis="我没有钱", language="zh")
    found = accuracy.measure(record, normaliser("basic/1"))
    assert (found.reference_characters, found.character_errors) == (4, 0)


def test_diff_shows_what_was_chosen() -> None:
    assert diff("a {b|c} <*> d", "a c x y d", normaliser("none")) == [
        ("equal", ("a", "c"), ("a", "c")),
        ("equal", ("d",), ("d",)),
    ]


@pytest.mark.parametrize("text", ["{a|b", "a|b}", "{a|{b|c}}", "{a|b} {c|"])
def test_braces_that_do_not_match_are_a_problem(text: str) -> None:
    assert "write {a|b}" in (problem(text) or "")


@pytest.mark.parametrize("text", ["{a|b} c", "{|a}", "f(x) = {x}", "a | b", "plain <*>"])
def test_what_can_be_read_is_none(text: str) -> None:
    assert problem(text) is None


WORDS = st.lists(st.sampled_from("abc"), max_size=3)
PLACES = st.lists(st.lists(WORDS, min_size=1, max_size=3) | st.none(), max_size=4)


@settings(max_examples=150, deadline=None)
@given(PLACES, st.lists(st.sampled_from("abc"), max_size=5))
def test_no_other_choice_has_fewer_errors(places: list[list[list[str]] | None], hypothesis: list[str]) -> None:
    def written(options: list[list[str]] | None) -> str:
        if options is None:
            return "<*>"
        return "{" + "|".join(" ".join(words) for words in [*options, options[0]]) + "}"

    reference = " ".join(map(written, places))
    stretches = resolve(reference, hypothesis, str.split)
    total = sum(word_errors(said, heard).errors for said, heard in stretches)
    hits = sum(most_hits(said, heard) for said, heard in stretches)
    assert (total, -hits) == min(every_way(places, hypothesis))


def every_way(places: list[list[list[str]] | None], hypothesis: list[str]) -> list[tuple[int, int]]:
    """Errors and hits of every choice: the hypothesis is cut into as many pieces as there are places, in every way."""
    ways = []
    cuts = combinations(range(len(hypothesis) + len(places) + 1), max(0, len(places) - 1)) if places else [()]
    for cut in cuts:
        marks = [0, *(place - number for number, place in enumerate(cut)), len(hypothesis)]
        if marks != sorted(marks):
            continue
        pieces = [hypothesis[a:b] for a, b in pairwise(marks)] if places else []
        anything: list[list[str] | None] = [None]
        for choice in product(*(options or anything for options in places)):
            total = hits = 0
            for said, piece in zip(choice, pieces, strict=True):
                if said is not None:
                    found = word_errors(list(said), piece)
                    total, hits = total + found.errors, hits + most_hits(said, piece)
            ways.append((total if places else len(hypothesis), -hits))
    return ways


def most_hits(said: list[str], piece: list[str]) -> int:
    """Of the alignments with the fewest errors, the most words that are right."""
    rows = [[(place, 0) for place in range(len(piece) + 1)]]
    for number, word in enumerate(said, start=1):
        row = [(number, 0)]
        for place, heard in enumerate(piece):
            error, hit = rows[-1][place]
            ways = [(error, hit - 1) if word == heard else (error + 1, hit)]
            ways += [(one + 1, two) for one, two in (rows[-1][place + 1], row[place])]
            row.append(min(ways))
        rows.append(row)
    return -rows[-1][-1][1]
