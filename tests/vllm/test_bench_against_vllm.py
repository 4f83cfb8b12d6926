"""A bench of vLLM's own endpoint: its model is asked for, its delay told, its histograms kept."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness import bench, store
from harness.corpus import Corpus, Utterance
from harness.score import score
from harness.timeline import Outcome
from server.engines.vllm.internals import installed
from tests.vllm.test_remote_against_vllm import VllmServer
from tests.vllm.tiny_checkpoint import write_checkpoint
from wire.pcm import SAMPLE_RATE

SECONDS, STREAMS = 2.0, 2


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    if installed() is None:
        pytest.skip("vLLM is not installed: nox -s vllm")
    text = {"n_layers": 2, "head_dim": 32, "n_kv_heads": 4, "sliding_window": 8192}
    audio = {"n_layers": 2, "head_dim": 32, "n_heads": 4, "sliding_window": 750}
    server = VllmServer(write_checkpoint(tmp_path_factory.mktemp("tiny"), text, audio))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


def noise(folder: Path) -> Corpus:
    utterances = []
    for number in range(STREAMS):
        pcm = np.frombuffer(random.Random(number).randbytes(round(SECONDS * SAMPLE_RATE) * 2), "<i2")
        path = folder / f"{number}.wav"
        soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16")
        utterances.append(Utterance(f"u{number}", "noise", SECONDS, speaker=f"s{number}", audio=path))
    return Corpus("noise", "en", tuple(utterances), sha256="0" * 64)


def test_a_bench_of_vllm_needs_its_address_alone(vllm_server: VllmServer, tmp_path: Path) -> None:
    plan = bench.Plan(
        concurrencies=[STREAMS],
        delays_ms=[None],
        protocol="vllm",
        target=f"ws://127.0.0.1:{vllm_server.port}",
        driver_options={"served-delay-ms": "480"},
        out=tmp_path / "runs",
    )
    (run,) = bench.run(plan, noise(tmp_path)).runs
    records = store.read_records(run)
    assert [(record.outcome, record.error) for record in records] == [(Outcome.OK, None)] * STREAMS
    assert {record.delay_ms_in_force for record in records} == {480}
    steps = round(12.5 * SECONDS) + 10  # ten of them after the end
    assert {record.usage["completion_tokens"] for record in records} == {steps}
    assert store.read_run(run).config.model == "tiny"
    figures = {figure.name: figure for figure in score(run).server_side}
    assert figures["vllm:time_to_first_token_seconds"].count == STREAMS * steps
