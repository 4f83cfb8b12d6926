"""The least that vLLM takes for a Voxtral Realtime model: shape and tokenizer, to be served with random weights."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

SPECIAL = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 11: "<pad>", 14: "[PREFIX]", 16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]", 19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]",
    30: "[ARGS]", 31: "[CALL_ID]", 32: "[STREAMING_PAD]", 33: "[STREAMING_WORD]", 34: "[TRANSCRIBE]",
}  # fmt: skip
VOCABULARY = 256 + 35
MEL = {"num_mel_bins": 128, "hop_length": 160, "window_size": 400}


def tokenizer() -> dict[str, Any]:
    """The least that vLLM takes: every byte, and the special tokens of speech."""
    single = [
        {"rank": rank, "token_bytes": base64.b64encode(bytes([rank])).decode(), "token_str": None}
        for rank in range(256)
    ]
    special = [
        {"rank": rank, "token_str": SPECIAL.get(rank, f"<SPECIAL_{rank}>"), "is_control": True} for rank in range(35)
    ]
    return {
        "config": {
            "pattern": r"[^\r\n]+|\s+",
            "num_vocab_tokens": 256,
            "default_vocab_size": VOCABULARY,
            "default_num_special_tokens": 35,
            "version": "v13",
        },
        "vocab": single,
        "special_tokens": special,
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "audio_encoding_config": MEL,
            "transcription_format": "streaming",
            "transcription_delay_ms": 480,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": 32,
        },
    }


def params(text: dict[str, int], audio: dict[str, int]) -> dict[str, Any]:
    """The least that vLLM takes for a Voxtral Realtime model; no weights are needed for a model of random numbers."""
    encoding = {
        "sampling_rate": 16_000,
        "frame_rate": 12.5,
        "global_log_mel_max": 1.5,
        "transcription_format": "streaming",
    }
    encoder = {
        "audio_encoding_args": MEL | encoding,
        "dim": 128,
        "hidden_dim": 256,
        "n_kv_heads": audio["n_heads"],
        "vocab_size": VOCABULARY,
        "use_biases": True,
        "use_cache": False,
        "causal": True,
        "pos_embed": "rope",
        "ffn_type": "swiglu",
        "norm_type": "rms_norm",
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
        "max_source_positions": None,
    }
    return {
        "dim": 128,
        "hidden_dim": 256,
        "n_heads": 4,
        "use_biases": False,
        "causal": True,
        "rope_theta": 1e6,
        "norm_eps": 1e-5,
        "vocab_size": VOCABULARY,
        "tied_embeddings": True,
        "model_parallel": 1,
        "dtype": "bfloat16",
        "max_position_embeddings": 131_072,
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": 32,
        "multimodal": {
            "whisper_model_args": {"encoder_args": encoder | audio, "downsample_args": {"downsample_factor": 4}}
        },
    } | text


def write_checkpoint(folder: Path, text: dict[str, int], audio: dict[str, int]) -> Path:
    """A checkpoint without weights in this folder, for ``--load-format dummy``."""
    (folder / "params.json").write_text(json.dumps(params(text, audio)))
    (folder / "tekken.json").write_text(json.dumps(tokenizer()))
    return folder


def environment(pool_gib: int = 1) -> dict[str, str]:
    """Of a process that runs vLLM on a CPU that others use too: one thread, no network, a small cache."""
    return os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(pool_gib),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "INFO",  # an engine of ours in this process may have turned it down
        "OMP_NUM_THREADS": "1",
    }
