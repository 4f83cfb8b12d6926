"""The WebSocket paths: who may come in, and the socket that the connection shell runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from fastapi import APIRouter, WebSocket
from starlette.responses import JSONResponse
from starlette.websockets import WebSocketDisconnect

from server.connection import Connection, Surface
from server.core.limits import Admission
from server.endpoints.access import Clients
from server.endpoints.auth import BROWSER_PROTOCOL, Keys, bearer_key, browser_key, envelope_key, openai_error
from server.protocols import yap
from server.protocols.base import Close, Reply
from server.service import Service

_log = structlog.get_logger("earmark.access")


class AsgiSocket:
    """A Starlette WebSocket as the connection shell wants it.

    ``accept``, ``send`` and ``close`` raise ``WebSocketDisconnect`` when the client is gone.
    """

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def accept(self) -> None:
        with _closed_by_the_server():
            # a browser that offers subprotocols gives up unless one is taken
            browser = BROWSER_PROTOCOL in self._websocket.scope.get("subprotocols", ())
            await self._websocket.accept(BROWSER_PROTOCOL if browser else None)

    async def receive(self) -> str | bytes | None:
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            return None
        text: str | None = message.get("text")
        if text is not None:
            return text
        data: bytes = message["bytes"]
        return data

    async def send(self, frame: str) -> None:
        with _closed_by_the_server():
            await self._websocket.send({"type": "websocket.send", "text": frame})

    async def close(self, code: int, reason: str) -> None:
        with _closed_by_the_server():
            await self._websocket.close(code, reason)


@contextmanager
def _closed_by_the_server() -> Iterator[None]:
    """uvicorn closes a socket by itself whose client breaks the framing, and has no better error for who still sends."""
    try:
        yield
    except RuntimeError as error:
        raise WebSocketDisconnect(1006) from error


async def serve(service: Service, websocket: WebSocket, surface: Surface, admission: Admission, client: str) -> None:
    """Accept an admitted socket and run it to its end."""
    socket = AsgiSocket(websocket)
    try:
        await socket.accept()
        connection = Connection(socket, surface, service.resources, client)
        service.guests.add(connection)
        _log.info("accepted", surface=surface.name, active=admission.active)
        try:
            await connection.run()
        finally:
            service.guests.discard(connection)
    except* WebSocketDisconnect:
        pass  # the client went away while something was being sent to it
    finally:
        admission.leave()
        _log.info("closed", surface=surface.name, active=admission.active)


async def _turn_away(websocket: WebSocket, steps: tuple[Reply, Close]) -> None:
    reply, close = steps
    socket = AsgiSocket(websocket)
    try:
        await socket.accept()
        await socket.send(reply.frame)
        await socket.close(close.code, close.reason)
    except WebSocketDisconnect:
        pass  # it did not wait for the answer


def envelope_routes(
    service: Service, surface: Surface, admission: Admission, keys: Keys, clients: Clients
) -> APIRouter:
    """``/api/asr-streaming``: key, then capacity, then accept; a rejection is told on the accepted socket."""
    router = APIRouter()

    @router.websocket("/api/asr-streaming")
    async def asr_streaming(websocket: WebSocket) -> None:
        if envelope_key(websocket) not in keys:
            service.metrics.connections_rejected.labels(surface.name, "authentication_failed").inc()
            await _turn_away(websocket, yap.rejection("authentication_failed", "missing or wrong API key"))
            return
        if service.draining or not admission.enter():
            why = "the server is shutting down" if service.draining else f"all {admission.limit} connections are taken"
            service.metrics.connections_rejected.labels(surface.name, "server_at_capacity").inc()
            await _turn_away(websocket, yap.rejection("server_at_capacity", f"{why}; try again later"))
            return
        await serve(service, websocket, surface, admission, clients.address(websocket))

    return router


def realtime_routes(
    service: Service,
    surface: Surface,
    admission: Admission,
    keys: Keys | None,
    clients: Clients,
    openai: Surface | None = None,
) -> APIRouter:
    """``/v1/realtime``: open unless keys are given, and then refused in the handshake as vLLM and OpenAI do.

    With ``openai``, clients that ask for ``intent=transcription`` speak OpenAI's dialect from the first frame on.
    """
    router = APIRouter()

    @router.websocket("/v1/realtime")
    async def realtime(websocket: WebSocket) -> None:
        transcription = openai is not None and websocket.query_params.get("intent") == "transcription"
        asked = openai if openai is not None and transcription else surface
        key = bearer_key(websocket) or (browser_key(websocket) if transcription else "")
        if keys is not None and key not in keys:
            service.metrics.connections_rejected.labels(asked.name, "authentication_failed").inc()
            body = openai_error("invalid_api_key", "missing or wrong API key") if transcription else "Unauthorized"
            await websocket.send_denial_response(JSONResponse({"error": body}, 401))
            return
        if service.draining or not admission.enter():
            service.metrics.connections_rejected.labels(asked.name, "server_at_capacity").inc()
            why = "Service unavailable, try again later"
            body = openai_error("server_at_capacity", why, "server_error") if transcription else why
            await websocket.send_denial_response(JSONResponse({"error": body}, 503))
            return
        await serve(service, websocket, asked, admission, clients.address(websocket))

    return router
