"""The REST surface's messages: requests and answers of transcription and understanding, chunks of a stream, and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "FORMATS",
    "LANGUAGES",
    "MOST_BATCH_FILES",
    "MOST_QUESTION_FILES",
    "VERSION",
    "AudioFile",
    "BatchRequest",
    "BatchResponse",
    "BatchResult",
    "Chunk",
    "ChunkError",
    "ChunkErrorBody",
    "ChunkResult",
    "ErrorBody",
    "ErrorInfo",
    "FieldError",
    "Format",
    "Health",
    "Language",
    "TokenUsage",
    "TranscriptionRequest",
    "TranscriptionResponse",
    "UnderstandingRequest",
    "UnderstandingResponse",
]

VERSION = "0.1.0"
"""Of the API; the server's own goes its own way."""

Format = Literal["mp3", "wav", "flac", "m4a", "ogg"]
FORMATS: tuple[str, ...] = ("mp3", "wav", "flac", "m4a", "ogg")
Language = Literal["en", "es", "fr", "pt", "hi", "de", "nl", "it"]
LANGUAGES: tuple[str, ...] = ("en", "es", "fr", "pt", "hi", "de", "nl", "it")
MOST_BATCH_FILES = 10
MOST_QUESTION_FILES = 5

_SILENCE = (
    "UklGRkQAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YSAAAAAAAAAAAAAAAAAAAAAA"
    "AAAAAAAAAAAAAAAAAAAAAAAAAA=="
)  # a WAV file of a millisecond


def _example(**fields: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [fields]})


Encoded = Annotated[
    str, Field(description="The file in base64 (RFC 4648, padded, no line breaks)", repr=False, examples=[_SILENCE])
]
SaidToBe = Annotated[Format, Field(description="What the file is said to be; its content decides")]
Spoken = Annotated[Language | None, Field(description="Language of the speech; null detects, as far as the model can")]
Temperature = Annotated[
    float,
    Field(ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest; models without sampling ignore it"),
]
Milliseconds = Annotated[int, Field(ge=0, description="From the request's arrival to its answer, in milliseconds")]


# ---- requests; fields that are not known are ignored


class TranscriptionRequest(BaseModel):
    """One file to transcribe."""

    model_config = _example(audio_file=_SILENCE, format="wav", language="en", temperature=0.0)

    audio_file: Encoded
    format: SaidToBe
    language: Spoken = None
    temperature: Temperature = 0.0


class AudioFile(BaseModel):
    """A file among several."""

    model_config = _example(data=_SILENCE, format="wav", id="first")

    data: Encoded
    format: SaidToBe
    id: Annotated[str | None, Field(description="Comes back with the result; file_N by default, N from 0")] = None


class BatchRequest(BaseModel):
    """Several files to transcribe, each by itself."""

    model_config = _example(audio_files=[{"data": _SILENCE, "format": "wav", "id": "first"}], language="en")

    audio_files: Annotated[list[AudioFile], Field(min_length=1, max_length=MOST_BATCH_FILES)]
    language: Spoken = None
    temperature: Temperature = 0.0


class UnderstandingRequest(BaseModel):
    """A question about files; more than five are refused with 400."""

    model_config = _example(audio_files=[{"data": _SILENCE, "format": "wav"}], question="What is this about?")

    audio_files: Annotated[list[AudioFile], Field(min_length=1, description="At most five")]
    question: Annotated[str, Field(min_length=1, description="With something in it beside blanks")]
    temperature: Temperature = 0.2
    max_tokens: Annotated[int, Field(gt=0, description="The answer ends after so many at the latest")] = 500
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.95


# ---- answers


class TranscriptionResponse(BaseModel):
    """What was said."""

    model_config = _example(
        transcription="good morning",
        language_detected="en",
        confidence=None,
        processing_time_ms=412,
        audio_duration_seconds=1.5,
    )

    transcription: str
    language_detected: Annotated[
        str | None,
        Field(description="The language asked for when the model knows it; null when nothing is known"),
    ]
    confidence: Annotated[float | None, Field(ge=0, le=1, description="null: no model here computes an honest one")]
    processing_time_ms: Milliseconds
    audio_duration_seconds: float | None


class BatchResult(BaseModel):
    """One file's outcome: a text, or an error."""

    model_config = _example(id="first", transcription="good morning", error=None, success=True)

    id: str
    transcription: str | None
    error: str | None
    success: bool


class BatchResponse(BaseModel):
    """One result for each file, in the request's order."""

    model_config = _example(
        results=[{"id": "file_0", "transcription": "good morning", "error": None, "success": True}],
        total_processing_time_ms=730,
    )

    results: list[BatchResult]
    total_processing_time_ms: Milliseconds


class TokenUsage(BaseModel):
    """Tokens of prompt and answer; zeros when they are not known."""

    model_config = _example(prompt_tokens=390, completion_tokens=21, total_tokens=411)

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class UnderstandingResponse(BaseModel):
    """The answer to a question."""

    model_config = _example(
        answer="A greeting.",
        audio_count=1,
        processing_time_ms=1250,
        token_usage={"prompt_tokens": 390, "completion_tokens": 21, "total_tokens": 411},
    )

    answer: str
    audio_count: int
    processing_time_ms: Milliseconds
    token_usage: TokenUsage


class Health(BaseModel):
    """The server can transcribe."""

    model_config = _example(
        status="healthy", model="pocketsphinx-en-us", timestamp="2026-01-31T12:00:00.000000", version="0.1.0"
    )

    status: Literal["healthy"]
    model: str
    timestamp: Annotated[str, Field(description="ISO 8601, UTC without a zone")]
    version: str


# ---- the stream of chunks


class Chunk(BaseModel):
    """A piece of a stream: a file by itself, or the continuation of the one before."""

    format: SaidToBe
    language: Spoken = None
    chunk_id: int
    is_final: bool = False
    audio_data: Encoded


class ChunkResult(BaseModel):
    """What was said in a chunk, whose ``chunk_id`` and ``is_final`` come back."""

    chunk_id: int
    transcription: str
    is_final: bool
    confidence: float | None = None
    processing_time_ms: int


class ChunkError(BaseModel):
    """Why there is no text; ``chunk_id`` is there when it could be read."""

    code: str
    message: str
    chunk_id: int | None = None


class ChunkErrorBody(BaseModel):
    """An error on the stream, which stays open."""

    error: ChunkError


# ---- errors


class FieldError(BaseModel):
    """What is wrong with a field, and where."""

    model_config = _example(
        loc=["body", "temperature"], msg="Input should be less than or equal to 2", type="less_than_equal"
    )

    loc: list[int | str]
    msg: str
    type: str


class ErrorInfo(BaseModel):
    """``details`` and ``errors`` are there where there is more to say."""

    code: str
    message: str
    details: str | None = None
    errors: list[FieldError] | None = None
    timestamp: Annotated[str, Field(description="ISO 8601, UTC, with Z")]


class ErrorBody(BaseModel):
    """Every answer that is not 200."""

    model_config = _example(
        error={
            "code": "AUDIO_PROCESSING_ERROR",
            "message": "the file is empty",
            "timestamp": "2026-01-31T12:00:00.000Z",
        }
    )

    error: ErrorInfo
