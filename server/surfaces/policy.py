"""The policies that surfaces share, read from the settings."""

from __future__ import annotations

from server.config import Settings
from server.core.session import SessionSettings


def session_policy(settings: Settings, max_backlog_seconds: float | None = None) -> SessionSettings:
    """How streams are rolled and bounded; delay and word times are the engine's, and filled in with it."""
    return SessionSettings(
        default_delay_seconds=settings.delay_ms / 1000,
        timed_words=False,
        segment_seconds=settings.segment_seconds if settings.internal_roll else None,
        overlap_seconds=settings.segment_overlap_seconds,
        max_backlog_seconds=max_backlog_seconds,
        max_queued_seconds=settings.max_queued_seconds,
        park_seconds=settings.park_seconds,
    )
