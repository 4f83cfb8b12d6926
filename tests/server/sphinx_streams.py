"""What the tests of the embedded recogniser have in common: clips, a listener, streams."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions
from server.engines.base import EngineStream
from server.engines.sphinx.engine import SphinxEngine
from server.engines.sphinx.settings import SphinxSettings
from wire.pcm import bytes_of

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "datasets" / "spoken-en"
PATIENCE_SECONDS = 60.0  # a bound for the broken case only
ONE_SECOND = bytes(bytes_of(1.0))


def clips(count: int) -> list[tuple[str, bytes]]:
    """Text and PCM of the first clips of every voice in turn."""
    if not SPEECH.exists():
        pytest.skip("datasets/spoken-en is not there")
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()[:count]]
    return [(row["text"], soundfile.read(SPEECH / row["audio"], dtype="int16")[0].tobytes()) for row in rows]


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
        return await self.until(lambda event: isinstance(event, Heard) and event.audio_seconds >= seconds)

    async def end(self) -> EngineEvent:
        return await self.until(lambda event: isinstance(event, SegmentDone | EngineFailed))

    @property
    def said(self) -> list[Heard]:
        return [event for event in self.events if isinstance(event, Heard)]

    @property
    def text(self) -> str:
        return "".join(heard.committed for heard in self.said)


def begin(
    engine: SphinxEngine, segment: int = 0, options: StreamOptions | None = None
) -> tuple[EngineStream, Listener]:
    listener = Listener()
    return engine.open(OpenSegment(segment, options or StreamOptions()), listener), listener


async def transcribe(engine: SphinxEngine, pcm: bytes, cut: int = 2560, delay: float | None = None) -> Listener:
    stream, listener = begin(engine, 0, StreamOptions(delay_seconds=delay))
    for start in range(0, len(pcm), cut):
        stream.feed(pcm[start : start + cut])
    stream.finish()
    assert isinstance(await listener.end(), SegmentDone)
    return listener


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[SphinxEngine]:
    """An engine that leaves nothing behind: two processes, at the priority of everybody else, unless told otherwise."""
    engine = SphinxEngine(SphinxSettings(**{"workers": 2, "nice": 0, **settings}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
