"""The session paths: creating and deleting them over HTTP, and their audio and control sockets."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fastapi import APIRouter, Request, Response, WebSocket
from prometheus_client import Counter, Gauge, Histogram
from starlette.responses import JSONResponse

from server.connection import Connection, Surface
from server.core.conversations import Conversation, Conversations
from server.core.limits import Admission, Allowance, FixedWindows
from server.endpoints import machine
from server.endpoints.access import Clients
from server.endpoints.auth import Keys, bearer_key
from server.endpoints.websocket import serve, turn_away
from server.metrics import Metrics
from server.protocols.base import Dialect
from server.protocols.sessions import (
    BUSY_CLOSE_CODE,
    REFUSED_CLOSE_CODE,
    UNKNOWN_CLOSE_CODE,
    AudioDialect,
    ControlDialect,
    Surroundings,
    rejection,
)
from server.service import Service
from wire import sessions

_CORS = {"Access-Control-Allow-Origin": "*"}
_PREFLIGHT = {**_CORS, "Access-Control-Allow-Methods": "*", "Access-Control-Allow-Headers": "*"}


class SessionSeries:
    """The series that monitoring of the original system reads, beside those that all surfaces have. Times are seconds."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.accepted = Counter("websocket_connections", "Audio sockets of sessions accepted", registry=registry)
        self.active = Gauge("websocket_connections_active", "Audio sockets of sessions open", registry=registry)
        self._processing = Histogram(
            "audio_processing_duration_seconds", "End of an utterance of a session to its response", registry=registry
        )
        self._inference = Histogram(
            "model_inference_duration_seconds", "What of that, and of answers to texts, is a model's", registry=registry
        )
        gpu = Gauge("gpu_memory_allocated_bytes", "GPU memory that this server holds", registry=registry)
        gpu.set_function(lambda: machine.gpus().get("gpu_memory_allocated", 0))
        self._dropped = metrics.dropped_seconds.labels("sessions")
        self._unanswered = Counter(
            "earmark_sessions_unanswered_audio_seconds", "Audio too old for the chat engine to hear", registry=registry
        )

    def inferred(self, seconds: float) -> None:
        self._inference.observe(seconds)

    def processed(self, seconds: float) -> None:
        self._processing.observe(seconds)

    def displaced(self, seconds: float) -> None:
        self._dropped.inc(seconds)

    def unanswered(self, seconds: float) -> None:
        self._unanswered.inc(seconds)


@dataclass(frozen=True, slots=True)
class Doors:
    """What the session paths are made of, one set per server. ``unlimited`` and limits of None let everybody in."""

    service: Service
    surface: Surface
    around: Surroundings
    series: SessionSeries
    admission: Admission
    creations: FixedWindows
    connections: FixedWindows

    @property
    def conversations(self) -> Conversations:
        """All sessions."""
        return self.around.conversations

    def health(self) -> dict[str, object]:
        """What ``/health`` says of sessions."""
        waiting = sum(guest.waiting for guest in self.service.guests if isinstance(guest, Connection))
        return {"active_sessions": self.conversations.active(_now()), "queue_size": waiting}


def session_routes(doors: Doors, keys: Keys | None, clients: Clients) -> APIRouter:
    """Open to everybody within limits by address; where keys are given, creating and deleting need one. The id opens the sockets.

    A socket that cannot stay is accepted and told why.
    """
    router = APIRouter()

    def locked(request: Request) -> Response | None:
        if keys is None or bearer_key(request) in keys:
            return None
        return _refusal(401, sessions.CONNECTION_FAILED, "a key is needed: Authorization: Bearer KEY", _CORS)

    @router.post("/session/create")
    async def create(request: Request) -> Response:
        refusal = locked(request)
        if refusal is not None:
            return refusal
        allowance = doors.creations.take(clients.address(request), _now())
        headers = _CORS | _rate_headers(allowance, limited=doors.creations.limit is not None)
        if not allowance.allowed:
            doors.service.metrics.errors.labels(doors.surface.name, sessions.RATE_LIMITED).inc()
            detail = (
                f"more than {allowance.limit} sessions a minute; try again in {math.ceil(allowance.reset_seconds)} s"
            )
            headers["Retry-After"] = str(math.ceil(allowance.reset_seconds))
            return _refusal(429, sessions.RATE_LIMITED, detail, headers)
        if doors.service.draining:
            return _refusal(503, sessions.CONNECTION_FAILED, "the server is shutting down", headers)
        conversation = doors.conversations.create(_now())
        if conversation is None:
            return _refusal(503, sessions.CONNECTION_FAILED, "there are as many sessions as there may be", headers)
        body = {
            "session_id": conversation.id,
            "status": "created",
            "websocket_url": f"/ws/audio/{conversation.id}",
        }
        return JSONResponse(body, headers=headers)

    @router.delete("/session/{session_id}")
    async def delete(request: Request, session_id: str) -> Response:
        refusal = locked(request)
        if refusal is not None:
            return refusal
        if not doors.conversations.delete(session_id, _now()):
            return _refusal(404, sessions.SESSION_NOT_FOUND, _unknown(session_id), _CORS)
        return JSONResponse({"status": "deleted", "session_id": session_id}, headers=_CORS)

    @router.options("/session/{path}", include_in_schema=False)
    async def preflight(path: str) -> Response:  # noqa: ARG001 - any
        return Response(headers=_PREFLIGHT)

    @router.websocket("/ws/audio/{session_id}")
    async def audio(websocket: WebSocket, session_id: str) -> None:
        conversation = await _enter(doors, clients, websocket, session_id)
        if conversation is not None:
            await _converse(doors, clients, websocket, conversation, audio=True)

    @router.websocket("/ws/control/{session_id}")
    async def control(websocket: WebSocket, session_id: str) -> None:
        conversation = await _enter(doors, clients, websocket, session_id)
        if conversation is not None:
            await _converse(doors, clients, websocket, conversation, audio=False)

    return router


async def _enter(doors: Doors, clients: Clients, websocket: WebSocket, session_id: str) -> Conversation | None:
    """The session that the socket may join, a place taken for it; None when it was turned away."""
    service = doors.service
    conversation = None
    if service.draining:
        code, message, close = sessions.CONNECTION_FAILED, "the server is shutting down", BUSY_CLOSE_CODE
    elif not doors.connections.take(clients.address(websocket), _now()).allowed:
        message = f"more than {doors.connections.limit} connections a minute"
        code, close = sessions.RATE_LIMITED, REFUSED_CLOSE_CODE
    elif (conversation := doors.conversations.find(session_id, _now())) is None:
        code, message, close = sessions.SESSION_NOT_FOUND, _unknown(session_id), UNKNOWN_CLOSE_CODE
    elif not doors.admission.enter():
        message = f"all {doors.admission.limit} connections are taken; try again later"
        code, close = sessions.CONNECTION_FAILED, BUSY_CLOSE_CODE
    else:
        return conversation
    service.metrics.connections_rejected.labels(doors.surface.name, code).inc()
    await turn_away(websocket, rejection(code, message, close))
    return None


async def _converse(
    doors: Doors, clients: Clients, websocket: WebSocket, conversation: Conversation, *, audio: bool
) -> None:
    """Run a socket that has a place."""
    conversations, series = doors.conversations, doors.series

    def dialect() -> Dialect:
        return AudioDialect(conversation, doors.around, _now()) if audio else ControlDialect(conversation, doors.around)

    @contextmanager
    def inside(connection: Connection) -> Iterator[None]:
        conversation.sockets.add(connection)
        if conversation.deleted:  # while it was being accepted
            connection.close(1000, "session deleted")
        if audio:
            series.accepted.inc()
            series.active.inc()
        try:
            yield
        finally:
            conversation.sockets.discard(connection)
            if audio:
                series.active.dec()

    conversations.enter(conversation)
    try:
        surface = replace(doors.surface, dialect=dialect)
        await serve(doors.service, websocket, surface, doors.admission, clients.address(websocket), inside)
    finally:
        conversations.leave(conversation, _now())


def _now() -> float:
    return asyncio.get_running_loop().time()


def _unknown(session_id: str) -> str:
    return f"session {session_id!r:.100} does not exist or has expired; POST /session/create makes one"


def _rate_headers(allowance: Allowance, *, limited: bool) -> dict[str, str]:
    if not limited:
        return {}
    return {
        "X-RateLimit-Limit": str(allowance.limit),
        "X-RateLimit-Remaining": str(allowance.remaining),
        "X-RateLimit-Reset": str(math.ceil(time.time() + allowance.reset_seconds)),
        "Access-Control-Expose-Headers": "X-RateLimit-Limit, X-RateLimit-Remaining, X-RateLimit-Reset, Retry-After",
    }


def _refusal(status: int, code: str, detail: str, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse({"detail": detail, "error": code}, status, headers)
