"""Chooses what the operator left open: how many streams at once, how many tokens per step, which KV cache, and says why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.engines.base import EngineError
from server.engines.vllm.settings import VllmSettings

_BATCHED_TOKENS = (("H100", 4096), ("H200", 4096), ("B200", 4096), ("RTX 9000", 4096))
_BATCHED_TOKENS_ELSE = 2048
_CPU_SEQS = 64
_GPU_SEQS = 128
_MOST_SEQS = 512
_FP8_CAPABILITY = (8, 9)
_FLOAT32_WEIGHTS_BYTES = 2 << 30
_BYTES = {"float32": 4, "auto": 2, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}


@dataclass(frozen=True, slots=True)
class Machine:
    """What vLLM will run on. ``gpu_name`` empty: a CPU build. ``capability`` is CUDA's."""

    gpu_name: str = ""
    gpu_memory_bytes: int = 0
    capability: tuple[int, int] = (0, 0)
    bitsandbytes: bool = False

    @property
    def cuda(self) -> bool:
        """Whether there is a GPU."""
        return bool(self.gpu_name)


@dataclass(frozen=True, slots=True)
class Choice:
    """One line of the table."""

    name: str
    value: str
    why: str


@dataclass(frozen=True, slots=True)
class Tuned:
    """Settings with nothing left open, and what was chosen."""

    settings: VllmSettings
    choices: tuple[Choice, ...]

    def table(self) -> str:
        """The choices for people to read."""
        widths = [max(len(getattr(choice, column)) for choice in self.choices) for column in ("name", "value")]
        return "\n".join(f"{c.name:<{widths[0]}}  {c.value:<{widths[1]}}  {c.why}" for c in self.choices)


def batched_tokens(gpu_name: str) -> int:
    """Tokens per engine step that suit the GPU."""
    name = gpu_name.upper()
    return next((tokens for part, tokens in _BATCHED_TOKENS if part in name), _BATCHED_TOKENS_ELSE)


def kv_bytes_per_stream(params: Mapping[str, Any], tokens: int, max_batched_tokens: int, value_bytes: int) -> int:
    """Upper bound of the KV cache that one stream of ``tokens`` needs, text decoder and audio encoder.

    The encoder has ``downsample_factor`` positions per token and as many key heads as query heads: it needs the most.
    """
    encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    factor = params["multimodal"]["whisper_model_args"]["downsample_args"]["downsample_factor"]

    def positions(window: int | None, most: int, step: int) -> int:
        return most if window is None else min(most, window - 1 + step)

    text_positions = positions(params.get("sliding_window"), tokens, max_batched_tokens)
    audio_positions = positions(encoder.get("sliding_window"), tokens * factor, max_batched_tokens * factor)
    text = params["n_layers"] * params["n_kv_heads"] * params["head_dim"] * text_positions
    audio = encoder["n_layers"] * encoder["n_kv_heads"] * encoder["head_dim"] * audio_positions
    return int(2 * value_bytes * (text + audio))


def most_streams(
    params: Mapping[str, Any], settings: VllmSettings, max_batched_tokens: int, memory_bytes: int, weight_bytes: int
) -> int:
    """How many streams of full length fit the GPU's memory, with a tenth left over; 1 to 512."""
    budget = (memory_bytes * settings.gpu_memory_utilization - weight_bytes) * 0.9
    value_bytes = 1 if settings.kv_cache_dtype.startswith("fp8") else _BYTES.get(settings.dtype, 2)
    each = kv_bytes_per_stream(params, settings.max_model_len, max_batched_tokens, value_bytes)
    return max(1, min(_MOST_SEQS, int(budget // each)))


def tune(settings: VllmSettings, machine: Machine, params: Mapping[str, Any]) -> Tuned:
    """Decide what was left open.

    Raises:
        EngineError: the machine cannot do what was asked for.
    """
    where = machine.gpu_name if machine.cuda else "CPU"
    memory = f", {machine.gpu_memory_bytes / 2**30:.0f} GiB" if machine.cuda else ""
    choices = [Choice("device", where, f"what vLLM is built for here{memory}")]

    if settings.quantization == "bitsandbytes":
        if not machine.cuda:
            raise EngineError(
                "--quantization=bitsandbytes needs CUDA: vLLM's CPU build cannot load it; leave the option out"
            )
        if not machine.bitsandbytes:
            raise EngineError("--quantization=bitsandbytes: pip install bitsandbytes first, or leave the option out")
        choices.append(Choice("quantization", "bitsandbytes", "asked for"))

    kv_cache_dtype, why = settings.kv_cache_dtype, "default" if settings.kv_cache_dtype == "auto" else "asked for"
    if kv_cache_dtype.startswith("fp8") and machine.capability < _FP8_CAPABILITY:
        kv_cache_dtype, why = "auto", f"{settings.kv_cache_dtype} was asked for, but {where} has no FP8"
    choices.append(Choice("kv-cache-dtype", kv_cache_dtype, why))

    if settings.calculate_kv_scales:
        choices.append(
            Choice("calculate-kv-scales", "off", "asked for, but vLLM 0.32 reads scales from the checkpoint alone")
        )

    tokens, why = settings.max_num_batched_tokens, "asked for"
    if tokens is None:
        tokens, why = batched_tokens(machine.gpu_name), f"suits {where}"
    choices.append(Choice("max-num-batched-tokens", str(tokens), why))

    filled = replace(settings, kv_cache_dtype=kv_cache_dtype, max_num_batched_tokens=tokens)
    seqs, why = settings.max_num_seqs, "asked for"
    if seqs is None:
        seqs, why = _CPU_SEQS, "default on a CPU"
        if machine.cuda:
            seqs, why = _estimate(filled, machine, params, tokens)
    choices.append(Choice("max-num-seqs", str(seqs), why))

    eager, eager_why = _eager(settings, machine)
    dtype, dtype_why = _dtype(settings, machine)
    kind = "one for all streams, vLLM's own model class" if settings.uniform_delay else "default; each stream may ask"
    choices += [
        Choice("delay", f"{settings.default_delay_ms} ms", kind),
        Choice("max-model-len", str(settings.max_model_len), "bounds one segment; longer streams roll"),
        Choice("dtype", dtype, dtype_why),
        Choice("mode", "eager" if eager else "compiled", eager_why),
    ]
    final = replace(filled, max_num_seqs=seqs, enforce_eager=eager, dtype=dtype)
    return Tuned(final, tuple(choices))


def _eager(settings: VllmSettings, machine: Machine) -> tuple[bool, str]:
    if settings.enforce_eager is not None:
        return settings.enforce_eager, "asked for"
    if machine.cuda:
        return False, "CUDA graphs save time in every step"
    return True, "on a CPU compiling costs 30 s at start and saves 1 ms per step"


def _dtype(settings: VllmSettings, machine: Machine) -> tuple[str, str]:
    if settings.dtype != "auto":
        return settings.dtype, "asked for"
    if not machine.cuda and _weight_bytes(settings) < _FLOAT32_WEIGHTS_BYTES:
        return "float32", "small enough for a CPU; what a stream says then depends on nothing but its audio"
    return "auto", "auto takes the checkpoint's"


def _weight_bytes(settings: VllmSettings) -> int:
    return sum(file.stat().st_size for file in Path(settings.model_dir).glob("consolidated*.safetensors"))


def _estimate(settings: VllmSettings, machine: Machine, params: Mapping[str, Any], tokens: int) -> tuple[int, str]:
    try:
        return (
            most_streams(params, settings, tokens, machine.gpu_memory_bytes, _weight_bytes(settings)),
            "fits the memory that weights leave",
        )
    except KeyError as error:
        return _GPU_SEQS, f"default: params.json lacks {error}"
