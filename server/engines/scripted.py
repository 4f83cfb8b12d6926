"""An engine that says given words at given times with given faults, for tests, demos, load and self-validation.

What it says comes from the audio itself where that carries a script (`wire.scripted`), else from the words of its spec. What is
dropped or cut is not heard. Every latency and fault is injected exactly as the spec says, so that a measuring instrument can be
held against it.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from pathlib import Path
from typing import Annotated

import msgspec

from server.core.events import EngineFailed, Heard, OpenSegment, SegmentDone, TimedWord, Usage
from server.engines.base import EngineError, EngineInfo, EngineStream, Sink
from wire import scripted
from wire.pcm import bytes_of, seconds_of

_REPORT_SECONDS = 0.4
"""Progress is told at least this often, in seconds of audio."""


_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Stall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At ``at`` seconds of the utterance's audio the engine falls silent for ``seconds`` of wall time."""

    at: float
    seconds: _NotNegative


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """At ``at`` seconds of the utterance's audio the engine fails with ``code``."""

    at: float
    code: str = "processing_error"
    message: str = "scripted fault"


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The spec. Times in ``_ms`` are wall time added to what the audio and the transcription delay demand.

    ``words`` is said over audio that carries no script of its own, timed on the utterance's audio. ``latency_ms`` comes before every
    text (plus a seeded uniform part of up to ``jitter_ms``), ``final_latency_ms`` before the end of a segment. Every n-th word is
    replaced, left out or doubled by ``substitute_every``, ``delete_every`` and ``insert_every``; the last ``lost_tail_words`` words of
    spec'd text are not said. ``audio_rate`` bounds how many seconds of audio are heard per second (None: all at once).
    ``capacity_streams`` bounds it for all streams together, in equal shares, as one processor would: 8.5 keeps up with 8 streams in real
    time and has a little left to catch up, and the ninth makes all of them fall behind by 0.06 s per second.
    A word of which only a part was heard is left out, or said as its fragment with ``fragments``.
    """

    words: tuple[TimedWord, ...] = ()
    latency_ms: _NotNegative = 0.0
    jitter_ms: _NotNegative = 0.0
    final_latency_ms: _NotNegative = 0.0
    substitute_every: _Count = 0
    delete_every: _Count = 0
    insert_every: _Count = 0
    lost_tail_words: _Count = 0
    stalls: tuple[Stall, ...] = ()
    faults: tuple[Fault, ...] = ()
    audio_rate: Annotated[float, msgspec.Meta(gt=0)] | None = None
    capacity_streams: Annotated[float, msgspec.Meta(gt=0)] | None = None
    fragments: bool = False
    timed_words: bool = True
    slots: Annotated[int, msgspec.Meta(ge=1)] = 2000
    seed: int = 0


def read_script(text_or_path: str) -> Script:
    """The spec given as JSON text or as the path of a JSON file; nothing gives the default.

    Raises:
        EngineError: naming what is wrong with it.
    """
    if not text_or_path.strip():
        return Script()
    try:
        text = text_or_path if text_or_path.lstrip().startswith("{") else Path(text_or_path).read_text()
        return msgspec.json.decode(text, type=Script)
    except (OSError, msgspec.DecodeError) as error:
        raise EngineError(f"bad script {text_or_path[:80]!r}: {error}") from error


class ScriptedEngine:
    """See the module."""

    def __init__(self, script: Script, default_delay_seconds: float) -> None:
        self._script = script
        self._busy = 0
        self._info = EngineInfo(
            name="scripted",
            model="scripted",
            default_delay_seconds=default_delay_seconds,
            delays_seconds=tuple(step * 0.08 for step in range(1, 31)),
            languages=("en",),
            slots=script.slots,
            words=script.timed_words,
            caveat="the scripted engine recognises nothing: it says what its script tells it to",
        )

    @property
    def info(self) -> EngineInfo:
        """What it can do."""
        return self._info

    async def start(self) -> None:
        """Nothing to load."""

    async def stop(self) -> None:
        """Nothing to end: streams hold nothing but timers."""

    def metrics(self) -> dict[str, float]:
        """Figures of the moment."""
        return {"busy_slots": float(self._busy), "waiting": 0.0}

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        """Begin to hear a segment."""
        loop = asyncio.get_running_loop()
        delay = segment.options.delay_seconds
        stream = _Stream(self, segment, sink, loop, self._info.default_delay_seconds if delay is None else delay)
        if self._busy >= self._script.slots:
            loop.call_soon(stream.fail, "overloaded", f"all {self._script.slots} slots are taken")
        self._busy += 1
        return stream

    def audio_rate(self) -> float | None:
        """Seconds of audio per second that a stream may hear at the moment; ``None`` for as many as come."""
        script = self._script
        if script.capacity_streams is None:
            return script.audio_rate
        share = script.capacity_streams / max(1, self._busy)
        return share if script.audio_rate is None else min(script.audio_rate, share)

    def _closed(self) -> None:
        self._busy -= 1


class _Stream:
    def __init__(
        self,
        engine: ScriptedEngine,
        segment: OpenSegment,
        sink: Sink,
        loop: asyncio.AbstractEventLoop,
        delay_seconds: float,
    ) -> None:
        self._engine = engine
        self._script = engine._script
        self._segment = segment
        self._sink = sink
        self._loop = loop
        self._delay = delay_seconds
        self._random = random.Random(self._script.seed + segment.segment) if self._script.jitter_ms else None
        self._buffer = bytearray()  # audio not searched yet: at most a frame, or what the rate holds back
        self._buffer_at = 0  # its position in the segment, in bytes
        self._run = -1  # frames of the current word heard in a row, -1 when its start was missed
        self._words: deque[tuple[int, TimedWord]] = deque()  # heard, not committed
        self._spoken = deque(enumerate(self._unscripted_words()))
        self._carries_script = False
        self._said = 0
        self._reported_seconds = 0.0
        self._heard_seconds = 0.0
        self._finished = False
        self._open = True
        self._quiet_until = 0.0  # loop time before which nothing is said
        self._stalls = deque(sorted((s for s in self._script.stalls if self._ahead(s.at)), key=lambda stall: stall.at))
        self._faults = sorted((f for f in self._script.faults if self._ahead(f.at)), key=lambda fault: fault.at)
        self._unsaid: deque[Heard | SegmentDone] = deque()  # one for each timer
        self._timers: set[asyncio.TimerHandle] = set()
        self._granted = 0.0  # audio seconds that the rate has let through
        self._granted_at = loop.time()
        self._throttle: asyncio.TimerHandle | None = None

    # ---- the stream's interface

    def feed(self, pcm: bytes) -> None:
        if self._open:
            self._buffer += pcm
            self._hear()

    def finish(self) -> None:
        self._finished = True
        if self._open:
            self._hear()

    def abort(self) -> None:
        if self._open:
            self._close()

    def fail(self, code: str, message: str) -> None:
        if self._open:
            self._close()
            self._sink(EngineFailed(self._segment.segment, code, message))

    def _close(self) -> None:
        self._open = False
        for timer in self._timers:
            timer.cancel()
        if self._throttle is not None:
            self._throttle.cancel()
        self._engine._closed()

    # ---- hearing

    def _hear(self) -> None:
        end = self._buffer_at + len(self._buffer)
        allowed = self._allowed(end)
        if allowed > self._heard_seconds:
            self._search(bytes_of(allowed))
            self._heard_seconds = allowed
            self._react()
        if self._open and self._finished and allowed >= seconds_of(end):
            self._end()

    def _allowed(self, end: int) -> float:
        """How far into the segment the engine's rate lets us hear; arms a timer for the rest."""
        rate, have = self._engine.audio_rate(), seconds_of(end)
        if rate is None:
            return have
        now = self._loop.time()
        self._granted = min(have, self._granted + (now - self._granted_at) * rate)
        self._granted_at = now
        if self._granted < have and self._throttle is None:
            self._throttle = self._loop.call_later(min(0.08, have - self._granted) / rate, self._unthrottle)
        return self._granted

    def _unthrottle(self) -> None:
        self._throttle = None
        self._hear()

    def _search(self, until: int) -> None:
        """Find word frames in the audio up to byte ``until`` of the segment."""
        reach = until - self._buffer_at
        searched = 0
        for frame in scripted.frames(self._buffer):
            if frame.position + scripted.FRAME_BYTES > reach:
                break
            searched = frame.position + scripted.FRAME_BYTES
            self._carries_script = True
            self._run = 1 if frame.frame == 0 else (self._run + 1 if self._run == frame.frame else -1)
            if frame.frame == frame.frames - 1:
                if self._run == frame.frames or self._script.fragments:
                    heard = frame.frames if self._run == frame.frames else 1
                    text = frame.text if self._run == frame.frames else frame.text[:1]
                    stop = seconds_of(self._buffer_at + searched)
                    start = stop - heard * scripted.FRAME_SECONDS
                    self._words.append((frame.index, TimedWord(text, round(start, 6), round(stop, 6))))
                self._run = -1
        keep_from = max(searched, reach - scripted.FRAME_BYTES + 2)
        if keep_from > 0:
            del self._buffer[:keep_from]
            self._buffer_at += keep_from

    def _unscripted_words(self) -> list[TimedWord]:
        """The spec's words on the segment's clock; those whose start lies before it were not heard whole."""
        words = self._script.words
        words = words[: len(words) - self._script.lost_tail_words]
        offset = self._segment.offset_seconds
        return [TimedWord(word.text, word.start - offset, word.end - offset) for word in words]

    def _ahead(self, at: float) -> bool:
        return at >= self._segment.offset_seconds

    # ---- speaking

    def _react(self) -> None:
        heard, offset = self._heard_seconds, self._segment.offset_seconds
        while self._stalls and heard + offset >= self._stalls[0].at:
            stall = self._stalls.popleft()
            self._quiet_until = max(self._quiet_until, self._loop.time() + stall.seconds)
        if self._faults and heard + offset >= self._faults[0].at:
            fault = self._faults[0]
            self.fail(fault.code, fault.message)
            return
        while not self._carries_script and self._spoken and self._spoken[0][1].end <= heard + 1e-9:
            index, word = self._spoken.popleft()
            if word.start >= 0:
                self._words.append((index, word))
        self._commit(heard - self._delay)
        if heard - self._reported_seconds >= _REPORT_SECONDS:
            self._sink(Heard(self._segment.segment, heard))
            self._reported_seconds = heard

    def _commit(self, until: float) -> None:
        """Say the heard words that end by ``until``."""
        due: list[TimedWord] = []
        while self._words and self._words[0][1].end <= until + 1e-9:
            due += self._misheard(*self._words.popleft())
        if due:
            text = ("" if not self._said else " ") + " ".join(word.text for word in due)
            self._said += len(due)
            self._speak(
                self._script.latency_ms, Heard(self._segment.segment, self._heard_seconds, text, "", tuple(due))
            )

    def _misheard(self, index: int, word: TimedWord) -> list[TimedWord]:
        script = self._script
        if _every(index, script.delete_every):
            return []
        if _every(index, script.substitute_every):
            return [TimedWord("wrong", word.start, word.end)]
        if _every(index, script.insert_every):
            middle = (word.start + word.end) / 2
            return [TimedWord(word.text, word.start, middle), TimedWord("extra", middle, word.end)]
        return [word]

    def _end(self) -> None:
        self._finished = False  # once
        self._commit(float("inf"))
        usage = Usage(round(self._heard_seconds / 0.08), self._said)
        self._speak(self._script.final_latency_ms, SegmentDone(self._segment.segment, usage))

    def _speak(self, latency_ms: float, event: Heard | SegmentDone) -> None:
        """Say it ``latency_ms`` from now, never before what was said earlier."""
        wait = latency_ms / 1000
        if self._random is not None:
            wait += self._random.random() * self._script.jitter_ms / 1000
        at = max(self._loop.time() + wait, self._quiet_until)
        if at <= self._loop.time() and not self._timers:
            self._deliver(event)
            return
        self._quiet_until = at
        self._unsaid.append(event)
        handle: asyncio.TimerHandle

        def say() -> None:
            self._timers.discard(handle)
            self._deliver(self._unsaid.popleft())  # loops keep no order among timers of one moment

        handle = self._loop.call_at(at, say)
        self._timers.add(handle)

    def _deliver(self, event: Heard | SegmentDone) -> None:
        if self._open:
            if isinstance(event, SegmentDone):
                self._close()
            self._sink(event)


def _every(index: int, n: int) -> bool:
    return n > 0 and index % n == n - 1
