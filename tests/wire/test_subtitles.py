"""Cues against hand-made words, subtitles against the formats' own examples."""

from __future__ import annotations

from wire.subtitles import Cue, cues, srt, vtt
from wire.words import TimedWord


def words(*timed: tuple[str, float, float]) -> list[TimedWord]:
    return [TimedWord(*one) for one in timed]


def test_a_pause_ends_a_cue() -> None:
    said = words(("one", 0.0, 0.4), ("two", 0.5, 0.9), ("three", 1.5, 2.0))  # 0.6 s of pause
    assert cues(said, "one two three", 3.0) == [Cue(0.0, 0.9, "one two"), Cue(1.5, 2.0, "three")]


def test_the_end_of_a_sentence_ends_a_cue() -> None:
    said = words(("Yes.", 0.0, 0.4), ("No", 0.5, 0.9))
    assert cues(said, "Yes. No", 1.0) == [Cue(0.0, 0.4, "Yes."), Cue(0.5, 0.9, "No")]


def test_no_cue_stays_longer_than_seven_seconds() -> None:
    said = words(*((f"w{n}", float(n), n + 0.9) for n in range(20)))
    found = cues(said, "", 20.0)
    assert all(cue.end - cue.start <= 7.0 for cue in found)
    assert " ".join(cue.text for cue in found).split() == [word.text for word in said]


def test_no_cue_has_more_than_two_lines_of_42_letters() -> None:
    said = words(*(("x" * 20, n * 0.1, n * 0.1 + 0.1) for n in range(10)))
    assert [len(cue.text) for cue in cues(said, "", 1.0)] == [83, 83, 41]  # four words and three blanks are 83


def test_without_word_times_there_is_one_cue() -> None:
    assert cues([], " all of it ", 12.5) == [Cue(0.0, 12.5, "all of it")]
    assert cues([], "  ", 12.5) == []


def test_subrip_and_webvtt() -> None:
    shown = [Cue(0.0, 1.5, "a < b & c"), Cue(3661.042, 3662.0, "later")]
    assert srt(shown) == ("1\n00:00:00,000 --> 00:00:01,500\na < b & c\n\n2\n01:01:01,042 --> 01:01:02,000\nlater\n\n")
    assert vtt(shown) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\na &lt; b &amp; c\n\n01:01:01.042 --> 01:01:02.000\nlater\n\n"
    )
