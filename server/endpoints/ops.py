"""What operators and probes ask: health, metrics, models, version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse

from server.endpoints.auth import Keys, bearer_key, openai_error
from server.engines.base import ChatEngine
from server.engines.registry import Model
from server.service import Service

_STARTED = int(time.time())


def project_version() -> str:
    """The installed version; ``0+source`` when run from a source tree."""
    try:
        return version("earmark")
    except PackageNotFoundError:
        return "0+source"


def ops_routes(service: Service, surfaces: Sequence[str], keys: Keys | None = None) -> APIRouter:
    """Health, metrics and models. While draining, health is 503. Where keys are given, one is required of everything below ``/v1``."""
    router = APIRouter()

    @router.get("/")
    async def root() -> dict[str, object]:
        return {
            "status": "ok",
            "name": "Earmark",
            "version": project_version(),
            "engine": service.models.default.engine.info.name,
            "model": service.models.default.names[0],
            "docs_url": "/docs",
            "health_url": "/health",
            "surfaces": list(surfaces),
            "require_key": keys is not None,
        }

    @router.get("/healthz")
    async def healthz() -> JSONResponse:
        status = _status(service)
        return JSONResponse({"status": "ok" if status == "healthy" else status}, 200 if status == "healthy" else 503)

    @router.get("/health")
    async def health() -> JSONResponse:
        status = _status(service)
        model = service.models.default
        body = {
            "status": status,
            "timestamp": time.time(),
            "engine": model.engine.info.name,
            "model": model.names[0],
            "connections": len(service.guests),
            **{f"engine_{figure}": value for figure, value in model.engine.metrics().items()},
            "chat": _chat_status(service.chat),
        }
        return JSONResponse(body, 200 if status == "healthy" else 503)

    @router.get("/ping")
    async def ping() -> Response:
        return Response()

    @router.get("/version")
    async def version_() -> dict[str, str]:
        return {"version": project_version()}

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(exposition(service, surfaces), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        if keys is not None and bearer_key(request) not in keys:
            return JSONResponse({"error": "Unauthorized"}, 401)
        return JSONResponse(
            {"object": "list", "data": [_entry(name, model) for name, model in service.models.owners.items()]}
        )

    @router.get("/v1/models/{name:path}")
    async def model(name: str, request: Request) -> Response:
        if keys is not None and bearer_key(request) not in keys:
            return JSONResponse({"error": "Unauthorized"}, 401)
        found = service.models.owners.get(name)
        if found is not None:
            return JSONResponse(_entry(name, found))
        message = f"the model {name!r:.200} is not served here; GET /v1/models lists those that are"
        return JSONResponse({"error": openai_error("model_not_found", message, param="model")}, 404)

    return router


def exposition(service: Service, surfaces: Sequence[str]) -> bytes:
    """All metrics in the Prometheus text format, figures of the moment as they are now."""
    metrics = service.metrics
    metrics.tasks.set(len(asyncio.all_tasks()))
    for figure, value in service.models.default.engine.metrics().items():
        metrics.engine.labels(figure).set(value)
    metrics.model.clear()  # of those that were unloaded
    for model in service.models:
        for figure, value in (model.engine.metrics() | {"clients": len(model.holders)}).items():
            metrics.model.labels(model.id, figure).set(value)
    for figure, value in service.chat.metrics().items() if service.chat else ():
        metrics.chat.labels(figure).set(value)
    for figure, known in service.figures.snapshot().items() if "grpc" in surfaces else ():
        if isinstance(known, int | float):
            metrics.rpc.labels(figure).set(known)
    return generate_latest(metrics.registry)


def _status(service: Service) -> str:
    """``healthy``, or why nobody should be sent here. An engine that has died says ``failed`` among its figures."""
    if service.models.default.engine.metrics().get("failed"):
        return "engine_failed"
    return "draining" if service.draining else "healthy"


def _chat_status(chat: ChatEngine | None) -> dict[str, object] | None:
    """The chat engine beside the one that streams, which its death does not concern."""
    if chat is None:
        return None
    figures = chat.metrics()
    status = "engine_failed" if figures.get("failed") else "healthy"
    return {"status": status, "engine": chat.info.name, "model": chat.info.model, **figures}


def _entry(name: str, model: Model) -> dict[str, object]:
    """The model under one of its names."""
    info = model.engine.info
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "earmark",
        # additive, for clients that want to know what they measure
        "engine": info.name,
        "caveat": info.caveat,
        "slots": info.slots,
        "languages": list(info.languages),
        "delay_ms": round(info.default_delay_seconds * 1000),
        "delays_ms": [round(delay * 1000) for delay in info.delays_seconds],
    }
