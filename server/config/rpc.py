"""Settings of the gRPC surface: its listener, who may have a session, and the limits of a stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator
from pydantic_settings import NoDecode

from server.config.fields import OptionalCount, OptionalSeconds, Part, setting
from server.protocols.rpc_profiles import DEFAULT_PROFILES
from wire.stt.languages import LANGUAGES


def _object(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"JSON is expected: {error}") from None


ProfileOptions = Annotated[dict[str, dict[str, Any]], NoDecode, BeforeValidator(_object)]

_Rate = OptionalSeconds
"""Per second; None switches it off."""


class Rpc(Part):
    """the gRPC surface (names and defaults of limits are those of stt.STTBackend's own configuration; 0 or off: no limit)"""

    grpc_host: str = setting("", "EARMARK_GRPC_HOST", help="address of gRPC; default: that of --host")
    grpc_port: int = setting(50051, "EARMARK_GRPC_PORT", help="port of gRPC; 0 takes a free one", ge=0, le=65535)

    # sessions
    grpc_max_sessions: OptionalCount = setting(4, "EARMARK_GRPC_MAX_SESSIONS", help="sessions at once")
    grpc_max_sessions_per_ip: OptionalCount = setting(
        4, "EARMARK_GRPC_MAX_SESSIONS_PER_IP", help="sessions at once from one address"
    )
    grpc_max_sessions_per_api_key: OptionalCount = setting(
        8, "EARMARK_GRPC_MAX_SESSIONS_PER_API_KEY", help="sessions at once with one API key"
    )
    grpc_create_session_rps: _Rate = setting(
        5.0, "EARMARK_GRPC_CREATE_SESSION_RPS", help="sessions that one API key or address may create per second"
    )
    grpc_create_session_burst: float = setting(
        10.0, "EARMARK_GRPC_CREATE_SESSION_BURST", help="so many of them at once; 0: as many as per second", ge=0
    )
    grpc_require_api_key: bool = setting(
        False, "EARMARK_GRPC_REQUIRE_API_KEY", help="refuse sessions without the attribute api_key, whatever its value"
    )
    grpc_signing_secret: str = setting(
        "", "EARMARK_GRPC_SIGNING_SECRET", help="refuse sessions whose metadata is not signed with this secret"
    )
    grpc_session_timeout_sec: OptionalSeconds = setting(
        60.0,
        "EARMARK_GRPC_SESSION_TIMEOUT_SEC",
        help="end a stream in which nothing happens, or a session not streamed",
    )

    # voice activity detection
    grpc_vad_silence: float = setting(
        0.5,
        "EARMARK_GRPC_VAD_SILENCE",
        help="seconds of silence that end an utterance, where the client says none",
        gt=0,
    )
    grpc_vad_threshold: float = setting(
        0.5,
        "EARMARK_GRPC_VAD_THRESHOLD",
        help="probability of speech from which a frame is voiced; 0: no VAD",
        ge=0,
        le=1,
    )
    grpc_vad_model_pool_size: OptionalCount = setting(
        4, "EARMARK_GRPC_VAD_MODEL_POOL_SIZE", help="sessions with VAD to begin with; 0: as many as sessions"
    )
    grpc_vad_model_pool_growth_factor: float = setting(
        1.5, "EARMARK_GRPC_VAD_MODEL_POOL_GROWTH_FACTOR", help="by which that grows when it is used up", ge=1
    )
    grpc_speech_rms_threshold: float = setting(
        0.0,
        "EARMARK_GRPC_SPEECH_RMS_THRESHOLD",
        help="drop utterances quieter than this (RMS, 1 is full scale)",
        ge=0,
        le=1,
    )
    grpc_emit_final_on_vad: bool = setting(
        False, "EARMARK_GRPC_EMIT_FINAL_ON_VAD", help="an utterance that silence ends is final also in VAD_CONTINUE"
    )

    # audio
    grpc_sample_rate: int = setting(
        16_000, "EARMARK_GRPC_SAMPLE_RATE", help="Hz of audio that says none", ge=1_000, le=384_000
    )
    grpc_max_chunk_ms: OptionalSeconds = setting(2000.0, "EARMARK_GRPC_MAX_CHUNK_MS", help="audio in one chunk")
    grpc_max_audio_seconds_per_session: OptionalSeconds = setting(
        300.0, "EARMARK_GRPC_MAX_AUDIO_SECONDS_PER_SESSION", help="audio in one stream"
    )
    grpc_max_audio_bytes_per_sec: _Rate = setting(
        32_000.0, "EARMARK_GRPC_MAX_AUDIO_BYTES_PER_SEC", help="audio that one API key or address may send per second"
    )
    grpc_max_audio_bytes_per_sec_burst: float = setting(
        64_000.0, "EARMARK_GRPC_MAX_AUDIO_BYTES_PER_SEC_BURST", help="so much of it at once; 0: a second's worth", ge=0
    )

    # results
    grpc_partial_decode_interval_sec: OptionalSeconds = setting(
        1.5, "EARMARK_GRPC_PARTIAL_DECODE_INTERVAL_SEC", help="seconds of audio between partials; 0: no partials"
    )
    grpc_max_buffer_sec: OptionalSeconds = setting(
        20.0,
        "EARMARK_GRPC_MAX_BUFFER_SEC",
        help="audio of a stream that may wait for the engine; beyond it is not read",
    )
    grpc_max_buffer_bytes: OptionalCount = setting(
        None, "EARMARK_GRPC_MAX_BUFFER_BYTES", help="the same in bytes at 16 kHz; the smaller one holds"
    )
    grpc_max_total_buffer_bytes: OptionalCount = setting(
        67_108_864, "EARMARK_GRPC_MAX_TOTAL_BUFFER_BYTES", help="the same for all streams together"
    )
    grpc_max_pending_decodes_per_stream: OptionalCount = setting(
        8,
        "EARMARK_GRPC_MAX_PENDING_DECODES_PER_STREAM",
        help="results that a client may leave unread before partials go",
    )
    grpc_max_pending_decodes_global: OptionalCount = setting(
        64,
        "EARMARK_GRPC_MAX_PENDING_DECODES_GLOBAL",
        help="utterances whose audio has ended and whose text has not come",
    )
    grpc_decode_queue_timeout_sec: OptionalSeconds = setting(
        1.0, "EARMARK_GRPC_DECODE_QUEUE_TIMEOUT_SEC", help="wait so long for a place among them"
    )
    grpc_decode_timeout_sec: OptionalSeconds = setting(
        30.0, "EARMARK_GRPC_DECODE_TIMEOUT_SEC", help="wait so long for the last text of a stream"
    )

    # decoding
    grpc_language: str = setting("ko", "EARMARK_GRPC_LANGUAGE", help="language of sessions, with --grpc-language-fix")
    grpc_language_fix: bool = setting(
        False, "EARMARK_GRPC_LANGUAGE_FIX", help="sessions that name no language have --grpc-language, not any"
    )
    grpc_task: Literal["transcribe", "translate"] = setting(
        "transcribe", "EARMARK_GRPC_TASK", help="task of sessions that name none"
    )
    grpc_decode_profiles: ProfileOptions = setting(
        {name: dict(options) for name, options in DEFAULT_PROFILES.items()},
        "EARMARK_GRPC_DECODE_PROFILES",
        help="decoding options by the name of a profile, JSON",
    )
    grpc_default_decode_profile: str = setting(
        "realtime", "EARMARK_GRPC_DEFAULT_DECODE_PROFILE", help="profile of sessions that name none"
    )

    # messages and TLS
    grpc_max_receive_message_bytes: int = setting(
        8_388_608, "EARMARK_GRPC_MAX_RECEIVE_MESSAGE_BYTES", help="largest message read", ge=1024, le=2**31 - 1
    )
    grpc_max_send_message_bytes: int = setting(
        4_194_304, "EARMARK_GRPC_MAX_SEND_MESSAGE_BYTES", help="largest message sent", ge=1024, le=2**31 - 1
    )
    grpc_tls_cert_file: str = setting("", "EARMARK_GRPC_TLS_CERT_FILE", help="certificate chain, PEM")
    grpc_tls_key_file: str = setting("", "EARMARK_GRPC_TLS_KEY_FILE", help="its private key, PEM")
    grpc_tls_required: bool = setting(
        False, "EARMARK_GRPC_TLS_REQUIRED", help="do not start gRPC without certificate and key"
    )

    @field_validator("grpc_language")
    @classmethod
    def _grpc_language(cls, value: str) -> str:
        code = value.strip().lower()
        if code and code not in LANGUAGES:
            raise ValueError("a language code such as en is expected")
        return code

    @field_validator("grpc_default_decode_profile")
    @classmethod
    def _grpc_default_profile(cls, value: str, others: Any) -> str:
        profiles: Mapping[str, Any] = others.data.get("grpc_decode_profiles", {value: {}})
        if value not in profiles:
            raise ValueError(f"one of the profiles {', '.join(profiles)} is expected")
        return value

    @field_validator("grpc_max_audio_bytes_per_sec_burst", "grpc_create_session_burst", mode="before")
    @classmethod
    def _grpc_no_burst(cls, value: Any) -> Any:
        return 0.0 if value is None else value
