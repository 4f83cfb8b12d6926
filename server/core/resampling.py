"""Audio of one stream brought to 16 kHz, piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np

from wire.pcm import SAMPLE_RATE


class Resampler:
    """PCM16 mono of ``rate`` samples a second in, of 16 000 out. What it still holds back comes with ``flush``."""

    def __init__(self, rate: int) -> None:
        """``soxr`` is needed for every rate but 16 000; raises ImportError without it."""
        self._rate = rate
        self._stream: Any = None
        if rate != SAMPLE_RATE:
            self._begin()

    def feed(self, pcm: bytes) -> bytes:
        """The next whole samples; may be nothing yet."""
        return pcm if self._stream is None else self._resampled(pcm, last=False)

    def flush(self) -> bytes:
        """The rest; what is fed next is another stream."""
        if self._stream is None:
            return b""
        rest = self._resampled(b"", last=True)
        self._begin()
        return rest

    def _begin(self) -> None:
        import soxr

        self._stream = soxr.ResampleStream(self._rate, SAMPLE_RATE, 1, dtype="int16")

    def _resampled(self, pcm: bytes, *, last: bool) -> bytes:
        samples = np.frombuffer(pcm, dtype="<i2").astype(np.int16, copy=False)
        resampled: np.ndarray[Any, np.dtype[np.int16]] = self._stream.resample_chunk(samples, last=last)
        return resampled.astype("<i2", copy=False).tobytes()
