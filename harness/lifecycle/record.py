"""The state folder: what is known of a detached server, in files that hold no key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from harness.launch import Announcement

DEFAULT = Path(".earmark")
VARIABLE = "EARMARK_STATE"


class StateError(Exception):
    """The state folder, or the server that it tells of, is not as it would have to be; the message says what to do."""


class Ended(msgspec.Struct, frozen=True):
    """How a server ended. A negative status is the number of the signal that ended it."""

    status: int
    epoch_seconds: float


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A server as it was started. ``options`` are its own, without keys; ``key_source`` says where its key came from."""

    pid: int
    identity: str
    supervisor_pid: int
    supervisor_identity: str
    options: list[str]
    folder: str
    log_bytes: int
    drain_seconds: float
    key_source: str
    started_epoch_seconds: float
    announcement: Announcement | None = None
    ended: Ended | None = None

    @property
    def url(self) -> str | None:
        """``http://`` with host and port, once the server has said that it is ready."""
        if self.announcement is None:
            return None
        host = "::1" if self.announcement.host == "::" else self.announcement.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.announcement.port}"


class State:
    """One state folder. ``server.pid`` is there while a server runs; ``server.json`` tells of the last one started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.pid_file = self.folder / "server.pid"
        self.record_file = self.folder / "server.json"
        self.log = self.folder / "server.log"

    def prepare(self) -> None:
        """Make the folder, for its owner alone, and keep git out of it.

        Raises:
            StateError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            ignore = self.folder / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise self._unusable(error) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else starts or stops a server of this folder meanwhile.

        Raises:
            StateError: somebody is at it.
        """
        import fcntl

        self.prepare()
        try:
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise self._unusable(error) from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateError(
                    f"another command is starting or stopping the server of {self.folder}; try again when it is done"
                ) from None
            yield

    def record(self) -> Record | None:
        """The last server started from here; ``None`` if there was none, or its file makes no sense.

        Raises:
            StateError: it may not be read: another user started it.
        """
        try:
            return msgspec.json.decode(self.record_file.read_bytes(), type=Record)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None
        except OSError as error:
            raise self._unusable(error) from None

    def running(self) -> Record | None:
        """The server that runs at this moment."""
        record = self.record()
        return record if record is not None and is_running(record) else None

    def write(self, record: Record) -> None:
        """Replace the record; the pid file is there exactly while the server has not ended."""
        self._replace(self.record_file, msgspec.json.format(msgspec.json.encode(record)) + b"\n")
        if record.ended is None:
            self._replace(self.pid_file, f"{record.pid}\n".encode())
        elif self.pid() == record.pid:
            self.pid_file.unlink(missing_ok=True)

    def pid(self) -> int | None:
        """What the pid file says, true or not."""
        try:
            return int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None

    def remove_stale(self) -> str | None:
        """Remove a pid file whose server is gone, and say so; ``None`` when there is nothing stale."""
        if not self.pid_file.exists() or self.running() is not None:
            return None
        pid = self.pid()
        self.pid_file.unlink(missing_ok=True)
        what = "a pid file that holds no number" if pid is None else f"the pid file of process {pid}, which is gone"
        if pid is not None and identity(pid) is not None:
            what = f"a pid file whose number, {pid}, belongs to another process by now"
        return f"removed {what}"

    def _unusable(self, error: OSError) -> StateError:
        return StateError(
            f"cannot use {self.folder} for the server's state ({error.strerror}); --state or {VARIABLE} names another"
        )

    def _replace(self, path: Path, content: bytes) -> None:
        new = path.with_name(path.name + ".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        new.replace(path)


def identity(pid: int) -> str | None:
    """What tells a process from a later one of the same number: its start; ``None`` when it has ended, reaped or not."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _identity_elsewhere(pid)
    # proc(5): the first field behind the name is the state, the twentieth the start in clock ticks since boot
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"


def _identity_elsewhere(pid: int) -> str | None:
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def is_running(record: Record) -> bool:
    """Whether that very process is alive: a number alone may have been given to another one since."""
    return identity(record.pid) == record.identity
