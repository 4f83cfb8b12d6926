"""How the server ends: with what it owes its clients, within bounds, and without leaving anything behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time

import psutil
import pytest

from tests.end_to_end.clients import realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer, clean_environment, command
from tests.end_to_end.speech import sentence

SLOW_FINAL = '{"final_latency_ms": 700}'


async def ended(server: RunningServer, seconds: float = 10.0) -> int:
    return await asyncio.to_thread(server.wait, seconds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.spec("http-07")
async def test_an_idle_server_ends_at_once_with_status_0(own_server: Serve, number: signal.Signals) -> None:
    server = own_server()
    async with yap(server) as client:
        server.signal(number)
        assert (await client.closed())[1:] == (1012, "server is shutting down")
    assert await ended(server) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("yap-72", "realtime-46", "http-07")
async def test_term_lets_utterances_end_and_then_closes_with_1012(own_server: Serve) -> None:
    server = own_server("--script", SLOW_FINAL)
    async with yap(server) as envelope, realtime(server) as plain:
        await envelope.start()
        await plain.start()
        await envelope.append(sentence("last", "words"))
        await plain.append(sentence("last", "words", "too"))
        for client in (envelope, plain):
            await client.receive()  # under way
        server.signal(signal.SIGTERM)
        await until_draining(server)
        assert server.get("/health")[0] == 503
        await envelope.finish()  # the client may still end its sentence
        await plain.finish()
        assert text_of([*await envelope.receive_until("done")]) == "last words"
        assert (await plain.receive_until("transcription.done"))[-1]["text"] == "last words too"
        assert (await envelope.closed())[1:] == (1012, "server is shutting down")
        assert (await plain.closed())[1:] == (1012, "server is shutting down")
    assert await ended(server) == 0
    assert "Traceback" not in server.log()


async def until_draining(server: RunningServer) -> None:
    end = time.monotonic() + 5
    while (status := (await asyncio.to_thread(server.get, "/healthz"))[0]) != 503:
        assert time.monotonic() < end, f"/healthz is still {status}"


@pytest.mark.spec("yap-73", "realtime-47")
async def test_while_draining_nobody_comes_in(own_server: Serve) -> None:
    server = own_server()
    async with yap(server) as client:
        await client.start()
        await client.synchronise()
        server.signal(signal.SIGTERM)
        await until_draining(server)
        async with yap(server, greeted=False) as late:
            [frame], code, _ = await late.closed()
            assert (frame["payload"]["code"], code) == ("server_at_capacity", 1013)
        with pytest.raises(Exception, match="HTTP 503"):
            async with realtime(server):
                pass
        await client.finish()
        await client.heard()
    assert await ended(server) == 0


@pytest.mark.spec("yap-72", "http-07")
async def test_the_drain_is_bounded(own_server: Serve) -> None:
    server = own_server("--drain-seconds", "0.5")
    async with yap(server) as client:
        await client.start()  # and never finishes
        await client.synchronise()
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert (await client.closed())[1] == 1012
        assert time.monotonic() - began >= 0.5
    assert await ended(server, 5) == 0


@pytest.mark.spec("http-07")
async def test_a_second_term_ends_at_once(own_server: Serve) -> None:
    server = own_server("--drain-seconds", "60")
    async with yap(server) as client:
        await client.start()
        await client.synchronise()
        server.signal(signal.SIGTERM)
        await until_draining(server)
        server.signal(signal.SIGTERM)
        assert await ended(server, 5) == 0
    assert "Traceback" not in server.log()


async def test_a_client_that_never_reads_does_not_hold_up_the_end(own_server: Serve) -> None:
    server = own_server("--drain-seconds", "1")
    async with yap(server) as deaf:
        deaf.socket.transport.pause_reading()
        for _ in range(10):
            await deaf.send("session.update", model="x" * 700_000)
        server.signal(signal.SIGTERM)
        assert await ended(server, 15) == 0
        deaf.socket.transport.abort()


@pytest.mark.spec("http-06")
async def test_the_port_is_refused_until_the_server_is_ready_and_after_its_end(own_server: Serve) -> None:
    server = own_server()
    assert server.get("/healthz")[0] == 200
    assert server.stop() == 0
    with pytest.raises(OSError, match="refused"):
        server.get("/healthz")


@pytest.mark.spec("http-08")
def test_a_taken_port_stops_the_start_with_a_sentence(own_server: Serve) -> None:
    server = own_server()
    second = subprocess.run(
        command("--engine", "scripted", "--host", "127.0.0.1", "--port", str(server.port)),
        env=clean_environment({"VOXTRAL_API_KEY": KEY}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "The server cannot start" in second.stderr
    assert str(server.port) in second.stderr
    assert "Traceback" not in second.stderr


def recogniser_processes(server: RunningServer) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children(recursive=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_recogniser_processes_end_with_the_server(own_server: Serve, number: signal.Signals) -> None:
    server = own_server("--sphinx-workers", "2", engine="sphinx")
    async with realtime(server, model="") as client:
        await client.start()
        await client.append(bytes(32_000))
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots", seconds=30)
        children = recogniser_processes(server)
        assert len(children) >= 2  # the one that has loaded the model, and at least one that it has forked
        server.signal(number)
        if number is signal.SIGTERM:
            await client.finish()
            await client.receive_until("transcription.done")
    assert await ended(server, 20) == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
    assert not alive


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.spec("yap-77")
async def test_the_key_is_never_in_the_log(own_server: Serve, log_format: str) -> None:
    server = own_server("--log-level", "debug", "--log-format", log_format)
    async with yap(server) as client:
        await client.say(sentence("confidential", "words"))
        await client.send("mystery", key=KEY)
        await client.error()
    async with yap(server, path=f"/api/asr-streaming?api_key={KEY}x", greeted=False) as wrong:
        await wrong.closed()
    server.get(f"/healthz?api_key={KEY}")
    server.get("/nowhere", **{"X-API-Key": KEY})
    assert server.stop() == 0
    log = server.log()
    assert "accepted" in log
    assert "closed" in log
    assert KEY not in log
    assert "confidential" not in log
