"""The realtime surface, ``/v1/realtime``, as vLLM speaks it, and as OpenAI does where that surface is on too."""

from __future__ import annotations

from fastapi import APIRouter

from server.config import Settings
from server.connection import Surface
from server.core.limits import Admission, LifetimeLimits
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.websocket import realtime_routes
from server.protocols.openai import EitherDialect
from server.protocols.realtime import RealtimeDialect
from server.service import Service
from server.surfaces.openai import openai_dialect, openai_surface
from server.surfaces.policy import session_policy


def routes(settings: Settings, service: Service, keys: Keys, clients: Clients) -> APIRouter:
    """Nothing is dropped here and nobody is sent away; a key is asked for with ``--require-key``."""

    def plain() -> RealtimeDialect:
        return RealtimeDialect(service.default, settings.max_queued_seconds, service.offer)

    also = openai_surface(settings, service) if "openai" in settings.surfaces else None
    dialect = plain if also is None else lambda: EitherDialect(plain(), openai_dialect(settings, service))
    surface = Surface("realtime", session_policy(settings), LifetimeLimits(), None, dialect)
    asked_keys = keys if settings.require_key else None
    return realtime_routes(service, surface, Admission(None), asked_keys, clients, also)
