"""The REST surface's bodies against those written down from its specification, and the limits of their fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from server.protocols import rest as protocol
from wire import rest

LINES = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "golden" / "rest.jsonl").read_text(encoding="utf-8").splitlines()
]
NOW = "2026-01-31T12:00:00.000Z"


def golden(*sides: str) -> list[Any]:
    return [pytest.param(line, id=line["body"][:60]) for line in LINES if line["from"] in sides]


def meant(line: dict[str, Any]) -> BaseModel:
    [(kind, fields)] = line["says"].items()
    message: BaseModel = getattr(rest, kind)(**fields)
    return message


@pytest.mark.parametrize("line", golden("client", "server"))
def test_messages_in_both_directions(line: dict[str, Any]) -> None:
    message = meant(line)
    assert message.model_dump_json() == line["body"]
    assert type(message).model_validate_json(line["body"]) == message


@pytest.mark.parametrize("line", golden("client-short"))
def test_what_clients_may_leave_out(line: dict[str, Any]) -> None:
    message = meant(line)
    assert type(message).model_validate_json(line["body"]) == message


@pytest.mark.spec("rest-38")
@pytest.mark.parametrize("line", golden("chunk-error"))
def test_errors_of_the_stream(line: dict[str, Any]) -> None:
    assert protocol.ChunkRefusedError(**line["says"]).frame() == line["body"]


@pytest.mark.spec("rest-44")
@pytest.mark.parametrize("line", golden("error"))
def test_errors_of_requests(line: dict[str, Any]) -> None:
    name, arguments = line["says"]
    refusal = getattr(protocol, name)(*arguments)
    assert refusal.body(NOW).decode() == line["body"]
    assert refusal.status == line["status"]
    assert refusal.retry_seconds == line.get("retry")


@pytest.mark.spec("rest-45")
def test_an_invalid_request_lists_its_faults() -> None:
    faults = [
        rest.FieldError(loc=["body", "audio_files", 0, "format"], msg="wrong", type="literal_error"),
        rest.FieldError(loc=["body", "temperature"], msg="too hot", type="less_than_equal"),
    ]
    assert json.loads(protocol.invalid(faults).body(NOW)) == {
        "error": {
            "code": "VALIDATION_ERROR",
            "message": "the request is not valid",
            "details": "body.audio_files.0.format: wrong; body.temperature: too hot",
            "errors": [
                {"loc": ["body", "audio_files", 0, "format"], "msg": "wrong", "type": "literal_error"},
                {"loc": ["body", "temperature"], "msg": "too hot", "type": "less_than_equal"},
            ],
            "timestamp": NOW,
        }
    }


ONE = {"data": "", "format": "wav"}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (rest.TranscriptionRequest, {"audio_file": "", "format": "opus"}),
        (rest.TranscriptionRequest, {"audio_file": "", "format": "wav", "temperature": 2.01}),
        (rest.TranscriptionRequest, {"audio_file": "", "format": "wav", "temperature": float("nan")}),
        (rest.TranscriptionRequest, {"audio_file": "", "format": "wav", "language": "ru"}),
        (rest.TranscriptionRequest, {"format": "wav"}),
        (rest.BatchRequest, {"audio_files": []}),
        (rest.BatchRequest, {"audio_files": [ONE] * 11}),
        (rest.UnderstandingRequest, {"audio_files": [], "question": "?"}),
        (rest.UnderstandingRequest, {"audio_files": [ONE], "question": ""}),
        (rest.UnderstandingRequest, {"audio_files": [ONE], "question": "?", "max_tokens": 0}),
        (rest.UnderstandingRequest, {"audio_files": [ONE], "question": "?", "top_p": 1.01}),
        (rest.UnderstandingRequest, {"audio_files": [ONE], "question": "?", "temperature": -0.01}),
    ],
)
def test_fields_out_of_their_bounds(model: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        model(**fields)


@pytest.mark.parametrize("count", [1, 10])
def test_as_many_files_as_a_batch_may_have(count: int) -> None:
    assert len(rest.BatchRequest.model_validate({"audio_files": [ONE] * count}).audio_files) == count


def test_six_files_are_no_fault_of_a_question_s_shape() -> None:
    asked = rest.UnderstandingRequest.model_validate({"audio_files": [ONE] * 6, "question": "?"})
    assert len(asked.audio_files) == 6  # it is refused with 400, not with 422
