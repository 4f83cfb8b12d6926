"""Writes to files in a thread of its own, so that no stream waits for a disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

import structlog

_log = structlog.get_logger("earmark.writing")


class Lane:
    """What waits to be written to one file, oldest first. Of a full lane the oldest is dropped."""

    def __init__(
        self, writer: Writer, write: Callable[[Sequence[bytes]], None], end: Callable[[], None], most: int
    ) -> None:
        self._writer, self._write, self._end, self._most = writer, write, end, most
        self._waiting: deque[bytes] = deque()
        self._queued = False
        self._ended = False
        self._broken = False

    def put(self, piece: bytes) -> int:
        """Have it written; returns how many pieces were dropped for it."""
        with self._writer.changed:
            if self._ended or self._broken:
                return 1
            dropped = bool(self._most) and len(self._waiting) >= self._most
            if dropped:
                self._waiting.popleft()
            self._waiting.append(piece)
            self._queue()
            return int(dropped)

    def end(self) -> None:
        """Nothing more comes: close the file once all is written."""
        with self._writer.changed:
            if not self._ended:
                self._ended = True
                self._queue()

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._writer.ready.append(self)
            self._writer.changed.notify()

    def work(self) -> None:
        """In the writer's thread: write what waits, and close when that was all."""
        with self._writer.changed:
            pieces, ended = list(self._waiting), self._ended
            self._waiting.clear()
            self._queued = False
        try:
            if pieces and not self._broken:
                self._write(pieces)
        except (OSError, ValueError) as error:
            self._broken = True
            self._writer.failed(error)
        if ended:
            try:
                self._end()
            except (OSError, ValueError) as error:
                self._writer.failed(error)


class Writer:
    """One thread for any number of lanes. ``failed`` is told, in that thread, why something was not written."""

    def __init__(self, name: str, failed: Callable[[Exception], None]) -> None:
        self.changed = threading.Condition()
        self.ready: deque[Lane] = deque()
        self.failed = failed
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def lane(self, write: Callable[[Sequence[bytes]], None], end: Callable[[], None], most: int) -> Lane:
        """A way to one file: ``write`` and ``end`` are called in the thread. At most ``most`` pieces wait, 0 for any number."""
        return Lane(self, write, end, most)

    def stop(self, seconds: float = 5.0) -> bool:
        """Write what waits, at most so long; whether it was all."""
        with self.changed:
            self._stopping = True
            self.changed.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self.changed:
                while not self.ready:
                    if self._stopping:
                        return
                    self.changed.wait()
                lane = self.ready.popleft()
            try:
                lane.work()
            except Exception:  # noqa: BLE001 - a bug in one lane must not end the others
                _log.exception("writing failed")
