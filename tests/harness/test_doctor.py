"""``earmark doctor``: every line it can say, on real ports, files, limits and servers."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from harness import doctor
from harness.doctor import Gpu, Nvidia, broken_tensors
from tests.end_to_end.running_server import KEY, RunningServer, clean_environment
from tests.harness.lives import MAIN, Life, earmark

NANO = Path(__file__).parents[2] / "models" / "nano"
H200 = Gpu("NVIDIA H200", 141 << 30, (9, 0))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the server runs on POSIX systems")


def examined(folder: Path, *arguments: str, **settings: Any) -> tuple[int, dict[str, dict[str, str]]]:
    """Exit code and findings by check; of two with one name the worse."""
    done = earmark("doctor", "--json", *arguments, folder=folder, **settings)
    told = json.loads(done.stdout)
    assert told["ok"] == (done.returncode == 0) == all(one["verdict"] != "problem" for one in told["findings"])
    ranks = ["ok", "warning", "problem"]
    findings = sorted(told["findings"], key=lambda one: ranks.index(one["verdict"]))
    return done.returncode, {one["check"]: one for one in findings}


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that this process listens on."""
    with socket.create_server(("", 0)) as listener:
        port: int = listener.getsockname()[1]
        yield port


def test_every_line_fits_80_columns_and_says_what_to_do(tmp_path: Path, taken: int) -> None:
    done = earmark("doctor", folder=tmp_path, key=None, SERVER_PORT=str(taken))
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert all(cell_len(line.rstrip()) <= 80 for line in lines)
    at = next(number for number, line in enumerate(lines) if line.startswith(f"problem  port {taken}"))
    assert "→ end that program, or start the server with another --port" in " ".join(
        " ".join(lines[at : at + 5]).split()
    )
    assert lines[-1].startswith("1 problem, ")


@pytest.mark.parametrize(("version", "verdict"), [((3, 10, 9), "problem"), ((3, 11, 0), "ok"), ((3, 14, 1), "ok")])
def test_python(version: tuple[int, ...], verdict: str) -> None:
    assert doctor.python(version).verdict == verdict


def test_packages(tmp_path: Path) -> None:
    _, found = examined(tmp_path)
    assert found["server"]["verdict"] == found["harness"]["verdict"] == found["engines"]["verdict"] == "ok"
    assert "sphinx (5.1.1)" in found["engines"]["said"]
    lacking = doctor.extra("wandb", needed=False)
    if doctor.package_version("wandb") is None:
        assert (lacking.verdict, lacking.todo) == ("warning", "pip install 'earmark[wandb]'")


# ---- ports and keys


def test_a_taken_port_is_a_problem_and_names_who_has_it(tmp_path: Path, taken: int) -> None:
    status, found = examined(tmp_path, SERVER_PORT=str(taken))
    assert status == 1
    assert found[f"port {taken}"]["verdict"] == "problem"
    assert found[f"port {taken}"]["said"].startswith("taken by process ")


def test_a_free_port_is_none(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as listener:
        port = listener.getsockname()[1]
    assert examined(tmp_path, SERVER_PORT=str(port))[1][f"port {port}"]["verdict"] == "ok"


def test_a_port_that_our_own_server_has_is_no_problem(tmp_path: Path) -> None:
    life = Life(tmp_path / "state")
    try:
        life.start()
        port = life.url.rpartition(":")[2]
        _, found = examined(tmp_path, "--state", str(life.state.folder), SERVER_PORT=port)
        assert found[f"port {port}"]["verdict"] == "ok"
        assert f"process {life.pid}" in found[f"port {port}"]["said"]
    finally:
        life.end()


@pytest.mark.parametrize("name", ["VOXTRAL_API_KEY", "EARMARK_API_KEYS"])
def test_keys_are_told_by_the_name_of_their_variable_alone(tmp_path: Path, name: str) -> None:
    done = earmark("doctor", "--json", folder=tmp_path, key=None, **{name: "grey-owl"})
    [found] = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "keys"]
    assert (found["verdict"], found["said"]) == ("ok", f"from {name}")
    assert "grey-owl" not in done.stdout


def test_no_key_is_a_warning() -> None:
    assert doctor.keys({"VOXTRAL_API_KEY": " "}).verdict == "warning"


# ---- weights


def tensors(path: Path, sizes: list[int]) -> bytes:
    """A safetensors file by its description: tensors of so many bytes one after the other."""
    header, at = {}, 0
    for number, size in enumerate(sizes):
        header[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(at)
    path.write_bytes(content)
    return content


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5), data=st.data())
def test_tensors_that_are_cut_anywhere_are_found(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("tensors") / "consolidated.safetensors"
    whole = tensors(file, sizes)
    assert broken_tensors(file) == ""
    file.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    assert file.name in broken_tensors(file)


@pytest.mark.parametrize("content", [b"", b"1234567", bytes(8), b"\xff" * 64, struct.pack("<Q", 2) + b"[]"])
def test_what_is_no_tensors_at_all_is_found(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    assert "broken" in broken_tensors(file)


def weights(tmp_path: Path, **variables: str) -> dict[str, str]:
    return examined(tmp_path, **variables)[1]["weights"]


def test_the_model_that_comes_along_is_whole(tmp_path: Path) -> None:
    found = weights(tmp_path, VOXTRAL_MODEL_DIR=str(NANO))
    assert (found["verdict"], found["said"]) == ("ok", f"complete in {NANO}")


def test_a_download_that_broke_off_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "voxtral"
    shutil.copytree(NANO, folder)
    file = folder / "consolidated.safetensors"
    whole = file.stat().st_size
    with file.open("r+b") as half:
        half.truncate(whole // 2)
    found = weights(tmp_path)
    assert found["verdict"] == "problem"
    assert f"consolidated.safetensors is cut off: {whole // 2} of {whole} bytes" in found["said"]
    assert found["said"].startswith("models/voxtral: ")


def test_a_folder_that_was_named_has_to_hold_a_model(tmp_path: Path) -> None:
    found = weights(tmp_path, VOXTRAL_MODEL_DIR=str(tmp_path / "nowhere"))
    assert found["verdict"] == "problem"
    assert "HF_TOKEN" in found["todo"]


def test_with_a_token_it_will_be_fetched(tmp_path: Path) -> None:
    found = weights(tmp_path, VOXTRAL_MODEL_DIR=str(tmp_path / "nowhere"), HF_TOKEN="hf_secret")
    assert found["verdict"] == "warning"
    assert "will be fetched" in found["said"]


# ---- GPU


@pytest.mark.parametrize(
    ("nvidia", "verdicts"),
    [
        (Nvidia("580.95.05", (13, 0), (H200,)), {"driver": "ok", "GPU": "ok"}),
        (Nvidia("535.104.05", (12, 2), (H200,)), {"driver": "problem", "GPU": "ok"}),
        (Nvidia("580.95.05", (13, 0), (Gpu("V100", 32 << 30, (7, 0)),)), {"driver": "ok", "GPU": "problem"}),
        (Nvidia("580.95.05", (13, 0), (Gpu("T4", 16 << 30, (7, 5)),)), {"driver": "ok", "GPU": "warning"}),
        (Nvidia("580.95.05", (13, 0), (Gpu("RTX 3070", 8 << 30, (8, 6)),)), {"driver": "ok", "GPU": "warning"}),
    ],
    ids=["new", "old driver", "old GPU", "no bfloat16", "small"],
)
def test_driver_and_gpu_are_held_against_what_vllm_needs(nvidia: Nvidia, verdicts: dict[str, str]) -> None:
    if doctor.torch_cuda() not in (None, 13):
        pytest.skip("the torch that is installed decides what is needed")
    found = {one.check: one for one in doctor.cuda(nvidia)}
    assert {name: found[name].verdict for name in verdicts} == verdicts
    assert all(one.todo for one in found.values() if one.verdict != "ok")


# ---- the machine


def test_few_file_descriptors_are_a_warning(tmp_path: Path) -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 512)); {MAIN}"
    done = subprocess.run(
        [sys.executable, "-c", limited, "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=tmp_path,
        env=clean_environment({"PYTHONPATH": str(NANO.parents[1])}),
    )
    [found] = [one for one in json.loads(done.stdout)["findings"] if one["check"] == "files"]
    assert (found["verdict"], found["todo"]) == ("warning", "'ulimit -n 65536' as root")


def test_asking_for_priority_leaves_it_as_it_was() -> None:
    code = (
        "import os; from harness.doctor import real_time_allowed\n"
        "before = os.sched_getscheduler(0); real_time_allowed(); assert os.sched_getscheduler(0) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_machine_is_looked_at(tmp_path: Path) -> None:
    _, found = examined(tmp_path)
    assert {"disk", "memory", "files", "priority", "ffmpeg"} <= set(found)


# ---- a server elsewhere


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    running = RunningServer("--require-key")
    yield running
    running.stop()
    running.forget()


def test_a_server_that_is_well(server: RunningServer, tmp_path: Path) -> None:
    status, found = examined(tmp_path, "--target", f"ws://127.0.0.1:{server.port}", EARMARK_API_KEY=KEY)
    assert status == 0
    assert found["target"]["said"] == f"http://127.0.0.1:{server.port} is healthy"
    assert found["models"]["said"].startswith("scripted, engine scripted")
    assert "metrics at /metrics" in found["metrics"]["said"]
    assert "weights" not in found


def test_a_server_whose_key_is_not_known(server: RunningServer, tmp_path: Path) -> None:
    _, found = examined(tmp_path, "--target", f"127.0.0.1:{server.port}")
    assert (found["models"]["verdict"], found["models"]["todo"]) == ("warning", "set EARMARK_API_KEY")


def test_nobody_there_is_a_problem(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    status, found = examined(tmp_path, "--target", f"127.0.0.1:{port}")
    assert status == 1
    assert "does not answer" in found["target"]["said"]


def test_no_address_is_refused(tmp_path: Path) -> None:
    refused = earmark("doctor", "--target", "ftp://x", folder=tmp_path)
    assert refused.returncode == 3
    assert "is no address of a server" in refused.stderr


# ---- what is for operators


class Guarded(BaseHTTPRequestHandler):
    """Answers every path with the status that its server has for it."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Listener)
        assert "Authorization" not in self.headers
        self.send_response(self.server.statuses[self.path])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Listener(ThreadingHTTPServer):
    """An operations listener of somebody's."""

    def __init__(self, statuses: dict[str, int]) -> None:
        super().__init__(("127.0.0.1", 0), Guarded)
        self.statuses = statuses


@pytest.mark.parametrize(
    ("health", "options", "status"),
    [
        (401, [], 0),
        (403, [], 0),
        (200, [], 1),
        (200, ["--health-open"], 0),
        (503, ["--health-open"], 0),
        (401, ["--health-open"], 1),
    ],
)
def test_what_is_for_operators_is_closed(tmp_path: Path, health: int, options: list[str], status: int) -> None:
    listener = Listener({"/metrics": 401, "/metrics.json": 403, "/system": 401, "/health": health})
    serving = threading.Thread(target=listener.serve_forever)
    serving.start()
    try:
        target = f"http://127.0.0.1:{listener.server_port}"
        found = examined(tmp_path, "--target", target, "--closed", *options, EARMARK_API_KEY="not-to-be-sent")
    finally:
        listener.shutdown()
        serving.join()
        listener.server_close()
    assert found[0] == status
    assert found[1]["/health"]["verdict"] == ("problem" if status else "ok")


def test_open_metrics_are_found(server: RunningServer, tmp_path: Path) -> None:
    status, found = examined(tmp_path, "--target", f"127.0.0.1:{server.port}", "--closed")
    assert status == 1
    assert found["/metrics"]["said"] == "answers 200; 401 or 403 is expected"


def test_nobody_there_is_closed_enough(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert examined(tmp_path, "--target", f"127.0.0.1:{port}", "--closed")[0] == 0


def test_closed_without_a_target_is_refused(tmp_path: Path) -> None:
    assert earmark("doctor", "--closed", folder=tmp_path).returncode == 3
