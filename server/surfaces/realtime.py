"""The realtime surface, ``/v1/realtime``, as vLLM speaks it."""

from __future__ import annotations

from fastapi import APIRouter

from server.config import Settings
from server.connection import Surface
from server.core.limits import Admission, LifetimeLimits
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.websocket import realtime_routes
from server.protocols.realtime import RealtimeDialect
from server.service import Service
from server.surfaces.policy import session_policy


def routes(settings: Settings, service: Service, keys: Keys, clients: Clients) -> APIRouter:
    """Nothing is dropped here and nobody is sent away; a key is asked for with ``--require-key``."""
    surface = Surface(
        "realtime",
        session_policy(settings),
        LifetimeLimits(),
        None,
        lambda: RealtimeDialect(service.default, settings.max_queued_seconds, service.offer),
    )
    return realtime_routes(service, surface, Admission(None), keys if settings.require_key else None, clients)
