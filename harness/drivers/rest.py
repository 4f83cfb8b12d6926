"""Drivers of the REST surface: ``POST /transcribe/`` with a whole recording, and ``/stream/transcribe`` with a file per chunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec
import pybase64

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
)
from harness.drivers.growing import Growing, joined
from harness.drivers.recordings import refusal, wav

LANGUAGES = ("en", "es", "fr", "pt", "hi", "de", "nl", "it")
_LANGUAGE = f"{', '.join(LANGUAGES)}: that of the audio; found out by the server unless given"


class RestDriver(Driver):
    """The recording goes up as base64 of a WAV file once it has been spoken; the answer is the transcript."""

    name = "rest"
    transport = Transport.HTTP
    path = "/transcribe/"
    title = "this project's server, a whole recording as JSON"
    settable_delay = False
    whole = True
    announces_ready = False
    takes_several = True
    server_options = ("--unlimited",)  # fifty recordings a minute are no load
    options: ClassVar[Mapping[str, str]] = {
        "language": _LANGUAGE,
        "temperature": "0 to 2, the model's freedom; 0 unless given",
    }

    def check(self, request: Request) -> None:
        super().check(request)
        _check_language(request)
        _temperature(request)

    def packet(self, utterance: str, request: Request, number: int, pcm: bytes, *, last: bool) -> Ask:  # noqa: ARG002
        asked = {
            "audio_file": pybase64.b64encode_as_string(wav(pcm, self.sample_rate)),
            "format": "wav",
            "language": request.options.get("language"),
            "temperature": _temperature(request),
        }
        return Ask(body=msgspec.json.encode(asked), headers={"Content-Type": "application/json"})

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return self._read

    def _read(self, answer: Frame | Answer | Status) -> Sequence[Said]:
        if not isinstance(answer, Answer):
            return [Fault("unreadable_answer", "the server sent events where one answer is expected")]
        if answer.status != 200:
            return [refusal(answer, self.key_variable)]
        try:
            told = msgspec.json.decode(answer.body, type=_Transcribed)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return [Fault("unreadable_answer", f"the server's answer cannot be read: {error}")]
        return [Final(told.transcription), Done({"processing_time_ms": told.processing_time_ms})]


class _Transcribed(msgspec.Struct):
    transcription: str
    processing_time_ms: int


class RestStreamDriver(Driver):
    """Each chunk is a WAV file of its own, heard on its own and answered; the last one says that it is."""

    name = "rest-stream"
    path = "/stream/transcribe"
    title = "this project's server, WAV files of a second each over a WebSocket"
    settable_delay = False
    announces_ready = False
    marks_last = True
    packet_ms = 1000
    largest_packet_bytes = 10_000_000
    server_options = ("--unlimited",)
    options: ClassVar[Mapping[str, str]] = {"language": _LANGUAGE}

    def check(self, request: Request) -> None:
        super().check(request)
        _check_language(request)

    def packet(self, utterance: str, request: Request, number: int, pcm: bytes, *, last: bool) -> Frame:  # noqa: ARG002
        chunk = {
            "format": "wav",
            "language": request.options.get("language"),
            "chunk_id": number,
            "is_final": last,
            "audio_data": pybase64.b64encode_as_string(wav(pcm, self.sample_rate)),
        }
        return msgspec.json.encode(chunk).decode()

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return _Chunks().heard


class _Refused(msgspec.Struct):
    code: str = "error"
    message: str = "no reason given"
    chunk_id: int | None = None


class _Chunk(msgspec.Struct):
    chunk_id: int | None = None
    transcription: str | None = None
    is_final: bool = False
    error: _Refused | None = None


class _Chunks:
    """The answers of one stream, joined by blanks."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._growing = Growing()

    def heard(self, frame: Frame) -> Sequence[Said]:
        try:
            chunk = msgspec.json.decode(frame, type=_Chunk)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return [Fault("unreadable_frame", f"the server sent a frame that cannot be read: {error}")]
        if chunk.error is not None:
            which = "" if chunk.error.chunk_id is None else f"chunk {chunk.error.chunk_id}: "
            code = chunk.error.code
            return [Fault(code, which + chunk.error.message, refused=code == "RATE_LIMIT_EXCEEDED")]
        if chunk.transcription is None:
            return [Fault("unreadable_frame", "the server sent a frame that is neither text nor an error")]
        self._texts.append(chunk.transcription.strip())
        text = joined(self._texts)
        said = self._growing.show(text, text)
        return [*said, Final(text), Done()] if chunk.is_final else said


def _check_language(request: Request) -> None:
    language = request.options.get("language")
    if language is not None and language not in LANGUAGES:
        raise DriverError(f"language={language}: choose one of {', '.join(LANGUAGES)}")


def _temperature(request: Request) -> float:
    text = request.options.get("temperature", "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2:
        raise DriverError(f"temperature={text}: a number from 0 to 2 is expected")
    return value
