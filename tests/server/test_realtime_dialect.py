"""The realtime dialect without a socket: validation, kept audio, and what it says."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.events import Audio, Failed, Final, Finish, Start, Started, Tentative, TimedWord, Token, Usage
from server.core.session import Session, SessionSettings
from server.protocols.base import Close, Reply, Served, Step
from server.protocols.realtime import RealtimeDialect

SERVED = Served(["served", "hub/name"], [80, 480], 480, timed_words=True, endpointing=False)


def validated(seconds: float = 60.0) -> RealtimeDialect:
    dialect = RealtimeDialect(SERVED, seconds)
    assert dialect.receive('{"type":"session.update","model":"served"}') == []
    return dialect


def append(pcm: bytes) -> str:
    return json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()})


def commit(**fields: Any) -> str:
    return json.dumps({"type": "input_audio_buffer.commit", **fields})


def audio(steps: Sequence[Step]) -> bytes:
    return b"".join(step.pcm for step in steps if isinstance(step, Audio))


def kinds(steps: Sequence[Step]) -> list[type]:
    return [type(step) for step in steps if not isinstance(step, Audio)]


def codes(steps: Sequence[Step]) -> list[str]:
    return [json.loads(step.frame)["code"] for step in steps if isinstance(step, Reply) and step.error]


def test_kept_audio_goes_to_the_next_utterance_in_order() -> None:
    dialect = validated()
    pieces = [bytes([n, 0]) * 20_000 for n in range(5)]
    for piece in pieces:
        assert dialect.receive(append(piece)) == []
    steps = dialect.receive(commit())
    assert kinds(steps) == [Start]
    assert audio(steps) == b"".join(pieces)
    assert dialect.receive(append(b"\1\0")) == [Audio(b"\1\0")]
    assert dialect.receive(commit(final=True)) == [Finish()]
    assert dialect.receive(append(b"\2\0")) == []
    assert kinds(dialect.receive(commit(final=True))) == [Start, Finish]


def test_every_final_commit_ends_exactly_one_utterance() -> None:
    dialect = validated()
    for _ in range(3):
        assert kinds(dialect.receive(commit(final=True))) == [Start, Finish]
    assert kinds(dialect.receive(commit())) == [Start]
    assert dialect.receive(commit()) == []
    assert kinds(dialect.receive(commit(final=True))) == [Finish]


@pytest.mark.spec("realtime-44")
def test_kept_audio_is_bounded_and_what_was_kept_stays() -> None:
    dialect = validated(seconds=1.0)
    assert dialect.receive(append(bytes(32_000))) == []
    assert codes(dialect.receive(append(b"\0\0"))) == ["processing_error"]
    assert len(audio(dialect.receive(commit()))) == 32_000


@pytest.mark.spec("realtime-35")
def test_an_event_of_more_samples_than_the_limit_is_invalid_audio() -> None:
    dialect = validated(seconds=1e6)
    assert codes(dialect.receive(append(bytes(2 * 25 * 1_048_576 + 2)))) == ["invalid_audio"]
    assert dialect.receive(append(bytes(2 * 25 * 1_048_576))) == []


def test_a_failure_of_the_running_utterance_ends_it() -> None:
    dialect = validated()
    [start] = dialect.receive(commit())
    assert isinstance(start, Start)
    assert codes(dialect.tell(Failed(start.utterance, "overloaded", "full"))) == ["processing_error"]
    assert kinds(dialect.receive(commit())) == [Start]


def test_a_failure_of_an_earlier_utterance_leaves_the_running_one() -> None:
    dialect = validated()
    [first] = dialect.receive(commit())
    assert isinstance(first, Start)
    dialect.receive(commit(final=True))
    dialect.receive(commit())
    dialect.tell(Failed(first.utterance, "invalid_audio", "?"))
    assert dialect.receive(append(b"\1\0")) == [Audio(b"\1\0")]


@pytest.mark.parametrize(
    ("engine_code", "code"),
    [("invalid_audio", "invalid_audio"), ("processing_error", "processing_error"), ("overloaded", "processing_error")],
)
def test_codes_of_the_engine(engine_code: str, code: str) -> None:
    assert codes(validated().tell(Failed("1", engine_code, "?"))) == [code]


def test_what_the_client_is_told() -> None:
    dialect = validated()
    assert [step.frame for step in dialect.tell(Token("1", " text")) if isinstance(step, Reply)] == [
        '{"type":"transcription.delta","delta":" text"}'
    ]
    assert dialect.tell(Started("1", 0.48)) == []
    assert dialect.tell(Tentative("1", "perhaps")) == []
    words = (TimedWord("text", 0.12345, 0.5),)
    [done] = dialect.tell(Final("1", " text", words, Usage(3, 1), 0.48, 0.5, "client"))
    assert isinstance(done, Reply)
    assert json.loads(done.frame) == {
        "type": "transcription.done",
        "text": " text",
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": 1,
            "total_tokens": 4,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
        "words": [{"text": "text", "start": 0.123, "end": 0.5}],
        "delay_ms": 480,
        "audio_seconds": 0.5,
        "ended_by": "client",
    }


@pytest.mark.spec("realtime-26")
def test_a_frame_stays_below_the_receive_limit_of_common_clients() -> None:
    words = tuple(TimedWord("internationalisation", n * 0.4, n * 0.4 + 0.333) for n in range(40_000))
    for count in (11_999, 40_000):
        text = " ".join(word.text for word in words[:count])[: 800_000 if count > 12_000 else None]
        [done] = validated().tell(Final("1", text, words[:count], Usage(), 0.48, 16_000.0, "client"))
        assert isinstance(done, Reply)
        assert len(done.frame.encode()) < 2**20


def test_nothing_overtakes() -> None:
    assert validated().urgent(commit()) is None


@pytest.mark.spec("realtime-40")
def test_a_crash_is_told_before_the_close() -> None:
    steps = validated().crashed()
    assert codes(steps) == ["processing_error"]
    assert isinstance(steps[-1], Close)


ACTIONS = st.sampled_from(["start", "finish", "append", "update", "garbage"])


@given(st.lists(ACTIONS, max_size=40))
@pytest.mark.spec("realtime-18")
def test_no_byte_is_lost_doubled_or_refused_in_any_order(actions: list[str]) -> None:
    dialect = validated()
    session = Session(SessionSettings(default_delay_seconds=0.48, timed_words=True))
    sent = taken = b""
    finished = 0
    for n, action in enumerate(actions):
        match action:
            case "append":
                pcm = n.to_bytes(2, "little")
                sent += pcm
                text = append(pcm)
            case "start":
                text = commit()
            case "finish":
                text = commit(final=True)
                finished += 1
            case "update":
                text = '{"type":"session.update","model":"hub/name"}'
            case _:
                text = '{"type":"?"}'
        steps = dialect.receive(text)
        taken += audio(steps)
        finished -= sum(isinstance(step, Finish) for step in steps)
        for step in steps:
            if not isinstance(step, Reply | Close):
                session.handle(step, now=0.0)  # raises where the session refuses
    taken += audio(dialect.receive(commit()))
    assert taken == sent
    assert finished == 0
