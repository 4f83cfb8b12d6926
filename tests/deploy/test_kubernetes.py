"""The Kubernetes manifests hold against the published schemas, each other, and a real server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.files import DEPLOY, read
from tests.end_to_end.running_server import RunningServer, clean_environment, command

FOLDER = DEPLOY / "kubernetes"
MANIFESTS = [*sorted(FOLDER.glob("base/*.yaml")), FOLDER / "gpu/weights.yaml"]
MANIFESTS = [path for path in MANIFESTS if path.name != "kustomization.yaml"]
VERSIONS = ["1.30", "1.37"]
kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


def base(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = read(f"kubernetes/base/{name}.yaml")
    return manifest


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = base("deployment")["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    [only] = pod()["containers"]
    one: dict[str, Any] = only
    return one


def built(overlay: str) -> list[dict[str, Any]]:
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER / overlay)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_what_its_schema_says(path: Path, version: str) -> None:
    for manifest in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schemas_refuse_what_they_should() -> None:
    wrong = base("deployment")
    wrong["spec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSecond"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


@kubectl
@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_what_kustomize_makes_is_valid_too(overlay: str) -> None:
    manifests = built(overlay)
    for manifest in manifests:
        kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
    kinds = {manifest["kind"] for manifest in manifests}
    assert kinds >= {"Deployment", "Service", "ConfigMap", "HorizontalPodAutoscaler", "PodDisruptionBudget"}


@kubectl
def test_the_gpu_overlay_adds_gpu_weights_and_engine_and_loses_nothing() -> None:
    by_kind = {manifest["kind"]: manifest for manifest in built("gpu")}
    spec = by_kind["Deployment"]["spec"]["template"]["spec"]
    [one] = spec["containers"]
    assert one["image"] == "earmark:cuda"
    assert one["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {mount["name"]: mount["mountPath"] for mount in one["volumeMounts"]}
    assert mounts == {"scratch": "/tmp", "weights": "/models", "shared-memory": "/dev/shm"}
    assert {volume["name"] for volume in spec["volumes"]} == set(mounts)
    settings = by_kind["ConfigMap"]["data"]
    assert settings["EARMARK_ENGINE"] == "vllm"
    assert settings["EARMARK_DRAIN_SECONDS"] == base("configmap")["data"]["EARMARK_DRAIN_SECONDS"]
    assert settings["VOXTRAL_MODEL_DIR"].startswith(mounts["weights"] + "/")
    claims = [v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [by_kind["PersistentVolumeClaim"]["metadata"]["name"]]


def test_selectors_match_the_pods_labels() -> None:
    labels = base("deployment")["spec"]["template"]["metadata"]["labels"].items()
    assert base("deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    assert base("service")["spec"]["selector"].items() <= labels
    assert base("disruption")["spec"]["selector"]["matchLabels"].items() <= labels
    for constraint in pod()["topologySpreadConstraints"]:
        assert constraint["labelSelector"]["matchLabels"].items() <= labels


def test_the_service_leads_to_ports_of_the_container() -> None:
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"http": 8000, "grpc": 50051}
    for port in base("service")["spec"]["ports"]:
        assert ports[port["targetPort"]] == port["port"]


def test_the_pod_takes_its_settings_from_what_is_there() -> None:
    sources = container()["envFrom"]
    assert sources[0]["configMapRef"]["name"] == base("configmap")["metadata"]["name"]
    assert sources[1]["secretRef"]["name"] == "earmark-keys"
    assert not [name for name in base("configmap")["data"] if re.search("KEY|TOKEN|SECRET", name)]


async def test_probes_ask_where_a_server_answers(server: RunningServer) -> None:
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container()[kind]["httpGet"]
        assert probe["port"] == "http"
        assert server.get(probe["path"]) == (200, b'{"status":"ok"}')
    annotations = base("deployment")["spec"]["template"]["metadata"]["annotations"]
    assert server.get(annotations["prometheus.io/path"])[0] == 200


def test_settings_are_such_as_the_server_knows() -> None:
    known = subprocess.run(
        command("--help"), capture_output=True, text=True, check=True, env=clean_environment({"COLUMNS": "400"})
    ).stdout
    for name in (*base("configmap")["data"], *read("kubernetes/gpu/settings.yaml")["data"]):
        assert re.search(rf"\[(\w+, )*{name}[\],]", known), name


def test_the_pod_has_time_to_drain() -> None:
    drain = float(base("configmap")["data"]["EARMARK_DRAIN_SECONDS"])
    stop = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[0] == "sleep"
    assert pod()["terminationGracePeriodSeconds"] >= float(stop[1]) + drain + 10


def test_the_start_may_take_as_long_as_fetching_the_weights() -> None:
    probe = container()["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 600


def test_the_pod_may_do_nothing_that_it_need_not() -> None:
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert pod()["securityContext"]["runAsUser"] == 10001
    assert pod()["automountServiceAccountToken"] is False
    assert container()["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_the_autoscaler_scales_the_deployment_by_a_metric_that_is_made_known() -> None:
    scaler = base("autoscaler")["spec"]
    deployment = base("deployment")
    target = scaler["scaleTargetRef"]
    assert (target["kind"], target["apiVersion"], target["name"]) == (
        deployment["kind"],
        deployment["apiVersion"],
        deployment["metadata"]["name"],
    )
    [metric] = scaler["metrics"]
    [rule] = read("kubernetes/prometheus-adapter.yaml")["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"] == "earmark_connections_active"
    assert re.search(rule["name"]["matches"], "earmark_connections_active")
    assert scaler["minReplicas"] > base("disruption")["spec"]["maxUnavailable"]


def comments(path: Path) -> Iterator[str]:
    return (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))


def test_files_that_comments_name_are_there() -> None:
    for path in FOLDER.rglob("*.yaml"):
        for line in comments(path):
            for named in re.findall(r"deploy/[\w./-]+", line):
                assert (DEPLOY.parent / named).exists(), f"{path.name}: {named}"
