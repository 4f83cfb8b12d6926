"""The envelope dialect without a socket: what it remembers, what it asks of the session, what it says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.events import (
    Audio,
    Cancel,
    Cancelled,
    Dropped,
    Failed,
    Final,
    Finish,
    Start,
    Started,
    StreamOptions,
    Tentative,
    TimedWord,
    Token,
    Usage,
)
from server.core.session import Session, SessionError, SessionSettings
from server.protocols.base import Close, Reply, Served, Step
from server.protocols.yap import YapDialect, rejection

SERVED = Served(["served", "hub/name"], [80, 480], 480, timed_words=True, endpointing=True)
STARTED = StreamOptions()


def frame(kind: str, request: str = "r", session: str = "s", **payload: Any) -> str:
    return json.dumps({"type": kind, "session_id": session, "request_id": request, "payload": payload})


def start(request: str = "r", **payload: Any) -> str:
    return frame("input_audio_buffer.commit", request, final=False, **payload)


def finish(request: str = "r") -> str:
    return frame("input_audio_buffer.commit", request, final=True)


def final(request: str, text: str = "", ended_by: str = "client") -> Final:
    return Final(request, text, (), Usage(), 0.48, 1.0, ended_by)


def said(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [json.loads(step.frame) for step in steps if isinstance(step, Reply)]


def reasons(steps: Sequence[Step]) -> list[str]:
    return [step.error for step in steps if isinstance(step, Reply)]


def commands(steps: Sequence[Step]) -> list[type]:
    return [type(step) for step in steps if not isinstance(step, Reply | Close)]


def test_a_start_an_append_and_a_finish_are_commands() -> None:
    dialect = YapDialect(SERVED)
    assert dialect.receive(start()) == [Start("r", STARTED)]
    assert dialect.receive(frame("input_audio_buffer.append", audio="AQD//w==")) == [Audio(b"\x01\x00\xff\xff")]
    assert dialect.receive(finish()) == [Finish()]


@pytest.mark.spec("yap-34")
def test_the_next_start_cancels_what_is_active_or_in_flight() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start("one"))
    assert commands(dialect.receive(start("two"))) == [Cancel, Start]
    dialect.receive(finish("two"))
    assert commands(dialect.receive(start("three"))) == [Cancel, Start]
    dialect.receive(finish("three"))
    dialect.tell(final("three"))
    assert commands(dialect.receive(start("four"))) == [Start]


def test_barge_in_says_nothing_and_a_cancel_says_cancelled() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start("one"))
    cancel, _ = dialect.receive(start("two"))
    assert isinstance(cancel, Cancel)
    assert dialect.tell(Cancelled(("one",), cancel.reason)) == []
    [asked] = dialect.receive(frame("cancel", "two", reason="stop"))
    assert isinstance(asked, Cancel)
    [cancelled] = said(dialect.tell(Cancelled(("two",), asked.reason)))
    assert (cancelled["type"], cancelled["request_id"], cancelled["payload"]) == (
        "cancelled",
        "two",
        {"reason": "stop"},
    )


@pytest.mark.parametrize("reason", ["\0barge-in", "barge-in", "\0", " "])
def test_no_reason_that_a_client_gives_silences_the_answer(reason: str) -> None:
    dialect = YapDialect(SERVED)
    [asked] = dialect.receive(frame("cancel", reason=reason))
    assert isinstance(asked, Cancel)
    [cancelled] = said(dialect.tell(Cancelled((), asked.reason)))
    assert cancelled["payload"] == {"reason": reason}


def test_an_id_used_twice_before_its_first_done_is_in_flight_twice() -> None:
    dialect = YapDialect(SERVED)
    for _ in range(2):
        dialect.receive(start("same"))
        dialect.receive(finish("same"))
    dialect.tell(final("same"))
    assert commands(dialect.receive(start("other"))) == [Cancel, Start]


def test_a_failure_of_the_older_use_of_an_id_leaves_the_newer_active() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start())
    dialect.receive(finish())
    dialect.receive(start())
    [error] = said(dialect.tell(Failed("r", "processing_error", "broke")))
    assert error["payload"]["code"] == "processing_error"
    assert dialect.receive(frame("input_audio_buffer.append", audio="AQD//w==")) == [Audio(b"\x01\x00\xff\xff")]


def test_after_a_failure_the_request_is_no_longer_active() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start())
    dialect.tell(Failed("r", "overloaded", "full"))
    assert reasons(dialect.receive(finish())) == ["no_active_request"]


@pytest.mark.spec("yap-28")
def test_an_end_by_silence_leaves_the_request_active() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start(vad="auto"))
    kinds = [answer["type"] for answer in said(dialect.tell(final("r", "one", ended_by="silence")))]
    assert kinds == ["final", "done"]
    assert dialect.receive(finish()) == [Finish()]


@pytest.mark.spec("yap-49")
@pytest.mark.parametrize("count", [12_000, 12_001])
def test_words_are_left_out_where_there_are_too_many(count: int) -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start())
    words = tuple(TimedWord("word", n * 0.4, n * 0.4 + 0.3) for n in range(count))
    shown, _ = said(dialect.tell(Final("r", "word " * count, words, Usage(), 0.48, 0.4 * count, "client")))
    assert ("words" in shown["payload"]) is (count <= 12_000)


def test_what_the_client_does_not_see() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start())
    assert dialect.tell(Started("r", 0.48)) == []
    assert dialect.tell(Tentative("r", "perhaps")) == []


def test_dropped_audio_is_told_to_the_sample() -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start())
    [status] = said(dialect.tell(Dropped("r", 1 / 16_000, 5.0)))
    assert status["payload"] == {
        "kind": "overload_drop",
        "dropped_seconds": 0.0000625,
        "max_backlog_seconds": 5.0,
        "source": "pending_buffer",
    }


def test_nothing_is_remembered_of_requests_that_are_over() -> None:
    dialect = YapDialect(SERVED)
    for n in range(300):
        dialect.receive(start(f"r{n}"))
        match n % 4:
            case 0:
                dialect.receive(finish(f"r{n}"))
                dialect.tell(final(f"r{n}"))
            case 1:
                dialect.tell(Failed(f"r{n}", "processing_error", ""))
            case 2:
                dialect.receive(frame("cancel", f"r{n}"))
            case _:
                pass  # the next one barges in
    assert len(dialect._started_by) <= 1


def test_a_refusal_of_the_session_is_told() -> None:
    dialect = YapDialect(SERVED)
    assert reasons(dialect.refused(SessionError("no_active_utterance", "no"))) == ["no_active_request"]


def test_only_what_may_overtake_is_urgent() -> None:
    dialect = YapDialect(SERVED)
    for kind in ("ping", "pong", "end"):
        assert dialect.urgent(frame(kind)) is not None
    for waits in (start(), frame("cancel"), frame("session.update"), "garbage"):
        assert dialect.urgent(waits) is None


@pytest.mark.parametrize("garbage", ["garbage", b"\0", frame("ping", "late", "late-session")])
@pytest.mark.spec("yap-64")
def test_an_overflow_carries_the_ids_of_the_frame_that_did_not_fit(garbage: str | bytes) -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(start("r"))
    error, close = dialect.overflow(garbage, 7)
    assert isinstance(error, Reply)
    [told] = said([error])
    expected = ("late-session", "late") if "late" in str(garbage) else ("s", "r")
    assert (told["session_id"], told["request_id"]) == expected
    assert told["payload"]["details"] == {"inbound_queue_max": 7, "reason_code": "inbound_queue_full"}
    assert close == Close(1013)


@pytest.mark.spec("yap-58")
def test_a_crash_is_an_internal_error() -> None:
    error, close = YapDialect(SERVED).crashed()
    [told] = said([error])
    assert (told["payload"]["code"], told["payload"]["details"]) == (
        "internal_error",
        {"reason_code": "internal_error"},
    )
    assert isinstance(close, Close)


@pytest.mark.parametrize("message", ["short", "ü" * 100, "x" * 122 + "😀"])
@pytest.mark.spec("yap-09")
def test_the_reason_of_a_rejection_fits_a_close_frame(message: str) -> None:
    reply, close = rejection("server_at_capacity", message)
    assert said([reply])[0]["payload"]["message"] == message
    assert len(close.reason.encode()) <= 123
    assert message.startswith(close.reason)


ACTIONS = st.tuples(
    st.sampled_from(["start", "finish", "append", "cancel", "ping", "bad audio"]), st.sampled_from(["a", "b", "c"])
)


@given(st.lists(ACTIONS, max_size=40))
def test_the_session_never_refuses_what_the_dialect_lets_through(actions: list[tuple[str, str]]) -> None:
    """Whatever order the client uses, what is wrong about it is the dialect's to say."""
    dialect = YapDialect(SERVED)
    session = Session(SessionSettings(default_delay_seconds=0.48, timed_words=True))
    for action, request in actions:
        match action:
            case "start":
                text = start(request)
            case "finish":
                text = finish(request)
            case "append":
                text = frame("input_audio_buffer.append", request, audio="AQD//w==")
            case "bad audio":
                text = frame("input_audio_buffer.append", request, audio="AQ==")
            case _:
                text = frame(action, request)
        for step in dialect.receive(text):
            if not isinstance(step, Reply | Close):
                for output in session.handle(step, now=0.0):
                    if isinstance(output, Cancelled | Final | Started | Token):
                        dialect.tell(output)


@pytest.mark.spec("yap-81")
@pytest.mark.parametrize("asking", [start(tentative=True), frame("session.update", tentative=True)])
def test_who_asks_for_it_is_told_tentative_text_and_the_times_of_words(asking: str) -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(asking)
    dialect.receive(start())
    [tentative] = said(dialect.tell(Tentative("r", " and so")))
    assert (tentative["type"], tentative["payload"]) == ("tentative", {"text": " and so"})
    [token] = said(dialect.tell(Token("r", " and", (TimedWord("and", 0.10004, 0.5),))))
    assert token["payload"] == {"text": " and", "words": [{"text": "and", "start": 0.1, "end": 0.5}]}
    [bare] = said(dialect.tell(Token("r", " so")))
    assert bare["payload"] == {"text": " so"}


@pytest.mark.spec("yap-81")
@pytest.mark.parametrize("asking", [start(), start(tentative=False), start(tentative=None)])
def test_nobody_else_is_told(asking: str) -> None:
    dialect = YapDialect(SERVED)
    dialect.receive(asking)
    assert dialect.tell(Tentative("r", " and so")) == []
    [token] = said(dialect.tell(Token("r", " and", (TimedWord("and", 0.1, 0.5),))))
    assert token["payload"] == {"text": " and"}


def test_an_engine_without_word_times_gives_tokens_none() -> None:
    dialect = YapDialect(Served(["served"], [480], 480, timed_words=False, endpointing=True))
    dialect.receive(start(tentative=True))
    [token] = said(dialect.tell(Token("r", " and", (TimedWord("and", 0.1, 0.5),))))
    assert token["payload"] == {"text": " and"}
