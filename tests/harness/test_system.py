from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from harness.environment import describe
from harness.system import Sampler

PAUSE = threading.Event()  # never set
BUSY = "import time, os\nif os.fork() == 0:\n    end = time.monotonic() + 20\n    while time.monotonic() < end: pass\nelse:\n    os.wait()"


def wait_for_rows(sampler: Sampler, count: int) -> None:
    """Until so many lines have come, or ten seconds have passed."""
    until = time.monotonic() + 10
    while len(sampler._lines) < count and time.monotonic() < until:
        PAUSE.wait(0.02)


def test_samples_tell_server_harness_and_machine_apart() -> None:
    origin_ns = time.perf_counter_ns()
    with subprocess.Popen([sys.executable, "-c", BUSY], process_group=0) as busy:
        with Sampler(server_pid=busy.pid, interval_seconds=0.2) as sampler:
            wait_for_rows(sampler, 12)
        os.killpg(busy.pid, 9)
    rows = sampler.rows(origin_ns)
    sources = {row["source"] for row in rows}
    assert {"server", "harness", "machine"} <= sources
    assert all(0 < row["t_seconds"] < 60 for row in rows)
    # the busy one is a child of the process that was named
    assert max(row["cpu_percent"] for row in rows if row["source"] == "server") > 10
    assert {row["processes"] for row in rows if row["source"] == "server"} == {2}
    assert {row["processes"] for row in rows if row["source"] == "harness"} == {1}
    assert all(row["rss_bytes"] > 1_000_000 for row in rows)


def test_samples_before_the_run_are_left_out() -> None:
    with Sampler(server_pid=None, interval_seconds=0.1) as sampler:
        wait_for_rows(sampler, 4)
    assert sampler.rows(time.perf_counter_ns()) == []


def test_a_server_that_is_gone_is_missing_not_zero() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    with Sampler(server_pid=gone.pid, interval_seconds=0.1) as sampler:
        wait_for_rows(sampler, 4)
    assert {row["source"] for row in sampler.rows(0)} == {"harness", "machine"}


def test_the_environment_is_what_a_reader_needs_to_repeat_the_run() -> None:
    found = describe(["bench", "--label", "a b"])
    assert found["command"] == "earmark bench --label 'a b'"
    assert found["packages"]["websockets"]
    assert found["cores"] >= 1
    assert found["python"].startswith("CPython")
    assert len(found["git"]["commit"]) == 40
    assert isinstance(found["git"]["dirty"], bool)
