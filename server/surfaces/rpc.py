"""The gRPC surface, ``stt.STTBackend``."""

from __future__ import annotations

import asyncio
import secrets
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from server.config import ConfigError, Settings
from server.core.session import SessionSettings
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.rpc import SERVICE, Rpc, Servicer, TotalBuffer
from server.engines.registry import UnknownModelError
from server.protocols.rpc import DecodeQueue, StreamPolicy
from server.protocols.rpc_profiles import Profiles
from server.protocols.rpc_sessions import RpcSessions, SessionPolicy
from server.service import Service
from server.surfaces.policy import session_policy
from wire.pcm import seconds_of

_log = structlog.get_logger("earmark.rpc")

_EVER = 10 * 365 * 86_400.0


def server(settings: Settings, service: Service, clients: Clients, keys: Keys) -> Any:
    """The gRPC server with its services, without an address. It needs a running event loop."""
    accepts = keys.__contains__ if settings.require_key else None
    sessions = RpcSessions(
        replace(session_settings(settings, vad_available=service.voice is not None), accepts=accepts),
        service.figures,
        lambda: secrets.token_hex(16),
        _model_chooser(service),
        lambda model: frozenset(service.models.find(model).engine.info.languages),
    )
    policy = stream_settings(settings)
    pending = None if settings.unlimited else settings.grpc_max_pending_decodes_global
    total = None if settings.unlimited else settings.grpc_max_total_buffer_bytes
    rpc = Rpc(
        service,
        clients,
        sessions,
        policy,
        _hearing_settings(settings, policy),
        DecodeQueue(pending, service.figures),
        TotalBuffer(total),
        policy.max_pending_results,
    )
    made = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.grpc_max_receive_message_bytes),
            ("grpc.max_send_message_length", settings.grpc_max_send_message_bytes),
            ("grpc.so_reuseport", 0),  # a port that is taken is an error
        ]
    )
    made.add_generic_rpc_handlers((Servicer(rpc).handler(),))
    _add_health(made, service)
    reflection.enable_server_reflection([SERVICE, "grpc.health.v1.Health", reflection.SERVICE_NAME], made)
    ignored = sorted(
        {option for name in sessions.policy.profiles.options for option in sessions.policy.profiles.ignored(name)}
    )
    _log.info("decoding options left to the engine", options=",".join(ignored))
    if not settings.grpc_tls_cert_file:
        _log.warning("gRPC is served without TLS", setting="--grpc-tls-cert-file, --grpc-tls-key-file")
    return made


def _add_health(made: Any, service: Service) -> None:
    """``grpc.health.v1``: serving until the server begins to end."""
    servicer = health.HealthServicer()
    serving, leaving = health_pb2.HealthCheckResponse.SERVING, []

    async def say(status: int) -> None:
        for name in ("", SERVICE):
            await servicer.set(name, status)

    health_pb2_grpc.add_HealthServicer_to_server(servicer, made)
    loop = asyncio.get_running_loop()
    leaving.append(loop.create_task(say(serving)))
    service.at_drain.append(lambda: leaving.append(loop.create_task(say(health_pb2.HealthCheckResponse.NOT_SERVING))))


def session_settings(settings: Settings, *, vad_available: bool) -> SessionPolicy:
    """Who may have a session."""
    policy = SessionPolicy(
        max_sessions=settings.grpc_max_sessions,
        max_sessions_per_ip=settings.grpc_max_sessions_per_ip,
        max_sessions_per_api_key=settings.grpc_max_sessions_per_api_key,
        create_rate=settings.grpc_create_session_rps or 0.0,
        create_burst=settings.grpc_create_session_burst,
        bytes_rate=settings.grpc_max_audio_bytes_per_sec or 0.0,
        bytes_burst=settings.grpc_max_audio_bytes_per_sec_burst,
        require_api_key=settings.grpc_require_api_key,
        vad_silence_seconds=settings.grpc_vad_silence,
        vad_threshold=settings.grpc_vad_threshold,
        vad_slots=settings.grpc_vad_model_pool_size,
        vad_growth=settings.grpc_vad_model_pool_growth_factor,
        vad_available=vad_available,
        language=settings.grpc_language,
        language_fix=settings.grpc_language_fix,
        task=settings.grpc_task,
        profiles=Profiles(settings.grpc_decode_profiles, settings.grpc_default_decode_profile),
        unstreamed_seconds=settings.grpc_session_timeout_sec,
        final_on_vad=settings.grpc_emit_final_on_vad,
        signing_secret=settings.grpc_signing_secret,
    )
    if not settings.unlimited:
        return policy
    return replace(
        policy,
        max_sessions=None,
        max_sessions_per_ip=None,
        max_sessions_per_api_key=None,
        create_rate=0.0,
        bytes_rate=0.0,
        vad_slots=None,
        unstreamed_seconds=None,
    )


def stream_settings(settings: Settings) -> StreamPolicy:
    """The limits of a stream."""
    policy = StreamPolicy(
        sample_rate=settings.grpc_sample_rate,
        max_chunk_seconds=None if settings.grpc_max_chunk_ms is None else settings.grpc_max_chunk_ms / 1000,
        max_audio_seconds=settings.grpc_max_audio_seconds_per_session,
        partial_interval_seconds=settings.grpc_partial_decode_interval_sec,
        speech_rms_threshold=settings.grpc_speech_rms_threshold,
        session_timeout_seconds=settings.grpc_session_timeout_sec,
        decode_timeout_seconds=settings.grpc_decode_timeout_sec,
        decode_queue_seconds=settings.grpc_decode_queue_timeout_sec,
        max_pending_results=settings.grpc_max_pending_decodes_per_stream,
    )
    if not settings.unlimited:
        return policy
    return replace(
        policy,
        max_chunk_seconds=None,
        max_audio_seconds=None,
        session_timeout_seconds=None,
        decode_timeout_seconds=None,
        decode_queue_seconds=None,
        max_pending_results=None,
    )


def _hearing_settings(settings: Settings, policy: StreamPolicy) -> SessionSettings:
    """Audio is never dropped: a stream whose audio waits is not read. The end of the wait for a text is the stream's own affair."""
    bounds = [settings.grpc_max_buffer_sec]
    if settings.grpc_max_buffer_bytes is not None:
        bounds.append(seconds_of(settings.grpc_max_buffer_bytes))
    known = [bound for bound in bounds if bound is not None and not settings.unlimited]
    finish_seconds = _EVER if policy.decode_timeout_seconds is None else policy.decode_timeout_seconds + 60.0
    own = session_policy(settings)
    return replace(own, max_queued_seconds=min([*known, own.max_queued_seconds]), finish_seconds=finish_seconds)


def _model_chooser(service: Service) -> Callable[[str | None], str | None]:
    """A model that is not loaded is the default one; clients that name none get one after the other."""
    turn = 0

    def choose(name: str | None) -> str | None:
        nonlocal turn
        models = service.models
        if name is not None:
            try:
                return models.find(name).id
            except UnknownModelError:
                return None
        offered = [model.id for model in models if not model.leaving]
        if len(offered) < 2:
            return None
        turn += 1
        return offered[(turn - 1) % len(offered)]

    return choose


def credentials(settings: Settings) -> Any:
    """What TLS needs; None for plain text.

    Raises:
        ConfigError: one of the two files is missing, or they do not go together.
    """
    certificate, key = settings.grpc_tls_cert_file, settings.grpc_tls_key_file
    flags = "--grpc-tls-cert-file and --grpc-tls-key-file"
    if not certificate and not key:
        if settings.grpc_tls_required:
            raise ConfigError(f"--grpc-tls-required: {flags} are needed")
        return None
    if not certificate or not key:
        raise ConfigError(f"{flags} are needed both, only one is given")
    for flag, name in (("--grpc-tls-cert-file", certificate), ("--grpc-tls-key-file", key)):
        if not Path(name).is_file():
            raise ConfigError(f"{flag}={name}: there is no such file")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key, password="")
        pair = Path(key).read_bytes(), Path(certificate).read_bytes()
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{flags}: no certificate with its key, in PEM and without a password: {error}") from None
    return grpc.ssl_server_credentials([pair])
