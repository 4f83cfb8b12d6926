"""The JSON-envelope protocol of ``/api/asr-streaming``: frames of both directions.

Every frame is one JSON object ``{"type", "session_id", "request_id", "payload"}``. Fields that the original does not have are
additive and marked so; its clients neither send nor need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from wire.errors import NOT_JSON, WireError
from wire.words import TimedWord

UNKNOWN = "unknown"
"""Both ids of server frames until the client has sent a valid frame."""


# ---- client to server -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionUpdate:
    """``model`` is whatever the client put there; ``None`` when missing. The rest is additive."""

    model: Any = None
    delay_ms: Any = None
    vad: Any = None
    tentative: Any = None


@dataclass(frozen=True, slots=True)
class Commit:
    """``final`` false starts the utterance ``request_id``, true ends its audio. The rest is additive."""

    final: bool
    delay_ms: Any = None
    vad: Any = None
    tentative: Any = None


@dataclass(frozen=True, slots=True)
class Append:
    """``audio``: PCM16, 16 kHz, mono, in base64, not decoded yet."""

    audio: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Throw away the utterance under way."""

    reason: str = "client_request"


@dataclass(frozen=True, slots=True)
class Ping:
    """Wants a pong."""


@dataclass(frozen=True, slots=True)
class Pong:
    """Wants nothing."""


@dataclass(frozen=True, slots=True)
class End:
    """Wants ``session_end`` and the close."""


ClientMessage = SessionUpdate | Commit | Append | Cancel | Ping | Pong | End


class _Envelope(msgspec.Struct):
    type: str
    session_id: str
    request_id: str
    payload: dict[str, Any] | None = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_anything = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class Envelope:
    """A frame whose four keys are in order; the payload may still be wrong for its type."""

    type: str
    session_id: str
    request_id: str
    payload: dict[str, Any]


def decode_envelope(frame: str | bytes) -> Envelope:
    """Read the outer object of any frame.

    Raises:
        WireError: reason ``invalid_message``; the message names the rule that failed.
    """
    if isinstance(frame, bytes):
        raise WireError("invalid_message", "binary frames are not part of this protocol; send one JSON object as text")
    try:
        envelope = _decode_envelope(frame)
    except NOT_JSON:
        raise WireError("invalid_message", _what_is_wrong(frame)) from None
    kind, session_id, request_id = envelope.type.strip(), envelope.session_id.strip(), envelope.request_id.strip()
    for key, value in (("type", kind), ("session_id", session_id), ("request_id", request_id)):
        if not value:
            raise WireError("invalid_message", f"'{key}' must be a non-blank string")
    return Envelope(kind, session_id, request_id, envelope.payload or {})


def _what_is_wrong(frame: str) -> str:
    try:
        value = _decode_anything(frame)
    except NOT_JSON:
        return "frame is not valid JSON"
    if not isinstance(value, dict):
        return "frame must be a JSON object"
    for key in ("type", "session_id", "request_id"):
        if key not in value:
            return f"'{key}' is missing"
        if not isinstance(value[key], str):
            return f"'{key}' must be a string"
    return "'payload' must be an object"


def client_message(envelope: Envelope) -> ClientMessage:
    """What a client's frame says.

    Raises:
        WireError: ``unknown_message_type``, or ``missing_audio`` for an append without any.
    """
    payload = envelope.payload
    match envelope.type:
        case "input_audio_buffer.append":
            audio = payload.get("audio")
            if not isinstance(audio, str) or not audio or audio.isspace():
                raise WireError("missing_audio", "'payload.audio' must be a non-empty base64 string")
            return Append(audio)
        case "input_audio_buffer.commit":
            final = bool(payload.get("final", False))
            return Commit(final, payload.get("delay_ms"), payload.get("vad"), payload.get("tentative"))
        case "session.update":
            return SessionUpdate(
                payload.get("model"), payload.get("delay_ms"), payload.get("vad"), payload.get("tentative")
            )
        case "cancel":
            reason = payload.get("reason")
            return Cancel(reason) if isinstance(reason, str) and reason else Cancel()
        case "ping":
            return Ping()
        case "pong":
            return Pong()
        case "end":
            return End()
        case other:
            raise WireError("unknown_message_type", f"unknown message type '{other[:100]}'")


def encode_client(message: ClientMessage, session_id: str, request_id: str) -> str:
    """The frame a client sends. Fields that are ``None`` are left out."""
    payload: dict[str, Any]
    match message:
        case SessionUpdate(model, delay_ms, vad, tentative):
            kind = "session.update"
            payload = {"model": model, "delay_ms": delay_ms, "vad": vad, "tentative": tentative}
        case Commit(final, delay_ms, vad, tentative):
            kind = "input_audio_buffer.commit"
            payload = {"final": final, "delay_ms": delay_ms, "vad": vad, "tentative": tentative}
        case Append(audio):
            kind, payload = "input_audio_buffer.append", {"audio": audio}
        case Cancel(reason):
            kind, payload = "cancel", {"reason": reason}
        case Ping():
            kind, payload = "ping", {}
        case Pong():
            kind, payload = "pong", {}
        case End():
            kind, payload = "end", {}
    return _encode(kind, session_id, request_id, {key: value for key, value in payload.items() if value is not None})


# ---- server to client -------------------------------------------------------------------------------------------


class SessionCreated(msgspec.Struct, frozen=True, tag_field="type", tag="session.created"):
    """``created``: Unix seconds."""

    id: str
    created: int


class SessionUpdated(msgspec.Struct, frozen=True, tag_field="type", tag="session.updated"):
    """Additive: ``delay_ms`` is the transcription delay in force for utterances that do not name one."""

    model: str
    delay_ms: int | None = None


class Token(msgspec.Struct, frozen=True, tag_field="type", tag="token"):
    """Text to append to what was shown. Additive: ``words`` it completes, for clients that asked for ``tentative``."""

    text: str
    words: tuple[TimedWord, ...] | None = None


class Tentative(msgspec.Struct, frozen=True, tag_field="type", tag="tentative"):
    """Additive, for clients that asked for it: text that may stand behind the tokens, until the next one or a token replaces it."""

    text: str


class Final(msgspec.Struct, frozen=True, tag_field="type", tag="final"):
    """The whole text. Additive: ``words`` with times, where the engine knows them."""

    normalized_text: str
    words: tuple[TimedWord, ...] | None = None


class Done(msgspec.Struct, frozen=True, tag_field="type", tag="done"):
    """Directly after final. Additive: everything but ``usage``."""

    usage: dict[str, Any]
    delay_ms: int | None = None
    audio_seconds: float | None = None
    ended_by: str | None = None


class Status(msgspec.Struct, frozen=True, tag_field="type", tag="status", omit_defaults=True):
    """A warning. ``overload_drop`` has ``dropped_seconds``, ``max_backlog_seconds`` and ``source``.

    Additive: ``speech_without_text`` has ``seconds``, for how long no text came of audio that has speech.
    """

    kind: str
    dropped_seconds: float | None = None
    max_backlog_seconds: float | None = None
    source: str | None = None
    seconds: float | None = None


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """``details`` always has ``reason_code``."""

    code: str
    message: str
    details: Mapping[str, Any]


class PongReply(msgspec.Struct, frozen=True, tag_field="type", tag="pong"):
    """Answer to ping."""


class SessionEnd(msgspec.Struct, frozen=True, tag_field="type", tag="session_end"):
    """Answer to end."""


class CancelledReply(msgspec.Struct, frozen=True, tag_field="type", tag="cancelled"):
    """Answer to cancel."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """A server frame of a type this client does not know, to be ignored."""

    type: str


ServerMessage = (
    SessionCreated
    | SessionUpdated
    | Token
    | Tentative
    | Final
    | Done
    | Status
    | Error
    | PongReply
    | SessionEnd
    | CancelledReply
)

_SERVER_TYPES: dict[str, Any] = {
    str(kind.__struct_config__.tag): kind
    for kind in (
        SessionCreated,
        SessionUpdated,
        Token,
        Tentative,
        Final,
        Done,
        Status,
        Error,
        PongReply,
        SessionEnd,
        CancelledReply,
    )
}


def encode_server(message: ServerMessage, session_id: str, request_id: str) -> str:
    """The frame a server sends. Additive fields without a value are left out."""
    payload = msgspec.to_builtins(message)
    kind = payload.pop("type")
    return _encode(kind, session_id, request_id, {key: value for key, value in payload.items() if value is not None})


def decode_server(frame: str | bytes) -> tuple[ServerMessage | Unknown, Envelope]:
    """What a server's frame says, and its envelope.

    Raises:
        WireError: reason ``invalid_message``.
    """
    envelope = decode_envelope(frame)
    kind = _SERVER_TYPES.get(envelope.type)
    if kind is None:
        return Unknown(envelope.type), envelope
    try:
        message: ServerMessage = msgspec.convert({"type": envelope.type, **envelope.payload}, kind)
    except msgspec.ValidationError as error:
        raise WireError("invalid_message", f"bad payload of '{envelope.type}': {error}") from None
    return message, envelope


def _encode(kind: str, session_id: str, request_id: str, payload: dict[str, Any]) -> str:
    return msgspec.json.encode(
        {"type": kind, "session_id": session_id, "request_id": request_id, "payload": payload}
    ).decode()
