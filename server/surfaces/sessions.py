"""The conversational sessions: ``/session``, ``/ws/audio``, ``/ws/control``."""

from __future__ import annotations

from dataclasses import replace

import structlog
from fastapi import APIRouter

from server.config import ConfigError, Settings
from server.connection import Surface
from server.core.conversations import Conversations, SessionLimits
from server.core.limits import Admission, FixedWindows, LifetimeLimits
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.sessions import Doors, SessionSeries, session_routes
from server.protocols.base import Dialect
from server.protocols.sessions import Policy, Surroundings
from server.service import Service
from server.surfaces.policy import session_policy

_log = structlog.get_logger("earmark")

_MOST_UNHEARD_SECONDS = 10.0
"""Audio that the session takes in ahead of the engine; what comes beyond it is in the queue of frames, which has a limit of its own."""


def routes(settings: Settings, service: Service, keys: Keys, clients: Clients) -> APIRouter:
    """Its limits are off with ``--unlimited``; a full queue then waits.

    Raises:
        ConfigError: replies by chat are wanted and there is no chat engine.
    """
    if settings.sessions_reply == "chat" and service.chat is None:
        raise ConfigError("--sessions-reply=chat needs a chat engine (--chat-engine)")
    doors = service.one(Doors, lambda: _doors(settings, service))
    return session_routes(doors, keys if settings.require_key else None, clients)


def _doors(settings: Settings, service: Service) -> Doors:
    if service.voice is None:
        _log.warning("sessions: without voice activity detection an utterance ends only where its client says so")
    unlimited = settings.unlimited

    def limit(value: int | None) -> int | None:
        return None if unlimited else value

    conversations = Conversations(
        SessionLimits(
            None if unlimited else settings.sessions_expiry_seconds,
            limit(settings.sessions_max),
            limit(settings.sessions_audio_bytes_per_second),
            limit(settings.sessions_texts_per_minute),
        ),
        settings.sessions_vad_sensitivity,
        settings.sessions_max_length,
    )
    policy = Policy(
        reply_by_chat=settings.sessions_reply == "chat",
        question=settings.sessions_question,
        reply_seconds=settings.sessions_reply_seconds,
        temperature=settings.sessions_temperature,
        sample_rate=settings.sessions_sample_rate,
        silence_seconds=settings.sessions_silence_ms / 1000,
        heartbeat_seconds=settings.sessions_heartbeat_seconds,
        inactivity_seconds=None if unlimited else settings.sessions_inactivity_seconds,
        count_errors=not unlimited,
    )
    series = SessionSeries(service.metrics)
    session = session_policy(settings)
    if not unlimited:
        session = replace(session, max_queued_seconds=min(session.max_queued_seconds, _MOST_UNHEARD_SECONDS))
    surface = Surface("sessions", session, LifetimeLimits(), limit(settings.sessions_queue), _no_dialect, service.chat)
    doors = Doors(
        service,
        surface,
        Surroundings(conversations, policy, service.offer, series, service.chat is not None),
        series,
        Admission(limit(settings.sessions_connections)),
        FixedWindows(limit(settings.sessions_create_per_minute)),
        FixedWindows(limit(settings.sessions_connect_per_minute)),
    )
    service.health.append(doors.health)
    return doors


def _no_dialect() -> Dialect:
    raise AssertionError("every socket has a dialect of its own, about its session")
