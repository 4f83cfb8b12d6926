"""The systemd unit: what systemd says of it, and that its times and variables go with the server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.files import DEPLOY
from tests.end_to_end.running_server import clean_environment, command

UNIT = (DEPLOY / "systemd/earmark.service").read_text(encoding="utf-8")
analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with a Python that exists here."""
    file = tmp_path / "earmark.service"
    assert "/opt/earmark/bin/python" in UNIT
    file.write_text(UNIT.replace("/opt/earmark/bin/python", sys.executable))
    return file


@analyze
def test_systemd_accepts_it(unit: Path) -> None:
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert str(unit) not in checked.stderr


@analyze
def test_systemd_would_not_accept_anything(unit: Path) -> None:
    unit.write_text(unit.read_text().replace("KillMode=mixed", "KillMode=gently"))
    checked = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert "gently" in checked.stderr


@analyze
def test_it_is_hardened(unit: Path) -> None:
    """systemd's own measure, 0 to 100: above 30 it would ask for more."""
    checked = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=30", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unrecognized option" in checked.stderr:
        pytest.skip("this systemd cannot judge a unit that is not installed")
    assert checked.returncode == 0, checked.stdout[-400:]


def test_the_stop_waits_longer_than_the_drain() -> None:
    variables = dict(line.split("=", 1) for line in values("Environment"))
    assert float(values("TimeoutStopSec")[0]) >= float(variables["EARMARK_DRAIN_SECONDS"]) + 10
    assert values("KillMode") == ["mixed"]  # TERM to the server alone, so that its workers live through the drain


def test_keys_come_from_a_file_and_not_from_the_unit() -> None:
    assert values("EnvironmentFile") == ["/etc/earmark/earmark.env"]
    assert not [line for line in values("Environment") if re.search("KEY|TOKEN", line)]
    assert values("User") == ["earmark"]


def test_the_command_is_the_server_and_its_variables_exist() -> None:
    assert values("ExecStart") == ["/opt/earmark/bin/python -m server"]
    known = subprocess.run(
        command("--help"), capture_output=True, text=True, check=True, env=clean_environment({"COLUMNS": "400"})
    ).stdout
    for line in values("Environment"):
        name = line.partition("=")[0]
        assert name == "PYTHONUNBUFFERED" or re.search(rf"\[(\w+, )*{name}[\],]", known), name
