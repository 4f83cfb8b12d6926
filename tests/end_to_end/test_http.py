"""The paths beside the surfaces: health, models and metrics of a real server."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from tests.end_to_end.clients import Realtime, realtime, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import START_SECONDS, RunningServer, clean_environment, command

HUGGING_FACE_ID = "mistralai/Voxtral-Mini-4B-Realtime-2602"


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


@pytest.mark.spec("http-03")
def test_health_says_what_is_served(server: RunningServer) -> None:
    before = time.time()
    status, body = server.get("/health")
    told = json.loads(body)
    assert status == 200
    assert (told["status"], told["engine"], told["model"]) == ("healthy", "scripted", "scripted")
    assert before - 1 <= told["timestamp"] <= time.time() + 1
    assert told["connections"] == 0
    assert told["engine_busy_slots"] == 0
    assert told["chat"] is None


@pytest.mark.spec("http-03")
async def test_health_counts_connections(server: RunningServer) -> None:
    async with yap(server), realtime(server) as second:
        await second.silent()
        assert json.loads(server.get("/health")[1])["connections"] == 2
    await server.until_idle()


@pytest.mark.spec("http-04")
def test_the_root_is_one_object_that_names_the_server(server: RunningServer) -> None:
    status, body = server.get("/")
    told = json.loads(body)
    assert status == 200
    assert told["status"] == "ok"
    assert {"name", "version", "engine", "model", "docs_url", "health_url"} <= set(told)
    assert server.get(told["docs_url"])[0] == server.get(told["health_url"])[0] == 200


@pytest.mark.spec("http-05", "http-12")
def test_ping_is_empty_and_version_has_one(server: RunningServer) -> None:
    assert server.get("/ping") == (200, b"")
    status, body = server.get("/version")
    assert status == 200
    assert isinstance(json.loads(body)["version"], str)


@pytest.mark.spec("http-09", "http-10")
def test_models_are_listed_with_what_can_be_asked_of_them(serve: Serve) -> None:
    server = serve("--served-model-name", "my-asr", "--delay-ms", "960", "--script", '{"slots": 7}')
    status, body = server.get("/v1/models")
    listed = json.loads(body)
    assert status == 200
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["my-asr", "scripted", HUGGING_FACE_ID]
    for model in listed["data"]:
        assert model["object"] == "model"
        assert (model["engine"], model["slots"], model["delay_ms"]) == ("scripted", 7, 960)
        assert model["delays_ms"] == list(range(80, 2401, 80))
        assert "caveat" in model


@pytest.mark.spec("http-13")
def test_the_paths_are_described(server: RunningServer) -> None:
    assert server.get("/docs")[0] == 200
    status, body = server.get("/openapi.json")
    assert status == 200
    assert {"/healthz", "/health", "/v1/models", "/metrics"} <= set(json.loads(body)["paths"])


@pytest.mark.spec("http-14")
async def test_metrics_are_prometheus_text_by_surface(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.synchronise()
        assert server.metric("earmark_connections_active", surface="yap") == 1
    await server.until_idle()
    url = f"http://127.0.0.1:{server.port}/metrics"
    assert (await asyncio.to_thread(content_type, url)).startswith("text/plain; version=")
    families = list(text_string_to_metric_families(server.get("/metrics")[1].decode()))
    assert {family.name.split(":")[0].split("_")[0] for family in families} <= {"earmark", "process", "vllm"}


def content_type(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.headers["content-type"])


def under_vllms_names(server: RunningServer) -> dict[tuple[str, str], float]:
    """Each series of vLLM's by its name and its bucket."""
    families = text_string_to_metric_families(server.get("/metrics")[1].decode())
    samples = [sample for family in families for sample in family.samples if family.name.startswith("vllm:")]
    return {(sample.name, sample.labels.get("le", "")): sample.value for sample in samples}


@pytest.mark.spec("http-15")
async def test_connections_are_also_counted_as_vllm_counts_them(own_server: Serve) -> None:
    server = own_server()
    active, total = ("vllm:websocket_connections_active", ""), ("vllm:websocket_connections_total", "")
    lived = ("vllm:websocket_connection_duration_seconds_count", "")
    at_start = under_vllms_names(server)
    assert (at_start[active], at_start[total], at_start[lived]) == (0, 0, 0)
    buckets = [bucket for name, bucket in at_start if name == "vllm:websocket_connection_duration_seconds_bucket"]
    assert [float(bucket) for bucket in buckets[:-1]] == [0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800]
    assert buckets[-1] == "+Inf"
    async with realtime(server) as client, yap(server):
        await client.silent()
        now = under_vllms_names(server)
        assert (now[active], now[total], now[lived]) == (1, 1, 0), "the envelope connection is none of vLLM's"
    await server.until_idle()
    after = under_vllms_names(server)
    assert (after[active], after[total], after[lived]) == (0, 1, 1)


@pytest.fixture
def starting() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server whose engine takes a moment, and its port, which a socket that does not listen has reserved."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that the server may bind it too
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        options = ("--engine", "sphinx", "--sphinx-workers", "1", "--host", "127.0.0.1", "--port", str(port))
        environment = clean_environment({"VOXTRAL_API_KEY": "x"})
        with subprocess.Popen(command(*options), env=environment, stderr=subprocess.DEVNULL) as server:
            yield server, port
            server.kill()


@pytest.mark.spec("http-06")
async def test_connections_are_refused_until_the_first_answer_is_ok(
    starting: tuple[subprocess.Popen[bytes], int],
) -> None:
    server, port = starting
    answers: list[str] = []
    end = time.monotonic() + START_SECONDS
    while answers[-1:] in ([], ["refused"]):
        assert server.poll() is None, "the server has ended"
        assert time.monotonic() < end, "the server does not get ready"
        answers.append(await asyncio.to_thread(health, port))
        await asyncio.sleep(0.02)  # between two looks at another process, which has no way to tell us
    assert "refused" in answers
    assert answers[-1] == '200 {"status":"ok"}'
    async with connect(f"ws://127.0.0.1:{port}/v1/realtime") as socket_of_client:
        client = Realtime(socket_of_client)
        assert (await client.receive())["type"] == "session.created"
        await client.update("")
        await client.say(bytes(32_000))


def health(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            return f"{answer.status} {answer.read().decode()}"
    except urllib.error.URLError as error:
        return "refused" if isinstance(error.reason, ConnectionRefusedError) else str(error)
