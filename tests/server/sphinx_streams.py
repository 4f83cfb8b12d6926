"""What the tests of the embedded recogniser have in common: clips, engines, streams."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import soundfile

from server.core.events import OpenSegment, SegmentDone, StreamOptions
from server.engines.base import EngineStream
from server.engines.sphinx.engine import SphinxEngine
from server.engines.sphinx.settings import SphinxSettings
from tests.listener import Listener
from wire.pcm import bytes_of

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "datasets" / "spoken-en"
ONE_SECOND = bytes(bytes_of(1.0))


def clips(count: int) -> list[tuple[str, bytes]]:
    """Text and PCM of the first clips of every voice in turn."""
    if not SPEECH.exists():
        pytest.skip("datasets/spoken-en is not there")
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()[:count]]
    return [(row["text"], soundfile.read(SPEECH / row["audio"], dtype="int16")[0].tobytes()) for row in rows]


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
