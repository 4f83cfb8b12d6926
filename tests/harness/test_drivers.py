from __future__ import annotations

import json

import pytest

from harness.drivers import DRIVERS
from harness.drivers.base import Appended, Done, Driver, Dropped, Fault, Final, Ready, Request, address
from wire.words import TimedWord

YAP, REALTIME = DRIVERS["yap"], DRIVERS["realtime"]
ASKED = Request("m")
yap, realtime = YAP.listen(ASKED), REALTIME.listen(ASKED)


def envelope(kind: str, /, **payload: object) -> str:
    return json.dumps({"type": kind, "session_id": "earmark", "request_id": "u1", "payload": payload})


def test_yap_client_frames_are_those_of_the_protocol() -> None:
    request = Request("m", 480)
    sent = [*YAP.hello(request), *YAP.start("u1", request), YAP.audio("u1", b"\x01\x00\xff\x7f"), *YAP.end("u1")]
    ids = {"session_id": "earmark"}
    assert [json.loads(frame) for frame in sent] == [
        {"type": "session.update", **ids, "request_id": "hello", "payload": {"model": "m", "delay_ms": 480}},
        {"type": "input_audio_buffer.commit", **ids, "request_id": "u1", "payload": {"final": False, "delay_ms": 480}},
        {"type": "input_audio_buffer.append", **ids, "request_id": "u1", "payload": {"audio": "AQD/fw=="}},
        {"type": "input_audio_buffer.commit", **ids, "request_id": "u1", "payload": {"final": True}},
    ]


def test_realtime_client_frames_are_those_of_the_protocol() -> None:
    request = Request("m", 480)
    sent = [
        *REALTIME.hello(request),
        *REALTIME.start("u1", request),
        REALTIME.audio("u1", b"\x01\x00\xff\x7f"),
        *REALTIME.end("u1"),
    ]
    assert [json.loads(frame) for frame in sent] == [
        {"type": "session.update", "model": "m", "delay_ms": 480},
        {"type": "input_audio_buffer.commit", "final": False, "delay_ms": 480},
        {"type": "input_audio_buffer.append", "audio": "AQD/fw=="},
        {"type": "input_audio_buffer.commit", "final": True},
    ]


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
def test_a_delay_that_is_the_servers_own_is_not_mentioned(driver: Driver) -> None:
    request = Request("m", None)
    assert not any("delay" in frame for frame in (*driver.hello(request), *driver.start("u1", request)))


def test_yap_server_frames_become_what_the_timeline_knows() -> None:
    word = {"text": "a", "start": 0.1, "end": 0.2}
    assert yap(envelope("session.created", id="sess-1", created=1)) == []
    assert yap(envelope("session.updated", model="m", delay_ms=160)) == [Ready(160)]
    assert yap(envelope("session.updated", model="m")) == [Ready(None)]
    assert yap(envelope("token", text=" a")) == [Appended(" a")]
    assert yap(envelope("final", normalized_text="a", words=[word])) == [Final("a", (TimedWord("a", 0.1, 0.2),))]
    assert yap(envelope("final", normalized_text="a")) == [Final("a")]
    usage = {"prompt_tokens": 3, "prompt_tokens_details": None}
    assert yap(envelope("done", usage=usage, delay_ms=160)) == [Done({"prompt_tokens": 3}, 160)]
    assert yap(envelope("status", kind="overload_drop", dropped_seconds=0.64)) == [Dropped(0.64)]
    assert yap(envelope("status", kind="something_else")) == []
    assert yap(envelope("new_thing", x=1)) == []


def test_only_a_full_server_refuses() -> None:
    full = envelope("error", code="server_at_capacity", message="full", details={"reason_code": "server_at_capacity"})
    key = envelope(
        "error", code="authentication_failed", message="bad key", details={"reason_code": "authentication_failed"}
    )
    assert yap(full) == [Fault("server_at_capacity", "full", refused=True)]
    assert yap(key) == [Fault("authentication_failed", "bad key")]


def test_realtime_server_frames_become_what_the_timeline_knows() -> None:
    assert realtime('{"type":"session.created","id":"sess-1","created":1}') == [Ready()]
    assert realtime('{"type":"transcription.delta","delta":" a"}') == [Appended(" a")]
    assert realtime('{"type":"transcription.delta","delta":""}') == []
    assert realtime('{"type":"transcription.done","text":"a","usage":null}') == [Final("a"), Done()]
    assert realtime('{"type":"transcription.done","text":"a","usage":{"total_tokens":2},"delay_ms":80}') == [
        Final("a"),
        Done({"total_tokens": 2}, 80),
    ]
    assert realtime('{"type":"error","error":"no","code":"model_not_found"}') == [Fault("model_not_found", "no")]
    assert realtime('{"type":"error","error":{"message":"no"}}')[0] == Fault("error", "{'message': 'no'}")


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS)
@pytest.mark.parametrize("frame", ["not json", "[]", b"\x00", '{"type":7}'])
def test_a_frame_that_makes_no_sense_is_a_fault(driver: Driver, frame: str | bytes) -> None:
    (said,) = driver.listen(ASKED)(frame)
    assert isinstance(said, Fault)


@pytest.mark.parametrize(
    ("target", "url"),
    [
        ("127.0.0.1:8000", "ws://127.0.0.1:8000/v1/realtime"),
        ("ws://h:1", "ws://h:1/v1/realtime"),
        ("https://h/", "wss://h/v1/realtime"),
        ("ws://h:1/other?a=b", "ws://h:1/other?a=b"),
        ("ws://[::1]:8000", "ws://[::1]:8000/v1/realtime"),
    ],
)
def test_targets_get_the_path_of_the_protocol(target: str, url: str) -> None:
    assert address(REALTIME, target, None) == (url, {})


def test_keys_travel_where_each_protocol_wants_them() -> None:
    assert address(YAP, "h:1", "k&y") == ("ws://h:1/api/asr-streaming?api_key=k%26y", {})
    assert address(REALTIME, "h:1", "key") == ("ws://h:1/v1/realtime", {"Authorization": "Bearer key"})


@pytest.mark.parametrize("target", ["ftp://h", "ws://", "ws://h:99999", ":", "ws://h:x"])
def test_targets_that_are_none_are_refused(target: str) -> None:
    with pytest.raises(ValueError, match="target"):
        address(YAP, target, None)


def test_realtime_needs_a_model() -> None:
    with pytest.raises(ValueError, match="--model"):
        REALTIME.check(Request())


def test_what_the_target_says_wins_over_what_is_asked_but_never_over_the_key() -> None:
    deepgram = DRIVERS["deepgram"]
    request = Request("nova-3", None, "en", {"punctuate": "true"})
    url, headers = address(deepgram, "wss://eu.example/v1/listen?model=own&keyterm=a&keyterm=b", "key", request)
    assert url == (
        "wss://eu.example/v1/listen?model=own&keyterm=a&keyterm=b&encoding=linear16&sample_rate=16000&channels=1"
        "&interim_results=true&language=en&punctuate=true"
    )
    assert headers == {"Authorization": "Token key"}
    assert address(YAP, "h:1/x?api_key=old&a=b", "new") == ("ws://h:1/x?a=b&api_key=new", {})


def test_the_language_is_left_open_where_the_dataset_has_several() -> None:
    assert "language" not in DRIVERS["deepgram"].query(Request(None, None, None))
    assert DRIVERS["deepgram"].query(Request(None, None, "de", {"language": "multi"}))["language"] == "multi"


def test_what_openai_is_asked_for_is_one_session_update() -> None:
    options = {"delay": "low", "languages": "en, de", "noise_reduction": "far_field", "prompt": "numbers"}
    (frame,) = DRIVERS["openai"].hello(Request("gpt-realtime-whisper", None, "en", options))
    assert json.loads(frame) == {
        "type": "session.update",
        "session": {
            "type": "transcription",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "transcription": {
                        "model": "gpt-realtime-whisper",
                        "delay": "low",
                        "prompt": "numbers",
                        "languages": ["en", "de"],
                    },
                    "turn_detection": None,
                    "noise_reduction": {"type": "far_field"},
                }
            },
        },
    }


def test_frames_of_services_are_those_of_their_documents() -> None:
    pcm = b"\x01\x00\xff\x7f"
    openai, deepgram, mistral = (DRIVERS[name] for name in ("openai", "deepgram", "mistral"))
    assert json.loads(openai.audio("u", pcm)) == {"type": "input_audio_buffer.append", "audio": "AQD/fw=="}
    assert [json.loads(frame) for frame in openai.end("u")] == [
        {"type": "input_audio_buffer.commit"},
        {"type": "input_audio_buffer.clear"},
    ]
    assert deepgram.audio("u", pcm) == pcm
    assert [json.loads(frame) for frame in deepgram.end("u")] == [{"type": "Finalize"}, {"type": "CloseStream"}]
    assert json.loads(mistral.audio("u", pcm)) == {"type": "input_audio.append", "audio": "AQD/fw=="}
    assert [json.loads(frame) for frame in mistral.end("u")] == [
        {"type": "input_audio.flush"},
        {"type": "input_audio.end"},
    ]


def test_vllm_is_told_the_delay_it_cannot_say() -> None:
    vllm = DRIVERS["vllm"]
    created = '{"type":"session.created","id":"sess-1","created":1}'
    assert vllm.listen(Request("m", options={"served-delay-ms": "480"}))(created) == [Ready(480)]
    assert vllm.listen(Request("m"))(created) == [Ready(None)]
