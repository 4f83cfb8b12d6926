"""Limits of streams: how long they may last, idle and wait, and how they are rolled."""

from __future__ import annotations

from pydantic import ValidationInfo, field_validator

from server.config.fields import OptionalSeconds, Part, setting


class Streams(Part):
    """streams, and limits of the envelope surface"""

    idle_timeout_s: OptionalSeconds = setting(
        150.0, "WS_IDLE_TIMEOUT_S", help="close a connection idle for so long; 0 or off: never"
    )
    max_connection_duration_s: OptionalSeconds = setting(
        5400.0, "WS_MAX_CONNECTION_DURATION_S", help="close a connection after so long; 0 or off: never"
    )
    watchdog_tick_s: float = setting(
        5.0, "WS_WATCHDOG_TICK_S", help="accepted for compatibility; limits act to the millisecond without it"
    )
    close_idle_reason: str = setting("idle_timeout", "WS_CLOSE_IDLE_REASON", help="reason text of an idle close")
    max_concurrent_connections: int = setting(
        0,
        "MAX_CONCURRENT_CONNECTIONS",
        help="connections of the envelope surface; 0: as many as the engine has slots",
        ge=0,
    )
    inbound_queue_max: int = setting(
        256, "WS_INBOUND_QUEUE_MAX", help="frames that may wait behind a full session on the envelope surface", ge=1
    )
    max_backlog_seconds: OptionalSeconds = setting(
        5.0,
        "STT_MAX_BACKLOG_SECONDS",
        help="envelope surface: drop the oldest audio once more than this waits and has waited that long; 0: never",
    )

    # long streams
    internal_roll: bool = setting(True, "STT_INTERNAL_ROLL", help="roll long utterances into several engine segments")
    segment_seconds: float = setting(60.0, "STT_SEGMENT_SECONDS", help="target length of an engine segment", ge=1)
    segment_overlap_seconds: float = setting(
        0.8, "STT_SEGMENT_OVERLAP_SECONDS", help="audio that the next segment hears again", ge=0
    )
    max_queued_seconds: float = setting(
        3600.0, "EARMARK_MAX_QUEUED_SECONDS", help="audio one connection may have waiting; beyond it is not read", ge=1
    )
    park_seconds: float = setting(
        30.0, "EARMARK_PARK_SECONDS", help="give an utterance's engine slot back after so long without audio", gt=0
    )
    unlimited: bool = setting(
        False, "EARMARK_UNLIMITED", help="switch off idle, duration, connection and backlog limits, for load tests"
    )

    @field_validator("close_idle_reason")
    @classmethod
    def _close_reason(cls, value: str) -> str:
        if len(value.encode()) > 123:
            raise ValueError("at most 123 bytes fit the reason of a WebSocket close")
        return value

    @field_validator("segment_overlap_seconds")
    @classmethod
    def _overlap(cls, value: float, others: ValidationInfo) -> float:
        segment_seconds = others.data.get("segment_seconds")
        if segment_seconds is not None and value >= segment_seconds:
            raise ValueError(f"less than the segment's length of {segment_seconds:g} s is expected")
        return value
