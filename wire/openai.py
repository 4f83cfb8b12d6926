"""OpenAI's realtime transcription events, as its API reference and its Python client's types describe them: frames of both directions.

Two generations of names are understood: ``session.update`` with nested ``session.audio.input``, and the older flat
``transcription_session.update``. Fields that the original does not have are additive and marked so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from wire.errors import NOT_JSON, WireError
from wire.words import TimedWord

SAMPLE_RATE = 24_000
"""Of PCM16 in OpenAI's own API. Additive: 16 000."""

DELAYS_MS: Mapping[str, int] = {"minimal": 160, "low": 240, "medium": 480, "high": 960, "xhigh": 2400}
"""What the words of ``transcription.delay`` ask for, in the published steps of Voxtral Realtime."""

_TRANSCRIPTION = "conversation.item.input_audio_transcription"


# ---- client to server -------------------------------------------------------------------------------------------


class TurnDetection(msgspec.Struct, frozen=True):
    """``server_vad`` or ``semantic_vad``; milliseconds, and the probability from which audio counts as speech."""

    type: str = "server_vad"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    eagerness: str = "auto"


class Settings(msgspec.Struct, frozen=True):
    """What a session update asks for; ``UNSET`` leaves things as they are. ``delay_ms`` is additive."""

    rate: int | msgspec.UnsetType = msgspec.UNSET
    model: str | msgspec.UnsetType | None = msgspec.UNSET
    language: str | msgspec.UnsetType | None = msgspec.UNSET
    delay_ms: int | msgspec.UnsetType | None = msgspec.UNSET
    turn_detection: TurnDetection | msgspec.UnsetType | None = msgspec.UNSET


class SessionUpdate(msgspec.Struct, frozen=True):
    """Set the session up. ``flat``: in the older generation of names."""

    settings: Settings
    flat: bool = False
    event_id: str | None = None


class Append(msgspec.Struct, frozen=True):
    """``audio``: PCM16 at the session's rate, mono, in base64, not decoded yet."""

    audio: str
    event_id: str | None = None


class Commit(msgspec.Struct, frozen=True):
    """What was appended since the last commit is one piece: transcribe it."""

    event_id: str | None = None


class Clear(msgspec.Struct, frozen=True):
    """Forget what was appended since the last commit."""

    event_id: str | None = None


ClientEvent = SessionUpdate | Append | Commit | Clear


class EventError(WireError):
    """A client event that makes no sense. ``param`` names the field, ``event_id`` the event, where they are known."""

    def __init__(self, reason: str, message: str, param: str | None = None, event_id: str | None = None) -> None:
        super().__init__(reason, message)
        self.param = param
        self.event_id = event_id


def decode_client(frame: str | bytes) -> ClientEvent:
    """The event that a frame holds.

    Raises:
        EventError: ``invalid_json``, ``invalid_event_type``, ``missing_required_parameter``, ``invalid_type`` or ``invalid_value``.
    """
    if not isinstance(frame, str):
        raise EventError(
            "invalid_json", "frames are JSON text, this one is binary; audio goes into input_audio_buffer.append"
        )
    try:
        event = msgspec.json.decode(frame)
    except NOT_JSON:
        raise EventError("invalid_json", "the frame is not JSON") from None
    if not isinstance(event, dict):
        raise EventError("invalid_json", "the frame is not a JSON object")
    given = event.get("event_id")
    event_id = given if isinstance(given, str) else None
    try:
        return _client_event(event, event_id)
    except EventError as error:
        raise EventError(error.reason, error.message, error.param, event_id) from None


def speaks_openai(frame: str | bytes) -> bool:
    """Whether a first frame is one that only OpenAI's clients send: a session update with its settings in ``session``, and without the
    ``model`` beside it that vLLM's has.
    """
    if not isinstance(frame, str) or '"session"' not in frame:
        return False
    try:
        event = msgspec.json.decode(frame)
    except NOT_JSON:
        return False
    named = isinstance(event, dict) and event.get("type") in ("session.update", "transcription_session.update")
    return named and isinstance(event.get("session"), dict) and "model" not in event


def _client_event(event: dict[str, Any], event_id: str | None) -> ClientEvent:
    match event.get("type"):
        case "input_audio_buffer.append":
            audio = event.get("audio")
            if audio is None:
                raise EventError("missing_required_parameter", "'audio' is missing", "audio")
            if not isinstance(audio, str):
                raise EventError("invalid_type", "'audio' must be a string of base64", "audio")
            return Append(audio, event_id)
        case "input_audio_buffer.commit":
            return Commit(event_id)
        case "input_audio_buffer.clear":
            return Clear(event_id)
        case "session.update":
            return SessionUpdate(_nested(_object(event, "session", "session")), flat=False, event_id=event_id)
        case "transcription_session.update":
            return SessionUpdate(_flat(_object(event, "session", "session")), flat=True, event_id=event_id)
        case None:
            raise EventError("missing_required_parameter", "'type' is missing", "type")
        case kind:
            raise EventError(
                "invalid_event_type",
                f"no event of type {kind!r:.100} is understood here; understood are session.update, transcription_session.update, "
                "input_audio_buffer.append, input_audio_buffer.commit and input_audio_buffer.clear",
                "type",
            )


def _object(parent: Mapping[str, Any], name: str, param: str) -> dict[str, Any]:
    value = parent.get(name)
    if value is None:
        raise EventError("missing_required_parameter", f"'{param}' is missing", param)
    if not isinstance(value, dict):
        raise EventError("invalid_type", f"'{param}' must be an object", param)
    return value


def _nested(session: Mapping[str, Any]) -> Settings:
    kind = session.get("type", "transcription")
    if kind != "transcription":
        message = f"sessions of type {kind!r:.50} are not served here, only 'transcription'"
        raise EventError("invalid_value", message, "session.type")
    audio = _object(session, "audio", "session.audio") if session.get("audio") is not None else {}
    heard = _object(audio, "input", "session.audio.input") if audio.get("input") is not None else {}
    return _settings(heard, "session.audio.input", "format", "transcription")


def _flat(session: Mapping[str, Any]) -> Settings:
    return _settings(session, "session", "input_audio_format", "input_audio_transcription")


def _settings(heard: Mapping[str, Any], where: str, format_name: str, transcription_name: str) -> Settings:
    found: dict[str, Any] = {}
    if heard.get(format_name) is not None:
        found["rate"] = _rate(heard[format_name], f"{where}.{format_name}")
    if heard.get(transcription_name) is not None:
        param = f"{where}.{transcription_name}"
        transcription = _object(heard, transcription_name, param)
        for name in ("model", "language"):
            if name in transcription:
                found[name] = _text(transcription[name], f"{param}.{name}")
        if transcription.get("delay_ms") is not None:
            found["delay_ms"] = _number(transcription["delay_ms"], 0, 60_000, f"{param}.delay_ms")
        elif "delay" in transcription:
            found["delay_ms"] = _delay(transcription["delay"], f"{param}.delay")
    if "turn_detection" in heard:
        found["turn_detection"] = _turn_detection(heard["turn_detection"], f"{where}.turn_detection")
    return Settings(**found)


def _rate(given: Any, param: str) -> int:
    if given == "pcm16":
        return SAMPLE_RATE
    if isinstance(given, dict) and given.get("type", "audio/pcm") == "audio/pcm":
        rate = given.get("rate", SAMPLE_RATE)
        if isinstance(rate, int) and not isinstance(rate, bool) and rate in (16_000, SAMPLE_RATE):
            return rate
        raise EventError(
            "invalid_value", f"a rate of {rate!r:.50} is not possible; 24000 and 16000 are", f"{param}.rate"
        )
    raise EventError("invalid_value", f"only 16-bit PCM is understood (audio/pcm), got {given!r:.80}", param)


def _text(given: Any, param: str) -> str | None:
    if given is not None and not isinstance(given, str):
        raise EventError("invalid_type", f"'{param}' must be a string", param)
    return given or None


def _delay(given: Any, param: str) -> int | None:
    if given is None:
        return None
    if not isinstance(given, str) or given not in DELAYS_MS:
        raise EventError("invalid_value", f"{given!r:.50} is not one of {', '.join(DELAYS_MS)}", param)
    return DELAYS_MS[given]


def _number(given: Any, least: float, most: float, param: str) -> Any:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise EventError("invalid_type", f"'{param}' must be a number", param)
    if not least <= given <= most:
        raise EventError("invalid_value", f"'{param}' must be in {least:g}..{most:g}, got {given!r:.50}", param)
    return given


def _turn_detection(given: Any, param: str) -> TurnDetection | None:
    if given is None:
        return None
    if not isinstance(given, dict):
        raise EventError("invalid_type", f"'{param}' must be an object or null", param)
    kind = given.get("type", "server_vad")
    if kind == "semantic_vad":
        eagerness = given.get("eagerness") or "auto"
        if eagerness not in ("low", "medium", "high", "auto"):
            message = f"{eagerness!r:.50} is not one of low, medium, high, auto"
            raise EventError("invalid_value", message, f"{param}.eagerness")
        # silence after which each says that somebody has finished; there is no look at the words here
        silence_ms = {"low": 2000, "medium": 1000, "auto": 1000, "high": 500}[eagerness]
        return TurnDetection(kind, silence_duration_ms=silence_ms, eagerness=eagerness)
    if kind != "server_vad":
        raise EventError("invalid_value", f"{kind!r:.50} is neither server_vad nor semantic_vad", f"{param}.type")
    numbers = {"threshold": (0.01, 1.0), "prefix_padding_ms": (0, 10_000), "silence_duration_ms": (50, 60_000)}
    found = {
        name: _number(given[name], *bounds, f"{param}.{name}")
        for name, bounds in numbers.items()
        if given.get(name) is not None
    }
    return TurnDetection(kind, **found)


# ---- server to client -------------------------------------------------------------------------------------------


class Session(msgspec.Struct, frozen=True):
    """What is in force. ``rate`` in Hz; ``delay_ms`` is additive."""

    id: str
    model: str
    rate: int = SAMPLE_RATE
    language: str | None = None
    turn_detection: TurnDetection | None = None
    delay_ms: int = 0


class SessionCreated(msgspec.Struct, frozen=True):
    """The first frame."""

    session: Session


class SessionUpdated(msgspec.Struct, frozen=True):
    """The answer to a session update: everything that is in force, not only what was changed."""

    session: Session
    flat: bool = False


class SpeechStarted(msgspec.Struct, frozen=True):
    """``audio_start_ms`` counts from the start of all audio of the session, less the padding."""

    audio_start_ms: int
    item_id: str


class SpeechStopped(msgspec.Struct, frozen=True):
    """``audio_end_ms`` counts from the start of all audio of the session."""

    audio_end_ms: int
    item_id: str


class Committed(msgspec.Struct, frozen=True):
    """A piece of audio is an item of the conversation now."""

    previous_item_id: str | None
    item_id: str


class Cleared(msgspec.Struct, frozen=True):
    """What was appended since the last commit is forgotten."""


class ItemAdded(msgspec.Struct, frozen=True):
    """Follows ``Committed``. ``flat``: under its older name ``conversation.item.created``."""

    previous_item_id: str | None
    item_id: str
    flat: bool = False


class Delta(msgspec.Struct, frozen=True):
    """Text to append to the item's transcript."""

    item_id: str
    delta: str


class Completed(msgspec.Struct, frozen=True):
    """The item's whole transcript. Additive: words with times, the delay in force, the audio's length."""

    item_id: str
    transcript: str
    input_tokens: int = 0
    output_tokens: int = 0
    words: tuple[TimedWord, ...] | None = None
    delay_ms: int | None = None
    audio_seconds: float | None = None


class Failed(msgspec.Struct, frozen=True):
    """The item has no transcript."""

    item_id: str
    code: str
    message: str


class Error(msgspec.Struct, frozen=True):
    """``kind`` is ``invalid_request_error`` or ``server_error``."""

    message: str
    code: str | None = None
    kind: str = "invalid_request_error"
    param: str | None = None
    event_id: str | None = None


ServerEvent = (
    SessionCreated
    | SessionUpdated
    | SpeechStarted
    | SpeechStopped
    | Committed
    | Cleared
    | ItemAdded
    | Delta
    | Completed
    | Failed
    | Error
)


def encode_server(event: ServerEvent, event_id: str) -> str:
    """The frame of a server event; ``event_id`` is the server's own, unique in the session."""
    kind, body = _body(event)
    return msgspec.json.encode({"type": kind, "event_id": event_id, **body}).decode()


def _body(event: ServerEvent) -> tuple[str, dict[str, Any]]:
    match event:
        case SessionCreated(session):
            return "session.created", {"session": _session(session)}
        case SessionUpdated(session, flat=True):
            return "transcription_session.updated", {"session": _flat_session(session)}
        case SessionUpdated(session):
            return "session.updated", {"session": _session(session)}
        case SpeechStarted(audio_start_ms, item_id):
            return "input_audio_buffer.speech_started", {"audio_start_ms": audio_start_ms, "item_id": item_id}
        case SpeechStopped(audio_end_ms, item_id):
            return "input_audio_buffer.speech_stopped", {"audio_end_ms": audio_end_ms, "item_id": item_id}
        case Committed(previous, item_id):
            return "input_audio_buffer.committed", {"previous_item_id": previous, "item_id": item_id}
        case Cleared():
            return "input_audio_buffer.cleared", {}
        case ItemAdded(previous, item_id, flat):
            name = "conversation.item.created" if flat else "conversation.item.added"
            return name, {"previous_item_id": previous, "item": _item(item_id)}
        case Delta(item_id, delta):
            return f"{_TRANSCRIPTION}.delta", {"item_id": item_id, "content_index": 0, "delta": delta}
        case Completed():
            return f"{_TRANSCRIPTION}.completed", _completed(event)
        case Failed(item_id, code, message):
            error = {"type": "transcription_error", "code": code, "message": message, "param": None}
            return f"{_TRANSCRIPTION}.failed", {"item_id": item_id, "content_index": 0, "error": error}
        case Error():
            told = {"type": event.kind, "code": event.code, "message": event.message}
            return "error", {"error": {**told, "param": event.param, "event_id": event.event_id}}


def _completed(event: Completed) -> dict[str, Any]:
    usage = {
        "type": "tokens",
        "input_tokens": event.input_tokens,
        "output_tokens": event.output_tokens,
        "total_tokens": event.input_tokens + event.output_tokens,
        "input_token_details": {"audio_tokens": event.input_tokens, "text_tokens": 0},
    }
    body: dict[str, Any] = {
        "item_id": event.item_id,
        "content_index": 0,
        "transcript": event.transcript,
        "usage": usage,
    }
    additive = {"words": event.words, "delay_ms": event.delay_ms, "audio_seconds": event.audio_seconds}
    return body | {name: value for name, value in additive.items() if value is not None}


def _item(item_id: str) -> dict[str, Any]:
    return {
        "id": item_id,
        "object": "realtime.item",
        "type": "message",
        "status": "completed",
        "role": "user",
        "content": [{"type": "input_audio", "transcript": None}],
    }


def _vad(turn_detection: TurnDetection | None) -> dict[str, Any] | None:
    if turn_detection is None:
        return None
    if turn_detection.type == "semantic_vad":
        return {"type": "semantic_vad", "eagerness": turn_detection.eagerness}
    return {
        "type": "server_vad",
        "threshold": turn_detection.threshold,
        "prefix_padding_ms": turn_detection.prefix_padding_ms,
        "silence_duration_ms": turn_detection.silence_duration_ms,
    }


def _transcription(session: Session) -> dict[str, Any]:
    return {"model": session.model, "language": session.language, "prompt": None, "delay_ms": session.delay_ms}


def _session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "object": "realtime.transcription_session",
        "type": "transcription",
        "audio": {
            "input": {
                "format": {"type": "audio/pcm", "rate": session.rate},
                "transcription": _transcription(session),
                "noise_reduction": None,
                "turn_detection": _vad(session.turn_detection),
            }
        },
        "include": None,
    }


def _flat_session(session: Session) -> dict[str, Any]:
    return {
        "id": session.id,
        "object": "realtime.transcription_session",
        "input_audio_format": "pcm16",
        "input_audio_transcription": _transcription(session),
        "input_audio_noise_reduction": None,
        "turn_detection": _vad(session.turn_detection),
        "include": None,
    }
