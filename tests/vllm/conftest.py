"""The checkpoint that all tests of this folder serve, and what unmodified vLLM says over it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from server.engines.vllm.internals import installed
from tests.vllm import checkpoints

ROOT = Path(__file__).parents[2]
DELAYS_MS = (80, 160, 480, 960, 2400)
SEEDS = (1, 2)
SECONDS = 4.03
"""Of audio per stream; no whole number of steps."""

REFERENCE_SECONDS = 600.0


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint; skips where vLLM is not installed."""
    if installed() is None:
        pytest.skip("vLLM is not installed: nox -s vllm")
    return checkpoints.make(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], list[int]]:
    """Tokens by delay and seed, from vLLM's own engine, class and buffer, one engine per delay."""
    folder = tmp_path_factory.mktemp("reference")
    copies = [str(checkpoints.with_delay(checkpoint, folder / str(delay), delay)) for delay in DELAYS_MS]
    out = folder / "tokens.json"
    options = [str(out), str(SECONDS), ",".join(map(str, SEEDS)), *copies]
    done = subprocess.run(
        [sys.executable, "-m", "tests.vllm.reference", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=REFERENCE_SECONDS,
        check=False,
    )
    assert out.exists(), done.stderr[-4000:]
    said = json.loads(out.read_text())
    return {(delay, seed): tokens for delay in DELAYS_MS for seed, tokens in zip(SEEDS, said[str(delay)], strict=True)}
