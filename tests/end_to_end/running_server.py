"""A real server process on a free port, for tests to talk to over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEY = "correct-horse"
START_SECONDS = 60.0
STOP_SECONDS = 20.0


class RunningServer:
    """One ``python -m server``. Options are given as on the command line; the environment holds nothing but the key."""

    def __init__(
        self, *options: str, environment: Mapping[str, str] | None = None, engine: str = "scripted", key: str = KEY
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            command(*engine_options(engine), "--port", "0", "--host", "127.0.0.1", "--announce", *options),
            cwd=ROOT,
            env=clean_environment({"VOXTRAL_API_KEY": key} | dict(environment or {})),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        try:
            ready = self._ready()
            self.port = int(ready["port"])
            self.ports: dict[str, int] = ready["ports"]
        except BaseException:
            self.kill()
            raise

    def _ready(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if readable else ""
        if not line:
            raise RuntimeError(f"the server did not start (status {self.process.poll()}):\n{self.log()}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    # ---- talking to it

    def ws(self, path: str) -> str:
        """The WebSocket URL of a path."""
        return f"ws://127.0.0.1:{self.port}{path}"

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        """Status and body of an HTTP GET."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def metric(self, name: str, **labels: str) -> float:
        """The present value of one series of ``/metrics``; 0 when it does not exist yet."""
        return read_metric(self.get("/metrics")[1].decode(), name, labels)

    async def until_metric(
        self, holds: Callable[[float], bool], name: str, seconds: float = 10.0, **labels: str
    ) -> None:
        """Return once the metric fulfils the condition.

        Raises:
            AssertionError: it does not within ``seconds``; the message has its last value.
        """
        end = time.monotonic() + seconds
        while not holds(value := await asyncio.to_thread(self.metric, name, **labels)):
            assert time.monotonic() < end, f"{name}{labels} is still {value} after {seconds} s"
            await asyncio.sleep(0.02)  # between two looks at another process, which has no way to tell us

    async def until_idle(self, seconds: float = 10.0) -> None:
        """Return once nobody is connected and no engine slot is taken."""
        for surface in ("yap", "realtime", "openai"):
            await self.until_metric(
                lambda value: value == 0, "earmark_connections_active", seconds=seconds, surface=surface
            )
        await self.until_metric(lambda value: value == 0, "earmark_engine", seconds=seconds, figure="busy_slots")

    # ---- its life

    def log(self) -> str:
        """Everything it has written to stderr so far."""
        self._errors.seek(0)
        return self._errors.read()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit status, once it has ended."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """Ask it to end, and wait until it has."""
        self.signal(signal.SIGTERM)
        return self.wait_or_kill()

    def wait_or_kill(self) -> int:
        """Its exit status once it has ended; a server that does not end in time is killed, and that is an error."""
        try:
            return self.wait()
        finally:
            self.kill()

    def kill(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def forget(self) -> None:
        """Let go of its log."""
        self._errors.close()


def command(*options: str) -> Sequence[str]:
    """The command line of a server."""
    return [sys.executable, "-m", "server", *options]


def engine_options(engine: str) -> Sequence[str]:
    """Flags that choose the engine; none for the empty name."""
    return ["--engine", engine] if engine else []


def clean_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """An environment without settings of whoever runs the tests."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHONPATH")
    return {name: os.environ[name] for name in kept if name in os.environ} | dict(extra)


def read_metric(text: str, name: str, labels: Mapping[str, str]) -> float:
    """The value of one series in the Prometheus text format; 0 when it is not there."""
    for line in text.splitlines():
        found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")) == labels:
            return float(found[3])
    return 0.0
