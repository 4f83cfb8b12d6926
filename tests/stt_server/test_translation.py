"""The gRPC system's YAML files and flags as settings of ours."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from server.config import ConfigError, Settings, environment_names
from stt_server.translation import KEYS, Translated, translate


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for field in Settings.model_fields:
        for name in environment_names(field):
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def read(server: str = "", *flags: str, model: str = "") -> Translated:
    Path("s.yaml").write_text(server, encoding="utf-8")
    Path("m.yaml").write_text(model, encoding="utf-8")
    return translate(["--config", "s.yaml", "--model-config", "m.yaml", *flags], {})


@pytest.mark.spec("grpc-73")
def test_without_anything_the_defaults_are_those_of_its_own_system() -> None:
    settings = translate([], {}).settings
    assert settings.surfaces == ["grpc"]
    assert (settings.grpc_host, settings.grpc_port) == ("0.0.0.0", 50051)
    assert settings.grpc_vad_silence == 0.8
    assert settings.grpc_speech_rms_threshold == 0.02
    assert (settings.grpc_max_sessions, settings.grpc_max_pending_decodes_global) == (4, 64)
    assert settings.drain_seconds == 30.0


@pytest.mark.spec("grpc-73")
def test_keys_are_read_by_section_and_flat_and_unknown_ones_ignored() -> None:
    server = "server: {port: 6000, max_sessions: 9, mystery: 1}\nvad_silence: 0.4\nmax_chunk_ms: 1000\nextra: [1]\n"
    settings = read(server, model="model: {language: de, language_fix: true}\ndecode_profiles: {quick: {beam_size: 1}}\n"
                    "default_decode_profile: quick\n").settings  # fmt: skip
    assert (settings.grpc_port, settings.grpc_max_sessions) == (6000, 9)
    assert (settings.grpc_vad_silence, settings.grpc_max_chunk_ms) == (0.4, 1000.0)
    assert (settings.grpc_language, settings.grpc_language_fix) == ("de", True)
    assert settings.grpc_decode_profiles == {"quick": {"beam_size": 1}}
    assert settings.grpc_default_decode_profile == "quick"


@pytest.mark.spec("grpc-73")
def test_the_usual_files_are_read_where_they_are() -> None:
    Path("config").mkdir()
    Path("config/server.yaml").write_text("server: {port: 6001}\n")
    Path("config/model.yaml").write_text("model: {task: translate}\n")
    settings = translate([], {}).settings
    assert (settings.grpc_port, settings.grpc_task) == (6001, "translate")


@pytest.mark.spec("grpc-73")
def test_flags_win() -> None:
    server = "server: {port: 6000}\nvad: {silence: 0.4}\ntls: {required: true}\n"
    flags = ("--port", "0", "--vad-silence", "0.9", "--no-tls-required", "--language", "de", "--language", "fr")
    settings = read(server, *flags).settings
    assert (settings.grpc_port, settings.grpc_vad_silence, settings.grpc_tls_required) == (0, 0.9, False)
    assert settings.grpc_language == "fr"


@pytest.mark.spec("grpc-74")
@pytest.mark.parametrize("off", ["null", "0", "~"])
def test_null_and_zero_switch_limits_off(off: str) -> None:
    keys = [key for key in KEYS if key.section == "server" and key.limit and key.setting.startswith("grpc_")]
    assert len(keys) > 12
    settings = read("server:\n" + "".join(f"  {key.name}: {off}\n" for key in keys)).settings
    for key in keys:
        assert not getattr(settings, key.setting), key.name
    assert settings.drain_seconds == 5.0


@pytest.mark.spec("grpc-74")
def test_what_is_absent_has_its_default_and_null_elsewhere_is_as_good() -> None:
    settings = read("server: {max_sessions: 7, port: null}\nlogging: {file: null}\ntls: {cert_file: null}\n").settings
    assert (settings.grpc_port, settings.grpc_max_sessions_per_ip) == (50051, 4)
    assert settings.grpc_tls_cert_file == ""


@pytest.mark.spec("grpc-75")
def test_all_that_is_wrong_is_told_with_key_and_file() -> None:
    with pytest.raises(ConfigError) as refused:
        read(
            "server: {port: 70000, max_sessions: many}\nvad: 5\n", "--task", "sing", model="model: {backend: abacus}\n"
        )
    lines = str(refused.value).splitlines()
    assert len(lines) == 5
    for part in (
        "server.port (s.yaml)",
        "server.max_sessions (s.yaml)",
        "vad (s.yaml)",
        "model.task (--task)",
        "abacus",
    ):
        assert any(part in line for line in lines), part


@pytest.mark.spec("grpc-75")
@pytest.mark.parametrize("content", ["server: [", "just words", "- a\n- b\n"])
def test_a_file_that_is_none_is_told(content: str) -> None:
    with pytest.raises(ConfigError, match=r"s\.yaml"):
        read(content)


@pytest.mark.spec("grpc-75")
def test_a_file_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        translate(["--config", "nowhere.yaml"], {})


@pytest.mark.spec("grpc-76")
def test_which_engine_a_backend_is() -> None:
    whisper = "whisper_model" in Settings.model_fields and importlib.util.find_spec("faster_whisper") is not None
    assert read(model="model: {backend: faster_whisper}").settings.engine == ("whisper" if whisper else "auto")
    assert read("", "--engine", "scripted", model="model: {backend: faster_whisper}").settings.engine == "scripted"
    assert read(model="model: {backend: sphinx}").settings.engine == "sphinx"


@pytest.mark.spec("grpc-76")
def test_the_environment_names_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARMARK_ENGINE", "scripted")
    assert translate([], {"EARMARK_ENGINE": "scripted"}).settings.engine == "scripted"


def test_every_key_goes_to_a_setting_that_there_is_or_will_be() -> None:
    """Those of the operations plane have settings of its own, which this file does not know."""
    for key in KEYS:
        if key.setting.startswith("grpc_"):
            assert key.setting in Settings.model_fields, key


def test_keys_without_effect_are_named() -> None:
    given = read("server: {partial_decode_window_sec: 5, port: 0}\nvad: {model_prewarm: 2}\n")
    assert list(given.without_effect) == ["server.partial_decode_window_sec", "vad.model_prewarm"]
