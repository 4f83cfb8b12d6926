"""Settings of the session-based conversational surface."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from server.config.fields import OptionalCount, OptionalSeconds, Part, setting
from wire.sessions import SAMPLE_RATES


class Sessions(Part):
    """the sessions surface"""

    sessions_reply: Literal["transcript", "chat"] = setting(
        "transcript",
        "EARMARK_SESSIONS_REPLY",
        help="what answers an utterance: its transcript, or what the chat engine replies to it",
    )
    sessions_question: str = setting(
        "Reply to what is said in the recording.",
        "EARMARK_SESSIONS_QUESTION",
        help="with --sessions-reply chat: what the chat engine is told beside an utterance's audio",
    )
    sessions_reply_seconds: float = setting(
        120.0,
        "EARMARK_SESSIONS_REPLY_SECONDS",
        help="with --sessions-reply chat: the newest so many seconds of an utterance are what the chat engine hears",
        ge=1,
        le=1800,
    )
    sessions_temperature: float = setting(
        0.2, "TEMPERATURE", help="sampling temperature of replies, until a client sets its session's", ge=0, le=2
    )
    sessions_max_length: int = setting(
        512, "MAX_LENGTH", help="most tokens of a reply, until a client sets its session's", ge=1
    )
    sessions_sample_rate: int = setting(
        16000, "AUDIO_SAMPLE_RATE", help="samples per second of clients' audio: 8000, 16000, 22050, 44100 or 48000"
    )
    sessions_vad_sensitivity: int = setting(
        2,
        "VAD_AGGRESSIVENESS",
        help="how strictly speech is told from noise, 0 to 3, until a client sets its session's",
        ge=0,
        le=3,
    )
    sessions_silence_ms: int = setting(
        1000, "SILENCE_TIMEOUT_MS", help="an utterance ends after so much silence", ge=32, le=60_000
    )
    sessions_heartbeat_seconds: float = setting(
        30.0, "HEARTBEAT_INTERVAL", help="seconds from one heartbeat to the next on audio sockets", ge=0.05
    )
    sessions_inactivity_seconds: OptionalSeconds = setting(
        60.0,
        "EARMARK_SESSIONS_INACTIVITY_SECONDS",
        help="close an audio socket, at a heartbeat, that has sent nothing for longer; 0 or off: never",
    )
    sessions_expiry_seconds: OptionalSeconds = setting(
        1800.0,
        "EARMARK_SESSIONS_EXPIRY_SECONDS",
        help="forget a session that has had no socket for so long; 0 or off: never",
    )
    sessions_max: OptionalCount = setting(
        10_000, "EARMARK_SESSIONS_MAX", help="sessions that may exist at a time; 0 or off: any number"
    )
    sessions_connections: OptionalCount = setting(
        1000, "MAX_CONNECTIONS", help="sockets of sessions that may be open at a time; 0 or off: any number"
    )
    sessions_queue: int = setting(
        1000,
        "EARMARK_SESSIONS_QUEUE",
        help="frames of one socket that may wait; then the oldest audio is pushed out",
        ge=1,
    )
    sessions_create_per_minute: OptionalCount = setting(
        5, "EARMARK_SESSIONS_CREATE_PER_MINUTE", help="sessions that one address may create in a minute; 0 or off: any"
    )
    sessions_connect_per_minute: OptionalCount = setting(
        10, "EARMARK_SESSIONS_CONNECT_PER_MINUTE", help="sockets that one address may open in a minute; 0 or off: any"
    )
    sessions_texts_per_minute: OptionalCount = setting(
        60, "EARMARK_SESSIONS_TEXTS_PER_MINUTE", help="texts that one session may send in a minute; 0 or off: any"
    )
    sessions_audio_bytes_per_second: OptionalCount = setting(
        1_000_000,
        "EARMARK_SESSIONS_AUDIO_BYTES_PER_SECOND",
        help="bytes of audio that one session may send in a second; 0 or off: any",
    )

    @field_validator("sessions_sample_rate")
    @classmethod
    def _sample_rate(cls, value: int) -> int:
        if value not in SAMPLE_RATES:
            raise ValueError(f"one of {', '.join(map(str, SAMPLE_RATES))} is expected")
        return value

    @field_validator("sessions_question")
    @classmethod
    def _question(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("a sentence is expected")
        return value.strip()
