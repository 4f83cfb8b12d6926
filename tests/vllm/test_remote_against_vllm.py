"""Servers of vLLM's own as back ends: the same text as from them directly, and what becomes of it when they die."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.end_to_end.clients import Frame, Realtime, chunks, realtime
from tests.end_to_end.running_server import RunningServer
from tests.vllm.tiny_checkpoint import environment, write_checkpoint

START_SECONDS = 200.0
NOISE = random.Random(5).randbytes(3 * 32_000)


class VllmServer:
    """vLLM's own server, with random weights."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "vllm.log"
        options = [
            "--model",
            str(folder),
            "--served-model-name",
            "tiny",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
        ]
        options += [f"--{part}={form}" for part, form in FORMATS.items()]
        options += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options],
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,  # its engine is a process of its own
            )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            assert time.monotonic() < end, self.log.read_text()[-4000:]
            time.sleep(0.5)  # another process, which has no way to tell

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
        except (urllib.error.URLError, OSError):
            return False
        return True

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


FORMATS = {"tokenizer-mode": "mistral", "config-format": "mistral", "load-format": "dummy"}


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    text = {"n_layers": 2, "head_dim": 32, "n_kv_heads": 4, "sliding_window": 8192}
    audio = {"n_layers": 2, "head_dim": 32, "n_heads": 4, "sliding_window": 750}
    server = VllmServer(write_checkpoint(tmp_path_factory.mktemp("tiny"), text, audio))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def gateway(vllm_server: VllmServer) -> Iterator[RunningServer]:
    backends = ["--backends", f"ws://127.0.0.1:{vllm_server.port}", "--backend-slots", "8"]
    server = RunningServer("--no-vad", "--segment-seconds", "600", *backends, engine="vllm-remote")
    try:
        yield server
    finally:
        server.kill()
        server.forget()


async def end_of(client: Realtime, pcm: bytes) -> Frame:
    await client.start()
    for chunk in chunks(pcm, 2560):
        await client.append(chunk)
    await client.finish()
    return (await client.receive_until("transcription.done", seconds=60))[-1]


async def test_the_text_and_the_usage_are_those_of_vllm(vllm_server: VllmServer, gateway: RunningServer) -> None:
    async with connect(f"ws://127.0.0.1:{vllm_server.port}/v1/realtime") as socket:
        direct = Realtime(socket)
        await direct.receive()
        await direct.update("tiny")
        expected = await end_of(direct, NOISE)
    async with realtime(gateway, model="tiny") as client:
        done = await end_of(client, NOISE)
    assert expected["text"]
    assert done["text"] == expected["text"]
    assert done["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"] == 39
    # 12.5 steps a second, and ten after the end
    assert done["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"] == round(12.5 * 3) + 10


async def test_its_length_is_known_and_bounds_the_segments(gateway: RunningServer) -> None:
    """1024 tokens are 78 s of audio, of which ten are kept free; two minutes take two segments."""
    async with realtime(gateway, model="tiny") as client:
        done = await end_of(client, NOISE * 40)
    assert done["audio_seconds"] == 120.0
    assert done["usage"]["prompt_tokens"] == 2 * 39
    await gateway.until_idle()


async def test_when_it_dies_its_streams_are_told(vllm_server: VllmServer, gateway: RunningServer) -> None:
    async with realtime(gateway, model="tiny") as client:
        await client.start()
        await client.append(NOISE)
        await client.receive()
        vllm_server.kill()
        frames = await client.receive_until("error")
        assert f"the back end ws://127.0.0.1:{vllm_server.port} was lost" in frames[-1]["error"]
    assert gateway.metric("earmark_engine", figure="backends_up") == 0
