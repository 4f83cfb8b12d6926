"""gRPC streams and the server around them: who else is there, how streams and the server end, TLS, health and reflection."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import random
import re
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.end_to_end.conftest import Serve
from tests.end_to_end.rpc_clients import (
    GRPC,
    OPEN,
    SECONDS,
    address,
    chunks,
    create,
    ended,
    new_id,
    refusal,
    stream,
    stub,
    transcribe,
)
from tests.end_to_end.running_server import KEY, ROOT, RunningServer, clean_environment, command
from tests.end_to_end.speech import distinct_words, sentence
from tests.end_to_end.test_grpc_streams import Live, silence
from wire.stt.errors import ERRORS
from wire.stt.stt_pb2_grpc import STTBackendStub


async def until_free(server: RunningServer) -> None:
    """Nobody is connected and no engine slot is taken."""
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="grpc")
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


async def exit_status(server: RunningServer, seconds: float = 15.0) -> int:
    return await asyncio.to_thread(server.wait, seconds)


# ---- on and off


@pytest.mark.spec("grpc-04")
async def test_grpc_is_off_unless_it_is_asked_for(serve: Serve) -> None:
    assert serve().grpc_port == 0
    assert serve(*OPEN).grpc_port > 0


@pytest.mark.spec("grpc-04")
async def test_a_taken_port_stops_the_start_with_a_sentence(serve: Serve) -> None:
    taken = serve(*OPEN).grpc_port
    second = await asyncio.to_thread(start, "--surfaces", "grpc", "--grpc-port", str(taken))
    assert second.returncode == 1
    assert "The server cannot start" in second.stderr
    assert str(taken) in second.stderr
    assert "Traceback" not in second.stderr


def start(*options: str) -> subprocess.CompletedProcess[str]:
    """A server that is expected not to start."""
    return subprocess.run(
        command("--engine", "scripted", "--host", "127.0.0.1", "--port", "0", *options),
        env=clean_environment({"VOXTRAL_API_KEY": KEY}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- beside the service


@pytest.mark.spec("grpc-02")
async def test_reflection_tells_the_services_and_their_messages(serve: Serve) -> None:
    async with grpc.aio.insecure_channel(address(serve(*OPEN))) as channel:
        ask: Any = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="stt.STTBackend"),
        ]
        names, file = [answer async for answer in ask(iter(requests), timeout=SECONDS)]
        assert {"stt.STTBackend", "grpc.health.v1.Health"} <= {s.name for s in names.list_services_response.service}
        assert b"StreamingRecognize" in file.file_descriptor_response.file_descriptor_proto[0]


@pytest.mark.spec("grpc-03")
async def test_health_is_served_and_turns_when_the_server_begins_to_end(own_server: Serve) -> None:
    server = own_server(*OPEN)
    async with stub(server) as backend, grpc.aio.insecure_channel(address(server)) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "stt.STTBackend"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
            await health.Check(health_pb2.HealthCheckRequest(service="no.such"), timeout=SECONDS)
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(sentence("wait") + silence(1.0))
        await live.result()
        watch = health.Watch(health_pb2.HealthCheckRequest(service="stt.STTBackend"), timeout=SECONDS)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        server.signal(signal.SIGTERM)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await live.send(is_final=True)
        assert (await ended(live.call)).finals == ["wait"]
    assert await exit_status(server) == 0


# ---- ends


@pytest.mark.spec("grpc-59")
async def test_a_cancelled_stream_frees_everything(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-max-sessions", "1")
    async with stub(server) as backend:
        for _ in range(3):
            session_id, _ = await create(backend)
            live = Live(backend, session_id=session_id)
            await live.send(sentence("never", "mind"))
            await server.until_metric(lambda value: value == 1, "earmark_connections_active", surface="grpc")
            live.call.cancel()
            await until_free(server)
        assert (await transcribe(backend, sentence("next"))).finals == ["next"]


CLIENT = """
import sys
import grpc
from wire.stt.stt_pb2 import AudioChunk, SessionRequest
from wire.stt.stt_pb2_grpc import STTBackendStub

def audio():
    while True:
        yield AudioChunk(pcm16=bytes(3200), session_id=sys.argv[2])

backend = STTBackendStub(grpc.insecure_channel(sys.argv[1]))
backend.CreateSession(SessionRequest(session_id=sys.argv[2], vad_threshold_override=0.0))
print("streaming", flush=True)
for result in backend.StreamingRecognize(audio()):
    pass
"""


@pytest.mark.spec("grpc-59")
async def test_a_client_that_is_killed_leaves_nothing_behind(serve: Serve) -> None:
    server = serve(*OPEN, "--grpc-max-audio-seconds-per-session", "0", "--grpc-max-sessions", "1")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CLIENT, address(server), new_id(), cwd=ROOT, stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"streaming\n"
    await server.until_metric(lambda value: value > 5, "earmark_audio_seconds_total", surface="grpc")
    process.kill()
    await process.wait()
    await until_free(server)
    async with stub(server) as backend:
        assert (await transcribe(backend, sentence("free", "again"))).finals == ["free again"]


@pytest.mark.spec("grpc-24", "grpc-60")
async def test_while_the_server_ends_streams_under_way_may_end_and_nobody_comes_in(own_server: Serve) -> None:
    server = own_server(*OPEN)
    async with stub(server) as backend:
        unstreamed, _ = await create(backend)
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(sentence("to", "the", "end") + silence(0.6))
        await live.result()
        server.signal(signal.SIGTERM)
        end = time.monotonic() + SECONDS
        while (await asyncio.to_thread(server.get, "/healthz"))[0] != 503:
            assert time.monotonic() < end
        assert await refusal(create(backend)) == ("UNAVAILABLE", "ERR1013")
        assert await Live(backend, session_id=unstreamed).refused() == "UNAVAILABLE ERR1013"
        await live.send(is_final=True)
        assert (await ended(live.call)).finals == ["to the end"]
    assert await exit_status(server) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("grpc-60")
async def test_a_stream_that_does_not_end_is_ended(own_server: Serve) -> None:
    server = own_server(*OPEN, "--drain-seconds", "0.3")
    async with stub(server) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(bytes(3200))
        await server.until_metric(lambda value: value == 1, "earmark_connections_active", surface="grpc")
        server.signal(signal.SIGTERM)
        assert await live.refused() == "UNAVAILABLE ERR1013"
    assert await exit_status(server) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("grpc-61")
async def test_a_second_signal_ends_at_once(own_server: Serve) -> None:
    server = own_server(*OPEN, "--drain-seconds", "60")
    async with stub(server) as backend:
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        await live.send(bytes(3200))
        await server.until_metric(lambda value: value == 1, "earmark_connections_active", surface="grpc")
        server.signal(signal.SIGTERM)
        end = time.monotonic() + SECONDS
        while (await asyncio.to_thread(server.get, "/healthz"))[0] != 503:
            assert time.monotonic() < end
        server.signal(signal.SIGTERM)
        assert await exit_status(server, 8) == 0
    assert "Traceback" not in server.log()


# ---- neighbours


@pytest.mark.spec("grpc-66")
async def test_nonsense_from_one_client_does_not_touch_the_others(serve: Serve) -> None:
    """Random bytes as messages, wrong fields, cancelled and abandoned calls beside eight good streams, which must lose no word."""
    server = serve(*OPEN)
    chosen = random.Random(5)
    stop = asyncio.Event()

    async def nonsense() -> int:
        rounds = 0
        async with grpc.aio.insecure_channel(address(server)) as channel:
            up: Any = channel.stream_stream("/stt.STTBackend/StreamingRecognize")
            one: Any = channel.unary_unary("/stt.STTBackend/CreateSession")
            while not stop.is_set():
                rounds += 1
                try:
                    session_id = f"fuzz-{rounds}"
                    request = b"\x0a" + bytes([len(session_id)]) + session_id.encode() + b"\x51" + bytes(8)
                    await one(chosen.randbytes(chosen.randrange(200)) if chosen.random() < 0.5 else request, timeout=5)
                    call = up(metadata=(("session-id", session_id),), timeout=5)
                    for _ in range(chosen.randrange(4)):
                        await call.write(
                            chosen.choice([b"", b"\x0a\x02ab", chosen.randbytes(40), b"\x10\x01\x0a\x01a"])
                        )
                    if chosen.random() < 0.5:
                        call.cancel()
                    else:
                        await call.done_writing()
                        await call.code()
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError, asyncio.CancelledError):
                    pass
        return rounds

    async def good(number: int) -> None:
        said = distinct_words(25, seed=50 + number)
        async with stub(server) as backend:
            for _ in range(3):
                end = await transcribe(backend, sentence(*said), final=("last", "empty", "never")[number % 3])
                assert end.finals == [" ".join(said)]

    fuzzing = asyncio.create_task(nonsense())
    try:
        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(good(number))
    finally:
        stop.set()
    assert await fuzzing > 10
    await until_free(server)
    assert server.process.poll() is None


# ---- TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for this machine, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    files = folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


def tls(certificate: tuple[Path, Path]) -> tuple[str, ...]:
    return "--grpc-tls-cert-file", str(certificate[0]), "--grpc-tls-key-file", str(certificate[1])


@pytest.mark.spec("grpc-69")
async def test_with_a_certificate_streams_are_encrypted(serve: Serve, certificate: tuple[Path, Path]) -> None:
    server = serve(*OPEN, *tls(certificate), "--grpc-tls-required")
    trusted = grpc.ssl_channel_credentials(certificate[0].read_bytes())
    async with grpc.aio.secure_channel(address(server), trusted) as channel:
        backend: Any = STTBackendStub(channel)
        session_id, _ = await create(backend)
        live = Live(backend, session_id=session_id)
        for chunk in chunks(sentence("in", "private"), final="last"):
            await live.call.write(chunk)
        assert (await ended(live.call)).finals == ["in private"]
    assert "without TLS" not in server.log()


@pytest.mark.spec("grpc-70")
async def test_a_client_without_tls_cannot_talk_to_a_server_with_it(
    serve: Serve, certificate: tuple[Path, Path]
) -> None:
    server = serve(*OPEN, *tls(certificate), "--grpc-tls-required")
    async with stub(server) as backend:
        status, _ = await refusal(create(backend))
        assert status in ("UNAVAILABLE", "INTERNAL")


@pytest.mark.spec("grpc-71")
@pytest.mark.parametrize("case", ["neither", "key only", "certificate only", "no such file", "no certificate"])
async def test_tls_that_cannot_be_stops_the_start(case: str, certificate: tuple[Path, Path]) -> None:
    cert, key = map(str, certificate)
    options, told = {
        "neither": (["--grpc-tls-required"], "--grpc-tls-cert-file and --grpc-tls-key-file are needed"),
        "key only": (["--grpc-tls-key-file", key], "are needed both"),
        "certificate only": (["--grpc-tls-cert-file", cert], "are needed both"),
        "no such file": (["--grpc-tls-cert-file", "/no/cert.pem", "--grpc-tls-key-file", key], "/no/cert.pem"),
        "no certificate": (["--grpc-tls-cert-file", key, "--grpc-tls-key-file", key], "no certificate with its key"),
    }[case]
    ended_with = await asyncio.to_thread(start, *GRPC, *options)
    assert ended_with.returncode == 2
    assert told in ended_with.stderr
    assert "Traceback" not in ended_with.stderr


@pytest.mark.spec("grpc-71")
async def test_without_tls_the_log_says_so(serve: Serve) -> None:
    assert "gRPC is served without TLS" in serve(*OPEN).log()


@pytest.mark.spec("grpc-41")
async def test_the_load_tools_sessions(serve: Serve) -> None:
    """Connections of their own, no metadata, ids of its pattern, a stream each, several times over."""
    server = serve(*OPEN)

    async def channel(number: int) -> None:
        async with stub(server) as backend:
            for iteration in range(3):
                said = distinct_words(5, seed=200 + 10 * number + iteration)
                session_id = f"bench-{number:02d}-{iteration:02d}-{new_id()[-8:]}"
                await create(backend, session_id, decode_profile=1)
                end = await stream(backend, chunks(sentence(*said), session_id, final="empty"))
                assert end.finals == [" ".join(said)]
                assert float(end.trailing["stt-decode-total-sec"]) > 0

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(channel(number))


def test_the_client_of_the_page_works_as_written(serve: Serve, tmp_path: Path) -> None:
    server = serve(*GRPC)  # with the limits that a server has by default
    page = (ROOT / "docs" / "protocols" / "grpc.md").read_text(encoding="utf-8")
    [client] = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(sentence("as", "the", "page", "says"))
    ended_with = subprocess.run(
        [sys.executable, "-W", "error", "-c", client, str(tmp_path / "speech.wav")],
        cwd=ROOT,
        env=clean_environment({"STT_TARGET": address(server)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended_with.stderr, ended_with.returncode) == ("", 0)
    assert ended_with.stdout.splitlines()[-1] == "FINAL   0.0-1.5 as the page says"


def test_the_error_table_of_the_page_is_that_of_the_code() -> None:
    page = (ROOT / "docs" / "protocols" / "grpc.md").read_text(encoding="utf-8")
    told = {
        code: status
        for codes, status in re.findall(r"^\| (ERR[\d, ER]+) \| (\w+) \|", page, re.MULTILINE)
        for code in codes.split(", ")
    }
    assert told == {row.code: row.status for row in ERRORS.values() if not row.code.startswith("ERR4")}
