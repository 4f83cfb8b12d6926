"""Starts the server that is to be measured as a process of its own, and ends it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import IO

import msgspec

READY_SECONDS = 180.0
STOP_SECONDS = 10.0
TAIL_LINES = 25
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
KEY_VARIABLE = "VOXTRAL_API_KEY"


class ServerError(Exception):
    """The server did not start or died; the message holds the end of its log."""


class Announcement(msgspec.Struct, frozen=True):
    """The line that the server prints once it can transcribe."""

    event: str
    host: str
    port: int
    engine: str = "unknown"
    model: str = ""
    caveat: str = ""
    ports: dict[str, int] = {}  # by listener: public, and those of surfaces with a port of their own


class Server:
    """A running server. ``api_key`` opens its surfaces that need one."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        announcement: Announcement,
        log: Path,
        api_key: str,
        reader: threading.Thread,
    ) -> None:
        self._process, self.announcement, self.log, self.api_key, self._reader = (
            process,
            announcement,
            log,
            api_key,
            reader,
        )

    @property
    def pid(self) -> int:
        """Of the server's first process; its workers are children of it."""
        return self._process.pid

    @property
    def url(self) -> str:
        """``ws://`` with host and port."""
        host = self.announcement.host
        return f"ws://{f'[{host}]' if ':' in host else host}:{self.announcement.port}"

    def check(self) -> None:
        """Raises ``ServerError`` when the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise ServerError(_epitaph("the server died while it was measured", status, self.log))

    def stop(self) -> None:
        """Ask it to end, make it end when it does not."""
        _end(self._process)
        self._reader.join(STOP_SECONDS)

    def kill(self) -> None:
        """End the server and its workers at once, for a hurried exit."""
        _signal_group(self._process, signal.SIGKILL)

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()


def start(
    options: Sequence[str],
    log: Path,
    *,
    command: Sequence[str] = (sys.executable, "-m", "server"),
    environment: Mapping[str, str] | None = None,
    ready_seconds: float = READY_SECONDS,
) -> Server:
    """Start ``command --announce --host 127.0.0.1 --port 0 --ops-port 0 OPTIONS`` and wait until it says that it can transcribe.

    What it writes goes to ``log``. It leads a process group, so that an interrupt from the keyboard does not reach it.

    Raises:
        ServerError: it ended before, or was not ready within ``ready_seconds``.
    """
    variables = {**os.environ, **(environment or {})}
    api_key = variables.setdefault(KEY_VARIABLE, secrets.token_urlsafe(16))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as sink:
        process = subprocess.Popen(
            [*command, "--announce", "--host", "127.0.0.1", "--port", "0", "--ops-port", "0", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            errors="replace",
            env=variables,
            process_group=0,
            preexec_fn=end_with_parent,  # one system call, nothing that another thread could hold
        )
    lines: queue.Queue[str | None] = queue.Queue()
    assert process.stdout is not None
    reader = threading.Thread(target=_read, args=(process.stdout, log, lines), daemon=True, name="server-output")
    reader.start()
    try:
        announcement = _await_announcement(process, lines, log, ready_seconds)
    except BaseException:
        _end(process)
        reader.join(STOP_SECONDS)
        raise
    return Server(process, announcement, log, api_key, reader)


def end_with_parent() -> None:
    """In the child, before it becomes the server: be told to end when the harness dies, however it dies (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _read(output: IO[str], log: Path, lines: queue.Queue[str | None]) -> None:
    """Empty the server's standard output for as long as it lives: a full pipe would stop it."""
    with output, log.open("a", encoding="utf-8") as sink:
        for line in output:
            sink.write(line)
            sink.flush()
            lines.put(line)
    lines.put(None)


def _await_announcement(
    process: subprocess.Popen[str], lines: queue.Queue[str | None], log: Path, ready_seconds: float
) -> Announcement:
    deadline = monotonic() + ready_seconds
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - monotonic()))
        except queue.Empty:
            why = f"the server was not ready within {ready_seconds:g} s"
            raise ServerError(_epitaph(why, None, log)) from None
        if line is None:
            raise ServerError(_epitaph("the server ended before it was ready", process.wait(), log))
        with contextlib.suppress(msgspec.DecodeError):  # whatever else it prints is in the log
            announcement = msgspec.json.decode(line, type=Announcement)
            if announcement.event == "ready":
                return announcement


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            _signal_group(process, signal.SIGKILL)
            process.wait(STOP_SECONDS)
    # Workers that outlived their parent would hold the output open.
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _epitaph(why: str, status: int | None, log: Path) -> str:
    ended = "" if status is None else f" (status {status})" if status >= 0 else f" ({signal.Signals(-status).name})"
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    tail = "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (it wrote nothing)"
    return f"{why}{ended}. The end of {log}:\n{tail}"
