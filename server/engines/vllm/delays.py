"""Which transcription delays a Voxtral Realtime model was trained for, in steps of 80 ms."""

from __future__ import annotations

from server.engines.base import EngineError

STEP_SECONDS = 0.08
STEP_MS = 80
TRAINED_MS = (*range(80, 1201, 80), 2400)
LONGEST_MS = 2400


def allowed_ms(*, untrained: bool) -> tuple[int, ...]:
    """The delays that a stream may ask for, in milliseconds."""
    return tuple(range(80, LONGEST_MS + 1, STEP_MS)) if untrained else TRAINED_MS


def check_ms(delay_ms: int, *, untrained: bool) -> int:
    """The delay in steps of 80 ms.

    Raises:
        EngineError: the model was not trained for it.
    """
    if delay_ms not in allowed_ms(untrained=untrained):
        also = "" if untrained else " (other multiples of 80 up to 2400 only with --allow-untrained-delay)"
        expected = "a multiple of 80 in 80..2400" if untrained else "a multiple of 80 in 80..1200, or 2400"
        raise EngineError(f"the transcription delay must be {expected}{also}, got {delay_ms} ms")
    return delay_ms // STEP_MS
