"""Driver of Mistral's realtime transcription, ``/v1/audio/transcriptions/realtime``, as its documentation describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from harness.drivers.base import (
    Appended,
    Done,
    Driver,
    Fault,
    Final,
    Frame,
    Listener,
    Ready,
    Reply,
    Request,
    Said,
    decode,
    whole_numbers,
)
from wire.errors import WireError
from wire.pcm import encode_base64

FLUSH, END = '{"type":"input_audio.flush"}', '{"type":"input_audio.end"}'


class MistralDriver(Driver):
    """The service speaks first; its ``session.created`` is answered with the settings, and ``session.updated`` says which hold."""

    name = "mistral"
    path = "/v1/audio/transcriptions/realtime"
    title = "Mistral's realtime transcription (hosted Voxtral)"
    home = "wss://api.mistral.ai"
    key_variable = "MISTRAL_API_KEY"
    default_model = "voxtral-mini-transcribe-realtime-2602"
    largest_packet_bytes = 262_144
    describes_itself = False
    options: ClassVar[Mapping[str, str]] = {
        "language": "two-letter code of the audio's language; recognised by the service unless given",
        "context_bias": "comma-separated terms to expect",
    }

    def query(self, request: Request) -> Mapping[str, str]:
        return {"model": request.model or self.default_model}

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002 - frames carry no ids
        return msgspec.json.encode({"type": "input_audio.append", "audio": encode_base64(pcm)}).decode()

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return [FLUSH, END]

    def listen(self, request: Request) -> Listener:
        update = _update(request, self.sample_rate)

        def heard(frame: Frame) -> Sequence[Said]:
            try:
                event = decode(frame, _KINDS)
            except WireError as error:
                return [Fault("unreadable_frame", error.message)]
            match event:
                case _Created():
                    return [Reply((update,))]
                case _Updated(session):
                    return [Ready(session.target_streaming_delay_ms)]
                case _Delta(text):
                    return [Appended(text)] if text else []
                case _Done(text, usage):
                    return [Final(text), Done(whole_numbers(usage))]
                case _Error(detail):
                    return [Fault(str(detail.code or "error"), _in_words(detail.message))]
                case _:
                    return []

        return heard


def _update(request: Request, sample_rate: int) -> str:
    session: dict[str, Any] = {"audio_format": {"encoding": "pcm_s16le", "sample_rate": sample_rate}}
    if request.delay_ms is not None:
        session["target_streaming_delay_ms"] = request.delay_ms
    if "language" in request.options:
        session["language"] = request.options["language"]
    if "context_bias" in request.options:
        session["context_bias"] = [term.strip() for term in request.options["context_bias"].split(",")]
    return msgspec.json.encode({"type": "session.update", "session": session}).decode()


class _Session(msgspec.Struct):
    target_streaming_delay_ms: int | None = None


class _Created(msgspec.Struct):
    pass


class _Updated(msgspec.Struct):
    session: _Session


class _Delta(msgspec.Struct):
    text: str


class _Done(msgspec.Struct):
    text: str
    usage: dict[str, Any] | None = None


class _Detail(msgspec.Struct):
    message: Any = None  # a sentence, or an object with one
    code: int | str | None = None


class _Error(msgspec.Struct):
    error: _Detail


def _in_words(message: Any) -> str:
    detail = message.get("detail", message) if isinstance(message, dict) else message
    return str(detail) if detail else "no reason given"


_KINDS: Mapping[str, type[_Created | _Updated | _Delta | _Done | _Error]] = {
    "session.created": _Created,
    "session.updated": _Updated,
    "transcription.text.delta": _Delta,
    "transcription.done": _Done,
    "error": _Error,
}
