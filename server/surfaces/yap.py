"""The envelope surface, ``/api/asr-streaming``."""

from __future__ import annotations

from fastapi import APIRouter

from server.config import Settings
from server.connection import Surface
from server.core.limits import Admission, LifetimeLimits
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.websocket import envelope_routes
from server.protocols.yap import YapDialect
from server.service import Service
from server.surfaces.policy import session_policy


def routes(settings: Settings, service: Service, keys: Keys, clients: Clients) -> APIRouter:
    """Its limits are off with ``--unlimited``; without a limit on connections there may be as many as the engine has slots."""
    unlimited = settings.unlimited
    limits = LifetimeLimits(settings.idle_timeout_s, settings.max_connection_duration_s)
    surface = Surface(
        "yap",
        session_policy(settings, None if unlimited else settings.max_backlog_seconds),
        LifetimeLimits() if unlimited else limits,
        settings.inbound_queue_max,
        lambda: YapDialect(service.default, settings.close_idle_reason, service.offer),
    )
    slots = service.models.default.engine.info.slots
    admission = Admission(None if unlimited else settings.max_concurrent_connections or slots)
    return envelope_routes(service, surface, admission, keys, clients)
