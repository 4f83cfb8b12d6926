"""What can be set about the embedded recogniser, checked when it is set."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Literal, get_args

from server.engines.base import EngineError

__all__ = ["DELAY_STEP_SECONDS", "MAX_DELAY_SECONDS", "Profile", "SphinxSettings", "check_delay"]

Profile = Literal["fast", "accurate"]

DELAY_STEP_SECONDS = 0.08
MAX_DELAY_SECONDS = 2.4
ROUNDING_SECONDS = 1e-6

STREAMS_PER_CORE: dict[Profile, int] = {"fast": 6, "accurate": 3}
"""How many real-time streams one free core was measured to carry."""


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def check_delay(seconds: float) -> int:
    """The transcription delay in whole steps of 80 ms.

    Raises:
        EngineError: when it is no multiple of 80 ms between 80 ms and 2.4 s.
    """
    # Clients write 0.48 or 480 / 1000; both are a multiple in the decimal sense, not in the binary one.
    if 0 < seconds <= MAX_DELAY_SECONDS + ROUNDING_SECONDS:
        steps = round(seconds / DELAY_STEP_SECONDS)
        if abs(steps * DELAY_STEP_SECONDS - seconds) <= ROUNDING_SECONDS:
            return steps
    raise EngineError(f"the transcription delay must be a multiple of 0.08 s from 0.08 to 2.4 s, got {seconds!r}")


@dataclass(frozen=True, slots=True)
class SphinxSettings:
    """Settings of the embedded recogniser.

    ``fast`` searches once with a narrowed beam: a tenth of a core per stream and a final text within milliseconds.
    ``accurate`` is what the library does by default: two more passes when the utterance ends, at more than twice the cost.
    ``workers`` is how many segments are heard at once, ``queue_limit`` how many more may wait; 0 takes 6 (fast) or 3
    (accurate) per core, and as many waiting as workers. ``backlog_seconds`` bounds the audio that one stream may have handed over
    but not yet been heard with. ``maxhmmpf`` narrows (or widens) the search further: at 300 the recogniser is visibly broken, which
    is what a regression gate is tested with.
    """

    profile: Profile = "fast"
    workers: int = 0
    queue_limit: int = 0
    nice: int = 3
    default_delay_seconds: float = 0.48
    backlog_seconds: float = 60.0
    maxhmmpf: int | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting.

        Raises:
            EngineError: with the setting's name, its value and what it may be.
        """
        if self.profile not in get_args(Profile):
            raise EngineError(f"sphinx profile must be one of {', '.join(get_args(Profile))}, got {self.profile!r}")
        for name, least, most in (("workers", 0, 4096), ("queue_limit", 0, 1_000_000), ("nice", 0, 19)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise EngineError(f"sphinx {name} must be from {least} to {most}, got {value!r}")
        if not 0 < self.backlog_seconds <= 500:
            raise EngineError(f"sphinx backlog_seconds must be above 0 and at most 500, got {self.backlog_seconds!r}")
        if self.maxhmmpf is not None and self.maxhmmpf < 1:
            raise EngineError(f"sphinx maxhmmpf must be at least 1, got {self.maxhmmpf!r}")
        check_delay(self.default_delay_seconds)

    @property
    def worker_count(self) -> int:
        """How many segments are heard at once."""
        return self.workers or STREAMS_PER_CORE[self.profile] * usable_cores()

    @property
    def waiting_count(self) -> int:
        """How many segments may wait for a worker."""
        return self.queue_limit or self.worker_count
