"""How many live streams a GPU carries: bounded by memory, by arithmetic, by memory bandwidth and by the host's CPU.

Every figure carries its basis, so that nobody takes an estimate for a fact:

- ``given``: chosen by the caller;
- ``counted``: follows exactly from the model's shape and from how vLLM lays out its cache;
- ``data sheet``: what the maker of the GPU says;
- ``measured``: of this project, on the machine named;
- ``estimate``: a round number of experience. The bounds that rest on one say so too, for a chain is as good as its weakest link.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from sizing.gpus import Gpu
from sizing.kv import GPU_BATCHES_IN_FLIGHT, GPU_BLOCK_TOKENS, KvCache, kv_cache, kv_layout
from sizing.shape import STEP_SECONDS, ModelShape, SizingError

GIB = 2**30
MIB = 2**20

Basis = Literal["given", "counted", "data sheet", "measured", "estimate"]

Weights = Literal["bf16", "fp8", "int4"]
MATRIX_BYTES: dict[str, float] = {"bf16": 2.0, "fp8": 1.0, "int4": 0.5 + 4 / 64}
"""Bytes per parameter of a quantised matrix. int4: a 32-bit scale for every 64 numbers, as bitsandbytes stores it."""

KV_BYTES: dict[str, int] = {"auto": 2, "bf16": 2, "fp8": 1, "float32": 4}

LEFT_PAD_TOKENS = 32
"""With the start token and the delay's tokens, what stands before the first step of audio."""
RIGHT_PAD_TOKENS = 10
"""Steps after the end of the audio, beyond those of the delay."""

FRONT_END_MS = 5.5
"""CPU time of the front-end process per second of audio, 32 live streams of a small checkpoint on a small AMD server core. vLLM's own
endpoint took 12.3 to 17.9 ms there."""

RUNTIME_GIB = 1.0
"""CUDA's context, libraries and captured graphs."""


def prompt_tokens(delay_ms: int) -> int:
    """What the prompt of every segment takes of ``max_model_len``."""
    return 1 + LEFT_PAD_TOKENS + round(delay_ms / 1000 / STEP_SECONDS)


def segment_seconds(max_model_len: int, delay_ms: int) -> float:
    """The longest audio that one segment holds; not positive when not even a step does."""
    return (max_model_len - prompt_tokens(delay_ms) - RIGHT_PAD_TOKENS) * STEP_SECONDS


@dataclass(frozen=True, slots=True)
class Setup:
    """What is to be served how. ``compute_efficiency`` and ``bandwidth_efficiency`` are the parts of the data sheet's rates that
    steps of this kind reach; ``front_end_cores`` are cores that take in audio, each ``front_end_ms`` per second of it.
    ``max_num_batched_tokens`` 0 takes the GPU's default.
    """

    gpu: Gpu
    delay_ms: int = 480
    max_model_len: int = 1024
    max_num_batched_tokens: int = 0
    gpu_memory_utilization: float = 0.92
    weights: str = "bf16"
    kv_dtype: str = "auto"
    front_end_ms: float = FRONT_END_MS
    front_end_cores: int = 1
    compute_efficiency: float = 0.4
    bandwidth_efficiency: float = 0.6
    block_tokens: int = GPU_BLOCK_TOKENS
    batches_in_flight: int = GPU_BATCHES_IN_FLIGHT

    @property
    def batched_tokens(self) -> int:
        """The bound of one engine step in tokens."""
        return self.max_num_batched_tokens or self.gpu.batched_tokens

    @property
    def segment_seconds(self) -> float:
        """The longest audio of one segment."""
        return segment_seconds(self.max_model_len, self.delay_ms)

    def check(self) -> None:
        """Raise SizingError for the first thing that makes no sense."""
        for name, value, known in (("weights", self.weights, MATRIX_BYTES), ("KV dtype", self.kv_dtype, KV_BYTES)):
            if value not in known:
                raise SizingError(f"{name} {value!r:.30}: one of {', '.join(known)} is expected")
        if self.delay_ms % 80 or not 80 <= self.delay_ms <= 2400:
            raise SizingError(f"a delay of {self.delay_ms} ms: a multiple of 80 in 80..2400 is expected")
        if self.segment_seconds <= 0:
            least = prompt_tokens(self.delay_ms) + RIGHT_PAD_TOKENS + 1
            raise SizingError(f"a max_model_len of {self.max_model_len}: at this delay at least {least} are needed")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise SizingError(
                f"a gpu_memory_utilization of {self.gpu_memory_utilization}: above 0, at most 1 is expected"
            )
        for name in ("front_end_ms", "front_end_cores", "compute_efficiency", "bandwidth_efficiency", "batched_tokens"):
            if not getattr(self, name) > 0:
                raise SizingError(f"{name} is {getattr(self, name)}: more than 0 is expected")


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a plan. ``name`` is for programs, ``text`` for people; ``unit`` is empty for a plain number."""

    name: str
    text: str
    value: float
    unit: str
    basis: Basis
    note: str = ""


@dataclass(frozen=True, slots=True)
class Bound:
    """How many streams one resource allows."""

    resource: str
    streams: int
    basis: Basis
    note: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What came out. ``kv`` is None when the weights leave no room for a single block."""

    shape: ModelShape
    setup: Setup
    figures: tuple[Figure, ...]
    bounds: tuple[Bound, ...]
    kv: KvCache | None

    @property
    def binding(self) -> Bound:
        """The bound that is reached first."""
        return min(self.bounds, key=lambda bound: bound.streams)

    def figure(self, name: str) -> float:
        """The value of a line.

        Raises:
            KeyError: there is none of that name.
        """
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(name)


def plan(shape: ModelShape, setup: Setup) -> Plan:
    """Work it all out.

    Raises:
        SizingError: the setup makes no sense.
    """
    setup.check()
    gpu, element_bytes = setup.gpu, KV_BYTES[setup.kv_dtype]
    weight_bytes = round(shape.matrix_parameters * MATRIX_BYTES[setup.weights]) + 2 * shape.other_parameters
    activation_bytes = _activation_bytes(shape, setup.batched_tokens)
    budget = gpu.memory_gib * GIB * setup.gpu_memory_utilization
    kv_budget = max(0, math.floor(budget - weight_bytes - activation_bytes - RUNTIME_GIB * GIB))

    layout = kv_layout(shape, element_bytes, setup.block_tokens)
    cache = kv_cache(layout, kv_budget, setup.max_model_len, setup.batched_tokens, setup.batches_in_flight)
    text_blocks = layout.text.blocks(setup.max_model_len, setup.batches_in_flight)
    audio_blocks = layout.audio.blocks(setup.max_model_len, setup.batches_in_flight)
    usable_blocks = max(0, cache.blocks - 1)  # vLLM keeps one to itself

    flops = shape.flops_per_step(setup.max_model_len)
    kv_read = shape.kv_bytes_read_per_step(setup.max_model_len, element_bytes)
    step_flops = gpu.bf16_tflops * 1e12 * setup.compute_efficiency * STEP_SECONDS
    step_bytes = gpu.bandwidth_tb_per_second * 1e12 * setup.bandwidth_efficiency * STEP_SECONDS

    figures = (
        Figure("parameters", "parameters", shape.parameters, "", "counted", shape.source),
        _gib(
            "weight_bytes",
            f"weights, {setup.weights}",
            weight_bytes,
            "counted" if setup.weights == "bf16" else "estimate",
        ),
        _gib(
            "memory_bytes",
            f"memory of {gpu.name} that may be used",
            budget,
            "data sheet",
            f"{setup.gpu_memory_utilization:g} of it",
        ),
        _gib(
            "activation_bytes",
            "activations",
            activation_bytes,
            "estimate",
            f"steps of up to {setup.batched_tokens} tokens",
        ),
        _gib("runtime_bytes", "CUDA context, libraries, graphs", RUNTIME_GIB * GIB, "estimate"),
        _gib("kv_bytes", "left for keys and values", kv_budget, "estimate"),
        Figure("kv_block_bytes", "a block of the cache", layout.block_bytes / MIB, "MiB", "counted"),
        Figure(
            "kv_text_bytes_per_stream",
            "keys and values of a stream, text decoder",
            text_blocks * layout.block_bytes / MIB,
            "MiB",
            "counted",
            f"{text_blocks} blocks at {setup.max_model_len} tokens",
        ),
        Figure(
            "kv_audio_bytes_per_stream",
            "keys and values of a stream, audio encoder",
            audio_blocks * layout.block_bytes / MIB,
            "MiB",
            "counted",
            f"{audio_blocks} blocks for a window of {shape.audio.window} frames",
        ),
        Figure("vllm_kv_tokens", "vLLM will log 'KV cache size'", cache.tokens, "tokens", "estimate"),
        Figure(
            "vllm_concurrency",
            "vLLM will log 'Maximum concurrency'",
            cache.concurrency,
            "x",
            "estimate",
            f"{cache.worst_blocks_per_stream} blocks each: whole batches in flight for every stream",
        ),
        Figure("flops_per_step", "arithmetic of a stream per 80 ms", flops / 1e9, "GFLOP", "counted"),
        Figure("kv_read_bytes_per_step", "cache read for a stream per 80 ms", kv_read / MIB, "MiB", "counted"),
        Figure("compute_efficiency", "part of the GPU's arithmetic reached", setup.compute_efficiency, "", "estimate"),
        Figure(
            "bandwidth_efficiency", "part of the GPU's bandwidth reached", setup.bandwidth_efficiency, "", "estimate"
        ),
        Figure(
            "front_end_ms",
            "front-end CPU per second of audio",
            setup.front_end_ms,
            "ms",
            "measured" if setup.front_end_ms == FRONT_END_MS else "given",
        ),
        Figure(
            "prompt_tokens",
            f"prompt at a delay of {setup.delay_ms} ms",
            prompt_tokens(setup.delay_ms),
            "tokens",
            "counted",
        ),
        Figure("segment_seconds", "longest audio of one segment", setup.segment_seconds, "s", "counted"),
    )
    bounds = (
        Bound("memory", usable_blocks // (text_blocks + audio_blocks), "estimate", "every stream at its longest"),
        Bound("compute", math.floor(step_flops / flops), "estimate", "at the rate of 16-bit arithmetic"),
        Bound(
            "bandwidth",
            max(0, math.floor((step_bytes - weight_bytes) / kv_read)),
            "estimate",
            "weights read once per 80 ms for all streams together",
        ),
        Bound(
            "host CPU",
            math.floor(setup.front_end_cores * 1000 / setup.front_end_ms),
            "measured" if setup.front_end_ms == FRONT_END_MS else "given",
            f"{setup.front_end_cores} core{'s' if setup.front_end_cores > 1 else ''} taking in audio",
        ),
    )
    return Plan(shape, setup, figures, bounds, cache if cache.blocks else None)


def _gib(name: str, text: str, size_bytes: float, basis: Basis, note: str = "") -> Figure:
    return Figure(name, text, size_bytes / GIB, "GiB", basis, note)


def _activation_bytes(shape: ModelShape, batched_tokens: int) -> int:
    """The widest moment of a step: gate, product and residual of a feed-forward, in the encoder for every frame of a token."""
    text, audio = shape.text, shape.audio
    encoder = audio.frames_per_token * (3 * audio.hidden_dim + 2 * audio.dim)
    return 2 * batched_tokens * max(encoder, 3 * text.hidden_dim + 2 * text.dim)


def as_json(made: Plan) -> dict[str, Any]:
    """The plan for programs."""
    setup = made.setup
    return {
        "model": {"name": made.shape.name, "source": made.shape.source},
        "gpu": setup.gpu.name,
        "delay_ms": setup.delay_ms,
        "max_model_len": setup.max_model_len,
        "max_num_batched_tokens": setup.batched_tokens,
        "gpu_memory_utilization": setup.gpu_memory_utilization,
        "weights": setup.weights,
        "kv_dtype": setup.kv_dtype,
        "figures": {
            figure.name: {"value": figure.value, "unit": figure.unit, "basis": figure.basis} for figure in made.figures
        },
        "bounds": {bound.resource: {"streams": bound.streams, "basis": bound.basis} for bound in made.bounds},
        "binding": made.binding.resource,
        "streams": made.binding.streams,
    }


def as_text(made: Plan) -> str:
    """The plan for people: a table of figures, a table of bounds, and a sentence."""
    setup = made.setup
    title = (
        f"{made.shape.name} on one {setup.gpu.name}: weights {setup.weights}, KV {setup.kv_dtype}, "
        f"max_model_len {setup.max_model_len}, delay {setup.delay_ms} ms"
    )
    rows = [("", "", "basis", "")]
    rows += [(one.text, _number(one.value, one.unit), one.basis, one.note) for one in made.figures]
    rows += [("", "", "", ""), ("streams at once, bounded by", "", "", "")]
    for bound in made.bounds:
        mark = "<- binds" if bound is made.binding else ""
        rows.append((f"  {bound.resource}", str(bound.streams), bound.basis, f"{bound.note} {mark}".strip()))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        f"{text:<{widths[0]}}  {value:>{widths[1]}}  {basis:<{widths[2]}}  {note}".rstrip()
        for text, value, basis, note in rows
    ]
    return "\n".join([title, *lines, "", _sentence(made)])


def _number(value: float, unit: str) -> str:
    digits = 0 if value >= 1000 or value == int(value) else 1 if value >= 10 else 2
    shown = f"{value:,.{digits}f}"
    return f"{shown} {unit}".strip() if unit != "x" else f"{shown}x"


def _sentence(made: Plan) -> str:
    bound = made.binding
    if made.kv is None:
        return (
            f"The weights leave no room for a stream on a {made.setup.gpu.name}: quantise them, or take a larger GPU."
        )
    if bound.streams == 0:
        return f"Not one stream: {bound.resource} does not suffice."
    return (
        f"About {bound.streams} live streams, bounded by {bound.resource}. Bounds marked 'estimate' are no better than the "
        "estimates above; measure before you rely on them."
    )
