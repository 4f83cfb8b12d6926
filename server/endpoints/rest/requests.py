"""What every request of the REST surface passes: its key, its client's allowance, a place, a bounded body, and its errors' shape."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog
from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from server.core.limits import Admission, Allowance, FixedWindows
from server.endpoints.access import Clients
from server.endpoints.auth import Keys, bearer_key
from server.endpoints.requests import ClientGoneError, until_gone
from server.endpoints.rest.work import SURFACE
from server.protocols.rest import (
    Refusal,
    broken,
    invalid,
    plain,
    rate_limited,
    too_much,
    unavailable,
)
from server.service import Service
from wire.errors import NOT_JSON
from wire.rest import FieldError

_log = structlog.get_logger("earmark.rest")

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

_LEAST_BYTES_PER_SECOND = 10_000
"""Of an upload, on the average after its first ``idle_seconds``; a third of what live speech takes."""

_CLIENT_GONE = 499
"""Status in the log of a request whose client did not wait; nobody receives it."""


@dataclass(frozen=True, slots=True)
class BodyBounds:
    """Of one request: no more bytes than ``most_bytes[group]``, something at least every ``idle_seconds`` and not too slowly.

    ``most_held_bytes`` is for the bodies of all requests together. ``None`` is no bound.
    """

    most_bytes: Mapping[str, int | None]
    idle_seconds: float | None
    most_held_bytes: int | None


@dataclass(slots=True, eq=False)
class _Visit:
    """A request that is worked on."""

    work: asyncio.Task[Response] | None = None
    sent_home: bool = False

    @property
    def busy(self) -> bool:
        return True

    def close(self, code: int, reason: str) -> None:
        """Give the work up; the client is told that the server is shutting down."""
        del code, reason
        self.sent_home = True
        if self.work is not None:
            self.work.cancel()


class Door:
    """See the module. ``rates`` has the allowance of each group of paths, ``general`` among them."""

    def __init__(
        self,
        service: Service,
        keys: Keys | None,
        clients: Clients,
        rates: Mapping[str, FixedWindows],
        admission: Admission,
        bodies: BodyBounds,
        *,
        debug: bool = False,
    ) -> None:
        self.service = service
        self.keys = keys
        self.clients = clients
        self.bodies = bodies
        self._rates = rates
        self._admission = admission
        self._debug = debug
        self._held_bytes = 0

    def route_class(self, group: str, *, worked_on: bool = True) -> type[APIRoute]:
        """A kind of route whose requests come through here. Only those ``worked_on`` need a place and a server that is not leaving."""
        door = self

        class RestRoute(APIRoute):
            def get_route_handler(self) -> Handler:
                handle = super().get_route_handler()

                async def handler(request: Request) -> Response:
                    return await door._serve(_BoundedRequest(request, door, group), handle, group, worked_on)

                return handler

        return RestRoute

    def router(self, group: str, *, worked_on: bool = True) -> APIRouter:
        """A router of such routes."""
        return APIRouter(route_class=self.route_class(group, worked_on=worked_on))

    def count(self, reason: str) -> None:
        """Somebody is sent away."""
        self.service.metrics.connections_rejected.labels(SURFACE, reason).inc()

    # ---- one request

    async def _serve(self, request: _BoundedRequest, handle: Handler, group: str, worked_on: bool) -> Response:
        client = self.clients.address(request)
        _log.info("request", surface=SURFACE, method=request.method, path=request.url.path)
        allowance = self._rates[group].take(client, asyncio.get_running_loop().time())
        try:
            self._check_rate(group, allowance)
            response = await (self._visit(request, handle) if worked_on else handle(request))
        except Exception as error:  # noqa: BLE001 - every one gets an answer in the surface's shape; bugs are logged
            response = self._answer_to(error)
        finally:
            self._held_bytes -= request.held_bytes
        if allowance.limit:
            response.headers["X-RateLimit-Limit"] = str(allowance.limit)
            response.headers["X-RateLimit-Remaining"] = str(allowance.remaining)
            response.headers["X-RateLimit-Reset"] = str(math.ceil(time.time() + allowance.reset_seconds))
        _log.info(
            "answered", surface=SURFACE, method=request.method, path=request.url.path, status=response.status_code
        )
        return response

    def _check_rate(self, group: str, allowance: Allowance) -> None:
        if not allowance.allowed:
            self.count("rate_limited")
            seconds = max(1, math.ceil(allowance.reset_seconds))
            raise rate_limited(allowance.limit, self._rates[group].window_seconds, seconds)

    async def _visit(self, request: _BoundedRequest, handle: Handler) -> Response:
        """Have a key and a place, be waited for by a server that ends, and be given up with the client that leaves."""
        service = self.service
        if self.keys is not None and bearer_key(request) not in self.keys:
            self.count("authentication_failed")
            raise plain(401, "a key is needed: Authorization: Bearer KEY")
        if service.draining:
            self.count("server_shutting_down")
            raise unavailable("the server is shutting down")
        if not self._admission.enter():
            self.count("server_at_capacity")
            raise unavailable(f"all {self._admission.limit} requests at once are taken; try again later")
        visit = _Visit()
        service.guests.add(visit)
        service.metrics.connections.labels(SURFACE).inc()
        active = service.metrics.connections_active.labels(SURFACE)
        active.inc()
        try:
            await request.take_in()
            if visit.sent_home:
                raise unavailable("the server is shutting down")
            visit.work = asyncio.create_task(handle(request))
            return await until_gone(request, visit.work)
        except asyncio.CancelledError:
            if visit.sent_home:
                raise unavailable("the server is shutting down") from None
            raise
        finally:
            active.dec()
            service.guests.discard(visit)
            self._admission.leave()

    # ---- errors

    def _answer_to(self, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect | ClientGoneError):
            return Response(status_code=_CLIENT_GONE)
        refusal = self._refusal(error)
        self.service.metrics.errors.labels(SURFACE, refusal.code).inc()
        response = error_response(refusal)
        if isinstance(error, StarletteHTTPException):
            response.headers.update(error.headers or {})
        return response

    def _refusal(self, error: Exception) -> Refusal:
        """What an error is to the client."""
        match error:
            case Refusal():
                return error
            case RequestValidationError():
                faults = [FieldError(loc=list(e["loc"]), msg=e["msg"], type=e["type"]) for e in error.errors()]
                return invalid(faults)
            case StarletteHTTPException():
                return plain(error.status_code, str(error.detail))
            case _:
                _log.error("request failed", surface=SURFACE, exc_info=error)
                return broken(f"{type(error).__name__}: {error}" if self._debug else None)

    # ---- bodies

    def hold(self, size: int) -> None:
        """So many more bytes of bodies are in memory.

        Raises:
            Refusal: they would be too many.
        """
        most = self.bodies.most_held_bytes
        if most is not None and self._held_bytes + size > most:
            self.count("server_at_capacity")
            raise unavailable("too many large requests are under way; try again later")
        self._held_bytes += size


class _BoundedRequest(Request):
    """A request whose body is read piece by piece, within bounds, and kept once."""

    def __init__(self, request: Request, door: Door, group: str) -> None:
        super().__init__(request.scope, request.receive, request._send)
        self._door = door
        self._most_bytes = door.bodies.most_bytes.get(group)
        self._content = bytearray()
        self.held_bytes = 0

    async def take_in(self) -> None:
        """Read the whole body.

        Raises:
            Refusal: it is too long, or stopped coming.
            ClientDisconnect: nobody is there any more.
        """
        declared = self.headers.get("content-length", "")
        if declared.isdecimal() and self._most_bytes is not None and int(declared) > self._most_bytes:
            raise too_much(self._most_bytes)
        stream = aiter(self.stream())
        began = asyncio.get_running_loop().time()
        while True:
            try:
                async with asyncio.timeout_at(self._patience(began)):
                    piece = await anext(stream, None)
            except TimeoutError:
                raise plain(408, "the body stopped coming, or comes too slowly") from None
            if piece is None:
                break
            self._door.hold(len(piece))
            self.held_bytes += len(piece)
            self._content += piece  # a join at the end would hold everybody up, of 100 MB for 0.1 s
            if self._most_bytes is not None and self.held_bytes > self._most_bytes:
                raise too_much(self._most_bytes)

    def _patience(self, began: float) -> float | None:
        """Until when the next piece has to come: nothing may be missing for long, nor may little come for ever."""
        idle = self._door.bodies.idle_seconds
        if idle is None:
            return None
        now = asyncio.get_running_loop().time()
        return min(now + idle, began + idle + self.held_bytes / _LEAST_BYTES_PER_SECOND)

    async def body(self) -> bytes:
        """Whether there is one. FastAPI keeps what this returns for as long as the request lasts, so it is not all of it."""
        return bytes(self._content[:1])

    async def json(self) -> Any:
        """The body's JSON; its bytes are let go.

        Raises:
            json.JSONDecodeError: it is none. Text that could not be sent back, such as half a surrogate pair, is none either.
        """
        content, self._content = self._content, bytearray()
        try:
            return await asyncio.to_thread(msgspec.json.decode, content)
        except (*NOT_JSON, ValueError) as error:
            raise json.JSONDecodeError(str(error)[:200], "", 0) from None


def error_response(refusal: Refusal) -> Response:
    """The refusal as it is sent."""
    headers = {} if refusal.retry_seconds is None else {"Retry-After": str(refusal.retry_seconds)}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if refusal.status == 408:
        headers["Connection"] = "close"
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return Response(refusal.body(now), refusal.status, headers, "application/json")
