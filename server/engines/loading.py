"""Models loaded while the server runs: one job after the other, each with a status that can be asked for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import structlog

from server.engines.base import Engine
from server.engines.registry import Models

_log = structlog.get_logger("earmark.models")

MOST_WAITING = 16
MOST_REMEMBERED = 256

Status = Literal["queued", "running", "success", "failed"]


class TooManyJobsError(Exception):
    """So many jobs wait already; the message says how many may."""


@dataclass(slots=True)
class Job:
    """The loading of one model. Times are seconds since 1970; ``error`` is a sentence for the operator."""

    model_id: str
    status: Status = "queued"
    started_at: float | None = None
    finished_at: float | None = None
    error: str = ""

    @property
    def over(self) -> bool:
        """Whether it succeeded or failed."""
        return self.status in ("success", "failed")

    def told(self) -> dict[str, object]:
        """As ``/admin/load_model_status`` gives it."""
        found: dict[str, object] = {
            "status": self.status,
            "model_id": self.model_id,
            "started_at": self.started_at,
            "finished_at": self.finished_at,
        }
        if self.status == "failed":
            found["error"] = self.error
        if self.started_at is not None and self.finished_at is not None:
            found["duration_sec"] = self.finished_at - self.started_at
        return found


class Loader:
    """See the module. The status of the newest jobs is remembered, at most 256; at most 16 wait."""

    def __init__(self, models: Models, clock: Callable[[], float] = time.time) -> None:
        self.models = models
        self._clock = clock
        self._jobs: dict[str, Job] = {}
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def job(self, model_id: str) -> Job | None:
        """The newest job for that model."""
        return self._jobs.get(model_id)

    def load(self, model_id: str, make: Callable[[], Engine]) -> Job:
        """Have the model loaded once it is its turn. ``make`` may take its time: it is called in a thread.

        Raises:
            TooManyJobsError: too many wait.
        """
        if sum(job.status == "queued" for job in self._jobs.values()) >= MOST_WAITING:
            raise TooManyJobsError(f"{MOST_WAITING} models wait to be loaded already; try again later")
        self._forget()
        job = Job(model_id)
        self._jobs.pop(model_id, None)
        self._jobs[model_id] = job
        task = asyncio.create_task(self._run(job, make))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    async def stop(self) -> None:
        """Give up on what is being loaded."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _run(self, job: Job, make: Callable[[], Engine]) -> None:
        try:
            async with self._turn:
                job.status, job.started_at = "running", self._clock()
                _log.info("loading a model", model=job.model_id)
                engine = await _in_a_thread(make)
                await self.models.load(job.model_id, engine)
        except asyncio.CancelledError:
            self._end(job, "the server ended meanwhile")
            raise
        except Exception as error:  # noqa: BLE001 - whatever an engine raises while it loads is the job's outcome
            self._end(job, str(error) or type(error).__name__)
            _log.warning("a model was not loaded", model=job.model_id, error=job.error)
        else:
            self._end(job)
            _log.info("a model was loaded", model=job.model_id, engine=engine.info.name)

    def _end(self, job: Job, error: str = "") -> None:
        job.status, job.finished_at, job.error = "failed" if error else "success", self._clock(), error

    def _forget(self) -> None:
        over = [model_id for model_id, job in self._jobs.items() if job.over]
        for model_id in over[: max(0, len(self._jobs) - MOST_REMEMBERED + 1)]:
            del self._jobs[model_id]


async def _in_a_thread(make: Callable[[], Engine]) -> Engine:
    """Call it in a thread that the process does not wait for when it ends, unlike those of the loop's executor."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Engine] = loop.create_future()

    def settle(engine: Engine | None, error: Exception | None) -> None:
        if made.done():
            return  # nobody waits any more
        if engine is not None:
            made.set_result(engine)
        elif error is not None:
            made.set_exception(error)

    def work() -> None:
        engine, error = None, None
        try:
            engine = make()
        except Exception as raised:  # noqa: BLE001 - handed to who waits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, engine, error)

    threading.Thread(target=work, name="model-loading", daemon=True).start()
    return await made
