"""Calls of a chat engine that are under way: bounded in number, and ended when the engine stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from server.engines.base import EngineError, OverloadedError

STOPPED = "the chat engine is stopped"

T = TypeVar("T")


class Calls:
    """No more than ``most`` at a time: one more is refused."""

    def __init__(self, most: int) -> None:
        self.refused = 0
        self._most = most
        self._open = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def open(self) -> None:
        """From now on there may be calls."""
        self._open = True

    async def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """What the work returns. It is cancelled with its caller.

        Raises:
            OverloadedError: too many are under way.
            EngineError: the engine is stopped, now or in the midst of it.
        """
        if not self._open:
            raise EngineError(STOPPED)
        if len(self._tasks) >= self._most:
            self.refused += 1
            raise OverloadedError(f"{len(self._tasks)} requests are under way already; try again later")
        task = asyncio.create_task(work())  # of its own, so that ``close`` can end it without ending its caller
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not self._open and not (caller and caller.cancelling()):
                raise EngineError(STOPPED) from None
            raise

    async def close(self) -> None:
        """End those under way, let no more in."""
        self._open = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
