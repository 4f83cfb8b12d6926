"""``stt-server`` as a process: its files hold, its clients work, and it ends well."""

from __future__ import annotations

import asyncio
import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.end_to_end.rpc_clients import Backend, chunks, create, refusal, stream
from tests.end_to_end.running_server import ROOT, START_SECONDS, STOP_SECONDS, clean_environment
from tests.end_to_end.speech import sentence

RELAXED = """
server:
  port: 0
  metrics_port: 0
  max_sessions: 200
  create_session_rps: 0
  max_sessions_per_ip: 0
  max_sessions_per_api_key: 0
  max_audio_bytes_per_sec: 0
  max_pending_decodes_per_stream: 0
  max_pending_decodes_global: 0
  decode_queue_timeout_sec: 0
  max_chunk_ms: 1000
  partial_decode_interval_sec: 1.0
  partial_decode_window_sec: 5.0
vad: {silence: 0.4, threshold: 0.6}
"""
TIGHT = """
server: {port: 0, metrics_port: 0, max_sessions: 1}
auth: {require_api_key: true}
"""


@contextmanager
def stt_server(folder: Path, config: str, *flags: str) -> Iterator[tuple[int, subprocess.Popen[str], Path]]:
    """The program with this configuration: the port of gRPC, the process and its log."""
    (folder / "server.yaml").write_text(config, encoding="utf-8")
    log = folder / "log"
    program = [sys.executable, "-m", "stt_server.main", "--config", str(folder / "server.yaml")]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*program, "--engine", "scripted", "--announce", *flags],
            cwd=ROOT,
            env=clean_environment({}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
        line = process.stdout.readline() if readable else ""
        assert line, log.read_text()
        yield json.loads(line)["grpc_port"], process, log
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_SECONDS) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


async def talk(port: int, check: Any) -> None:
    target = f"127.0.0.1:{port}"
    async with grpc.aio.insecure_channel(target) as channel:
        with grpc.insecure_channel(target) as blocking:
            await check(Backend(channel, blocking))


@pytest.mark.spec("grpc-77")
def test_a_relaxed_file_lets_the_load_test_pass(tmp_path: Path) -> None:
    async def check(backend: Backend) -> None:
        async def one(number: int) -> None:
            session_id, response = await create(backend)
            end = await stream(backend, chunks(sentence("load", str(number)), session_id, final="empty"))
            assert end.finals == [f"load {number}"]
            assert response.vad_silence == 0.4

        await asyncio.gather(*(one(number) for number in range(12)))

    with stt_server(tmp_path, RELAXED) as (port, _, log):
        asyncio.run(talk(port, check))
        assert "partial_decode_window_sec has no effect here" in log.read_text()


@pytest.mark.spec("grpc-77")
def test_the_limits_of_a_file_hold_and_flags_win(tmp_path: Path) -> None:
    async def check(backend: Backend) -> None:
        assert await refusal(create(backend)) == ("UNAUTHENTICATED", "ERR1009")
        await create(backend, attributes={"api_key": "k"})
        await create(backend, attributes={"api_key": "k"})
        assert await refusal(create(backend, attributes={"api_key": "k"})) == ("RESOURCE_EXHAUSTED", "ERR1011")

    with stt_server(tmp_path, TIGHT, "--max-sessions", "2", "--log-file", str(tmp_path / "own.log")) as (port, _, _):
        asyncio.run(talk(port, check))
    assert "draining" in (tmp_path / "own.log").read_text()


@pytest.mark.spec("grpc-75")
def test_a_bad_file_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("server: {port: x, max_chunk_ms: soon}\n")
    ended = subprocess.run(
        [sys.executable, "-m", "stt_server.main", "--config", str(tmp_path / "bad.yaml")],
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert "server.port" in ended.stderr
    assert "server.max_chunk_ms" in ended.stderr
    assert "Traceback" not in ended.stderr
