"""Dockerfile and compose files, without a daemon: what a linter says, what they promise, and that a real server keeps it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.deploy.dockerfile import stages
from tests.deploy.files import DEPLOY, ROOT, read
from tests.end_to_end.running_server import RunningServer, clean_environment

DOCKERFILE = DEPLOY / "Dockerfile"
STAGES = stages(DOCKERFILE)
IMAGES = ["cpu", "cuda"]
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is there for Linux on x86-64 alone")
def test_hadolint_has_nothing_to_say() -> None:
    checked = subprocess.run([HADOLINT, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint is there for Linux on x86-64 alone")
def test_hadolint_would_have_something_to_say(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN apt-get install curl\n")
    checked = subprocess.run([HADOLINT, str(bad)], capture_output=True, text=True, check=False)
    assert checked.returncode == 1
    assert "DL3006" in checked.stdout


def test_bases_are_pinned_to_a_release() -> None:
    for stage in STAGES.values():
        if stage.base not in STAGES:
            assert re.fullmatch(r"[\w./-]+:[\d.]+-[\w.-]+", stage.base), stage.base


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_nobody_in_particular(image: str) -> None:
    stage = STAGES[image]
    words = [word for word, _ in stage.instructions]
    assert stage.all("USER") == ["10001:10001"]
    assert "RUN" not in words[words.index("USER") :]
    assert any("useradd --uid 10001" in rest for rest in stage.all("RUN"))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_opens_the_three_ports_and_ends_by_term(image: str) -> None:
    assert STAGES[image].all("EXPOSE") == ["8000 8001 50051"]
    assert STAGES[image].all("STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(STAGES[image].all("ENTRYPOINT")[0]) == ["python", "-m", "server"]  # no shell that would keep TERM


def test_nothing_is_added_from_elsewhere_and_what_is_copied_is_there() -> None:
    for stage in STAGES.values():
        assert not stage.all("ADD")
        for rest in stage.all("COPY"):
            if "--from=" in rest:
                assert re.search(r"--from=([\w-]+)", rest)[1] in STAGES  # type: ignore[index]
                continue
            for path in rest.split()[:-1]:
                assert (ROOT / path).exists(), path


def test_the_context_holds_what_is_copied_and_neither_weights_nor_runs_nor_keys() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {path for rest in STAGES["source"].all("COPY") for path in rest.split()[:-1]}
    assert copied == allowed
    assert not allowed & {"models", "datasets", "reports", "."}
    assert "**/*.safetensors" in lines


def test_packages_that_the_server_imports_are_in_the_image() -> None:
    """``server`` runs from the copied folders alone: no import of what stays outside, harness and training for two."""
    copied = [
        ROOT / path for rest in STAGES["source"].all("COPY") for path in rest.split()[:-1] if (ROOT / path).is_dir()
    ]
    ours = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    inside = {path.name for path in copied}
    for package in copied:
        for file in package.rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE))
            assert not imported & (ours - inside), file


def healthcheck(image: str) -> list[str]:
    [rest] = STAGES[image].all("HEALTHCHECK")
    argv: list[str] = json.loads(rest.partition("CMD ")[2])
    return argv


def check(argv: list[str], port: int) -> int:
    """Run a health check as a container would, against this port."""
    assert argv[0] == "python"
    environment = clean_environment({"SERVER_PORT": str(port)})
    done = subprocess.run([sys.executable, *argv[1:]], env=environment, capture_output=True, timeout=30, check=False)
    return done.returncode


@pytest.mark.parametrize("image", IMAGES)
def test_the_health_check_passes_on_a_server_and_fails_without(server: RunningServer, image: str) -> None:
    assert check(healthcheck(image), server.port) == 0
    assert check(healthcheck(image), 1) != 0


def test_the_cuda_image_asks_for_the_cuda_that_vllm_is_built_for() -> None:
    assert STAGES["cuda"].base.startswith("nvidia/cuda:13.")
    extras = (ROOT / "pyproject.toml").read_text()
    assert "vllm==0.32.*" in extras
    assert any("[server,vllm]" in rest for rest in STAGES["cuda"].all("RUN"))


# ---- compose


def test_the_composed_server_is_one_of_the_images_on_its_ports() -> None:
    server = read("compose.yaml")["services"]["server"]
    assert server["build"]["target"] in STAGES
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DOCKERFILE
    assert server["ports"] == ["8000:8000", "50051:50051"]
    assert read("compose.gpu.yaml")["services"]["server"]["build"]["target"] in STAGES


def test_only_the_server_is_open_to_the_network() -> None:
    for name, service in read("compose.yaml")["services"].items():
        for port in service["ports"]:
            assert name == "server" or port.startswith("127.0.0.1:"), port


def test_images_of_others_are_pinned() -> None:
    services = {**read("compose.gpu.yaml")["services"], **read("compose.yaml")["services"]}
    for name, service in services.items():
        if name != "server":
            assert re.fullmatch(r"[\w./-]+:v?\d[\w.-]*", service["image"]), service["image"]


def test_the_composed_health_check_passes_on_a_server(server: RunningServer) -> None:
    test = read("compose.yaml")["services"]["server"]["healthcheck"]["test"]
    assert test[0] == "CMD"
    argv = [part.replace(":8000/", f":{server.port}/") for part in test[1:]]
    assert check(argv, server.port) == 0


def test_files_that_are_mounted_are_there() -> None:
    for service in read("compose.yaml")["services"].values():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert not source.startswith(".") or (DEPLOY / source).exists(), source
            assert source.startswith(".") or source in read("compose.yaml")["volumes"]


def test_the_server_has_time_to_drain() -> None:
    server = read("compose.yaml")["services"]["server"]
    grace = float(server["stop_grace_period"].removesuffix("s"))
    assert grace >= float(server["environment"]["EARMARK_DRAIN_SECONDS"]) + 10


def test_the_key_has_to_be_given() -> None:
    assert read("compose.yaml")["services"]["server"]["environment"]["VOXTRAL_API_KEY"].startswith(
        "${VOXTRAL_API_KEY:?"
    )


def test_extras_of_the_images_exist() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    for image in ("cpu-build", "cuda"):
        for rest in STAGES[image].all("RUN"):
            for extras in re.findall(r"'\.\[([\w,]+)\]'", rest):
                for extra in extras.split(","):
                    assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra
