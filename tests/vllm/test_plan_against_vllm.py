"""The planned size of the cache of keys and values, held against what vLLM itself logs when it starts."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sizing.kv import CPU_BATCHES_IN_FLIGHT, CPU_BLOCK_TOKENS, KvReport, check_kv, kv_cache, kv_layout, read_kv_report
from sizing.shape import read_shape

POOL_GIB = 1
START_SECONDS = 280

START = """
import sys
from vllm import LLM
folder, length, batch, dtype = sys.argv[1:]
LLM(folder, tokenizer_mode="mistral", config_format="mistral", load_format="dummy", dtype=dtype, enforce_eager=True,
    max_model_len=int(length), max_num_batched_tokens=int(batch), max_num_seqs=4)
"""

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


def report_of_vllm(folder: Path, length: int, batch: int, dtype: str) -> KvReport:
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(POOL_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder), str(length), str(batch), dtype],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )
    report = read_kv_report(done.stdout)
    assert report is not None, done.stdout[-4000:]
    return report


SHAPES = {
    # the whole length fits the batches in flight; groups of equal depth
    "long batches": (
        {"n_layers": 2, "head_dim": 32, "n_kv_heads": 4, "sliding_window": 8192},
        {"n_layers": 2, "head_dim": 32, "n_heads": 4, "sliding_window": 750},
        (2048, 2048, "bfloat16", 2),
    ),
    # windows bound both groups, the shallower one is padded, four bytes a number
    "short batches": (
        {"n_layers": 3, "head_dim": 64, "n_kv_heads": 2, "sliding_window": 300},
        {"n_layers": 4, "head_dim": 32, "n_heads": 4, "sliding_window": 100},
        (1024, 256, "float32", 4),
    ),
    # an encoder so much deeper that it is split into groups, with a page that the decoder's does not divide
    "deep encoder": (
        {"n_layers": 2, "head_dim": 80, "n_kv_heads": 4, "sliding_window": 4096},
        {"n_layers": 5, "head_dim": 96, "n_heads": 2, "sliding_window": 750},
        (1024, 512, "bfloat16", 2),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_planned_cache_is_the_one_that_vllm_makes(tmp_path: Path, name: str) -> None:
    text, audio, (length, batch, dtype, element_bytes) = SHAPES[name]
    (tmp_path / "params.json").write_text(json.dumps(params(text, audio)))
    (tmp_path / "tekken.json").write_text(json.dumps(tokenizer()))
    report = report_of_vllm(tmp_path, length, batch, dtype)
    layout = kv_layout(read_shape(tmp_path), element_bytes, CPU_BLOCK_TOKENS)
    planned = kv_cache(layout, POOL_GIB * 2**30, length, batch, CPU_BATCHES_IN_FLIGHT)
    check = check_kv(planned, report.tokens)
    assert report.max_model_len == length
    assert abs(check.deviation) <= 0.05, check.sentence()
    assert planned.concurrency == pytest.approx(report.concurrency, rel=0.05)
