"""The checkpoint that all tests of this folder serve, what unmodified vLLM says over it, and a server of either kind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.engines.vllm.internals import installed
from tests.end_to_end.running_server import RunningServer
from tests.vllm import checkpoints
from tests.vllm.endpoints import Endpoint
from tests.vllm.vllm_server import MODEL, VllmServer

ROOT = Path(__file__).parents[2]
DELAYS_MS = (80, 160, 480, 960, 2400)
SEEDS = (1, 2)
SECONDS = 4.03
"""Of audio per stream; no whole number of steps."""

REFERENCE_SECONDS = 600.0

SLOTS = 16
MAX_MODEL_LEN = 400
UNCOMMITTED_SECONDS = 120.0


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint; skips where vLLM is not installed."""
    if installed() is None:
        pytest.skip("vLLM is not installed: nox -s vllm")
    return checkpoints.make(tmp_path_factory.mktemp("checkpoint") / "tiny")


Reference = dict[tuple[int, int], list[int]]
"""Tokens by delay and seed."""


def said_by_vllm(checkpoint: Path, folder: Path, delays_ms: Sequence[int], dtype: str) -> Reference:
    """Tokens from vLLM's own engine, class and buffer, one engine per delay, two at a time."""

    def said(number: int) -> Reference:
        mine = delays_ms[number::2]
        out = folder / f"tokens-{number}.json"
        copies = [str(checkpoints.with_delay(checkpoint, folder / str(delay), delay)) for delay in mine]
        options = [str(out), str(SECONDS), ",".join(map(str, SEEDS)), dtype, *copies]
        done = subprocess.run(
            [sys.executable, "-m", "tests.vllm.reference", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=REFERENCE_SECONDS,
            check=False,
        )
        assert out.exists(), done.stderr[-4000:]
        tokens = json.loads(out.read_text())
        return {(delay, seed): said for delay in mine for seed, said in zip(SEEDS, tokens[str(delay)], strict=True)}

    with ThreadPoolExecutor(2) as processes:
        one, other = processes.map(said, (0, 1))
    return one | other


def words(tokens: list[int]) -> str:
    """The text of tokens of the tiny vocabulary, all of which are words."""
    assert min(tokens) >= checkpoints.SPECIALS + checkpoints.BYTES, "the checkpoint is made to say nothing else"
    return "".join(f" w{token - checkpoints.SPECIALS - checkpoints.BYTES}" for token in tokens)


@pytest.fixture(scope="session")
def reference(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """In float32, at every delay that is tested."""
    return said_by_vllm(checkpoint, tmp_path_factory.mktemp("reference"), DELAYS_MS, "float32")


@pytest.fixture(scope="session")
def our_server(checkpoint: Path) -> Iterator[RunningServer]:
    """Ours, with few slots, a short model and little patience, so that no test need be long to reach a bound."""
    model = ("--model-dir", str(checkpoint), "--dtype=float32", f"--max-model-len={MAX_MODEL_LEN}")
    limits = (f"--max-num-seqs={SLOTS}", "--park-seconds=1", f"--max-queued-seconds={UNCOMMITTED_SECONDS}")
    server = RunningServer(*model, *limits, f"--max-concurrent-connections={SLOTS + 8}", engine="vllm")
    yield server
    try:
        assert server.stop() == 0
        assert "Traceback" not in server.log(), server.log()
    finally:
        server.kill()
        server.forget()


@pytest.fixture(scope="session")
def our_endpoint(our_server: RunningServer) -> Endpoint:
    running, kv_usage = (("earmark_engine", {"figure": figure}) for figure in ("core_running", "kv_cache_usage"))
    return Endpoint(our_server.port, "tiny", SLOTS, running, kv_usage)


@pytest.fixture(scope="session")
def their_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """vLLM's own with the same slots and the same model; it may still be starting."""
    server = VllmServer(checkpoint, tmp_path_factory.mktemp("vllm"), MAX_MODEL_LEN, SLOTS)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def their_endpoint(their_server: VllmServer) -> Endpoint:
    their_server.url()
    return Endpoint(
        their_server.port, MODEL, SLOTS, ("vllm:num_requests_running", {}), ("vllm:kv_cache_usage_perc", {})
    )
