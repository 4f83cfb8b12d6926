"""Keeps the audio that was received, a WAV file per stream, and no more of it than was asked for."""

from __future__ import annotations

import re
import time
import wave
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from server.core.events import Audio, Command, Event, Start
from server.metrics import Metrics
from server.observers.writing import Writer
from wire.pcm import SAMPLE_RATE

_log = structlog.get_logger("earmark.capture")

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_DAY_SECONDS = 86400.0

HAND_OVER = frozenset({"grpc"})
"""Surfaces that bring audio to 16 kHz themselves, and hand over what they received before that."""


@dataclass(frozen=True, slots=True)
class Retention:
    """What stays: files younger than ``age_days``, of them the newest ``files``, of them the newest that have ``total_bytes`` together; all
    for None.
    """

    age_days: float | None = None
    files: int | None = None
    total_bytes: int | None = None

    def superfluous(self, found: Sequence[tuple[float, int]], now: float) -> int:
        """How many to remove of files given as (time of the last change, bytes), oldest first; always the oldest ones."""
        gone = 0
        if self.age_days is not None:
            oldest = now - self.age_days * _DAY_SECONDS
            gone = sum(changed < oldest for changed, _ in found)
        if self.files is not None:
            gone = max(gone, len(found) - self.files)
        if self.total_bytes is not None:
            total = sum(size for _, size in found[gone:])
            while gone < len(found) and total > self.total_bytes:
                total -= found[gone][1]
                gone += 1
        return gone


class AudioStore:
    """See the module. ``directory`` is made.

    Raises:
        OSError: it cannot be made or written to.
    """

    def __init__(
        self,
        directory: Path,
        most_waiting: int,
        retention: Retention,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.directory = directory
        self.most_waiting = most_waiting
        self.metrics = metrics
        self.clock = clock
        self.writer = Writer("capture", self._failed)
        self._retention = retention
        self._being_written: set[Path] = set()
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / ".earmark"
        probe.touch()
        probe.unlink()

    def watch(self, surface: str, client: str) -> CapturedStream | None:  # noqa: ARG002 - part of what makes observers
        """What keeps a stream's audio as it comes from the surface; ``None`` where the surface hands it over by itself, to ``keep``."""
        return None if surface in HAND_OVER else CapturedStream(self)

    def keep(self, surface: str, stream: str) -> CapturedStream:  # noqa: ARG002 - part of what makes captures
        """What keeps the audio of the stream of that name, as it is handed over."""
        return CapturedStream(self, stream)

    def stop(self) -> None:
        """Write what waits."""
        if not self.writer.stop():
            _log.warning("audio that waited to be written is lost")

    # ---- in the writer's thread

    def open(self, name: str, rate: int) -> tuple[Path, wave.Wave_write]:
        """A new file of that name, or of the next free one."""
        for number in range(1, 10_000):
            path = self.directory / f"{name}{'' if number == 1 else f'_{number}'}.wav"
            try:
                path.touch(exist_ok=False)
            except FileExistsError:
                continue
            self._being_written.add(path)
            file = wave.open(str(path), "wb")  # noqa: SIM115 - closed by the stream's end
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            return path, file
        raise OSError(f"{self.directory / name}: there are too many files of this name")

    def finished(self, path: Path) -> None:
        """A file is complete: remove what is too much now."""
        self._being_written.discard(path)
        self.metrics.captures.labels("written").inc()
        found = []
        for other in self.directory.glob("*.wav"):
            if other not in self._being_written:
                try:
                    status = other.stat()
                except OSError:
                    continue  # gone meanwhile
                found.append((status.st_mtime, status.st_size, other))
        found.sort()
        for _, _, old in found[: self._retention.superfluous([(at, size) for at, size, _ in found], self.clock())]:
            old.unlink(missing_ok=True)
            self.metrics.captures.labels("removed").inc()

    def _failed(self, error: Exception) -> None:
        self.metrics.captures.labels("failed").inc()
        _log.warning("audio is not recorded", error=str(error))


class CapturedStream:
    """What keeps one stream's audio, at the rate of its first chunk; also an observer. Nothing is opened before there is audio, so that a
    stream without any leaves no file.
    """

    def __init__(self, store: AudioStore, name: str | None = None) -> None:
        self._store = store
        self._name = "" if name is None else file_name(name, store.clock())
        self._rate = 0
        self._path: Path | None = None
        self._raw: wave.Wave_write | None = None
        self._lane = store.writer.lane(self._write, self._end, store.most_waiting)

    def command(self, command: Command, now: float) -> None:  # noqa: ARG002 - part of Observer
        """Audio is kept as it comes, before anything is dropped of it."""
        match command:
            case Start(utterance) if not self._name:
                self._name = file_name(utterance, self._store.clock())
            case Audio(pcm) if pcm:
                self.audio(pcm, SAMPLE_RATE)
            case _:
                pass

    def audio(self, pcm: bytes, rate: int) -> None:
        """The next PCM16, mono."""
        self._rate = self._rate or rate
        self._store.metrics.capture_dropped.inc(self._lane.put(pcm))

    def event(self, event: Event, now: float) -> None:
        """Nothing of it is kept."""

    def closed(self) -> None:
        """The stream has ended, and so does its file."""
        if self._rate:
            self._lane.end()

    # ---- in the writer's thread

    def _write(self, pieces: Sequence[bytes]) -> None:
        if self._raw is None:
            self._path, self._raw = self._store.open(self._name or file_name("", self._store.clock()), self._rate)
        self._raw.writeframes(b"".join(pieces))  # and sets the length in the header

    def _end(self) -> None:
        if self._raw is not None and self._path is not None:
            self._raw.close()
            self._store.finished(self._path)


def file_name(stream: str, at: float) -> str:
    """``YYYYMMDDTHHMMSS_NAME`` in local time; of the name letters, digits, ``-`` and ``_`` are kept, 80 characters of them."""
    plain = _NOT_IN_A_NAME.sub("_", stream)[:80].strip("_") or "session"
    return f"{time.strftime('%Y%m%dT%H%M%S', time.localtime(at))}_{plain}"
