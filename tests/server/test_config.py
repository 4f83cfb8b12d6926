"""Settings: where they come from, what is refused, and that every one is documented."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.building import build_engine
from server.config import ConfigError, Settings, environment_names, read
from server.engines.vllm.engine import VllmEngine

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        for name in environment_names(field):
            monkeypatch.delenv(name, raising=False)


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read the settings with these environment variables."""

    def read_with(*flags: str, **variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return read(flags, os.environ)

    return read_with


DEFAULTS_OF_THE_SPEC = {
    "SERVER_BIND_HOST": ("host", "0.0.0.0"),
    "SERVER_PORT": ("port", 8000),
    "LOG_LEVEL": ("log_level", "info"),
    "VOXTRAL_MODEL_ID": ("model_id", "mistralai/Voxtral-Mini-4B-Realtime-2602"),
    "WS_IDLE_TIMEOUT_S": ("idle_timeout_s", 150.0),
    "WS_MAX_CONNECTION_DURATION_S": ("max_connection_duration_s", 5400.0),
    "WS_WATCHDOG_TICK_S": ("watchdog_tick_s", 5.0),
    "WS_CLOSE_IDLE_REASON": ("close_idle_reason", "idle_timeout"),
    "MAX_CONCURRENT_CONNECTIONS": ("max_concurrent_connections", 0),
    "WS_INBOUND_QUEUE_MAX": ("inbound_queue_max", 256),
    "STT_INTERNAL_ROLL": ("internal_roll", True),
    "STT_SEGMENT_SECONDS": ("segment_seconds", 60.0),
    "STT_SEGMENT_OVERLAP_SECONDS": ("segment_overlap_seconds", 0.8),
    "STT_MAX_BACKLOG_SECONDS": ("max_backlog_seconds", 5.0),
    "VOXTRAL_MODEL_DIR": ("model_dir", ""),  # the protocol's models/voxtral, where it is there or CUDA is: see below
    "VLLM_DTYPE": ("dtype", "auto"),
    "VLLM_GPU_MEMORY_UTILIZATION": ("gpu_memory_utilization", 0.92),
    "VLLM_MAX_MODEL_LEN": ("max_model_len", 1024),
    "VOXTRAL_SERVED_MODEL_NAME": ("served_model_name", ""),
    "VOXTRAL_TRANSCRIPTION_DELAY_MS": ("delay_ms", 480),  # the protocol's server had 400: docs/decisions.md
    "VLLM_MAX_NUM_SEQS": ("max_num_seqs", 0),  # fitted to the GPU, as there when unset
    "VLLM_ENFORCE_EAGER": ("enforce_eager", None),  # only on a CPU
    "VLLM_KV_CACHE_DTYPE": ("kv_cache_dtype", "auto"),
    "VLLM_CALCULATE_KV_SCALES": ("calculate_kv_scales", False),
    "VLLM_COMPILATION_CONFIG": ("compilation_config", '{"cudagraph_mode":"PIECEWISE"}'),
    "VLLM_DISABLE_COMPILE_CACHE": ("disable_compile_cache", True),
    "SHOW_VLLM_LOGS": ("show_vllm_logs", False),
}


@pytest.mark.parametrize("variable", DEFAULTS_OF_THE_SPEC)
@pytest.mark.spec("yap-74")
def test_defaults_are_those_of_the_envelope_protocol(setting: Any, variable: str) -> None:
    field, default = DEFAULTS_OF_THE_SPEC[variable]
    assert environment_names(field) == [variable]
    assert getattr(setting(), field) == default


def test_without_a_model_directory_a_cpu_serves_nano_and_the_protocols_own_default_wins_once_it_is_there(
    setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def served(*flags: str) -> Path:
        engine = build_engine(setting("--engine=vllm", *flags))[0]
        assert isinstance(engine, VllmEngine)
        return engine.settings.model_dir

    if not Path("/dev/nvidiactl").exists():
        assert served().parts[-2:] == ("models", "nano")
    voxtral = Path("models/voxtral")
    voxtral.mkdir(parents=True)
    for name in ("params.json", "tekken.json", "consolidated.safetensors"):
        (voxtral / name).touch()
    assert served() == voxtral
    assert served("--model-dir=elsewhere") == Path("elsewhere")


@pytest.mark.spec("yap-76")
def test_a_flag_wins_over_the_environment(setting: Any) -> None:
    assert setting(SERVER_PORT="81").port == 81
    assert setting("--port", "82", SERVER_PORT="81").port == 82


@pytest.mark.spec("yap-76")
def test_an_empty_variable_is_not_set(setting: Any) -> None:
    settings = setting(**{environment_names(field)[0]: "" for field in Settings.model_fields})
    assert settings == Settings()


@pytest.mark.parametrize("field", ["idle_timeout_s", "max_connection_duration_s", "max_backlog_seconds"])
@pytest.mark.parametrize(
    "word", ["0", "none", "null", "disabled", "disable", "off", "OFF", " Off ", "-1", "-0.5", "0.0"]
)
@pytest.mark.spec("yap-63")
def test_words_that_switch_a_limit_off(setting: Any, field: str, word: str) -> None:
    assert getattr(setting(**{environment_names(field)[0]: word}), field) is None
    assert getattr(setting(f"--{field.replace('_', '-')}={word}"), field) is None


@pytest.mark.parametrize(("word", "value"), [("1", True), ("true", True), ("yes", True), ("0", False), ("off", False)])
def test_switches_in_the_environment(setting: Any, word: str, value: bool) -> None:
    assert setting(STT_INTERNAL_ROLL=word).internal_roll is value


def test_lists_are_comma_separated(setting: Any) -> None:
    settings = setting("--surfaces", "realtime", EARMARK_API_KEYS=" a, b ,,c ")
    assert settings.api_keys == ["a", "b", "c"]
    assert settings.surfaces == ["realtime"]


@pytest.mark.parametrize("level", ["DEBUG", " info ", "Warning", "error"])
def test_levels_and_engines_are_read_in_any_case(setting: Any, level: str) -> None:
    assert setting(LOG_LEVEL=level).log_level == level.strip().lower()


@pytest.mark.parametrize("tick", ["0", "-3", "0.5"])
def test_the_watchdog_period_is_taken_for_compatibility(setting: Any, tick: str) -> None:
    assert setting(WS_WATCHDOG_TICK_S=tick).watchdog_tick_s == float(tick)


BAD = {
    "port": ["-1", "65536", "http", "8000.5"],
    "surfaces": ["telepathy", "yap,telepathy", ","],
    "surface_ports": ["realtime", "telepathy=80", "yap=x", "yap=65536", "yap=-1"],
    "page": ["perhaps"],
    "announce": ["perhaps"],
    "require_key": ["perhaps"],
    "engine": ["whisperx", "vllm2"],
    "delay_ms": ["0", "100", "2480", "-80", "480.5", "fast", "inf"],
    "sphinx_profile": ["best"],
    "sphinx_workers": ["-1", "many"],
    "sphinx_maxhmmpf": ["-1", "x"],
    "backend_delay_ms": ["-80", "100", "2480", "slow"],
    "backend_slots": ["-1", "all"],
    "backend_start_seconds": ["-1", "soon", "inf"],
    "whisper_download": ["perhaps"],
    "whisper_device": ["tpu", "cuda:0"],
    "whisper_cpu_threads": ["-1", "all"],
    "whisper_workers": ["0", "-1", "257", "many"],
    "whisper_slots": ["-1", "all"],
    "whisper_profile": ["fast"],
    "whisper_task": ["summarise"],
    "whisper_interval_seconds": ["0", "0.05", "5.1", "often", "nan"],
    "whisper_window_seconds": ["0.5", "28.5", "nan"],
    "whisper_prompt_characters": ["-1", "1001", "some"],
    "whisper_vad": ["perhaps"],
    "vad": ["perhaps"],
    "uniform_delay": ["perhaps"],
    "allow_untrained_delay": ["perhaps"],
    "dtype": ["int8", "fp16"],
    "gpu_memory_utilization": ["0", "1.1", "all", "nan"],
    "max_model_len": ["100", "long"],
    "max_num_seqs": ["-1", "many"],
    "max_num_batched_tokens": ["-1", "many"],
    "enforce_eager": ["perhaps"],
    "kv_cache_dtype": ["int3"],
    "calculate_kv_scales": ["perhaps"],
    "disable_compile_cache": ["perhaps"],
    "quantization": ["gptq"],
    "load_format": ["safetensors"],
    "show_vllm_logs": ["perhaps"],
    "chat_engine": ["nano", "sphinx"],
    "chat_max_num_seqs": ["0", "-1", "many"],
    "chat_max_model_len": ["1023", "0", "long"],
    "chat_gpu_memory_utilization": ["0", "1.1", "-1", "most", "nan"],
    "idle_timeout_s": ["soon", "nan", "inf", "5s"],
    "max_connection_duration_s": ["soon", "nan", "inf"],
    "watchdog_tick_s": ["often", "nan"],
    "close_idle_reason": ["x" * 124, "ü" * 62],
    "max_concurrent_connections": ["-1", "all", "1.5"],
    "inbound_queue_max": ["0", "-1", "all"],
    "max_backlog_seconds": ["little", "nan", "inf"],
    "internal_roll": ["sometimes"],
    "segment_seconds": ["0.5", "0", "-60", "abc", "nan", "inf"],
    "segment_overlap_seconds": ["-0.1", "abc", "nan", "inf", "60", "61"],
    "max_queued_seconds": ["0", "-1", "abc", "inf", "nan"],
    "park_seconds": ["0", "-1", "abc", "inf"],
    "unlimited": ["perhaps"],
    "ops": ["perhaps"],
    "ops_port": ["-1", "65536", "http", "8001.5"],
    "ops_rate": ["-1", "often", "nan", "inf"],
    "ops_burst": ["-1", "many", "nan", "inf"],
    "ops_show_api_keys": ["perhaps"],
    "health_window_seconds": ["0", "-1", "long", "inf", "nan"],
    "health_min_events": ["0", "-1", "few", "1.5"],
    "health_max_timeout_ratio": ["-0.1", "1.1", "half", "nan"],
    "health_min_success_ratio": ["-0.1", "1.1", "half", "nan"],
    "persist_audio": ["perhaps"],
    "audio_queue_chunks": ["-1", "many", "1.5"],
    "audio_max_bytes": ["all", "1.5"],
    "audio_max_files": ["all", "1.5"],
    "audio_max_age_days": ["old", "nan", "inf"],
    "log_transcripts": ["perhaps"],
    "transcript_retention_days": ["-1", "long", "1.5"],
    "openai_max_file_mb": ["many", "1.5", "nan"],
    "openai_max_audio_seconds": ["long", "nan", "inf"],
    "openai_timeout_seconds": ["long", "nan", "inf"],
    "openai_max_requests": ["all", "1.5"],
    "drain_seconds": ["-1", "abc", "inf", "nan"],
    "log_level": ["loud", "notset"],
    "log_format": ["xml"],
}
_SECONDS = """session_timeout_sec max_chunk_ms max_audio_seconds_per_session partial_decode_interval_sec max_buffer_sec
decode_queue_timeout_sec decode_timeout_sec create_session_rps max_audio_bytes_per_sec"""
_COUNTS = """max_sessions max_sessions_per_ip max_sessions_per_api_key vad_model_pool_size max_buffer_bytes max_total_buffer_bytes
max_pending_decodes_per_stream max_pending_decodes_global"""
BAD |= {f"grpc_{name}": ["soon", "nan", "inf", "5s"] for name in _SECONDS.split()}
BAD |= {f"grpc_{name}": ["many", "1.5", "nan"] for name in _COUNTS.split()}
BAD |= {
    f"grpc_{name}": ["perhaps"] for name in ("require_api_key", "emit_final_on_vad", "language_fix", "tls_required")
}
BAD |= {
    "grpc_port": ["-1", "65536", "grpc"],
    "grpc_create_session_burst": ["-1", "many", "nan"],
    "grpc_max_audio_bytes_per_sec_burst": ["-1", "many", "inf"],
    "grpc_vad_silence": ["0", "-1", "long", "nan"],
    "grpc_vad_threshold": ["-0.1", "1.1", "high"],
    "grpc_vad_model_pool_growth_factor": ["0.9", "fast", "inf"],
    "grpc_speech_rms_threshold": ["-0.1", "1.1", "loud"],
    "grpc_sample_rate": ["0", "999", "384001", "fast"],
    "grpc_language": ["klingon", "xx"],
    "grpc_task": ["summarise"],
    "grpc_decode_profiles": ["{", "[]", '{"a": 1}', "fast"],
    "grpc_default_decode_profile": ["fastest"],
    "grpc_max_receive_message_bytes": ["0", "2147483648", "large"],
    "grpc_max_send_message_bytes": ["0", "2147483648", "large"],
}
ANY_TEXT = {"host", "api_key", "api_keys", "model_id", "served_model_name", "script", "backends", "backend_api_key"}
ANY_TEXT |= {"ops_host", "ops_allowlist", "audio_directory", "transcript_file"}
ANY_TEXT |= {"model_profiles", "default_model_profile"}  # the file is read when the server is put together
ANY_TEXT |= {"openai_aliases"}
ANY_TEXT |= {"trusted_proxies", "ops_trusted_proxies"}  # names are looked up when the server is put together
ANY_TEXT |= {"model_dir", "compilation_config"}  # read by the vllm engine, which complains itself
ANY_TEXT |= {"grpc_host", "grpc_signing_secret", "grpc_tls_cert_file", "grpc_tls_key_file"}  # files: as above
ANY_TEXT |= {"whisper_model", "whisper_model_dir", "whisper_compute_type", "whisper_language"}  # likewise
ANY_TEXT |= {"chat_model_dir", "chat_model_id", "chat_url", "chat_api_key"}


def test_every_setting_is_either_text_or_in_the_table() -> None:
    assert set(BAD) | ANY_TEXT == set(Settings.model_fields)
    assert not set(BAD) & ANY_TEXT


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
@pytest.mark.spec("yap-75")
def test_a_bad_setting_is_refused_with_its_name_and_value(setting: Any, field: str, value: str) -> None:
    [variable] = environment_names(field)
    with pytest.raises(ConfigError) as refused:
        setting(**{variable: value})
    assert f"{variable}={value}" in str(refused.value)
    assert f"--{field.replace('_', '-')}" in str(refused.value), "and how to set it otherwise"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field, values in BAD.items()
        for value in values
        if Settings.model_fields[field].annotation not in (bool, bool | None)  # those flags take no value
    ],
)
def test_a_bad_flag_is_refused_with_its_name_and_value(setting: Any, field: str, value: str) -> None:
    flag = f"--{field.replace('_', '-')}={value}"
    with pytest.raises(ConfigError, match=re.escape(flag)):
        setting(flag)


def test_all_bad_settings_are_told_at_once(setting: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        setting(SERVER_PORT="x", STT_SEGMENT_SECONDS="abc", VOXTRAL_TRANSCRIPTION_DELAY_MS="77")
    assert len(str(refused.value).splitlines()) == 3


def test_an_overlap_as_long_as_the_segment_is_refused(setting: Any) -> None:
    with pytest.raises(ConfigError, match="STT_SEGMENT_OVERLAP_SECONDS=2"):
        setting(STT_SEGMENT_SECONDS="2", STT_SEGMENT_OVERLAP_SECONDS="2")
    assert setting(STT_SEGMENT_SECONDS="2", STT_SEGMENT_OVERLAP_SECONDS="1.9").segment_overlap_seconds == 1.9


# ---- the process


def server(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-m", "server", *flags],
        cwd=ROOT,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("flags", "variables", "told"),
    [
        ([], {"STT_SEGMENT_SECONDS": "abc"}, "STT_SEGMENT_SECONDS=abc"),
        (["--delay-ms", "100"], {}, "--delay-ms=100"),
        (["--engine", "scripted", "--script", "{nonsense"], {}, "--script={nonsense"),
        (["--engine", "scripted"], {"EARMARK_SCRIPT": '{"latency": 1}'}, '--script={"latency": 1}'),
        (["--engine", "scripted", "--script", "/nowhere.json"], {}, "--script=/nowhere.json"),
        (["--engine", "scripted", "--port", "0", "--script", '{"audio_rate": 0}'], {}, "audio_rate"),
        (["--engine", "vllm-remote"], {}, "no back ends are named"),
        (["--engine", "vllm-remote", "--backends", "ftp://one"], {}, "'ftp://one' is no address of a back end"),
        (
            ["--engine", "whisper", "--whisper-language", "klingon"],
            {},
            "--engine=whisper: this Whisper model hears 100 languages",
        ),
        (["--prot", "8000"], {}, "--prot"),
        (["--port"], {}, "--port"),
    ],
)
@pytest.mark.spec("yap-75")
def test_a_bad_setting_stops_the_start_with_status_2(flags: list[str], variables: dict[str, str], told: str) -> None:
    ended = server(*flags, **variables)
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_help_documents_every_option() -> None:
    ended = server("--help")
    assert ended.returncode == 0
    text = " ".join(ended.stdout.split())
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert environment_names(name)[0] in text
        assert field.description
        assert field.description[:30] in text
