"""The embedded recogniser as the server sees it: a pool of processes, one segment each, on the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections import deque
from pathlib import Path
from typing import cast

import msgspec

import server
from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, Usage
from server.engines.base import EngineError, EngineInfo, EngineStream, Sink
from server.engines.sphinx.messages import Frames, Kind, Opening, decode_failure, decode_progress, frame
from server.engines.sphinx.settings import DELAY_STEP_SECONDS, MAX_DELAY_SECONDS, SphinxSettings, check_delay
from wire.pcm import seconds_of

__all__ = ["SphinxEngine"]

log = logging.getLogger(__name__)

START_SECONDS = 60.0
STOP_SECONDS = 10.0
RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0)
SPARE_LIVES = 3
STOPPED = "the recogniser is stopped"
CAVEAT = (
    "PocketSphinx is a real but weak recogniser (about 20 % WER on clean synthetic voices, about 60 % on LibriSpeech test-other): "
    "use it to exercise the bench, not to judge accuracy."
)


class _Stream:
    """One segment, waiting for a process or heard by one."""

    def __init__(self, engine: SphinxEngine, number: int, segment: int, delay_steps: int, sink: Sink) -> None:
        self.number = number
        self.delay_steps = delay_steps
        self.process: _Process | None = None
        self.ended = False
        self._finished = False
        self._unheard = bytearray()  # kept until a process has proved to be alive by hearing some of it
        self._processes_lost = 0
        self._engine = engine
        self._segment = segment
        self._sink: Sink | None = sink
        self._fed_bytes = 0
        self._heard_seconds = 0.0
        self._words = 0

    # ---- what the session asks

    def feed(self, pcm: bytes) -> None:
        if self.ended:
            return
        if self._finished:
            raise RuntimeError("audio after finish")
        self._fed_bytes += len(pcm)
        limit = self._engine.settings.backlog_seconds
        if seconds_of(self._fed_bytes) - self._heard_seconds > limit:
            self.fail("overloaded", f"more than {limit:g} s of audio wait to be heard")
            return
        if not self._heard_seconds:
            self._unheard += pcm
        if self.process is not None:
            self.process.send(Kind.AUDIO, pcm)

    def finish(self) -> None:
        if self.ended or self._finished:
            return
        self._finished = True
        if self.process is not None:
            self.process.send(Kind.FINISH)

    def abort(self) -> None:
        self._sink = None
        self._end(early=True)

    # ---- what the engine has to tell

    def begin(self, process: _Process) -> None:
        """A process is free: hand over what has come in the meantime."""
        self.process = process
        process.stream = self
        process.send(Kind.OPEN, Opening(self.delay_steps))
        if self._unheard:
            process.send(Kind.AUDIO, bytes(self._unheard))
        if self._finished:
            process.send(Kind.FINISH)

    def lose_process(self, why: str) -> None:
        """The process has died: begin again with another one if nothing was heard yet, but not for ever."""
        self.process = None
        self._processes_lost += 1
        if self._heard_seconds or self._processes_lost > SPARE_LIVES:
            self.fail("processing_error", f"{why} while it heard this segment")
        else:
            self._engine.wait_first(self)

    def progress(self, payload: bytes) -> None:
        self._unheard.clear()
        said = decode_progress(payload)
        self._heard_seconds = said.audio_seconds
        self._words += len(said.words)
        self._tell(Heard(self._segment, said.audio_seconds, said.committed, said.tentative, said.words))

    def done(self) -> None:
        steps = round(self._heard_seconds / DELAY_STEP_SECONDS)
        self._end(early=False)
        self._tell(SegmentDone(self._segment, Usage(steps, self._words)))

    def fail(self, code: str, message: str) -> None:
        """Give the stream up."""
        self._end(early=True)
        self._tell(EngineFailed(self._segment, code, message))

    def _end(self, *, early: bool) -> None:
        if self.ended:
            return
        self.ended = True
        self._unheard.clear()
        if early and self.process is not None:
            self.process.send(Kind.ABORT)
        self._engine.release(self)

    def _tell(self, event: EngineEvent) -> None:
        """Say it from the loop: the caller may be in the midst of opening or feeding, and what the sink does wrong is its own."""
        self._engine.loop.call_soon(self._deliver, event)

    def _deliver(self, event: EngineEvent) -> None:
        if self._sink is not None:  # not aborted in the meantime
            self._sink(event)


class _Process(asyncio.Protocol):
    """The engine's end of the socket to one recogniser process."""

    def __init__(self, engine: SphinxEngine) -> None:
        self.stream: _Stream | None = None
        self.ready = False
        self.retired = False
        self._engine = engine
        self._frames = Frames()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        for kind, number, payload in self._frames.receive(data):
            if kind is Kind.READY:
                self._engine.process_ready(self)
                continue
            stream = self.stream
            if stream is None or stream.number != number:
                continue  # said before the process knew that the stream was aborted
            match kind:
                case Kind.PROGRESS:
                    stream.progress(payload)
                case Kind.DONE:
                    stream.done()
                case Kind.FAILED:
                    self._engine.process_lost(self, f"the recogniser failed: {decode_failure(payload).message}")
                case _:
                    raise ValueError(f"{kind!r} is not for the engine")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._engine.process_lost(self, "the recogniser process ended unexpectedly")

    def send(self, kind: Kind, payload: bytes | Opening = b"") -> None:
        """One frame about the present stream. Never blocks; ``backlog_seconds`` bounds what the transport holds."""
        assert self._transport is not None
        assert self.stream is not None
        self._transport.write(frame(kind, self.stream.number, payload))

    def hang_up(self) -> None:
        """The process ends when it reads the end of its socket."""
        if self._transport is not None:
            self._transport.abort()


class _Parent:
    """The process that has loaded the model and forks the others."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket) -> None:
        self.process = process
        self.control = control

    @classmethod
    async def start(cls, settings: SphinxSettings) -> _Parent:
        """Returns when the model is loaded.

        Raises:
            EngineError: when it cannot be.
        """
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "server.engines.sphinx.worker",
                    str(theirs.fileno()),
                    msgspec.json.encode(settings).decode(),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                )
        except OSError as error:
            ours.close()
            raise EngineError(f"cannot start a process for the recogniser: {error}") from error
        except BaseException:
            ours.close()
            raise
        parent = cls(process, ours)
        try:
            async with asyncio.timeout(START_SECONDS):
                answer = await parent._answer()
        except TimeoutError:
            answer = {"failed": f"the model was not loaded within {START_SECONDS:g} s"}
        except BaseException:
            await parent.stop()
            raise
        if "failed" in answer:
            await parent.stop()
            raise EngineError(
                f"sphinx does not start: {answer['failed']}; pip install 'earmark[sphinx]' brings what it needs"
            )
        return parent

    async def _answer(self) -> dict[str, object]:
        line = b""
        while not line.endswith(b"\n"):
            data = await asyncio.get_running_loop().sock_recv(self.control, 4096)
            if not data:
                return {"failed": "its process ended while it loaded the model (its standard error says why)"}
            line += data
        answer: dict[str, object] = msgspec.json.decode(line)
        return answer

    async def gone(self) -> None:
        """Returns when the process has ended."""
        await self.process.wait()

    def fork(self) -> socket.socket:
        """Our end of the socket to a new recogniser process.

        Raises:
            OSError: when there is no descriptor left, or nobody who forks.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self.control, [b"F"], [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        return ours

    async def stop(self) -> None:
        """End it; it waits for those it forked."""
        self.control.close()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


def _environment() -> dict[str, str]:
    """Ours, so that the process finds this very package wherever the server was started from."""
    root = str(Path(server.__file__).resolve().parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), root)))}


class SphinxEngine:
    """PocketSphinx in a pool of processes.

    The library holds the interpreter's lock while it decodes, so every segment is heard by a process of its own, forked from one
    that has loaded the model, with one kept ready for the next segment. A process hears one segment and ends: a decoder that has
    heard something before may understand otherwise, even with its cepstral mean set again, and a result must not depend on who
    spoke before. A process that dies takes its own segment with it and nothing else.
    """

    def __init__(self, settings: SphinxSettings | None = None) -> None:
        self.settings = settings or SphinxSettings()
        self.loop: asyncio.AbstractEventLoop
        self._parent: _Parent | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._processes: set[_Process] = set()
        self._idle: list[_Process] = []
        self._waiting: deque[_Stream] = deque()
        self._stopped = True
        self._opened = 0
        self._restarts = 0
        self._failed_forks = 0
        self._retry: asyncio.TimerHandle | None = None

    @property
    def info(self) -> EngineInfo:
        steps = round(MAX_DELAY_SECONDS / DELAY_STEP_SECONDS)
        return EngineInfo(
            name="sphinx",
            model="pocketsphinx-en-us",
            default_delay_seconds=self.settings.default_delay_seconds,
            delays_seconds=tuple(round(step * DELAY_STEP_SECONDS, 2) for step in range(1, steps + 1)),
            languages=("en",),
            slots=self.settings.worker_count,
            words=True,
            caveat=CAVEAT,
        )

    def metrics(self) -> dict[str, float]:
        return {
            "busy_slots": self._busy_slots,
            "waiting": len(self._waiting),
            "workers": len(self._processes),
            "restarts": self._restarts,
        }

    @property
    def _busy_slots(self) -> int:
        return sum(process.stream is not None for process in self._processes)

    # ---- start and stop

    async def start(self) -> None:
        """Load the model in a process of its own, and fork the first recogniser.

        Raises:
            EngineError: when pocketsphinx is missing or the process cannot run.
        """
        self.loop = asyncio.get_running_loop()
        self._stopped = False
        self._parent = await _Parent.start(self.settings)
        self._supervisor = asyncio.create_task(self._supervise(self._parent))
        self._fork_on_demand(spare=1)

    async def stop(self) -> None:
        """End every process; streams still under way fail."""
        self._stopped = True
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        parent, self._parent = self._parent, None
        self._fail_waiting(STOPPED)
        if self._connecting:
            await asyncio.wait(self._connecting)
        for process in list(self._processes):
            process.hang_up()
        if parent is not None:
            await parent.stop()

    async def _supervise(self, parent: _Parent) -> None:
        """Replace the parent process whenever it dies. Its children go on with the segments they have."""
        while True:
            await parent.gone()
            log.error("the recogniser's parent process ended (status %s); starting another", parent.process.returncode)
            parent.control.close()
            self._parent = None
            self._restarts += 1
            for process in list(self._processes):
                self._retire(process)
            self._parent = parent = await self._start_again()
            self._failed_forks = 0
            self._fork_on_demand(spare=1)

    async def _start_again(self) -> _Parent:
        failures = 0
        while True:
            try:
                return await _Parent.start(self.settings)
            except EngineError as error:
                log.error("%s", error)  # noqa: TRY400 - the sentence says it all
                self._fail_waiting(str(error))
                await asyncio.sleep(_retry_seconds(failures))
                failures += 1

    # ---- streams

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        """Hear a segment as soon as a process is free; fails through ``sink`` when too many wait already."""
        self._opened += 1
        number = self._opened % (1 << 32)
        options = segment.options
        delay_seconds = self.settings.default_delay_seconds if options.delay_seconds is None else options.delay_seconds
        try:
            check_language(options.language)
            stream = _Stream(self, number, segment.segment, check_delay(delay_seconds), sink)
        except EngineError as error:
            stream = _Stream(self, number, segment.segment, 1, sink)
            stream.fail("processing_error", str(error))
            return stream
        if self._stopped:
            stream.fail("processing_error", STOPPED)
        elif self._busy_slots + len(self._waiting) >= self.settings.worker_count + self.settings.waiting_count:
            message = (
                f"all {self.settings.worker_count} recognisers are busy and {len(self._waiting)} segments wait already"
            )
            stream.fail("overloaded", message)
        else:
            self._waiting.append(stream)
            self._dispatch()
        return stream

    def release(self, stream: _Stream) -> None:
        """The stream is at its end: its process is free for another, or it needs no place in the queue."""
        process, stream.process = stream.process, None
        if process is None:
            if stream in self._waiting:
                self._waiting.remove(stream)
            return
        process.stream = None
        self._drop(process)
        self._dispatch()

    def wait_first(self, stream: _Stream) -> None:
        """The stream lost its process through no fault of its own, and gets the next one."""
        if self._stopped:
            stream.fail("processing_error", STOPPED)
        else:
            self._waiting.appendleft(stream)
            self._dispatch()

    def _dispatch(self) -> None:
        """Give waiting streams to free processes, and keep a process in reserve while there may be more."""
        while self._waiting and self._idle:
            self._waiting.popleft().begin(self._idle.pop())
        if not self._idle:
            self._fork_on_demand(spare=1)

    def _fail_waiting(self, message: str) -> None:
        while self._waiting:
            self._waiting.popleft().fail("processing_error", message)

    # ---- processes

    def process_ready(self, process: _Process) -> None:
        """The process waits for its first segment."""
        process.ready = True
        self._failed_forks = 0
        if process.retired:
            self._drop(process)
        else:
            self._idle.append(process)
            self._dispatch()

    def process_lost(self, process: _Process, why: str) -> None:
        """The process has ended, or cannot be used any more."""
        if process not in self._processes:
            return
        stream, process.stream = process.stream, None
        self._drop(process)
        if stream is not None:
            stream.lose_process(why)
        if self._stopped or process.retired:
            return
        log.warning("%s", why)
        if process.ready:
            self._restarts += 1
            # One that was lost without a segment is replaced when it is needed, so that no loop of deaths can form.
            self._fork_on_demand(spare=1 if stream is not None else 0)
        else:
            self._fork_failed(why)

    def _fork_on_demand(self, spare: int) -> None:
        """Fork for the streams that wait and ``spare`` more, within the size of the pool."""
        parent = self._parent
        if parent is None or self._retry is not None:  # either begins with this when it is its turn
            return
        starting = sum(not process.ready for process in self._processes)
        needed = len(self._waiting) + spare - len(self._idle) - starting
        for _ in range(min(needed, self.settings.worker_count - len(self._processes))):
            try:
                connection = parent.fork()
            except (BrokenPipeError, ConnectionResetError):  # it is dead, which its supervisor is about to learn
                return
            except OSError as error:
                self._fork_failed(f"cannot fork a recogniser: {error}")
                return
            process = _Process(self)
            self._processes.add(process)
            task = self.loop.create_task(self._connect(process, connection))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, process: _Process, connection: socket.socket) -> None:
        try:
            await self.loop.create_unix_connection(lambda: process, sock=connection)
        except OSError as error:
            connection.close()
            self.process_lost(process, f"cannot talk to a recogniser process: {error}")

    def _fork_failed(self, why: str) -> None:
        """Try again in a while; when that keeps failing, nobody shall wait for it."""
        if self._retry is not None:
            return
        delay_seconds = _retry_seconds(self._failed_forks)
        self._failed_forks += 1
        log.error("%s; trying again in %g s", why, delay_seconds)
        self._retry = self.loop.call_later(delay_seconds, self._fork_again)
        if self._failed_forks >= len(RETRY_SECONDS):
            self._fail_waiting(why)

    def _fork_again(self) -> None:
        self._retry = None
        self._fork_on_demand(spare=0)

    def _retire(self, process: _Process) -> None:
        """Let the process end with the segment it has."""
        process.retired = True
        if process.stream is None and process.ready:
            self._drop(process)

    def _drop(self, process: _Process) -> None:
        self._processes.discard(process)
        if process in self._idle:
            self._idle.remove(process)
        process.hang_up()


def check_language(language: str | None) -> None:
    """Only English is known.

    Raises:
        EngineError: for any other language.
    """
    if language is not None and language.replace("_", "-").split("-")[0].lower() not in ("", "en"):
        raise EngineError(f"sphinx hears English only, not {language!r}; leave the language out or say 'en'")


def _retry_seconds(failures: int) -> float:
    return RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
