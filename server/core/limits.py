"""Bounds with a name: how long a connection may live or idle, how many there may be, and how often a client may do something."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LifetimeLimits:
    """Seconds; ``None`` switches a limit off."""

    idle_seconds: float | None = None
    duration_seconds: float | None = None


class Lifetime:
    """When a connection has to end. Idle time does not run while work is in flight; the maximum duration always does."""

    def __init__(self, limits: LifetimeLimits, now: float) -> None:
        self._limits = limits
        self._opened_at = now
        self._active_at = now

    def touch(self, now: float) -> None:
        """Something was received or sent, or work ended."""
        self._active_at = now

    def deadline(self, *, busy: bool) -> float | None:
        """When ``expired`` has to be asked next."""
        candidates = []
        if self._limits.duration_seconds is not None:
            candidates.append(self._opened_at + self._limits.duration_seconds)
        if self._limits.idle_seconds is not None and not busy:
            candidates.append(self._active_at + self._limits.idle_seconds)
        return min(candidates, default=None)

    def expired(self, now: float, *, busy: bool) -> str | None:
        """``"duration"``, ``"idle"`` or None."""
        limits = self._limits
        if limits.duration_seconds is not None and now >= self._opened_at + limits.duration_seconds:
            return "duration"
        if limits.idle_seconds is not None and not busy and now >= self._active_at + limits.idle_seconds:
            return "idle"
        return None


class Admission:
    """One account of open connections, with a policy of ``reject``. ``limit`` None lets everybody in."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.active = 0
        self.rejected = 0

    def enter(self) -> bool:
        """Take a place; False when there is none."""
        if self.limit is not None and self.active >= self.limit:
            self.rejected += 1
            return False
        self.active += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self.active -= 1


_MOST_KEYS = 10_000
"""Of a limiter: beyond it those seen longest ago are forgotten, who then have their whole allowance again."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a fixed window leaves a client: ``remaining`` more in the next ``reset_seconds``."""

    allowed: bool
    limit: int
    remaining: int
    reset_seconds: float


class FixedWindows:
    """At most ``limit`` in each ``window_seconds``, key by key; a key's window begins with its first. ``None`` lets all pass."""

    def __init__(self, limit: int | None, window_seconds: float = 60.0) -> None:
        self.limit = limit
        self.window_seconds = window_seconds
        self.refused = 0
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()  # key -> start, how many

    def take(self, key: str, now: float) -> Allowance:
        """Count one more for the key, if there is room."""
        if self.limit is None:
            return Allowance(allowed=True, limit=0, remaining=0, reset_seconds=0.0)
        start, taken = self._windows.pop(key, (now, 0))
        if now >= start + self.window_seconds:
            start, taken = now, 0
        allowed = taken < self.limit
        self._windows[key] = (start, taken + allowed)
        if len(self._windows) > _MOST_KEYS:
            self._windows.popitem(last=False)
        self.refused += not allowed
        return Allowance(allowed, self.limit, self.limit - taken - allowed, start + self.window_seconds - now)


class TokenBuckets:
    """For each key a bucket of ``burst`` that fills at ``rate`` a second. Rate 0 lets all pass; burst 0 is as large as the rate."""

    def __init__(self, rate: float, burst: float = 0.0, forget_seconds: float = 300.0) -> None:
        self.rate = rate
        self.burst = burst if burst > 0 else rate
        self.refused = 0
        self._forget_seconds = forget_seconds
        self._levels: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # key -> level, at what time; seen longest ago first

    def __len__(self) -> int:
        return len(self._levels)

    def take(self, key: str, now: float, amount: float = 1.0) -> bool:
        """Take ``amount`` out of the key's bucket; False, and nothing is taken, when there is less in it."""
        if self.rate <= 0:
            return True
        level, since = self._levels.pop(key, (self.burst, now))
        level = min(self.burst, level + (now - since) * self.rate)
        enough = level >= amount - 1e-9
        self._levels[key] = (level - amount if enough else level, now)
        self.refused += not enough
        self._prune(now)
        return enough

    def wait_seconds(self, key: str, now: float, amount: float = 1.0) -> float:
        """How long until so much is in the key's bucket; infinity when the bucket is smaller than that."""
        if self.rate <= 0:
            return 0.0
        if amount > self.burst:
            return math.inf
        level, since = self._levels.get(key, (self.burst, now))
        return max(0.0, (amount - min(self.burst, level + (now - since) * self.rate)) / self.rate)

    def _prune(self, now: float) -> None:
        while self._levels:
            key, (_, since) = next(iter(self._levels.items()))
            if now - since <= self._forget_seconds and len(self._levels) <= _MOST_KEYS:
                return
            del self._levels[key]
