"""The shape of nano, and the transformers model of that shape with a forward pass made for training it.

The weights live in transformers' own Voxtral Realtime class. Its forward pass knows one delay per batch and computes attention over
the whole length; the one here has a delay per example, several of them for one pass of the encoder, attention over the window only,
and scores only for the tokens that the model ever says. Both give the same scores: a test holds them against each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import VoxtralRealtimeConfig, VoxtralRealtimeForConditionalGeneration

from training.grammar import WORDS
from training.sounds import SOUNDS

# ids in tekken.json
BOS_ID, EOS_ID, PAD_ID, WORD_ID = 1, 2, 32, 33
SPECIALS, BYTES = 35, 256
FIRST_WORD_ID = SPECIALS + BYTES
VOCABULARY = FIRST_WORD_ID + len(WORDS)

TOKEN_IDS: tuple[int, ...] = (BOS_ID, EOS_ID, PAD_ID, WORD_ID, *range(FIRST_WORD_ID, VOCABULARY))
"""What the model is given and says. Training numbers tokens by their place here; all others stay at zero."""
BOS, EOS, PAD, WORD, FIRST_WORD = range(5)
TOKENS = len(TOKEN_IDS)

MEL_BINS = 128
POOL = 4  # frames of the encoder per token
MEL_PER_TOKEN = 8
DELAY_TOKENS: tuple[int, ...] = (*range(1, 16), 30)


@dataclass(frozen=True, slots=True)
class Shape:
    """How large the model is. Windows are in frames of 20 ms for the encoder and in tokens of 80 ms for the decoder."""

    encoder_layers: int = 4
    encoder_width: int = 192
    encoder_hidden: int = 512
    encoder_window: int = 64
    layers: int = 3
    width: int = 192
    hidden: int = 384
    window: int = 64
    head_width: int = 32

    @property
    def encoder_heads(self) -> int:
        return self.encoder_width // self.head_width

    @property
    def heads(self) -> int:
        return self.width // self.head_width


def build(shape: Shape) -> VoxtralRealtimeForConditionalGeneration:
    """The transformers model with fresh weights; the embedding of tokens that are never said is zero, and so is their score."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    config = VoxtralRealtimeConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": shape.width,
            "intermediate_size": shape.hidden,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.heads,
            "head_dim": shape.head_width,
            "rms_norm_eps": 1e-5,
            "rope_parameters": rope,
            "sliding_window": shape.window,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": 11,
        },
        audio_config={
            "hidden_size": shape.encoder_width,
            "intermediate_size": shape.encoder_hidden,
            "num_hidden_layers": shape.encoder_layers,
            "num_attention_heads": shape.encoder_heads,
            "head_dim": shape.head_width,
            "rms_norm_eps": 1e-5,
            "num_mel_bins": MEL_BINS,
            "rope_parameters": rope,
            "sliding_window": shape.encoder_window,
            "max_position_embeddings": POOL * 131072,
            "vocab_size": VOCABULARY,
        },
        tie_word_embeddings=True,
        downsample_factor=POOL,
        audio_length_per_tok=MEL_PER_TOKEN,
    )
    model = VoxtralRealtimeForConditionalGeneration(config)
    model.tie_weights()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim > 1 and "embed_tokens" not in name:
                fan_in = tensor[0].numel()
                tensor.normal_(0.0, 0.8 * fan_in**-0.5)
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    tensor.mul_(0.5)
            elif name.endswith("bias"):
                tensor.zero_()
        embedding = model.model.language_model.embed_tokens.weight
        said = torch.zeros(VOCABULARY, 1)
        said[list(TOKEN_IDS)] = 1.0
        embedding.normal_(0.0, shape.width**-0.5).mul_(said)
    return model


class Nano(nn.Module):  # type: ignore[misc]
    """The model with what is there for training alone: two heads on its encoder, which are never exported."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.voxtral = build(shape)
        self.sounds = nn.Linear(shape.encoder_width, 1 + len(SOUNDS))  # which sound is heard; 0: none
        self.ended = nn.Linear(shape.width, 1 + len(WORDS))  # which word has just ended; 0: none
        self.register_buffer("token_ids", torch.tensor(TOKEN_IDS), persistent=False)

    def hear(self, mel: Tensor, present: Tensor | None = None, *, continued: bool = False) -> tuple[Tensor, Tensor]:
        """Audio as the decoder gets it [B, T, width], and the encoder's frames [B, 4 T, encoder width], from mel [B, 128, 8 T].

        Where ``present`` [B, T] is false the encoder is given nothing at all, as by vLLM behind the end of a recording.
        With ``continued`` what was heard before is taken to have been as the first frame is, not the start of a stream.
        """
        frames = self.embed(mel, continued=continued)
        if present is not None:
            frames = frames * present.repeat_interleave(POOL, 1)[:, :, None]
        return self.encode(frames)

    def embed(self, mel: Tensor, *, continued: bool = False) -> Tensor:
        """What the convolutions make of mel [B, 128, 8 T]: frames [B, 4 T, encoder width]."""
        embedder = self.voxtral.model.audio_tower.embedder
        frames = mel
        for convolution in (embedder.conv1, embedder.conv2):
            weight, bias = convolution.weight.to(mel.dtype), convolution.bias.to(mel.dtype)
            padded = functional.pad(frames, (convolution.left_pad, 0), mode="replicate" if continued else "constant")
            frames = functional.gelu(functional.conv1d(padded, weight, bias, stride=convolution.stride))
        return frames.transpose(1, 2)

    def encode(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """As ``hear``, from what ``embed`` has made."""
        tower = self.voxtral.model.audio_tower
        frames = _norm(self._layers(tower.layers, frames, self.shape.encoder_window), tower.norm)
        projector = self.voxtral.model.multi_modal_projector
        pooled = frames.reshape(frames.shape[0], -1, POOL * frames.shape[2])
        return _linear(functional.gelu(_linear(pooled, projector.linear_1)), projector.linear_2), frames

    def say(self, audio: Tensor, tokens: Tensor, delays: Tensor) -> Tensor:
        """What the decoder thinks [N, T, width] after audio [N, T, width] and tokens [N, T], at delays [N] in tokens."""
        decoder = self.voxtral.model.language_model
        embedding = decoder.embed_tokens.weight[self.token_ids].to(audio.dtype)
        angles = delays[:, None].float() * self.voxtral.model.time_embedding.inv_freq[None]
        condition = torch.cat((angles.cos(), angles.sin()), -1)[:, None].to(audio.dtype)
        hidden = self._layers(
            decoder.layers, audio + functional.embedding(tokens, embedding), self.shape.window, condition
        )
        return _norm(hidden, decoder.norm)

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits [..., TOKENS + 1] in float32; the last stands for all tokens that are never said, whose scores are zero."""
        embedding = self.voxtral.model.language_model.embed_tokens.weight[self.token_ids].to(hidden.dtype)
        said = functional.linear(hidden, embedding).float()
        others = said.new_full((*said.shape[:-1], 1), math.log(VOCABULARY - TOKENS))
        return torch.cat((said, others), -1)

    def _layers(self, layers: Any, hidden: Tensor, window: int, condition: Tensor | None = None) -> Tensor:
        batch, length, _ = hidden.shape
        head_width = self.shape.head_width
        turn = _rotation(length, head_width, hidden)
        mask = _window_mask(window, length, hidden)
        for layer in layers:
            encoder = condition is None
            before, after = (
                (layer.self_attn_layer_norm, layer.final_layer_norm)
                if encoder
                else (layer.input_layernorm, layer.post_attention_layernorm)
            )
            attention = layer.self_attn
            seen = _norm(hidden, before)
            query, key, value = (
                _linear(seen, projection).view(batch, length, -1, head_width).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            mixed = windowed_attention(_rotate(query, turn), _rotate(key, turn), value, window, mask)
            hidden = hidden + _linear(mixed.transpose(1, 2).reshape(batch, length, -1), attention.o_proj)
            seen = _norm(hidden, after)
            if condition is not None:
                ada = layer.ada_rms_norm
                seen = seen * (1 + _linear(functional.gelu(_linear(condition, ada.linear1)), ada.linear2))
            mlp = layer.mlp
            hidden = hidden + _linear(
                functional.silu(_linear(seen, mlp.gate_proj)) * _linear(seen, mlp.up_proj), mlp.down_proj
            )
        return hidden


def windowed_attention(query: Tensor, key: Tensor, value: Tensor, window: int, mask: Tensor) -> Tensor:
    """Causal attention [B, H, T, D] in which a position sees ``window`` positions, itself included.

    Computed in blocks as long as the window: those of one block see that block and the one before, and nothing else is computed.
    """
    batch, heads, length, width = query.shape
    blocks = math.ceil(length / window)
    if blocks == 1:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask[0, :length, window : window + length]
        )
    behind = blocks * window - length

    def cut(tensor: Tensor) -> Tensor:
        return functional.pad(tensor, (0, 0, 0, behind)).view(batch, heads, blocks, window, width)

    def with_previous(tensor: Tensor) -> Tensor:
        blocked = cut(tensor)
        previous = functional.pad(blocked[:, :, :-1], (0, 0, 0, 0, 1, 0))
        return torch.cat((previous, blocked), 3)

    weights = cut(query) @ with_previous(key).transpose(3, 4) * width**-0.5 + mask
    mixed = weights.softmax(-1) @ with_previous(value)
    return mixed.reshape(batch, heads, blocks * window, width)[:, :, :length]


def _window_mask(window: int, length: int, like: Tensor) -> Tensor:
    """What is added to the scores of keys [blocks, window, 2 window] that lie outside a query's window or before the start."""
    query = torch.arange(window, device=like.device)[:, None] + window
    key = torch.arange(2 * window, device=like.device)[None]
    seen = (key <= query) & (key > query - window)
    blocks = math.ceil(length / window)
    first = torch.arange(blocks, device=like.device)[:, None, None] == 0
    allowed = seen[None] & ~(first & (key < window)[None])
    return torch.zeros_like(allowed, dtype=like.dtype).masked_fill(~allowed, torch.finfo(like.dtype).min)


def _rotation(length: int, head_width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    frequencies = 1e6 ** (-torch.arange(0, head_width, 2, device=like.device, dtype=torch.float32) / head_width)
    angles = torch.arange(length, device=like.device, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat((angles, angles), -1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotate(heads: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * turn[0] + torch.cat((-second, first), -1) * turn[1]


def _linear(hidden: Tensor, layer: Any) -> Tensor:
    bias = layer.bias
    return functional.linear(hidden, layer.weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


def _norm(hidden: Tensor, norm: Any) -> Tensor:
    wide = hidden.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
    return norm.weight.to(hidden.dtype) * (wide * scale).to(hidden.dtype)
