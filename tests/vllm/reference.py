"""What vLLM itself makes of audio: its own engine, model class, audio buffer and renderer, one engine per delay.

``python -m tests.vllm.reference OUT SECONDS SEED,SEED DTYPE CHECKPOINT...`` writes, by checkpoint, the tokens of one stream per seed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np

from server.engines.vllm.internals import prepare_environment
from server.engines.vllm.settings import VllmSettings
from tests.vllm.checkpoints import sound


async def tokens_of(engine: Any, pcm: bytes, name: str) -> list[int]:
    """All tokens of one stream, by the way that vLLM's realtime endpoint takes."""
    from vllm.engine.protocol import StreamingInput
    from vllm.model_executor.model_loader import get_model_cls
    from vllm.renderers.inputs.preprocess import parse_model_prompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    model = get_model_cls(engine.model_config)
    samples = np.frombuffer(pcm, dtype=np.int16).astype(np.float32) / 32768.0
    said: asyncio.Queue[list[int]] = asyncio.Queue()

    async def audio() -> AsyncIterator[Any]:
        for at in range(0, len(samples), 1280):
            yield samples[at : at + 1280]

    async def inputs() -> AsyncIterator[Any]:
        async for prompt in model.buffer_realtime_audio(audio(), said, engine.model_config):
            parsed = parse_model_prompt(engine.model_config, prompt)
            (rendered,) = await engine.renderer.render_cmpl_async([parsed])
            yield StreamingInput(prompt=rendered)

    sampling = SamplingParams.from_optional(
        temperature=0.0, max_tokens=model.realtime_max_tokens, output_kind=RequestOutputKind.DELTA, skip_clone=True
    )
    tokens: list[int] = []
    async for output in engine.generate(prompt=inputs(), sampling_params=sampling, request_id=name):
        new = list(output.outputs[0].token_ids)
        tokens += new
        said.put_nowait(new)
    return tokens


async def streams_of(checkpoint: Path, seconds: float, seeds: list[int], dtype: str) -> list[list[int]]:
    """The tokens of one stream per seed, all at once in one engine."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(
            model=str(checkpoint),
            tokenizer_mode="mistral",
            config_format="mistral",
            load_format="mistral",
            dtype=dtype,
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=8,
        )
    )
    try:
        return await asyncio.gather(*(tokens_of(engine, sound(seconds, seed), f"reference-{seed}") for seed in seeds))
    finally:
        engine.shutdown()


async def main(seconds: float, seeds: list[int], dtype: str, paths: list[Path]) -> dict[str, list[list[int]]]:
    """One engine after the other."""
    return {path.name: await streams_of(path, seconds, seeds, dtype) for path in paths}


if __name__ == "__main__":
    out, seconds, seeds, dtype, *checkpoints = sys.argv[1:]
    paths = [Path(name) for name in checkpoints]
    prepare_environment(VllmSettings(paths[0]))
    said = asyncio.run(main(float(seconds), [int(seed) for seed in seeds.split(",")], dtype, paths))
    Path(out).write_text(json.dumps(said))
