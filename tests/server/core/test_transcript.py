"""Segments put together: nothing lost, nothing doubled."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from server.core.events import Heard, TimedWord
from server.core.transcript import Segment, Transcript, could_repeat, repeated_characters


def test_whole_words_at_the_seam_are_recognised_as_repeated() -> None:
    assert repeated_characters("one two three", "two three four") == len("two three")
    assert repeated_characters("one two three", " two three four") == len(" two three")
    assert repeated_characters("one two three ", "two three") == len("two three")


def test_a_partial_word_is_no_repetition() -> None:
    # "the" ends the shown text, and "eager" starts with its last letter
    assert repeated_characters("see the", "eager") == 0
    assert repeated_characters("a seven", "seventeen") == 0


def test_the_longest_repetition_counts() -> None:
    assert repeated_characters("no no no", "no no yes") == len("no no")


def test_text_that_could_still_become_a_repetition_is_waited_for() -> None:
    assert could_repeat("one two three", "two")
    assert could_repeat("one two three", " two th")
    assert not could_repeat("one two three", "two four")


def test_untimed_segments_join_with_one_space() -> None:
    transcript = Transcript(timed=False)
    first, second = Segment(0, 0.0), Segment(1, 5.0, overlap_seconds=0.8)
    assert transcript.hear(first, Heard(0, 5.0, "one two three")).text == "one two three"
    transcript.finish(first)
    assert transcript.hear(second, Heard(1, 0.5, "three")).text == ""  # may be the overlap, or more to come
    assert transcript.hear(second, Heard(1, 2.0, " four")).text == " four"
    assert transcript.text == "one two three four"


def test_untimed_text_held_back_at_the_end_is_shown_when_the_segment_is_done() -> None:
    transcript = Transcript(timed=False)
    first, second = Segment(0, 0.0), Segment(1, 5.0, overlap_seconds=0.8)
    transcript.hear(first, Heard(0, 5.0, "one two three four"))
    transcript.finish(first)
    assert transcript.hear(second, Heard(1, 0.8, "three")).text == ""  # could go on with "four": wait
    assert transcript.finish(second).text == " three"  # it did not: it is new
    assert transcript.text == "one two three four three"


def test_a_seam_is_not_waited_for_for_ever() -> None:
    transcript = Transcript(timed=False)
    first, second = Segment(0, 0.0), Segment(1, 5.0, overlap_seconds=0.8)
    transcript.hear(first, Heard(0, 5.0, "one two three"))
    transcript.finish(first)
    assert transcript.hear(second, Heard(1, 6.7, "two")).text == ""
    assert transcript.hear(second, Heard(1, 6.9)).text == " two"  # and silence since


def test_audio_that_was_only_handed_on_says_nothing_about_the_text() -> None:
    """A burst is handed on within a moment, its text comes later: the wait for a repetition goes by where the text is."""
    transcript = Transcript(timed=False)
    first, second = Segment(0, 0.0), Segment(1, 5.0, overlap_seconds=0.8)
    transcript.hear(first, Heard(0, 5.0, "one two three"))
    transcript.finish(first)
    assert transcript.hear(second, Heard(1, 60.0, transcribed_seconds=0.0)).text == ""
    assert transcript.hear(second, Heard(1, 60.0, "two", transcribed_seconds=0.1)).text == ""
    assert transcript.hear(second, Heard(1, 60.0, " three", transcribed_seconds=0.1)).text == ""
    assert transcript.hear(second, Heard(1, 60.0, " four", transcribed_seconds=0.2)).text == " four"


def test_text_held_behind_an_unfinished_segment_is_judged_by_its_own_time() -> None:
    transcript = Transcript(timed=False)
    first, second = Segment(0, 0.0), Segment(1, 5.0, overlap_seconds=0.8)
    transcript.hear(first, Heard(0, 5.0, "one two three"))
    transcript.finish(first)
    second.heard_seconds = 30.0  # meanwhile
    shown = [
        transcript.hear(second, held).text
        for held in (Heard(1, 0.4, "two"), Heard(1, 0.8, " three"), Heard(1, 2.0, " four"))
    ]
    assert "".join(shown) == " four"


@st.composite
def _speech_and_cuts(draw: st.DrawFn) -> tuple[list[TimedWord], list[float], float]:
    """Words without overlap, and cuts at least two seconds apart."""
    words, clock = [], 0.0
    for index in range(draw(st.integers(1, 60))):
        clock += draw(st.integers(0, 60)) / 100
        length = draw(st.integers(5, 75)) / 100
        words.append(TimedWord(f"w{index}", clock, clock + length))
        clock += length
    cuts, at = [], 0.0
    while True:
        at += draw(st.integers(200, 900)) / 100
        if at >= clock:
            break
        cuts.append(at)
    return words, cuts, clock


@given(_speech_and_cuts(), st.sampled_from([0.08, 0.48, 2.4]))
def test_timed_words_survive_every_cut_exactly_once(
    speech: tuple[list[TimedWord], list[float], float], delay: float
) -> None:
    """An ideal engine hears a word if all of it lies in the segment; no word is longer than the overlap of 0.8 s."""
    words, cuts, length = speech
    transcript = Transcript(timed=True)
    bounds = [0.0, *cuts, length]
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        overlap = 0.8 if number else 0.0
        offset = begin - overlap
        segment = Segment(number, offset, overlap_seconds=overlap)
        heard = [w for w in words if w.start >= offset - 1e-9 and w.end <= end + 1e-9]
        local = [TimedWord(w.text, w.start - offset, w.end - offset) for w in heard]
        early = [w for w in local if w.end <= end - offset - delay]
        transcript.hear(segment, Heard(number, end - offset, words=tuple(early)))
        if end != length:
            segment.rolled_end_seconds, segment.rolled_overlap_seconds = end, 0.8
        transcript.hear(segment, Heard(number, end - offset, words=tuple(local[len(early) :])))
        transcript.finish(segment)
    assert [word.text for word in transcript.words] == [word.text for word in words]
    assert transcript.text.split() == [word.text for word in words]
    assert all(abs(got.start - want.start) < 1e-6 for got, want in zip(transcript.words, words, strict=True))


def test_words_after_dropped_audio_keep_their_place_in_the_utterance() -> None:
    segment = Segment(0, 10.0, gaps=[(2.0, 1.5)])  # 1.5 s were dropped after 2 s of the segment
    assert segment.in_utterance(TimedWord("before", 1.0, 2.0)) == TimedWord("before", 11.0, 12.0)
    assert segment.in_utterance(TimedWord("after", 2.0, 2.5)) == TimedWord("after", 13.5, 14.0)


def test_timed_words_of_languages_without_spaces_stay_together() -> None:
    transcript = Transcript(timed=True)
    segment = Segment(0, 0.0)
    first = transcript.hear(segment, Heard(0, 1.0, "你好", "世界", words=timed("你 好")))
    assert (first.text, first.tentative) == ("你好", "世界")
    assert [word.text for word in first.words] == ["你", "好"]
    assert transcript.hear(segment, Heard(0, 2.0, "世界", words=timed("世 界", 1.0))).text == "世界"
    assert transcript.text == "你好世界"


def test_what_stands_between_timed_words_is_kept() -> None:
    transcript = Transcript(timed=True)
    transcript.hear(Segment(0, 0.0), Heard(0, 2.0, "wait - no, no", words=timed("wait no no")))
    assert transcript.text == "wait - no, no"


def test_a_timed_word_that_the_text_does_not_contain_stands_alone() -> None:
    transcript = Transcript(timed=True)
    transcript.hear(Segment(0, 0.0), Heard(0, 2.0, "", words=timed("one two")))
    assert transcript.text == "one two"


def test_timed_segments_join_with_one_space_whatever_their_own_spacing() -> None:
    for text in ("three four", " three four"):
        transcript = Transcript(timed=True)
        transcript.hear(Segment(0, 0.0), Heard(0, 1.0, text, words=timed("three four")))
        assert transcript.text == "three four"
        transcript.hear(Segment(1, 2.0), Heard(1, 1.0, text, words=timed("three four")))
        assert transcript.text == "three four three four"


def timed(text: str, start: float = 0.0) -> tuple[TimedWord, ...]:
    """Words of half a second."""
    return tuple(
        TimedWord(word, start + number / 2, start + number / 2 + 0.5) for number, word in enumerate(text.split())
    )
