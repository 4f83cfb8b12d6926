"""The paths of the REST surface: transcription, batches, understanding, health, and the stream of chunks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from fastapi import APIRouter, HTTPException, Request, WebSocket

from server.core.limits import Admission
from server.endpoints.ops import health_status
from server.endpoints.rest.requests import Door
from server.endpoints.rest.stream import Stream
from server.endpoints.rest.work import Wish, Work
from server.engines.base import Sampling
from server.protocols.rest import Refusal, plain, unavailable
from wire.rest import (
    MOST_QUESTION_FILES,
    VERSION,
    BatchRequest,
    BatchResponse,
    BatchResult,
    ErrorBody,
    Health,
    TokenUsage,
    TranscriptionRequest,
    TranscriptionResponse,
    UnderstandingRequest,
    UnderstandingResponse,
)

__all__ = ["ENDPOINTS", "PATHS", "rest_routes"]

ENDPOINTS = {
    "transcription": "/transcribe",
    "batch_transcription": "/transcribe/batch",
    "audio_understanding": "/understand",
    "streaming_transcription": "/stream/transcribe",
}
"""What ``GET /`` says about this surface."""
PATHS = frozenset(path + slash for path in (*ENDPOINTS.values(), "/health") for slash in ("", "/")) - {"/health"}
"""Every path that is this surface's own where it shares a port; ``/health`` is everybody's there."""

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]

_REASONS = {
    400: "The audio cannot be decoded, is too long or too big (AUDIO_PROCESSING_ERROR); or what is asked is not possible (HTTP_400)",
    401: "A key is needed here, and missing or wrong (HTTP_401)",
    408: "The body stopped coming (HTTP_408)",
    413: "The body is larger than all its files could make it (AUDIO_PROCESSING_ERROR)",
    422: "The body is not JSON, or a field of it is wrong (VALIDATION_ERROR)",
    429: "Too many requests of this client (RATE_LIMIT_EXCEEDED)",
    500: "A bug of the server (SERVER_ERROR)",
    503: "No model for this, or no room now (MODEL_UNAVAILABLE)",
    504: "Not done in time (PROCESSING_TIMEOUT)",
}


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": _REASONS[status]} for status in statuses}


def rest_routes(door: Door, work: Work, streams: Admission, most_chunk_bytes: int | None) -> APIRouter:
    """All paths, each with and without its slash at the end; other methods than theirs are refused in the surface's shape."""
    router = APIRouter(tags=["rest"])
    for part in (_transcription(door, work), _batch(door, work), _understanding(door, work), _health(door)):
        router.include_router(part)
    _stream(router, door, work, streams, most_chunk_bytes)
    _other_methods(router, door)
    return router


def _transcription(door: Door, work: Work) -> APIRouter:
    router = door.router("transcription")

    @router.post("/transcribe", include_in_schema=False)
    @router.post(
        "/transcribe/",
        response_model=TranscriptionResponse,
        responses=_errors(400, 401, 408, 413, 422, 429, 500, 503, 504),
        summary="Transcribe a file",
    )
    async def transcribe(body: TranscriptionRequest, request: Request) -> TranscriptionResponse:
        """The text of one file of audio. Its content decides what it is; stereo is mixed down."""
        began = monotonic()
        wish = Wish(body.language, body.temperature, door.clients.address(request))
        said = await work.transcribe(body.audio_file, ("audio_file",), wish)
        return TranscriptionResponse(
            transcription=said.text,
            language_detected=said.language,
            confidence=None,
            processing_time_ms=_since(began),
            audio_duration_seconds=round(said.seconds, 3),
        )

    return router


def _batch(door: Door, work: Work) -> APIRouter:
    router = door.router("batch")

    @router.post("/transcribe/batch/", include_in_schema=False)
    @router.post(
        "/transcribe/batch",
        response_model=BatchResponse,
        responses=_errors(401, 408, 413, 422, 429, 500, 503),
        summary="Transcribe several files",
    )
    async def transcribe_batch(body: BatchRequest, request: Request) -> BatchResponse:
        """The text of up to ten files, heard at the same time as far as there is room. One that fails does not spoil the others."""
        began = monotonic()
        wish = Wish(body.language, body.temperature, door.clients.address(request))

        async def result(number: int) -> BatchResult:
            file = body.audio_files[number]
            name = file.id or f"file_{number}"
            try:
                said = await work.transcribe_in_turn(file.data, ("audio_files", number, "data"), wish)
            except Refusal as refusal:
                why = refusal.errors[0].msg if refusal.errors else refusal.message
                return BatchResult(id=name, transcription=None, error=why, success=False)
            return BatchResult(id=name, transcription=said.text, error=None, success=True)

        async with asyncio.TaskGroup() as together:
            results = [together.create_task(result(number)) for number in range(len(body.audio_files))]
        return BatchResponse(results=[task.result() for task in results], total_processing_time_ms=_since(began))

    return router


def _understanding(door: Door, work: Work) -> APIRouter:
    router = door.router("understanding")

    @router.post("/understand", include_in_schema=False)
    @router.post(
        "/understand/",
        response_model=UnderstandingResponse,
        responses=_errors(400, 401, 408, 413, 422, 429, 500, 503, 504),
        summary="Ask a question about files",
    )
    async def understand(body: UnderstandingRequest) -> UnderstandingResponse:
        """The answer to a question about up to five files of audio."""
        began = monotonic()
        if len(body.audio_files) > MOST_QUESTION_FILES:
            raise plain(400, f"at most {MOST_QUESTION_FILES} files go with a question, got {len(body.audio_files)}")
        if not body.question.strip():
            raise plain(400, "the question is empty")
        sampling = Sampling(body.temperature, body.top_p, body.max_tokens)
        answer = await work.answer([file.data for file in body.audio_files], body.question, sampling)
        usage = answer.usage
        return UnderstandingResponse(
            answer=answer.text,
            audio_count=len(body.audio_files),
            processing_time_ms=_since(began),
            token_usage=TokenUsage(
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                total_tokens=usage.prompt_tokens + usage.completion_tokens,
            ),
        )

    return router


def _health(door: Door) -> APIRouter:
    router = door.router("general", worked_on=False)
    service = door.service

    @router.get("/health/", response_model=Health, responses=_errors(429, 500, 503), summary="Health")
    async def rest_health() -> Health:
        """Whether the server can transcribe, and with which model."""
        status = health_status(service)
        if status != "healthy":
            raise unavailable("the server is shutting down" if status == "draining" else "the model has failed")
        now = datetime.now(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")
        return Health(status="healthy", model=service.models.default.names[0], timestamp=now, version=VERSION)

    return router


def _stream(router: APIRouter, door: Door, work: Work, streams: Admission, most_chunk_bytes: int | None) -> None:
    @router.websocket("/stream/transcribe")
    @router.websocket("/stream/transcribe/")
    async def stream_transcribe(websocket: WebSocket) -> None:
        await Stream(websocket, door, work, streams, most_chunk_bytes).run()


def _other_methods(router: APIRouter, door: Door) -> None:
    """Methods that a path does not have are refused in the surface's shape; Starlette asks these routes last."""
    others = door.router("general", worked_on=False)
    for path in sorted(PATHS):
        allowed = "GET" if path.startswith(("/health", "/stream")) else "POST"

        async def refuse(request: Request, allowed: str = allowed) -> None:
            raise HTTPException(405, f"{request.method} is not possible here", {"Allow": allowed})

        others.api_route(path, methods=[method for method in _METHODS if method != allowed], include_in_schema=False)(
            refuse
        )
    router.include_router(others)


def _since(began: float) -> int:
    return round((monotonic() - began) * 1000)
