"""A bench of vLLM's own endpoint: its model is asked for, its delay told, its histograms kept."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from harness import bench, store
from harness.corpus import Corpus, Utterance
from harness.score import score
from harness.timeline import Outcome
from tests.vllm.vllm_server import MODEL, VllmServer
from wire.pcm import SAMPLE_RATE

SECONDS, STREAMS = 2.0, 2


def noise(folder: Path) -> Corpus:
    utterances = []
    for number in range(STREAMS):
        pcm = np.frombuffer(random.Random(number).randbytes(round(SECONDS * SAMPLE_RATE) * 2), "<i2")
        path = folder / f"{number}.wav"
        soundfile.write(path, pcm, SAMPLE_RATE, subtype="PCM_16")
        utterances.append(Utterance(f"u{number}", "noise", SECONDS, speaker=f"s{number}", audio=path))
    return Corpus("noise", "en", tuple(utterances), sha256="0" * 64)


@pytest.mark.parametrize(("lanes", "per_connection"), [(STREAMS, 1), (1, 0)])
def test_a_bench_of_vllm_needs_its_address_alone(
    their_server: VllmServer, tmp_path: Path, lanes: int, per_connection: int
) -> None:
    plan = bench.Plan(
        concurrencies=[lanes],
        delays_ms=[None],
        protocol="vllm",
        target=their_server.url(),
        driver_options={"served-delay-ms": "480"},
        out=tmp_path / "runs",
        load=bench.Load(per_connection=per_connection),
    )
    (run,) = bench.run(plan, noise(tmp_path)).runs
    records = store.read_records(run)
    assert [(record.outcome, record.error) for record in records] == [(Outcome.OK, None)] * STREAMS
    assert {record.delay_ms_in_force for record in records} == {480}
    steps = round(12.5 * SECONDS) + 10  # ten of them after the end
    assert {record.usage["completion_tokens"] for record in records} == {steps}
    assert store.read_run(run).config.model == MODEL
    figures = {figure.name: figure for figure in score(run).server_side}
    assert figures["vllm:time_to_first_token_seconds"].count == STREAMS * steps
