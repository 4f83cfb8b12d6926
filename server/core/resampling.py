"""Streams of PCM16 at other rates brought to the 16 kHz that engines hear."""

from __future__ import annotations

import numpy as np
import soxr

from wire.pcm import SAMPLE_RATE


class Resampler:
    """One stream of mono PCM16, piece by piece. At 16 kHz the samples pass as they are.

    What comes out lags a few milliseconds behind what went in, until ``finish``.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="int16")

    def feed(self, pcm: bytes) -> bytes:
        """The next audio (whole samples), as far as it can be told yet."""
        return pcm if self._stream is None else self._resample(pcm, last=False)

    def finish(self) -> bytes:
        """The rest. The stream is over."""
        return b"" if self._stream is None else self._resample(b"", last=True)

    def _resample(self, pcm: bytes, *, last: bool) -> bytes:
        assert self._stream is not None
        samples: bytes = self._stream.resample_chunk(np.frombuffer(pcm, dtype="<i2"), last=last).astype("<i2").tobytes()
        return samples
