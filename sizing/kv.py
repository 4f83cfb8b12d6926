"""How vLLM lays out the cache of keys and values of a Voxtral Realtime model, and what one stream holds of it.

The decoder and the encoder are *groups* of layers. All groups draw blocks of one size in bytes from one pool. A block of the pool
has one page for each layer of a group; the group whose page for ``block_tokens`` tokens is the larger one sets the page, and the
other gets as many more tokens per block as fit. A group with fewer layers than the largest wastes the rest of its blocks. One
decoder token is ``frames_per_token`` encoder frames, so the encoder's window counts a quarter of its frames.

Source: ``vllm/v1/core/kv_cache_utils.py``, ``vllm/v1/kv_cache_interface.py`` and ``vllm/model_executor/models/whisper_causal.py``
of vLLM 0.32, for layouts whose outermost dimension is the layer, which is what a CPU and an unconfigured GPU use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from sizing.shape import ModelShape

GPU_BLOCK_TOKENS, CPU_BLOCK_TOKENS = 16, 128
GPU_BATCHES_IN_FLIGHT, CPU_BATCHES_IN_FLIGHT = 2, 1
"""With asynchronous scheduling, vLLM's default on a GPU, the next batch is scheduled while one runs. On a CPU it is off."""

_PADDING_RATIO = 1.5
"""Groups are padded to the largest while it has fewer than so many times the layers of the smallest, else it is split up."""

_REPORT = re.compile(
    r"KV cache size: (?P<tokens>[\d,]+) tokens, Maximum concurrency for (?P<length>[\d,]+) tokens per request: (?P<times>[\d.]+)x"
)


@dataclass(frozen=True, slots=True)
class KvGroup:
    """``copies`` groups of ``layers`` layers each. ``window`` and ``block_tokens`` count tokens of the decoder."""

    name: str
    copies: int
    layers: int
    block_tokens: int
    window: int | None

    def blocks(self, length_tokens: int, in_flight_tokens: int) -> int:
        """Blocks that a stream of that length can hold at once. One more than fit its window: the window begins anywhere in a block."""
        if self.window is None:
            return self.copies * _ceil(length_tokens, self.block_tokens)
        held = min(self.window - 1 + in_flight_tokens, length_tokens)
        return self.copies * (_ceil(held, self.block_tokens) + 1)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The groups and the bytes of one block of their pool."""

    text: KvGroup
    audio: KvGroup
    block_bytes: int

    def blocks_per_stream(self, length_tokens: int, in_flight_tokens: int) -> int:
        """Blocks of both groups together."""
        return self.text.blocks(length_tokens, in_flight_tokens) + self.audio.blocks(length_tokens, in_flight_tokens)


@dataclass(frozen=True, slots=True)
class KvCache:
    """A pool of blocks as vLLM reports it at its start.

    vLLM counts for every stream the longest it may get, with whole batches of ``max_num_batched_tokens`` under way for it alone. So
    its "maximum concurrency" is a promise for the worst moment of any model. Live speech has one token under way per step, so
    more streams fit; nothing but the blocks really held stops them.
    """

    layout: KvLayout
    blocks: int
    max_model_len: int
    worst_blocks_per_stream: int

    @property
    def concurrency(self) -> float:
        """vLLM's "Maximum concurrency"."""
        return self.blocks / self.worst_blocks_per_stream

    @property
    def tokens(self) -> int:
        """vLLM's "KV cache size": its concurrency, expressed in tokens."""
        return int(self.blocks / self.worst_blocks_per_stream * self.max_model_len)


def kv_layout(shape: ModelShape, element_bytes: int, block_tokens: int = GPU_BLOCK_TOKENS) -> KvLayout:
    """How vLLM lays the cache out. ``element_bytes`` is 4, 2 or 1, ``block_tokens`` vLLM's block size."""
    text, audio = shape.text, shape.audio
    audio_window = _ceil(audio.window, audio.frames_per_token) + 1
    text_page = block_tokens * text.kv_width * element_bytes
    audio_page = block_tokens * audio.frames_per_token * audio.kv_width * element_bytes
    if text.window == audio_window:  # one kind of attention to vLLM: one group, a page of its own for each layer
        group_layers = text.layers + audio.layers
        block_bytes = text.layers * text_page + audio.layers * audio_page
        both = KvGroup("text and audio", 1, group_layers, block_tokens, audio_window)
        return KvLayout(both, KvGroup("audio", 0, 0, block_tokens, audio_window), block_bytes)
    page = max(text_page, audio_page)
    fewest, most = sorted((text.layers, audio.layers))
    together = most if most < fewest * _PADDING_RATIO else fewest
    groups = []
    for name, layers, own_page, window in (
        ("text", text.layers, text_page, text.window),
        ("audio", audio.layers, audio_page, audio_window),
    ):
        copies = _ceil(layers, together)
        ratio = page // own_page if page % own_page == 0 else 1  # a page that does not divide the other is padded
        groups.append(KvGroup(name, copies, _ceil(layers, copies), block_tokens * ratio, window))
    return KvLayout(groups[0], groups[1], page * max(group.layers for group in groups))


def kv_cache(
    layout: KvLayout, available_bytes: int, max_model_len: int, max_num_batched_tokens: int, batches_in_flight: int
) -> KvCache:
    """What vLLM makes of so much memory."""
    worst = layout.blocks_per_stream(max_model_len, batches_in_flight * max_num_batched_tokens)
    return KvCache(layout, available_bytes // layout.block_bytes, max_model_len, worst)


@dataclass(frozen=True, slots=True)
class KvReport:
    """vLLM's line in its start-up log."""

    tokens: int
    max_model_len: int
    concurrency: float


def read_kv_report(log: str) -> KvReport | None:
    """The newest such line in a log; None when there is none."""
    reports = list(_REPORT.finditer(log))
    if not reports:
        return None
    found = reports[-1]
    tokens, length = (int(found[name].replace(",", "")) for name in ("tokens", "length"))
    return KvReport(tokens, length, float(found["times"]))


@dataclass(frozen=True, slots=True)
class KvCheck:
    """The plan held against what vLLM reports."""

    planned_tokens: int
    reported_tokens: int

    @property
    def deviation(self) -> float:
        """Relative to what is reported; negative when less was planned."""
        return self.planned_tokens / self.reported_tokens - 1

    def sentence(self) -> str:
        """For the log."""
        return (
            f"KV cache: planned {self.planned_tokens:,} tokens, vLLM reports {self.reported_tokens:,} "
            f"({self.deviation:+.1%})"
        )


def check_kv(planned: KvCache, reported_tokens: int) -> KvCheck:
    """Hold a plan against the number of tokens that vLLM reports at its start."""
    return KvCheck(planned.tokens, reported_tokens)


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
