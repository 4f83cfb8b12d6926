"""Loudness of the oldest part of a stream."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.loudness import Loudness


def tone(seconds: float, level: float) -> bytes:
    """A square wave, whose RMS is its height."""
    samples = np.where(np.arange(round(seconds * 16_000)) % 2, level, -level) * 32_768
    pcm: bytes = samples.astype("<i2").tobytes()
    return pcm


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=20))
def test_the_loudness_is_that_of_the_part_however_it_was_cut(cuts: list[int]) -> None:
    pcm = tone(1.0, 0.25) + tone(1.0, 0.5)
    loudness, at = Loudness(), 0
    for cut in cuts:
        loudness.feed(pcm[at : at + 2 * cut])
        at += 2 * cut
    loudness.feed(pcm[at:])
    assert loudness.take(1.0) == pytest.approx(0.25, rel=0.2)
    assert loudness.take(0.9) == pytest.approx(0.5, rel=1e-3)


def test_nothing_is_silent_and_hours_are_kept_in_bounds() -> None:
    loudness = Loudness()
    assert loudness.take(1.0) == 0.0
    for _ in range(1500):
        loudness.feed(tone(1.0, 0.1))
    assert len(loudness._pieces) == 20_000
    assert loudness.take(1500.0) == pytest.approx(0.1, rel=1e-2)
    assert loudness.take(1.0) == 0.0
