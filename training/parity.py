"""Holds unmodified vLLM against transformers in float32, step by step: ``python -m training.parity FOLDER --corpus FOLDER``.

Both hear the same clips at the same delays and follow their own likeliest tokens; these must be the same throughout, and the
log-probabilities of the whole vocabulary must differ by less than 1e-4.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from training.corpus import Clips
from training.evaluate import log_probabilities, utterance
from training.examples import STEP, Samples
from training.export import shape_of, to_transformers
from training.model import Nano

TOLERANCE = 1e-4


@dataclass(frozen=True, slots=True)
class Compared:
    """One stream: how many steps, at which the tokens first differ (None: never), the largest difference of a log-probability."""

    delay_ms: int
    steps: int
    first_difference: int | None
    largest: float

    @property
    def same(self) -> bool:
        return self.first_difference is None and self.largest < TOLERANCE


def compare(checkpoint: Path, streams: Sequence[Samples], delays_ms: Sequence[int]) -> list[Compared]:
    """Every stream at every delay, in both."""
    nano = Nano(shape_of(json.loads((checkpoint / "params.json").read_text())))
    nano.voxtral = to_transformers(checkpoint)
    nano.eval()
    result = []
    for delay_ms in delays_ms:
        with tempfile.TemporaryDirectory() as folder:
            copy = precise_copy(checkpoint, Path(folder), delay_ms)
            served = asyncio.run(_serve(copy, streams))
        for samples, (tokens, theirs) in zip(streams, served, strict=True):
            ours = log_probabilities(nano, samples, delay_ms // 80)
            result.append(_compared(delay_ms, ours, tokens, theirs))
    return result


def _compared(delay_ms: int, ours: torch.Tensor, tokens: list[int], theirs: torch.Tensor) -> Compared:
    expected = ours.argmax(-1).tolist()
    if len(tokens) != len(expected):
        raise ValueError(f"vLLM said {len(tokens)} tokens at {delay_ms} ms, transformers {len(expected)}")
    different = [step for step, (one, other) in enumerate(zip(expected, tokens, strict=True)) if one != other]
    until = different[0] + 1 if different else len(tokens)
    largest = float((ours[:until] - theirs[:until]).abs().max())
    return Compared(delay_ms, len(tokens), different[0] if different else None, largest)


def precise_copy(checkpoint: Path, folder: Path, delay_ms: int) -> Path:
    """The checkpoint in float32 (the same values), with that delay."""
    tensors = {name: tensor.float() for name, tensor in load_file(checkpoint / "consolidated.safetensors").items()}
    save_file(tensors, folder / "consolidated.safetensors", metadata={"format": "pt"})
    params = json.loads((checkpoint / "params.json").read_text()) | {"dtype": "float32"}
    (folder / "params.json").write_text(json.dumps(params))
    tekken = json.loads((checkpoint / "tekken.json").read_text())
    tekken["audio"]["transcription_delay_ms"] = delay_ms
    (folder / "tekken.json").write_text(json.dumps(tekken))
    return folder


async def _serve(checkpoint: Path, streams: Sequence[Samples]) -> list[tuple[list[int], torch.Tensor]]:
    """Tokens and log-probabilities [steps, vocabulary] from vLLM, all streams at once."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(checkpoint),
            tokenizer_mode="mistral",
            config_format="mistral",
            load_format="mistral",
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=8,
            max_logprobs=-1,
        )
    )
    try:
        return list(await asyncio.gather(*(_stream(engine, s, f"parity-{n}") for n, s in enumerate(streams))))
    finally:
        engine.shutdown()


async def _stream(engine: Any, samples: Samples, name: str) -> tuple[list[int], torch.Tensor]:
    """The way that vLLM's realtime endpoint takes."""
    from vllm.engine.protocol import StreamingInput
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    model = get_model_cls(engine.model_config)
    said: asyncio.Queue[list[int]] = asyncio.Queue()

    async def audio() -> AsyncIterator[Samples]:
        for at in range(0, len(samples), STEP):
            yield samples[at : at + STEP]

    async def inputs() -> AsyncIterator[Any]:
        async for prompt in model.buffer_realtime_audio(audio(), said, engine.model_config):
            parsed = parse_model_prompt(engine.model_config, prompt)
            (rendered,) = await engine.renderer.render_cmpl_async([parsed])
            yield StreamingInput(prompt=rendered)

    sampling = SamplingParams.from_optional(
        temperature=0.0, max_tokens=1, output_kind=RequestOutputKind.DELTA, logprobs=-1, skip_clone=True
    )
    tokens: list[int] = []
    rows: list[list[float]] = []
    async for output in engine.generate(prompt=inputs(), sampling_params=sampling, request_id=name):
        completion = output.outputs[0]
        tokens += completion.token_ids
        said.put_nowait(list(completion.token_ids))
        rows += [[step[token].logprob for token in range(len(step))] for step in completion.logprobs or ()]
    return tokens, torch.tensor(rows)


def main(arguments: list[str] | None = None) -> None:
    """The command line; ends with 1 if they differ."""
    parser = argparse.ArgumentParser(prog="python -m training.parity", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="in Mistral's format")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--delays", default="80,480,2400", help="in milliseconds")
    parser.add_argument("--clips", type=int, default=3)
    given = parser.parse_args(arguments)
    clips = Clips(given.corpus)
    random = np.random.default_rng(3)
    spoken = [number for number in range(len(clips)) if clips.kinds[number] == "sentence"]
    chosen = [clips[int(number)] for number in random.choice(spoken, given.clips, replace=False)]
    streams = [utterance(clip, random)[0] for clip in chosen]
    results = compare(given.checkpoint, streams, [int(ms) for ms in given.delays.split(",")])
    for one in results:
        verdict = "same tokens" if one.first_difference is None else f"tokens differ from step {one.first_difference}"
        print(f"{one.delay_ms:>5} ms {one.steps:>5} steps: {verdict}, log-probabilities within {one.largest:.1e}")
    if not all(one.same for one in results):
        sys.exit(1)


if __name__ == "__main__":
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    torch.set_num_threads(1)
    main()
