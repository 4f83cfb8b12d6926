"""``python -m harness.lifecycle.supervision``: the process that starts a detached server, writes its log and notes its end.

It stands between the server and the disk: it always reads what the server says, so the server never waits for a disk or for a
trimming, and nobody has to copy a log that is being written.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import IO

import msgspec

from harness.launch import Announcement, end_with_parent
from harness.lifecycle.log import BoundedLog
from harness.lifecycle.record import Ended, Record, State, identity

MOST_WAITING_BYTES = 16 * 1024 * 1024
LONGEST_LINE_BYTES = 64 * 1024
RETRY_SECONDS = 1.0
LAST_WORDS_SECONDS = 10.0

SERVER = (sys.executable, "-m", "server")


class Waiting:
    """Lines that are read and not yet written. Beyond ``most_bytes`` new ones are lost, and counted: policy ``drop_newest``."""

    def __init__(self, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lines: list[bytes] = []
        self._bytes = 0
        self._lost = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, line: bytes) -> None:
        """Never waits."""
        with self._changed:
            if self._bytes + len(line) > self._most_bytes:
                self._lost += 1
                return
            self._lines.append(line)
            self._bytes += len(line)
            self._changed.notify()

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self) -> list[bytes] | None:
        """All that waits, as soon as there is something; ``None`` when nothing more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._lost or self._closed)
            lines, lost = self._lines, self._lost
            self._lines, self._bytes, self._lost = [], 0, 0
        if lost:
            lines.append(f"earmark: {lost} lines are lost here: the disk did not take them in time\n".encode())
        return lines or None


def read_lines(output: IO[bytes], waiting: Waiting, told: Sequence[Announcer] = ()) -> None:
    """Read until nobody holds the other side; a line that is longer than anybody writes is cut."""
    while line := output.readline(LONGEST_LINE_BYTES):
        if not line.endswith(b"\n"):
            line += b"\n"
        if not any(one.hears(line) for one in told):
            waiting.put(line)


def write_lines(waiting: Waiting, log: BoundedLog, ended: threading.Event) -> None:
    """Write until nothing more comes. What a full disk does not take is tried again while the server lives."""
    while (lines := waiting.take()) is not None:
        while True:
            try:
                log.write(lines)
            except OSError:
                if ended.wait(RETRY_SECONDS):
                    return
                lines = []  # the log has kept them
            else:
                break


class Announcer:
    """Waits for the server's one line for programs and passes it on to whoever started us."""

    def __init__(self, state: State, record: Record) -> None:
        self.record = record
        self._state = state
        self._lock = threading.Lock()

    def hears(self, line: bytes) -> bool:
        """Whether that line was for us, and not for the log."""
        if self.record.announcement is not None:
            return False
        try:
            announcement = msgspec.json.decode(line, type=Announcement)
        except msgspec.DecodeError:
            return False
        if announcement.event != "ready":
            return False
        self._update(msgspec.structs.replace(self.record, announcement=announcement))
        tell({"event": "ready"})
        return True

    def ended(self, status: int) -> None:
        """Note the end, and say it to whoever still waits for the beginning."""
        self._update(msgspec.structs.replace(self.record, ended=Ended(status, time.time())))
        tell({"event": "ended", "status": status})

    def _update(self, record: Record) -> None:
        with self._lock:
            self.record = record
            with contextlib.suppress(OSError):  # a full disk must not take the server down
                self._state.write(record)


def tell(message: dict[str, object]) -> None:
    """One line to whoever started us; they may have gone."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(msgspec.json.encode(message).decode() + "\n")
        sys.stdout.flush()


def supervise(
    state: State,
    options: Sequence[str],
    *,
    log_bytes: int,
    drain_seconds: float,
    key_source: str,
    command: Sequence[str] = SERVER,
) -> int:
    """Start the server, and return its status once it has ended and its last words are written.

    TERM is passed on to the server, so whichever of the two gets it, the server drains. If this process is killed the server is told
    to end (Linux): nobody could read its log or know of it any more.
    """
    log = BoundedLog(state.log, log_bytes)
    server: subprocess.Popen[bytes] | None = None
    asked = threading.Event()

    def pass_on(number: int, frame: FrameType | None) -> None:
        del number, frame
        asked.set()
        if server is not None:
            server.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # for the server too: no terminal of anybody's ends it
    server = subprocess.Popen(
        [*command, *options, "--announce"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,
        preexec_fn=end_with_parent,  # one system call, nothing that another thread could hold
    )
    if asked.is_set():
        server.terminate()
    assert server.stdout is not None
    assert server.stderr is not None
    announcer = Announcer(
        state,
        Record(
            pid=server.pid,
            identity=identity(server.pid) or "",
            supervisor_pid=os.getpid(),
            supervisor_identity=identity(os.getpid()) or "",
            options=list(options),
            folder=str(Path.cwd()),
            log_bytes=log_bytes,
            drain_seconds=drain_seconds,
            key_source=key_source,
            started_epoch_seconds=time.time(),
        ),
    )
    state.write(announcer.record)
    waiting, over = Waiting(), threading.Event()
    readers = [
        threading.Thread(target=read_lines, args=(server.stdout, waiting, [announcer]), daemon=True),
        threading.Thread(target=read_lines, args=(server.stderr, waiting), daemon=True),
    ]
    writer = threading.Thread(target=write_lines, args=(waiting, log, over), daemon=True)
    for thread in (*readers, writer):
        thread.start()
    status = server.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)  # workers that outlived it would hold its output open
    for thread in readers:
        thread.join(LAST_WORDS_SECONDS)
    waiting.close()
    over.set()
    writer.join(LAST_WORDS_SECONDS)
    log.close()
    announcer.ended(status)
    return status


def main() -> None:
    """Supervise one server."""
    parser = argparse.ArgumentParser(prog="python -m harness.lifecycle.supervision", description=main.__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--log-bytes", type=int, required=True)
    parser.add_argument("--drain-seconds", type=float, required=True)
    parser.add_argument("--key-source", required=True)
    parser.add_argument("options", nargs="*", help="of the server, behind --")
    asked = parser.parse_args()
    state = State(asked.state)
    try:
        supervise(
            state,
            asked.options,
            log_bytes=asked.log_bytes,
            drain_seconds=asked.drain_seconds,
            key_source=asked.key_source,
        )
    except Exception:
        with contextlib.suppress(OSError), state.log.open("a", encoding="utf-8") as log:
            log.write(traceback.format_exc())
        raise


if __name__ == "__main__":
    main()
