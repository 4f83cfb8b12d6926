"""``earmark bench`` as people run it: a process that starts a server, replays, scores and reports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from harness import store
from harness.score import read_scores
from harness.timeline import Outcome

PAUSE = threading.Event()  # never set: looking again and again should not take the machine from what is looked at
ROOT = Path(__file__).resolve().parents[2]
KEPT = {
    "run.json",
    "streams.parquet",
    "timeline.parquet",
    "system.parquet",
    "scores.json",
    "utterances.parquet",
    "summary.md",
}


def command(out: Path, *arguments: str) -> list[str]:
    basics = ["--engine", "scripted", "--delay-ms", "480", "--out", str(out)]
    return [sys.executable, "-m", "harness.cli", "bench", *basics, *arguments]


def test_a_bench_leaves_runs_and_a_report_and_ends_with_one_line_of_json(tmp_path: Path) -> None:
    arguments = ["--limit", "6", "--concurrency", "2,6", "--json", "--label", "nightly"]
    done = subprocess.run(
        command(tmp_path, *arguments), capture_output=True, text=True, timeout=200, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["complete"] is True
    page = Path(said["report"])
    assert "<html" in page.read_text()
    assert (page.parent / "server.log").exists()
    folders = [Path(run["folder"]) for run in said["runs"]]
    assert len(folders) == 2
    for folder, concurrency in zip(folders, (2, 6), strict=True):
        assert {file.name for file in folder.iterdir()} >= KEPT
        run = store.read_run(folder)
        assert run.id == folder.name
        assert (run.complete, run.config.concurrency, run.config.delay_ms, run.config.engine) == (
            True,
            concurrency,
            480,
            "scripted",
        )
        assert (run.config.target, run.config.label, run.config.dataset) == ("started", "nightly", "spoken-en")
        assert "earmark bench" in run.environment["command"]
        assert read_scores(folder).outcomes == {"ok": 6}
        assert {row["source"] for row in store.read_system(folder)} >= {"server", "harness", "machine"}
        assert "earmark" in (folder / "metrics-after.txt").read_text()
    assert "scripted engine recognises nothing" in done.stderr


def until(what: str, found: object) -> None:
    """Wait at most a minute for ``found()``."""
    assert callable(found)
    end = time.monotonic() + 60
    while not found():
        assert time.monotonic() < end, f"waited a minute for {what}"
        PAUSE.wait(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_a_readable_run_that_says_it_is_incomplete(tmp_path: Path, number: signal.Signals) -> None:
    arguments = command(tmp_path, "--concurrency", "3")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as bench:
        until("connections", lambda: _connected(bench.pid) >= 3)  # the warm-up has one
        children = psutil.Process(bench.pid).children(recursive=True)
        bench.send_signal(number)
        _, told = bench.communicate(timeout=60)
    assert bench.returncode == 130, told
    (folder,) = (path.parent for path in tmp_path.glob("*/run.json"))
    run, records = store.read_run(folder), store.read_records(folder)
    assert not run.complete
    assert any("interrupted" in note for note in run.notes)
    assert Outcome.ABANDONED in {record.outcome for record in records}
    assert not read_scores(folder).complete
    assert list(tmp_path.glob("*-bench-*/report.html"))
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE], gone


def test_a_second_interrupt_ends_everything_at_once(tmp_path: Path) -> None:
    with subprocess.Popen(
        command(tmp_path, "--concurrency", "2"), stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as bench:
        until("connections", lambda: _connected(bench.pid) >= 2)
        children = psutil.Process(bench.pid).children(recursive=True)
        bench.send_signal(signal.SIGINT)
        bench.send_signal(signal.SIGTERM)  # another one, since two of a kind may come together
        bench.wait(30)
    assert bench.returncode == 130
    assert not list(tmp_path.glob("*/scores.json"))
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def _connected(pid: int) -> int:
    """Open connections of a process."""
    try:
        return sum(
            connection.status == psutil.CONN_ESTABLISHED for connection in psutil.Process(pid).net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return 0
