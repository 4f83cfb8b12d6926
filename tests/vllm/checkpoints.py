"""Makes tiny Voxtral Realtime checkpoints with random weights, in Mistral's format, which real vLLM serves.

They understand nothing, but their tokens depend on the audio, on the transcription delay and on all that was heard before, so that two
ways of serving them agree only if they do the same. Every token they say is a word of its own: the rows of the output matrix that
belong to bytes and special tokens are zero, so these are never the likeliest.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPECIAL = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    11: "<pad>",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    30: "[ARGS]",
    31: "[CALL_ID]",
    32: "[STREAMING_PAD]",
    33: "[STREAMING_WORD]",
    34: "[TRANSCRIBE]",
}
SILENT = (32, 33, 10, 12, 13, 20, 21, 22, 23, 26, 27, 28, 29)
"""Special tokens that a model may say without text: padding, word mark, those without a meaning."""

SPECIALS = 35
BYTES = 256


@dataclass(frozen=True, slots=True)
class Stack:
    """The layers of one half. ``window`` is what their attention sees, in their own positions; only the text decoder may have fewer
    ``kv_heads`` than heads.
    """

    layers: int = 2
    heads: int = 2
    head_width: int = 32
    window: int = 96
    kv_heads: int | None = None

    @property
    def queries(self) -> int:
        """Rows of the matrix of queries."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Rows of those of keys and of values."""
        return (self.kv_heads or self.heads) * self.head_width


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is. ``silent`` is how many of its tokens are without text, beside ``words`` that have some."""

    words: int = 64
    silent: int = 0
    width: int = 64
    hidden: int = 128
    text: Stack = Stack()
    encoder: Stack = Stack(window=120)
    delay_ms: int = 480
    seed: int = 0

    @property
    def vocabulary(self) -> int:
        return SPECIALS + BYTES + self.words


def make(directory: Path, shape: Shape | None = None) -> Path:
    """Write a checkpoint into the directory."""
    from safetensors.numpy import save_file

    shape = shape or Shape()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tekken.json").write_text(json.dumps(tokenizer(shape)))
    (directory / "params.json").write_text(json.dumps(parameters(shape)))
    save_file(weights(shape), directory / "consolidated.safetensors", metadata={"format": "pt"})
    return directory


def with_delay(directory: Path, target: Path, delay_ms: int) -> Path:
    """A copy of the checkpoint whose tokenizer has that delay, as operators of vLLM's own server make it."""
    target.mkdir(parents=True)
    for name in ("params.json", "consolidated.safetensors"):
        (target / name).symlink_to(directory / name)
    tekken = json.loads((directory / "tekken.json").read_text())
    tekken["audio"]["transcription_delay_ms"] = delay_ms
    (target / "tekken.json").write_text(json.dumps(tekken))
    return target


def tokenizer(shape: Shape) -> dict[str, Any]:
    """The content of ``tekken.json``: all bytes, then words with a space before them."""
    texts = [bytes([value]) for value in range(BYTES)] + [f" w{word}".encode() for word in range(shape.words)]
    return {
        "config": {
            "pattern": r"\p{L}+|\p{N}|\s+|[^\p{L}\p{N}\s]+",
            "num_vocab_tokens": len(texts),
            "default_vocab_size": shape.vocabulary,
            "default_num_special_tokens": SPECIALS,
            "version": "v13",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": text.decode("utf-8", "ignore")}
            for rank, text in enumerate(texts)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(SPECIALS)
        ],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "transcription_format": "streaming",
            "transcription_delay_ms": shape.delay_ms,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": 32,
        },
    }


def parameters(shape: Shape) -> dict[str, Any]:
    """The content of ``params.json``."""
    common = {"dim": shape.width, "hidden_dim": shape.hidden, "norm_eps": 1e-5}
    encoder = (
        common
        | _stack(shape.encoder)
        | {
            "audio_encoding_args": {
                "sampling_rate": 16000,
                "frame_rate": 12.5,
                "num_mel_bins": 128,
                "hop_length": 160,
                "window_size": 400,
                "global_log_mel_max": 1.5,
                "transcription_format": "streaming",
            },
            "vocab_size": shape.vocabulary,
            "use_biases": True,
            "use_cache": False,
            "causal": True,
            "pos_embed": "rope",
            "ffn_type": "swiglu",
            "norm_type": "rms_norm",
            "rope_theta": 1e6,
            "max_source_positions": None,
        }
    )
    return (
        common
        | _stack(shape.text)
        | {
            "use_biases": False,
            "causal": True,
            "rope_theta": 1e6,
            "vocab_size": shape.vocabulary,
            "tied_embeddings": False,
            "model_parallel": 1,
            "dtype": "float32",
            "max_position_embeddings": 131072,
            "ada_rms_norm_t_cond": True,
            "ada_rms_norm_t_cond_dim": 32,
            "multimodal": {
                "whisper_model_args": {"encoder_args": encoder, "downsample_args": {"downsample_factor": 4}}
            },
        }
    )


def _stack(stack: Stack) -> dict[str, Any]:
    return {
        "n_layers": stack.layers,
        "n_heads": stack.heads,
        "n_kv_heads": stack.kv_heads or stack.heads,
        "head_dim": stack.head_width,
        "sliding_window": stack.window,
    }


def weights(shape: Shape) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Random tensors under the names of Mistral's format, scaled so that activations neither die nor explode."""
    random = np.random.default_rng(shape.seed)
    tensors: dict[str, np.ndarray[Any, np.dtype[np.float32]]] = {}

    def matrix(name: str, *size: int, gain: float = 1.5, bias: bool = False) -> None:
        inputs = int(np.prod(size[1:]))
        tensors[f"{name}.weight"] = (random.standard_normal(size) * gain * inputs**-0.5).astype(np.float32)
        if bias:
            tensors[f"{name}.bias"] = (random.standard_normal(size[0]) * 0.1).astype(np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = (1 + 0.2 * random.standard_normal(shape.width)).astype(np.float32)

    width = shape.width
    root = "mm_streams_embeddings.embedding_module"
    encoder = f"{root}.whisper_encoder"
    matrix(f"{encoder}.conv_layers.0.conv", width, 128, 3, bias=True)
    matrix(f"{encoder}.conv_layers.1.conv", width, width, 3, bias=True)
    for layer in range(shape.encoder.layers):
        at = f"{encoder}.transformer.layers.{layer}"
        for part, bias in (("wq", True), ("wk", False), ("wv", True)):
            matrix(f"{at}.attention.{part}", shape.encoder.queries, width, bias=bias)
        matrix(f"{at}.attention.wo", width, shape.encoder.queries, bias=True)
        matrix(f"{at}.feed_forward.w1", shape.hidden, width)
        matrix(f"{at}.feed_forward.w2", width, shape.hidden, bias=True)
        matrix(f"{at}.feed_forward.w3", shape.hidden, width)
        norm(f"{at}.attention_norm")
        norm(f"{at}.ffn_norm")
    norm(f"{encoder}.transformer.norm")
    matrix(f"{root}.audio_language_projection.0", width, 4 * width)
    matrix(f"{root}.audio_language_projection.2", width, width)
    matrix(f"{root}.tok_embeddings", shape.vocabulary, width, gain=4.0)
    for layer in range(shape.text.layers):
        at = f"layers.{layer}"
        for part, rows in (("wq", shape.text.queries), ("wk", shape.text.keys), ("wv", shape.text.keys)):
            matrix(f"{at}.attention.{part}", rows, width)
        matrix(f"{at}.attention.wo", width, shape.text.queries)
        matrix(f"{at}.feed_forward.w1", shape.hidden, width)
        matrix(f"{at}.feed_forward.w2", width, shape.hidden)
        matrix(f"{at}.feed_forward.w3", shape.hidden, width)
        norm(f"{at}.attention_norm")
        norm(f"{at}.ffn_norm")
        matrix(f"{at}.ada_rms_norm_t_cond.0", 32, width)
        matrix(f"{at}.ada_rms_norm_t_cond.2", width, 32)
    norm("norm")
    matrix("output", shape.vocabulary, width, gain=4.0)
    mute = np.ones(shape.vocabulary, bool)
    mute[SPECIALS + BYTES :] = False
    mute[list(SILENT[: shape.silent])] = False
    tensors["output.weight"][mute] = 0.0
    return tensors


def sound(seconds: float, seed: int, bits: int = 16) -> bytes:
    """PCM16 that changes all the time: a voice-like buzz in noise, different for every seed, rounded to so many significant bits."""
    random = np.random.default_rng(seed)
    at = np.arange(round(seconds * 16000)) / 16000
    pitch = 120 + 80 * np.sin(2 * np.pi * random.uniform(0.4, 1.5) * at + seed)
    phase = 2 * np.pi * np.cumsum(pitch) / 16000
    buzz = sum(np.sin(partial * phase) / partial for partial in range(1, 9))
    loudness = 0.5 + 0.5 * np.sin(2 * np.pi * random.uniform(1.5, 4) * at)
    samples = 0.1 * buzz * loudness + 0.02 * random.standard_normal(len(at))
    mantissa, exponent = np.frexp((samples.clip(-1, 1) * 32000).astype("<i2").astype(np.float64))
    rounded: bytes = np.ldexp(np.round(np.ldexp(mantissa, bits)), exponent - bits).astype("<i2").tobytes()
    return rounded
