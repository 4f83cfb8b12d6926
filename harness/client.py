"""A client for people: a recording or a live voice goes to a server, and its text comes back, over the drivers of the replay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any

from harness.audio import Resampler
from harness.corpus import Utterance
from harness.drivers.base import Ask, Frame
from harness.latency import measure
from harness.pacing import NS
from harness.replay.carrying import Destination
from harness.replay.exchange import Exchange, Patience, Progress, Retries
from harness.replay.stream import Prepared, Stream
from harness.replay.timetable import Timetable
from harness.sources import Source
from harness.timeline import Entry, Kind, Outcome, StreamRecord, shown_after
from wire.pcm import BYTES_PER_SAMPLE, BYTES_PER_SECOND, SAMPLE_RATE, bytes_of

Shown = Callable[[str, str], None]
"""Told the text that stands and the tentative text behind it, whenever one of them changes."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What became of an utterance, and how long it took."""

    record: StreamRecord

    @property
    def ok(self) -> bool:
        return self.record.outcome is Outcome.OK

    @property
    def text(self) -> str:
        return self.record.hypothesis.strip()

    @property
    def words(self) -> int:
        return len(self.text.split())

    @property
    def first_token_seconds(self) -> float | None:
        """From the moment the first sample was due to the first text."""
        return measure(self.record).first_token_from_start

    @property
    def time_to_final_seconds(self) -> float | None:
        """From the end of the audio to the final text. Of a recording that goes up whole: the wait for the answer."""
        return measure(self.record).flush_latency

    @property
    def real_time_factor(self) -> float | None:
        """From the first sample to the final text, in seconds per second of audio."""
        final = self.record.first(Kind.FINAL)
        if final is None or not self.record.audio_seconds:
            return None
        return (final.t_ns - self.record.t0_ns) / NS / self.record.audio_seconds

    def as_json(self) -> dict[str, Any]:
        """For programs. Times in seconds; ``None`` where there is none."""
        record = self.record
        return {
            "text": self.text,
            "outcome": str(record.outcome),
            "error": record.error,
            "audio_seconds": round(record.audio_seconds, 3),
            "first_token_seconds": _rounded(self.first_token_seconds),
            "time_to_final_seconds": _rounded(self.time_to_final_seconds),
            "real_time_factor": _rounded(self.real_time_factor),
            "words": self.words,
            "dropped_seconds": round(measure(record).dropped_seconds, 3),
            "delay_ms": record.delay_ms_in_force,
            "word_times": [
                {"text": word.text, "start": word.start, "end": word.end} for word in record.hypothesis_words
            ],
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _told(shown: Shown | None) -> Callable[[Entry], None] | None:
    if shown is None:
        return None
    stable = ""

    def take(entry: Entry) -> None:
        nonlocal stable
        changed = shown_after(entry, stable)
        if changed is not None:
            stable = changed[0]
            shown(*changed)

    return take


async def transcribe(
    name: str,
    pcm: bytes,
    destination: Destination,
    *,
    packet_ms: int,
    speed: float = 1.0,
    patience: Patience | None = None,
    shown: Shown | None = None,
) -> Heard:
    """A recording, 16 kHz PCM16, at ``speed`` (infinite: as fast as the server takes it)."""
    utterance = Utterance(name, "", len(pcm) / BYTES_PER_SECOND)
    prepared = await asyncio.to_thread(Prepared, utterance, pcm, destination, packet_ms, speed)
    stream = Stream(0, 0, prepared, destination, patience or Patience(), Progress(), told=_told(shown))
    origin_ns = perf_counter_ns()
    await stream.run(Timetable())
    return Heard(stream.record(origin_ns))


async def listen(
    source: Source,
    destination: Destination,
    *,
    packet_ms: int,
    patience: Patience | None = None,
    shown: Shown | None = None,
) -> Heard:
    """What a source says until it ends, packets as they fill.

    Raises:
        SourceError: there is nothing to listen to.
    """
    live = _Live(destination, patience or Patience(), packet_ms, _told(shown))
    origin_ns = perf_counter_ns()
    await live.run(source)
    return Heard(live.record(origin_ns))


class _Live(Exchange):
    """An utterance whose audio is not there yet."""

    def __init__(
        self, destination: Destination, patience: Patience, packet_ms: int, told: Callable[[Entry], None] | None
    ) -> None:
        super().__init__(Utterance("live", "", 0.0), destination, patience, Progress(), told=told)
        self._packet_bytes = packet_ms * SAMPLE_RATE // 1000 * BYTES_PER_SAMPLE
        self._sent_seconds: list[float] = []
        self._spoken_bytes = self._written = 0
        self._speech_ended_ns = 0

    async def run(self, source: Source) -> None:
        """Connect, listen and send, wait for the end, close."""
        if not await self._open_with_retries(Retries(), 0, 0):
            return
        sending = asyncio.create_task(self._speak(source))
        try:
            await asyncio.wait((sending, self._is_over), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                await sending  # raises what is wrong with the source
            if not self._is_over.done():
                final_seconds = max(self._patience.final_seconds, 2 * self._spoken_bytes / BYTES_PER_SECOND)
                await self._wait(self._is_over, final_seconds)
                self._conclude(final_seconds)
        finally:
            sending.cancel()
            source.stop()
            await self._leave()

    async def _speak(self, source: Source) -> None:
        destination, connection = self._destination, self._connection
        driver, request, name = destination.driver, destination.request, self.utterance.id
        assert connection is not None
        connection.write(self._carrier.prepare(driver.start(name, request), destination))
        self.t0_ns = perf_counter_ns()
        resampler = Resampler(SAMPLE_RATE, driver.sample_rate)
        number = 0
        async for pcm, last in self._packets(source):
            self._sent_seconds.append(
                (self._sent_seconds[-1] if self._sent_seconds else 0) + len(pcm) / BYTES_PER_SECOND
            )
            packet = driver.packet(name, request, number, resampler.feed(pcm, last=last), last=last)
            self._write((packet,))
            number += 1
        if not self._spoken_bytes:
            self._end(Outcome.FAILED, "no audio came")
            return
        self._write(driver.end(name))
        connection.finish()
        self._all_sent = True
        self._settle()

    async def _packets(self, source: Source) -> AsyncIterator[tuple[bytes, bool]]:
        """Packets as they fill, and whether they are the last; where that makes a difference each waits for the one after it."""
        driver = self._destination.driver
        kept = bytearray()
        waits = (
            driver.marks_last or driver.sample_rate != SAMPLE_RATE
        )  # for the mark, or for what the resampler still holds
        spare_bytes = BYTES_PER_SAMPLE if waits else 0
        async for block in source.blocks():
            self._spoken_bytes += len(block)
            kept += block
            while not driver.whole and len(kept) >= self._packet_bytes + spare_bytes:
                yield bytes(kept[: self._packet_bytes]), False
                del kept[: self._packet_bytes]
        self._speech_ended_ns = perf_counter_ns()
        if self._spoken_bytes:
            kept += bytes(bytes_of(driver.trailing_silence_seconds(self._destination.request)))
        while not driver.whole and len(kept) > self._packet_bytes:
            yield bytes(kept[: self._packet_bytes]), False
            del kept[: self._packet_bytes]
        if kept:
            yield bytes(kept), True

    def _write(self, frames: Sequence[Frame | Ask]) -> None:
        assert self._connection is not None
        self._written += 1
        if self._connection.write(self._carrier.prepare(frames, self._destination)):
            self.left(perf_counter_ns())

    def drained(self, t_ns: int) -> None:
        """All that was written has left."""
        while len(self._left_ns) < self._written:
            self.left(t_ns)

    def _speech_end_ns(self) -> int:
        return self._speech_ended_ns or perf_counter_ns()

    def record(self, origin_ns: int) -> StreamRecord:
        """The utterance as the timeline keeps it; nothing of it was due at any time."""
        count = len(self._sent_seconds)
        sent = [
            Entry(t_ns - origin_ns, Kind.PACKET, None, seconds)
            for t_ns, seconds in zip(self._left_ns, self._sent_seconds, strict=False)
        ]
        sent += [Entry(t_ns - origin_ns, Kind.END_OF_AUDIO) for t_ns in self._left_ns[count:]]
        return self._record(origin_ns, 0, sent, self._spoken_bytes / BYTES_PER_SECOND)
