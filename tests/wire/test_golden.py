"""The codecs against frames written down from the protocols' specifications, in both directions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wire import realtime, yap
from wire.pcm import decode_base64, encode_base64

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(name: str, side: str) -> list[Any]:
    lines = [json.loads(line) for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines()]
    return [
        pytest.param(
            line["frame"], line["says"], line.get("ids", ["user-7", "utt-1"]), id=json.dumps(line["says"])[:60]
        )
        for line in lines
        if line["from"] == side
    ]


def meant(says: dict[str, dict[str, Any]], protocol: Any) -> Any:
    """The message that a golden line names, as an object of the codec."""
    [(kind, fields)] = says.items()
    return getattr(protocol, kind)(**fields)


@pytest.mark.parametrize(("frame", "says", "ids"), golden("yap.jsonl", "client"))
def test_yap_client_frame(frame: str, says: dict[str, Any], ids: list[str]) -> None:
    message = meant(says, yap)
    assert yap.encode_client(message, *ids) == frame
    envelope = yap.decode_envelope(frame)
    assert [envelope.session_id, envelope.request_id] == ids
    assert yap.client_message(envelope) == message


@pytest.mark.parametrize(("frame", "says", "ids"), golden("yap.jsonl", "server"))
def test_yap_server_frame(frame: str, says: dict[str, Any], ids: list[str]) -> None:
    message = meant(says, yap)
    assert yap.encode_server(message, *ids) == frame
    decoded, envelope = yap.decode_server(frame)
    assert decoded == message
    assert [envelope.session_id, envelope.request_id] == ids


@pytest.mark.parametrize(("frame", "says", "ids"), golden("realtime.jsonl", "client"))
def test_realtime_client_frame(frame: str, says: dict[str, Any], ids: list[str]) -> None:
    del ids
    message = meant(says, realtime)
    assert realtime.encode_client(message) == frame
    assert realtime.decode_client(frame) == message


@pytest.mark.parametrize(("frame", "says", "ids"), golden("realtime.jsonl", "server"))
def test_realtime_server_frame(frame: str, says: dict[str, Any], ids: list[str]) -> None:
    del ids
    message = meant(says, realtime)
    assert realtime.encode_server(message) == frame
    assert realtime.decode_server(frame) == message


def test_pcm16_is_little_endian() -> None:
    # the samples 1 and -1
    assert decode_base64("AQD//w==") == (1).to_bytes(2, "little") + (-1).to_bytes(2, "little", signed=True)
    assert encode_base64(b"\x01\x00\xff\xff") == "AQD//w=="
