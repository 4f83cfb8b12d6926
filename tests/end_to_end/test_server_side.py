"""What the server measured of itself, beside what the harness measured of it, with a latency that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from harness import bench
from harness.corpus import Corpus, Utterance
from harness.score import score
from wire.pcm import SAMPLE_RATE
from wire.scripted import speak
from wire.words import TimedWord

STREAMS = 6


def test_what_lies_between_client_and_server_is_found(tmp_path: Path) -> None:
    words = (TimedWord("one", 0.2, 0.4), TimedWord("two", 0.5, 0.8))
    utterances = []
    for number in range(STREAMS):
        path = tmp_path / f"{number}.wav"
        soundfile.write(path, np.frombuffer(speak(words, 1.6), "<i2"), SAMPLE_RATE, subtype="PCM_16")
        utterances.append(Utterance(f"u{number}", "one two", 1.6, speaker=f"s{number}", audio=path, words=words))
    plan = bench.Plan(
        concurrencies=[STREAMS],
        delays_ms=[160],
        engine="scripted",
        server_options=["--script", '{"latency_ms": 100, "final_latency_ms": 260}'],
        out=tmp_path / "runs",
        warm_up=2,
    )
    (run,) = bench.run(plan, Corpus("said", "en", tuple(utterances), sha256="0" * 64)).runs
    figures = {figure.name: figure for figure in score(run).server_side}
    first, flush, frames = figures["first_token"], figures["flush_latency"], figures["earmark_frame_delay_seconds"]
    # The utterances of the warm-up are in neither count.
    assert (first.count, first.client_count, flush.count, flush.client_count) == (STREAMS,) * 4
    assert flush.p50.low <= 0.26 <= flush.mean + 0.001
    assert flush.client_mean is not None
    assert flush.difference is not None
    # Both clocks run at one speed, and what the client saw contains what the server did.
    assert 0 < flush.difference < flush.client_mean
    assert first.difference is not None
    assert first.difference > 0
    assert frames.count >= STREAMS * 3
    assert "the server's own, ms" in (run / "summary.md").read_text()
