"""Bounds with a name: how long a connection may live or idle, and how many there may be."""

from __future__ import annotations

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
