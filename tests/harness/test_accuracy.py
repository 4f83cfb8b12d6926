"""Word errors against hand counts and a second implementation; what the normalisers call equal."""

from __future__ import annotations

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import accuracy
from harness.accuracy import WordErrors, diff, word_errors
from harness.normalise import NAMES, default_name, normaliser
from harness.timeline import Outcome, StreamRecord

DIGITWISE = normaliser("whisper-english-digitwise/1")


def spoken(reference: str, hypothesis: str, outcome: Outcome = Outcome.OK, language: str = "en") -> StreamRecord:
    return StreamRecord(0, "u", 0, 3.0, reference, outcome=outcome, hypothesis=hypothesis, language=language)


def test_hits_substitutions_deletions_and_insertions() -> None:
    # cat->hat, down deleted, here inserted, the rest right
    reference, hypothesis = ["the", "cat", "sat", "down", "on", "it"], ["the", "hat", "sat", "on", "it", "here"]
    found = word_errors(reference, hypothesis)
    assert found == WordErrors(hits=4, substitutions=1, deletions=1, insertions=1)
    assert found.reference_words == 6
    assert found.wer == 0.5


def test_no_rate_for_an_empty_reference() -> None:
    assert word_errors([], ["ghost", "words"]) == WordErrors(0, 0, 0, 2)
    assert word_errors([], ["ghost", "words"]).wer is None
    assert word_errors([], []).wer is None


def test_a_failed_stream_is_all_deletions_whatever_it_had_shown() -> None:
    for outcome in (Outcome.FAILED, Outcome.REJECTED):
        found = accuracy.measure(spoken("one more thing", "one more thing", outcome), DIGITWISE)
        assert (found.words.deletions, found.words.errors, found.raw.deletions) == (3, 3, 3)
        assert found.character_errors == found.reference_characters == len("1 more thing")


def test_an_empty_hypothesis_is_all_deletions() -> None:
    assert accuracy.measure(spoken("two words", ""), normaliser("none")).words == WordErrors(0, 0, 2, 0)


def test_words_heard_in_silence_are_hallucinated_and_in_speech_inserted() -> None:
    silence = accuracy.measure(spoken("  ", "thank you"), DIGITWISE)
    assert (silence.non_speech, silence.hallucinated_words, silence.words.wer) == (True, 2, None)
    # "um" is speech that the normaliser takes away: no word to divide by, yet what was heard is an insertion.
    hesitation = accuracy.measure(spoken("um", "thank you"), DIGITWISE)
    assert (hesitation.non_speech, hesitation.hallucinated_words, hesitation.words.insertions) == (False, 0, 2)


def test_raw_errors_are_counted_before_normalisation() -> None:
    found = accuracy.measure(spoken("It's a colour.", "it is a color"), DIGITWISE)
    assert found.words.errors == 0
    # It's->it, "is" inserted, a=a, colour.->color
    assert (found.raw.substitutions, found.raw.insertions, found.raw.hits) == (2, 1, 1)


def test_characters_are_counted_without_blanks_where_none_are_written() -> None:
    chinese = accuracy.measure(spoken("你好世界", "你好 世间", language="zh-CN"), normaliser("basic/1"))
    assert (chinese.reference_characters, chinese.character_errors) == (4, 1)
    # In English the blank is a character: "at" for "a t" is one deletion in three.
    english = accuracy.measure(spoken("a t", "at"), normaliser("basic/1"))
    assert (english.reference_characters, english.character_errors) == (3, 1)


def test_diff_says_what_became_of_each_word() -> None:
    assert diff("The cat sat down on it", "the hat sat on it here", normaliser("basic/1")) == [
        ("equal", ("the",), ("the",)),
        ("replace", ("cat",), ("hat",)),
        ("equal", ("sat",), ("sat",)),
        ("delete", ("down",), ()),
        ("equal", ("on", "it"), ("on", "it")),
        ("insert", (), ("here",)),
    ]


WORDS = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=10)


@given(WORDS, WORDS)
def test_counts_add_up_and_agree_with_jiwer(reference: list[str], hypothesis: list[str]) -> None:
    found = word_errors(reference, hypothesis)
    assert found.hits + found.substitutions + found.deletions == len(reference)
    assert found.hits + found.substitutions + found.insertions == len(hypothesis)
    if reference:
        other = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
        assert found.errors == other.substitutions + other.deletions + other.insertions


@given(WORDS, WORDS)
def test_diff_holds_every_word_of_both_sides_once(reference: list[str], hypothesis: list[str]) -> None:
    ops = diff(" ".join(reference), " ".join(hypothesis), normaliser("none"))
    assert [word for _, words, _ in ops for word in words] == reference
    assert [word for _, _, words in ops for word in words] == hypothesis
    assert all((words == others) == (op == "equal") for op, words, others in ops)


# Normalisers


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("one zero zero zero one nine zero two one", "100019021"),
        ("One hundred.", "100"),
        ("twenty three", "23"),
        ("at ten thirty", "at 10:30"),
        ("five percent", "5%"),
        ("five dollars", "$5"),
        ("two point five", "2.5"),
        ("the twenty first", "the 21st"),
        ("It's Mr. Smith's colour", "it is mister smith is color"),
        ("I, um, think", "i think"),
        ("number one", "number 1"),
    ],
)
def test_the_same_number_written_otherwise_is_no_error(one: str, other: str) -> None:
    assert DIGITWISE.words(one) == DIGITWISE.words(other)


def test_a_digit_misheard_costs_one_error_and_a_stray_word_one_more() -> None:
    reference = "one zero zero zero one nine zero two one"
    assert accuracy.measure(spoken(reference, reference), DIGITWISE).words == WordErrors(9, 0, 0, 0)
    one_off = accuracy.measure(spoken(reference, "one zero zero zero one five zero two one"), DIGITWISE).words
    assert (one_off.errors, one_off.reference_words) == (1, 9)
    # Whisper's rules make one word of the nine digits and charge a hypothesis that breaks the run many times over it.
    broken = "one zero the zero zero one nine ah zero two one"
    assert accuracy.measure(spoken(reference, broken), DIGITWISE).words == WordErrors(9, 0, 0, 2)
    assert accuracy.measure(spoken(reference, broken), normaliser("whisper-english/1")).words.wer == 5.0


def test_digitwise_words_of_numbers() -> None:
    assert DIGITWISE.words("-2.5% of 1,000 on the 21st, $7") == [
        *("2", "point", "5", "%", "of", "1", "0", "0", "0", "on", "the", "2", "1", "st", "$", "7")
    ]


def test_basic_keeps_the_vowel_signs_of_other_scripts() -> None:
    assert normaliser("basic/1").words("Ça, c'est ÇA!") == ["ça", "c", "est", "ça"]
    assert normaliser("basic/1").apply("की") != normaliser("basic/1").apply("का")


def test_none_leaves_the_text_alone() -> None:
    assert normaliser("none").words("One, TWO  three.") == ["One,", "TWO", "three."]


def test_every_normaliser_has_a_hash_of_its_own_and_takes_empty_text() -> None:
    assert len({normaliser(name).sha256 for name in NAMES}) == len(NAMES)
    for name in NAMES:
        assert normaliser(name).name == name
        assert normaliser(name).words("") == []


def test_an_unknown_normaliser_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'whisper/9'; there are none, basic/1"):
        normaliser("whisper/9")


def test_default_by_language() -> None:
    assert default_name("en-US") == default_name("en") == DIGITWISE.name
    assert default_name("de") == default_name("hi_in") == "basic/1"
    assert default_name("mul") == "by-language/1"
    own = normaliser("by-language/1")
    assert (own.of("en-GB"), own.of("fr")) == (DIGITWISE, normaliser("basic/1"))
    assert DIGITWISE.of("fr") is DIGITWISE
