"""What takes in the events of an engine's stream, for tests to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from server.core.events import EngineEvent, EngineFailed, Heard, SegmentDone

PATIENCE_SECONDS = 120.0  # a bound for the broken case only


class Listener:
    """Collects what a stream says."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, wanted: Callable[[EngineEvent], bool]) -> EngineEvent:
        """The first event that is wanted, now or later."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def heard(self, seconds: float = 0.0) -> EngineEvent:
        """Its first progress this far into the audio."""
        return await self.until(lambda event: isinstance(event, Heard) and event.audio_seconds >= seconds)

    async def end(self) -> EngineEvent:
        """How it ends."""
        return await self.until(lambda event: isinstance(event, SegmentDone | EngineFailed))

    @property
    def said(self) -> list[Heard]:
        """Its progress so far."""
        return [event for event in self.events if isinstance(event, Heard)]

    @property
    def text(self) -> str:
        """All it has said."""
        return "".join(heard.committed for heard in self.said)
