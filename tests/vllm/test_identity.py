"""Streams of several delays in one engine say what unmodified vLLM says at each, also when compiled, and in bfloat16.

Measured with vLLM 0.32 on a CPU, 12 streams of three delays, alone, together, and all delays mixed:

- float32, eager and compiled: the tokens of unmodified vLLM (eager), all of them.
- bfloat16: the same, but for the audio. vLLM casts whatever a model is given to the model's type, samples too, and so hears audio of
  eight significant bits. Ours computes the spectrum from all sixteen and casts that. So the texts differ, until
  ours is given samples of eight bits.

What a batch is made of changed nothing in bfloat16 either. That is a CPU's arithmetic and a tiny model's: no promise for a GPU.
"""

from __future__ import annotations

import asyncio
from itertools import product
from pathlib import Path

import pytest

from tests.vllm.checkpoints import sound
from tests.vllm.conftest import SECONDS, SEEDS, Reference, said_by_vllm, words
from tests.vllm.streams import running, transcribe

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(900),  # it may wait for engines of vLLM's own
]

DELAYS_MS = (160, 2400)
BFLOAT16_BITS = 8


async def test_compiled_streams_say_what_vllm_says_at_their_delays(checkpoint: Path, reference: Reference) -> None:
    keys = list(product(DELAYS_MS, SEEDS))
    async with running(checkpoint, enforce_eager=False, max_num_seqs=len(keys)) as engine:
        said = await asyncio.gather(*(transcribe(engine, sound(SECONDS, seed), delay) for delay, seed in keys))
    assert [listener.text for listener in said] == [words(reference[key]) for key in keys]


async def test_in_bfloat16_streams_say_what_vllm_says_of_their_audio_in_eight_bits(
    checkpoint: Path, tmp_path: Path
) -> None:
    keys = list(product(DELAYS_MS, SEEDS))
    vllm = asyncio.create_task(asyncio.to_thread(said_by_vllm, checkpoint, tmp_path, DELAYS_MS, "bfloat16"))
    async with running(checkpoint, dtype="bfloat16", max_num_seqs=len(keys)) as engine:
        coarse, fine = [
            await asyncio.gather(*(transcribe(engine, sound(SECONDS, seed, bits), delay) for delay, seed in keys))
            for bits in (BFLOAT16_BITS, 16)
        ]
    reference = await vllm
    assert [listener.text for listener in coarse] == [words(reference[key]) for key in keys]
    assert all(one.text != other.text for one, other in zip(coarse, fine, strict=True)), "ours hears all sixteen bits"
