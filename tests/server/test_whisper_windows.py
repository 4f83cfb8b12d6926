"""Which windows of a segment are decoded, where they are cut, and what comes of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engines.whisper.hearing import Hearing, Progress, Window
from server.engines.whisper.settings import WhisperSettings
from server.engines.whisper.trimming import cut_point, ends_sentence, prompt_of
from wire.pcm import bytes_of
from wire.words import TimedWord

SETTINGS = WhisperSettings(partial_interval_seconds=0.5, window_seconds=4.0, longest_window_seconds=8.0)


def evenly(text: str, each: float = 0.5) -> list[TimedWord]:
    return [TimedWord(f" {word}", each * n, each * (n + 1)) for n, word in enumerate(text.split())]


# ---- cutting


def test_a_short_window_is_not_cut() -> None:
    assert cut_point(evenly("one. two three"), 0.0, 4.0, 4.0) is None


def test_a_long_window_is_cut_behind_the_last_sentence() -> None:
    assert cut_point(evenly("one two. three four. five six"), 0.0, 5.0, 4.0) == 2.0


def test_without_a_sentence_it_is_cut_before_the_last_committed_word() -> None:
    assert cut_point(evenly("one two three four"), 0.0, 5.0, 4.0) == 1.5


def test_a_sentence_too_long_ago_does_not_count() -> None:
    assert cut_point(evenly("one. two three four five six"), 0.0, 5.0, 4.0) == 2.5


def test_the_cut_is_made_in_the_pause() -> None:
    committed = [TimedWord(" one", 0.0, 0.4), TimedWord(" two", 1.0, 1.4)]
    assert cut_point(committed, 0.0, 5.0, 4.0) == pytest.approx(0.7)


@pytest.mark.parametrize("committed", ["", "one"])
def test_the_last_committed_word_stays(committed: str) -> None:
    assert cut_point(evenly(committed), 0.0, 9.0, 4.0) is None


@pytest.mark.parametrize("text", [" end.", "what?!", '"No!"', "终。", "…", "(so.)"])
def test_what_ends_a_sentence(text: str) -> None:
    assert ends_sentence(text)


@pytest.mark.parametrize("text", ["", "word", "3.5", "so,"])
def test_what_does_not(text: str) -> None:
    assert not ends_sentence(text)


@pytest.mark.parametrize(
    ("text", "most", "prompt"),
    [
        (" one two", 20, "one two"),
        (" one two three", 9, "two three"),
        (" one two three", 8, "three"),
        (" one two", 0, ""),
        ("一二三", 2, "二三"),
    ],
)
def test_a_prompt_is_the_end_of_the_text_in_whole_words(text: str, most: int, prompt: str) -> None:
    assert prompt_of(text, most) == prompt


# ---- windows


def test_windows_end_at_multiples_of_the_interval_whatever_the_packets() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    hearing.add(bytes(bytes_of(0.45)))
    assert not hearing.due
    hearing.add(bytes(bytes_of(0.3)))
    window = hearing.window()
    assert (window.start_seconds, window.end_seconds, len(window.pcm)) == (0.0, 0.5, bytes_of(0.5))
    hearing.hear(window, [])
    assert not hearing.due


def test_windows_that_came_too_late_are_left_out() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    hearing.add(bytes(bytes_of(1.7)))
    assert hearing.window().end_seconds == 1.5


def test_the_last_window_ends_with_the_audio() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    hearing.add(bytes(bytes_of(0.7)))
    hearing.hear(hearing.window(), [])
    hearing.finishing = True
    assert hearing.due
    progress = hearing.hear(hearing.window(), evenly("hi"))
    assert hearing.over
    assert (progress.audio_seconds, progress.committed, progress.tentative) == (0.7, "hi", "")


def test_when_all_was_decoded_before_the_end_the_last_hypothesis_counts() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    hearing.add(bytes(bytes_of(1.0)))
    assert hearing.hear(hearing.window(), evenly("hello there")).tentative == "hello there"
    hearing.finishing = True
    assert not hearing.due
    assert hearing.over
    assert hearing.finish().committed == "hello there"


def test_a_segment_without_audio_is_over_at_once() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    hearing.finishing = True
    assert not hearing.due
    assert hearing.over


def test_words_of_languages_without_spaces_keep_together() -> None:
    hearing = Hearing(SETTINGS, 0.0)
    said = [TimedWord(text, n * 0.5, n * 0.5 + 0.5) for n, text in enumerate("你好世界")]
    told = feed(hearing, 2.0, lambda window: [word for word in said if word.end <= window.end_seconds], finish=True)
    assert [progress.committed for progress in told] == ["", "你", "好", "世界", ""]
    assert [progress.tentative for progress in told] == ["你", "好", "世", "", ""]
    assert [word.text for progress in told for word in progress.words] == ["你", "好", "世", "界"]


def test_text_before_the_window_goes_with_it() -> None:
    hearing = Hearing(SETTINGS, 0.0)
    text = evenly("one two. three four five six seven eight nine")
    feed(hearing, 4.5, lambda window: [word for word in text if word.end <= window.end_seconds])
    hearing.add(bytes(bytes_of(0.5)))
    window = hearing.window()
    assert (window.start_seconds, window.prompt) == (1.0, "one two.")


def test_a_window_on_which_nothing_was_agreed_is_cut_by_force() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    number = 0

    def fickle(window: Window) -> list[TimedWord]:
        nonlocal number
        number += 1
        return [TimedWord(f" {number}x{n}", n * 0.5, n * 0.5 + 0.5) for n in range(len(window.pcm) // bytes_of(0.5))]

    said = feed(hearing, 8.0, fickle)
    assert hearing.forced_cuts == 1
    assert said[-1].committed == " ".join(f"16x{n}" for n in range(8))  # the older half of the last hypothesis
    assert said[-1].tentative == " " + " ".join(f"16x{n}" for n in range(8, 16))
    hearing.add(bytes(bytes_of(0.5)))
    assert hearing.window().start_seconds == 4.0


def test_hours_of_silence_are_a_bounded_window() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    for _ in range(200):
        hearing.add(bytes(bytes_of(0.5)))
        window = hearing.window()
        assert len(window.pcm) <= bytes_of(8.0)
        assert hearing.hear(window, []).committed == ""
    assert hearing.heard_seconds == 100.0


def test_a_burst_longer_than_a_window_is_heard_in_several() -> None:
    hearing = Hearing(SETTINGS, 0.5)
    hearing.add(bytes(bytes_of(30.3)))
    hearing.finishing = True
    ends = []
    while hearing.due:
        window = hearing.window()
        ends.append(window.end_seconds)
        hearing.hear(window, [])
    assert all(before < after for before, after in pairwise(ends))
    assert (ends[0], ends[-1]) == (8.0, 30.3)
    assert hearing.over


@st.composite
def spoken(draw: st.DrawFn) -> tuple[list[TimedWord], int]:
    """Words of a quarter to one second, many of them the same, with pauses here and there; and a seed."""
    at, said = 0.0, []
    for text in draw(st.lists(st.sampled_from([" no", " yes", " well.", " so"]), min_size=1, max_size=40)):
        at += draw(st.sampled_from([0.0, 0.0, 0.0, 0.6, 3.0]))
        end = at + draw(st.integers(25, 100)) / 100
        said.append(TimedWord(text, at, end))
        at = end
    return said, draw(st.integers(0, 1000))


@given(spoken(), st.sampled_from([0.08, 0.48, 2.4]), st.booleans())
def test_no_word_is_lost_or_doubled_though_borders_tremble_and_ends_are_guessed(
    speech: tuple[list[TimedWord], int], delay: float, burst: bool
) -> None:
    """The one who understands places borders up to 0.1 s off, and makes something up of a word that has not ended yet."""
    words, seed = speech
    chosen = random.Random(seed)

    def understand(window: Window) -> list[TimedWord]:
        heard = []
        for word in words:
            middle = (word.start + word.end) / 2
            if window.start_seconds <= middle and word.start < window.end_seconds:
                start = word.start - window.start_seconds + chosen.uniform(-0.1, 0.1)
                end = word.end - window.start_seconds + chosen.uniform(-0.1, 0.1)
                whole = word.end <= window.end_seconds
                heard.append(TimedWord(word.text if whole else f" guess{chosen.random()}", start, end))
        return heard

    hearing = Hearing(SETTINGS, delay)
    said = feed(hearing, words[-1].end + 0.2, understand, step=1.9 if burst else 0.1, finish=True)
    assert "".join(progress.committed for progress in said) == "".join(word.text for word in words).strip()
    timed = [word for progress in said for word in progress.words]
    assert [word.text for word in timed] == [word.text.strip() for word in words]
    assert all(before.end <= after.start for before, after in pairwise(timed))
    assert all(abs(found.end - word.end) <= 0.75 for found, word in zip(timed, words, strict=True))


def feed(
    hearing: Hearing,
    seconds: float,
    understand: Callable[[Window], Sequence[TimedWord]],
    step: float = 0.5,
    *,
    finish: bool = False,
) -> list[Progress]:
    """Let it hear so much silence in packets, each window understood as ``understand`` does; all progress."""
    said = []
    left = bytes_of(seconds)
    while left or (hearing.finishing and hearing.due):
        size = min(left, bytes_of(step))
        hearing.add(bytes(size))
        left -= size
        hearing.finishing = finish and not left
        while hearing.due:
            window = hearing.window()
            said.append(hearing.hear(window, understand(window)))
    if finish:
        said.append(hearing.finish())
    return said
