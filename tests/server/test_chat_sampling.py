"""What any chat engine refuses before it does anything, and the files it sends."""

from __future__ import annotations

import io
import math
import wave
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.building import build_chat_engine
from server.config import ConfigError, read
from server.engines.base import EngineError, EngineInfo, Sampling, UnsupportedError
from server.engines.recordings import check_question, check_samples, most_text_tokens, seconds_of, wav_of
from server.engines.vllm.chat import longest_seconds

BESIDE = EngineInfo("scripted", "scripted", 0.48, (0.48,), ("en",), 1, words=True)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"temperature": -0.1}, r"temperature must be in 0\.\.2, got -0\.1"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": -0.01}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
    ],
)
def test_bad_sampling_is_refused_by_name_and_value(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UnsupportedError, match=part):
        Sampling(**given)


def test_the_ends_of_the_ranges_are_allowed() -> None:
    Sampling(0.0, 0.0, 1)
    Sampling(2.0, 1.0, 10**6)


@given(st.binary(max_size=400).filter(lambda pcm: len(pcm) % 2 == 0))
def test_a_file_holds_the_very_samples(pcm: bytes) -> None:
    with wave.open(io.BytesIO(wav_of(pcm))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        assert file.readframes(len(pcm)) == pcm


def test_half_a_sample_is_refused() -> None:
    check_samples(b"12")
    with pytest.raises(UnsupportedError, match="3 bytes"):
        check_samples(b"123")


@pytest.mark.parametrize(
    ("question", "audios", "part"),
    [
        (" \n", [b"12"], "question is empty"),
        ("?", [b"12"] * 3, "at most 2 recordings go with a question, got 3"),
        ("?", [b"12", b""], "recording 2 of 2 is empty"),
        ("?", [b"1"], "16-bit"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(question: str, audios: list[bytes], part: str) -> None:
    with pytest.raises(UnsupportedError, match=part):
        check_question(question, audios, 2)


@given(st.integers(1024, 200_000))
def test_the_longest_recording_fits_with_its_text_and_a_second_more_does_not(max_model_len: int) -> None:
    # 375 tokens per 30 s or part of it, 5 per second for the text, 32 for what frames them
    def needed(seconds: float) -> float:
        return math.ceil(seconds / 30) * 375 + 5 * seconds + 32

    longest = longest_seconds(max_model_len)
    assert needed(longest) <= max_model_len < needed(longest + 1)


def test_half_an_hour_fits_the_model_that_is_served_by_default() -> None:
    assert longest_seconds(32768) >= 1800


def test_the_bound_of_a_transcript_is_above_what_anybody_can_say() -> None:
    # fast speech is 5 words a second, and a word rarely more than 3 tokens
    pcm = bytes(32000 * 60)
    assert seconds_of(pcm) == 60
    assert most_text_tokens(pcm) > 5 * 3 * 60


def test_no_chat_engine_unless_asked_for() -> None:
    assert build_chat_engine(read([], {}), BESIDE) is None


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://"])
def test_a_url_that_is_none_is_a_bad_setting(url: str) -> None:
    with pytest.raises(ConfigError, match="chat-url must be like"):
        build_chat_engine(read(["--chat-engine=remote", f"--chat-url={url}"], {}), BESIDE)


def test_chat_engines_say_what_they_can_do_before_they_start() -> None:
    remote = build_chat_engine(read(["--chat-engine=remote", "--chat-model-id=m", "--chat-max-num-seqs=3"], {}), BESIDE)
    local = build_chat_engine(read(["--chat-engine=vllm", "--chat-model-dir=/nowhere/at/all"], {}), BESIDE)
    assert remote is not None
    assert (remote.info.name, remote.info.model, remote.info.slots) == ("remote", "m", 3)
    assert local is not None
    assert (local.info.name, local.info.model) == ("vllm", "mistralai/Voxtral-Mini-3B-2507")


async def test_an_engine_that_is_not_started_says_so() -> None:
    for name in ("remote", "vllm"):
        engine = build_chat_engine(read([f"--chat-engine={name}"], {}), BESIDE)
        assert engine is not None
        with pytest.raises(EngineError, match="stopped"):
            await engine.answer("?", [], Sampling())
        await engine.stop()
