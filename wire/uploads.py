"""OpenAI's ``POST /v1/audio/transcriptions``: what the form asks for, and the answer in every format."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from wire.errors import WireError
from wire.subtitles import cues, srt, vtt
from wire.words import TimedWord

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
MEDIA_TYPES = {"json": "application/json", "verbose_json": "application/json", "vtt": "text/vtt; charset=utf-8"}
"""Of the other formats it is ``text/plain; charset=utf-8``."""

IGNORED = ("prompt", "keywords", "include", "chunking_strategy", "known_speaker_names", "known_speaker_references")
"""Fields that only guide OpenAI's own models; they are taken, named in the answer's header ``X-Ignored-Fields``, and change nothing."""

_KNOWN = {"model", "language", "response_format", "temperature", "timestamp_granularities", "stream"}


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, without its file. ``ignored`` are names of fields that change nothing here."""

    model: str
    language: str | None = None
    response_format: str = "json"
    temperature: float = 0.0
    words: bool = False
    segments: bool = True
    stream: bool = False
    ignored: tuple[str, ...] = ()


class FieldError(WireError):
    """A field of the form that makes no sense; ``param`` names it."""

    def __init__(self, reason: str, message: str, param: str) -> None:
        super().__init__(reason, message)
        self.param = param


def read_form(fields: Iterable[tuple[str, str]]) -> Asked:
    """What the form's text fields ask for; lists may be written ``name[]``.

    Raises:
        FieldError: ``missing_required_parameter`` or ``invalid_value``.
    """
    given: dict[str, list[str]] = {}
    for name, value in fields:
        given.setdefault(name.removesuffix("[]"), []).append(value)
    model = _last(given, "model")
    if not model:
        raise FieldError(
            "missing_required_parameter", "'model' is missing: the name of the model, as /v1/models lists it", "model"
        )
    response_format = _last(given, "response_format") or "json"
    if response_format not in FORMATS:
        raise FieldError(
            "invalid_value", f"{response_format!r:.50} is not one of {', '.join(FORMATS)}", "response_format"
        )
    granularities = [part for part in given.get("timestamp_granularities", []) if part]
    unknown = [part for part in granularities if part not in ("word", "segment")]
    if unknown:
        raise FieldError("invalid_value", f"{unknown[0]!r:.50} is neither word nor segment", "timestamp_granularities")
    if granularities and response_format != "verbose_json":
        message = "timestamp_granularities need response_format verbose_json"
        raise FieldError("invalid_value", message, "timestamp_granularities")
    ignored = tuple(sorted(name for name in given if name not in _KNOWN))
    return Asked(
        model,
        (_last(given, "language") or "").strip().lower() or None,
        response_format,
        _temperature(_last(given, "temperature")),
        "word" in granularities,
        not granularities or "segment" in granularities,
        _truth(_last(given, "stream"), "stream"),
        ignored,
    )


def _last(given: Mapping[str, Sequence[str]], name: str) -> str | None:
    return given[name][-1].strip() if name in given else None


def _temperature(text: str | None) -> float:
    try:
        temperature = float(text or 0.0)
    except ValueError:
        temperature = -1.0
    if not 0 <= temperature <= 1:
        raise FieldError("invalid_value", f"'temperature' must be a number in 0..1, got {text!r:.50}", "temperature")
    return temperature


def _truth(text: str | None, param: str) -> bool:
    if text is None or text.lower() in ("", "false", "0"):
        return False
    if text.lower() in ("true", "1"):
        return True
    raise FieldError("invalid_value", f"'{param}' must be true or false, got {text!r:.50}", param)


@dataclass(frozen=True, slots=True)
class Heard:
    """The transcript of a file; ``seconds`` is the audio's length, ``words`` are empty where the engine times none."""

    text: str
    seconds: float
    words: Sequence[TimedWord]
    language: str | None
    prompt_tokens: int
    completion_tokens: int


def answer(heard: Heard, asked: Asked) -> str:
    """The body in the format that was asked for."""
    match asked.response_format:
        case "text":
            return heard.text + "\n"
        case "srt":
            return srt(cues(heard.words, heard.text, heard.seconds))
        case "vtt":
            return vtt(cues(heard.words, heard.text, heard.seconds))
        case "verbose_json":
            return _json(_verbose(heard, asked))
        case _:
            return _json({"text": heard.text, "usage": _usage(heard)})


def delta_event(text: str) -> str:
    """A server-sent event: text to append."""
    return _event({"type": "transcript.text.delta", "delta": text})


def done_event(heard: Heard) -> str:
    """The last server-sent event: the whole text."""
    return _event({"type": "transcript.text.done", "text": heard.text, "usage": _usage(heard)})


def error_event(error: Mapping[str, Any]) -> str:
    """A server-sent event in place of the rest."""
    return _event({"error": error})


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {_json(body)}\n\n"


def _json(body: Mapping[str, Any]) -> str:
    return msgspec.json.encode(body).decode()


def _usage(heard: Heard) -> dict[str, Any]:
    return {
        "type": "tokens",
        "input_tokens": heard.prompt_tokens,
        "output_tokens": heard.completion_tokens,
        "total_tokens": heard.prompt_tokens + heard.completion_tokens,
        "input_token_details": {"audio_tokens": heard.prompt_tokens, "text_tokens": 0},
    }


def _verbose(heard: Heard, asked: Asked) -> dict[str, Any]:
    """What is not known of a segment is null: probabilities are not made up."""
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": heard.language,
        "duration": round(heard.seconds, 3),
        "text": heard.text,
        "usage": {"type": "duration", "seconds": round(heard.seconds, 3)},
    }
    if asked.segments:
        body["segments"] = [
            {
                "id": number,
                "seek": round(cue.start * 100),
                "start": round(cue.start, 3),
                "end": round(cue.end, 3),
                "text": cue.text,
                "tokens": [],
                "temperature": asked.temperature,
                "avg_logprob": None,
                "compression_ratio": round(len(cue.text.encode()) / len(zlib.compress(cue.text.encode())), 3),
                "no_speech_prob": None,
            }
            for number, cue in enumerate(cues(heard.words, heard.text, heard.seconds))
        ]
    if asked.words:
        body["words"] = [
            {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)} for word in heard.words
        ]
    return body
