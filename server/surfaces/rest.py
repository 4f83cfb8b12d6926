"""The REST surface: ``/transcribe/``, ``/transcribe/batch``, ``/understand/``, ``/health/`` and ``/stream/transcribe``."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.config import Settings
from server.core.limits import Admission, FixedWindows
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.rest.requests import BodyBounds, Door, error_response
from server.endpoints.rest.routes import ENDPOINTS, PATHS, rest_routes
from server.endpoints.rest.work import Bounds, Work
from server.protocols.rest import plain
from server.recordings import RecordingLimits
from server.service import Service
from server.surfaces.policy import session_policy
from wire.rest import MOST_BATCH_FILES, MOST_QUESTION_FILES, VERSION

TITLE = "Voxtral Transcription API"
DESCRIPTION = "Transcription of audio files, and answers to questions about them"
ROOT: Mapping[str, object] = {"description": DESCRIPTION, "endpoints": ENDPOINTS}
"""What the surface adds to ``GET /``."""

_MIB = 1 << 20
_ROOM_BYTES = 1 << 16
"""For what a body has beside its files; a question may take another such."""


def routes(settings: Settings, service: Service, keys: Keys, clients: Clients) -> APIRouter:
    """Its limits are off with ``--unlimited``; a key is asked for with ``--require-key``."""
    unlimited = settings.unlimited
    window = settings.rate_limit_window

    def rate(limit: int | None) -> FixedWindows:
        return FixedWindows(None if unlimited else limit, window)

    def admission(limit: int | None) -> Admission:
        return Admission(None if unlimited else limit)

    rates = {
        "general": rate(settings.rate_limit_requests),
        "transcription": rate(settings.rate_limit_transcription),
        "batch": rate(settings.rate_limit_batch),
        "understanding": rate(settings.rate_limit_understanding),
    }
    file_bytes = None if unlimited else round(settings.max_file_size_mb * _MIB)
    body_bytes = {
        group: None if file_bytes is None else files * (file_bytes * 4 // 3 + _ROOM_BYTES) + _ROOM_BYTES
        for group, files in (("transcription", 1), ("batch", MOST_BATCH_FILES), ("understanding", MOST_QUESTION_FILES))
    }
    bodies = BodyBounds(
        body_bytes,
        None if unlimited else settings.upload_idle_s,
        None if unlimited else round(settings.max_upload_mb * _MIB),
    )
    door = Door(
        service,
        keys if settings.require_key else None,
        clients,
        rates,
        admission(settings.max_rest_requests),
        bodies,
        debug=settings.log_level == "debug",
    )
    bounds = Bounds(
        RecordingLimits(file_bytes, None if unlimited else settings.max_audio_duration_seconds),
        None if unlimited else settings.max_question_audio_seconds,
        None if unlimited else settings.processing_timeout_s,
    )
    work = Work(service, session_policy(settings), bounds)
    most_chunk_bytes = None if unlimited else round(settings.max_chunk_size_mb * _MIB)
    return rest_routes(door, work, admission(settings.max_rest_streams), most_chunk_bytes)


def furnish(app: FastAPI, *, alone: bool) -> None:
    """What concerns a whole application: other origins may come to this surface's paths, and to all where it has a port of its own,
    which then bears its name and its shape of errors.
    """
    app.add_middleware(_OpenToOthers, paths=None if alone else PATHS)
    if not alone:
        return
    app.title, app.description, app.version = TITLE, DESCRIPTION, VERSION
    app.add_middleware(_OwnHealth)

    @app.exception_handler(HTTPException)
    async def in_shape(request: Request, error: HTTPException) -> Response:
        del request
        response = error_response(plain(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response


class _OpenToOthers:
    """CORS for some paths (None: all): any origin, method and header, with credentials."""

    def __init__(self, app: ASGIApp, paths: frozenset[str] | None) -> None:
        self._app = app
        self._paths = paths
        self._open = CORSMiddleware(
            app,
            allow_origins=["*"],
            allow_methods=["*"],
            allow_headers=["*"],
            allow_credentials=True,
            expose_headers=["X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "Retry-After"],
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        chosen = self._paths is None or scope.get("path") in self._paths
        await (self._open if chosen else self._app)(scope, receive, send)


class _OwnHealth:
    """``/health`` is what ``/health/`` is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path") == "/health":
            scope = {**scope, "path": "/health/"}
        await self._app(scope, receive, send)
