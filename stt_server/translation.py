"""The gRPC system's YAML files and flags, translated to settings of ours."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from server.config import ConfigError, Settings, environment_names

SERVER_FILE = "config/server.yaml"
MODEL_FILE = "config/model.yaml"

_WHISPER = ("faster_whisper", "faster-whisper", "whisper")
_OWN_ENGINES = ("scripted", "sphinx", "vllm", "vllm-remote", "auto")


def _as_it_is(value: Any) -> Any:
    return value


def _text(value: Any) -> Any:
    return "" if value is None else value


def _level(value: Any) -> Any:
    level = str(value).strip().lower()
    return {"trace": "debug", "warn": "warning", "critical": "error", "fatal": "error"}.get(level, level)


def _list(value: Any) -> Any:
    if value is None:
        return []
    return [str(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Key:
    """One key of the YAML files. ``setting`` empty: it is accepted and has no effect here. ``limit``: null switches it off, elsewhere null
    is as good as absent. ``default`` stands for the key where the original's own default is not ours.
    """

    section: str
    name: str
    setting: str = ""
    flag: str = ""
    limit: bool = False
    switch: bool = False
    read: Callable[[Any], Any] = _as_it_is
    default: Any = None

    @property
    def flat_names(self) -> tuple[str, ...]:
        """What it may be called at the top level of a file."""
        long = f"{self.section}_{self.name}"
        alone = self.section in ("server", "safety", "storage", "auth", "metrics") or self.name.startswith("log_")
        return (long, self.name) if alone or self.section == "model" else (long,)


KEYS = (
    Key("server", "port", "grpc_port", "--port"),
    Key("server", "http_host", "ops_host", default="127.0.0.1"),
    Key("server", "metrics_port", "ops_port", "--metrics-port", default=8000),
    Key("server", "max_sessions", "grpc_max_sessions", "--max-sessions", limit=True),
    Key("server", "grpc_worker_threads", "", "--grpc-worker-threads"),
    Key("server", "create_session_rps", "grpc_create_session_rps", limit=True),
    Key("server", "create_session_burst", "grpc_create_session_burst", limit=True),
    Key("server", "max_sessions_per_ip", "grpc_max_sessions_per_ip", limit=True),
    Key("server", "max_sessions_per_api_key", "grpc_max_sessions_per_api_key", limit=True),
    Key("server", "max_audio_seconds_per_session", "grpc_max_audio_seconds_per_session", limit=True),
    Key("server", "max_audio_bytes_per_sec", "grpc_max_audio_bytes_per_sec", limit=True),
    Key("server", "max_audio_bytes_per_sec_burst", "grpc_max_audio_bytes_per_sec_burst", limit=True),
    Key("server", "http_rate_limit_rps", "ops_rate", limit=True),
    Key("server", "http_rate_limit_burst", "ops_burst", limit=True),
    Key("server", "http_trusted_proxies", "ops_trusted_proxies", read=_list),
    Key("server", "decode_timeout_sec", "grpc_decode_timeout_sec", "--decode-timeout", limit=True),
    Key("server", "log_metrics", "", "--log-metrics", switch=True),
    Key("server", "session_timeout_sec", "grpc_session_timeout_sec", limit=True),
    Key("server", "max_buffer_sec", "grpc_max_buffer_sec", limit=True),
    Key("server", "max_buffer_bytes", "grpc_max_buffer_bytes", limit=True),
    Key("server", "max_chunk_ms", "grpc_max_chunk_ms", limit=True),
    Key("server", "partial_decode_interval_sec", "grpc_partial_decode_interval_sec", limit=True),
    Key("server", "partial_decode_window_sec"),
    Key("server", "max_pending_decodes_per_stream", "grpc_max_pending_decodes_per_stream", limit=True),
    Key("server", "max_pending_decodes_global", "grpc_max_pending_decodes_global", limit=True),
    Key("server", "max_total_buffer_bytes", "grpc_max_total_buffer_bytes", limit=True),
    Key("server", "decode_queue_timeout_sec", "grpc_decode_queue_timeout_sec", limit=True),
    Key("server", "buffer_overlap_sec"),
    Key("server", "grpc_max_receive_message_bytes", "grpc_max_receive_message_bytes"),
    Key("server", "grpc_max_send_message_bytes", "grpc_max_send_message_bytes"),
    Key("server", "sample_rate", "grpc_sample_rate", "--sample-rate"),
    Key("server", "emit_final_on_vad", "grpc_emit_final_on_vad"),
    Key("vad", "silence", "grpc_vad_silence", "--vad-silence", default=0.8),
    Key("vad", "threshold", "grpc_vad_threshold", "--vad-threshold"),
    Key("vad", "model_pool_size", "grpc_vad_model_pool_size", limit=True),
    Key("vad", "model_prewarm"),
    Key("vad", "model_pool_growth_factor", "grpc_vad_model_pool_growth_factor"),
    Key("safety", "speech_rms_threshold", "grpc_speech_rms_threshold", "--speech-threshold", default=0.02),
    Key("logging", "level", "log_level", "--log-level", read=_level),
    Key("logging", "file", "", "--log-file", read=_text),
    Key("logging", "faster_whisper_level", "", "--faster-whisper-log-level"),
    Key("logging", "log_transcripts", "log_transcripts", "--log-transcripts", switch=True),
    Key("logging", "transcript_file", "transcript_file", "--transcript-log-file", read=_text),
    Key("logging", "transcript_retention_days", "transcript_retention_days", "--transcript-log-retention-days"),
    Key("tls", "cert_file", "grpc_tls_cert_file", "--tls-cert-file", read=_text),
    Key("tls", "key_file", "grpc_tls_key_file", "--tls-key-file", read=_text),
    Key("tls", "required", "grpc_tls_required", "--tls-required", switch=True),
    Key("metrics", "expose_api_key_sessions", "ops_show_api_keys"),
    Key("auth", "require_api_key", "grpc_require_api_key", "--require-api-key", switch=True),
    Key("storage", "persist_audio", "persist_audio"),
    Key("storage", "directory", "audio_directory"),
    Key("storage", "queue_max_chunks", "audio_queue_chunks", limit=True),
    Key("storage", "max_bytes", "audio_max_bytes", limit=True),
    Key("storage", "max_files", "audio_max_files", limit=True),
    Key("storage", "max_age_days", "audio_max_age_days", limit=True),
    Key("health", "window_sec", "health_window_seconds"),
    Key("health", "min_events", "health_min_events"),
    Key("health", "max_timeout_ratio", "health_max_timeout_ratio"),
    Key("health", "min_success_ratio", "health_min_success_ratio"),
    Key("model", "name", "whisper_model", "--model"),
    Key("model", "backend", "", "--model-backend"),
    Key("model", "device", "whisper_device", "--device"),
    Key("model", "compute_type", "whisper_compute_type", "--compute-type"),
    Key("model", "pool_size", "whisper_workers", "--model-pool-size"),
    Key("model", "language_fix", "grpc_language_fix", "--language-fix", switch=True),
    Key("model", "language", "grpc_language", "--language", read=_text),
    Key("model", "task", "grpc_task", "--task"),
    Key("model", "default_decode_profile", "grpc_default_decode_profile"),
    Key("model", "default_model_load_profile", "default_model_profile"),
)
"""Every key that the files are documented to have; others are ignored."""

ENVIRONMENT_WINS = ("ops_rate", "ops_burst", "ops_trusted_proxies")
"""Settings whose environment variable wins over the files."""

_BY_FLAG = {key.flag: key for key in KEYS if key.flag}


@dataclass(frozen=True, slots=True)
class Translated:
    """Settings of ours, the file that the log goes to as well, and keys that were given and have no effect here."""

    settings: Settings
    log_file: str
    without_effect: Sequence[str]


def translate(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Translated:
    """The settings from flags and files.

    Raises:
        ConfigError: one line for each thing that is wrong.
        SystemExit: after ``--help``, and for flags that do not exist.
    """
    environment = os.environ if environment is None else environment
    flags = vars(_parser().parse_args(arguments))
    problems: list[str] = []
    files = [
        _read_file(flags["config"], SERVER_FILE, "--config", problems),
        _read_file(flags["model_config"], MODEL_FILE, "--model-config", problems),
    ]
    given: dict[Key, tuple[Any, str]] = {}  # with where it was given
    for name, content in files:
        _take_file(name, content, given, problems)
    for flag, key in _BY_FLAG.items():
        value = flags[_dest(flag)]
        if value is not None:
            given[key] = (value[-1] if isinstance(value, list) else value, flag)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key in KEYS:
        value, origin = given.get(key, (key.default, "the default"))
        if value is None and not (key.limit and key in given):
            continue
        if key.setting:
            values[key.setting] = key.read(value)
            origins[key.setting] = f"{key.section}.{key.name} ({origin})"
    profiles = next(
        (content["decode_profiles"] for _, content in reversed(files) if content.get("decode_profiles")), None
    )
    if profiles is not None:
        values["grpc_decode_profiles"] = profiles
        origins["grpc_decode_profiles"] = f"decode_profiles ({files[1][0] or files[0][0]})"
    if files[1][1].get("model_load_profiles"):
        values["model_profiles"] = files[1][0]
    backend = next(
        (str(value) for key, (value, _) in given.items() if (key.section, key.name) == ("model", "backend")),
        "faster_whisper",
    )
    values |= _engine(backend, flags["engine"], environment, problems)
    for name in ENVIRONMENT_WINS:
        if any(environment.get(variable) for variable in environment_names(name)):
            values.pop(name, None)
    timeout = values.get("grpc_decode_timeout_sec", 30.0)
    values |= {
        "surfaces": ["grpc"],
        "host": "127.0.0.1",  # the pages that every server has stay on this machine: clients know the two other listeners
        "port": 0,
        "grpc_host": "0.0.0.0",
        "drain_seconds": timeout if isinstance(timeout, int | float) and timeout > 0 else 5.0,
        "announce": flags["announce"],
    }
    settings = _settings(
        {name: value for name, value in values.items() if name in Settings.model_fields}, origins, problems
    )
    log_file = next(
        (str(value or "") for key, (value, _) in given.items() if (key.section, key.name) == ("logging", "file")), ""
    )
    idle = [f"{key.section}.{key.name}" for key in given if not key.setting and key.name not in ("file", "backend")]
    return Translated(settings, log_file, idle)


def _settings(values: dict[str, Any], origins: Mapping[str, str], problems: list[str]) -> Settings:
    try:
        settings = Settings(**values)
    except ValidationError as error:
        for fault in error.errors():
            place = str(fault["loc"][0])
            name = next(
                (name for name in Settings.model_fields if place == name or place in environment_names(name)), place
            )
            problems.append(f"{origins.get(name, name)}: {fault['msg']}, got {fault['input']!r:.200}")
    if problems:
        raise ConfigError("\n".join(problems))
    return settings


def _read_file(name: str | None, usual: str, flag: str, problems: list[str]) -> tuple[str, Mapping[str, Any]]:
    if name is None:
        if not Path(usual).is_file():
            return "", {}
        name = usual
    try:
        content = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{flag} {name}: {error}")
        return name, {}
    except yaml.YAMLError as error:
        problems.append(f"{flag} {name}: no YAML: {' '.join(str(error).split())}")
        return name, {}
    if content is not None and not isinstance(content, dict):
        problems.append(f"{flag} {name}: keys and values are expected, got {type(content).__name__}")
        return name, {}
    return name, content or {}


def _take_file(name: str, content: Mapping[str, Any], given: dict[Key, tuple[Any, str]], problems: list[str]) -> None:
    for section in dict.fromkeys(key.section for key in KEYS):
        inside = content.get(section)
        if inside is not None and not isinstance(inside, dict):
            problems.append(f"{section} ({name}): keys and values are expected, got {inside!r:.100}")
    for key in KEYS:
        for flat in key.flat_names:
            if flat in content and not isinstance(content[flat], dict):
                given[key] = content[flat], name
        inside = content.get(key.section)
        if isinstance(inside, dict) and key.name in inside:
            given[key] = inside[key.name], name


def _engine(backend: str, wanted: str | None, environment: Mapping[str, str], problems: list[str]) -> dict[str, str]:
    """The engine of a backend; one that is named by ``--engine`` or the environment wins."""
    if wanted:
        return {"engine": wanted}
    if environment.get("EARMARK_ENGINE", "").strip():
        return {}
    name = backend.strip().lower()
    if name in _WHISPER:
        known = "whisper_model" in Settings.model_fields and importlib.util.find_spec("faster_whisper") is not None
        return {"engine": "whisper"} if known else {}
    if name in _OWN_ENGINES:
        return {"engine": name}
    problems.append(
        f"model.backend: faster_whisper or one of {', '.join(_OWN_ENGINES)} is expected, got {backend!r:.100}"
    )
    return {}


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="stt-server", allow_abbrev=False, description=__doc__)
    parser.add_argument("--config", metavar="FILE", help=f"default: {SERVER_FILE}, where it is there")
    parser.add_argument("--model-config", metavar="FILE", help=f"default: {MODEL_FILE}, where it is there")
    parser.add_argument("--engine", help="what recognises, instead of what the backend's name says")
    parser.add_argument(
        "--announce", action="store_true", help="print one JSON line with the ports once it can transcribe"
    )
    for flag, key in _BY_FLAG.items():
        text = f"{key.section}.{key.name}" + ("" if key.setting else " (accepted)")
        if key.switch:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=text)
        elif flag == "--language":
            parser.add_argument(flag, action="append", help=f"{text}; of several the last one counts")
        else:
            parser.add_argument(flag, help=text)
    return parser
