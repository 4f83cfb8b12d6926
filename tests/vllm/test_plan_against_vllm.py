"""The planned size of the cache of keys and values, held against what vLLM itself logs when it starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sizing.kv import CPU_BATCHES_IN_FLIGHT, CPU_BLOCK_TOKENS, KvReport, check_kv, kv_cache, kv_layout, read_kv_report
from sizing.shape import read_shape
from tests.vllm.checkpoints import Shape, Stack, make
from tests.vllm.vllm_server import environment

POOL_GIB = 1
START_SECONDS = 280

START = """
import sys
from vllm import LLM
folder, length, batch, dtype = sys.argv[1:]
LLM(folder, tokenizer_mode="mistral", config_format="mistral", load_format="mistral", dtype=dtype, enforce_eager=True,
    max_model_len=int(length), max_num_batched_tokens=int(batch), max_num_seqs=4)
"""


def report_of_vllm(folder: Path, length: int, batch: int, dtype: str) -> KvReport:
    done = subprocess.run(
        [sys.executable, "-c", START, str(folder), str(length), str(batch), dtype],
        cwd=folder,
        env=environment(VLLM_CPU_KVCACHE_SPACE=str(POOL_GIB)),
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
        Shape(text=Stack(heads=4, window=8192), encoder=Stack(heads=4, window=750)),
        (2048, 2048, "bfloat16", 2),
    ),
    # windows bound both groups, the shallower one is padded, four bytes a number
    "short batches": (
        Shape(
            text=Stack(layers=3, heads=4, head_width=64, window=300, kv_heads=2),
            encoder=Stack(layers=4, heads=4, window=100),
        ),
        (1024, 256, "float32", 4),
    ),
    # an encoder so much deeper that it is split into groups, with a page that the decoder's does not divide
    "deep encoder": (
        Shape(text=Stack(heads=4, head_width=80, window=4096), encoder=Stack(layers=5, head_width=96, window=750)),
        (1024, 512, "bfloat16", 2),
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_the_planned_cache_is_the_one_that_vllm_makes(tmp_path: Path, name: str) -> None:
    shape, (length, batch, dtype, element_bytes) = SHAPES[name]
    report = report_of_vllm(make(tmp_path, shape), length, batch, dtype)
    layout = kv_layout(read_shape(tmp_path), element_bytes, CPU_BLOCK_TOKENS)
    planned = kv_cache(layout, POOL_GIB * 2**30, length, batch, CPU_BATCHES_IN_FLIGHT)
    check = check_kv(planned, report.tokens)
    assert report.max_model_len == length
    assert abs(check.deviation) <= 0.05, check.sentence()
    assert planned.concurrency == pytest.approx(report.concurrency, rel=0.05)
