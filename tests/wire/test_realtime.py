"""What the realtime codec refuses and forgives."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import realtime
from wire.errors import WireError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


def verdict(frame: str) -> str:
    try:
        realtime.decode_client(frame)
    except WireError as error:
        return error.reason
    return "fine"


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "invalid_json"),
        ("nonsense", "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('{"type":"session.update","model":' * 20_000, "invalid_json"),
        (b'{"type":"input_audio_buffer.commit"}', "invalid_json"),
        ("[]", "processing_error"),
        ("null", "processing_error"),
        ('"input_audio_buffer.commit"', "processing_error"),
        ("{}", "unknown_event"),
        ('{"type":null}', "unknown_event"),
        ('{"type":7}', "unknown_event"),
        ('{"type":["input_audio_buffer.commit"]}', "unknown_event"),
        ('{"type":"response.create"}', "unknown_event"),
        ('{"type":"session.update"}', "invalid_event"),
        ('{"type":"session.update","session":{"model":"m"}}', "invalid_event"),
        ('{"type":"session.update","model":7}', "processing_error"),
        ('{"type":"input_audio_buffer.append"}', "processing_error"),
        ('{"type":"input_audio_buffer.append","audio":7}', "processing_error"),
        ('{"type":"input_audio_buffer.append","audio":null}', "processing_error"),
        ('{"type":"input_audio_buffer.commit","final":"true"}', "processing_error"),
        ('{"type":"input_audio_buffer.commit","final":1}', "processing_error"),
        ('{"type":"input_audio_buffer.commit","final":null}', "processing_error"),
    ],
)
def test_a_bad_frame_gets_the_code_of_the_table(frame: str | bytes, code: str) -> None:
    with pytest.raises(WireError) as refused:
        realtime.decode_client(frame)
    assert refused.value.reason == code
    assert refused.value.message


def test_an_unknown_event_is_named() -> None:
    with pytest.raises(WireError, match=r"response\.create"):
        realtime.decode_client('{"type":"response.create"}')


def test_unknown_fields_are_ignored() -> None:
    frame = '{"type":"input_audio_buffer.commit","final":true,"event_id":"e1","x":{"y":[1]}}'
    assert realtime.decode_client(frame) == realtime.Commit(True)


def test_final_is_false_unless_given() -> None:
    assert realtime.decode_client('{"type":"input_audio_buffer.commit"}') == realtime.Commit(False)


@given(JSON)
def test_no_json_breaks_the_decoder(value: Any) -> None:
    assert verdict(json.dumps(value)) in {"fine", "processing_error", "unknown_event"}


@given(
    st.sampled_from(["input_audio_buffer.append", "input_audio_buffer.commit", "session.update"]),
    st.dictionaries(st.sampled_from(["audio", "final", "model", "delay_ms", "vad"]), JSON),
)
def test_no_field_breaks_the_decoder(kind: str, fields: dict[str, Any]) -> None:
    assert verdict(json.dumps({"type": kind, **fields})) in {
        "fine",
        "processing_error",
        "invalid_event",
        "invalid_json",
    }


@given(st.text())
def test_any_text_survives_the_way_to_the_client(text: str) -> None:
    assert realtime.decode_server(realtime.encode_server(realtime.Delta(text))) == realtime.Delta(text)


def test_a_server_event_of_an_unknown_type_is_told_apart() -> None:
    assert realtime.decode_server('{"type":"mood"}') == realtime.Unknown("mood")


def test_a_nested_error_of_another_server_is_read() -> None:
    frame = '{"type":"error","error":{"message":"no","code":"x"}}'
    error = realtime.decode_server(frame)
    assert isinstance(error, realtime.Error)
    assert "no" in error.error
