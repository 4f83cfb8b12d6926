"""nginx as configured in front of a real server: TLS, WebSockets, HTTP, and what it keeps from the world and from its log."""

from __future__ import annotations

import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from server.config import Settings
from tests.deploy.files import DEPLOY
from tests.end_to_end.clients import Realtime, Yap, text_of
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import sentence

NGINX = shutil.which("nginx") or next((path for path in ("/usr/sbin/nginx",) if os.path.exists(path)), None)
CONFIGURATION = (DEPLOY / "nginx/earmark.conf").read_text(encoding="utf-8")
SERVING = health_pb2.HealthCheckResponse.SERVING
NAME = "stt.example.org"

pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")


class Behind(health.HealthServicer):  # type: ignore[misc]
    """A gRPC server in the place of the server's own: what a proxy does to a call does not depend on whose it is."""

    def __init__(self) -> None:
        super().__init__()
        self.forwarded_for: list[str] = []
        self.set("stt.STTBackend", SERVING)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.forwarded_for += [value for name, value in context.invocation_metadata() if name == "x-forwarded-for"]
        return super().Check(request, context)


@dataclass(frozen=True, slots=True)
class Proxy:
    """nginx, and the files it was given."""

    port: int
    plain_port: int
    folder: Path
    behind: Behind

    @property
    def tls(self) -> ssl.SSLContext:
        """Trusts the proxy's certificate alone."""
        return ssl.create_default_context(cafile=self.folder / "tls.pem")

    @property
    def log(self) -> str:
        return (self.folder / "earmark.log").read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certify(folder: Path) -> None:
    """A certificate for the name and for the loopback, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME), x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "tls.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "tls.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


def placed(text: str, folder: Path, *, port: int, plain_port: int, upstream: int, grpc_upstream: int) -> str:
    """The configuration with ports and paths of a test; nothing else of it is touched."""
    for old, new in {
        "listen 443 ssl http2": f"listen 127.0.0.1:{port} ssl http2",
        "listen 80": f"listen 127.0.0.1:{plain_port}",
        "127.0.0.1:8000": f"127.0.0.1:{upstream}",
        "127.0.0.1:50051": f"127.0.0.1:{grpc_upstream}",
        f"/etc/nginx/tls/{NAME}.pem": str(folder / "tls.pem"),
        f"/etc/nginx/tls/{NAME}.key": str(folder / "tls.key"),
        "/var/log/nginx/earmark.log": str(folder / "earmark.log"),
        "/var/log/nginx/earmark.error.log": str(folder / "earmark.error.log"),
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    text = re.sub(r"^ *listen \[::\].*\n", "", text, flags=re.MULTILINE)
    return (
        f"pid {folder}/nginx.pid;\nerror_log {folder}/error.log;\ndaemon off;\n"
        "events {}\nhttp {\naccess_log off;\n"
        + "".join(
            f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + text
        + "}\n"
    )


@pytest.fixture(scope="module")
def proxy(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("nginx")
    certify(folder)
    made = Proxy(free_port(), free_port(), folder, Behind())
    speaks_grpc = grpc.server(ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(made.behind, speaks_grpc)
    grpc_upstream = speaks_grpc.add_insecure_port("127.0.0.1:0")
    speaks_grpc.start()
    file = folder / "nginx.conf"
    file.write_text(
        placed(
            CONFIGURATION,
            folder,
            port=made.port,
            plain_port=made.plain_port,
            upstream=server.port,
            grpc_upstream=grpc_upstream,
        )
    )
    assert NGINX is not None
    tested = subprocess.run([NGINX, "-t", "-c", str(file)], capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr
    process = subprocess.Popen([NGINX, "-c", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        connected(made.port, made.tls).close()
        yield made
    finally:
        process.terminate()
        process.wait(10)
        speaks_grpc.stop(None).wait()


def https(proxy: Proxy) -> httpx.Client:
    return httpx.Client(base_url=f"https://localhost:{proxy.port}", verify=proxy.tls, trust_env=False)


async def test_an_envelope_stream_passes_and_its_key_stays_out_of_the_log(proxy: Proxy) -> None:
    url = f"wss://localhost:{proxy.port}/api/asr-streaming?api_key={KEY}"
    async with connect(url, ssl=proxy.tls) as socket:
        client = Yap(socket)
        await client.start()
        await client.append(sentence("through", "the", "proxy"))
        await client.finish()
        assert text_of(await client.receive_until("done")) == "through the proxy"
    end, pause = time.monotonic() + 5, Event()
    while "/api/asr-streaming" not in proxy.log:
        assert time.monotonic() < end
        pause.wait(0.02)
    assert " 101 " in proxy.log
    assert KEY not in proxy.log


async def test_a_realtime_stream_passes(proxy: Proxy) -> None:
    async with connect(f"wss://localhost:{proxy.port}/v1/realtime", ssl=proxy.tls) as socket:
        client = Realtime(socket)
        await client.receive_until("session.created")
        await client.update()
        await client.start()
        assert await client.say(sentence("real", "time")) == "real time"


async def test_a_wrong_key_is_refused_as_without_a_proxy(proxy: Proxy) -> None:
    url = f"wss://localhost:{proxy.port}/api/asr-streaming?api_key=wrong"
    try:
        async with connect(url, ssl=proxy.tls) as socket:
            assert (await Yap(socket).closed())[1] == 1008
    except InvalidStatus as refused:
        pytest.fail(f"the close code was lost: HTTP {refused.response.status_code}")


def test_health_passes_and_operations_do_not(proxy: Proxy) -> None:
    with https(proxy) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        assert client.get("/v1/models").status_code == 200
        for path in ("/metrics", "/metrics.json", "/admin/x"):
            answer = client.get(path)
            assert (answer.status_code, "earmark" in answer.text) == (404, False), path


def test_plain_http_is_sent_to_tls(proxy: Proxy) -> None:
    answer = httpx.get(f"http://127.0.0.1:{proxy.plain_port}/healthz", trust_env=False)
    assert answer.status_code == 301
    assert answer.headers["location"].startswith("https://")


def test_grpc_passes_with_streams_and_the_clients_address(proxy: Proxy) -> None:
    credentials = grpc.ssl_channel_credentials((proxy.folder / "tls.pem").read_bytes())
    with grpc.secure_channel(f"localhost:{proxy.port}", credentials) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="stt.STTBackend")
        assert stub.Check(asked, timeout=10, metadata=[("x-forwarded-for", "1.2.3.4")]).status == SERVING
        watched = stub.Watch(asked, timeout=10)
        assert next(watched).status == SERVING
        proxy.behind.set("stt.STTBackend", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING  # as it comes, not at the end
        watched.cancel()
    assert proxy.behind.forwarded_for == ["127.0.0.1"]


def test_the_server_is_told_the_clients_address_and_nothing_that_the_client_made_up(tmp_path: Path) -> None:
    """A bare listener in the server's place hears what nginx sends."""
    with socket.create_server(("127.0.0.1", 0)) as listener, before(listener.getsockname()[1], tmp_path) as client:
        listener.settimeout(10)
        client.sendall(b"GET /x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n")
        upstream, _ = listener.accept()
        with upstream:
            upstream.settimeout(10)
            heard = b""
            while b"\r\n\r\n" not in heard:
                heard += upstream.recv(4096)
    headers = heard.decode().lower()
    assert "x-forwarded-for: 127.0.0.1\r\n" in headers
    assert "1.2.3.4" not in headers
    assert "x-forwarded-proto: https\r\n" in headers
    assert "host: localhost\r\n" in headers


def test_a_server_that_does_not_answer_is_logged_without_the_key(tmp_path: Path) -> None:
    with before(free_port(), tmp_path) as client:
        client.sendall(
            b"GET /api/asr-streaming?api_key=secret HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        )
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 502 ")
    logged = {file.name: file.read_text() for file in tmp_path.glob("*.log")}
    assert "GET /api/asr-streaming 502" in logged["earmark.log"]
    assert not [name for name, text in logged.items() if "secret" in text]


@contextmanager
def before(upstream: int, folder: Path) -> Iterator[ssl.SSLSocket]:
    """A client of an nginx that stands before this port; all has ended, and is logged, afterwards."""
    assert NGINX is not None
    certify(folder)
    port, file = free_port(), folder / "nginx.conf"
    file.write_text(
        placed(CONFIGURATION, folder, port=port, plain_port=free_port(), upstream=upstream, grpc_upstream=free_port())
    )
    process = subprocess.Popen([NGINX, "-c", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with connected(port, ssl.create_default_context(cafile=folder / "tls.pem")) as client:
            yield client
    finally:
        process.terminate()
        process.wait(10)


def connected(port: int, tls: ssl.SSLContext) -> ssl.SSLSocket:
    """A TLS connection to a port that is about to be opened."""
    end, pause = time.monotonic() + 10, Event()
    while True:
        try:
            return tls.wrap_socket(socket.create_connection(("127.0.0.1", port), 5), server_hostname="localhost")
        except ConnectionRefusedError:
            assert time.monotonic() < end
            pause.wait(0.02)


def test_timeouts_are_longer_than_a_stream_may_live() -> None:
    hours = dict(re.findall(r"(\w+_(?:read|send)_timeout)\s+(\d+)h;", CONFIGURATION))
    assert hours == dict.fromkeys(
        ("proxy_read_timeout", "proxy_send_timeout", "grpc_read_timeout", "grpc_send_timeout"), "2"
    )
    lives = Settings.model_fields["max_connection_duration_s"].default
    assert lives < 2 * 3600
