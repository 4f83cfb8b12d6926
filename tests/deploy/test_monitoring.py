"""Dashboard, alerts and Prometheus' configuration hold against what a real server says at ``/metrics``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.files import DEPLOY, ROOT, alerts, dashboard, dashboard_expressions, read, selectors
from tests.end_to_end.clients import realtime, yap
from tests.end_to_end.running_server import RunningServer
from tests.end_to_end.speech import sentence

OF_PROMETHEUS = {"instance", "job", "le"}
OF_OTHERS = re.compile(r"up|DCGM_FI_DEV_(GPU_UTIL|FB_USED|POWER_USAGE)")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, of Prometheus, is not installed")

EXPRESSIONS = [
    *((f"panel {title}", expression) for title, expression in dashboard_expressions()),
    *((f"alert {rule['alert']}", rule["expr"]) for rule in alerts()),
    ("variable surface", "sum(earmark_connections_active) by (surface)"),
    ("autoscaler", "earmark_connections_active"),
]


async def busy(server: RunningServer) -> dict[str, set[str]]:
    """Every series of a server to which a bit of everything has happened, with the names of its labels."""
    async with yap(server) as client:
        await client.say(sentence("one", "two"))
        await client.send("mystery")
        await client.error()
    async with realtime(server) as client:
        await client.say(sentence("three"))
    async with yap(server, path="/api/asr-streaming?api_key=wrong", greeted=False) as stranger:
        await stranger.closed()
    series: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(server.get("/metrics")[1].decode()):
        endings = {"histogram": ("_bucket", "_count", "_sum"), "counter": ("_total",)}.get(family.type, ("",))
        for ending in endings:
            series.setdefault(family.name + ending, set())
        for sample in family.samples:
            series.setdefault(sample.name, set()).update(sample.labels)
    return series


async def test_every_series_and_label_that_is_drawn_or_watched_exists(server: RunningServer) -> None:
    series = await busy(server)
    assert len(EXPRESSIONS) > 30
    for where, expression in EXPRESSIONS:
        named = selectors(expression)
        assert named, f"{where}: no series found in {expression}"
        for name, labels in named:
            if OF_OTHERS.fullmatch(name):
                continue
            assert name in series, f"{where}: the server has no {name}"
            if series[name]:  # what has not happened yet has no labels yet
                unknown = set(labels) - series[name] - OF_PROMETHEUS
                assert not unknown, f"{where}: {name} has no label {unknown}"


def test_every_figure_of_an_engine_that_is_named_is_told_by_one() -> None:
    engines = "".join(file.read_text() for file in (ROOT / "server/engines").rglob("engine.py"))
    engines += (ROOT / "server/engines/scripted.py").read_text()
    figures = {
        labels["figure"]
        for _, expression in EXPRESSIONS
        for name, labels in selectors(expression)
        if name == "earmark_engine"
    }
    assert figures == {"busy_slots", "waiting", "failed", "kv_cache_usage"}
    for figure in figures:
        assert f'"{figure}"' in engines


def test_selectors_are_found() -> None:
    """The instrument of the tests above."""
    expression = (
        'histogram_quantile(0.95, sum by (surface, le) (rate(a_bucket{surface=~"x|y"}[5m]))) > 2 and b{c="d"} > 1'
    )
    assert selectors(expression) == [
        ("a_bucket", {"surface": "x|y", "le": ""}),
        ("b", {"surface": "", "le": "", "c": "d"}),
    ]


@pytest.mark.parametrize(
    "subject",
    [
        "connections_active",
        "first_token",
        "finalisation",
        "audio_lag",
        "dropped",
        "errors",
        "busy_slots",
        "loop_delay",
        "GPU",
    ],
)
def test_the_dashboard_shows(subject: str) -> None:
    assert any(subject in expression for _, expression in dashboard_expressions())


def test_latencies_are_shown_by_surface_with_three_quantiles() -> None:
    for metric in ("earmark_first_token_seconds", "earmark_finalisation_seconds"):
        drawn = [e for _, e in dashboard_expressions() if metric in e and "by (surface, le)" in e]
        assert {re.findall(r"quantile\(([\d.]+)", e)[0] for e in drawn} == {"0.5", "0.95", "0.99"}


def test_panels_lie_side_by_side_and_not_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_dashboard_asks_the_data_source_that_is_provisioned() -> None:
    [source] = read("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    asked = set(re.findall(r'"uid": "(\w+)"', json.dumps(dashboard()["panels"])))
    assert asked == {source["uid"]}
    assert source["url"] == "http://prometheus:9090"
    [provider] = read("grafana/provisioning/dashboards/earmark.yml")["providers"]
    mounts = read("compose.yaml")["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


@promtool
def test_prometheus_accepts_its_configuration_and_the_alerts() -> None:
    checked = subprocess.run(
        ["promtool", "check", "config", str(DEPLOY / "prometheus/prometheus.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(alerts())} rules found" in checked.stdout


@promtool
def test_prometheus_accepts_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "5m", "$instance": ".*", "$surface": ".*"}
    rules = []
    for number, (_, expression) in enumerate(dashboard_expressions()):
        for name, value in variables.items():
            expression = expression.replace(name, value)
        rules.append({"record": f"panel:{number}", "expr": expression})
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
def test_alerts_fire_when_they_should_and_only_then() -> None:
    checked = subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).parent / "alerts.test.yml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_alerts_say_what_is_wrong() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"]
        assert rule["for"]


async def test_prometheus_scrapes_where_the_server_answers(server: RunningServer) -> None:
    jobs = {job["job_name"]: job for job in read("prometheus/prometheus.yml")["scrape_configs"]}
    assert server.get(jobs["earmark"]["metrics_path"])[0] == 200
    [target] = jobs["earmark"]["static_configs"][0]["targets"]
    assert target == "server:8000"
    services = {**read("compose.yaml")["services"], **read("compose.gpu.yaml")["services"]}
    assert {"server", jobs["gpu"]["static_configs"][0]["targets"][0].partition(":")[0]} <= set(services)
