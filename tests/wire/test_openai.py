"""OpenAI's events against frames written down from its API reference, and the reading of whatever else comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import openai.types.realtime as official
import pytest
from hypothesis import given
from hypothesis import strategies as some

from wire import openai
from wire.errors import WireError

LINES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "golden" / "openai.jsonl").read_text(encoding="utf-8").splitlines()
]
CLIENT = [line for line in LINES if line["from"] == "client"]
SERVER = [line for line in LINES if line["from"] == "server"]


def meant(says: dict[str, dict[str, Any]]) -> Any:
    [(kind, fields)] = says.items()
    return msgspec.convert(fields, getattr(openai, kind))


@pytest.mark.parametrize("line", CLIENT, ids=lambda line: json.dumps(line["says"])[:60])
def test_a_client_frame_is_read(line: dict[str, Any]) -> None:
    assert openai.decode_client(json.dumps(line["frame"])) == meant(line["says"])


@pytest.mark.parametrize("line", SERVER, ids=lambda line: json.dumps(line["says"])[:60])
def test_a_server_event_is_written(line: dict[str, Any]) -> None:
    assert json.loads(openai.encode_server(meant(line["says"]), "event_0")) == line["frame"]


@pytest.mark.parametrize("line", SERVER, ids=lambda line: json.dumps(line["says"])[:60])
def test_a_server_frame_is_one_of_the_official_clients_events(line: dict[str, Any]) -> None:
    names: dict[str, Any] = {
        "input_audio_buffer.speech_started": official.InputAudioBufferSpeechStartedEvent,
        "input_audio_buffer.speech_stopped": official.InputAudioBufferSpeechStoppedEvent,
        "input_audio_buffer.committed": official.InputAudioBufferCommittedEvent,
        "input_audio_buffer.cleared": official.InputAudioBufferClearedEvent,
        "conversation.item.added": official.ConversationItemAdded,
        "conversation.item.created": official.ConversationItemCreatedEvent,
        "conversation.item.input_audio_transcription.delta": official.ConversationItemInputAudioTranscriptionDeltaEvent,
        "conversation.item.input_audio_transcription.completed": (
            official.ConversationItemInputAudioTranscriptionCompletedEvent
        ),
        "conversation.item.input_audio_transcription.failed": (
            official.ConversationItemInputAudioTranscriptionFailedEvent
        ),
        "error": official.RealtimeErrorEvent,
    }
    names[line["frame"]["type"]].model_validate(line["frame"])  # raises where a required field is missing or mistyped


def test_the_session_is_one_of_the_official_clients() -> None:
    session = openai.Session("sess_1", "scripted", turn_detection=openai.TurnDetection(), delay_ms=480)
    for event in (openai.SessionCreated(session), openai.SessionUpdated(session)):
        frame = json.loads(openai.encode_server(event, "event_0"))
        official.RealtimeTranscriptionSessionCreateResponse.model_validate(frame["session"])
        assert frame["session"]["audio"]["input"]["turn_detection"] == {
            "type": "server_vad",
            "threshold": 0.5,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 500,
        }


JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = some.sampled_from(
    [
        "type",
        "session",
        "audio",
        "input",
        "format",
        "rate",
        "transcription",
        "turn_detection",
        "threshold",
        "delay",
        "model",
    ]
)


@given(
    some.text(max_size=80)
    | some.binary(max_size=40)
    | some.recursive(JSON, lambda inner: some.dictionaries(NAMES, inner, max_size=5), max_leaves=12).map(json.dumps)
    | some.tuples(
        some.sampled_from(["session.update", "transcription_session.update", "input_audio_buffer.append"]),
        some.recursive(JSON, lambda inner: some.dictionaries(NAMES, inner, max_size=5), max_leaves=12),
    ).map(lambda pair: json.dumps({"type": pair[0], "session": pair[1], "audio": pair[1]}))
)
def test_whatever_comes_is_an_event_or_an_error_that_says_why(frame: str | bytes) -> None:
    complaint: WireError | None = None
    try:
        event = openai.decode_client(frame)
    except WireError as error:
        complaint = error
    if complaint is None:
        assert isinstance(event, openai.SessionUpdate | openai.Append | openai.Commit | openai.Clear)
    else:
        assert complaint.message
        assert complaint.reason.startswith(("invalid_", "missing_"))
    openai.speaks_openai(frame)
