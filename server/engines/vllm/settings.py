"""What can be set about the vLLM engine, checked when it is set."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.engines.base import EngineError
from server.engines.vllm.delays import check_ms

LEAST_MODEL_LEN = 400
"""Below this a segment would be shorter than the margins that rolling needs."""

CHAT_MODEL = "mistralai/Voxtral-Mini-3B-2507"

LEAST_CHAT_MODEL_LEN = 1024
"""One recording of 30 seconds is 375 tokens; below this there is no room for a question and an answer about two."""


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """Fitted to the machine when None: ``max_num_seqs``, ``max_num_batched_tokens``, ``enforce_eager``. ``compilation_config`` is JSON,
    or empty for vLLM's own.

    With ``uniform_delay`` vLLM's unmodified model class is served and every stream has ``default_delay_ms``. ``waiting`` is how many
    segments may wait for a slot (0: as many as there are slots), ``waiting_seconds`` for how long; after that they fail.
    ``backlog_seconds`` bounds the audio that one stream may have handed over and not been heard with.
    """

    model_dir: Path
    model_id: str = "mistralai/Voxtral-Mini-4B-Realtime-2602"
    default_delay_ms: int = 480
    uniform_delay: bool = False
    allow_untrained_delay: bool = False
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.92
    max_model_len: int = 1024
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool | None = None
    kv_cache_dtype: str = "auto"
    calculate_kv_scales: bool = False
    compilation_config: str = '{"cudagraph_mode":"PIECEWISE"}'
    disable_compile_cache: bool = True
    quantization: str = ""
    load_format: str = "mistral"
    show_vllm_logs: bool = False
    waiting: int = 0
    waiting_seconds: float = 10.0
    backlog_seconds: float = 60.0

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting.

        Raises:
            EngineError: with the setting's name, its value and what it may be.
        """
        check_ms(self.default_delay_ms, untrained=self.allow_untrained_delay)
        if not 0 < self.gpu_memory_utilization <= 1:
            raise EngineError(
                f"gpu-memory-utilization must be above 0 and at most 1, got {self.gpu_memory_utilization!r}"
            )
        if self.max_model_len < LEAST_MODEL_LEN:
            raise EngineError(f"max-model-len must be at least {LEAST_MODEL_LEN}, got {self.max_model_len!r}")
        for name, value in (
            ("max-num-seqs", self.max_num_seqs),
            ("max-num-batched-tokens", self.max_num_batched_tokens),
        ):
            if value is not None and value < 1:
                raise EngineError(f"{name} must be at least 1, got {value!r}")
        if self.quantization not in ("", "none", "bitsandbytes"):
            raise EngineError(f"quantization must be none or bitsandbytes, got {self.quantization!r}")
        self.compilation()

    def compilation(self) -> dict[str, Any] | None:
        """vLLM's compilation configuration; None leaves it to vLLM.

        Raises:
            EngineError: it is no JSON object.
        """
        text = self.compilation_config.strip()
        if text.lower() in ("", "null", "none"):
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise EngineError(f"compilation-config must be a JSON object or none: {error}") from None
        if not isinstance(value, dict):
            raise EngineError(f"compilation-config must be a JSON object or none, got {text[:80]!r}")
        return value


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How Voxtral Mini 3B is served. ``waiting`` is how many requests may wait behind the ``max_num_seqs`` that are worked on."""

    model_dir: Path
    model_id: str = CHAT_MODEL
    dtype: str = "auto"
    gpu_memory_utilization: float = 0.3
    max_model_len: int = 32768
    max_num_seqs: int = 16
    enforce_eager: bool | None = None
    disable_compile_cache: bool = True
    load_format: str = "mistral"
    show_vllm_logs: bool = False
    waiting: int = 64

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting.

        Raises:
            EngineError: with the setting's name, its value and what it may be.
        """
        if not 0 < self.gpu_memory_utilization <= 1:
            raise EngineError(
                f"chat-gpu-memory-utilization must be above 0 and at most 1, got {self.gpu_memory_utilization!r}"
            )
        if self.max_model_len < LEAST_CHAT_MODEL_LEN:
            raise EngineError(f"chat-max-model-len must be at least {LEAST_CHAT_MODEL_LEN}, got {self.max_model_len!r}")
        if self.max_num_seqs < 1:
            raise EngineError(f"chat-max-num-seqs must be at least 1, got {self.max_num_seqs!r}")
