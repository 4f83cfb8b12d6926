"""The frames of conversational sessions: what clients may send, what servers may say, and what is neither."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire import sessions
from wire.errors import WireError

GOLDEN = Path(__file__).parents[1] / "golden" / "sessions.jsonl"


def golden(side: str) -> list[Any]:
    lines = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
    return [
        pytest.param(line["frame"], line["says"], id=json.dumps(line["says"])[:60])
        for line in lines
        if line["from"] == side
    ]


def meant(says: dict[str, dict[str, Any]]) -> Any:
    """The message that a golden line names."""
    [(kind, fields)] = says.items()
    return getattr(sessions, kind)(**fields)


@pytest.mark.parametrize(("frame", "says"), golden("client"))
def test_client_frame(frame: str, says: dict[str, Any]) -> None:
    assert sessions.encode_client(meant(says)) == frame
    assert sessions.decode_client(frame) == meant(says)


@pytest.mark.parametrize(("frame", "says"), golden("server"))
def test_server_frame(frame: str, says: dict[str, Any]) -> None:
    assert sessions.encode_server(meant(says)) == frame
    assert sessions.decode_server(frame) == meant(says)


STATS = (
    '{"type":"status","stats":{"client_id":"client_12345","session_id":"1","connection_duration":12.5,"message_count":9,'
    '"error_count":1,"queue_size":0,"connected_at":1700000000.5,"last_activity":1700000012.5}}'
)


def test_stats_have_no_status() -> None:
    figures = sessions.StatsFigures("client_12345", "1", 12.5, 9, 1, 0, 1700000000.5, 1700000012.5)
    assert sessions.encode_server(sessions.Stats(figures)) == STATS
    assert sessions.decode_server(STATS) == sessions.Stats(figures)


@pytest.mark.parametrize("text", ["hello", "", "{", "[1]", "17", '"quoted"', "null", "[" * 50_000, "\x00"])
def test_what_is_no_object_is_a_text_on_audio_sockets_and_an_error_on_control_sockets(text: str) -> None:
    assert sessions.decode_client(text) == sessions.TextInput(text)
    with pytest.raises(WireError) as refused:
        sessions.decode_client(text, plain_text=False)
    assert refused.value.reason == "PROCESSING_ERROR"


@pytest.mark.parametrize(
    "text", ["{}", '{"type":1}', '{"type":"audio_chunk"}', '{"type":"control"}', '{"kind":"ping"}']
)
def test_other_types_are_told_apart_to_be_ignored(text: str) -> None:
    assert isinstance(sessions.decode_client(text), sessions.Other)


@pytest.mark.parametrize("field", ["", ',"text":""', ',"text":null'])
def test_a_text_that_is_missing_is_empty(field: str) -> None:
    assert sessions.decode_client('{"type":"text_input"' + field + "}") == sessions.TextInput("")


@pytest.mark.parametrize("value", ["1", "[]", "{}", "true"])
def test_a_text_that_is_no_string_is_refused(value: str) -> None:
    with pytest.raises(WireError, match="'text' must be a string"):
        sessions.decode_client('{"type":"text_input","text":' + value + "}")


def test_a_client_timestamp_is_ignored() -> None:
    assert sessions.decode_client('{"type":"control","control_type":"ping","timestamp":"soon"}') == sessions.Ping()


@pytest.mark.parametrize(
    "frame", ["", "{", "[]", "1", '{"type":1}', '{"type":"heartbeat"}', b"\xff", '{"type":"error","error":1}']
)
def test_what_is_no_server_frame_is_refused(frame: str | bytes) -> None:
    with pytest.raises(WireError):
        sessions.decode_server(frame)


@pytest.mark.parametrize("frame", ['{"type":"audio_response"}', '{"type":"control","control_type":"dance"}'])
def test_server_frames_of_unknown_types_are_unknown(frame: str) -> None:
    assert isinstance(sessions.decode_server(frame), sessions.Unknown)


@given(st.text() | st.from_type(dict[str, int | str | None]).map(json.dumps))
def test_no_frame_raises_anything_but_a_wire_error(frame: str) -> None:
    for read in (
        sessions.decode_client,
        lambda frame: sessions.decode_client(frame, plain_text=False),
        sessions.decode_server,
    ):
        with suppress(WireError):
            read(frame)
