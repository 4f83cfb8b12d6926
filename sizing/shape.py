"""The shape of a Voxtral Realtime model: what it takes to count its weights and the work of one step.

A step is 80 ms of audio: eight mel frames, four encoder frames, one token of the text decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP_SECONDS = 0.08
_MEL_FRAMES_PER_STEP = 8
_KERNEL = 3
"""Width of both convolutions in front of the encoder."""


class SizingError(Exception):
    """What was asked for cannot be planned; the message says what to change."""


@dataclass(frozen=True, slots=True)
class TextDecoder:
    """The language model. ``window`` tokens of the past are seen (None: all); ``delay_rank`` is the width of what tells it the delay."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden_dim: int
    vocab_size: int
    window: int | None
    tied_embeddings: bool
    delay_rank: int = 32

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer's matrices: queries and output, keys and values, the gated feed-forward."""
        attention = 2 * self.dim * self.heads * self.head_dim + 2 * self.dim * self.kv_heads * self.head_dim
        return attention + 3 * self.dim * self.hidden_dim

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding, which is also the output matrix when they are tied."""
        return self.vocab_size * self.dim

    @property
    def kv_width(self) -> int:
        """Numbers that one token leaves in the cache of one layer: a key and a value per key-value head."""
        return 2 * self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class AudioEncoder:
    """The causal encoder. Every head has keys and values of its own. ``window`` and everything else counts its own frames of 20 ms,
    ``frames_per_token`` of which become one token of the decoder.
    """

    layers: int
    dim: int
    heads: int
    head_dim: int
    hidden_dim: int
    window: int
    frames_per_token: int = 4
    mel_bins: int = 128

    @property
    def layer_matrices(self) -> int:
        """Parameters of a layer's matrices: four of attention, three of the gated feed-forward."""
        return 4 * self.dim * self.heads * self.head_dim + 3 * self.dim * self.hidden_dim

    @property
    def kv_width(self) -> int:
        """Numbers that one frame leaves in the cache of one layer."""
        return 2 * self.heads * self.head_dim


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A whole model. ``source`` says where the numbers come from."""

    name: str
    source: str
    text: TextDecoder
    audio: AudioEncoder

    @property
    def _projection(self) -> int:
        return self.text.dim * self.audio.frames_per_token * self.audio.dim + self.text.dim**2

    @property
    def matrix_parameters(self) -> int:
        """Parameters of the matrices inside the layers and of the projection between the halves: what gets quantised."""
        text, audio = self.text, self.audio
        return text.layers * text.layer_matrices + audio.layers * audio.layer_matrices + self._projection

    @property
    def other_parameters(self) -> int:
        """Embeddings, convolutions, norms, biases and the delay condition: what stays in 16 bits."""
        text, audio = self.text, self.audio
        decoder = text.embedding * (1 if text.tied_embeddings else 2) + text.dim
        decoder += text.layers * (2 * text.dim + 2 * text.delay_rank * text.dim)
        biases = 2 * audio.heads * audio.head_dim + 2 * audio.dim  # queries, values; attention's output, feed-forward's
        encoder = audio.layers * (biases + 2 * audio.dim) + audio.dim
        convolutions = _KERNEL * audio.dim * (audio.mel_bins + audio.dim) + 2 * audio.dim
        return decoder + encoder + convolutions

    @property
    def parameters(self) -> int:
        """All of them, as they are counted in the checkpoint's file."""
        return self.matrix_parameters + self.other_parameters

    def flops_per_step(self, context_tokens: int) -> int:
        """Floating-point operations (a multiply and an add are two) of one stream for 80 ms of audio, with so many tokens behind it."""
        text, audio = self.text, self.audio
        frames = audio.frames_per_token
        seen = context_tokens if text.window is None else min(context_tokens, text.window)
        frames_seen = min(context_tokens * frames, audio.window)
        decoder = 2 * (text.layers * text.layer_matrices + text.embedding)
        decoder += 4 * text.layers * text.heads * text.head_dim * seen
        encoder = frames * audio.layers * (2 * audio.layer_matrices + 4 * audio.heads * audio.head_dim * frames_seen)
        convolutions = 2 * _KERNEL * audio.dim * (_MEL_FRAMES_PER_STEP * audio.mel_bins + frames * audio.dim)
        return decoder + encoder + convolutions + 2 * self._projection

    def kv_bytes_read_per_step(self, context_tokens: int, element_bytes: int) -> int:
        """Bytes of cache that attention reads for one stream and 80 ms of audio."""
        text, audio = self.text, self.audio
        seen = context_tokens if text.window is None else min(context_tokens, text.window)
        frames_seen = min(context_tokens * audio.frames_per_token, audio.window)
        return element_bytes * (text.layers * text.kv_width * seen + audio.layers * audio.kv_width * frames_seen)


VOXTRAL_MINI_4B_REALTIME = ModelShape(
    name="mistralai/Voxtral-Mini-4B-Realtime-2602",
    source="built in, the published architecture",
    text=TextDecoder(
        layers=26,
        dim=3072,
        heads=32,
        kv_heads=8,
        head_dim=128,
        hidden_dim=9216,
        vocab_size=131_072,
        window=8192,
        tied_embeddings=True,
    ),
    audio=AudioEncoder(layers=32, dim=1280, heads=32, head_dim=64, hidden_dim=5120, window=750),
)


def read_shape(path: Path) -> ModelShape:
    """The shape of a checkpoint in Mistral's format: its folder, or its ``params.json``.

    Raises:
        SizingError: the file cannot be read or is not that of a Voxtral Realtime model.
    """
    file = path / "params.json" if path.is_dir() else path
    try:
        params = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SizingError(f"{file} cannot be read: {error}") from error
    try:
        return shape_of(params, name=file.resolve().parent.name, source=str(file))
    except KeyError as missing:
        raise SizingError(f"{file} has no {missing}; the params.json of a Voxtral Realtime model is expected") from None
    except (TypeError, ValueError) as error:
        raise SizingError(f"{file} is not the params.json of a Voxtral Realtime model: {error}") from None


def shape_of(params: Mapping[str, Any], name: str, source: str) -> ModelShape:
    """The shape from the contents of a ``params.json``.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is not what it should be.
        ValueError: the model's encoder is not causal, so it is no realtime model.
    """
    whisper = params["multimodal"]["whisper_model_args"]
    encoder = whisper["encoder_args"]
    if not encoder.get("causal"):
        raise ValueError("its audio encoder is not causal")
    return ModelShape(
        name,
        source,
        TextDecoder(
            layers=_count(params, "n_layers"),
            dim=_count(params, "dim"),
            heads=_count(params, "n_heads"),
            kv_heads=_count(params, "n_kv_heads"),
            head_dim=_count(params, "head_dim"),
            hidden_dim=_count(params, "hidden_dim"),
            vocab_size=_count(params, "vocab_size"),
            window=None if params.get("sliding_window") is None else _count(params, "sliding_window"),
            tied_embeddings=bool(params.get("tied_embeddings", False)),
            delay_rank=_count(params, "ada_rms_norm_t_cond_dim") if params.get("ada_rms_norm_t_cond") else 0,
        ),
        AudioEncoder(
            layers=_count(encoder, "n_layers"),
            dim=_count(encoder, "dim"),
            heads=_count(encoder, "n_heads"),
            head_dim=_count(encoder, "head_dim"),
            hidden_dim=_count(encoder, "hidden_dim"),
            window=_count(encoder, "sliding_window"),
            frames_per_token=_count(whisper["downsample_args"], "downsample_factor"),
            mel_bins=_count(encoder["audio_encoding_args"], "num_mel_bins"),
        ),
    )


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError(f"{name} is {value!r:.50}, a positive whole number is expected")
    return value
