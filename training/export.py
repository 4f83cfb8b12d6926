"""Writes nano as vLLM reads it (Mistral's format) and as transformers reads it: ``python -m training.export STATE FOLDER``.

Mistral's format is ``consolidated.safetensors``, ``params.json`` and ``tekken.json`` in the folder itself; transformers' is made from
these three by ``to_transformers``, or written beside them with ``--transformers``.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import VoxtralRealtimeForConditionalGeneration

from training.examples import HOP, LEFT, SAMPLE_RATE, WINDOW
from training.grammar import WORDS
from training.model import BYTES, MEL_BINS, POOL, SPECIALS, VOCABULARY, Shape, build

SPECIAL_NAMES = {
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
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
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
DEFAULT_DELAY_MS = 480
ROOT = "mm_streams_embeddings.embedding_module"
ENCODER = f"{ROOT}.whisper_encoder"


def tekken(delay_ms: int = DEFAULT_DELAY_MS) -> dict[str, Any]:
    """``tekken.json``: every byte, then every word with a space before it."""
    texts = [bytes([value]) for value in range(BYTES)] + [f" {word}".encode() for word in WORDS]
    return {
        "config": {
            "pattern": r" ?[^\s]+|\s+",
            "num_vocab_tokens": len(texts),
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": SPECIALS,
            "version": "v13",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(text).decode(), "token_str": _readable(text)}
            for rank, text in enumerate(texts)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": SPECIAL_NAMES.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
            for rank in range(SPECIALS)
        ],
        "audio": {
            "sampling_rate": SAMPLE_RATE,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": MEL_BINS, "hop_length": HOP, "window_size": WINDOW},
            "transcription_format": "streaming",
            "transcription_delay_ms": delay_ms,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": LEFT,
        },
    }


def _readable(text: bytes) -> str | None:
    try:
        return text.decode()
    except UnicodeDecodeError:
        return None


def params(shape: Shape, dtype: str = "bfloat16") -> dict[str, Any]:
    """``params.json``."""
    encoder = {
        "audio_encoding_args": {
            "sampling_rate": SAMPLE_RATE,
            "frame_rate": 12.5,
            "num_mel_bins": MEL_BINS,
            "hop_length": HOP,
            "window_size": WINDOW,
            "global_log_mel_max": 1.5,
            "transcription_format": "streaming",
        },
        "dim": shape.encoder_width,
        "n_layers": shape.encoder_layers,
        "head_dim": shape.head_width,
        "hidden_dim": shape.encoder_hidden,
        "n_heads": shape.encoder_heads,
        "n_kv_heads": shape.encoder_heads,
        "vocab_size": VOCABULARY,
        "use_biases": True,
        "use_cache": False,
        "causal": True,
        "pos_embed": "rope",
        "ffn_type": "swiglu",
        "norm_type": "rms_norm",
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": shape.encoder_window,
        "max_source_positions": None,
    }
    return {
        "dim": shape.width,
        "n_layers": shape.layers,
        "head_dim": shape.head_width,
        "hidden_dim": shape.hidden,
        "n_heads": shape.heads,
        "n_kv_heads": shape.heads,
        "use_biases": False,
        "causal": True,
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tied_embeddings": True,
        "model_parallel": 1,
        "dtype": dtype,
        "max_position_embeddings": 131072,
        "sliding_window": shape.window,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": 32,
        "multimodal": {"whisper_model_args": {"encoder_args": encoder, "downsample_args": {"downsample_factor": POOL}}},
    }


def shape_of(params: dict[str, Any]) -> Shape:
    """The shape that ``params`` tells of."""
    encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    return Shape(
        encoder_layers=encoder["n_layers"],
        encoder_width=encoder["dim"],
        encoder_hidden=encoder["hidden_dim"],
        encoder_window=encoder["sliding_window"],
        layers=params["n_layers"],
        width=params["dim"],
        hidden=params["hidden_dim"],
        window=params["sliding_window"],
        head_width=params["head_dim"],
    )


# ---- names

_WHOLE = {
    "model.language_model.embed_tokens.weight": f"{ROOT}.tok_embeddings.weight",
    "model.language_model.norm.weight": "norm.weight",
    "model.audio_tower.norm.weight": f"{ENCODER}.transformer.norm.weight",
    "model.multi_modal_projector.linear_1.weight": f"{ROOT}.audio_language_projection.0.weight",
    "model.multi_modal_projector.linear_2.weight": f"{ROOT}.audio_language_projection.2.weight",
    **{
        f"model.audio_tower.embedder.conv{number + 1}.{part}": f"{ENCODER}.conv_layers.{number}.conv.{part}"
        for number in (0, 1)
        for part in ("weight", "bias")
    },
}
_IN_LAYER = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "self_attn_layer_norm": "attention_norm",
    "input_layernorm": "attention_norm",
    "final_layer_norm": "ffn_norm",
    "post_attention_layernorm": "ffn_norm",
    "ada_rms_norm.linear1": "ada_rms_norm_t_cond.0",
    "ada_rms_norm.linear2": "ada_rms_norm_t_cond.2",
}


def mistral_name(name: str) -> str:
    """Of a tensor of transformers' model.

    Raises:
        KeyError: there is no such tensor.
    """
    if name in _WHOLE:
        return _WHOLE[name]
    found = re.fullmatch(r"model\.(language_model|audio_tower)\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None:
        raise KeyError(name)
    part, number, inside, kind = found.groups()
    where = "layers" if part == "language_model" else f"{ENCODER}.transformer.layers"
    return f"{where}.{number}.{_IN_LAYER[inside]}.{kind}"


def _turned(name: str) -> bool:
    """Whether rotary positions are applied to what the tensor makes: the two formats order its rows differently."""
    return ".q_proj." in name or ".k_proj." in name


def to_mistral_rows(tensor: Tensor, head_width: int) -> Tensor:
    """Rows of each head from halves (0, n/2, 1, ...) as transformers has them to pairs, as Mistral has them."""
    heads = tensor.shape[0] // head_width
    return tensor.reshape(heads, 2, head_width // 2, -1).transpose(1, 2).reshape(tensor.shape).contiguous()


def from_mistral_rows(tensor: Tensor, head_width: int) -> Tensor:
    """The reverse of ``to_mistral_rows``."""
    heads = tensor.shape[0] // head_width
    return tensor.reshape(heads, head_width // 2, 2, -1).transpose(1, 2).reshape(tensor.shape).contiguous()


# ---- files


def write(model: VoxtralRealtimeForConditionalGeneration, shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """The three files of Mistral's format."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in model.named_parameters():
        if name == "lm_head.weight":
            continue  # tied to the embedding
        value = tensor.detach().cpu()
        value = to_mistral_rows(value, shape.head_width) if _turned(name) else value
        tensors[mistral_name(name)] = value.to(dtype).contiguous()
    save_file(tensors, folder / "consolidated.safetensors", metadata={"format": "pt"})
    (folder / "consolidated.safetensors").chmod(0o644)  # it would be its writer's alone
    (folder / "params.json").write_text(json.dumps(params(shape, str(dtype).removeprefix("torch.")), indent=1) + "\n")
    (folder / "tekken.json").write_text(json.dumps(tekken()) + "\n")


def to_transformers(folder: Path) -> VoxtralRealtimeForConditionalGeneration:
    """The model in Mistral's format as transformers' class, in float32."""
    shape = shape_of(json.loads((folder / "params.json").read_text()))
    tensors = load_file(folder / "consolidated.safetensors")
    model = build(shape)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name == "lm_head.weight":
                continue
            value = tensors.pop(mistral_name(name)).float()
            tensor.copy_(from_mistral_rows(value, shape.head_width) if _turned(name) else value)
    if tensors:
        raise ValueError(f"{folder}: unknown tensors {', '.join(sorted(tensors))}")
    return model.eval()


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    from training.train import load_nano

    parser = argparse.ArgumentParser(prog="python -m training.export", description=__doc__)
    parser.add_argument("state", type=Path, help="state.pt of a training")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--transformers", type=Path, help="folder for transformers' format too")
    given = parser.parse_args(arguments)
    nano = load_nano(given.state)
    write(nano.voxtral, nano.shape, given.folder, getattr(torch, given.dtype))
    if given.transformers is not None:
        to_transformers(given.folder).save_pretrained(given.transformers)
    for file in sorted(given.folder.iterdir()):
        print(f"{file.stat().st_size:>10,} {file}")


if __name__ == "__main__":
    main()
