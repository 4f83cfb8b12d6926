"""How a frame of audio carries the transcription delay of its stream: as one more sample."""

from __future__ import annotations

import numpy as np

MARK_SCALE = 1024
"""Delays are whole numbers far below this, so that the sample lies within -1..1 and is exact in float16 and bfloat16 too."""


def mark(delay_tokens: int) -> np.float32:
    """The sample to put behind a frame."""
    return np.float32(delay_tokens / MARK_SCALE)
