"""What the tests of the vLLM engine have in common: engines on a tiny checkpoint, and streams on them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from server.core.events import OpenSegment, StreamOptions
from server.engines.base import EngineStream
from server.engines.vllm.engine import VllmEngine
from server.engines.vllm.settings import VllmSettings
from tests.listener import PATIENCE_SECONDS, Listener


def begin(engine: VllmEngine, delay_ms: int | None = None, segment: int = 0) -> tuple[EngineStream, Listener]:
    """A new stream and what listens to it."""
    listener = Listener()
    options = StreamOptions(delay_seconds=None if delay_ms is None else delay_ms / 1000)
    return engine.open(OpenSegment(segment, options), listener), listener


def send(stream: EngineStream, pcm: bytes, cut: int = 2560) -> None:
    """Feed all of it in pieces, then finish."""
    for start in range(0, len(pcm), cut):
        stream.feed(pcm[start : start + cut])
    stream.finish()


async def transcribe(engine: VllmEngine, pcm: bytes, delay_ms: int | None = None, cut: int = 2560) -> Listener:
    """Hear it to its end."""
    stream, listener = begin(engine, delay_ms)
    send(stream, pcm, cut)
    await listener.end()
    return listener


async def until(holds: Callable[[], bool], what: str, seconds: float = PATIENCE_SECONDS) -> float:
    """Seconds until the condition holds, which nobody announces."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not holds():
        assert loop.time() - began < seconds, f"still not: {what}"
        await asyncio.sleep(0.005)
    return loop.time() - began


@asynccontextmanager
async def running(checkpoint: Path, **settings: Any) -> AsyncIterator[VllmEngine]:
    """A started engine in float32 that leaves nothing behind."""
    engine = VllmEngine(VllmSettings(checkpoint, **{"dtype": "float32", **settings}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
