"""Cuts the audio of one stream into what a Voxtral Realtime model hears at each of its steps of 80 ms.

The first step hears the left padding and as much audio as the transcription delay asks for; each later one hears 80 ms more. Every
step sees some samples before its own (look-back) and after them (look-ahead), because the spectrogram needs them. When the
audio ends, silence follows it until the model has said all.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

SAMPLE_RATE = 16000
_PCM_SCALE = np.float32(1 / 32768)


@dataclass(frozen=True, slots=True)
class FrameShape:
    """Lengths in samples, ``first_tokens`` in tokens: one token stands for ``step`` samples."""

    first_tokens: int
    left_padding: int
    right_padding: int
    step: int = 1280
    look_back: int = 840
    look_ahead: int = 40


class Frames:
    """Audio in by ``append`` and ``finish``, frames out by ``next``.

    ``mark`` is put behind the samples of every frame when it is given: it says something about the stream to the model.
    """

    def __init__(self, shape: FrameShape, mark: np.float32 | None = None) -> None:
        self._shape = shape
        self._mark = mark
        self._pieces: deque[Samples] = deque()
        self._held = 0  # samples in the pieces
        self._from = 0  # position of the first held sample, on the padded clock
        self._start = 0  # of the next step, on the padded clock
        self._end = shape.first_tokens * shape.step
        self._fed = 0  # real samples
        self._finished = False
        self._push(np.zeros(shape.left_padding, np.float32))

    @property
    def fed_seconds(self) -> float:
        """How much audio has come in."""
        return self._fed / SAMPLE_RATE

    @property
    def taken_seconds(self) -> float:
        """How much of it the steps so far have heard; before the first one, what is kept for it."""
        reach = self._start if self._start else self._end
        return min(max(reach - self._shape.left_padding, 0), self._fed) / SAMPLE_RATE

    def append(self, pcm: bytes) -> None:
        """The next PCM16."""
        samples = np.frombuffer(pcm, dtype="<i2").astype(np.float32)
        samples *= _PCM_SCALE
        self._fed += len(samples)
        self._push(samples)

    def finish(self) -> None:
        """No more audio comes."""
        if not self._finished:
            self._finished = True
            self._push(np.zeros(self._shape.right_padding, np.float32))

    @property
    def exhausted(self) -> bool:
        """The audio has ended and every step was taken."""
        return self._finished and not self._ready

    @property
    def _ready(self) -> bool:
        return self._from + self._held >= self._end + self._shape.look_ahead

    def next(self) -> Samples | None:
        """What the next step hears; None until there is enough audio for it."""
        if not self._ready:
            return None
        shape = self._shape
        first = max(self._start - shape.look_back, 0)
        size = self._end + shape.look_ahead - first
        joined = self._pieces[0] if len(self._pieces) == 1 else np.concatenate(self._pieces)
        at = first - self._from
        frame = np.empty(size + (self._mark is not None), np.float32)
        frame[:size] = joined[at : at + size]
        if self._mark is not None:
            frame[size] = self._mark
        self._start = self._end
        self._end += shape.step
        self._drop(joined, max(self._start - shape.look_back, 0))
        return frame

    def _push(self, samples: Samples) -> None:
        if len(samples):
            self._pieces.append(samples)
            self._held += len(samples)

    def _drop(self, joined: Samples, until: int) -> None:
        """Forget what lies before ``until``."""
        rest = joined[until - self._from :]
        self._from = until
        self._held = len(rest)
        self._pieces.clear()
        # a copy where the view would keep much more alive than it shows
        self._pieces.append(rest.copy() if len(joined) > 2 * len(rest) else rest)
