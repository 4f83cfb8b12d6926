"""Where what was said is written, if anywhere: a file of its own, never the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from logging.handlers import TimedRotatingFileHandler
from pathlib import Path

import msgspec
import structlog

from server.core.events import Command, Event, Final
from server.metrics import Metrics
from server.observers.writing import Lane, Writer

_log = structlog.get_logger("earmark.transcripts")

_MOST_WAITING = 10_000


class Transcripts:
    """A file with a JSON object per utterance: a new one each day and ``days`` old ones kept, or one that grows when that is 0.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, days: int, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: logging.FileHandler = (
            TimedRotatingFileHandler(path, when="midnight", backupCount=days, encoding="utf-8")
            if days
            else logging.FileHandler(path, encoding="utf-8")
        )
        self._file.setFormatter(logging.Formatter("%(message)s"))
        self._file.handleError = self._fault  # type: ignore[method-assign]  # its own prints the text to stderr
        self._metrics = metrics
        self._clock = clock
        self._writer = Writer("transcripts", lambda _: None)
        self._lane: Lane = self._writer.lane(self._write, self._file.close, _MOST_WAITING)

    def add(self, surface: str, client: str, final: Final) -> None:
        """One utterance has ended."""
        line = msgspec.json.encode(
            {
                "time": self._clock(),
                "surface": surface,
                "client": client,
                "utterance": final.utterance,
                "audio_seconds": round(final.audio_seconds, 3),
                "text": final.text,
            }
        )
        self._metrics.transcripts_dropped.inc(self._lane.put(line))

    def stop(self) -> None:
        """Write what waits."""
        self._lane.end()
        if not self._writer.stop():
            _log.warning("transcripts that waited to be written are lost")

    def _write(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._file.handle(logging.makeLogRecord({"msg": line.decode(), "args": None}))

    def _fault(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - whose text must not get anywhere else
        self._metrics.transcripts_dropped.inc()
        _log.warning("a transcript was not written", file=self._file.baseFilename)


class Telling:
    """An observer of one hearing. The log learns how long a text is, at level debug, and ``sink`` the text, if there is one."""

    def __init__(self, sink: Transcripts | None, surface: str, client: str) -> None:
        self._sink, self._surface, self._client = sink, surface, client

    def command(self, command: Command, now: float) -> None:
        """Nothing of it is written."""

    def event(self, event: Event, now: float) -> None:  # noqa: ARG002 - part of Observer
        """An utterance's final is."""
        if isinstance(event, Final):
            _log.debug(
                "final", surface=self._surface, characters=len(event.text), audio_seconds=round(event.audio_seconds, 3)
            )
            if self._sink is not None and event.text:
                self._sink.add(self._surface, self._client, event)

    def closed(self) -> None:
        """Nothing is held."""
