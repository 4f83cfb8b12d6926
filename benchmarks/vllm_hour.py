"""One very long utterance through the server with the vLLM engine: does its memory stay, is its transcript whole.

    python benchmarks/vllm_hour.py [--minutes 60] [--speed 10] [--checkpoint DIR]

Needs an environment with vLLM. The tiny checkpoint made here says a word in every step of 80 ms, so that the length of a whole transcript
is known: steps, plus or minus what the seams between segments add and cut.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import tempfile
import time
from pathlib import Path

import psutil
import uvloop
from websockets.asyncio.client import connect

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from harness.launch import Server, start  # noqa: E402
from tests.vllm.checkpoints import make, sound  # noqa: E402

PACKET_SECONDS = 0.32
PIECE_SECONDS = 60.0
REPORT_SECONDS = 20.0
STEPS_PER_SECOND = 12.5
SEAM_WORDS = 22  # overlap and silence behind a segment's end, in steps


def resident_mib(server: Server) -> tuple[float, float]:
    """Of the server's first process, of vLLM's engine process."""
    process = psutil.Process(server.pid)
    children = sum(child.memory_info().rss for child in process.children(recursive=True))
    return process.memory_info().rss / 2**20, children / 2**20


async def utter(server: Server, minutes: float, speed: float, model: str) -> str:
    """Send the audio at ``speed`` times its pace, print memory now and then; the transcript."""
    seconds = minutes * 60
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with connect(
        f"{server.url}/v1/realtime", additional_headers=headers, max_size=None, ping_interval=None
    ) as ws:
        await ws.recv()
        await ws.send(json.dumps({"type": "session.update", "model": model}))
        await ws.send(json.dumps({"type": "input_audio_buffer.commit"}))
        words = 0

        async def listen() -> str:
            nonlocal words
            async for message in ws:
                event = json.loads(message)
                if event["type"] == "transcription.delta":
                    words += event["delta"].count(" ")
                else:
                    assert event["type"] == "transcription.done", event
                    return str(event["text"])
            raise ConnectionError("the server hung up")

        listener = asyncio.create_task(listen())
        began = reported = time.perf_counter()
        size = round(PACKET_SECONDS * 16000) * 2
        pcm, piece = b"", 0
        for number in range(round(seconds / PACKET_SECONDS)):
            if len(pcm) < size:
                pcm, piece = pcm + sound(PIECE_SECONDS, piece), piece + 1
            packet, pcm = pcm[:size], pcm[size:]
            now = time.perf_counter()
            if now - reported > REPORT_SECONDS:
                reported = now
                front, engine = resident_mib(server)
                heard = number * PACKET_SECONDS / 60
                print(
                    f"{heard:6.1f} min sent, {words} words, server {front:.0f} MiB, engine {engine:.0f} MiB", flush=True
                )
            await asyncio.sleep(began + (number + 1) * PACKET_SECONDS / speed - now)
            audio = base64.b64encode(packet).decode()
            await ws.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        await ws.send(json.dumps({"type": "input_audio_buffer.commit", "final": True}))
        text = await listener
        print(f"done {time.perf_counter() - began:.0f} s after the first packet")
        return text


def main() -> None:
    """Run it and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="earmark-hour-") as name:
        folder = Path(name)
        checkpoint = options.checkpoint or make(folder / "tiny")
        flags = [
            "--engine=vllm",
            f"--model-dir={checkpoint}",
            "--dtype=float32",
            "--max-model-len=1024",
            "--max-num-seqs=4",
        ]
        with start(flags, folder / "server.log") as server:
            uvloop.run(utter(server, 0.2, options.speed, server.announcement.model))
            before = resident_mib(server)
            text = uvloop.run(utter(server, options.minutes, options.speed, server.announcement.model))
            after = resident_mib(server)
    steps = options.minutes * 60 * STEPS_PER_SECOND
    seams = (options.minutes + 1) * SEAM_WORDS
    print(
        f"resident memory grew by {after[0] - before[0]:.0f} MiB in the server, {after[1] - before[1]:.0f} MiB in the engine"
    )
    print(f"{len(text.split())} words; whole is {steps:.0f}, less or more {seams:.0f}")


if __name__ == "__main__":
    main()
