"""The shell of a connection, run on uvloop as the server runs it, with a socket in memory."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from server.connection import Connection, Surface
from server.core.conversations import Conversations, SessionLimits
from server.core.events import OpenSegment, TimedWord
from server.core.limits import LifetimeLimits
from server.core.session import SessionSettings
from server.engines.base import Answer, EngineStream, Sampling, Sink
from server.engines.openai_chat import OpenAiChatEngine, OpenAiChatSettings
from server.engines.registry import Models
from server.engines.scripted import ScriptedEngine, read_script
from server.hearing import Resources
from server.metrics import Metrics
from server.protocols.base import Dialect, Served, only
from server.protocols.realtime import RealtimeDialect
from server.protocols.sessions import AudioDialect, Policy, Surroundings
from server.protocols.yap import YapDialect
from wire.pcm import encode_base64
from wire.scripted import speak

uvloop = pytest.importorskip("uvloop", reason=f"uvloop is not made for {sys.platform}")

FRAMES = 3


class MemorySocket:
    """A client whose frames are all there at once, and that waits for the close."""

    def __init__(self, *frames: str) -> None:
        self.sent: list[str] = []
        self.close_code: int | None = None
        self._frames = list(reversed(frames))
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
    socket = MemorySocket(*['{"type": "synchronise"}'] * FRAMES)

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


class Brittle(ScriptedEngine):
    """Has a bug in it that the first stream meets."""

    met = False

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        if not self.met:
            self.met = True
            raise ZeroDivisionError("a bug")
        return super().open(segment, sink)


@pytest.mark.spec("yap-58", "realtime-40")
@pytest.mark.parametrize("protocol", ["yap", "realtime"])
def test_a_bug_of_ours_is_told_and_ends_one_connection_alone(protocol: str) -> None:
    """It cannot be brought about from outside, so the shell runs an engine that has one."""
    served = Served(["scripted"], [480], 480, timed_words=True, endpointing=False)
    dialects: dict[str, Callable[[], Dialect]] = {
        "yap": lambda: YapDialect(served),
        "realtime": lambda: RealtimeDialect(served, 60.0),
    }
    surface = Surface(
        protocol,
        SessionSettings(default_delay_seconds=0.48, timed_words=True),
        LifetimeLimits(idle_seconds=1.0),
        None,
        dialects[protocol],
    )
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("session.update", {"model": "scripted"}),
        ("input_audio_buffer.commit", {"final": False}),
        ("input_audio_buffer.append", {"audio": encode_base64(speak([TimedWord("fine", 0.1, 0.4)], 0.5))}),
        ("input_audio_buffer.commit", {"final": True}),
    ]
    frames = [
        json.dumps({"type": kind, "session_id": "s", "request_id": "r", "payload": fields, **fields})
        for kind, fields in bodies
    ]
    unlucky, lucky = MemorySocket(*frames), MemorySocket(*frames)

    async def serve() -> None:
        engine = Brittle(read_script(""), 0.48)
        for socket in (unlucky, lucky):
            await Connection(socket, surface, Resources(Models(engine), Metrics())).run()

    uvloop.run(serve())
    told = json.loads(unlucky.sent[-1])
    assert told["type"] == "error"
    if protocol == "yap":
        assert (told["payload"]["code"], told["payload"]["details"]) == (
            "internal_error",
            {"reason_code": "internal_error"},
        )
    else:
        assert told["code"] == "processing_error"
    assert unlucky.close_code == 1011
    assert "fine" in lucky.sent[-1] + lucky.sent[-2]


class BrittleChat(OpenAiChatEngine):
    """Has a bug in it, which the first question meets."""

    async def answer(self, question: str, audios: Sequence[bytes], sampling: Sampling) -> Answer:  # noqa: ARG002
        raise ZeroDivisionError("a bug")


class Ignored:
    """Takes what is measured."""

    def inferred(self, seconds: float) -> None: ...

    def processed(self, seconds: float) -> None: ...

    def displaced(self, seconds: float) -> None: ...

    def unanswered(self, seconds: float) -> None: ...


def test_a_bug_in_what_answers_ends_the_connection_that_asked() -> None:
    socket = MemorySocket("a question", "another")

    async def serve() -> None:
        engine = ScriptedEngine(read_script(""), 0.48)
        served = Served(["scripted"], [480], 480, timed_words=True, endpointing=False)
        conversations = Conversations(SessionLimits(), vad_sensitivity=2, max_length=512)
        conversation = conversations.create(0.0)
        assert conversation is not None
        around = Surroundings(conversations, Policy(), only(served), Ignored(), chat=True)
        surface = Surface(
            "sessions",
            SessionSettings(default_delay_seconds=0.48, timed_words=True),
            LifetimeLimits(),
            10,
            lambda: AudioDialect(conversation, around, asyncio.get_running_loop().time()),
            BrittleChat(OpenAiChatSettings("http://unasked")),
        )
        await Connection(socket, surface, Resources(Models(engine), Metrics())).run()

    uvloop.run(serve())
    connected, error = map(json.loads, socket.sent)
    assert connected["type"] == "status"
    assert (error["type"], error["code"]) == ("error", "PROCESSING_ERROR")
    assert "a bug" not in error["error"]
    assert socket.close_code == 1011
