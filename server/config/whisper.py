"""Settings of the Whisper engine."""

from __future__ import annotations

from typing import Literal

from server.config.fields import Part, setting


class Whisper(Part):
    """the whisper engine"""

    whisper_model: str = setting(
        "small",
        "EARMARK_WHISPER_MODEL",
        help="whisper: a size (tiny, base, small, medium, large-v3, turbo; tiny.en and so on), a repository of the hub, or the "
        "folder of a model converted for CTranslate2",
    )
    whisper_model_dir: str = setting(
        "", "EARMARK_WHISPER_MODEL_DIR", help="whisper: where models are fetched to; default: the hub's cache"
    )
    whisper_download: bool = setting(
        True, "EARMARK_WHISPER_DOWNLOAD", help="whisper: fetch the model when it is not there"
    )
    whisper_device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "EARMARK_WHISPER_DEVICE", help="whisper: auto takes CUDA where it is"
    )
    whisper_compute_type: str = setting(
        "auto",
        "EARMARK_WHISPER_COMPUTE_TYPE",
        help="whisper: auto (int8 on a CPU, float16 on CUDA), default (the model's own), or one of CTranslate2's",
    )
    whisper_cpu_threads: int = setting(
        0, "EARMARK_WHISPER_CPU_THREADS", help="whisper: threads of each worker; 0 leaves it to CTranslate2", ge=0
    )
    whisper_workers: int = setting(
        1, "EARMARK_WHISPER_WORKERS", help="whisper: windows decoded at the same time", ge=1, le=256
    )
    whisper_slots: int = setting(
        0, "EARMARK_WHISPER_SLOTS", help="whisper: streams heard at once; 0: 8 for each worker", ge=0
    )
    whisper_profile: Literal["realtime", "accurate"] = setting(
        "realtime", "EARMARK_WHISPER_PROFILE", help="whisper: beam of 1, or accurate: of 5"
    )
    whisper_task: Literal["transcribe", "translate"] = setting(
        "transcribe", "EARMARK_WHISPER_TASK", help="whisper: translate writes English whatever is spoken"
    )
    whisper_language: str = setting(
        "", "EARMARK_WHISPER_LANGUAGE", help="whisper: language of utterances that name none; default: detected"
    )
    whisper_interval_seconds: float = setting(
        0.48,
        "EARMARK_WHISPER_INTERVAL_SECONDS",
        help="whisper: audio after which a stream is decoded anew, if a worker is free",
        ge=0.08,
        le=5,
    )
    whisper_window_seconds: float = setting(
        12.0, "EARMARK_WHISPER_WINDOW_SECONDS", help="whisper: cut a longer window behind shown words", ge=1, le=28
    )
    whisper_prompt_characters: int = setting(
        200,
        "EARMARK_WHISPER_PROMPT_CHARACTERS",
        help="whisper: text before the window that goes with it",
        ge=0,
        le=1000,
    )
    whisper_vad: bool = setting(
        True, "EARMARK_WHISPER_VAD", help="whisper: leave silence out of windows; Whisper makes things up in it"
    )
