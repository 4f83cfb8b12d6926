"""What passes between us and a server for one utterance: the way in, what the server says, and the record of it all. Not the sending."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from secrets import token_hex
from time import perf_counter_ns
from typing import Any

from harness.corpus import Utterance
from harness.drivers.base import (
    Answer,
    Appended,
    Done,
    Dropped,
    Fault,
    Final,
    Frame,
    Pause,
    Ready,
    Reply,
    Status,
    Tentative,
)
from harness.replay.carriers import carrier
from harness.replay.carrying import Connection, Destination, Nobody, TurnedAway
from harness.timeline import Entry, Kind, Outcome, StreamRecord


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream waits for the server. A final may take twice the audio, if that is more than ``final_seconds``; when the audio
    was not paced the server has everything still to do, and gets five times as long.
    """

    connect_seconds: float = 10.0
    ready_seconds: float = 10.0
    final_seconds: float = 30.0
    done_seconds: float = 5.0  # between the final and the message that says no more comes, or for one more piece
    close_seconds: float = 2.0


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a stream that was refused, or found no connection, tries again before it sent any audio. Never, unless asked for.

    Waits double from ``first_seconds`` up to ``longest_seconds``, each spread over half to one and a half of it by the seed.
    """

    times: int = 0
    first_seconds: float = 0.5
    longest_seconds: float = 10.0

    def wait_seconds(self, attempt: int, seed: int, stream: int) -> float:
        """How long to wait after failed ``attempt`` (from 0)."""
        spread = 0.5 + random.Random(f"retry {seed} {stream} {attempt}").random()
        return min(self.longest_seconds, self.first_seconds * 2.0**attempt) * spread


@dataclass(slots=True)
class Progress:
    """Counts of the moment."""

    total: int = 0
    active: int = 0
    done: int = 0
    failed: int = 0
    retries: int = 0
    words: int = 0
    audio_seconds: float = 0.0  # of streams that have ended
    worst_lateness_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """An open connection that a stream leaves to the next one, and the transcription delay that the server said is in force on it."""

    connection: Connection
    delay_ms_in_force: int | None


class Exchange:
    """An utterance's part in a connection, from the first attempt to connect to the last word. Connections tell it what comes."""

    def __init__(
        self,
        utterance: Utterance,
        destination: Destination,
        patience: Patience,
        progress: Progress,
        *,
        speed: float = 1.0,
        told: Callable[[Entry], None] | None = None,
    ) -> None:
        self.utterance, self.speed = utterance, speed
        self.t0_ns = 0
        self.retries = 0
        self.outcome: Outcome | None = None
        self.error = ""
        self.final_ns: int | None = None
        self.words_shown = 0
        self._destination, self._patience, self._progress, self._told = destination, patience, progress, told
        self._carrier = carrier(destination.driver.transport)
        self._left_ns: list[int] = []  # when each packet had left, the end of audio last
        self._events: list[Entry] = []
        self._final: Final | None = None
        self._usage: Mapping[str, int] = {}
        self._delay_ms_in_force: int | None = None
        self._connection: Connection | None = None
        self._begin()

    def _begin(self) -> None:
        """As if nothing had been tried yet."""
        loop = asyncio.get_running_loop()
        self.outcome, self.error = None, ""
        self._hear: Callable[[Any], Any] = self._destination.driver.listen(self._destination.request)
        self._paused: tuple[Pause, int] | None = None
        self._all_sent = False
        self._settling: asyncio.TimerHandle | None = None
        self._is_open: asyncio.Future[None] = loop.create_future()
        self._is_ready: asyncio.Future[None] = loop.create_future()
        self._is_over: asyncio.Future[None] = loop.create_future()

    @property
    def streams(self) -> bool:
        """Whether text can come before the audio has ended."""
        return not self._destination.driver.whole

    # ---- the way in and out ----

    async def _open_with_retries(self, retries: Retries, seed: int, index: int) -> bool:
        """Whether there is a session to send audio in."""
        while True:
            await self._open()
            if self.outcome is None:
                return True
            await self._leave()
            if self.retries >= retries.times:
                return False
            wait_seconds = retries.wait_seconds(self.retries, seed, index)
            self._events.append(Entry(perf_counter_ns(), Kind.RETRY, value=wait_seconds, text=self.error))
            self.retries += 1
            self._progress.retries += 1
            await asyncio.sleep(wait_seconds)
            if self._connection is not None:
                self._connection.listener = Nobody()
                self._connection = None
            self._begin()

    async def _open(self) -> None:
        """Connect and wait for the session; ``outcome`` is set when that fails."""
        destination = self._destination
        if not await self._connect() or self._connection is None:
            return
        for frame in destination.driver.hello(destination.request):
            self._connection.write(self._carrier.prepare((frame,), destination))
        await self._wait(self._is_ready, self._patience.ready_seconds)  # servers that say nothing are taken to be ready
        if not self._is_ready.done():
            self._ready(perf_counter_ns(), None)

    async def _connect(self) -> bool:
        seconds = self._patience.connect_seconds
        self._note(Kind.CONNECTING, perf_counter_ns())
        try:
            async with asyncio.timeout(seconds):
                self._connection = await self._carrier.connect(self._destination, self, f"earmark-{token_hex(8)}")
                await self._is_open
        except TimeoutError:
            self._end(Outcome.FAILED, f"no connection within {seconds:g} s")
        except OSError as error:
            self._end(Outcome.FAILED, f"cannot connect: {error}")
        if self.outcome is not None and self._connection is not None:
            self._connection.abort()
        return self.outcome is None

    def _take_over(self, line: Line) -> None:
        """Go on with a connection that another utterance has left."""
        self._connection, self._delay_ms_in_force = line.connection, line.delay_ms_in_force
        self._connection.listener = self
        _resolve(self._is_open)
        _resolve(self._is_ready)

    async def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed(self._patience.close_seconds)

    async def _wait(self, future: asyncio.Future[None], seconds: float) -> None:
        await asyncio.wait((future,), timeout=seconds)

    def _conclude(self, final_seconds: float) -> None:
        """The end of the wait for the final, whether it came or not."""
        if self.outcome is None:
            self._adopt_pause()
        if self._final is not None:
            self._end(Outcome.OK)
        self._end(Outcome.FAILED, f"no final within {final_seconds:g} s of the end of the audio{self._silence()}")

    # ---- what the connection tells ----

    def opened(self, t_ns: int, delay_ms: int | None = None) -> None:
        """The connection is open."""
        self._note(Kind.CONNECTED, t_ns)
        _resolve(self._is_open)
        if not self._destination.driver.announces_ready:
            self._ready(t_ns, delay_ms)

    def left(self, t_ns: int) -> None:
        """One more message has left."""
        self._left_ns.append(t_ns)

    def drained(self, t_ns: int) -> None:
        """All that was written has left."""

    def received(self, frame: Frame | Answer | Status, t_ns: int) -> None:
        """Note what a server frame says."""
        for said in self._hear(frame):
            match said:
                case Appended(text):
                    self._note(Kind.APPENDED, t_ns, text)
                    self.words_shown += len(text.split())
                    self._progress.words += len(text.split())
                case Tentative(text):
                    self._note(Kind.TENTATIVE, t_ns, text)
                case Final(text):
                    self._note(Kind.FINAL, t_ns, text)
                    self._final, self.final_ns = said, t_ns
                    asyncio.get_running_loop().call_later(self._patience.done_seconds, _resolve, self._is_over)
                case Pause():
                    self._paused = said, t_ns
                    self._settle()
                case Done(usage, delay_ms):
                    self._usage = usage
                    self._delay_ms_in_force = self._delay_ms_in_force if delay_ms is None else delay_ms
                    self._adopt_pause(t_ns)
                    if self._final is None:
                        self._end(Outcome.FAILED, "the server said done without a transcript")
                    self._end(Outcome.OK)
                case Ready(delay_ms):
                    self._ready(t_ns, delay_ms)
                case Reply(frames):
                    for reply in frames:
                        if self._connection is not None:
                            self._connection.write(self._carrier.prepare((reply,), self._destination))
                case Dropped(seconds):
                    self._events.append(Entry(t_ns, Kind.DROPPED, value=seconds))
                case Fault(code, message, refused):
                    self._fault(f"{code}: {message}", Outcome.REJECTED if refused else Outcome.FAILED, t_ns)

    def closed(self, why: str, t_ns: int, *, refused: bool = False) -> None:
        """The connection is gone, at the end of the stream or before."""
        if self.outcome is not Outcome.ABANDONED:
            self._note(Kind.CLOSED, t_ns, why)
        refused = refused and not self._is_ready.done()
        outcome = Outcome.OK if self._final else Outcome.REJECTED if refused else Outcome.FAILED
        self._end(outcome, f"the server closed the connection: {why}")

    def turned_away(self, told: TurnedAway, t_ns: int) -> None:
        """There will be no stream."""
        if self.outcome is None:
            text = told.why
            if told.key:
                text += f" (is the key right? it comes from --api-key or {self._destination.driver.key_variable})"
            self._fault(text, Outcome.REJECTED if told.busy else Outcome.FAILED, t_ns)

    def _adopt_pause(self, done_ns: int | None = None) -> None:
        """Where no other final came, the last piece was it; one of the middle became the last only by the word that nothing follows."""
        if self._final is None and self._paused is not None:
            pause, t_ns = self._paused
            if done_ns is not None and t_ns < self._speech_end_ns():
                t_ns = done_ns
            self._note(Kind.FINAL, t_ns, pause.text)
            self._final, self.final_ns = Final(pause.text), t_ns

    def _speech_end_ns(self) -> int:
        """When the last sample of the utterance was due."""
        return self.t0_ns

    def _settle(self) -> None:
        """Where a server never says that it is done, it is when nothing followed for a while and there is nothing left to hear."""
        if self._settling is not None:
            self._settling.cancel()
        if self._paused is not None and self._all_sent:
            loop = asyncio.get_running_loop()
            self._settling = loop.call_later(self._patience.done_seconds, _resolve, self._is_over)

    def _ready(self, t_ns: int, delay_ms: int | None) -> None:
        if not self._is_ready.done() and not self._is_over.done():
            self._note(Kind.READY, t_ns, None if delay_ms is None else str(delay_ms))
            self._delay_ms_in_force = delay_ms
            _resolve(self._is_ready)

    def _fault(self, error: str, outcome: Outcome, t_ns: int) -> None:
        self._note(Kind.ERROR, t_ns, error)
        self._end(outcome, error)

    def _silence(self) -> str:
        """What no answer at all may mean here."""
        heard = any(event.kind in (Kind.APPENDED, Kind.TENTATIVE) for event in self._events)
        hint = self._destination.driver.silence
        return f", and no text before: {hint}" if hint and not heard else ""

    def _note(self, kind: Kind, t_ns: int, text: str | None = None) -> None:
        entry = Entry(t_ns, kind, text=text)
        self._events.append(entry)
        if self._told is not None:
            self._told(entry)

    def _end(self, outcome: Outcome, error: str = "") -> None:
        """The first end counts."""
        if self.outcome is None:
            self.outcome, self.error = outcome, "" if outcome is Outcome.OK else error
        for future in (self._is_open, self._is_ready, self._is_over):
            _resolve(future)

    # ---- afterwards ----

    def _record(self, origin_ns: int, index: int, sent: list[Entry], audio_seconds: float) -> StreamRecord:
        """The exchange as the timeline keeps it, in order of time. ``sent`` are packets and end of audio, on the run's clock."""
        utterance = self.utterance
        entries = [
            *sent,
            *(Entry(event.t_ns - origin_ns, event.kind, None, event.value, event.text) for event in self._events),
        ]
        entries.sort(key=lambda entry: entry.t_ns)
        return StreamRecord(
            stream=index,
            utterance=utterance.id,
            t0_ns=(self.t0_ns or (self._events[0].t_ns if self._events else origin_ns)) - origin_ns,
            audio_seconds=audio_seconds,
            reference=utterance.text,
            speaker=utterance.speaker,
            language=utterance.language,
            words=utterance.words,
            tags=dict(utterance.tags),
            speed=self.speed,
            delay_ms=self._destination.request.delay_ms,
            delay_ms_in_force=self._delay_ms_in_force,
            outcome=self.outcome or Outcome.FAILED,
            error=self.error or None,
            hypothesis=self._final.text if self._final else _shown(self._events),
            hypothesis_words=self._final.words if self._final else (),
            usage=dict(self._usage),
            entries=entries,
        )


def _shown(events: list[Entry]) -> str:
    """What stood there when a stream ended without a final: text that was appended stays a hypothesis."""
    return "".join(event.text or "" for event in events if event.kind is Kind.APPENDED)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
