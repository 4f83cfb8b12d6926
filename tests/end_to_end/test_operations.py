"""The operations plane of a real server: where it listens, who may come in, what it tells."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.clients import realtime, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.plane import FREE, ask, until
from tests.end_to_end.rpc_clients import OPEN, chunks, create, refusal, stream, stub
from tests.end_to_end.running_server import ROOT, RunningServer, clean_environment, command, read_metric
from tests.end_to_end.speech import sentence

TOKEN = "tell-me-all"
SPREADS = ("decode_latency", "decode_buffer_wait", "decode_queue_wait", "decode_response_emit", "rtf")
DETAILS = {
    *("model_pool_healthy", "models_loaded", "model_count", "model_worker_total", "model_worker_shutdown"),
    *("active_sessions", "decode_queue_depth", "decode_latency_avg", "decode_latency_max", "grpc_running"),
}


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve(*FREE)


# ---- where it listens


def lines_of_the_page() -> list[str]:
    page = (ROOT / "docs" / "protocols" / "operations.md").read_text(encoding="utf-8")
    first = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    return [line for line in first.splitlines() if line]


@pytest.mark.spec("operations-01", "operations-51")
@pytest.mark.parametrize("line", lines_of_the_page())
def test_the_commands_of_the_page_work(server: RunningServer, line: str) -> None:
    program, *arguments = shlex.split(line.replace("127.0.0.1:8001", f"127.0.0.1:{server.ops_port}"))
    assert program in ("curl", "earmark")
    ended = subprocess.run(
        [program, *arguments] if program == "curl" else [sys.executable, "-m", "harness.cli", *arguments],
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout
    assert "unavailable" not in ended.stdout


@pytest.mark.spec("operations-02")
def test_without_the_plane_there_is_no_port_of_it(own_server: Serve) -> None:
    server = own_server("--no-ops")
    assert server.ready["ops_port"] is None
    assert server.ready["ports"] == {"public": server.port}


@pytest.mark.spec("operations-02")
def test_it_listens_on_the_address_that_is_named(own_server: Serve) -> None:
    server = own_server("--ops-host", "127.0.0.2")
    with socket.create_connection(("127.0.0.2", server.ready["ops_port"]), 5):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.ready["ops_port"]), 5)


@pytest.mark.spec("operations-03")
def test_a_named_port_that_is_taken_stops_the_start() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            command("--engine", "scripted", "--host", "127.0.0.1", "--port", "0", "--ops-port", str(port)),
            cwd=ROOT,
            env=clean_environment({"VOXTRAL_API_KEY": "k"}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in ended.stderr


@pytest.mark.spec("operations-03")
def test_with_the_default_port_taken_the_server_starts_without_the_plane() -> None:
    """Who holds 8001 does not matter: this test where it is free, somebody else where it is not."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 8001))
            taken.listen()
        except OSError:
            pass  # it is taken already
        process = subprocess.Popen(
            command("--engine", "scripted", "--host", "127.0.0.1", "--port", "0", "--announce"),
            cwd=ROOT,
            env=clean_environment({"VOXTRAL_API_KEY": "k"}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())
        finally:
            process.terminate()
            log = process.communicate(timeout=20)[1]
    assert ready["ops_port"] is None
    assert "no operations plane" in log
    assert "--ops-port" in log
    assert process.returncode == 0


@pytest.mark.spec("operations-04")
def test_the_public_port_has_nothing_of_it_and_stays_open(serve: Serve) -> None:
    server = serve(*FREE, environment={"STT_OBSERVABILITY_TOKEN": TOKEN})
    for path in ("/metrics.json", "/system", "/admin/list_models"):
        assert server.get(path)[0] == 404
    assert server.get("/health")[0] == server.get("/metrics")[0] == 200
    assert "earmark_" not in ask(server, "/metrics").body.decode()


# ---- who may come in


@pytest.mark.spec("operations-05", "operations-09", "operations-14")
def test_who_is_not_on_the_list_stays_out_of_every_path(serve: Serve) -> None:
    server = serve(
        *FREE, environment={"STT_HTTP_ALLOWLIST": "10.0.0.0/8, 192.168.7.7", "STT_OBSERVABILITY_TOKEN": TOKEN}
    )
    for path in ("/metrics", "/metrics.json", "/health", "/system", "/admin/list_models", "/nothing"):
        assert ask(server, path).refusal == (403, "ERR4008"), "and not what else is wrong with the request"


@pytest.mark.spec("operations-05", "operations-06")
def test_entries_that_are_no_networks_are_left_out(serve: Serve) -> None:
    server = serve(*FREE, environment={"STT_HTTP_ALLOWLIST": "office, 127.0.0.0/8"})
    assert ask(server, "/health").status == 200
    assert "office" in server.log()


@pytest.mark.spec("operations-06")
def test_a_list_of_nothing_but_mistakes_lets_nobody_in(serve: Serve) -> None:
    assert ask(serve(*FREE, "--ops-allowlist", "office,300.1.2.3"), "/health").refusal == (403, "ERR4008")


@pytest.mark.spec("operations-07", "operations-09")
def test_more_than_the_burst_is_refused_on_any_path(serve: Serve) -> None:
    environment = {
        "STT_HTTP_RATE_LIMIT_RPS": "0.001",
        "STT_HTTP_RATE_LIMIT_BURST": "3",
        "STT_OBSERVABILITY_TOKEN": TOKEN,
    }
    server = serve(environment=environment)
    assert [ask(server, path).status for path in ("/health", "/nothing", "/admin/list_models")] == [401, 404, 501]
    for path in ("/health", "/nothing", "/admin/list_models", "/metrics"):
        assert ask(server, path).refusal == (429, "ERR4007")


@pytest.mark.spec("operations-07")
def test_the_rate_is_5_and_10_at_once(serve: Serve) -> None:
    server = serve("--ops-port", "0")
    statuses = []
    begun = time.monotonic()
    while 429 not in statuses and time.monotonic() < begun + 20:
        statuses.append(ask(server, "/health").status)
    allowed = statuses.count(200)
    assert 10 <= allowed <= 11 + 5 * (time.monotonic() - begun)
    assert statuses[-1] == 429


@pytest.mark.spec("operations-07")
@pytest.mark.parametrize(
    "options",
    [("--ops-rate", "0"), ("--ops-rate", "0.001", "--ops-burst", "1", "--unlimited")],
    ids=["rate 0", "unlimited"],
)
def test_without_a_limit_everybody_passes(serve: Serve, options: tuple[str, ...]) -> None:
    server = serve(*options)
    assert [ask(server, "/health").status for _ in range(30)] == [200] * 30


@pytest.mark.spec("operations-08")
def test_behind_a_trusted_proxy_the_last_entry_is_the_client(serve: Serve) -> None:
    options = ("--ops-rate", "0.001", "--ops-burst", "2", "--ops-allowlist", "203.0.113.0/24")
    server = serve(*options, environment={"STT_HTTP_TRUSTED_PROXIES": "127.0.0.1"})
    first, second = "198.51.100.9, 203.0.113.1", "203.0.113.1, 203.0.113.2"
    assert [ask(server, "/health", X_Forwarded_For=who).status for who in (first, first, first)] == [200, 200, 429]
    assert [ask(server, "/health", X_Forwarded_For=who).status for who in (second, second, second)] == [200, 200, 429]
    assert ask(server, "/health", X_Forwarded_For="203.0.113.1, 198.51.100.9").refusal == (403, "ERR4008")
    assert ask(server, "/health").refusal == (403, "ERR4008")


@pytest.mark.spec("operations-08")
def test_nobody_elses_header_is_believed(serve: Serve) -> None:
    server = serve(*FREE, "--ops-allowlist", "203.0.113.0/24", "--ops-trusted-proxies", "10.0.0.0/8")
    assert ask(server, "/health", X_Forwarded_For="203.0.113.1").refusal == (403, "ERR4008")


@pytest.mark.spec("operations-08")
def test_the_servers_proxies_are_the_planes_where_it_names_none(serve: Serve) -> None:
    server = serve(*FREE, "--ops-allowlist", "203.0.113.0/24", "--trusted-proxies", "localhost")
    assert ask(server, "/health", X_Forwarded_For="203.0.113.1").status == 200


@pytest.mark.spec("operations-10", "operations-14", "operations-16")
def test_the_token_opens_what_is_to_be_observed(serve: Serve) -> None:
    server = serve(*FREE, environment={"STT_OBSERVABILITY_TOKEN": TOKEN})
    before = (
        ask(server, "/metrics.json", Authorization=f"Bearer {TOKEN}").told["error_counts"].get("UNAUTHENTICATED", 0)
    )
    for path in ("/metrics", "/metrics.json", "/system", "/health"):
        assert ask(server, path).refusal == (401, "ERR4006")
        assert ask(server, path, Authorization="Bearer wrong").refusal == (401, "ERR4006")
        assert ask(server, path, Authorization=f"Basic {TOKEN}").refusal == (401, "ERR4006")
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert ask(server, path, Authorization=f"{scheme} {TOKEN}").status == 200
    after = ask(server, "/metrics.json", Authorization=f"Bearer {TOKEN}").told["error_counts"]["UNAUTHENTICATED"]
    assert after - before == 12


@pytest.mark.spec("operations-13", "operations-14")
def test_requests_that_make_no_sense_are_errors_of_the_same_shape(server: RunningServer) -> None:
    assert ask(server, "/nothing").refusal == (404, "ERR4000")
    assert ask(server, "/health", {}).refusal == (405, "ERR4000")
    assert ask(server, "/docs").refusal == (404, "ERR4000")
    assert ask(server, "/metrics.json").told["error_counts"]["NOT_FOUND"] >= 2


# ---- health


@pytest.mark.spec("operations-15", "operations-20")
def test_health_tells_of_the_models(server: RunningServer) -> None:
    answer = ask(server, "/health")
    told = answer.told
    assert (answer.status, told["status"]) == (200, "ok")
    assert set(told) >= DETAILS
    assert (told["model_pool_healthy"], told["models_loaded"], told["model_count"]) == (True, True, 1)
    assert (told["model_worker_total"], told["model_worker_shutdown"]) == (2000, 0)
    assert (told["grpc_running"], told["grpc_enabled"]) == (False, False)


@pytest.mark.spec("operations-17")
@pytest.mark.parametrize(
    "switch",
    [
        {"STT_PUBLIC_HEALTH": "1"},
        {"STT_PUBLIC_HEALTH": "minimal"},
        {"STT_HEALTH_DETAIL_MODE": "token"},
        {"STT_HEALTH_DETAIL_MODE": "Yes"},
    ],
    ids=str,
)
def test_minimal_health_is_for_everybody_and_details_for_who_has_the_token(
    serve: Serve, switch: dict[str, str]
) -> None:
    server = serve(*FREE, environment={"STT_OBSERVABILITY_TOKEN": TOKEN} | switch)
    assert (ask(server, "/health").status, ask(server, "/health").told) == (200, {"status": "ok"})
    assert ask(server, "/health", Authorization="Bearer wrong").told == {"status": "ok"}
    assert set(ask(server, "/health", Authorization=f"Bearer {TOKEN}").told) >= DETAILS
    assert ask(server, "/metrics").refusal == (401, "ERR4006"), "the rest is as closed as before"


@pytest.mark.spec("operations-15", "operations-17", "operations-18")
@pytest.mark.parametrize(
    ("environment", "status"), [({}, 500), ({"STT_PUBLIC_HEALTH": "1"}, 503)], ids=["normal", "minimal"]
)
async def test_while_the_server_drains_it_is_unhealthy(
    own_server: Serve, environment: dict[str, str], status: int
) -> None:
    server = own_server(*FREE, environment=environment)
    async with yap(server) as client:
        await client.start()
        await client.append(sentence("under", "way"))
        await client.receive()
        server.signal(signal.SIGTERM)
        await until(lambda: ask(server, "/health").status == status, "health is bad")
        assert ask(server, "/health").told["status"] == "error"
        await client.finish()
        await client.receive_until("done")


@pytest.mark.spec("operations-19")
async def test_engines_that_fail_most_utterances_are_unhealthy_until_the_window_is_over(serve: Serve) -> None:
    script = '{"faults": [{"at": 0.1}]}'
    server = serve(*FREE, "--script", script, "--health-min-events", "3", "--health-window-seconds", "6")
    async with yap(server) as client:
        for number in range(3):
            assert ask(server, "/health").status == 200, "too few to say anything"
            await client.start(f"r{number}")
            await client.append(sentence("lost"), f"r{number}")
            await client.error()
    bad = ask(server, "/health")
    assert (bad.status, bad.told["model_pool_healthy"]) == (500, False)
    assert ask(server, "/metrics.json").told["error_counts"]["INTERNAL"] == 3
    await until(lambda: ask(server, "/health").status == 200, "what failed is long ago")


# ---- metrics and the machine


@pytest.mark.spec("operations-21", "operations-23")
def test_all_figures_are_there_from_the_start(serve: Serve) -> None:
    told = ask(serve(*FREE, "--log-level", "warning"), "/metrics.json").told
    wanted = {f"{name}_{part}" for name in SPREADS for part in ("total", "count", "max")}
    wanted |= {"active_sessions", "decode_cancelled", "decode_orphaned", "vad_triggers_total", "active_vad_utterances"}
    wanted |= {"rtf_avg", "decode_queue_depth", "vad_triggers"}
    assert set(told) >= wanted | {"error_counts"}
    assert {told[name] for name in wanted} == {0}
    assert told["error_counts"] == {}
    assert "active_sessions_by_api" not in told


@pytest.mark.spec("operations-23")
def test_sessions_by_key_are_told_where_the_operator_wants_them(serve: Serve) -> None:
    assert ask(serve(*FREE, "--ops-show-api-keys"), "/metrics.json").told["active_sessions_by_api"] == {}


@pytest.mark.spec("operations-22")
async def test_figures_count_the_streams_of_every_surface(serve: Serve) -> None:
    server = serve(*FREE, "--script", '{"final_latency_ms": 250}')
    async with yap(server) as envelope, realtime(server) as plain:
        await plain.silent()
        assert ask(server, "/metrics.json").told["active_sessions"] == 2
        await envelope.say(sentence("one", "two"))
        await plain.say(sentence("three"))
        await envelope.start("r2")
        await envelope.append(sentence("four"), "r2")
        await envelope.finish("r2")
        await until(lambda: ask(server, "/metrics.json").told["decode_queue_depth"] == 1, "a decode is under way")
        await envelope.heard("r2")
    told = ask(server, "/metrics.json").told
    assert told["decode_latency_count"] == 3
    assert told["decode_latency_total"] >= 3 * 0.25
    assert 0.25 <= told["decode_latency_max"] <= told["decode_latency_total"]
    assert told["rtf_count"] == 3
    assert told["rtf_total"] == pytest.approx(3 * told["rtf_avg"])
    assert told["rtf_max"] >= 0.25 / 0.4
    assert told["decode_queue_depth"] == 0
    await until(lambda: ask(server, "/metrics.json").told["active_sessions"] == 0, "both have gone")


@pytest.mark.spec("operations-15", "operations-20", "operations-22", "operations-23")
async def test_grpc_and_the_other_surfaces_are_counted_together(serve: Serve) -> None:
    server = serve(*FREE, *OPEN, "--ops-show-api-keys")
    told = ask(server, "/health").told
    assert (told["status"], told["grpc_running"], told["grpc_enabled"]) == ("ok", True, True)
    async with stub(server) as backend, yap(server) as envelope:
        session_id, _ = await create(backend, attributes={"api_key": "somebody"})
        await envelope.say(sentence("one"))
        told = ask(server, "/metrics.json").told
        assert told["active_sessions"] == 2
        assert told["active_sessions_by_api"] == {"somebody": 1}
        assert ask(server, "/health").told["active_sessions"] == 2
        ended = await stream(backend, chunks(sentence("two"), session_id))
        assert ended.finals == ["two"]
        assert await refusal(create(backend, "")) == ("INVALID_ARGUMENT", "ERR1001")
    told = ask(server, "/metrics.json").told
    assert told["decode_latency_count"] == 1 + len(ended.results), "gRPC counts each of its results"
    assert told["decode_response_emit_count"] == 1 + len(ended.results)
    assert told["error_counts"]["INVALID_ARGUMENT"] == 1
    await until(lambda: ask(server, "/metrics.json").told["active_sessions"] == 0, "both have gone")
    assert ask(server, "/metrics.json").told["active_sessions_by_api"] == {}


@pytest.mark.spec("operations-22")
async def test_a_decode_whose_client_has_gone_is_cancelled(serve: Serve) -> None:
    server = serve(*FREE, "--script", '{"final_latency_ms": 60000}')
    async with yap(server) as client:
        await client.start()
        await client.append(sentence("gone"))
        await client.finish()
        await client.receive()
        await until(lambda: ask(server, "/metrics.json").told["decode_queue_depth"] == 1, "a decode is under way")
    await until(lambda: ask(server, "/metrics.json").told["decode_cancelled"] == 1, "it was given up")
    assert ask(server, "/metrics.json").told["decode_queue_depth"] == 0


@pytest.mark.spec("operations-24", "operations-25")
async def test_metrics_are_prometheus_text_with_both_kinds_of_names(server: RunningServer) -> None:
    ask(server, "/nothing")
    async with yap(server) as client:
        await client.synchronise()
        answer = ask(server, "/metrics")
    text = answer.body.decode()
    assert answer.type.startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert "stt_active_sessions 1.0\n" in text
    assert families["stt_active_sessions"].type == "gauge"
    assert families["stt_active_sessions"].documentation
    assert read_metric(text, "stt_error_counts_NOT_FOUND", {}) >= 1
    assert "stt_error_counts" not in families
    assert families["earmark_connections"].type == "counter"
    assert read_metric(text, "earmark_model", {"model": "default", "figure": "busy_slots"}) == 0
    assert 'earmark_model{figure="clients",model="default"} 0.0\n' in text


@pytest.mark.spec("operations-26", "operations-27")
def test_the_machine_is_told_of(server: RunningServer) -> None:
    told = ask(server, "/system").told
    assert told["process"]["pid"] == server.process.pid
    resident = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096
    assert told["process"]["rss_bytes"] == pytest.approx(resident, rel=0.3)
    assert told["process"]["threads"] >= 1
    assert told["process"]["vms_bytes"] > told["process"]["rss_bytes"]
    assert told["process"]["cpu_percent"] >= 0
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert told["platform"]
    assert told["cpu_count"] >= 1
    assert len(told["load_avg"]) == 3
    assert 0 < told["system"]["memory_available_bytes"] <= told["system"]["memory_total_bytes"]
    assert 0 < told["system"]["memory_percent"] < 100
    assert abs(told["timestamp"] - time.time()) < 5
    assert told["gpus"] == []


@pytest.mark.spec("operations-27")
def test_gpus_are_told_of_on_demand(serve: Serve) -> None:
    found = ask(serve(*FREE, environment={"STT_ENABLE_GPU_METRICS": "1"}), "/system").told["gpus"]
    there = subprocess.run(
        ["bash", "-c", "ls /dev/nvidia[0-9]* 2>/dev/null | wc -l"], capture_output=True, text=True, check=True
    )
    assert len(found) == int(there.stdout)
    for index, gpu in enumerate(found):
        assert gpu["index"] == index
        assert set(gpu) == {
            *("index", "name", "utilization_gpu", "utilization_memory"),
            *("memory_total_mib", "memory_used_mib", "temperature_gpu"),
        }
        assert 0 <= gpu["memory_used_mib"] <= gpu["memory_total_mib"]
