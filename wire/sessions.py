"""The protocol of the conversational sessions: text frames of both directions.

Audio travels in binary frames without any framing, client to server only. Every text frame of the server is one flat JSON object with a
``type``; ``timestamp`` and ``server_time`` are Unix seconds. What the original does not have is additive and marked so: no server sends
it unless it was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from wire.errors import NOT_JSON, WireError

CONNECTION_FAILED = "CONNECTION_FAILED"
SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
AUDIO_FORMAT_ERROR = "AUDIO_FORMAT_ERROR"
PROCESSING_ERROR = "PROCESSING_ERROR"
RATE_LIMITED = "RATE_LIMITED"
GPU_OOM = "GPU_OOM"

SAMPLE_RATES = (8000, 16000, 22050, 44100, 48000)
"""What a server may be set to take."""

# ---- client to server -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TextInput:
    """A text to answer. Empty text is to be ignored."""

    text: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered by ``Pong``."""


@dataclass(frozen=True, slots=True)
class GetStats:
    """Answered by ``Stats``."""


@dataclass(frozen=True, slots=True)
class End:
    """Additive: the utterance ends here. Answered, after its ``TextResponse`` if there is one, by ``Ended``."""


@dataclass(frozen=True, slots=True)
class Configure:
    """Additive: how this socket's utterances are heard from here on; ``None`` leaves a value as it is. Answered by ``Configured``.

    ``delay_ms`` is the transcription delay, ``partials`` asks for ``Partial`` frames, with ``vad`` ``off`` nothing but ``End`` ends
    an utterance. Values are not checked here.
    """

    delay_ms: Any = None
    partials: Any = None
    model: Any = None
    language: Any = None
    vad: Any = None


@dataclass(frozen=True, slots=True)
class ConfigUpdate:
    """Of control sockets: settings of the whole session. Answered by ``ConfigUpdated``. Values are not checked here."""

    config: Any


@dataclass(frozen=True, slots=True)
class Other:
    """A type that servers ignore."""

    type: str


ClientMessage = TextInput | Ping | GetStats | End | Configure | ConfigUpdate | Other

_CONFIGURE = ("delay_ms", "partials", "model", "language", "vad")
_decode = msgspec.json.Decoder().decode


def decode_client(frame: str, *, plain_text: bool = True) -> ClientMessage:
    """What a client's text frame says. With ``plain_text``, as on audio sockets, what is no JSON object is a text to answer.

    Raises:
        WireError: ``PROCESSING_ERROR``.
    """
    try:
        message = _decode(frame)
    except NOT_JSON:
        if plain_text:
            return TextInput(frame)
        raise WireError(PROCESSING_ERROR, "frame is not valid JSON") from None
    if not isinstance(message, dict):
        if plain_text:
            return TextInput(frame)
        raise WireError(PROCESSING_ERROR, "frame must be a JSON object")
    match message.get("type"):
        case "text_input":
            text = message.get("text")
            if text is not None and not isinstance(text, str):
                raise WireError(PROCESSING_ERROR, "'text' must be a string")
            return TextInput(text or "")
        case "control":
            return _control(message)
        case "config_update":
            return ConfigUpdate(message.get("config"))
        case other:
            return Other(str(other)[:100])


def _control(message: dict[str, Any]) -> ClientMessage:
    match message.get("control_type"):
        case "ping":
            return Ping()
        case "get_stats":
            return GetStats()
        case "end":
            return End()
        case "configure":
            return Configure(**{name: message.get(name) for name in _CONFIGURE})
        case other:
            return Other(f"control {str(other)[:100]}")


def encode_client(message: ClientMessage) -> str:
    """The frame a client sends. Fields that are ``None`` are left out."""
    body: dict[str, Any]
    match message:
        case TextInput(text):
            body = {"type": "text_input", "text": text}
        case Ping():
            body = {"type": "control", "control_type": "ping"}
        case GetStats():
            body = {"type": "control", "control_type": "get_stats"}
        case End():
            body = {"type": "control", "control_type": "end"}
        case Configure():
            body = {"type": "control", "control_type": "configure"}
            body |= {name: getattr(message, name) for name in _CONFIGURE}
        case ConfigUpdate(config):
            body = {"type": "config_update", "config": config}
        case Other(kind):
            body = {"type": kind}
    return msgspec.json.encode({key: value for key, value in body.items() if value is not None}).decode()


# ---- server to client -------------------------------------------------------------------------------------------


class Connected(msgspec.Struct, frozen=True, tag_field="type", tag="status"):
    """The first frame of an audio socket. ``client_id`` is the socket's own."""

    client_id: str
    session_id: str
    server_time: float
    status: str = "connected"


class StatsFigures(msgspec.Struct, frozen=True):
    """Of one socket. ``message_count`` is every frame received, ``queue_size`` those that wait; the last two are Unix seconds."""

    client_id: str
    session_id: str
    connection_duration: float
    message_count: int
    error_count: int
    queue_size: int
    connected_at: float | None = None
    last_activity: float | None = None


class Stats(msgspec.Struct, frozen=True, tag_field="type", tag="status"):
    """The answer to ``GetStats``."""

    stats: StatsFigures


class TextResponse(msgspec.Struct, frozen=True, tag_field="type", tag="text_response"):
    """What came of an utterance or of a text; never empty. Other servers leave the timestamp out on control sockets."""

    text: str
    timestamp: float | None = None


class Error(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    """``error`` is a sentence for people, ``code`` one of the codes above; other servers have no code."""

    error: str
    timestamp: float | None = None
    code: str | None = None


class Heartbeat(msgspec.Struct, frozen=True, tag_field="type", tag="heartbeat"):
    """Sent now and then on audio sockets."""

    timestamp: float


class ConfigUpdated(msgspec.Struct, frozen=True, tag_field="type", tag="config_updated"):
    """The answer to ``ConfigUpdate``."""

    status: str = "success"


class Pong(msgspec.Struct, frozen=True, tag_field="type", tag="control"):
    """The answer to ``Ping``."""

    timestamp: float
    control_type: str = "pong"


class Ended(msgspec.Struct, frozen=True, tag_field="type", tag="control"):
    """Additive: the answer to ``End``."""

    timestamp: float
    control_type: str = "ended"


class Configured(msgspec.Struct, frozen=True, tag_field="type", tag="control"):
    """Additive: the answer to ``Configure``, with the delay that is in force."""

    timestamp: float
    delay_ms: int
    control_type: str = "configured"


class Partial(msgspec.Struct, frozen=True, tag_field="type", tag="partial"):
    """Additive: the whole text of the utterance so far; it begins with ``committed``, which will not change any more."""

    text: str
    timestamp: float
    committed: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A server frame of a type this client does not know, to be ignored."""

    type: str


ServerMessage = (
    Connected | Stats | TextResponse | Error | Heartbeat | ConfigUpdated | Pong | Ended | Configured | Partial
)

_FIRST = ("type", "status", "control_type")


def encode_server(message: ServerMessage) -> str:
    """The frame a server sends."""
    body = msgspec.to_builtins(message)
    first = {name: body.pop(name) for name in _FIRST if name in body}
    body = {name: value for name, value in (first | body).items() if value is not None}
    return msgspec.json.encode(body).decode()


_KINDS: dict[str, Any] = {
    "text_response": TextResponse,
    "error": Error,
    "heartbeat": Heartbeat,
    "config_updated": ConfigUpdated,
    "partial": Partial,
}
_CONTROLS: dict[str, Any] = {"pong": Pong, "ended": Ended, "configured": Configured}


def decode_server(frame: str | bytes) -> ServerMessage | Unknown:
    """What a server's frame says.

    Raises:
        WireError: ``PROCESSING_ERROR``.
    """
    try:
        message = _decode(frame)
    except NOT_JSON:
        raise WireError(PROCESSING_ERROR, "server frame is not valid JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise WireError(PROCESSING_ERROR, "server frame is not an object with a 'type'")
    kind = _kind(message)
    if kind is None:
        return Unknown(message["type"])
    try:
        decoded: ServerMessage = msgspec.convert(message, kind)
    except msgspec.ValidationError as error:
        raise WireError(PROCESSING_ERROR, f"bad fields in '{message['type']}': {error}") from None
    return decoded


def _kind(message: dict[str, Any]) -> Any:
    match message["type"]:
        case "status":
            return Stats if "stats" in message else Connected
        case "control":
            return _CONTROLS.get(str(message.get("control_type")))
        case other:
            return _KINDS.get(other)
