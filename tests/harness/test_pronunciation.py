"""Readings of numbers, signs and unknown words, written out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.pronunciation import MOST_READINGS, cardinal, guess, number_readings, readings, spelled

WORDS = {"sun": "S AH N", "room": "R UW M", "walk": "W AO K", "bake": "B EY K", "box": "B AA K S", "mary": "M EH R IY",
         "five": "F AY V", "percent": "P ER S EH N T", "and": "AH N D", "doctor": "D AA K T ER", "city": "S IH T IY"}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "among"),
    [
        ("25", "twenty five"),
        ("100", "one hundred"),
        ("101", "one oh one"),
        ("1999", "nineteen ninety nine"),
        ("1905", "nineteen oh five"),
        ("1900", "nineteen hundred"),
        ("2001", "two thousand one"),
        ("2001", "two thousand and one"),
        ("365", "three hundred and sixty five"),
        ("1,250,000", "one million two hundred fifty thousand"),
        ("007", "zero zero seven"),
        ("007", "oh oh seven"),
        ("2.5", "two point five"),
        ("0.25", "zero point two five"),
        ("21st", "twenty first"),
        ("20th", "twentieth"),
        ("3rd", "third"),
        ("12th", "twelfth"),
        ("90s", "nineties"),
        ("1960s", "nineteen sixties"),
        ("$5", "five dollars"),
        ("$1", "one dollar"),
        ("£20", "twenty pounds"),
    ],
)
def test_what_people_say_for_a_number(text: str, among: str) -> None:
    assert among in number_readings(text)


@given(st.integers(0, 10**15 - 1))
def test_a_number_can_be_told_from_its_words(number: int) -> None:
    values = {cardinal(n): n for n in range(100)}
    total = part = 0
    words = cardinal(number).split()
    scales = {"thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
    place = 0
    while place < len(words):
        pair = " ".join(words[place : place + 2])
        if words[place] == "hundred":
            part *= 100
        elif words[place] in scales:
            total, part = total + part * scales[words[place]], 0
        elif pair in values and len(pair.split()) == 2:
            part, place = part + values[pair], place + 1
        else:
            part += values[words[place]]
        place += 1
    assert total + part == number


@pytest.mark.parametrize(
    ("word", "phones"),
    [
        ("sunroom", "S AH N R UW M"),
        ("walks", "W AO K S"),
        ("mary's", "M EH R IY Z"),
        ("boxes", "B AA K S IH Z"),
        ("cities", "S IH T IY Z"),
        ("walking", "W AO K IH NG"),
        ("baking", "B EY K IH NG"),
        ("baker", "B EY K ER"),
    ],
)
def test_known_words_are_found_in_unknown_ones(word: str, phones: str) -> None:
    assert guess(word, WORDS.get) == phones


@pytest.mark.parametrize(
    ("word", "phones"),
    [("tymer", "T IY M ER"), ("quick", "K W IH K"), ("nation", "N AE SH AH N"), ("phish", "F IH SH"), ("ridge", "R IH JH"),
     ("zapp", "Z AE P"), ("zone", "Z AA N"), ("cell", "S EH L"), ("ace", "AE S")],
)  # fmt: skip
def test_spelling_by_the_usual_sounds(word: str, phones: str) -> None:
    assert spelled(word) == phones


def test_tokens() -> None:
    assert readings("5%", WORDS.get)[0] == "F AY V P ER S EH N T"
    assert readings("Sun-room!", WORDS.get) == ["S AH N R UW M"]
    assert "D AA K T ER" in readings("Dr.", WORDS.get)
    assert readings("U.S.", WORDS.get)[0] == "Y UW EH S"
    assert readings("IBM", WORDS.get)[0] == "AY B IY EH M"
    assert readings("Zoë", WORDS.get) == readings("zoe", WORDS.get)
    assert readings("—", WORDS.get) == []
    assert readings("...", WORDS.get) == []


@given(st.text(max_size=12))
def test_any_token_has_few_readings_of_known_phones(token: str) -> None:
    known = {phone for text in (*WORDS.values(), *(readings(char, WORDS.get)[0] for char in "abcdefghijklmnopqrstuvwxyz")) for phone in
             text.split()}  # fmt: skip
    found = readings(token, WORDS.get)
    assert len(found) <= MOST_READINGS
    for reading in found:
        assert reading == " ".join(reading.split())
        assert all(phone.isalpha() and phone.isupper() for phone in reading.split())
    assert known
