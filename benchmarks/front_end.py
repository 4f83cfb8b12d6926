"""How many paced streams the server's front end carries, and what they cost the generator: scripted audio, a scripted engine.

    python benchmarks/front_end.py [--streams 100,250,500] [--seconds 20] [--protocol yap,realtime] [-- --unlimited]

Event delay: arrival of a word's text less the moment at which the packet was *due* whose audio made the word due. It holds everything
between: lateness of the sender, both sockets, the server's parsing, session and engine loop, and the arrival in the harness.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.corpus import Utterance
from harness.drivers import DRIVERS
from harness.drivers.base import Request, Transport, address
from harness.launch import Server, ServerError, start
from harness.replay import Cell, Replayed, replay
from harness.replay.carrying import Destination
from harness.replay.loop import new_event_loop
from harness.timeline import Kind, Outcome, StreamRecord
from wire.scripted import speak
from wire.words import TimedWord

DELAY_MS = 80
DIFFERENT_UTTERANCES = 16


@dataclass(frozen=True)
class Result:
    """One rung of the ladder. Delays and lateness in milliseconds, costs in milliseconds of processor time per second of audio."""

    protocol: str
    streams: int
    ok: int
    words: int
    missing_words: int
    event_delay_p50: float
    event_delay_p95: float
    event_delay_p99: float
    lateness_p50: float
    lateness_p99: float
    lateness_max: float
    generator_cpu: float
    server_cpu: float
    blocked_writes: int
    errors: dict[str, int]


def corpus(count: int, seconds: float) -> list[Utterance]:
    """Utterances of equal length, a word in every 0.4 s; neighbours are shifted so that words do not come in step."""
    found = []
    for index in range(count):
        shift = 0.4 * index / count
        starts = np.arange(0.2 + shift, seconds - 0.4, 0.4)
        words = tuple(TimedWord(f"w{n}", round(float(s), 2), round(float(s) + 0.3, 2)) for n, s in enumerate(starts))
        text = " ".join(word.text for word in words)
        found.append(Utterance(f"load-{index}", text, seconds, speaker=str(index), words=words))
    return found


def event_delays_ms(record: StreamRecord, delay_ms: int) -> tuple[list[float], int]:
    """Delay of every text that arrived, and how many words never did."""
    packets = [entry for entry in record.entries if entry.kind in (Kind.PACKET, Kind.END_OF_AUDIO)]
    heard = [entry.value or record.audio_seconds + 1e9 for entry in packets]
    words = {word.text: word for word in record.words or ()}
    delays: list[float] = []
    seen = 0
    for t_ns, stable, tentative in record.shown():
        texts = (stable + tentative).split()
        if len(texts) <= seen:
            continue
        before, seen = seen, len(texts)
        if before == 0 and seen == len(words):
            continue  # the text came in one piece
        if texts[-1] in words:
            packet = packets[min(bisect_left(heard, words[texts[-1]].end + delay_ms / 1000 - 1e-6), len(packets) - 1)]
            delays.append((t_ns - (packet.due_ns or 0)) / 1e6)
    return delays, len(words) - seen


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and its children."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def measure(server: Server, protocol: str, streams: int, seconds: float, packet_ms: int) -> Result:
    """Replay one stream per lane at once and sum up."""
    driver = DRIVERS[protocol]
    target = server.grpc_url if driver.transport is Transport.GRPC else server.url
    if target is None:
        raise ServerError("grpc needs '-- --surfaces=grpc --grpc-port=0' behind the other options")
    url, headers = address(driver, target, server.api_key)
    delay_ms = DELAY_MS if driver.settable_delay else None
    destination = Destination(driver, url, headers, Request(server.announcement.model, delay_ms))
    utterances = corpus(DIFFERENT_UTTERANCES, seconds)
    audio = {utterance.id: speak(utterance.words or (), seconds) for utterance in utterances}
    chosen = [utterances[index % len(utterances)] for index in range(streams)]
    cell = Cell(concurrency=streams, packet_ms=packet_ms, ramp_seconds=max(1.0, streams / 100))
    process = psutil.Process(server.pid)
    before = cpu_seconds(process)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        replayed = runner.run(replay(chosen, destination, cell, lambda utterance: audio[utterance.id]))
    spent = cpu_seconds(process) - before
    server.check()
    return _sum_up(replayed, protocol, streams, replayed.generator_cpu_seconds, spent)


def _sum_up(replayed: Replayed, protocol: str, streams: int, generator: float, server: float) -> Result:
    delays: list[float] = []
    lateness: list[float] = []
    missing = 0
    errors: dict[str, int] = {}
    for record in replayed.records:
        found, lost = event_delays_ms(record, DELAY_MS)
        delays += found
        missing += lost
        lateness += [(entry.t_ns - entry.due_ns) / 1e6 for entry in record.of(Kind.PACKET) if entry.due_ns is not None]
        if record.outcome is not Outcome.OK:
            text = f"{record.outcome}: {record.error}"[:100]
            errors[text] = errors.get(text, 0) + 1
    audio_seconds = sum(record.audio_seconds for record in replayed.records)
    d50, d95, d99 = _quantiles(delays, 50, 95, 99)
    l50, l99, l100 = _quantiles(lateness, 50, 99, 100)
    return Result(
        protocol=protocol,
        streams=streams,
        ok=sum(record.outcome is Outcome.OK for record in replayed.records),
        words=len(delays),
        missing_words=missing,
        event_delay_p50=d50,
        event_delay_p95=d95,
        event_delay_p99=d99,
        lateness_p50=l50,
        lateness_p99=l99,
        lateness_max=l100,
        generator_cpu=round(generator / audio_seconds * 1000, 3),
        server_cpu=round(server / audio_seconds * 1000, 3),
        blocked_writes=replayed.blocked_writes,
        errors=errors,
    )


def _quantiles(values: Sequence[float], *percents: float) -> list[float]:
    if not values:
        return [float("nan")] * len(percents)
    return [round(float(value), 2) for value in np.percentile(values, percents)]


HEADINGS = (
    "protocol",
    "streams",
    "ok",
    "words",
    "delay p50",
    "p95",
    "p99 ms",
    "late p50",
    "p99",
    "max ms",
    "gen",
    "server ms/s",
    "errors",
)


def _row(result: Result) -> tuple[object, ...]:
    problems = {**result.errors, **({"missing words": result.missing_words} if result.missing_words else {})}
    return (
        result.protocol, result.streams, result.ok, result.words,
        result.event_delay_p50, result.event_delay_p95, result.event_delay_p99,
        result.lateness_p50, result.lateness_p99, result.lateness_max,
        result.generator_cpu, result.server_cpu, problems or "-",
    )  # fmt: skip


def main() -> int:
    """Run the ladder and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="100,250,500", help="ladder of concurrent streams (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="audio per stream (default %(default)s)")
    parser.add_argument("--protocol", default="yap,realtime", help="default %(default)s")
    parser.add_argument("--packet-ms", type=int, default=80)
    parser.add_argument("--json", action="store_true", help="one JSON object per rung")
    parser.add_argument("server_options", nargs="*", help="passed to the server, after --")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            with start(
                ["--engine", "scripted", "--delay-ms", str(DELAY_MS), *options.server_options],
                Path(folder) / "server.log",
            ) as server:
                if not options.json:
                    print("".join(f"{heading:>12}" for heading in HEADINGS))
                for protocol in options.protocol.split(","):
                    for streams in map(int, options.streams.split(",")):
                        result = measure(server, protocol, streams, options.seconds, options.packet_ms)
                        if options.json:
                            print(json.dumps(asdict(result)))
                        else:
                            print("".join(f"{value!s:>12}" for value in _row(result)), flush=True)
        except ServerError as error:
            print(error, file=sys.stderr)
            return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
