"""Servers of vLLM's own as back ends: the same text as from them directly, and what becomes of it when they die."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.end_to_end.clients import Frame, Realtime, chunks, realtime
from tests.end_to_end.running_server import RunningServer
from tests.vllm.vllm_server import MODEL, VllmServer

NOISE = random.Random(5).randbytes(3 * 32_000)


@pytest.fixture(scope="module")
def vllm_server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(checkpoint, tmp_path_factory.mktemp("vllm"), max_model_len=1024, max_num_seqs=8)
    try:
        server.url()
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
        await direct.update(MODEL)
        expected = await end_of(direct, NOISE)
    async with realtime(gateway, model=MODEL) as client:
        done = await end_of(client, NOISE)
    assert expected["text"]
    assert done["text"] == expected["text"]
    assert done["usage"]["prompt_tokens"] == expected["usage"]["prompt_tokens"] == 39
    # 12.5 steps a second, and ten after the end
    assert done["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"] == round(12.5 * 3) + 10


async def test_its_length_is_known_and_bounds_the_segments(gateway: RunningServer) -> None:
    """1024 tokens are 78 s of audio, of which ten are kept free; two minutes take two segments."""
    async with realtime(gateway, model=MODEL) as client:
        done = await end_of(client, NOISE * 40)
    assert done["audio_seconds"] == 120.0
    assert done["usage"]["prompt_tokens"] == 2 * 39
    await gateway.until_idle()


async def test_when_it_dies_its_streams_are_told(vllm_server: VllmServer, gateway: RunningServer) -> None:
    async with realtime(gateway, model=MODEL) as client:
        await client.start()
        await client.append(NOISE)
        await client.receive()
        vllm_server.kill()
        frames = await client.receive_until("error")
        assert f"the back end ws://127.0.0.1:{vllm_server.port} was lost" in frames[-1]["error"]
    assert gateway.metric("earmark_engine", figure="backends_up") == 0
