"""Detached servers for tests: the commands as processes of their own, and an end for what they leave running."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from harness.lifecycle.record import State, is_running
from tests.end_to_end.running_server import KEY, clean_environment

MAIN = "from harness.cli import main; main()"
SCRIPTED = ("--engine", "scripted", "--host", "127.0.0.1", "--port", "0", "--no-ops")


def earmark(
    *arguments: str, key: str | None = KEY, folder: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line as people do."""
    keys = {} if key is None else {"VOXTRAL_API_KEY": key}
    return subprocess.run(
        [sys.executable, "-c", MAIN, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
        env=clean_environment({"PYTHONPATH": str(Path(__file__).parents[2])} | keys | variables),
    )


class Life:
    """The server of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.state = State(folder)

    def start(self, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return self.run("serve", "--detach", *SCRIPTED, *options, **settings)

    def run(self, command: str, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
        return earmark(command, "--state", str(self.state.folder), *options, **settings)

    def told(self) -> dict[str, Any]:
        """What ``status --json`` says."""
        told: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return told

    @property
    def pid(self) -> int:
        record = self.state.running()
        assert record is not None
        return record.pid

    @property
    def supervisor(self) -> int:
        record = self.state.running()
        assert record is not None
        return record.supervisor_pid

    @property
    def url(self) -> str:
        record = self.state.running()
        assert record is not None
        assert record.url is not None
        return record.url

    def ws(self, path: str) -> str:
        """The WebSocket URL of a path."""
        return self.url.replace("http://", "ws://") + path

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            body: bytes = answer.read()
            return body

    def end(self) -> None:
        """Whatever runs, ends."""
        record = self.state.record()
        if record is not None and is_running(record):
            os.kill(record.pid, signal.SIGCONT)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(record.pid, signal.SIGKILL)
