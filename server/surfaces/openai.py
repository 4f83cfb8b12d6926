"""OpenAI's surface: its realtime transcription sessions on ``/v1/realtime``, its uploads on ``/v1/audio``."""

from __future__ import annotations

from fastapi import APIRouter

from server.config import Settings
from server.connection import Surface
from server.core.limits import Admission, LifetimeLimits
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.uploads import UploadSettings, upload_routes
from server.endpoints.websocket import realtime_routes
from server.protocols.openai import OpenAIDialect
from server.recordings import RecordingLimits
from server.service import Service
from server.surfaces.policy import session_policy


def openai_dialect(settings: Settings, service: Service) -> OpenAIDialect:
    """One connection's side of a transcription session."""
    return OpenAIDialect(service.default, service.offer, settings.openai_aliases)


def openai_surface(settings: Settings, service: Service) -> Surface:
    """How transcription sessions are run: as on the realtime surface, nothing is dropped."""
    return Surface(
        "openai", session_policy(settings), LifetimeLimits(), None, lambda: openai_dialect(settings, service)
    )


def routes(settings: Settings, service: Service, keys: Keys, clients: Clients) -> APIRouter:
    """Sessions have a path of their own here only where the realtime surface is not on the same listener, which serves both."""
    router = APIRouter()
    surface = openai_surface(settings, service)
    asked_keys = keys if settings.require_key else None
    router.include_router(realtime_routes(service, surface, Admission(None), asked_keys, clients, surface))
    unlimited, megabytes = settings.unlimited, settings.openai_max_file_mb
    uploads = UploadSettings(
        RecordingLimits(
            None if unlimited or megabytes is None else megabytes << 20,
            None if unlimited else settings.openai_max_audio_seconds,
        ),
        session_policy(settings),
        None if unlimited else settings.openai_timeout_seconds,
        frozenset(settings.openai_aliases),
    )
    admission = Admission(None if unlimited else settings.openai_max_requests)
    router.include_router(upload_routes(service, uploads, admission, asked_keys, clients))
    return router
