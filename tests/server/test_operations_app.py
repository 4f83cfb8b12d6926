"""The operations plane in this process: what a test cannot change from outside a running server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from server.app import build_loader, build_service
from server.config import Settings, read
from server.core.rpc_figures import RpcFigures
from server.endpoints.operations import HealthRules, flattened
from server.engines.scripted import ScriptedEngine, read_script
from server.service import Service
from server.surfaces.operations import operations_app
from stt_server.translation import translate


class Mortal(ScriptedEngine):
    """An engine that can die, as those with processes do."""

    def __init__(self) -> None:
        super().__init__(read_script(""), 0.48)
        self.failed = 0.0

    def metrics(self) -> dict[str, float]:
        return super().metrics() | {"failed": self.failed}


def settings(*flags: str) -> Settings:
    return read(["--engine", "scripted", "--no-vad", "--ops-rate", "0", *flags], {})


@asynccontextmanager
async def plane(
    settings: Settings, service: Service, environment: dict[str, str] | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    loader, plans = build_loader(settings, service)
    app = operations_app(settings, service, loader, plans, {} if environment is None else environment)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plane") as client:
        yield client


@pytest.mark.spec("operations-11")
async def test_tokens_and_switches_are_looked_up_at_every_request() -> None:
    environment: dict[str, str] = {}
    service = build_service(settings(), Mortal())
    async with plane(settings(), service, environment) as client:
        assert (await client.get("/metrics")).status_code == 200
        environment["STT_OBSERVABILITY_TOKEN"] = "one"
        assert (await client.get("/metrics")).json()["code"] == "ERR4006"
        environment["STT_OBSERVABILITY_TOKEN"] = "two"
        assert (await client.get("/metrics", headers={"Authorization": "Bearer one"})).status_code == 401
        assert (await client.get("/metrics", headers={"Authorization": "Bearer two"})).status_code == 200
        assert (await client.get("/health")).status_code == 401
        environment["STT_PUBLIC_HEALTH"] = "on"
        assert (await client.get("/health")).json() == {"status": "ok"}
        assert (await client.get("/admin/list_models")).json()["code"] == "ERR4001"
        environment |= {"STT_ADMIN_ENABLED": "true", "STT_ADMIN_TOKEN": " three "}
        assert (await client.get("/admin/list_models")).json()["code"] == "ERR4004"
        good = await client.get("/admin/list_models", headers={"Authorization": "bearer three"})
        assert good.json() == {"models": ["default"]}
        body = {"model_id": "x", "model_path": "/somewhere/script.json"}
        refused = await client.post("/admin/load_model", headers={"Authorization": "Bearer three"}, json=body)
        assert refused.json()["code"] == "ERR4005"
        environment["STT_ADMIN_ALLOW_MODEL_PATH"] = "on"
        accepted = await client.post("/admin/load_model", headers={"Authorization": "Bearer three"}, json=body)
        assert accepted.json()["status"] == "loading_started"
        del environment["STT_OBSERVABILITY_TOKEN"]
        assert (await client.get("/metrics")).status_code == 200


@pytest.mark.spec("operations-28")
@pytest.mark.parametrize("host", ["plane/x", "plane/metrics?", "plane#", "x@plane"])
async def test_no_name_of_a_host_leads_past_the_admin_token(host: str) -> None:
    service = build_service(settings(), Mortal())
    async with plane(settings(), service, {"STT_ADMIN_ENABLED": "1", "STT_ADMIN_TOKEN": "three"}) as client:
        for path in ("/admin/list_models", "/%61dmin/list_models", "/admin/list_models/"):
            answer = await client.get(path, headers={"Host": host})
            assert (answer.status_code, answer.json()["code"]) == (401, "ERR4004")


@pytest.mark.spec("operations-30")
async def test_at_most_sixteen_models_wait_to_be_loaded(tmp_path: Path) -> None:
    profiles = tmp_path / "profiles.yaml"
    mute = socket.create_server(("127.0.0.1", 0))  # takes connections and never says a word
    port = mute.getsockname()[1]
    profiles.write_text(
        f"held: {{backend: vllm-remote, backends: 'ws://127.0.0.1:{port}', backend_start_seconds: 60}}\n"
    )
    chosen = settings("--model-profiles", str(profiles))
    service = build_service(chosen, Mortal())
    loader, plans = build_loader(chosen, service)
    app = operations_app(chosen, service, loader, plans, {"STT_ADMIN_ENABLED": "1", "STT_ADMIN_TOKEN": "three"})
    headers = {"Authorization": "Bearer three"}
    with mute:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://plane") as client:

            async def load(model_id: str) -> httpx.Response:
                return await client.post(
                    "/admin/load_model", headers=headers, json={"model_id": model_id, "profile_id": "held"}
                )

            assert (await load("first")).json()["status"] == "loading_started"
            while (job := loader.job("first")) is None or job.status != "running":  # noqa: ASYNC110 - as an operator asks
                await asyncio.sleep(0)
            assert [(await load(f"m{number}")).status_code for number in range(16)] == [200] * 16
            refused = await load("one too many")
            assert (refused.status_code, refused.json()["code"]) == (429, "ERR4007")
            await loader.stop()


@pytest.mark.spec("operations-20")
async def test_an_engine_that_has_died_is_unhealthy() -> None:
    first, second = Mortal(), Mortal()
    service = build_service(settings(), first)
    await service.models.load("other", second)
    async with plane(settings(), service) as client:
        assert (await client.get("/health")).json()["model_worker_total"] == 4000
        second.failed = 1.0
        answer = await client.get("/health")
        told = answer.json()
        assert (answer.status_code, told["status"], told["model_pool_healthy"]) == (500, "error", False)
        assert (told["model_worker_total"], told["model_worker_shutdown"]) == (4000, 2000)


@pytest.mark.spec("operations-20")
async def test_health_asks_for_grpc_where_it_was_asked_for() -> None:
    chosen = settings("--surfaces", "yap,grpc")
    service = build_service(chosen, Mortal())
    async with plane(chosen, service) as client:
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()["grpc_running"], answer.json()["model_pool_healthy"]) == (
            500,
            False,
            True,
        )
        service.serving.add("grpc")
        answer = await client.get("/health")
        assert (answer.status_code, answer.json()["grpc_running"]) == (200, True)


@pytest.mark.spec("operations-23", "operations-24")
async def test_sessions_by_api_key_are_told_on_demand_alone() -> None:
    service = build_service(settings(), Mortal())
    for key in ("key_a", "key-b"):
        service.figures.session_opened(key)
    async with plane(settings(), service) as closed, plane(settings("--ops-show-api-keys"), service) as open_:
        assert (await closed.get("/metrics.json")).json()["active_sessions"] == 2
        assert "key_a" not in (await closed.get("/metrics.json")).text + (await closed.get("/metrics")).text
        assert (await open_.get("/metrics.json")).json()["active_sessions_by_api"] == {"key_a": 1, "key-b": 1}
        text = (await open_.get("/metrics")).text
        assert "\nstt_active_sessions_by_api_key_a 1.0\n" in text
        assert "\nstt_active_sessions_by_api_key_b 1.0\n" in text


@pytest.mark.spec("operations-24")
def test_numbers_are_flattened_as_the_gauges_that_dashboards_look_for() -> None:
    told = flattened(
        {
            "active_sessions": 2,
            "decode_latency_max": 1.5,
            "active_sessions_by_api": {"key_a": 1},
            "error_counts": {"INVALID_ARGUMENT": 3, "a b": 1, "a-b": 2},
            "name": "not a number",
            "draining": True,
        }
    )
    assert told.splitlines()[:3] == [
        "# HELP stt_active_sessions active sessions",
        "# TYPE stt_active_sessions gauge",
        "stt_active_sessions 2.0",
    ]
    assert [line for line in told.splitlines() if not line.startswith("#")] == [
        "stt_active_sessions 2.0",
        "stt_decode_latency_max 1.5",
        "stt_active_sessions_by_api_key_a 1.0",
        "stt_error_counts_INVALID_ARGUMENT 3.0",
        "stt_error_counts_a_b 3.0",
        "stt_draining 1.0",
    ]
    assert told.count("# TYPE") == 6


@pytest.mark.spec("operations-19")
@pytest.mark.parametrize(
    ("successes", "timeouts", "failures", "well"),
    [
        (0, 0, 0, True),
        (0, 4, 0, True),  # too few to say
        (5, 0, 0, True),
        (5, 5, 0, False),  # half of them
        (6, 5, 0, True),
        (4, 0, 4, True),
        (4, 0, 5, False),
        (0, 0, 5, False),
        (100, 0, 0, True),
    ],
)
def test_health_is_a_matter_of_shares(successes: int, timeouts: int, failures: int, well: bool) -> None:
    figures = RpcFigures()
    for _ in range(successes):
        figures.outcome("success", 100.0)
    for _ in range(timeouts):
        figures.outcome("timeout", 100.0)
    for _ in range(failures):
        figures.outcome("failure", 100.0)
    assert HealthRules().hold(figures, 130.0) is well
    assert HealthRules().hold(figures, 160.1), "that was more than a minute ago"


@pytest.mark.spec("operations-52")
def test_the_environment_wins_over_the_files_of_the_grpc_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("server: {http_rate_limit_rps: 7, http_rate_limit_burst: 8, http_trusted_proxies: [10.0.0.0/8]}\n")
    told = translate(["--config", str(file), "--engine", "scripted"], {}).settings
    assert (told.ops_rate, told.ops_burst, told.ops_trusted_proxies) == (7, 8, ["10.0.0.0/8"])
    variables = {
        "STT_HTTP_RATE_LIMIT_RPS": "1",
        "STT_HTTP_RATE_LIMIT_BURST": "2",
        "STT_HTTP_TRUSTED_PROXIES": "127.0.0.1",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    told = translate(["--config", str(file), "--engine", "scripted"], variables).settings
    assert (told.ops_rate, told.ops_burst, told.ops_trusted_proxies) == (1, 2, ["127.0.0.1"])
