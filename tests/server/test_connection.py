"""The shell of a connection, run on uvloop as the server runs it, with a socket in memory."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest

from server.connection import Connection, Surface
from server.core.limits import LifetimeLimits
from server.core.session import SessionSettings
from server.engines.registry import Models
from server.engines.scripted import ScriptedEngine, read_script
from server.hearing import Resources
from server.metrics import Metrics
from server.protocols.base import Served
from server.protocols.realtime import RealtimeDialect

uvloop = pytest.importorskip("uvloop", reason=f"uvloop is not made for {sys.platform}")

FRAMES = 3


class MemorySocket:
    """A client whose frames are all there at once, and that waits for the close."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.close_code: int | None = None
        self._frames = ['{"type": "synchronise"}'] * FRAMES
        self._closed = asyncio.Event()

    async def receive(self) -> str | None:
        if self._frames:
            return self._frames.pop()
        await self._closed.wait()
        return None

    async def send(self, frame: str) -> None:
        self.sent.append(frame)

    async def close(self, code: int, reason: str) -> None:  # noqa: ARG002
        self.close_code = code
        self._closed.set()


def test_a_deadline_that_has_come_already_is_armed_again_as_often_as_frames_come() -> None:
    """For a moment that is now or past uvloop gives a handle that does not know when it is due, unlike asyncio's own."""
    socket = MemorySocket()

    async def serve() -> None:
        engine = ScriptedEngine(read_script(""), 0.48)
        served = Served(["scripted"], [480], 480, timed_words=True, endpointing=False)
        surface = Surface(
            "realtime",
            SessionSettings(default_delay_seconds=0.48, timed_words=True),
            LifetimeLimits(idle_seconds=1e-9),
            None,
            lambda: RealtimeDialect(served, 60.0),
        )
        await Connection(socket, surface, Resources(Models(engine), Metrics())).run()

    uvloop.run(serve())
    codes = [frame.get("code") for frame in map(json.loads, socket.sent)]
    assert codes == [None, *["unknown_event"] * FRAMES]
    assert socket.close_code == 1000, "closed for idleness, not for a fault of ours"
