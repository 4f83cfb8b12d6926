"""Engines made from the settings, not started."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from server.config import ConfigError, Settings
from server.engines.base import ChatEngine, Engine, EngineError, EngineInfo

_CUDA_DEVICE = Path("/dev/nvidiactl")
_VOXTRAL = Path("models/voxtral")
_NANO = Path(__file__).resolve().parents[1] / "models" / "nano"


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
    if chosen == "whisper":
        return _whisper(settings), reason
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


def _whisper(settings: Settings) -> Engine:
    from server.engines.whisper.engine import WhisperEngine
    from server.engines.whisper.settings import WhisperSettings

    try:
        return WhisperEngine(
            WhisperSettings(
                model=settings.whisper_model,
                model_dir=settings.whisper_model_dir,
                download=settings.whisper_download,
                device=settings.whisper_device,
                compute_type=settings.whisper_compute_type.strip().lower(),
                cpu_threads=settings.whisper_cpu_threads,
                workers=settings.whisper_workers,
                slots=settings.whisper_slots,
                profile=settings.whisper_profile,
                task=settings.whisper_task,
                language=settings.whisper_language.strip(),
                default_delay_seconds=settings.delay_ms / 1000,
                partial_interval_seconds=settings.whisper_interval_seconds,
                window_seconds=settings.whisper_window_seconds,
                prompt_characters=settings.whisper_prompt_characters,
                vad_filter=settings.whisper_vad,
            )
        )
    except EngineError as error:
        raise ConfigError(f"--engine=whisper: {error}") from None


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
