"""The dialects of conversational sessions without a socket: what they remember, ask for, say, and when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from server.core.conversations import Conversation, Conversations, SessionLimits
from server.core.events import (
    Audio,
    Dropped,
    Failed,
    Final,
    Finish,
    Mute,
    Speech,
    Start,
    Started,
    Tentative,
    Token,
    Usage,
)
from server.core.session import SessionError
from server.protocols.base import Ask, Close, ConversingDialect, Displace, Reply, Served, Step, TimedDialect
from server.protocols.sessions import AudioDialect, ControlDialect, Policy, Surroundings, rejection

SERVED = Served(["served"], [80, 480, 960], 480, timed_words=True, endpointing=True, languages=("en", "de"))
UNIX = 1_700_000_000.5
AUDIO = bytes(320)


@dataclass
class Measured:
    inferences: list[float] = field(default_factory=list)
    responses: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)
    unheard: list[float] = field(default_factory=list)

    def inferred(self, seconds: float) -> None:
        self.inferences.append(seconds)

    def processed(self, seconds: float) -> None:
        self.responses.append(seconds)

    def displaced(self, seconds: float) -> None:
        self.lost.append(seconds)

    def unanswered(self, seconds: float) -> None:
        self.unheard.append(seconds)


@dataclass
class Scene:
    """A session and one audio socket of it."""

    conversation: Conversation
    around: Surroundings
    measured: Measured
    dialect: AudioDialect


def scene(
    policy: Policy | None = None, *, chat: bool = False, served: Served = SERVED, limits: SessionLimits | None = None
) -> Scene:
    conversations = Conversations(limits or SessionLimits(None, None, None, None), vad_sensitivity=2, max_length=512)
    measured = Measured()
    other = Served(["other"], [160], 160, timed_words=False, endpointing=True, model="other")

    def offer(name: str | None) -> Served | None:
        return {None: served, "served": served, "other": other}.get(name)

    around = Surroundings(conversations, policy or Policy(), offer, measured, chat, lambda: UNIX)
    conversation = conversations.create(0.0)
    assert conversation is not None
    return Scene(conversation, around, measured, AudioDialect(conversation, around, 100.0))


@pytest.fixture
def dialect() -> AudioDialect:
    return scene().dialect


def control(kind: str, **fields: Any) -> str:
    return json.dumps({"type": "control", "control_type": kind, **fields})


def said(steps: Sequence[Step]) -> list[dict[str, Any]]:
    return [json.loads(step.frame) for step in steps if isinstance(step, Reply)]


def kinds(steps: Sequence[Step]) -> list[type]:
    return [type(step) for step in steps]


def final(text: str, ended_by: str = "client", utterance: str = "1", audio_seconds: float = 0.01) -> Final:
    return Final(utterance, text, (), Usage(), 0.48, audio_seconds, ended_by)


def response(text: str) -> dict[str, Any]:
    return {"type": "text_response", "text": text, "timestamp": UNIX}


ENDED = {"type": "control", "control_type": "ended", "timestamp": UNIX}


def test_they_are_what_the_shell_looks_for() -> None:
    here = scene()
    for dialect in (here.dialect, ControlDialect(here.conversation, here.around)):
        assert isinstance(dialect, TimedDialect)
        assert isinstance(dialect, ConversingDialect)


# ---- utterances


def test_the_first_audio_starts_an_utterance_that_silence_ends(dialect: AudioDialect) -> None:
    [start, audio] = dialect.receive(AUDIO)
    assert isinstance(start, Start)
    assert start.options.endpointing
    assert start.options.endpointer is not None
    assert start.options.endpointer.silence_seconds == 1.0
    assert start.options.endpointer.min_speech_seconds == 0.1
    assert audio == Audio(AUDIO)
    assert dialect.receive(AUDIO) == [Audio(AUDIO)]


def test_a_final_is_a_response_and_an_empty_one_is_none(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    dialect.tell(Speech("1", speaking=False, at_seconds=1.0))
    assert said(dialect.tell(final(" hello there ", "silence"))) == [response("hello there")]
    dialect.tell(Speech("1", speaking=False, at_seconds=1.0))
    assert dialect.tell(final("  ", "silence")) == []
    assert dialect.receive(AUDIO) == [Audio(AUDIO)], "the next utterance has begun by itself"


def test_end_is_answered_after_the_response(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    assert dialect.receive(control("end")) == [Finish()]
    assert said(dialect.tell(final("hello"))) == [response("hello"), ENDED]


def test_end_is_answered_without_speech_and_without_audio(dialect: AudioDialect) -> None:
    assert said(dialect.receive(control("end"))) == [ENDED]
    dialect.receive(AUDIO)
    dialect.receive(control("end"))
    assert said(dialect.tell(final(""))) == [ENDED]


def test_every_end_is_answered_once_and_in_order(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    assert dialect.receive(control("end")) == [Finish()]
    assert dialect.receive(control("end")) == [], "the utterance before owes its text first"
    assert kinds(dialect.receive(AUDIO)) == [Start, Audio]
    assert dialect.receive(control("end")) == [Finish()]
    assert said(dialect.tell(final("one"))) == [response("one"), ENDED, ENDED]
    assert said(dialect.tell(final("two", utterance="2"))) == [response("two"), ENDED]


def test_an_end_that_comes_while_silence_has_ended_the_utterance_waits_for_the_last_one(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    dialect.tell(Speech("1", speaking=True, at_seconds=0.1))
    dialect.tell(Speech("1", speaking=False, at_seconds=1.0))
    assert dialect.receive(control("end")) == [Finish()]
    assert said(dialect.tell(final("one", "silence"))) == [response("one")]
    assert said(dialect.tell(final(""))) == [ENDED]


def test_after_a_failure_the_next_audio_starts_anew(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    [error] = said(dialect.tell(Failed("1", "processing_error", "the engine is gone")))
    assert (error["type"], error["code"]) == ("error", "PROCESSING_ERROR")
    assert error["error"] == "Audio processing: the engine is gone"
    assert kinds(dialect.receive(AUDIO)) == [Start, Audio]


def test_a_failure_answers_the_end_too(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    dialect.receive(control("end"))
    error, ended = said(dialect.tell(Failed("1", "processing_error", "gone")))
    assert error["code"] == "PROCESSING_ERROR"
    assert ended == ENDED


def test_what_fails_behind_a_silence_takes_the_next_utterance_with_it_no_more_than_its_end(
    dialect: AudioDialect,
) -> None:
    dialect.receive(AUDIO)
    dialect.tell(Speech("1", speaking=False, at_seconds=1.0))
    dialect.receive(control("end"))
    [error] = said(dialect.tell(Failed("1", "processing_error", "gone")))
    assert error["code"] == "PROCESSING_ERROR"
    assert said(dialect.tell(final("two"))) == [response("two"), ENDED]


def test_a_failure_for_want_of_memory_has_a_code_of_its_own(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    [error] = said(dialect.tell(Failed("1", "processing_error", "CUDA out of memory. Tried to allocate 2 GiB")))
    assert error["code"] == "GPU_OOM"


def test_events_that_clients_are_not_told(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    for event in (Started("1", 0.48), Dropped("1", 1.0, 5.0), Mute("1", 3.0), Token("1", "a"), Tentative("1", "b")):
        assert dialect.tell(event) == []


def test_an_odd_number_of_bytes_is_told_and_dropped(dialect: AudioDialect) -> None:
    [error] = said(dialect.receive(bytes(321)))
    assert error["code"] == "AUDIO_FORMAT_ERROR"
    assert "321" in error["error"]
    assert kinds(dialect.receive(AUDIO)) == [Start, Audio]


def test_an_empty_binary_frame_is_nothing(dialect: AudioDialect) -> None:
    assert dialect.receive(b"") == []


def test_audio_of_another_rate_is_resampled_whole() -> None:
    dialect = scene(Policy(sample_rate=48_000)).dialect
    heard = [step for _ in range(10) for step in dialect.receive(bytes(9600))]
    heard += dialect.receive(control("end"))
    assert heard[-1] == Finish()
    assert sum(len(step.pcm) for step in heard if isinstance(step, Audio)) == pytest.approx(32_000, abs=2)


def test_a_model_that_was_taken_away_is_an_error_and_the_socket_goes_on(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    [error] = said(dialect.refused(SessionError("model_not_found", "model 'x' is not loaded")))
    assert (error["code"], error["error"]) == ("PROCESSING_ERROR", "Audio processing: model 'x' is not loaded")
    assert dialect.refused(SessionError("no_active_utterance", "none")) == [], "its audio: told already"
    assert kinds(dialect.receive(AUDIO)) == [Start, Audio]


# ---- configuration of a socket


def test_configure_is_answered_with_the_delay_in_force(dialect: AudioDialect) -> None:
    answer = {"type": "control", "control_type": "configured", "timestamp": UNIX}
    assert said(dialect.receive(control("configure"))) == [answer | {"delay_ms": 480}]
    assert said(dialect.receive(control("configure", delay_ms=960))) == [answer | {"delay_ms": 960}]
    assert said(dialect.receive(control("configure", partials=True))) == [answer | {"delay_ms": 960}]
    [start, _] = dialect.receive(AUDIO)
    assert isinstance(start, Start)
    assert start.options.delay_seconds == 0.96


def test_configure_sets_model_language_and_detection(dialect: AudioDialect) -> None:
    [answer] = said(dialect.receive(control("configure", model="other", language="DE", vad="off")))
    assert answer["control_type"] == "configured"
    assert answer["delay_ms"] == 160
    [start, _] = dialect.receive(AUDIO)
    assert isinstance(start, Start)
    assert (start.options.model, start.options.language, start.options.endpointing) == ("other", "de", False)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"delay_ms": 100}, "80, 480, 960"),
        ({"delay_ms": True}, "delay_ms"),
        ({"delay_ms": "480"}, "delay_ms"),
        ({"vad": "perhaps"}, "'auto' or 'off'"),
        ({"vad": False}, "'auto' or 'off'"),
        ({"partials": "yes"}, "'partials'"),
        ({"model": "mystery"}, "'served'"),
        ({"model": ""}, "'served'"),
        ({"model": 3}, "'served'"),
        ({"language": "xx"}, "en, de"),
        ({"language": 3}, "'language'"),
        ({"language": " "}, "'language'"),
    ],
)
def test_a_bad_value_is_told_and_changes_nothing(dialect: AudioDialect, fields: dict[str, Any], word: str) -> None:
    [error] = said(dialect.receive(control("configure", **({"partials": True, "delay_ms": 80} | fields))))
    assert (error["type"], error["code"]) == ("error", "PROCESSING_ERROR")
    assert word in error["error"]
    [start, _] = dialect.receive(AUDIO)
    assert isinstance(start, Start)
    assert (start.options.delay_seconds, start.options.model, start.options.language) == (None, None, None)
    assert dialect.tell(Token("1", "no partials")) == []


def test_detection_cannot_be_had_where_there_is_none() -> None:
    served = Served(["served"], [480], 480, timed_words=True, endpointing=False)
    dialect = scene(served=served).dialect
    [error] = said(dialect.receive(control("configure", vad="auto")))
    assert error["code"] == "PROCESSING_ERROR"
    [start, _] = dialect.receive(AUDIO)
    assert isinstance(start, Start)
    assert not start.options.endpointing


def test_partials_are_the_whole_text_so_far_and_begin_anew_with_the_next_utterance(dialect: AudioDialect) -> None:
    dialect.receive(control("configure", partials=True))
    dialect.receive(AUDIO)
    steps = [dialect.tell(event) for event in (Tentative("1", "he"), Token("1", "hello"), Tentative("1", " the"))]
    partials = [frame for step in steps for frame in said(step)]
    assert partials == [
        {"type": "partial", "text": text, "timestamp": UNIX, "committed": committed}
        for text, committed in (("he", ""), ("hello", "hello"), ("hello the", "hello"))
    ]
    dialect.tell(Speech("1", speaking=False, at_seconds=1.0))
    dialect.tell(final("hello there", "silence"))
    assert [frame["text"] for frame in said(dialect.tell(Token("1", " next")))] == ["next"]


def test_a_partial_without_text_is_not_sent(dialect: AudioDialect) -> None:
    dialect.receive(control("configure", partials=True))
    dialect.receive(AUDIO)
    assert dialect.tell(Tentative("1", "")) == []


def test_a_change_while_nobody_speaks_holds_from_the_next_audio(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    dialect.receive(control("configure", delay_ms=80))
    [finish, start, audio] = dialect.receive(AUDIO)
    assert finish == Finish()
    assert isinstance(start, Start)
    assert start.options.delay_seconds == 0.08
    assert audio == Audio(AUDIO)
    assert dialect.tell(final("")) == [], "nobody has asked for an ended"
    assert dialect.receive(AUDIO) == [Audio(AUDIO)]


def test_a_change_while_somebody_speaks_waits_for_the_end_of_the_utterance(dialect: AudioDialect) -> None:
    dialect.receive(AUDIO)
    dialect.tell(Speech("1", speaking=True, at_seconds=0.1))
    dialect.receive(control("configure", delay_ms=80))
    assert dialect.receive(AUDIO) == [Audio(AUDIO)]
    dialect.tell(Speech("1", speaking=False, at_seconds=1.0))
    dialect.tell(final("one", "silence"))
    assert kinds(dialect.receive(AUDIO)) == [Finish, Start, Audio]


# ---- settings of the session


def control_socket(here: Scene) -> ControlDialect:
    return ControlDialect(here.conversation, here.around)


def update(**config: Any) -> str:
    return json.dumps({"type": "config_update", "config": config})


def thresholds(here: Scene) -> tuple[float, float]:
    start = here.dialect.receive(AUDIO)[-2]
    assert isinstance(start, Start)
    assert start.options.endpointer is not None
    return start.options.endpointer.threshold, start.options.endpointer.release


def test_a_higher_sensitivity_is_a_stricter_detector() -> None:
    found = []
    for sensitivity in range(4):
        here = scene()
        assert said(control_socket(here).receive(update(vad_sensitivity=sensitivity))) == [
            {"type": "config_updated", "status": "success"}
        ]
        found.append(thresholds(here))
    assert found == sorted(set(found))
    assert all(0 < release < threshold < 1 for threshold, release in found)
    assert thresholds(scene()) == found[2], "the default is the middle one"


def test_a_sensitivity_that_changes_meanwhile_reaches_the_utterance_after() -> None:
    here = scene()
    before = thresholds(here)
    control_socket(here).receive(update(vad_sensitivity=3))
    assert thresholds(here) > before


def test_temperature_and_length_are_those_of_answers_on_every_socket_of_the_session() -> None:
    here = scene(Policy(temperature=0.2), chat=True)
    socket = control_socket(here)
    text = json.dumps({"type": "text_input", "text": "well?"})
    assert socket.receive(text) == [Ask("well?", (), 0.2, 512)]
    socket.receive(update(temperature=0, max_length=7, colour="blue"))
    assert socket.receive(text) == [Ask("well?", (), 0.0, 7)]
    assert here.dialect.receive(text) == [Ask("well?", (), 0.0, 7)]


def test_a_temperature_that_was_set_is_that_of_transcription_too() -> None:
    here = scene()
    control_socket(here).receive(update(temperature=0.3))
    start = here.dialect.receive(AUDIO)[0]
    assert isinstance(start, Start)
    assert start.options.temperature == 0.3


@pytest.mark.parametrize(
    "config",
    [
        {"vad_sensitivity": 4},
        {"vad_sensitivity": -1},
        {"vad_sensitivity": 1.5},
        {"vad_sensitivity": True},
        {"vad_sensitivity": "3"},
        {"temperature": 2.1},
        {"temperature": -0.1},
        {"temperature": "hot"},
        {"temperature": False},
        {"max_length": 0},
        {"max_length": -5},
        {"max_length": 2.0},
        {"max_length": 10**12},
    ],
)
def test_a_bad_session_setting_is_told_and_changes_nothing(config: dict[str, Any]) -> None:
    here = scene()
    [error] = said(control_socket(here).receive(update(**({"vad_sensitivity": 3, "temperature": 1} | config))))
    assert (error["type"], error["code"]) == ("error", "PROCESSING_ERROR")
    [name] = config
    assert f"'{name}'" in error["error"]
    assert (here.conversation.vad_sensitivity, here.conversation.temperature) == (2, None)


@pytest.mark.parametrize(
    "frame", ['{"type":"config_update"}', '{"type":"config_update","config":3}', "{", "[]", b"\0\0"]
)
def test_a_control_socket_refuses_what_makes_no_sense(frame: str | bytes) -> None:
    [error] = said(control_socket(scene()).receive(frame))
    assert (error["type"], error["code"]) == ("error", "PROCESSING_ERROR")


@pytest.mark.parametrize("frame", ["{}", '{"type":"dance"}', control("ping"), '{"type":"text_input","text":" "}'])
def test_a_control_socket_ignores_the_rest(frame: str) -> None:
    assert control_socket(scene(chat=True)).receive(frame) == []


def test_a_control_socket_greets_nobody_and_has_no_clock() -> None:
    socket = control_socket(scene())
    assert socket.greet() == []
    assert socket.deadline() is None


# ---- texts and answers


def test_a_text_is_answered_by_the_chat_engine() -> None:
    here = scene(chat=True)
    [ask] = here.dialect.receive("not JSON at all")
    assert isinstance(ask, Ask)
    assert (ask.question, ask.audios) == ("not JSON at all", ())
    here.dialect.at(102.5)
    assert said(here.dialect.answered(" so it is ")) == [response("so it is")]
    assert here.measured.responses == [], "no utterance was processed"


def test_without_a_chat_engine_a_text_is_an_error_and_never_the_end_of_the_socket(dialect: AudioDialect) -> None:
    for _ in range(30):
        [step] = dialect.receive('{"type":"text_input","text":"hello"}')
        [error] = said([step])
        assert error["code"] == "PROCESSING_ERROR"
        assert error["error"].startswith("Text processing: ")
        assert "chat engine" in error["error"]


@pytest.mark.parametrize(
    ("message", "code"), [("it does not answer", "PROCESSING_ERROR"), ("CUDA out of memory", "GPU_OOM")]
)
def test_an_answer_that_fails_is_an_error(message: str, code: str) -> None:
    dialect = scene(chat=True).dialect
    dialect.receive("hello")
    [error] = said(dialect.unanswered(message))
    assert (error["type"], error["code"], error["error"]) == ("error", code, f"Text processing: {message}")


@pytest.mark.spec("sessions-67")
def test_what_fails_does_not_tell_where_the_server_keeps_its_things() -> None:
    dialect = scene(chat=True).dialect
    dialect.receive("hello")
    [error] = said(
        dialect.unanswered("http://10.0.0.5:8000/v1/chat does not answer; see /var/lib/models/x at 0x7f00beef")
    )
    assert error["error"] == "Text processing: the chat engine does not answer; see ... at ..."


def test_an_empty_answer_is_an_error_and_no_response() -> None:
    dialect = scene(chat=True).dialect
    dialect.receive("hello")
    [error] = said(dialect.answered("  "))
    assert (error["type"], error["code"]) == ("error", "PROCESSING_ERROR")


def test_only_so_many_answers_may_be_awaited() -> None:
    dialect = scene(chat=True).dialect
    for _ in range(16):
        assert kinds(dialect.receive("hello")) == [Ask]
    [error] = said(dialect.receive("one too many"))
    assert error["code"] == "RATE_LIMITED"
    dialect.answered("hi")
    assert kinds(dialect.receive("hello")) == [Ask]


def chatting(**policy: Any) -> Scene:
    return scene(Policy(reply_by_chat=True, question="Reply.", **policy), chat=True)


def pcm(*seconds: int) -> bytes:
    """Audio in which every second has samples of its own."""
    return b"".join(n.to_bytes(2, "little") * 16_000 for n in seconds)


def test_the_chat_engine_hears_an_utterance_from_a_little_before_its_speech() -> None:
    here = chatting()
    here.dialect.receive(pcm(1, 2, 3, 4))
    here.dialect.tell(Speech("1", speaking=True, at_seconds=1.3))
    here.dialect.at(110.0)
    here.dialect.tell(Speech("1", speaking=False, at_seconds=2.0))
    here.dialect.at(110.5)
    assert here.dialect.tell(final("ignored", "silence", audio_seconds=3.0)) == [Ask("Reply.", (pcm(2, 3),), 0.2, 512)]
    here.dialect.at(112.0)
    assert said(here.dialect.answered("two, three")) == [response("two, three")]
    assert here.measured.inferences == [1.5]
    assert here.measured.responses == [2.0]
    here.dialect.receive(control("end"))
    [ask] = here.dialect.tell(final("four", audio_seconds=1.0))
    assert isinstance(ask, Ask)
    assert ask.audios == (pcm(4),), "the rest belongs to the next utterance"


def test_the_chat_engine_is_not_asked_about_silence() -> None:
    here = chatting()
    here.dialect.receive(pcm(0))
    here.dialect.receive(control("end"))
    assert said(here.dialect.tell(final("", audio_seconds=1.0))) == [ENDED]


def test_ended_comes_after_the_reply_or_its_failure() -> None:
    here = chatting()
    for told in ("reply", "failure"):
        here.dialect.receive(pcm(1))
        here.dialect.receive(control("end"))
        assert kinds(here.dialect.tell(final("words", audio_seconds=1.0))) == [Ask]
        assert here.dialect.receive(control("end")) == []
        steps = here.dialect.answered("yes") if told == "reply" else here.dialect.unanswered("no")
        first, *rest = said(steps)
        assert first["type"] == ("text_response" if told == "reply" else "error")
        assert rest == [ENDED, ENDED]


def test_of_a_long_utterance_the_chat_engine_hears_the_newest_audio_and_the_rest_is_counted() -> None:
    here = chatting(reply_seconds=2.0)
    here.dialect.receive(pcm(1, 2, 3))
    here.dialect.receive(pcm(4))
    here.dialect.receive(control("end"))
    [ask] = here.dialect.tell(final("words", audio_seconds=4.0))
    assert isinstance(ask, Ask)
    assert ask.audios == (pcm(3, 4),)
    assert here.measured.unheard == [2.0]


def test_audio_that_was_not_kept_is_nobody_elses() -> None:
    here = chatting(reply_seconds=2.0)
    here.dialect.receive(pcm(1, 2, 3, 4))
    here.dialect.tell(Speech("1", speaking=True, at_seconds=0.0))
    here.dialect.tell(Speech("1", speaking=False, at_seconds=0.9))
    [error] = said(here.dialect.tell(final("one", "silence", audio_seconds=1.0)))
    assert error["code"] == "PROCESSING_ERROR"
    here.dialect.receive(control("end"))
    [ask] = here.dialect.tell(final("two three four", audio_seconds=3.0))
    assert isinstance(ask, Ask)
    assert ask.audios == (pcm(3, 4),)
    assert here.measured.unheard == [1.0, 1.0]


def test_silence_before_an_utterance_is_not_counted_as_unheard() -> None:
    here = chatting(reply_seconds=2.0)
    here.dialect.receive(pcm(0, 0, 0, 1))
    here.dialect.tell(Speech("1", speaking=True, at_seconds=3.0))
    here.dialect.receive(control("end"))
    here.dialect.tell(final("words", audio_seconds=4.0))
    assert here.measured.unheard == [0.0]


def test_the_seconds_of_transcription_are_measured_from_the_end_of_the_audio() -> None:
    here = scene()
    here.dialect.at(101.0)
    here.dialect.receive(AUDIO)
    here.dialect.receive(control("end"))
    here.dialect.at(101.75)
    here.dialect.tell(final("hello"))
    assert here.measured.inferences == here.measured.responses == [0.75]


# ---- time


def test_heartbeats_come_at_their_times(dialect: AudioDialect) -> None:
    assert dialect.deadline() == 130.0
    dialect.at(129.0)
    dialect.arrived(0)
    assert dialect.due() == []
    dialect.at(130.0)
    assert said(dialect.due()) == [{"type": "heartbeat", "timestamp": UNIX}]
    assert dialect.deadline() == 160.0
    dialect.at(229.0)  # a machine that slept
    dialect.arrived(0)
    assert len(said(dialect.due())) == 1
    assert dialect.deadline() == 250.0


def test_who_has_sent_nothing_for_more_than_60_s_is_closed_at_the_next_heartbeat(dialect: AudioDialect) -> None:
    dialect.at(101.0)
    dialect.arrived(0)
    for now in (130.0, 160.0):
        dialect.at(now)
        assert len(said(dialect.due())) == 1
    dialect.at(190.0)
    assert dialect.due() == [Close(4000, "inactive")]


def test_at_exactly_60_s_nobody_is_closed(dialect: AudioDialect) -> None:
    dialect.at(160.0)
    assert len(said(dialect.due())) == 1


def test_without_the_limit_nobody_is_closed() -> None:
    dialect = scene(Policy(inactivity_seconds=None)).dialect
    dialect.at(1e6)
    assert len(said(dialect.due())) == 1


def test_stats_count_every_frame_and_tell_times(dialect: AudioDialect) -> None:
    for waiting, frame in ((0, AUDIO), (3, bytes(3)), (5, control("get_stats"))):
        dialect.at(104.5)
        dialect.arrived(waiting)
        steps = dialect.urgent(frame) or dialect.receive(frame)
    [frame_] = said(steps)
    stats = frame_["stats"]
    assert stats.pop("client_id").startswith("client_")
    assert stats.pop("session_id")
    assert stats == {
        "connection_duration": 4.5,
        "message_count": 3,
        "error_count": 1,
        "queue_size": 5,
        "connected_at": UNIX,
        "last_activity": UNIX,
    }


# ---- queue, errors, limits


def test_only_ping_and_stats_overtake(dialect: AudioDialect) -> None:
    assert said(dialect.urgent(control("ping")) or []) == [
        {"type": "control", "control_type": "pong", "timestamp": UNIX}
    ]
    assert dialect.urgent(control("get_stats"))
    for frame in (AUDIO, control("end"), control("configure"), "text", '{"type":"text_input","text":3}'):
        assert dialect.urgent(frame) is None


def test_a_full_queue_pushes_out_audio_and_counts_it() -> None:
    here = scene()
    assert here.dialect.overflow(AUDIO, 1000) == [Displace()]
    assert here.dialect.displaced(AUDIO) == []
    assert here.measured.lost == [0.01]
    [error] = said(here.dialect.displaced("a text for which no audio makes room"))
    assert error["code"] == "PROCESSING_ERROR"


def test_the_eleventh_error_is_the_last(dialect: AudioDialect) -> None:
    for _ in range(10):
        assert kinds(dialect.receive(bytes(3))) == [Reply]
    reply, close = dialect.receive(bytes(3))
    assert said([reply])[0]["code"] == "AUDIO_FORMAT_ERROR"
    assert close == Close(1008, "too many errors")


def test_errors_may_be_any_number_without_the_limit() -> None:
    dialect = scene(Policy(count_errors=False)).dialect
    assert all(kinds(dialect.receive(bytes(3))) == [Reply] for _ in range(20))


def test_audio_beyond_its_rate_is_dropped_and_told() -> None:
    here = scene(limits=SessionLimits(None, None, 1000, None))
    second = AudioDialect(here.conversation, here.around, 100.0)
    for dialect in (here.dialect, second):
        dialect.at(100.0)
    assert kinds(here.dialect.receive(bytes(600))) == [Start, Audio]
    assert kinds(second.receive(bytes(400))) == [Start, Audio], "the limit is the session's"
    for _ in range(20):
        [step] = here.dialect.receive(bytes(2))
        assert said([step])[0]["code"] == "RATE_LIMITED"
    here.dialect.at(100.5)
    assert here.dialect.receive(bytes(500)) == [Audio(bytes(500))]


def test_texts_beyond_their_rate_are_dropped_and_told() -> None:
    here = scene(chat=True, limits=SessionLimits(None, None, None, 2))
    socket = control_socket(here)
    for one in (here.dialect, socket):
        one.at(100.0)
    assert kinds(here.dialect.receive("one")) == [Ask]
    assert here.dialect.receive("") == [], "an empty one does not count"
    assert kinds(socket.receive('{"type":"text_input","text":"two"}')) == [Ask]
    assert said(here.dialect.receive("three"))[0]["code"] == "RATE_LIMITED"
    assert said(socket.receive('{"type":"text_input","text":"four"}'))[0]["code"] == "RATE_LIMITED"
    here.dialect.at(160.0)
    assert kinds(here.dialect.receive("five")) == [Ask]


def test_a_bug_of_ours_is_told_and_ends_the_socket(dialect: AudioDialect) -> None:
    reply, close = dialect.crashed()
    assert said([reply])[0]["code"] == "PROCESSING_ERROR"
    assert isinstance(reply, Reply)
    assert reply.error == "internal_error"
    assert close == Close(1011)


def test_who_is_turned_away_is_told_why() -> None:
    reply, close = rejection("SESSION_NOT_FOUND", "no such session", 4404, lambda: UNIX)
    assert said([reply]) == [
        {"type": "error", "error": "no such session", "timestamp": UNIX, "code": "SESSION_NOT_FOUND"}
    ]
    assert close == Close(4404, "SESSION_NOT_FOUND")


# ---- what a server that ends waits for


def test_an_open_microphone_in_which_nothing_is_said_keeps_nobody_waiting(dialect: AudioDialect) -> None:
    assert not dialect.busy
    dialect.receive(AUDIO)
    assert not dialect.busy
    dialect.tell(Speech("1", speaking=True, at_seconds=0.1))
    assert dialect.busy
    dialect.tell(Speech("1", speaking=False, at_seconds=0.1))
    dialect.tell(final("words", "silence"))
    assert not dialect.busy


def test_text_awaited_ends_and_answers_are_waited_for() -> None:
    dialect = scene(chat=True).dialect
    dialect.receive(control("configure", vad="off"))
    dialect.receive(AUDIO)
    assert dialect.busy
    dialect.receive(control("end"))
    assert dialect.busy
    dialect.tell(final("words"))
    assert not dialect.busy
    dialect.receive("a question")
    assert dialect.busy
    dialect.answered("an answer")
    assert not dialect.busy
