"""How loud a stretch of a stream is: the root mean square of its samples, of full scale."""

from __future__ import annotations

from collections import deque

import numpy as np

from wire.pcm import BYTES_PER_SAMPLE, bytes_of

_PIECE_BYTES = bytes_of(0.05)
_FULL_SCALE = 32_768.0
_MOST_PIECES = 20_000
"""Of what nobody has taken yet; beyond it, after some 17 minutes, the oldest become one."""


class Loudness:
    """Takes a stream piece by piece, and gives the loudness of its oldest part; an edge is known to 50 ms."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, float]] = deque()  # bytes, sum of squares

    def feed(self, pcm: bytes) -> None:
        """The next PCM16, whole samples."""
        for at in range(0, len(pcm), _PIECE_BYTES):
            piece = np.frombuffer(pcm[at : at + _PIECE_BYTES], dtype="<i2").astype(np.float64)
            self._pieces.append((piece.size * BYTES_PER_SAMPLE, float(np.dot(piece, piece))))
        while len(self._pieces) > _MOST_PIECES:
            (size, energy), (more, again) = self._pieces.popleft(), self._pieces.popleft()
            self._pieces.appendleft((size + more, energy + again))

    def take(self, seconds: float) -> float:
        """The RMS (0..1) of the oldest ``seconds``, which are forgotten; 0 where there is nothing."""
        left, taken, squares = bytes_of(seconds), 0, 0.0
        while self._pieces and taken < left:
            size, energy = self._pieces.popleft()
            taken += size
            squares += energy
        samples = taken // BYTES_PER_SAMPLE
        return (squares / samples) ** 0.5 / _FULL_SCALE if samples else 0.0
