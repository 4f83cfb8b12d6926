"""Audio of other rates brought to 16 kHz, however it was cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.resampling import Resampler
from wire.sessions import SAMPLE_RATES


def tone(rate: int, seconds: float, hertz: float = 440.0) -> bytes:
    times = np.arange(round(rate * seconds)) / rate
    return (8000 * np.sin(2 * np.pi * hertz * times)).astype("<i2").tobytes()


def resampled(pcm: bytes, rate: int, piece_bytes: int) -> bytes:
    resampler = Resampler(rate)
    pieces = [resampler.feed(pcm[at : at + piece_bytes]) for at in range(0, len(pcm), piece_bytes)]
    return b"".join([*pieces, resampler.finish()])


@pytest.mark.parametrize("rate", SAMPLE_RATES)
def test_a_tone_keeps_its_pitch_loudness_and_length(rate: int) -> None:
    heard = np.frombuffer(resampled(tone(rate, 1.0), rate, 2048), dtype="<i2").astype(float)
    assert abs(len(heard) - 16_000) <= 1
    middle = heard[4000:12_000] * np.hanning(8000)
    assert np.argmax(np.abs(np.fft.rfft(middle))) == 220, "bins of 2 Hz"
    assert heard[4000:12_000].std() == pytest.approx(8000 / 2**0.5, rel=0.02)


@given(st.sampled_from(SAMPLE_RATES), st.integers(1, 3000))
def test_cuts_make_no_difference_but_that_of_the_dither(rate: int, samples: int) -> None:
    pcm = tone(rate, 0.25)
    cut, whole = (
        np.frombuffer(resampled(pcm, rate, piece), dtype="<i2").astype(int) for piece in (2 * samples, len(pcm))
    )
    assert len(cut) == len(whole)
    assert np.abs(cut - whole).max() <= 2


def test_audio_of_16_khz_is_left_alone() -> None:
    resampler = Resampler(16_000)
    assert resampler.feed(b"\x01\x02\x03\x04") == b"\x01\x02\x03\x04"
    assert resampler.finish() == b""
