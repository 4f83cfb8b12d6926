"""One utterance on its way to the server and its transcript on the way back."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns

from harness import audio
from harness.corpus import Utterance
from harness.drivers.base import Appended, Done, Driver, Dropped, Fault, Final, Ready, Reply, Request, Tentative
from harness.pacing import NS, due_offsets_ns, packet_ends
from harness.replay.connection import Connection, Nobody, close_text, connect, prepare
from harness.replay.timetable import Timetable
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.pcm import BYTES_PER_SAMPLE, BYTES_PER_SECOND, SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Destination:
    """Where streams go. ``url`` is complete; ``headers`` go with the handshake."""

    driver: Driver
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    request: Request = Request()
    tls: ssl.SSLContext | None = None


UNPACED_PATIENCE = 5


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream waits for the server. A final may take twice the audio, if that is more than ``final_seconds``; when the audio
    was not paced the server has everything still to do, and gets five times as long.
    """

    connect_seconds: float = 10.0
    ready_seconds: float = 10.0
    final_seconds: float = 30.0
    done_seconds: float = 5.0  # between the final and the message that says no more comes
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


class Prepared:
    """An utterance as bytes to write, shared by every stream that replays it."""

    __slots__ = ("end", "offsets_ns", "packets", "seconds", "sent_seconds", "speed", "start", "utterance")

    def __init__(
        self, utterance: Utterance, pcm: bytes, destination: Destination, packet_ms: int, speed: float
    ) -> None:
        driver, ends = destination.driver, packet_ends(len(pcm), packet_ms)
        self.utterance, self.speed = utterance, speed
        self.seconds = len(pcm) / BYTES_PER_SECOND
        self.offsets_ns = due_offsets_ns(ends, speed)
        self.sent_seconds = tuple(end / BYTES_PER_SECOND for end in ends)
        self.start = b"".join(prepare(frame) for frame in driver.start(utterance.id, destination.request))
        self.packets = [
            prepare(driver.audio(utterance.id, packet)) for packet in _packets(pcm, ends, driver.sample_rate)
        ]
        self.end = b"".join(prepare(frame) for frame in driver.end(utterance.id))

    @property
    def byte_count(self) -> int:
        """Bytes of its packets as they go to the socket."""
        return sum(map(len, self.packets))


@dataclass(frozen=True, slots=True)
class Departure:
    """When and how a stream sends. ``held_ns``: how long a simulated network keeps each packet; empty for a good one."""

    jitter_ns: int = 0
    held_ns: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Line:
    """An open connection that a stream leaves to the next one, and the transcription delay that the server said is in force on it."""

    connection: Connection
    delay_ms_in_force: int | None


def _packets(pcm: bytes, ends: Sequence[int], rate: int) -> Iterator[bytes]:
    """The audio cut at ``ends``, which count bytes at 16 kHz; at another rate each packet still ends at the same moment."""
    resampled, before = audio.resample(pcm, rate), 0
    for end in ends:
        after = (
            round(end * rate / (SAMPLE_RATE * BYTES_PER_SAMPLE)) * BYTES_PER_SAMPLE
            if end < len(pcm)
            else len(resampled)
        )
        yield resampled[before:after]
        before = after


class Stream:
    """What is to be sent, what was, and what came back. ``run`` does it all; the rest is called by loop and connection."""

    def __init__(
        self,
        index: int,
        lane: int,
        prepared: Prepared,
        destination: Destination,
        patience: Patience,
        progress: Progress,
        *,
        arrival_ns: int | None = None,
    ) -> None:
        self.index, self.lane, self.prepared, self.arrival_ns = index, lane, prepared, arrival_ns
        self.t0_ns = 0
        self.blocked_writes = 0
        self.retries = 0
        self.outcome: Outcome | None = None
        self.error = ""
        self.final_ns: int | None = None
        self.words_shown = 0
        self._destination, self._patience, self._progress = destination, patience, progress
        self._held_ns: tuple[int, ...] = ()
        self._left_ns: list[int] = []  # when each packet had left, the end of audio last
        self._written = 0
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
        self._hear = self._destination.driver.listen(self._destination.request)
        self._is_open: asyncio.Future[None] = loop.create_future()
        self._is_ready: asyncio.Future[None] = loop.create_future()
        self._is_over: asyncio.Future[None] = loop.create_future()

    async def run(
        self,
        timetable: Timetable,
        departure: Departure | None = None,
        *,
        line: Line | None = None,
        keep: bool = False,
        retries: Retries | None = None,
        seed: int = 0,
    ) -> Line | None:
        """Replay the utterance: connect, wait for the session, send on schedule, wait for the end, close.

        With a ``line`` there is nothing to connect. With ``keep`` the connection of a stream that ended well is left open and returned.
        """
        departure, retries = departure or Departure(), retries or Retries()
        try:
            if line is not None and line.connection.is_open:
                self._connection, self._delay_ms_in_force = line.connection, line.delay_ms_in_force
                self._connection.listener = self
                _resolve(self._is_open)
                _resolve(self._is_ready)
            elif not await self._open_with_retries(retries, seed):
                return None
            return await self._run(timetable, departure, keep=keep)
        except asyncio.CancelledError:
            self._end(Outcome.ABANDONED, "the run was interrupted")
            if self._connection is not None:
                self._connection.abort()
            raise

    async def _open_with_retries(self, retries: Retries, seed: int) -> bool:
        """Whether there is a session to send audio in."""
        while True:
            await self._open()
            if self.outcome is None:
                return True
            await self._leave()
            if self.retries >= retries.times:
                return False
            wait_seconds = retries.wait_seconds(self.retries, seed, self.index)
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
            self._connection.write(prepare(frame))
        await self._wait(self._is_ready, self._patience.ready_seconds)  # servers that say nothing are taken to be ready
        if not self._is_ready.done():
            self._ready(perf_counter_ns(), None)

    async def _run(self, timetable: Timetable, departure: Departure, *, keep: bool) -> Line | None:
        patience, prepared, connection = self._patience, self.prepared, self._connection
        assert connection is not None
        self._held_ns = departure.held_ns
        connection.write(prepared.start)
        self.t0_ns = perf_counter_ns() + departure.jitter_ns
        timetable.add(self._leaves_ns(0), self)
        final_seconds = max(patience.final_seconds, 2 * prepared.seconds)
        if math.isinf(prepared.speed):
            final_seconds *= UNPACED_PATIENCE
        held_seconds = self._held_ns[-1] / NS if self._held_ns else 0.0
        sending_seconds = departure.jitter_ns / NS + prepared.seconds / prepared.speed + held_seconds
        await self._wait(self._is_over, sending_seconds + final_seconds)
        if self._final is not None:
            self._end(Outcome.OK)
        self._end(Outcome.FAILED, f"no final within {final_seconds:g} s of the end of the audio{self._silence()}")
        if keep and self.outcome is Outcome.OK and connection.is_open:
            connection.listener = Nobody()
            return Line(connection, self._delay_ms_in_force)
        await self._leave()
        return None

    async def _leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed(self._patience.close_seconds)

    async def _connect(self) -> bool:
        destination, seconds = self._destination, self._patience.connect_seconds
        self._note(Kind.CONNECTING, perf_counter_ns())
        try:
            async with asyncio.timeout(seconds):
                self._connection = await connect(destination.url, destination.headers, self, tls=destination.tls)
                await self._is_open
        except TimeoutError:
            self._end(Outcome.FAILED, f"no connection within {seconds:g} s")
        except OSError as error:
            self._end(Outcome.FAILED, f"cannot connect: {error}")
        if self.outcome is not None and self._connection is not None:
            self._connection.abort()
        return self.outcome is None

    async def _wait(self, future: asyncio.Future[None], seconds: float) -> None:
        await asyncio.wait((future,), timeout=seconds)

    # ---- sending: called by the timetable ----

    def depart(self, now_ns: int) -> int | None:
        """Write the packet that is due; at infinite speed, as many as the kernel takes."""
        connection, prepared = self._connection, self.prepared
        if connection is None or self._is_over.done():
            return None
        while True:
            index = self._written
            self._write(connection, prepared.packets[index])
            if index + 1 == len(prepared.packets):
                self._write(connection, prepared.end)
                return None
            next_ns = self._leaves_ns(index + 1)
            if next_ns > now_ns:
                return next_ns
            if connection.blocked and math.isinf(prepared.speed):
                return None  # ``drained`` goes on when the server has read

    def _write(self, connection: Connection, frame: bytes) -> None:
        self._written += 1
        if connection.write(frame):
            self._left(perf_counter_ns())
        else:
            self.blocked_writes += 1

    def _left(self, t_ns: int) -> None:
        lateness_seconds = (t_ns - self._leaves_ns(len(self._left_ns))) / NS
        self._left_ns.append(t_ns)
        if lateness_seconds > self._progress.worst_lateness_seconds:
            self._progress.worst_lateness_seconds = lateness_seconds

    def _due_ns(self, index: int) -> int:
        """The end of audio, one past the last packet, is due with it."""
        offsets_ns = self.prepared.offsets_ns
        return self.t0_ns + offsets_ns[min(index, len(offsets_ns) - 1)]

    def _leaves_ns(self, index: int) -> int:
        """When the network lets it go: the due time, but for a simulated impairment."""
        held_ns = self._held_ns
        return self._due_ns(index) + (held_ns[min(index, len(held_ns) - 1)] if held_ns else 0)

    # ---- what the connection tells ----

    def opened(self, t_ns: int) -> None:
        """The socket is open."""
        self._note(Kind.CONNECTED, t_ns)
        _resolve(self._is_open)
        if not self._destination.driver.announces_ready:
            self._ready(t_ns, None)

    def drained(self, t_ns: int) -> None:
        """All that was written has left."""
        while len(self._left_ns) < self._written:
            self._left(t_ns)
        if math.isinf(self.prepared.speed) and 0 < self._written < len(self.prepared.packets):
            self.depart(t_ns)

    def received(self, frame: str | bytes, t_ns: int) -> None:
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
                case Done(usage, delay_ms):
                    self._usage = usage
                    self._delay_ms_in_force = self._delay_ms_in_force if delay_ms is None else delay_ms
                    if self._final is None:
                        self._end(Outcome.FAILED, "the server said done without a transcript")
                    self._end(Outcome.OK)
                case Ready(delay_ms):
                    self._ready(t_ns, delay_ms)
                case Reply(frames):
                    for reply in frames:
                        if self._connection is not None:
                            self._connection.write(prepare(reply))
                case Dropped(seconds):
                    self._events.append(Entry(t_ns, Kind.DROPPED, value=seconds))
                case Fault(code, message, refused):
                    self._fault(f"{code}: {message}", Outcome.REJECTED if refused else Outcome.FAILED, t_ns)

    def closed(self, code: int, reason: str, t_ns: int) -> None:
        """The connection is gone, at the end of the stream or before."""
        if self.outcome is not Outcome.ABANDONED:
            self._note(Kind.CLOSED, t_ns, close_text(code, reason))
        refused = code == 1013 and not self._is_ready.done()
        outcome = Outcome.OK if self._final else Outcome.REJECTED if refused else Outcome.FAILED
        self._end(outcome, f"the server closed the connection: {close_text(code, reason)}")

    def turned_away(self, status: int, reason: str, t_ns: int) -> None:
        """The handshake failed."""
        if self.outcome is None:
            text = f"HTTP {status}: {reason}" if status else f"no WebSocket handshake: {reason}"
            if status in (401, 403):
                text += f" (is the key right? it comes from --api-key or {self._destination.driver.key_variable})"
            self._fault(text, Outcome.REJECTED if status in (429, 503) else Outcome.FAILED, t_ns)

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
        self._events.append(Entry(t_ns, kind, text=text))

    def _end(self, outcome: Outcome, error: str = "") -> None:
        """The first end counts."""
        if self.outcome is None:
            self.outcome, self.error = outcome, "" if outcome is Outcome.OK else error
        for future in (self._is_open, self._is_ready, self._is_over):
            _resolve(future)

    # ---- afterwards ----

    def record(self, origin_ns: int) -> StreamRecord:
        """The stream as the timeline keeps it, in order of time."""
        utterance, count = self.prepared.utterance, len(self.prepared.packets)
        entries = [
            Entry(t_ns - origin_ns, Kind.PACKET, self._due_ns(index) - origin_ns, self.prepared.sent_seconds[index])
            for index, t_ns in enumerate(self._left_ns[:count])
        ]
        entries += [
            Entry(t_ns - origin_ns, Kind.END_OF_AUDIO, self._due_ns(count) - origin_ns)
            for t_ns in self._left_ns[count:]
        ]
        entries += [Entry(event.t_ns - origin_ns, event.kind, None, event.value, event.text) for event in self._events]
        entries.sort(key=lambda entry: entry.t_ns)
        return StreamRecord(
            stream=self.index,
            utterance=utterance.id,
            t0_ns=(self.t0_ns or (self._events[0].t_ns if self._events else origin_ns)) - origin_ns,
            audio_seconds=self.prepared.seconds,
            reference=utterance.text,
            speaker=utterance.speaker,
            language=utterance.language,
            words=utterance.words,
            tags=dict(utterance.tags),
            lane=self.lane,
            speed=self.prepared.speed,
            delay_ms=self._destination.request.delay_ms,
            delay_ms_in_force=self._delay_ms_in_force,
            outcome=self.outcome or Outcome.FAILED,
            error=self.error or None,
            hypothesis=self._final.text if self._final else _shown(self._events),
            hypothesis_words=self._final.words if self._final else (),
            usage=dict(self._usage),
            arrival_ns=None if self.arrival_ns is None else self.arrival_ns - origin_ns,
            held_ns=list(self._held_ns),
            entries=entries,
        )


def _shown(events: list[Entry]) -> str:
    """What stood there when a stream ended without a final: text that was appended stays a hypothesis."""
    return "".join(event.text or "" for event in events if event.kind is Kind.APPENDED)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
