"""``earmark study`` on real servers: a grid is measured, taken up again, and goes on past what fails."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import example, grid, store, study
from harness.bench import Watcher
from harness.report import studies

ROOT = Path(__file__).resolve().parents[2]
PAUSE = threading.Event()  # never set
QUICK, SLOW = '{"latency_ms":10}', '{"latency_ms":260}'


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example.dataset(tmp_path_factory.mktemp("corpus") / "spoken", words_each=5)


def a_study(spoken: Path, scripts: list[str], **harness: Any) -> str:
    settings = {"dataset": spoken.as_posix(), "limit": 2, "concurrency": 2, "delay-ms": 160, **harness}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    return "\n".join(["[server]", "engine = 'scripted'", f"script = {json.dumps(scripts)}", "[harness]", *lines])


def earmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "study", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=ROOT, check=False)


def run_here(text: str, folder: Path, watcher: Watcher | None = None, *, retry: bool = False) -> study.Result:
    asked = grid.parse(text, "here")
    return study.run(asked, study.prepare(asked, folder), folder, watcher, retry=retry)


def servers_started(folder: Path) -> int:
    """Each server writes a log of its own."""
    logs = list((folder / "servers").glob("*.log"))
    assert all(log.read_text().count('"event":"ready"') <= 1 for log in logs)
    return len(logs)


def test_a_study_measures_its_grid_with_one_server_per_setting_and_is_done_the_second_time(
    tmp_path: Path, spoken: Path
) -> None:
    file, out = tmp_path / "twice.toml", tmp_path / "out"
    file.write_text(a_study(spoken, [QUICK, SLOW], **{"packet-ms": [40, 80], "jitter-ms": 3, "retries": 1}))

    listed = earmark(str(file), "--out", str(out), "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.splitlines()) == 4
    assert "4 to measure on 2 servers, about" in listed.stderr
    assert not out.exists()

    first = earmark(str(file), "--out", str(out), "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout.splitlines()[-1])
    assert told == {
        "complete": True, "table": str(out / "study.parquet"), "measured": 4, "cells": 4, "failed": 0, "not_measured": 0,
    }  # fmt: skip
    assert servers_started(out) == 2
    assert "cell 4 of 4, about" in first.stderr

    table = studies.read(out)
    assert table.varied == ("server.script", "harness.packet-ms")
    assert (table.frame["outcome"].eq("ok") & table.frame["wer"].eq(0)).all()
    assert list(table.frame["harness.packet-ms"]) == [40, 80, 40, 80]
    assert set(table.frame["harness.jitter-ms"]) == {3.0}
    for run in (out / "runs").glob("*/run.json"):
        assert store.read_run(run.parent).config.load == {"jitter_ms": 3.0, "retries": 1}
    medians = table.frame["word_latency_p50"]
    for quick, slow in ((0, 2), (1, 3)):  # 250 ms are injected
        assert medians[slow] - medians[quick] == pytest.approx(0.250, abs=0.1)
    for name in (
        "server_cpu_percent",
        "server_rss_bytes",
        "pacing_p99",
        "time_to_final_p95",
        "excess_p50",
        "drift_p50",
    ):
        assert table.frame[name].notna().all(), name

    before = (out / "cells.json").read_bytes()
    second = earmark(str(file), "--out", str(out), "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout.splitlines()[-1])["measured"] == 0
    assert servers_started(out) == 2
    assert (out / "cells.json").read_bytes() == before

    wider_settings = {"packet-ms": [40, 80], "jitter-ms": 3, "retries": 1, "concurrency": [2, 1]}
    file.write_text(a_study(spoken, [QUICK, SLOW], **wider_settings))
    wider = earmark(str(file), "--out", str(out), "--dry-run")
    assert "8 cells, 4 done; 4 to measure" in wider.stderr


def test_cells_that_fail_are_kept_with_their_reason_and_the_study_goes_on(tmp_path: Path, spoken: Path) -> None:
    no_start, no_words = '{"nonsense":1}', '{"faults":[{"at":0.1,"code":"boom","message":"engine on fire"}]}'
    text = a_study(spoken, [no_start, no_words, QUICK], **{"packet-ms": [40, 80]})
    result = run_here(text, tmp_path)
    assert [row["outcome"] for row in result.rows] == ["failed"] * 4 + ["ok"] * 2
    assert result.complete
    for row in result.rows[:2]:
        assert "ended before it was ready" in row["reason"]
        assert "nonsense" in row["reason"]
    for row in result.rows[2:4]:
        assert "warm-up" in row["reason"]
        assert "engine on fire" in row["reason"]
    assert servers_started(tmp_path) == 3
    read = studies.read(tmp_path)
    assert list(read.frame["outcome"]) == [row["outcome"] for row in result.rows]
    assert read.frame["wer"].isna().tolist() == [True] * 4 + [False] * 2
    assert any("nonsense" in sentence for sentence in studies.conclude(read, 1.0))

    again = run_here(text, tmp_path)
    assert again.measured == 0
    retried = run_here(text, tmp_path, retry=True)
    assert retried.measured == 4 + sum(not row["valid"] for row in result.rows[4:])


def test_a_failed_cell_makes_exit_code_3(tmp_path: Path, spoken: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(a_study(spoken, ['{"nonsense":1}']))
    done = earmark(str(file), "--out", str(tmp_path / "out"))
    assert done.returncode == 3
    assert "1 failed; --retry" in done.stderr
    assert "FAILED" in done.stdout


def test_a_server_that_dies_costs_the_cell_it_died_in_and_is_started_again(tmp_path: Path, spoken: Path) -> None:
    begun: list[str] = []

    def kill_in_the_first(label: str, _total: int) -> None:
        begun.append(label)
        if len(begun) == 1:
            for process in psutil.Process().children():
                if "server" in process.cmdline():
                    process.kill()

    told: list[Any] = []

    def look(_progress: Any) -> None:
        told.extend(store.read_standing(file.parent) for file in tmp_path.glob("runs/*/progress.json"))

    watcher = Watcher(begin=kill_in_the_first, progress=look)
    result = run_here(a_study(spoken, [QUICK], **{"packet-ms": [40, 80]}), tmp_path, watcher)
    assert [row["outcome"] for row in result.rows] == ["failed", "ok"]
    assert "the server died" in result.rows[0]["reason"]
    assert {(standing.server[:15], standing.total) for standing, _ in told} == {("ws://127.0.0.1:", 2)}
    assert not list(tmp_path.glob("runs/*/progress.json"))
    assert servers_started(tmp_path) == 2


def test_an_interrupt_leaves_what_is_done_and_the_next_run_does_the_rest(tmp_path: Path, spoken: Path) -> None:
    file, out = tmp_path / "stopped.toml", tmp_path / "out"
    file.write_text(a_study(spoken, [QUICK], **{"packet-ms": [40, 80, 160]}))
    command = [sys.executable, "-m", "harness.cli", "study", str(file), "--out", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as started:
        end = time.monotonic() + 60
        while not study.read_ledger(out).cells:
            assert time.monotonic() < end, "no cell in a minute"
            PAUSE.wait(0.05)
        children = psutil.Process(started.pid).children(recursive=True)
        started.send_signal(signal.SIGINT)
        _, told = started.communicate(timeout=60)
    assert started.returncode == 130, told
    assert "the same command goes on from here" in told
    rows = store.read_rows(out / "study.parquet")
    done = [row for row in rows if row["outcome"] == "ok"]
    assert len(rows) == 3
    assert 1 <= len(done) < 3
    assert {row["outcome"] for row in rows} == {"ok", "not measured"}
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]

    rest = earmark(str(file), "--out", str(out), "--json")
    assert rest.returncode == 0, rest.stderr
    assert json.loads(rest.stdout.splitlines()[-1])["measured"] == 3 - len(done)
    kept = {row["cell"]: row["run"] for row in store.read_rows(out / "study.parquet")}
    assert all(kept[row["cell"]] == row["run"] for row in done)


def test_a_study_that_makes_no_sense_is_one_sentence_and_code_3(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    for text, told in (
        ("[harness]\nconcurrncy = 1", "harness.concurrncy"),
        ("[server]\nengin = 'x'", "no option engin"),
    ):
        file.write_text(text)
        done = earmark(str(file), "--dry-run")
        assert done.returncode == 3
        assert told in done.stderr
        assert "Traceback" not in done.stderr
