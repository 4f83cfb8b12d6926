"""Driver of OpenAI's ``POST /v1/audio/transcriptions``, a whole recording as a form, as its API reference and vLLM's have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from harness.drivers.base import (
    Answer,
    Ask,
    Done,
    Driver,
    DriverError,
    Fault,
    Final,
    Frame,
    Listener,
    Request,
    Said,
    Status,
    Transport,
    whole_numbers,
)
from harness.drivers.growing import Growing
from harness.drivers.recordings import refusal, wav

BOUNDARY = "earmark-2f6b9c1d5e7a4083"
_FORM = f"multipart/form-data; boundary={BOUNDARY}"
_PLAIN_FIELDS = ("language", "prompt", "temperature")


class OpenAIFilesDriver(Driver):
    """The recording goes up as a WAV file once it has been spoken. With ``stream`` the transcript comes in deltas, of OpenAI's kind
    (``transcript.text.delta``) or of vLLM's (``transcription.chunk``).
    """

    name = "openai-files"
    transport = Transport.HTTP
    path = "/v1/audio/transcriptions"
    title = "OpenAI's transcription of files, of any server that has it"
    needs_model = True
    settable_delay = False
    whole = True
    announces_ready = False
    takes_several = True
    options: ClassVar[Mapping[str, str]] = {
        "stream": "true or false: whether the transcript comes in deltas; the default is false",
        "language": "code of the audio's language; found out by the server unless given",
        "prompt": "text that guides the model, where it takes one",
        "temperature": "the model's freedom; the server's unless given",
    }

    def check(self, request: Request) -> None:
        super().check(request)
        _streams(request)

    def packet(self, utterance: str, request: Request, number: int, pcm: bytes, *, last: bool) -> Ask:  # noqa: ARG002
        fields = {"model": request.model or "", "response_format": "json"}
        fields |= {name: request.options[name] for name in _PLAIN_FIELDS if name in request.options}
        if _streams(request):
            fields["stream"] = "true"
        return Ask(body=_form(fields, wav(pcm, self.sample_rate)), headers={"Content-Type": _FORM})

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return _Transcript(self.key_variable).heard


def _streams(request: Request) -> bool:
    text = request.options.get("stream", "false")
    if text not in ("true", "false"):
        raise DriverError(f"stream={text}: true or false is expected")
    return text == "true"


def _form(fields: Mapping[str, str], recording: bytes) -> bytes:
    """RFC 7578: a part for each field, and the file."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = 'Content-Disposition: form-data; name="file"; filename="recording.wav"\r\nContent-Type: audio/wav'
    parts.append(f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + recording + b"\r\n")
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


class _Whole(msgspec.Struct):
    text: str
    usage: dict[str, Any] | None = None


class _ChunkDelta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    delta: _ChunkDelta


class _Event(msgspec.Struct):
    type: str = ""
    delta: str = ""
    text: str = ""
    usage: dict[str, Any] | None = None
    choices: list[_Choice] = []
    error: dict[str, Any] | None = None


class _Transcript:
    """The answer to one request."""

    def __init__(self, key_variable: str) -> None:
        self._key_variable = key_variable
        self._text = ""
        self._usage: dict[str, int] = {}
        self._growing = Growing()
        self._complete = False

    def heard(self, frame: Frame | Answer | Status) -> Sequence[Said]:
        match frame:
            case Answer(200, b""):  # of one that came in events
                return [] if self._complete else [Fault("incomplete", "the events ended before the transcript did")]
            case Answer(200, body):
                return self._whole(body)
            case Answer():
                return [refusal(frame, self._key_variable)]
            case "[DONE]":
                return self._end()
            case str():
                return self._event(frame)
            case _:
                return [Fault("unreadable_answer", "the server sent what is neither an answer nor an event")]

    def _whole(self, body: bytes) -> Sequence[Said]:
        try:
            told = msgspec.json.decode(body, type=_Whole)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return [Fault("unreadable_answer", f"the server's answer cannot be read: {error}")]
        return [Final(told.text), Done(whole_numbers(told.usage))]

    def _event(self, data: str) -> Sequence[Said]:
        try:
            event = msgspec.json.decode(data, type=_Event)
        except msgspec.DecodeError as error:
            return [Fault("unreadable_frame", f"the server sent an event that cannot be read: {error}")]
        self._usage |= whole_numbers(event.usage)
        if event.error is not None:
            return [
                Fault(str(event.error.get("code") or "error"), str(event.error.get("message") or "no reason given"))
            ]
        if event.type == "transcript.text.done":
            self._text = event.text
            return self._end()
        delta = event.delta if event.type == "transcript.text.delta" else ""
        self._text += delta + "".join(choice.delta.content or "" for choice in event.choices)
        return self._growing.show(self._text, self._text)

    def _end(self) -> Sequence[Said]:
        if self._complete:
            return []
        self._complete = True
        return [Final(self._text), Done(self._usage)]
