"""Who may come in to the operations plane: allowed networks, then a rate for each client, then tokens."""

from __future__ import annotations

import hmac
import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence

import structlog
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.core.limits import TokenBuckets
from server.core.rpc_figures import RpcFigures
from server.endpoints.access import Clients, Network, within
from server.endpoints.auth import bearer_key
from wire.stt.errors import (
    ADMIN_API_DISABLED,
    ADMIN_UNAUTHORIZED,
    HTTP_IP_FORBIDDEN,
    HTTP_RATE_LIMITED,
    OBS_UNAUTHORIZED,
    SttRefusedError,
)

_log = structlog.get_logger("earmark.operations")

_ON = {"1", "true", "yes", "on"}


class Switches:
    """Tokens and switches, looked up in the environment at each request, so that a token can be changed without a restart."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str) -> str:
        """Trimmed; empty when it is not set."""
        return self._environment.get(name, "").strip()

    def on(self, name: str, *words: str) -> bool:
        """Whether it says 1, true, yes, on or one of ``words``."""
        return self.text(name).lower() in _ON | set(words)

    @property
    def minimal_health(self) -> bool:
        """Whether health is told to everybody, but details only to who has the token."""
        return self.on("STT_PUBLIC_HEALTH", "minimal") or self.on("STT_HEALTH_DETAIL_MODE", "token")

    def may_observe(self, request: HTTPConnection) -> bool:
        """Whether the request carries the observability token, or none is set."""
        token = self.text("STT_OBSERVABILITY_TOKEN")
        return not token or _same(bearer_key(request), token)

    def check_observer(self, request: HTTPConnection) -> None:
        """Raises ``SttRefusedError`` without the token."""
        if not self.may_observe(request):
            raise SttRefusedError(OBS_UNAUTHORIZED, "Authorization: Bearer with the observability token is expected")

    def check_admin(self, request: HTTPConnection) -> None:
        """Raises ``SttRefusedError`` when the admin API is off, or without its token."""
        token = self.text("STT_ADMIN_TOKEN")
        if not self.on("STT_ADMIN_ENABLED") or not token:
            raise SttRefusedError(
                ADMIN_API_DISABLED, "the admin API is off; STT_ADMIN_ENABLED=true and STT_ADMIN_TOKEN switch it on"
            )
        if not _same(bearer_key(request), token):
            raise SttRefusedError(ADMIN_UNAUTHORIZED, "Authorization: Bearer with the admin token is expected")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def read_allowlist(texts: Sequence[str]) -> list[Network]:
    """The networks; what is none is logged and left out. A list of nothing but such entries lets nobody in, see ``Guard``."""
    networks: list[Network] = []
    for text in texts:
        try:
            networks.append(ipaddress.ip_network(text, strict=False))
        except ValueError as error:
            _log.warning("an entry of the allow-list is left out", entry=text, error=str(error))
    return networks


class Guard:
    """ASGI middleware: the allow-list (``None``: everybody), then the rate limit, on every path; then the admin token on paths of the admin
    API, of whose bodies nothing is read before.
    """

    def __init__(
        self,
        app: ASGIApp,
        clients: Clients,
        allowed: Sequence[Network] | None,
        buckets: TokenBuckets,
        switches: Switches,
        figures: RpcFigures,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._clients, self._allowed, self._buckets = app, clients, allowed, buckets
        self._switches, self._figures, self._clock = switches, figures, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            self._check(self._clients.address(connection))
            if scope["path"].startswith(
                "/admin"
            ):  # as routes see it: an URL would be put together with the client's Host
                self._switches.check_admin(connection)
        except SttRefusedError as refused:
            await refusal(refused, self._figures)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, client: str) -> None:
        if self._allowed is not None and not within(client, self._allowed):
            raise SttRefusedError(HTTP_IP_FORBIDDEN, f"{client} is not on the allow-list")
        if not self._buckets.take(client, self._clock()):
            raise SttRefusedError(
                HTTP_RATE_LIMITED,
                f"more than {self._buckets.rate:g} requests a second, {self._buckets.burst:g} at once; try again later",
            )


def refusal(refused: SttRefusedError, figures: RpcFigures, detail: object = None) -> JSONResponse:
    """The answer to a request that is refused, counted. ``detail`` says more than the table of errors has a place for."""
    figures.error(refused.error.status)
    body: dict[str, object] = dict(refused.error.body(refused.message))
    if detail is not None:
        body["detail"] = detail
    return JSONResponse(body, refused.error.http_status)
