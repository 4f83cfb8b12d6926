"""Makes tiny Voxtral checkpoints that hear whole files, from the same random tensors as the streaming ones, and engines on them.

They never end what they say: the row of the output matrix that belongs to the end is zero, like all that are not words.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from server.engines.vllm.chat import VllmChatEngine
from server.engines.vllm.settings import ChatSettings
from tests.vllm import checkpoints
from tests.vllm.checkpoints import Shape

MAX_MODEL_LEN = 2048
Tensors = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def make(directory: Path, shape: Shape | None = None) -> Path:
    """Write a checkpoint into the directory."""
    from safetensors.numpy import save_file

    shape = shape or Shape()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tekken.json").write_text(json.dumps(tokenizer(shape)))
    (directory / "params.json").write_text(json.dumps(parameters(shape)))
    save_file(weights(shape), directory / "consolidated.safetensors", metadata={"format": "pt"})
    return directory


def tokenizer(shape: Shape) -> dict[str, Any]:
    """The content of ``tekken.json``: audio in pieces of 30 s, nothing of streaming."""
    content = checkpoints.tokenizer(shape)
    kept = ("sampling_rate", "frame_rate", "audio_encoding_config")
    content["audio"] = {name: content["audio"][name] for name in kept} | {"chunk_length_s": 30.0}
    return content


def parameters(shape: Shape) -> dict[str, Any]:
    """The content of ``params.json``: Whisper's own encoder, and a decoder without a time condition."""
    content = checkpoints.parameters(shape)
    for name in ("sliding_window", "ada_rms_norm_t_cond", "ada_rms_norm_t_cond_dim"):
        del content[name]
    encoder = content["multimodal"]["whisper_model_args"]["encoder_args"]
    for name in ("ffn_type", "norm_type", "rope_theta", "sliding_window"):
        del encoder[name]
    for name in ("global_log_mel_max", "transcription_format"):
        del encoder["audio_encoding_args"][name]
    encoder["audio_encoding_args"]["chunk_length_s"] = 30.0
    return content | {
        "max_position_embeddings": 32768,
        "multimodal": content["multimodal"]
        | {
            "whisper_model_args": content["multimodal"]["whisper_model_args"]
            | {"encoder_args": encoder | {"causal": False, "pos_embed": "sinusoidal", "max_source_positions": 1500}}
        },
    }


def weights(shape: Shape) -> Tensors:
    """Random tensors: layer norms and the first feed-forward matrix have biases in this encoder, which has no third one."""
    random = np.random.default_rng(shape.seed)
    tensors: Tensors = {}
    for streaming_name, tensor in checkpoints.weights(shape).items():
        name = streaming_name.replace("mm_streams_embeddings.embedding_module", "mm_whisper_embeddings")
        name = re.sub(r"(conv_layers\.\d)\.conv", r"\1", name)
        in_encoder = "whisper_encoder" in name
        if "ada_rms" in name or (in_encoder and ".w3." in name):
            continue
        sharp = re.match(r"layers\.\d+\.attention\.w[qo]", name)
        tensors[name] = tensor * np.float32(3) if sharp else tensor  # or what it says depends on its last words alone
        if in_encoder and re.search(r"norm\.weight$|\.w1\.weight$", name):
            bias = 0.1 * random.standard_normal(len(tensor))
            tensors[name.removesuffix("weight") + "bias"] = bias.astype(np.float32)
    return tensors


@asynccontextmanager
async def running(checkpoint: Path, **settings: Any) -> AsyncIterator[VllmChatEngine]:
    """A started engine in float32 that leaves nothing behind."""
    chosen = {"dtype": "float32", "max_model_len": MAX_MODEL_LEN, "max_num_seqs": 4, **settings}
    engine = VllmChatEngine(ChatSettings(checkpoint, **chosen))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
