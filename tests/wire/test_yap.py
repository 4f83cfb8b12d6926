"""What the envelope codec refuses and forgives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import yap
from wire.errors import WireError

GOOD: dict[str, Any] = {"type": "ping", "session_id": "s", "request_id": "r", "payload": {}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def refusal(frame: str | bytes) -> WireError:
    with pytest.raises(WireError) as refused:
        yap.client_message(yap.decode_envelope(frame))
    return refused.value


def verdict(frame: str) -> str:
    try:
        yap.client_message(yap.decode_envelope(frame))
    except WireError as error:
        return error.reason
    return "fine"


@pytest.mark.parametrize(
    ("frame", "names"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ('{"type":"ping"} x', "JSON"),
        ("[" * 100_000, "JSON"),
        ('{"a":' * 100_000, "JSON"),
        (json.dumps(GOOD).replace("{}", "[" * 100_000), "JSON"),
        ("[]", "object"),
        ("null", "object"),
        ('"ping"', "object"),
        ("7", "object"),
        (json.dumps(GOOD | {"type": " "}), "'type'"),
        (json.dumps(GOOD | {"type": 5}), "'type'"),
        (json.dumps(GOOD | {"session_id": ""}), "'session_id'"),
        (json.dumps(GOOD | {"session_id": None}), "'session_id'"),
        (json.dumps(GOOD | {"request_id": "\t\n"}), "'request_id'"),
        (json.dumps(GOOD | {"request_id": ["r"]}), "'request_id'"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "type"}), "'type'"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "session_id"}), "'session_id'"),
        (json.dumps({key: value for key, value in GOOD.items() if key != "request_id"}), "'request_id'"),
        (json.dumps(GOOD | {"payload": []}), "'payload'"),
        (json.dumps(GOOD | {"payload": "x"}), "'payload'"),
        (json.dumps(GOOD | {"payload": 0}), "'payload'"),
        (json.dumps(GOOD | {"payload": False}), "'payload'"),
        (b"\x00\x01", "binary"),
    ],
)
@pytest.mark.spec("yap-17")
def test_a_bad_frame_is_an_invalid_message_that_names_the_rule(frame: str | bytes, names: str) -> None:
    error = refusal(frame)
    assert error.reason == "invalid_message"
    assert names in error.message


@pytest.mark.parametrize("payload", [{}, {"payload": None}])
@pytest.mark.spec("yap-16")
def test_a_missing_or_null_payload_is_empty(payload: dict[str, Any]) -> None:
    frame = json.dumps({"type": "cancel", "session_id": "s", "request_id": "r", **payload})
    assert yap.decode_envelope(frame) == yap.Envelope("cancel", "s", "r", {})


@pytest.mark.spec("yap-15")
def test_type_and_ids_are_trimmed() -> None:
    frame = json.dumps({"type": " ping\n", "session_id": "\ts ", "request_id": " r r ", "payload": {}})
    assert yap.decode_envelope(frame) == yap.Envelope("ping", "s", "r r", {})


@pytest.mark.parametrize(
    ("final", "means"),
    [(True, True), (False, False), ("false", True), ("", False), (1, True), (0, False), (None, False), ([], False)],
)
@pytest.mark.spec("yap-30")
def test_final_is_judged_by_truthiness(final: Any, means: bool) -> None:
    frame = json.dumps(GOOD | {"type": "input_audio_buffer.commit", "payload": {"final": final}})
    assert yap.client_message(yap.decode_envelope(frame)) == yap.Commit(means)


@pytest.mark.spec("yap-30")
def test_commit_without_final_starts() -> None:
    frame = json.dumps(GOOD | {"type": "input_audio_buffer.commit"})
    assert yap.client_message(yap.decode_envelope(frame)) == yap.Commit(False)


@pytest.mark.parametrize("payload", [{}, {"audio": None}, {"audio": 3}, {"audio": ""}, {"audio": "  "}, {"audio": {}}])
def test_an_append_without_audio_is_refused(payload: dict[str, Any]) -> None:
    assert (
        refusal(json.dumps(GOOD | {"type": "input_audio_buffer.append", "payload": payload})).reason == "missing_audio"
    )


def test_an_unknown_type_is_named() -> None:
    error = refusal(json.dumps(GOOD | {"type": "input_audio_buffer.clear"}))
    assert error.reason == "unknown_message_type"
    assert "input_audio_buffer.clear" in error.message


@given(JSON)
def test_no_json_breaks_the_decoder(value: Any) -> None:
    assert verdict(json.dumps(value)) in {"fine", "invalid_message", "unknown_message_type"}


@given(
    st.sampled_from(
        ["input_audio_buffer.append", "input_audio_buffer.commit", "session.update", "cancel", "ping", "x"]
    ),
    st.dictionaries(st.sampled_from(["audio", "final", "model", "reason", "delay_ms", "vad"]), JSON),
)
def test_no_payload_breaks_the_decoder(kind: str, payload: dict[str, Any]) -> None:
    frame = json.dumps(GOOD | {"type": kind, "payload": payload})
    assert verdict(frame) in {"fine", "missing_audio", "unknown_message_type", "invalid_message"}


@given(st.text(), st.text(min_size=1).filter(str.strip), st.text(min_size=1).filter(str.strip))
def test_any_text_survives_the_way_to_the_client(text: str, session: str, request: str) -> None:
    message, envelope = yap.decode_server(yap.encode_server(yap.Token(text), session, request))
    assert message == yap.Token(text)
    assert (envelope.session_id, envelope.request_id) == (session.strip(), request.strip())


def test_a_server_frame_of_an_unknown_type_is_told_apart() -> None:
    frame = '{"type":"mood","session_id":"s","request_id":"r","payload":{"x":1}}'
    assert yap.decode_server(frame)[0] == yap.Unknown("mood")
