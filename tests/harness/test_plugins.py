"""Drivers of other packages, installed as people install packages."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection, serve

from harness import drivers
from harness.bench import BenchError, Plan
from harness.drivers import DRIVERS, DriverError
from tests.harness.spoken import write_dataset
from tests.harness.tones import Ear

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def install(source: Path, site: Path) -> None:
    """Lay a package out as an installer does: its modules, and beside them what it says of itself."""
    described = tomllib.loads((source / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = site / f"{described['name'].replace('-', '_')}-{described['version']}.dist-info"
    about.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {described['name']}\nVersion: {described['version']}\n"
    (about / "METADATA").write_text(metadata, encoding="utf-8")
    lines = [f"{name} = {value}" for name, value in described["entry-points"]["earmark.drivers"].items()]
    (about / "entry_points.txt").write_text("\n".join(["[earmark.drivers]", *lines, ""]), encoding="utf-8")
    for module in source.glob("*.py"):
        shutil.copy(module, site)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with both examples."""
    site = tmp_path_factory.mktemp("site")
    for name in ("example_driver", "example_driver_rival"):
        install(HERE / name, site)
    return site


@pytest.fixture
def offered(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(installed))
    yield
    sys.modules.pop("earmark_plain", None)


@pytest.mark.usefixtures("offered")
def test_an_installed_driver_is_found_by_its_name() -> None:
    driver = drivers.find("plain")
    assert (driver.name, driver.path, driver.key_variable) == ("plain", "/hear", "PLAIN_KEY")
    assert Plan(protocol="plain", target="h:1").driver.name == "plain"
    assert ("plain", "earmark-plain 1.2") in [(offer.name, offer.package) for offer in drivers.offers()]


@pytest.mark.usefixtures("offered")
def test_a_package_cannot_take_the_place_of_a_driver_that_comes_along() -> None:
    assert drivers.find("yap") is DRIVERS["yap"]


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("broken", r"earmark-plain 1.2 .*RuntimeError: nothing works today"),
        ("number", r"earmark_plain:ANSWER.*must be a harness.drivers.Driver"),
        ("misnamed", r"calls itself 'plain'"),
        ("twice", r"earmark-plain 1.2 and earmark-rival 0.3; uninstall one"),
        ("morse", r"unknown protocol 'morse'; there are yap, .*plain"),
    ],
)
def test_what_is_wrong_with_a_package_is_told_with_its_name(name: str, told: str) -> None:
    with pytest.raises(DriverError, match=told):
        drivers.find(name)
    with pytest.raises(BenchError, match=told):
        Plan(protocol=name, target="h:1")


def test_without_the_package_there_is_no_such_protocol() -> None:
    with pytest.raises(DriverError, match="unknown protocol 'plain'"):
        drivers.find("plain")


async def listen_plainly(socket: ServerConnection) -> None:
    """The other side of the example's protocol."""
    ear, told = Ear(16_000), 0
    async for frame in socket:
        if isinstance(frame, bytes):
            ear.hear(frame)
        else:
            ear.end()
        for word in ear.words[told:]:
            await socket.send(f"+{' ' if told else ''}{word.text}")
            told += 1
        if frame == "end":
            await socket.send("=" + " ".join(word.text for word in ear.words))


@pytest.mark.parametrize("generators", [1, 2])
async def test_a_bench_over_an_installed_driver_is_scored(installed: Path, tmp_path: Path, generators: int) -> None:
    dataset = write_dataset(tmp_path / "tones")
    async with serve(listen_plainly, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        arguments = ["--protocol", "plain", "--target", f"127.0.0.1:{port}", "--driver-option", "mood=calm"]
        arguments += ["--dataset", str(dataset), "--out", str(tmp_path / "runs"), "--no-report", "--json"]
        arguments += ["--generators", str(generators)]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "harness.cli", "bench", *arguments),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(installed)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await asyncio.wait_for(process.communicate(), 200)
    assert process.returncode == 0, complained.decode()
    (run,) = json.loads(said.splitlines()[-1])["runs"]
    assert run["scores"]["accuracy"]["wer"]["value"] == 0
    assert run["scores"]["outcomes"] == {"ok": 3}
    told = json.loads((Path(run["folder"]) / "run.json").read_text())
    assert len(told["generator"].get("processes", [told["generator"]])) == generators
    kept = told["config"]
    assert (kept["protocol"], kept["engine"], kept["driver_options"]) == ("plain", "plain", ["mood=calm"])
