"""vLLM's realtime protocol of ``/v1/realtime``: frames of both directions.

Every frame is one flat JSON object with a ``type``. Fields that the original does not have are additive and marked so; its
clients neither send nor need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from wire.errors import NOT_JSON, WireError
from wire.words import TimedWord

# ---- client to server -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionUpdate:
    """Names the model; no answer on success. Additive: ``delay_ms``, ``vad``."""

    model: str
    delay_ms: Any = None
    vad: Any = None


@dataclass(frozen=True, slots=True)
class Append:
    """``audio``: PCM16, 16 kHz, mono, in base64, not decoded yet."""

    audio: str


@dataclass(frozen=True, slots=True)
class Commit:
    """``final`` false starts a transcription, true ends its audio. Additive: ``delay_ms``, ``vad``."""

    final: bool
    delay_ms: Any = None
    vad: Any = None


ClientEvent = SessionUpdate | Append | Commit

_decode = msgspec.json.Decoder().decode


def decode_client(frame: str | bytes) -> ClientEvent:
    """What a client's frame says.

    Raises:
        WireError: ``invalid_json``, ``unknown_event``, ``invalid_event`` or ``processing_error``.
    """
    if isinstance(frame, bytes):
        raise WireError("invalid_json", "binary frames are not part of this protocol; send one JSON object as text")
    try:
        event = _decode(frame)
    except NOT_JSON:
        raise WireError("invalid_json", "frame is not valid JSON") from None
    if not isinstance(event, dict):
        raise WireError("processing_error", "frame must be a JSON object")
    match event.get("type"):
        case "input_audio_buffer.append":
            audio = event.get("audio")
            if not isinstance(audio, str):
                raise WireError("processing_error", "'audio' must be a base64 string")
            return Append(audio)
        case "input_audio_buffer.commit":
            final = event.get("final", False)
            if not isinstance(final, bool):
                raise WireError("processing_error", "'final' must be true or false")
            return Commit(final, event.get("delay_ms"), event.get("vad"))
        case "session.update":
            if "model" not in event or event["model"] is None:
                raise WireError("invalid_event", "'session.update' needs a 'model'")
            if not isinstance(event["model"], str):
                raise WireError("processing_error", "'model' must be a string")
            return SessionUpdate(event["model"], event.get("delay_ms"), event.get("vad"))
        case None:
            raise WireError("unknown_event", "unknown event: 'type' is missing")
        case other:
            raise WireError("unknown_event", f"unknown event: {str(other)[:100]}")


def encode_client(event: ClientEvent) -> str:
    """The frame a client sends. Additive fields that are ``None`` are left out."""
    body: dict[str, Any]
    match event:
        case SessionUpdate(model, delay_ms, vad):
            body = {"type": "session.update", "model": model, "delay_ms": delay_ms, "vad": vad}
        case Append(audio):
            body = {"type": "input_audio_buffer.append", "audio": audio}
        case Commit(final, delay_ms, vad):
            body = {"type": "input_audio_buffer.commit", "final": final, "delay_ms": delay_ms, "vad": vad}
    return msgspec.json.encode({key: value for key, value in body.items() if value is not None}).decode()


# ---- server to client -------------------------------------------------------------------------------------------


class SessionCreated(msgspec.Struct, frozen=True, tag_field="type", tag="session.created"):
    """The first frame. ``id`` is ``sess-`` and hexadecimal digits, ``created`` Unix seconds."""

    id: str
    created: int = 0


class Delta(msgspec.Struct, frozen=True, tag_field="type", tag="transcription.delta"):
    """Text to append; servers may send empty ones."""

    delta: str


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="transcription.done", omit_defaults=True):
    """``text`` is all deltas joined. Additive: ``words``, ``delay_ms``, ``audio_seconds``, ``ended_by``."""

    text: str
    usage: dict[str, Any] | None
    words: tuple[TimedWord, ...] | None = None
    delay_ms: int | None = None
    audio_seconds: float | None = None
    ended_by: str | None = None


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """``error`` is a plain string here, unlike OpenAI's nested object."""

    error: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """A server event of a type this client does not know, to be ignored."""

    type: str


ServerEvent = SessionCreated | Delta | Done | Error

_SERVER_TYPES: dict[str, Any] = {str(kind.__struct_config__.tag): kind for kind in (SessionCreated, Delta, Done, Error)}


def encode_server(event: ServerEvent) -> str:
    """The frame a server sends."""
    return msgspec.json.encode(event).decode()


def decode_server(frame: str | bytes) -> ServerEvent | Unknown:
    """What a server's frame says.

    Raises:
        WireError: ``invalid_json`` or ``invalid_event``.
    """
    try:
        event = _decode(frame)
    except NOT_JSON:
        raise WireError("invalid_json", "server frame is not valid JSON") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise WireError("invalid_event", "server frame is not an object with a 'type'")
    kind = _SERVER_TYPES.get(event["type"])
    if kind is None:
        return Unknown(event["type"])
    if kind is Error and not isinstance(event.get("error"), str):
        return Error(str(event.get("error")), None)  # other servers nest their errors; the text is for people
    try:
        decoded: ServerEvent = msgspec.convert(event, kind)
    except msgspec.ValidationError as error:
        raise WireError("invalid_event", f"bad fields in '{event['type']}': {error}") from None
    return decoded
