"""What a bad network does to packets between their planned time and the socket: jitter, bursts and stalls, the same for the same seed."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

NS = 1_000_000_000
MOST_JITTER_MS = 10_000.0
LONGEST_STALL_SECONDS = 600.0
MOST_IN_A_BURST = 1000


class ImpairmentError(ValueError):
    """An impairment cannot be read as written; the message says what is expected."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Nothing leaves a stream for ``seconds``: once, from second ``at`` after its planned start, or once in ``every`` seconds at a
    moment that the seed draws for each stream. What was held back leaves at once when the stall ends.
    """

    seconds: float
    at: float | None = None
    every: float | None = None

    def __str__(self) -> str:
        return f"{self.seconds:g}@{self.at:g}" if self.at is not None else f"{self.seconds:g}/{self.every:g}"


@dataclass(frozen=True, slots=True)
class Impairment:
    """``jitter_ms``: each packet is held for a uniformly drawn time up to this. ``burst``: packets leave in groups of so many, when the
    last of the group is due. Packets of a stream never overtake each other. Nothing, unless asked for.
    """

    jitter_ms: float = 0.0
    burst: int = 1
    stalls: tuple[Stall, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.jitter_ms <= MOST_JITTER_MS:
            raise ImpairmentError(f"jitter of {self.jitter_ms} ms: choose 0 to {MOST_JITTER_MS:g} ms")
        if not 1 <= self.burst <= MOST_IN_A_BURST:
            raise ImpairmentError(f"bursts of {self.burst} packets: choose 1 (none) to {MOST_IN_A_BURST}")

    def __bool__(self) -> bool:
        return bool(self.jitter_ms or self.burst > 1 or self.stalls)

    def described(self) -> dict[str, float | int | list[str]]:
        """For the record of a run; empty when there is none."""
        found: dict[str, float | int | list[str]] = {}
        if self.jitter_ms:
            found["jitter_ms"] = self.jitter_ms
        if self.burst > 1:
            found["burst_packets"] = self.burst
        if self.stalls:
            found["stalls"] = [str(stall) for stall in self.stalls]
        return found

    def held_ns(self, offsets_ns: Sequence[int], seed: int, stream: int) -> tuple[int, ...]:
        """For how long each packet of a stream is held back beyond its due time; ``offsets_ns`` are the due times after T0, ascending."""
        if not self:
            return (0,) * len(offsets_ns)
        drawn = random.Random(f"impairment {seed} {stream}")
        free_ns = list(offsets_ns)
        if self.burst > 1:
            last = len(offsets_ns) - 1
            free_ns = [offsets_ns[min(index - index % self.burst + self.burst - 1, last)] for index in range(last + 1)]
        if self.jitter_ms:
            free_ns = [free + round(drawn.random() * self.jitter_ms * 1_000_000) for free in free_ns]
        gaps = sorted(gap for stall in self.stalls for gap in _gaps(stall, offsets_ns[-1] if offsets_ns else 0, drawn))
        held, earliest = [], 0
        for due, free in zip(offsets_ns, free_ns, strict=True):
            earliest = _after(max(earliest, free), gaps)
            held.append(earliest - due)
        return tuple(held)


def _gaps(stall: Stall, end_ns: int, drawn: random.Random) -> list[tuple[int, int]]:
    length_ns = round(stall.seconds * NS)
    if stall.at is not None:
        return [(round(stall.at * NS), round(stall.at * NS) + length_ns)]
    assert stall.every is not None
    every_ns = round(stall.every * NS)
    begins = range(round(drawn.random() * (every_ns - length_ns)), end_ns + 1, every_ns)
    return [(begin, begin + length_ns) for begin in begins]


def _after(moment_ns: int, gaps: Sequence[tuple[int, int]]) -> int:
    """The first moment from this one on that lies in no gap."""
    for begin, end in gaps:
        if begin <= moment_ns < end:
            moment_ns = end
    return moment_ns


def parse_stalls(text: str) -> tuple[Stall, ...]:
    """Stalls, comma-separated: ``2@10`` is 2 s from second 10 of a stream on, ``2/30`` is 2 s in every 30.

    Raises:
        ImpairmentError: what is written is neither.
    """
    return tuple(_stall(part.strip(), text) for part in text.split(",") if part.strip())


def _stall(part: str, text: str) -> Stall:
    mark = "@" if "@" in part else "/"
    length, found, place = part.partition(mark)
    try:
        seconds, where = float(length), float(place)
    except ValueError:
        seconds = where = math.nan
    usable = bool(found) and 0 < seconds <= LONGEST_STALL_SECONDS and 0 <= where < math.inf
    if not usable or (mark == "/" and where <= seconds):
        raise ImpairmentError(
            f"stall {text!r}: SECONDS@AT (2@10: two seconds from second 10 of a stream on) or SECONDS/EVERY (2/30: two seconds "
            f"in every thirty) is expected, up to {LONGEST_STALL_SECONDS:g} s"
        )
    return Stall(seconds, at=where) if mark == "@" else Stall(seconds, every=where)
