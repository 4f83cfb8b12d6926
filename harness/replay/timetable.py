"""One timer for all streams: calls each of them when its next packet is due."""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import ceil
from time import perf_counter_ns
from typing import Protocol

LARGEST_BATCH = 256
"""Departures in one go, after which the loop gets to read what has arrived."""


class Departing(Protocol):
    """Something with packets to send."""

    def depart(self, now_ns: int) -> int | None:
        """Send the packet that is due; returns when the next one is, or ``None`` when there is none."""


class Timetable:
    """Due times are ``perf_counter_ns``. Nothing leaves early; how late it leaves is the caller's to record."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: list[tuple[int, int, Departing]] = []
        self._tickets = count()
        self._timer: asyncio.Handle | None = None
        self._timer_due_ns = 0

    def add(self, due_ns: int, stream: Departing) -> None:
        """Call ``stream.depart`` at ``due_ns``, and again whenever it says."""
        heappush(self._due, (due_ns, next(self._tickets), stream))
        if self._timer is None or due_ns < self._timer_due_ns:
            self._set_timer(due_ns)

    def _set_timer(self, due_ns: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due_ns = due_ns
        # Loops count in whole milliseconds and may round down: a timer of the next whole one is never early by more than that.
        wait_ms = ceil((due_ns - perf_counter_ns()) / 1_000_000)
        self._timer = (
            self._loop.call_later(wait_ms / 1000, self._run) if wait_ms > 0 else self._loop.call_soon(self._run)
        )

    def _run(self) -> None:
        self._timer = None
        due = self._due
        for _ in range(LARGEST_BATCH):
            if not due:
                return
            now_ns = perf_counter_ns()
            due_ns, _, stream = due[0]
            if due_ns > now_ns:
                break
            next_ns = stream.depart(now_ns)
            # depart may have added others, but nothing that is due before the head was
            if next_ns is None:
                heappop(due)
            else:
                heapreplace(due, (next_ns, next(self._tickets), stream))
        self._set_timer(due[0][0])
