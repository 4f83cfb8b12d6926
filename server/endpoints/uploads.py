"""``POST /v1/audio/transcriptions`` as OpenAI has it: a file in a form, its transcript as an answer or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import APIRouter, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import JSONResponse, StreamingResponse

from server.core.events import Event, Final, StreamOptions, Token
from server.core.limits import Admission
from server.core.session import SessionSettings
from server.endpoints.access import Clients
from server.endpoints.auth import Keys, bearer_key, openai_error
from server.endpoints.requests import ClientGoneError, RefusedError, TooLargeError, limited, under_way, until_gone
from server.hearing import RecordingError, hear_recording
from server.protocols.base import Served
from server.recordings import DecodingError, Recording, RecordingLimits, decode
from server.service import Service
from wire import uploads

_log = structlog.get_logger("earmark.uploads")

_FORM_BYTES = 1 << 20
"""Room for the form's other fields and boundaries beside the file."""

_STATUS = {
    "missing_required_parameter": 400,
    "invalid_value": 400,
    "model_not_found": 404,
    "file_too_large": 413,
    "invalid_api_key": 401,
    "timeout": 504,
    "server_busy": 503,
    "overloaded": 503,
}
"""code -> status; what is not here is a fault of the server, 500."""

_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file", "model"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "wav, flac, mp3, m4a, ogg, webm or aac",
                    },
                    "model": {"type": "string", "example": "whisper-1"},
                    "language": {"type": "string", "description": "ISO 639-1 code; detected where it is not given"},
                    "response_format": {"type": "string", "enum": list(uploads.FORMATS), "default": "json"},
                    "temperature": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
                    "timestamp_granularities[]": {"type": "array", "items": {"enum": ["word", "segment"]}},
                    "stream": {"type": "boolean", "default": False},
                },
            }
        }
    },
}


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """What is taken in, how long its hearing may take, and names that mean the default model."""

    recordings: RecordingLimits
    policy: SessionSettings
    timeout_seconds: float | None
    aliases: frozenset[str]


class _Refusal(Exception):  # noqa: N818 - an answer, not a fault
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def response(self) -> Response:
        status = _STATUS.get(self.code, 500)
        return JSONResponse({"error": self.error()}, status, headers={"Retry-After": "1"} if status == 503 else None)

    def error(self) -> dict[str, str | None]:
        kind = "server_error" if _STATUS.get(self.code, 500) >= 500 else "invalid_request_error"
        return openai_error(self.code, self.message, kind, self.param)


def upload_routes(
    service: Service, settings: UploadSettings, admission: Admission, keys: Keys | None, clients: Clients
) -> APIRouter:
    """Open unless keys are given. Files are decoded by their content and heard like streams, rolled where they are long."""
    router = APIRouter()

    @router.post("/v1/audio/transcriptions", openapi_extra={"requestBody": _BODY}, tags=["openai"])
    async def transcriptions(request: Request) -> Response:
        try:
            if keys is not None and bearer_key(request) not in keys:
                service.metrics.connections_rejected.labels("openai", "authentication_failed").inc()
                raise _Refusal("invalid_api_key", "missing or wrong API key")
            with under_way(service, admission):
                return await _transcribe(request, service, settings, clients.address(request))
        except RefusedError as refused:
            service.metrics.connections_rejected.labels("openai", "server_at_capacity").inc()
            return _Refusal("server_busy", f"{refused}; try again later").response()
        except _Refusal as refusal:
            service.metrics.errors.labels("openai", refusal.code).inc()
            return refusal.response()
        except ClientGoneError:
            return Response(status_code=499)  # nobody reads it

    return router


async def _transcribe(request: Request, service: Service, settings: UploadSettings, client: str) -> Response:
    asked, data = await _read(request, settings)
    served = _model(service, settings, asked)
    try:
        recording = await until_gone(request, decode(data, settings.recordings))
    except DecodingError as error:
        code = "file_too_large" if error.code in ("too_large", "too_long") else "invalid_value"
        raise _Refusal(code, error.message, "file") from None
    options = StreamOptions(language=asked.language, model=served.model, temperature=asked.temperature)
    headers = {"X-Ignored-Fields": ", ".join(asked.ignored)} if asked.ignored else {}
    if asked.stream:
        stream = _stream(recording, options, asked, served, service, settings, client)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
    final = await until_gone(request, _hear(recording, options, service, settings, client))
    body = uploads.answer(_heard(final, recording, asked, served), asked)
    media_type = uploads.MEDIA_TYPES.get(asked.response_format, "text/plain; charset=utf-8")
    return Response(body, media_type=media_type, headers=headers)


async def _read(request: Request, settings: UploadSettings) -> tuple[uploads.Asked, bytes]:
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise _Refusal("invalid_value", "a form (multipart/form-data) with 'file' and 'model' is expected")
    most = settings.recordings.most_bytes
    try:
        parser = MultiPartParser(
            request.headers, limited(request, None if most is None else most + _FORM_BYTES), max_files=1, max_fields=64
        )
        form = await parser.parse()
    except TooLargeError as error:
        raise _Refusal("file_too_large", str(error), "file") from None
    except (MultiPartException, ValueError, KeyError) as error:
        raise _Refusal("invalid_value", f"the form cannot be read: {error}") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise _Refusal(
                "missing_required_parameter", "'file' is missing: the audio file, as a file of the form", "file"
            )
        try:
            asked = uploads.read_form((name, value) for name, value in form.multi_items() if isinstance(value, str))
        except uploads.FieldError as error:
            raise _Refusal(error.reason, error.message, error.param) from None
        return asked, await file.read()
    finally:
        await form.close()


def _model(service: Service, settings: UploadSettings, asked: uploads.Asked) -> Served:
    served = service.default if asked.model in settings.aliases else service.offer(asked.model)
    if served is None:
        message = f"the model {asked.model!r:.200} is not served here; GET /v1/models lists those that are"
        raise _Refusal("model_not_found", message, "model")
    if asked.language and served.languages and asked.language not in served.languages:
        known = ", ".join(served.languages)
        raise _Refusal("invalid_value", f"{asked.language!r:.50} is not heard by this model; {known} is", "language")
    if asked.words and not served.timed_words:
        message = "this model gives no word times; ask for segments alone"
        raise _Refusal("invalid_value", message, "timestamp_granularities")
    return served


async def _hear(
    recording: Recording,
    options: StreamOptions,
    service: Service,
    settings: UploadSettings,
    client: str,
    tell: Any = None,
) -> Final:
    try:
        async with asyncio.timeout(settings.timeout_seconds):
            return await hear_recording(
                recording.pcm, options, "openai", settings.policy, service.resources, tell, client
            )
    except TimeoutError:
        message = f"it was not transcribed within {settings.timeout_seconds:g} s; send it in parts"
        raise _Refusal("timeout", message) from None
    except RecordingError as error:
        raise _Refusal(error.code, error.message) from None


def _heard(final: Final, recording: Recording, asked: uploads.Asked, served: Served) -> uploads.Heard:
    language = asked.language or (served.languages[0] if len(served.languages) == 1 else None)
    usage = final.usage
    return uploads.Heard(
        final.text, recording.seconds, final.words, language, usage.prompt_tokens, usage.completion_tokens
    )


async def _stream(
    recording: Recording,
    options: StreamOptions,
    asked: uploads.Asked,
    served: Served,
    service: Service,
    settings: UploadSettings,
    client: str,
) -> AsyncIterator[str]:
    """Server-sent events as the text comes; ended with the connection."""
    texts: asyncio.Queue[str | None] = asyncio.Queue()

    def tell(event: Event) -> None:
        if isinstance(event, Token):
            texts.put_nowait(event.text)

    with under_way(service, Admission(None)):
        hearing = asyncio.ensure_future(_hear(recording, options, service, settings, client, tell))
        hearing.add_done_callback(lambda _: texts.put_nowait(None))
        try:
            while (text := await texts.get()) is not None:
                yield uploads.delta_event(text)
            yield uploads.done_event(_heard(hearing.result(), recording, asked, served))
        except _Refusal as refusal:
            service.metrics.errors.labels("openai", refusal.code).inc()
            yield uploads.error_event(refusal.error())
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
