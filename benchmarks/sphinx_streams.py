"""What the embedded recogniser costs, how late it is and how its accuracy depends on the delay: printed, never a timed test.

Run from the root of the repository: ``python -m benchmarks.sphinx_streams`` (about a minute and a half on two free cores).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path

import jiwer
import numpy as np
import psutil
import soundfile

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions
from server.engines.sphinx.engine import CAVEAT, SphinxEngine
from server.engines.sphinx.settings import SphinxSettings
from wire.pcm import bytes_of, seconds_of

PACKET_SECONDS = 0.08


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording and what is said in it."""

    text: str
    pcm: bytes = field(repr=False)


@dataclass(slots=True)
class Listener:
    """Everything one stream said, with the time at which it did."""

    done: asyncio.Future[None]
    heard: list[tuple[float, Heard]] = field(default_factory=list)

    def __call__(self, event: EngineEvent) -> None:
        match event:
            case Heard():
                self.heard.append((time.perf_counter(), event))
            case SegmentDone():
                self.done.set_result(None)
            case EngineFailed(code=code, message=message):
                self.done.set_exception(RuntimeError(f"{code}: {message}"))

    @property
    def text(self) -> str:
        return "".join(heard.committed for _, heard in self.heard)


def load(dataset: Path, count: int) -> list[Clip]:
    """English clips spread evenly over the manifest."""
    rows = [json.loads(line) for line in (dataset / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row.get("language", row.get("lang", "en")) == "en" and row["text"]]
    rows = rows[:: max(1, len(rows) // count)][:count]
    return [Clip(row["text"], soundfile.read(dataset / row["audio"], dtype="int16")[0].tobytes()) for row in rows]


def plain_words(text: str) -> str:
    """Small letters and apostrophes only."""
    return " ".join("".join(c if c.isalpha() or c == "'" else " " for c in text.lower()).split())


async def hear(engine: SphinxEngine, pcm: bytes, delay_seconds: float, paced: bool) -> tuple[Listener, float, float]:
    """One stream; returns what it said, its planned start and the time its end was sent."""
    listener = Listener(asyncio.get_running_loop().create_future())
    start = time.perf_counter()
    stream = engine.open(OpenSegment(0, StreamOptions(delay_seconds=delay_seconds)), listener)
    packet = bytes_of(PACKET_SECONDS)
    for position in range(0, len(pcm), packet):
        piece = pcm[position : position + packet]
        if paced:
            due = start + seconds_of(position + len(piece))
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
        stream.feed(piece)
    finished = time.perf_counter()
    stream.finish()
    await listener.done
    return listener, start, finished


def worker_cpu_seconds() -> float:
    """CPU time of all living recognisers so far, without the process that loaded the model."""
    (parent,) = psutil.Process().children()
    return sum(sum(process.cpu_times()[:2]) for process in parent.children())


def quantiles(values: Sequence[float]) -> str:
    """p50, p95 and the largest, in ms."""
    p50, p95 = np.quantile(values, [0.5, 0.95])
    return f"{1000 * p50:7.0f} {1000 * p95:7.0f} {1000 * max(values):7.0f}"


async def paced_streams(settings: SphinxSettings, clips: Sequence[Clip], counts: Sequence[int], seconds: float) -> None:
    """Real-time streams side by side, started evenly over one packet so that their steps do not coincide."""
    print(f"\nreal-time streams, {seconds:g} s each, 80 ms packets, delay {settings.default_delay_seconds:g} s")
    print("streams  CPU s per audio s |  lag of progress, ms    |  end of audio to done, ms")
    print("                           |    p50     p95     max  |    p50     p95     max")
    for count in counts:
        engine = SphinxEngine(settings)
        await engine.start()
        order = cycle(clips)
        sources = []
        for number in range(count):
            pcm = b"".join(clip.pcm for clip in islice(order, 4))[: bytes_of(seconds)]
            sources.append((number * PACKET_SECONDS / count, pcm))

        async def stream(wait: float, pcm: bytes, engine: SphinxEngine = engine) -> tuple[Listener, float, float]:
            await asyncio.sleep(wait)
            return await hear(engine, pcm, settings.default_delay_seconds, paced=True)

        results = await asyncio.gather(*(stream(*source) for source in sources))
        cpu = worker_cpu_seconds() / sum(seconds_of(len(pcm)) for _, pcm in sources)
        await engine.stop()
        # The last Heard comes with the end and is counted there.
        lags = [at - start - said.audio_seconds for one, start, _ in results for at, said in one.heard[:-1]]
        ends = [one.heard[-1][0] - finished for one, _, finished in results]
        print(f"{count:7d}  {cpu:17.3f} | {quantiles(lags)}  | {quantiles(ends)}", flush=True)


async def accuracy(settings: SphinxSettings, clips: Sequence[Clip], delays: Sequence[float]) -> None:
    """WER and the wait for a word by transcription delay, over the same clips as fast as they go."""
    print(f"\naccuracy by delay, {len(clips)} clips, {sum(seconds_of(len(clip.pcm)) for clip in clips):.0f} s")
    print("delay s   WER %   S/D/I          word committed behind its end minus delay, ms")
    print("                                     p50     p95     max")
    engine = SphinxEngine(settings)
    await engine.start()
    for delay in delays:
        gate = asyncio.Semaphore(settings.worker_count)

        async def one(clip: Clip, delay: float = delay, gate: asyncio.Semaphore = gate) -> Listener:
            async with gate:
                return (await hear(engine, clip.pcm, delay, paced=False))[0]

        listeners = await asyncio.gather(*(one(clip) for clip in clips))
        counts = jiwer.process_words(
            [plain_words(clip.text) for clip in clips], [plain_words(listener.text) for listener in listeners]
        )
        waits = [
            heard.audio_seconds - word.end - delay
            for listener in listeners
            for _, heard in listener.heard[:-1]
            for word in heard.words
        ]
        split = f"{counts.substitutions}/{counts.deletions}/{counts.insertions}"
        print(f"{delay:7.2f} {100 * counts.wer:7.1f}   {split:12s}  {quantiles(waits)}", flush=True)
    await engine.stop()


def numbers(text: str) -> list[float]:
    """``1,4,8`` as numbers."""
    return [float(part) for part in text.split(",") if part]


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, default=Path("datasets/spoken-en"))
    parser.add_argument("--profile", choices=("fast", "accurate"), default="fast")
    parser.add_argument("--streams", type=numbers, default=[1, 4, 8, 12])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--delays", type=numbers, default=[0.16, 0.48, 0.96, 2.4])
    parser.add_argument("--clips", type=int, default=20)
    arguments = parser.parse_args()
    clips = load(arguments.dataset, arguments.clips)
    cores = SphinxSettings().worker_count // 6
    print(
        f"{arguments.profile}, {arguments.dataset}, {cores} cores, load before {psutil.getloadavg()[0]:.1f}\n{CAVEAT}"
    )
    wide = SphinxSettings(profile=arguments.profile, workers=int(max([1, *arguments.streams])))
    asyncio.run(paced_streams(wide, clips, [int(count) for count in arguments.streams], arguments.seconds))
    asyncio.run(accuracy(SphinxSettings(profile=arguments.profile, workers=cores), clips, arguments.delays))


if __name__ == "__main__":
    main()
