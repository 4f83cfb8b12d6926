"""PCM16 in base64, and audio that carries its words."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import WireError
from wire.pcm import bytes_of, decode_base64, encode_base64, seconds_of
from wire.scripted import FRAME_BYTES, frames, speak
from wire.words import TimedWord


@given(st.binary(min_size=2).filter(lambda pcm: len(pcm) % 2 == 0))
def test_base64_there_and_back(pcm: bytes) -> None:
    assert encode_base64(pcm) == base64.b64encode(pcm).decode()
    assert decode_base64(encode_base64(pcm)) == pcm


@pytest.mark.parametrize(
    "text", ["!", "AQI", "AQI=!", "====", "A", "AQ==\u00e9", "\ud800", "", "AQ==", "AQID", "AQ ID", "AQIDBA=="[:-1]]
)
def test_bad_audio_is_refused(text: str) -> None:
    with pytest.raises(WireError) as refused:
        decode_base64(text)
    assert refused.value.reason == "invalid_audio"


def test_lengths() -> None:
    assert seconds_of(32_000) == 1.0
    assert bytes_of(0.08) == 2560
    assert bytes_of(0.00003) == 0  # half a sample is none


WORDS = [TimedWord("one", 0.1, 0.25), TimedWord("zwölf", 0.25, 0.26), TimedWord("three", 0.5, 0.9)]


def test_every_word_fills_its_time() -> None:
    pcm = speak(WORDS, 1.0)
    assert len(pcm) == 32_000
    found = list(frames(pcm))
    assert [(frame.index, frame.text) for frame in found if frame.frame == 0] == [
        (0, "one"),
        (1, "zwölf"),
        (2, "three"),
    ]
    assert [frame.position for frame in found] == [n * FRAME_BYTES for n in [*range(10, 26), *range(50, 90)]]
    assert all(frame.frames == {0: 15, 1: 1, 2: 40}[frame.index] for frame in found)


@given(st.integers(0, 32_000), st.integers(0, 32_000))
def test_words_are_found_wherever_the_audio_was_cut(start: int, stop: int) -> None:
    pcm = speak(WORDS, 1.0)
    start, stop = sorted((start, stop))
    whole = [frame for frame in frames(pcm) if frame.position >= start and frame.position + FRAME_BYTES <= stop]
    found = [frame for frame in frames(pcm[start:stop]) if start + frame.position + FRAME_BYTES <= stop]
    assert [(frame.index, frame.frame) for frame in found] == [(frame.index, frame.frame) for frame in whole]


@pytest.mark.parametrize(
    "words",
    [
        [TimedWord("late", 0.9, 1.1)],
        [TimedWord("empty", 0.5, 0.5)],
        [TimedWord("a", 0.1, 0.3), TimedWord("b", 0.2, 0.4)],
        [TimedWord("x" * 305, 0.1, 0.2)],
        [TimedWord("early", -0.1, 0.2)],
    ],
)
def test_words_that_do_not_fit_are_refused(words: list[TimedWord]) -> None:
    with pytest.raises(ValueError, match="word"):
        speak(words, 1.0)
