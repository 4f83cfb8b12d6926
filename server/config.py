"""Every setting of the server: its flag, its environment variables, its default and what it means, read once and checked."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

DELAYS_MS = tuple(range(80, 2401, 80))
_OFF = {"0", "none", "null", "disabled", "disable", "off"}


class ConfigError(Exception):
    """A setting is wrong. The message has one line per wrong setting: its name, its value and what is expected."""


def _off(value: Any) -> Any:
    """The words and numbers that switch a limit off, as None."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _OFF):
        return None
    try:
        return None if float(value) <= 0 else value
    except (TypeError, ValueError):
        return value


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


OptionalSeconds = Annotated[float | None, BeforeValidator(_off)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_split)]


def _setting(default: Any, *names: str, help: str, **bounds: Any) -> Any:
    """A field read from the first of the environment variables ``names`` that is set."""
    return Field(default=default, validation_alias=AliasChoices(*names), description=help, **bounds)


class Settings(BaseSettings):
    """All settings. A flag wins over the environment, the environment over the default."""

    model_config = SettingsConfigDict(
        populate_by_name=True,
        extra="ignore",
        env_ignore_empty=True,  # what compose files and units leave empty is not set
        allow_inf_nan=False,
    )

    # listener
    host: str = _setting("0.0.0.0", "SERVER_BIND_HOST", help="address to listen on")
    port: int = _setting(8000, "SERVER_PORT", help="port to listen on; 0 takes a free one", ge=0, le=65535)
    surfaces: Names = _setting(["yap", "realtime"], "EARMARK_SURFACES", help="protocols to serve, comma-separated")
    page: bool = _setting(True, "EARMARK_PAGE", help="show browsers a page at / on which to speak or drop a file")
    announce: bool = _setting(
        False, "EARMARK_ANNOUNCE", help="print one JSON line with the bound address to stdout once it can transcribe"
    )

    # keys
    api_key: str = _setting(
        "", "VOXTRAL_API_KEY", help="key of the envelope surface; without any one is made up and printed"
    )
    api_keys: Names = _setting([], "EARMARK_API_KEYS", help="further keys, comma-separated")
    require_key: bool = _setting(
        False, "EARMARK_REQUIRE_KEY", help="demand a key on the surfaces that are open otherwise"
    )

    # engine
    engine: Literal["auto", "sphinx", "scripted", "vllm", "vllm-remote"] = _setting(
        "auto",
        "EARMARK_ENGINE",
        help="what recognises: vllm (Voxtral), vllm-remote (other servers), sphinx (built in, weak), "
        "scripted (says its script); auto takes vllm where CUDA, vLLM and the model are",
    )
    delay_ms: int = _setting(
        480,
        "VOXTRAL_TRANSCRIPTION_DELAY_MS",
        help="transcription delay of utterances that name none: a multiple of 80 in 80..2400",
    )
    model_id: str = _setting(
        "mistralai/Voxtral-Mini-4B-Realtime-2602", "VOXTRAL_MODEL_ID", help="model, as the hub names it"
    )
    served_model_name: str = _setting(
        "", "VOXTRAL_SERVED_MODEL_NAME", help="name that clients use for the model; default: the model's own"
    )
    script: str = _setting("", "EARMARK_SCRIPT", help="scripted engine: its spec, JSON or the path of a JSON file")
    sphinx_profile: Literal["fast", "accurate"] = _setting(
        "fast", "EARMARK_SPHINX_PROFILE", help="sphinx: search settings; accurate costs 2.4 times the CPU"
    )
    sphinx_workers: int = _setting(
        0, "EARMARK_SPHINX_WORKERS", help="sphinx: worker processes, one stream each; 0 fits them to the cores", ge=0
    )
    sphinx_maxhmmpf: int = _setting(
        0, "EARMARK_SPHINX_MAXHMMPF", help="sphinx: most active models per frame; 0 takes the profile's", ge=0
    )
    backends: Names = _setting(
        [], "EARMARK_BACKENDS", help="vllm-remote: servers of /v1/realtime, e.g. ws://one:8000,wss://two/prefix"
    )
    backend_delay_ms: int = _setting(
        0,
        "EARMARK_BACKEND_DELAY_MS",
        help="vllm-remote: transcription delay of back ends that do not tell theirs (vLLM's own); 0: that of --delay-ms",
        ge=0,
        le=2400,
        multiple_of=80,
    )
    backend_slots: int = _setting(
        0,
        "EARMARK_BACKEND_SLOTS",
        help="vllm-remote: streams at once on each back end, for vLLM at most its --max-num-seqs; 0: what it says, else 128",
        ge=0,
    )
    backend_api_key: str = _setting("", "EARMARK_BACKEND_API_KEY", help="vllm-remote: bearer token for the back ends")
    backend_start_seconds: float = _setting(
        60.0,
        "EARMARK_BACKEND_START_SECONDS",
        help="vllm-remote: wait so long at the start for a back end to answer",
        ge=0,
    )
    vad: bool = _setting(True, "EARMARK_VAD", help="voice activity detection: rolls in silence, vad=auto for clients")

    # the vllm engine
    model_dir: str = _setting(
        "",
        "VOXTRAL_MODEL_DIR",
        help="vllm: the model's files, fetched there (HF_TOKEN) when incomplete; default: models/voxtral, or without that "
        "and without CUDA the small model that comes along, models/nano",
    )
    uniform_delay: bool = _setting(
        False, "EARMARK_UNIFORM_DELAY", help="vllm: vLLM's own model class, one delay for all streams"
    )
    allow_untrained_delay: bool = _setting(
        False,
        "EARMARK_ALLOW_UNTRAINED_DELAY",
        help="vllm: also delays that Voxtral was not trained for (1280..2320 ms)",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = _setting(
        "auto", "VLLM_DTYPE", help="vllm: type of weights and activations; auto takes the model's"
    )
    gpu_memory_utilization: float = _setting(
        0.92, "VLLM_GPU_MEMORY_UTILIZATION", help="vllm: share of the GPU's memory to use", gt=0, le=1
    )
    max_model_len: int = _setting(
        1024, "VLLM_MAX_MODEL_LEN", help="vllm: tokens of one segment at most; 12.5 are a second", ge=400
    )
    max_num_seqs: int = _setting(
        0, "VLLM_MAX_NUM_SEQS", help="vllm: streams heard at once; 0 fits them to the GPU's memory", ge=0
    )
    max_num_batched_tokens: int = _setting(
        0, "VLLM_MAX_NUM_BATCHED_TOKENS", help="vllm: tokens per engine step; 0 fits them to the GPU", ge=0
    )
    enforce_eager: bool | None = _setting(
        None, "VLLM_ENFORCE_EAGER", help="vllm: no compilation and no CUDA graphs; by default only on a CPU"
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"] = _setting(
        "auto", "VLLM_KV_CACHE_DTYPE", help="vllm: auto, or fp8 where the attention backend accepts it"
    )
    calculate_kv_scales: bool = _setting(
        False, "VLLM_CALCULATE_KV_SCALES", help="accepted for compatibility; vLLM 0.32 reads scales from the model"
    )
    compilation_config: str = _setting(
        '{"cudagraph_mode":"PIECEWISE"}', "VLLM_COMPILATION_CONFIG", help="vllm: JSON; none leaves it to vLLM"
    )
    disable_compile_cache: bool = _setting(
        True, "VLLM_DISABLE_COMPILE_CACHE", help="vllm: keep nothing compiled from one start to the next"
    )
    quantization: Literal["none", "bitsandbytes"] = _setting(
        "none", "VLLM_QUANTIZATION", help="vllm: bitsandbytes loads the weights as INT4, on CUDA"
    )
    load_format: Literal["mistral", "dummy"] = _setting(
        "mistral", "VLLM_LOAD_FORMAT", help="vllm: dummy makes random weights, for load tests: the text is noise"
    )
    show_vllm_logs: bool = _setting(False, "SHOW_VLLM_LOGS", help="vllm: its own log from level info on")

    # what hears whole files
    chat_engine: Literal["none", "vllm", "remote"] = _setting(
        "none",
        "EARMARK_CHAT_ENGINE",
        help="what transcribes whole files and answers questions about them: vllm (Voxtral Mini 3B in process), "
        "remote (an OpenAI-compatible server)",
    )
    chat_model_dir: str = _setting(
        "models/voxtral-mini-3b",
        "EARMARK_CHAT_MODEL_DIR",
        help="chat engine vllm: the model's files; fetched there (HF_TOKEN) when incomplete",
    )
    chat_model_id: str = _setting(
        "",
        "EARMARK_CHAT_MODEL_ID",
        help="chat engine: model, as the hub or the remote server names it; by default "
        "mistralai/Voxtral-Mini-3B-2507, or the first that the remote server lists",
    )
    chat_url: str = _setting(
        "http://127.0.0.1:8000", "EARMARK_CHAT_URL", help="chat engine remote: the server's URL, with or without /v1"
    )
    chat_api_key: str = _setting("", "EARMARK_CHAT_API_KEY", help="chat engine remote: the server's key")
    chat_max_num_seqs: int = _setting(
        16, "EARMARK_CHAT_MAX_NUM_SEQS", help="chat engine: requests worked on at once", ge=1
    )
    chat_max_model_len: int = _setting(
        32768,
        "EARMARK_CHAT_MAX_MODEL_LEN",
        help="chat engine vllm: tokens of one request at most; 12.5 are a second of audio",
        ge=1024,
    )
    chat_gpu_memory_utilization: float = _setting(
        0.3,
        "EARMARK_CHAT_GPU_MEMORY_UTILIZATION",
        help="chat engine vllm: share of the GPU's memory to use, beside that of the vllm engine",
        gt=0,
        le=1,
    )

    # limits of the envelope surface
    idle_timeout_s: OptionalSeconds = _setting(
        150.0, "WS_IDLE_TIMEOUT_S", help="close a connection idle for so long; 0 or off: never"
    )
    max_connection_duration_s: OptionalSeconds = _setting(
        5400.0, "WS_MAX_CONNECTION_DURATION_S", help="close a connection after so long; 0 or off: never"
    )
    watchdog_tick_s: float = _setting(
        5.0, "WS_WATCHDOG_TICK_S", help="accepted for compatibility; limits act to the millisecond without it"
    )
    close_idle_reason: str = _setting("idle_timeout", "WS_CLOSE_IDLE_REASON", help="reason text of an idle close")
    max_concurrent_connections: int = _setting(
        0,
        "MAX_CONCURRENT_CONNECTIONS",
        help="connections of the envelope surface; 0: as many as the engine has slots",
        ge=0,
    )
    inbound_queue_max: int = _setting(
        256, "WS_INBOUND_QUEUE_MAX", help="frames that may wait behind a full session on the envelope surface", ge=1
    )
    max_backlog_seconds: OptionalSeconds = _setting(
        5.0,
        "STT_MAX_BACKLOG_SECONDS",
        help="envelope surface: drop the oldest audio once more than this waits and has waited that long; 0: never",
    )

    # long streams
    internal_roll: bool = _setting(True, "STT_INTERNAL_ROLL", help="roll long utterances into several engine segments")
    segment_seconds: float = _setting(60.0, "STT_SEGMENT_SECONDS", help="target length of an engine segment", ge=1)
    segment_overlap_seconds: float = _setting(
        0.8, "STT_SEGMENT_OVERLAP_SECONDS", help="audio that the next segment hears again", ge=0
    )
    max_queued_seconds: float = _setting(
        3600.0, "EARMARK_MAX_QUEUED_SECONDS", help="audio one connection may have waiting; beyond it is not read", ge=1
    )
    park_seconds: float = _setting(
        30.0, "EARMARK_PARK_SECONDS", help="give an utterance's engine slot back after so long without audio", gt=0
    )
    unlimited: bool = _setting(
        False, "EARMARK_UNLIMITED", help="switch off idle, duration, connection and backlog limits, for load tests"
    )

    # operation
    drain_seconds: float = _setting(
        30.0, "EARMARK_DRAIN_SECONDS", help="on TERM, let utterances end for so long before closing", ge=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting("info", "LOG_LEVEL", help="least level logged")
    log_format: Literal["text", "json"] = _setting(
        "text", "EARMARK_LOG_FORMAT", help="text for people, json for machines"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; no files behind the operator's back."""
        del settings_cls, dotenv_settings, file_secret_settings
        return init_settings, env_settings

    @field_validator("log_level", "engine", mode="before")
    @classmethod
    def _lower(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("delay_ms")
    @classmethod
    def _delay(cls, value: int) -> int:
        if value not in DELAYS_MS:
            raise ValueError("a multiple of 80 in 80..2400 is expected")
        return value

    @field_validator("served_model_name", "model_id")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        return value.strip()  # clients' names are trimmed too

    @field_validator("close_idle_reason")
    @classmethod
    def _close_reason(cls, value: str) -> str:
        if len(value.encode()) > 123:
            raise ValueError("at most 123 bytes fit the reason of a WebSocket close")
        return value

    @field_validator("segment_overlap_seconds")
    @classmethod
    def _overlap(cls, value: float, others: ValidationInfo) -> float:
        segment_seconds = others.data.get("segment_seconds")
        if segment_seconds is not None and value >= segment_seconds:
            raise ValueError(f"less than the segment's length of {segment_seconds:g} s is expected")
        return value

    @field_validator("surfaces")
    @classmethod
    def _surfaces(cls, value: list[str]) -> list[str]:
        unknown = sorted(set(value) - {"yap", "realtime"})
        if unknown or not value:
            raise ValueError("one or more of yap, realtime are expected")
        return value


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """The settings from flags and environment.

    Raises:
        ConfigError: one line per bad setting.
        SystemExit: after ``--help``, and for flags that do not exist.
    """
    flags = vars(_parser().parse_args(arguments))
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(_complaint(fault, given, environment) for fault in error.errors())) from None


def environment_names(field: str) -> list[str]:
    """The environment variables of a setting."""
    alias = Settings.model_fields[field].validation_alias
    assert isinstance(alias, AliasChoices)
    return [str(choice) for choice in alias.choices]


def _complaint(fault: Any, given: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    place = str(fault["loc"][0])
    field = next((name for name in Settings.model_fields if place == name or place in environment_names(name)), place)
    flag = f"--{field.replace('_', '-')}"
    if field in given:
        return f"{flag}={given[field]}: {fault['msg']}"
    name = next((name for name in environment_names(field) if name in environment), environment_names(field)[0])
    return f"{name}={environment.get(name, fault['input'])}: {fault['msg']} (flag {flag})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        allow_abbrev=False,
        description="Serve streaming speech-to-text. Every option can also be set by the environment variable in brackets.",
    )
    for name, field in Settings.model_fields.items():
        names = ", ".join(environment_names(name))
        default = ",".join(field.default) if isinstance(field.default, list) else field.default
        text = f"{field.description} [{names}] (default: {default if default not in (None, '') else 'none'})"
        text = text.replace("%", "%%")
        flag = f"--{name.replace('_', '-')}"
        if field.annotation in (bool, bool | None):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        else:
            parser.add_argument(flag, default=None, metavar="VALUE", help=text)
    return parser
