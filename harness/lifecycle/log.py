"""A server's log as a row of files that never take more than so many bytes: written, read and followed."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import BinaryIO

PARTS = 10
"""The log is cut into so many files; trimming takes the oldest away whole, so at least nine tenths of the limit are kept."""

LEAST_BYTES = 10_000
LOOK_SECONDS = 0.1


class BoundedLog:
    """Appends lines to ``path``; full files become ``path.1``, ``path.2`` and so on, the oldest of which go.

    Renaming and removing take no time that depends on the size, so whoever feeds this does not wait for a copy to be made.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most_bytes = path, max(LEAST_BYTES, most_bytes)
        self._part_bytes = self._most_bytes // PARTS
        self._file = self._open()
        self._size = self._file.seek(0, os.SEEK_END)
        self._pending: deque[bytes] = deque()
        self._whole = True
        """Whether what is in the file ends with a line feed, so that it may be the last of its file."""
        self._trim()

    def write(self, lines: Iterable[bytes] = ()) -> None:
        """Append whole lines, each with its line feed, behind those that an earlier call could not write.

        Raises:
            OSError: the disk takes no more. What is not written waits for the next call.
        """
        self._pending.extend(lines)
        while self._pending:
            if self._whole and self._size and self._size + len(self._pending[0]) > self._part_bytes:
                self._roll()
            self._append(self._fitting())

    def _fitting(self) -> bytes:
        """The lines that the newest file has room for, one at least."""
        fitting = [self._pending.popleft()]
        size = self._size + len(fitting[0])
        while self._pending and size + len(self._pending[0]) <= self._part_bytes:
            fitting.append(self._pending.popleft())
            size += len(fitting[-1])
        return b"".join(fitting)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _append(self, content: bytes) -> None:
        while content:
            try:
                written = self._file.write(content) or 0
            except OSError:
                self._pending.appendleft(content)
                raise
            self._size += written
            self._whole = content[written - 1 : written] == b"\n"
            content = content[written:]

    def _roll(self) -> None:
        self._file.close()
        numbers = [number for number, _ in _older(self._path)]
        with contextlib.suppress(FileNotFoundError):  # somebody removed it: then there is nothing to keep
            self._path.rename(f"{self._path}.{max(numbers, default=0) + 1}")
        self._file = self._open()
        self._size = 0
        self._trim()

    def _trim(self) -> None:
        """Remove the oldest so that what is left and a full newest file are within the limit."""
        older = _older(self._path)
        room = self._most_bytes - max(self._part_bytes, self._size)
        sizes = [_size(path) for _, path in older]
        while older and sum(sizes) > room:
            older.pop(0)[1].unlink(missing_ok=True)
            sizes.pop(0)

    def _open(self) -> FileIO:
        return FileIO(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a")


def _older(path: Path) -> list[tuple[int, Path]]:
    """The full files of the log, the oldest first."""
    ours = re.compile(re.escape(path.name) + r"\.([0-9]+)")
    found = [(ours.fullmatch(candidate.name), candidate) for candidate in path.parent.glob(f"{path.name}.*")]
    return sorted((int(match[1]), candidate) for match, candidate in found if match)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def files(path: Path) -> list[Path]:
    """All files of the log, the oldest first."""
    return [*(older for _, older in _older(path)), *([path] if path.exists() else [])]


def tail(path: Path, lines: int) -> list[bytes]:
    """The newest lines, without their line feeds; fewer where there are no more."""
    with contextlib.closing(_Position(path)) as position:
        return [line.rstrip(b"\r\n") for line in position.begin(lines)]


def follow(path: Path, ended: Callable[[], bool], lines: int) -> Iterator[bytes]:
    """The newest lines and then what is written, in pieces with their line feeds, until ``ended`` and all is told.

    Every line is told even if the log is cut in the middle, unless it was trimmed before it could be read.
    """
    with contextlib.closing(_Position(path)) as position:
        yield from position.begin(lines)
        while True:
            over = ended()  # asked before the last look: what it wrote until then is told
            piece = position.read()
            if piece:
                yield piece
            elif over:
                return
            else:
                time.sleep(LOOK_SECONDS)  # files tell nobody that they have grown


class _Position:
    """How far a log has been read, through all cuts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def begin(self, lines: int) -> Iterator[bytes]:
        """The newest lines; reading goes on behind them."""
        older: list[bytes] = []
        self._file = self._open()
        newest = self._file.read() if self._file else b""
        wanted = lines - len(newest.splitlines())
        for file, inode in reversed(_row(self._path)):
            if wanted <= 0:
                break
            if file == self._path or inode == self._inode():
                continue  # the one that is open, though it may be full by now
            with contextlib.suppress(FileNotFoundError):  # trimmed away meanwhile
                content = file.read_bytes().splitlines(keepends=True)
                older = content[-wanted:] + older
                wanted -= len(content)
        text = [*older, *newest.splitlines(keepends=True)]
        yield from text[-lines:] if lines else []

    def read(self) -> bytes:
        """What is new; empty when nothing is."""
        if self._file is None:
            self._file = self._open()
        if self._file is None:
            return b""
        piece = self._file.read()
        if piece:
            return piece
        following = self._following()
        if following is None:
            return b""
        piece = self._file.read()  # nothing is added to a file once there is one behind it
        self._file.close()
        self._file = following
        return piece or following.read()

    def _following(self) -> BinaryIO | None:
        """The file behind the one that is read, if ours is full."""
        assert self._file is not None
        row = _row(self._path)
        inodes = [inode for _, inode in row]
        ours = self._inode()
        if not row or inodes[-1] == ours:
            return None
        behind = inodes.index(ours) + 1 if ours in inodes else 0  # ours was trimmed away: the oldest that is left
        with contextlib.suppress(FileNotFoundError):
            return row[behind][0].open("rb")
        return None  # trimmed at this moment; the next look finds another

    def _inode(self) -> int:
        return os.fstat(self._file.fileno()).st_ino if self._file else 0

    def _open(self) -> BinaryIO | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None


def _row(path: Path) -> list[tuple[Path, int]]:
    """All files of the log with their inodes as they stand at one moment: seen twice the same, not in the middle of a cut."""
    before: list[tuple[Path, int]] | None = None
    while True:
        row = [(file, _inode(file)) for file in files(path)]
        if row == before:
            return row
        before = row


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0
