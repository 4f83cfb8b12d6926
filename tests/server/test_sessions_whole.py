"""Dialect and session together, whatever clients do and however slow the engine is: every end is answered, every word said once."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given
from hypothesis import strategies as some

from server.core.conversations import Conversations, SessionLimits
from server.core.events import (
    AbortSegment,
    Audio,
    Cancel,
    CloseSegment,
    Command,
    EngineEvent,
    EngineFailed,
    Feed,
    Finish,
    Heard,
    OpenSegment,
    Output,
    SegmentDone,
    Start,
)
from server.core.session import Session, SessionError, SessionSettings
from server.protocols.base import Ask, Close, Reply, Served, Step, only
from server.protocols.sessions import AudioDialect, ControlDialect, Policy, Surroundings
from wire.pcm import seconds_of

FRAME_BYTES = 3200  # 0.1 s
SERVED = Served(["served"], [80, 480], 480, timed_words=False, endpointing=True)


class Plain:
    """A detector that takes everything but zeros for a voice."""

    frame_seconds = 0.1

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, pcm: bytes) -> Sequence[float]:
        self._rest += pcm
        frames = [self._rest[at : at + FRAME_BYTES] for at in range(0, len(self._rest) - FRAME_BYTES + 1, FRAME_BYTES)]
        self._rest = self._rest[len(frames) * FRAME_BYTES :]
        return [float(any(frame)) for frame in frames]

    def reset(self) -> None:
        self._rest = b""


class Ignored:
    def inferred(self, seconds: float) -> None: ...

    def processed(self, seconds: float) -> None: ...

    def displaced(self, seconds: float) -> None: ...

    def unanswered(self, seconds: float) -> None: ...


@dataclass
class Hearer:
    """An engine that says a number for each frame of its samples, once it is allowed to."""

    fed: dict[int, bytearray] = field(default_factory=dict)
    told: dict[int, int] = field(default_factory=dict)
    closed: set[int] = field(default_factory=set)

    def take(self, output: Output) -> None:
        match output:
            case OpenSegment(number):
                self.fed[number], self.told[number] = bytearray(), 0
            case Feed(number, pcm):
                self.fed[number] += pcm
            case CloseSegment(number):
                self.closed.add(number)
            case AbortSegment(number):
                self.fed.pop(number, None)

    def events(self) -> list[EngineEvent]:
        said: list[EngineEvent] = []
        for number, pcm in list(self.fed.items()):
            whole = len(pcm) // FRAME_BYTES * FRAME_BYTES
            frames = [pcm[at : at + 2] for at in range(self.told[number], whole, FRAME_BYTES)]
            words = "".join(f" {int.from_bytes(frame, 'little')}" for frame in frames if any(frame))
            said.append(Heard(number, seconds_of(len(pcm)), words))
            self.told[number] = whole
            if number in self.closed:
                del self.fed[number]
                said.append(SegmentDone(number))
        return said

    def failure(self) -> list[EngineEvent]:
        for number in list(self.fed):
            del self.fed[number]
            return [EngineFailed(number, "processing_error", "it failed")]
        return []


class World:
    """One audio socket and one control socket of a session, as the shells of server/ run them, without any time."""

    def __init__(self, *, chat: bool) -> None:
        conversations = Conversations(SessionLimits(None, None, None, None), vad_sensitivity=2, max_length=512)
        conversation = conversations.create(0.0)
        assert conversation is not None
        policy = Policy(silence_seconds=0.3, count_errors=False, reply_by_chat=chat, inactivity_seconds=None)
        around = Surroundings(conversations, policy, only(SERVED), Ignored(), chat=chat, clock=lambda: 0.0)
        self.dialect = AudioDialect(conversation, around, 0.0)
        self.control = ControlDialect(conversation, around)
        settings = SessionSettings(0.48, timed_words=False, segment_seconds=None, overlap_seconds=0.0, mute=None)
        self.session = Session(settings, Plain)
        self.engine = Hearer()
        self.frames: list[dict[str, Any]] = []
        self.asks: deque[Ask] = deque()
        self._happenings: deque[Command | EngineEvent] = deque()
        self._working = False

    def send(self, frame: str | bytes) -> None:
        self.take(self.dialect.receive(frame))

    def take(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Reply(frame):
                    self.frames.append(json.loads(frame))
                case Ask():
                    self.asks.append(step)
                case Start() | Audio() | Finish() | Cancel():
                    self.happen(step)
                case _:
                    assert not isinstance(step, Close), step

    def happen(self, happening: Command | EngineEvent) -> None:
        self._happenings.append(happening)
        if self._working:
            return
        self._working = True
        while self._happenings:
            try:
                outputs = self.session.handle(self._happenings.popleft(), 0.0)
            except SessionError as error:
                self.take(self.dialect.refused(error))
                continue
            for output in outputs:
                if isinstance(output, OpenSegment | Feed | CloseSegment | AbortSegment):
                    self.engine.take(output)
                else:
                    self.take(self.dialect.tell(output))
        self._working = False

    def progress(self) -> None:
        for event in self.engine.events():
            self.happen(event)

    def answer(self) -> None:
        if self.asks:
            ask = self.asks.popleft()
            frames = [ask.audios[0][at : at + 2] for at in range(0, len(ask.audios[0]), FRAME_BYTES)]
            numbers = [int.from_bytes(frame, "little") for frame in frames if any(frame)]
            self.take(self.dialect.answered(" ".join(map(str, numbers)) or "nothing"))

    def settle(self) -> None:
        for _ in range(100):
            if not self.engine.fed and not self.asks and not self.session.busy:
                return
            self.progress()
            self.answer()
        raise AssertionError("it never comes to rest")

    def of_type(self, kind: str, control_type: str | None = None) -> list[dict[str, Any]]:
        return [frame for frame in self.frames if frame["type"] == kind and frame.get("control_type") == control_type]


ACTIONS = some.lists(
    some.sampled_from(
        [
            *(*["voice"] * 6, *["silence"] * 4, *["pause"] * 2, *["progress"] * 5, *["answer"] * 2),
            *("end", "end", "delay", "off", "auto", "sensitivity"),
        ]
    ),
    max_size=60,
)


def play(actions: list[str], *, chat: bool) -> tuple[World, list[int], int]:
    """The world after these actions and a last end, the words that were said, and how many ends were sent."""
    world, ends = World(chat=chat), 0
    words: list[int] = []
    for action in [*actions, "end"]:
        match action:
            case "voice":
                words.append(len(words) + 1)
                world.send(words[-1].to_bytes(2, "little") * (FRAME_BYTES // 2))
            case "silence":
                world.send(bytes(FRAME_BYTES))
            case "pause":
                world.send(bytes(5 * FRAME_BYTES))
            case "end":
                ends += 1
                world.send('{"type":"control","control_type":"end"}')
            case "delay":
                world.send('{"type":"control","control_type":"configure","delay_ms":80}')
            case "off" | "auto":
                world.send(json.dumps({"type": "control", "control_type": "configure", "vad": action}))
            case "sensitivity":
                world.take(world.control.receive('{"type":"config_update","config":{"vad_sensitivity":1}}'))
            case "progress":
                world.progress()
            case "answer":
                world.answer()
            case "failure":
                for event in world.engine.failure():
                    world.happen(event)
    world.settle()
    return world, words, ends


def numbers(world: World) -> list[int]:
    return [int(word) for frame in world.of_type("text_response") for word in frame["text"].split()]


@given(ACTIONS)
def test_every_word_is_answered_once_and_in_order_and_so_is_every_end(actions: list[str]) -> None:
    world, words, ends = play(actions, chat=False)
    assert numbers(world) == words
    assert len(world.of_type("control", "ended")) == ends
    assert world.frames[-1] == {"type": "control", "control_type": "ended", "timestamp": 0.0}
    assert world.of_type("error") == []
    assert not world.dialect.busy


@given(ACTIONS)
def test_the_chat_engine_hears_every_word_once_and_in_order(actions: list[str]) -> None:
    world, words, ends = play(actions, chat=True)
    refused = [frame for frame in world.of_type("error") if frame["code"] == "RATE_LIMITED"]
    if not refused:
        assert numbers(world) == words
    assert len(world.of_type("control", "ended")) == ends
    assert not world.dialect.busy


@given(some.lists(some.sampled_from(["voice", "voice", "pause", "end", "progress", "failure", "delay"]), max_size=60))
def test_failures_cost_words_but_no_end_and_no_order(actions: list[str]) -> None:
    world, words, ends = play(actions, chat=False)
    heard = numbers(world)
    assert heard == sorted(set(heard))
    assert set(heard) <= set(words)
    assert len(world.of_type("control", "ended")) == ends
    assert not world.dialect.busy
    before = len(world.frames)
    world.send((999).to_bytes(2, "little") * (FRAME_BYTES // 2))
    world.send('{"type":"control","control_type":"end"}')
    world.settle()
    assert [frame.get("text") for frame in world.frames[before:]] == ["999", None], "and the next utterance is heard"
