"""What the Whisper engine may be set to."""

from __future__ import annotations

from typing import Any

import pytest

from server.building import build_engine
from server.config import Settings, environment_names, read
from server.engines.base import EngineError
from server.engines.whisper.engine import WhisperEngine
from server.engines.whisper.languages import LANGUAGES, check_language
from server.engines.whisper.settings import PROFILES, WhisperSettings


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model": " "}, "model must be a folder"),
        ({"profile": "fast"}, "profile must be one of realtime, accurate, got 'fast'"),
        ({"task": "answer"}, "task must be one of transcribe, translate"),
        ({"device": "tpu"}, "device must be one of auto, cpu, cuda"),
        ({"workers": 0}, "workers must be from 1"),
        ({"slots": -1}, "slots must be from 0"),
        ({"cpu_threads": -1}, "cpu_threads"),
        ({"partial_interval_seconds": 0.0}, "partial_interval_seconds"),
        ({"window_seconds": 30.0}, "window_seconds must be from 1 to 29"),
        ({"window_seconds": 20.0, "longest_window_seconds": 10.0}, "longest_window_seconds must be from 20 to 29"),
        ({"window_seconds": 1.0, "longest_window_seconds": 2.0, "partial_interval_seconds": 1.5}, "at most half"),
        ({"prompt_characters": -1}, "prompt_characters"),
        ({"detect_seconds": -1.0}, "detect_seconds"),
        ({"backlog_seconds": 0.0}, "backlog_seconds"),
        ({"ahead_seconds": 2.0, "partial_interval_seconds": 1.5}, "at least twice partial_interval_seconds"),
        ({"ahead_seconds": 31.0}, "ahead_seconds must be from 0 to 30"),
        ({"language": "xx"}, "not 'xx'"),
        ({"default_delay_seconds": 0.1}, "multiple of 0.08"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(EngineError, match=told):
        WhisperSettings(**settings)


def test_slots_follow_the_workers_unless_they_are_said() -> None:
    assert WhisperSettings(workers=3).slot_count == 24
    assert WhisperSettings(workers=3, slots=5).slot_count == 5


def test_the_profiles_differ_in_their_beam_alone() -> None:
    realtime, accurate = PROFILES["realtime"], PROFILES["accurate"]
    assert (realtime.beam_size, realtime.best_of) == (1, 1)
    assert (accurate.beam_size, accurate.best_of) == (5, 5)
    for profile in (realtime, accurate):
        assert (profile.patience, profile.temperature, profile.length_penalty) == (1, 0, 1)
        assert (profile.compression_ratio_threshold, profile.no_speech_threshold) == (2.4, 0.6)
        assert profile.log_prob_threshold == -1


def test_the_languages_are_those_of_the_library() -> None:
    tokenizer = pytest.importorskip("faster_whisper.tokenizer")
    assert set(LANGUAGES) == set(tokenizer._LANGUAGE_CODES)


@pytest.mark.parametrize(
    ("asked", "code"), [(None, None), ("", None), ("en", "en"), ("en_US", "en"), ("PT-br", "pt"), ("yue", "yue")]
)
def test_a_language_is_its_code_without_the_country(asked: str | None, code: str | None) -> None:
    assert check_language(asked, LANGUAGES) == code


def test_a_language_that_the_model_does_not_know_is_refused() -> None:
    with pytest.raises(EngineError, match="100 languages, not 'xx'"):
        check_language("xx", LANGUAGES)
    with pytest.raises(EngineError, match="English only, not 'de'"):
        check_language("de", ("en",))


@pytest.fixture
def _no_settings_of_whoever_runs_this(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        for name in environment_names(field):
            monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("_no_settings_of_whoever_runs_this")
def test_every_flag_reaches_the_engine() -> None:
    flags = {
        "model": "tiny.en",
        "model-dir": "/models",
        "device": "cpu",
        "compute-type": " Float32 ",
        "cpu-threads": "3",
        "workers": "2",
        "slots": "5",
        "profile": "accurate",
        "task": "translate",
        "language": " ko ",
        "interval-seconds": "1",
        "window-seconds": "20",
        "prompt-characters": "7",
    }
    given = [f"--whisper-{name}={value}" for name, value in flags.items()]
    settings = read(
        ["--engine", "whisper", "--delay-ms", "960", "--no-whisper-vad", "--no-whisper-download", *given], {}
    )
    engine, reason = build_engine(settings)
    assert isinstance(engine, WhisperEngine)
    assert reason == "asked for"
    assert engine.settings == WhisperSettings(
        model="tiny.en",
        model_dir="/models",
        download=False,
        device="cpu",
        compute_type="float32",
        cpu_threads=3,
        workers=2,
        slots=5,
        profile="accurate",
        task="translate",
        language="ko",
        default_delay_seconds=0.96,
        partial_interval_seconds=1.0,
        window_seconds=20.0,
        prompt_characters=7,
        vad_filter=False,
    )


@pytest.mark.usefixtures("_no_settings_of_whoever_runs_this")
def test_without_flags_the_engine_has_its_own_defaults() -> None:
    engine, _ = build_engine(read(["--engine", "whisper"], {}))
    assert isinstance(engine, WhisperEngine)
    assert engine.settings == WhisperSettings()
