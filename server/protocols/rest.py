"""The REST surface's table of errors, and the memory of its chunk stream: which bytes a chunk may be the continuation of."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
from pydantic import ValidationError

from wire.errors import NOT_JSON
from wire.rest import FORMATS, Chunk, ChunkError, ChunkErrorBody, ErrorBody, ErrorInfo, FieldError

BUSY_SECONDS = 5
"""After so long somebody who was sent away may try again."""


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request is answered with an error. ``retry_seconds`` is when it may be tried again."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: str | None = None,
        errors: Sequence[FieldError] | None = None,
        retry_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.errors = errors
        self.retry_seconds = retry_seconds

    def body(self, timestamp: str) -> bytes:
        """The answer's JSON."""
        errors = None if self.errors is None else list(self.errors)
        info = ErrorInfo(code=self.code, message=self.message, details=self.details, errors=errors, timestamp=timestamp)
        return ErrorBody(error=info).model_dump_json(exclude_none=True).encode()


# ---- the table


def plain(status: int, message: str) -> Refusal:
    """An error that has no code of its own."""
    return Refusal(status, f"HTTP_{status}", message)


def invalid(errors: Sequence[FieldError]) -> Refusal:
    """The body is not as the surface wants it."""
    details = "; ".join(f"{'.'.join(map(str, error.loc))}: {error.msg}" for error in errors)
    return Refusal(422, "VALIDATION_ERROR", "the request is not valid", details=details[:2000], errors=errors)


def not_base64(*place: str | int) -> Refusal:
    """A file is not base64."""
    message = "not valid base64: RFC 4648 with padding is expected, without line breaks and without a data: prefix"
    return invalid([FieldError(loc=["body", *place], msg=message, type="base64")])


def bad_audio(message: str) -> Refusal:
    """A file cannot be decoded, or is more than is taken."""
    return Refusal(400, "AUDIO_PROCESSING_ERROR", message)


def too_much(most_bytes: int) -> Refusal:
    """The body is longer than all its files could make it."""
    return Refusal(413, "AUDIO_PROCESSING_ERROR", f"the request has more than {most_bytes} bytes; send smaller files")


def unavailable(message: str, retry_seconds: int | None = BUSY_SECONDS) -> Refusal:
    """There is nothing here that could do it now."""
    return Refusal(503, "MODEL_UNAVAILABLE", message, retry_seconds=retry_seconds)


def timed_out(seconds: float) -> Refusal:
    """The work took too long, and was given up."""
    return Refusal(504, "PROCESSING_TIMEOUT", f"not done within {seconds:g} s; send shorter audio, or try again later")


def rate_limited(limit: int, window_seconds: float, retry_seconds: int) -> Refusal:
    """The client asks more often than it may."""
    message = f"at most {limit} requests in {window_seconds:g} s; try again in {retry_seconds} s"
    return Refusal(429, "RATE_LIMIT_EXCEEDED", message, retry_seconds=retry_seconds)


def broken(details: str | None) -> Refusal:
    """A bug of ours."""
    return Refusal(500, "SERVER_ERROR", "internal error; the log has more", details=details)


def not_heard(code: str, message: str) -> Refusal:
    """The session or its engine gave up; ``code`` is one of theirs."""
    match code:
        case "invalid_audio":
            return bad_audio(message)
        case "internal_error":
            return broken(None)
        case _:
            return unavailable(message)


# ---- the stream of chunks


class ChunkRefusedError(Exception):
    """A chunk is answered with an error; the connection stays open."""

    def __init__(self, code: str, message: str, chunk_id: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.chunk_id = chunk_id

    def frame(self) -> str:
        """What the client is sent."""
        error = ChunkError(code=self.code, message=self.message, chunk_id=self.chunk_id)
        return ChunkErrorBody(error=error).model_dump_json(exclude_none=True)


def read_chunk(frame: str | bytes) -> Chunk:
    """The chunk in a frame.

    Raises:
        ChunkRefusedError: ``INVALID_JSON``, ``INVALID_AUDIO_FORMAT``, or ``PROCESSING_ERROR`` for other faults of fields.
    """
    try:
        fields = msgspec.json.decode(frame)
    except (*NOT_JSON, ValueError) as error:
        raise ChunkRefusedError("INVALID_JSON", f"not JSON: {error}"[:500]) from None
    if not isinstance(fields, dict):
        raise ChunkRefusedError("PROCESSING_ERROR", "a chunk is a JSON object")
    given_id = fields.get("chunk_id")
    chunk_id = given_id if isinstance(given_id, int) and not isinstance(given_id, bool) else None
    if "format" in fields and fields["format"] not in FORMATS:
        possible = ", ".join(FORMATS)
        message = f"'format' {fields['format']!r:.50} is not supported; supported: {possible}"
        raise ChunkRefusedError("INVALID_AUDIO_FORMAT", message, chunk_id)
    try:
        return Chunk.model_validate(fields)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ChunkRefusedError("PROCESSING_ERROR", faults[:500], chunk_id) from None


@dataclass(frozen=True, slots=True)
class Attempt:
    """Bytes that may be a whole file, of whose PCM the first ``known_bytes`` were answered with earlier chunks."""

    data: bytes = field(repr=False)
    known_bytes: int = 0
    continues: bool = False


class Continuation:
    """What came before on one stream: a WAV's header, or the file so far, of at most ``most_bytes``."""

    def __init__(self, most_bytes: int | None) -> None:
        self._most_bytes = most_bytes
        self._format = ""
        self._file = b""
        self._known_bytes = 0
        self._wav: _WavStart | None = None
        self._rest = b""  # of a WAV: bytes of a sample that is not complete

    def attempts(self, chunk: bytes, format: str) -> list[Attempt]:
        """How the chunk may be understood, the likeliest first: by itself, or as what continues the chunks before it."""
        alone = Attempt(chunk)
        if format != self._format:
            return [alone]
        if self._wav is not None:
            if _wav_start(chunk) is not None:  # a file, and if it is broken it is no samples either
                return [alone]
            return [alone, Attempt(self._wav.header + self._rest + chunk, continues=True)]
        if self._too_long(chunk):
            return [alone]
        return [alone, Attempt(self._file + chunk, self._known_bytes, continues=True)]

    def hint(self, chunk: bytes, format: str) -> str:
        """What to do about a chunk that was none of its attempts; empty when its error says enough."""
        if format == self._format and self._wav is None and self._too_long(chunk):
            return (
                f"; the chunks before it are too long to be continued beyond {self._most_bytes} bytes: begin a new file"
            )
        return ""

    def took(self, attempt: Attempt, format: str, pcm_bytes: int) -> None:
        """The attempt was a file, and of ``pcm_bytes`` when decoded."""
        self._format = format
        self._known_bytes = pcm_bytes
        if self._wav is None or not attempt.continues:
            self._wav = _wav_start(attempt.data) if format == "wav" else None
            self._file = attempt.data
        if self._wav is not None:
            samples = attempt.data[len(self._wav.header) :]
            self._rest = samples[len(samples) - len(samples) % self._wav.frame_bytes :]
            self._file = b""

    def _too_long(self, chunk: bytes) -> bool:
        return self._most_bytes is not None and len(self._file) + len(chunk) > self._most_bytes


_MOST_HEADER_BYTES = 1 << 16
_UNKNOWN_SIZE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class _WavStart:
    """Everything before a WAV's samples, its sizes made unknown; ``frame_bytes`` is one sample of every channel."""

    header: bytes
    frame_bytes: int


def _wav_start(file: bytes) -> _WavStart | None:
    """Where the samples begin (RIFF: chunks of name, size and content, padded to even length); None when that is not plain."""
    if file[:4] != b"RIFF" or file[8:12] != b"WAVE":
        return None
    at, frame_bytes = 12, 0
    while at + 8 <= min(len(file), _MOST_HEADER_BYTES):
        name, size = file[at : at + 4], struct.unpack_from("<I", file, at + 4)[0]
        if name == b"fmt " and at + 22 <= len(file):
            frame_bytes = struct.unpack_from("<H", file, at + 20)[0]
        if name == b"data":
            if not frame_bytes:
                return None
            header = bytearray(file[: at + 8])
            struct.pack_into("<I", header, 4, _UNKNOWN_SIZE)
            struct.pack_into("<I", header, at + 4, _UNKNOWN_SIZE)
            return _WavStart(bytes(header), frame_bytes)
        at += 8 + size + size % 2
    return None
