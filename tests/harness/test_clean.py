"""``earmark clean``: what it shows, what it deletes, and what it never touches."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from harness.commands.clean import size
from tests.harness.lives import Life, earmark


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working directory with something in every place, and something of the user's own."""
    root = tmp_path / "project"
    for name, count in {
        "models/voxtral/consolidated.safetensors": 3000,
        "models/nano/params.json": 10,
        "models/mine/params.json": 10,
        "datasets/.cache/librispeech/a.flac": 2048,
        "datasets/mine/manifest.jsonl": 10,
        ".ruff_cache/x": 5,
        "reports/runs/one/run.json": 100,
        "reports/runs/two/run.json": 200,
        "reports/studies/delay/table.csv": 300,
        "reports/baselines/ci.json": 10,
        "reports/LOG.md": 10,
        ".earmark/server.log": 70,
        ".earmark/server.log.3": 30,
        ".earmark/server.json": 2,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(bytes(count))
    return root


def there(root: Path) -> set[str]:
    return {str(file.relative_to(root)) for file in root.rglob("*") if file.is_file()}


def test_without_yes_nothing_is_touched(project: Path) -> None:
    before = there(project)
    shown = earmark("clean", "--models", "--caches", "--runs", "--logs", folder=project)
    assert shown.returncode == 0
    assert there(project) == before
    lines = [line.strip() for line in shown.stdout.splitlines()]
    assert "2.9 KiB  models/voxtral" in lines
    assert "2.0 KiB  datasets/.cache" in lines
    assert "100 B  reports/runs/one" in lines
    assert "30 B  .earmark/server.log.3" in lines
    assert lines[-1] == f"{size(3000 + 2048 + 5 + 600 + 100)}  in all; --yes deletes it"


@pytest.mark.parametrize(
    ("option", "gone"),
    [
        ("--models", {"models/voxtral/consolidated.safetensors"}),
        ("--caches", {"datasets/.cache/librispeech/a.flac", ".ruff_cache/x"}),
        ("--runs", {"reports/runs/one/run.json", "reports/runs/two/run.json", "reports/studies/delay/table.csv"}),
        ("--logs", {".earmark/server.log", ".earmark/server.log.3"}),
    ],
)
def test_each_option_deletes_its_own_and_nothing_else(project: Path, option: str, gone: set[str]) -> None:
    before = there(project)
    assert earmark("clean", option, "--yes", folder=project).returncode == 0
    assert there(project) == before - gone


def test_to_say_nothing_is_refused(project: Path) -> None:
    refused = earmark("clean", "--yes", folder=project)
    assert refused.returncode == 3
    assert "say what" in refused.stderr


def test_where_there_is_nothing_that_is_said(tmp_path: Path) -> None:
    assert "there is nothing to delete" in earmark("clean", "--runs", folder=tmp_path).stdout


@pytest.mark.parametrize("linked", ["models", "models/voxtral"])
def test_a_link_on_the_way_leads_nowhere(project: Path, tmp_path: Path, linked: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    (project / linked).rename(elsewhere)
    (project / linked).symlink_to(elsewhere)
    before = there(elsewhere)
    cleaned = earmark("clean", "--models", "--yes", folder=project)
    assert "it is a link" in cleaned.stdout
    assert there(elsewhere) == before
    assert (project / linked).is_symlink()


def test_links_within_go_without_what_they_lead_to(project: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "data").write_bytes(bytes(500))
    (project / "reports/runs/one/audio").symlink_to(precious)
    (project / "reports/runs/linked").symlink_to(precious)
    cleaned = earmark("clean", "--runs", "--yes", folder=project)
    assert there(precious) == {"data"}
    assert not (project / "reports/runs/one").exists()
    assert "reports/runs/linked  (stays: it is a link" in cleaned.stdout


def test_a_run_that_is_being_written_stays(project: Path) -> None:
    (project / "reports/runs/two/progress.json").write_text("{}")
    cleaned = earmark("clean", "--runs", "--yes", folder=project)
    assert "reports/runs/two  (stays: it is being written)" in cleaned.stdout
    assert (project / "reports/runs/two/run.json").exists()
    assert not (project / "reports/runs/one").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="the server runs on POSIX systems")
def test_the_log_of_a_running_server_stays(tmp_path: Path) -> None:
    life = Life(tmp_path / "state")
    try:
        life.start()
        cleaned = life.run("clean", "--logs", "--yes")
        assert f"stays: the server, process {life.pid}, is writing it" in cleaned.stdout
        life.run("stop")
        assert life.state.log.exists()
        assert life.run("clean", "--logs", "--yes").returncode == 0
        assert not life.state.log.exists()
    finally:
        life.end()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may delete everything")
def test_what_cannot_be_deleted_is_told(project: Path) -> None:
    (project / "models/voxtral").chmod(0o500)
    cleaned = earmark("clean", "--models", "--yes", folder=project)
    assert cleaned.returncode == 3
    assert "cannot be deleted" in cleaned.stdout


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_are_said_for_people(count: int, said: str) -> None:
    assert size(count) == said
