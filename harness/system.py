"""What the machine did meanwhile: processor and memory of server, harness and machine, and the GPU, once a second.

The sampler is a process of its own (``python -m harness.system``): reading /proc takes milliseconds, in which no packet could leave.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from time import perf_counter_ns
from types import TracebackType
from typing import Any

INTERVAL_SECONDS = 1.0
STOP_SECONDS = 5.0

Row = dict[str, Any]
"""``t_ns`` (``perf_counter_ns``), ``source`` ("server", "harness", "machine", "gpu0"...), ``cpu_percent`` of one core, ``rss_bytes``,
``processes``; for a GPU ``gpu_percent``, ``gpu_memory_bytes`` and ``gpu_watts``."""


class Sampler:
    """Samples while it is entered; ``rows`` afterwards. Figures that cannot be had are missing, never zero."""

    def __init__(
        self, *, server_pid: int | None, harness_pid: int | None = None, interval_seconds: float = INTERVAL_SECONDS
    ):
        self._command = [sys.executable, "-m", "harness.system", "--interval", str(interval_seconds)]
        self._command += ["--process", f"harness={harness_pid or os.getpid()}"]
        if server_pid is not None:
            self._command += ["--tree", f"server={server_pid}"]
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []

    def __enter__(self) -> Sampler:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, daemon=True, name="system-samples")
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is None or self._reader is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # it ends when nobody holds the other side, however we end
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        self._reader.join(STOP_SECONDS)

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as output:
            self._lines.extend(output)

    def rows(self, origin_ns: int) -> list[Row]:
        """All samples from ``origin_ns`` on, with ``t_seconds`` since then in place of ``t_ns``."""
        found = []
        for line in self._lines:
            with contextlib.suppress(json.JSONDecodeError):
                row = json.loads(line)
                t_ns = row.pop("t_ns")
                if t_ns >= origin_ns:
                    found.append({"t_seconds": (t_ns - origin_ns) / 1e9, **row})
        return found


# ---- inside the sampling process ----


def sample(measured: Mapping[str, Measured], interval_seconds: float, ended: threading.Event) -> Iterator[list[Row]]:
    """Rows of one moment, again and again until ``ended``. The first moment only sets the marks for the next."""
    import psutil

    gpus = list(_gpus())
    psutil.cpu_percent(None)
    for one in measured.values():
        one.measure()
    due = time.monotonic() + interval_seconds
    while not ended.wait(max(0.0, due - time.monotonic())):
        due += interval_seconds
        t_ns = perf_counter_ns()
        cores = psutil.cpu_count() or 1
        rows: list[Row] = [
            {
                "t_ns": t_ns,
                "source": "machine",
                "cpu_percent": psutil.cpu_percent(None) * cores,
                "rss_bytes": psutil.virtual_memory().total - psutil.virtual_memory().available,
            }
        ]
        for name, one in measured.items():
            row = one.measure()
            if row is not None:
                rows.append({"t_ns": t_ns, "source": name, **row})
        rows += [{"t_ns": t_ns, "source": f"gpu{index}", **_gpu(handle)} for index, handle in gpus]
        yield rows


class Measured:
    """A process, with its descendants if ``tree``."""

    def __init__(self, pid: int, *, tree: bool) -> None:
        import psutil

        self._gone = (psutil.NoSuchProcess, psutil.AccessDenied)
        self._known: dict[int, psutil.Process] = {}
        self._pid, self._tree = pid, tree
        with contextlib.suppress(*self._gone):
            self._known[pid] = psutil.Process(pid)

    def measure(self) -> Row | None:
        """Sums over the processes; ``None`` when the process is gone. A new child counts from its second sample on."""
        root = self._known.get(self._pid)
        if root is None:
            return None
        cpu_percent, rss_bytes, count = 0.0, 0, 0
        try:
            descendants = root.children(recursive=True) if self._tree else []
            alive = {process.pid: process for process in (root, *descendants)}
        except self._gone:
            return None
        self._known = {pid: self._known.get(pid, process) for pid, process in alive.items()}
        for process in self._known.values():
            with contextlib.suppress(*self._gone):
                cpu_percent += process.cpu_percent(None)
                rss_bytes += process.memory_info().rss
                count += 1
        return {"cpu_percent": round(cpu_percent, 2), "rss_bytes": rss_bytes, "processes": count}


def _gpus() -> Iterator[tuple[int, Any]]:
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError):
        return
    except Exception as error:  # NVMLError exists only where the import succeeded
        if type(error).__module__ != "pynvml":
            raise
        return
    for index in range(pynvml.nvmlDeviceGetCount()):
        yield index, pynvml.nvmlDeviceGetHandleByIndex(index)


def _gpu(handle: Any) -> Row:
    import pynvml

    row: Row = {}
    with contextlib.suppress(pynvml.NVMLError):
        row["gpu_percent"] = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    with contextlib.suppress(pynvml.NVMLError):
        row["gpu_memory_bytes"] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
    with contextlib.suppress(pynvml.NVMLError):
        row["gpu_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return row


def main() -> None:
    """Print samples as JSON lines until standard input closes."""
    parser = argparse.ArgumentParser(prog="python -m harness.system", description=main.__doc__)
    parser.add_argument("--process", action="append", default=[], metavar="NAME=PID", help="one process")
    parser.add_argument("--tree", action="append", default=[], metavar="NAME=PID", help="a process and its descendants")
    parser.add_argument("--interval", type=float, default=INTERVAL_SECONDS, metavar="SECONDS")
    options = parser.parse_args()
    measured = {}
    for tree, texts in ((False, options.process), (True, options.tree)):
        for name, _, pid in (text.partition("=") for text in texts):
            measured[name] = Measured(int(pid), tree=tree)
    ended = threading.Event()
    threading.Thread(target=_await_end_of_input, args=(ended,), daemon=True).start()
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        for rows in sample(measured, options.interval, ended):
            for row in rows:
                print(json.dumps(row))
            sys.stdout.flush()


def _await_end_of_input(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    main()
