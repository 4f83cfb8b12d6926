"""One utterance on its way to the server and its transcript on the way back."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from harness import audio
from harness.corpus import Utterance
from harness.pacing import NS, due_offsets_ns, packet_ends
from harness.replay.carriers import carrier
from harness.replay.carrying import Connection, Destination, Nobody
from harness.replay.exchange import Exchange, Line, Patience, Progress, Retries
from harness.replay.timetable import Timetable
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.pcm import BYTES_PER_SAMPLE, BYTES_PER_SECOND, SAMPLE_RATE, bytes_of

UNPACED_PATIENCE = 5


class Prepared:
    """An utterance as bytes to write, shared by every stream that replays it.

    ``seconds`` are those of the utterance; silence that a driver wants sent behind it makes further packets.
    """

    __slots__ = ("end", "offsets_ns", "packets", "seconds", "sent_seconds", "speed", "start", "utterance")

    def __init__(
        self, utterance: Utterance, pcm: bytes, destination: Destination, packet_ms: int, speed: float
    ) -> None:
        driver, request = destination.driver, destination.request
        self.utterance, self.speed = utterance, speed
        self.seconds = len(pcm) / BYTES_PER_SECOND
        pcm += bytes(bytes_of(driver.trailing_silence_seconds(request)))
        ends = (len(pcm),) if driver.whole else packet_ends(len(pcm), packet_ms)
        self.offsets_ns = due_offsets_ns(ends, speed)
        self.sent_seconds = tuple(end / BYTES_PER_SECOND for end in ends)
        through = carrier(driver.transport)
        self.start = through.prepare(driver.start(utterance.id, request), destination)
        self.packets = [
            through.prepare(
                (driver.packet(utterance.id, request, number, packet, last=number + 1 == len(ends)),), destination
            )
            for number, packet in enumerate(_packets(pcm, ends, driver.sample_rate))
        ]
        self.end = through.prepare(driver.end(utterance.id), destination)

    @property
    def byte_count(self) -> int:
        """Bytes of its packets as they go to the socket."""
        return sum(map(len, self.packets))

    @property
    def sending_seconds(self) -> float:
        """From the first sample to the last one sent, on the wall clock."""
        return self.offsets_ns[-1] / NS


@dataclass(frozen=True, slots=True)
class Departure:
    """When and how a stream sends. ``held_ns``: how long a simulated network keeps each packet; empty for a good one."""

    jitter_ns: int = 0
    held_ns: tuple[int, ...] = ()


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


class Stream(Exchange):
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
        told: Callable[[Entry], None] | None = None,
    ) -> None:
        super().__init__(prepared.utterance, destination, patience, progress, speed=prepared.speed, told=told)
        self.index, self.lane, self.prepared, self.arrival_ns = index, lane, prepared, arrival_ns
        self.blocked_writes = 0
        self._held_ns: tuple[int, ...] = ()
        self._written = 0

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
                self._take_over(line)
            elif not await self._open_with_retries(retries, seed, self.index):
                return None
            return await self._run(timetable, departure, keep=keep)
        except asyncio.CancelledError:
            self._end(Outcome.ABANDONED, "the run was interrupted")
            if self._connection is not None:
                self._connection.abort()
            raise

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
        await self._wait(
            self._is_over, departure.jitter_ns / NS + prepared.sending_seconds + held_seconds + final_seconds
        )
        self._conclude(final_seconds)
        if keep and self.outcome is Outcome.OK and connection.is_open:
            connection.listener = Nobody()
            return Line(connection, self._delay_ms_in_force)
        await self._leave()
        return None

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
                connection.finish()
                self._all_sent = True
                self._settle()
                return None
            next_ns = self._leaves_ns(index + 1)
            if next_ns > now_ns:
                return next_ns
            if connection.blocked and math.isinf(prepared.speed):
                return None  # ``drained`` goes on when the server has read

    def _write(self, connection: Connection, packet: bytes) -> None:
        self._written += 1
        if connection.write(packet):
            self.left(perf_counter_ns())
        elif connection.blocked or not connection.is_open:
            self.blocked_writes += 1

    def left(self, t_ns: int) -> None:
        """One more packet has left."""
        lateness_seconds = (t_ns - self._leaves_ns(len(self._left_ns))) / NS
        self._left_ns.append(t_ns)
        if lateness_seconds > self._progress.worst_lateness_seconds:
            self._progress.worst_lateness_seconds = lateness_seconds

    def drained(self, t_ns: int) -> None:
        """All that was written has left."""
        while len(self._left_ns) < self._written:
            self.left(t_ns)
        if math.isinf(self.prepared.speed) and 0 < self._written < len(self.prepared.packets):
            self.depart(t_ns)

    def _due_ns(self, index: int) -> int:
        """The end of audio, one past the last packet, is due with it."""
        offsets_ns = self.prepared.offsets_ns
        return self.t0_ns + offsets_ns[min(index, len(offsets_ns) - 1)]

    def _speech_end_ns(self) -> int:
        return self.t0_ns + round(self.prepared.seconds * NS / self.speed)

    def _leaves_ns(self, index: int) -> int:
        """When the network lets it go: the due time, but for a simulated impairment."""
        held_ns = self._held_ns
        return self._due_ns(index) + (held_ns[min(index, len(held_ns) - 1)] if held_ns else 0)

    # ---- afterwards ----

    def record(self, origin_ns: int) -> StreamRecord:
        """The stream as the timeline keeps it."""
        count = len(self.prepared.packets)
        sent = [
            Entry(t_ns - origin_ns, Kind.PACKET, self._due_ns(index) - origin_ns, self.prepared.sent_seconds[index])
            for index, t_ns in enumerate(self._left_ns[:count])
        ]
        sent += [
            Entry(t_ns - origin_ns, Kind.END_OF_AUDIO, self._due_ns(count) - origin_ns)
            for t_ns in self._left_ns[count:]
        ]
        record = self._record(origin_ns, self.index, sent, self.prepared.seconds)
        record.lane = self.lane
        record.arrival_ns = None if self.arrival_ns is None else self.arrival_ns - origin_ns
        record.held_ns = list(self._held_ns)
        return record
