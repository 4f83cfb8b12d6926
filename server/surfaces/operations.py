"""The operations plane, an application of its own: guards before every path, and errors as one kind of object."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from server.config import ConfigError, Settings
from server.core.limits import TokenBuckets
from server.endpoints.access import Clients, Network, read_network
from server.endpoints.admin import Plans, admin_routes
from server.endpoints.guards import Guard, Switches, read_allowlist, refusal
from server.endpoints.operations import HealthRules, observing_routes
from server.engines.loading import Loader
from server.service import Service
from wire.stt.errors import SttError, SttRefusedError

REQUEST_INVALID = "ERR4000"
"""Ours: for requests of the plane that make no sense, of which the gRPC system's table has no row."""


def operations_app(
    settings: Settings, service: Service, loader: Loader, plans: Plans, environment: Mapping[str, str] = os.environ
) -> FastAPI:
    """Tokens and switches are looked up in ``environment`` at each request; its rate limit is off with ``--unlimited``.

    Raises:
        ConfigError: a trusted proxy cannot be understood.
    """
    switches = Switches(environment)
    app = FastAPI(title="Earmark operations", docs_url=None, redoc_url=None, openapi_url=None)
    rules = HealthRules(
        settings.health_window_seconds,
        settings.health_min_events,
        settings.health_max_timeout_ratio,
        settings.health_min_success_ratio,
    )
    app.include_router(
        observing_routes(
            service,
            switches,
            rules,
            surfaces=settings.surfaces,
            show_api_keys=settings.ops_show_api_keys,
            clock=_loop_time,
        )
    )
    app.include_router(admin_routes(loader, plans, switches))
    app.add_middleware(
        Guard,
        clients=Clients(_proxies(settings)),
        allowed=read_allowlist(settings.ops_allowlist) if settings.ops_allowlist else None,
        buckets=TokenBuckets(0.0 if settings.unlimited else settings.ops_rate, settings.ops_burst),
        switches=switches,
        figures=service.other_figures,
    )
    _answer_errors(app, service)
    return app


def _loop_time() -> float:
    return asyncio.get_running_loop().time()


def _proxies(settings: Settings) -> list[Network]:
    names = settings.ops_trusted_proxies or settings.trusted_proxies
    try:
        return [network for name in names for network in read_network(name)]
    except ValueError as error:
        raise ConfigError(f"--ops-trusted-proxies (or STT_HTTP_TRUSTED_PROXIES): {error}") from None


def _answer_errors(app: FastAPI, service: Service) -> None:
    async def refused(_: Request, error: Any) -> JSONResponse:
        return refusal(error, service.other_figures)

    async def invalid(_: Request, error: Any) -> JSONResponse:
        faults = jsonable_encoder(error.errors(), exclude={"ctx", "url"})
        told = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in faults)
        why = SttError(REQUEST_INVALID, "REQUEST_INVALID", "INVALID_ARGUMENT", 422)
        return refusal(SttRefusedError(why, told), service.other_figures, faults)

    async def other(request: Request, error: Any) -> JSONResponse:
        status = "NOT_FOUND" if error.status_code == 404 else "INVALID_ARGUMENT"
        why = SttError(REQUEST_INVALID, "REQUEST_INVALID", status, error.status_code)
        answer = refusal(
            SttRefusedError(why, f"{request.method} {request.scope['path']:.200}: {error.detail}"),
            service.other_figures,
        )
        answer.headers.update(error.headers or {})
        return answer

    app.add_exception_handler(SttRefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)
