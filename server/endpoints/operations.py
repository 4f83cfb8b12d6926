"""What the operations plane tells: metrics in two forms, health, the machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from server.core.figures import together
from server.core.rpc_figures import RpcFigures
from server.endpoints.guards import Switches
from server.endpoints.ops import exposition
from server.endpoints.system import System
from server.service import Service

_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_NOT_A_NAME = re.compile(r"[^a-zA-Z0-9_]")


@dataclass(frozen=True, slots=True)
class HealthRules:
    """When the models count as well: over the last ``window_seconds``, once ``min_events`` utterances ended in them, less than
    ``max_timeout_ratio`` of them by a timeout and at least ``min_success_ratio`` with a text.
    """

    window_seconds: float = 60.0
    min_events: int = 5
    max_timeout_ratio: float = 0.5
    min_success_ratio: float = 0.5

    def hold(self, figures: RpcFigures, now: float) -> bool:
        """Whether what happened lately is well."""
        recent = figures.recent(now, self.window_seconds)
        count = recent.total()
        if count < self.min_events:
            return True
        return (
            recent["timeout"] / count < self.max_timeout_ratio and recent["success"] / count >= self.min_success_ratio
        )


def observing_routes(
    service: Service,
    switches: Switches,
    rules: HealthRules,
    *,
    surfaces: Sequence[str],
    show_api_keys: bool,
    clock: Callable[[], float],
) -> APIRouter:
    """``/metrics``, ``/metrics.json``, ``/health``, ``/system``. ``surfaces`` are those served here; ``clock`` is that
    of the figures, the event loop's.
    """
    router = APIRouter()
    system = System()

    def snapshot() -> dict[str, object]:
        return _figures(service).snapshot(by_api_key=show_api_keys)

    @router.get("/metrics")
    async def metrics(request: Request) -> Response:
        switches.check_observer(request)
        text = flattened(snapshot()).encode() + exposition(service, surfaces)
        return Response(text, headers={"content-type": _TEXT})

    @router.get("/metrics.json")
    async def metrics_json(request: Request) -> JSONResponse:
        switches.check_observer(request)
        return JSONResponse(snapshot())

    @router.get("/system")
    async def system_(request: Request) -> JSONResponse:
        switches.check_observer(request)
        return JSONResponse(system.told(gpus=switches.on("STT_ENABLE_GPU_METRICS")))

    @router.get("/health")
    async def health(request: Request) -> JSONResponse:
        minimal = switches.minimal_health
        if not minimal:
            switches.check_observer(request)
        healthy, details = _health(service, rules, rpc="grpc" in surfaces, now=clock())
        body: dict[str, object] = {"status": "ok" if healthy else "error"}
        # minimal health gives details to who has the token; where none is set there is nobody to have it
        if not minimal or (switches.text("STT_OBSERVABILITY_TOKEN") and switches.may_observe(request)):
            body |= details
        return JSONResponse(body, 200 if healthy else 503 if minimal else 500)

    return router


def _figures(service: Service) -> RpcFigures:
    return together((service.figures, service.other_figures))


def _health(service: Service, rules: HealthRules, *, rpc: bool, now: float) -> tuple[bool, dict[str, object]]:
    engines = [model.engine for model in service.models]
    failed = [engine for engine in engines if engine.metrics().get("failed")]
    figures = _figures(service)
    pool = bool(engines) and not failed and rules.hold(figures, now)
    running = "grpc" in service.serving and not service.draining
    latency = figures.inference
    details: dict[str, object] = {
        "model_pool_healthy": pool,
        "models_loaded": bool(engines),
        "model_count": len(engines),
        "model_worker_total": sum(engine.info.slots for engine in engines),
        "model_worker_shutdown": sum(engine.info.slots for engine in failed),
        "active_sessions": figures.sessions,
        "decode_queue_depth": figures.decodes_pending + figures.decodes_waiting,
        "decode_latency_avg": latency.total / latency.count if latency.count else 0.0,
        "decode_latency_max": latency.largest,
        "grpc_running": running,
        "grpc_enabled": rpc,
        "draining": service.draining,
    }
    return pool and not service.draining and (running or not rpc), details


def flattened(values: dict[str, object]) -> str:
    """Every number as a gauge of the Prometheus text format 0.0.4: ``stt_KEY``, or ``stt_KEY_INNER`` for those of an inner object. Names
    that come out the same are added up.
    """
    gauges: dict[str, float] = {}
    for key, value in values.items():
        inner = {f"{key}_{name}": number for name, number in value.items()} if isinstance(value, dict) else {key: value}
        for name, number in inner.items():
            if isinstance(number, int | float):
                name_ = f"stt_{_NOT_A_NAME.sub('_', name)}"
                gauges[name_] = gauges.get(name_, 0.0) + float(number)
    return "".join(
        f"# HELP {name} {name.removeprefix('stt_').replace('_', ' ')}\n# TYPE {name} gauge\n{name} {value}\n"
        for name, value in gauges.items()
    )
