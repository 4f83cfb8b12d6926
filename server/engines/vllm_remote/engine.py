"""Remote back ends as the server sees them: which one hears a segment, and what becomes of it when that one dies."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any, Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, Usage
from server.engines.base import EngineInfo, EngineStream, Sink
from server.engines.vllm_remote.offer import (
    BackendError,
    Offer,
    ask,
    check_health,
    delays_of,
    discover,
    slots_of,
    terms,
)
from server.engines.vllm_remote.settings import Address, RemoteSettings
from wire import realtime
from wire.errors import WireError
from wire.pcm import bytes_of, encode_base64, seconds_of

__all__ = ["RemoteEngine"]

log = logging.getLogger(__name__)

PIECE_SECONDS = 0.24
"""Audio goes out in pieces of at most this length, and progress is told once as much more is on its way: every 0.48 s or sooner."""

BURST_LAG_SECONDS = 1.0
"""Less than what a session hands over ahead, else none would ever come."""

FAILED_LOOKS = 2
"""So many health checks in a row have to fail before a back end whose streams are well gets no new ones."""

LONGEST_FRAME_BYTES = 8 * 2**20
CLOSE_SECONDS = 2.0
PING_SECONDS = 20.0
STOPPED = "the engine is stopped"


class _Backend:
    """One back end: what it offers, how it fares, how many streams it has.

    ``state``: ``up`` gets streams; ``checking`` has lost a connection and is being asked how it is; ``down`` is asked again and again.
    """

    def __init__(self, address: Address, slots: int) -> None:
        self.address = address
        self.offer = Offer("")
        self.slots = slots
        self.state: Literal["up", "checking", "down"] = "down"
        self.why = "it has not answered yet"
        self.busy = 0
        self.opened = 0
        self.wake = asyncio.Event()

    @property
    def free(self) -> bool:
        return self.state == "up" and self.busy < self.slots

    def load(self) -> tuple[float, int]:
        """The least loaded back end comes first; among equals the one that has had fewer streams."""
        return self.busy / self.slots, self.opened


class _Stream:
    """One segment, waiting for a back end or heard by one.

    A remote server does not say how much of the audio it has heard. So ``audio_seconds`` of what this stream tells is the audio that
    was *sent*, and ``transcribed_seconds`` no more than the time since the first of it was: text cannot be further in live speech.

    What is sent faster than it was spoken counts as heard with a lag of ``BURST_LAG_SECONDS``, and the end of a segment only once
    the back end is done with it. A session hands over only so much that is not heard, so a long utterance that comes in a burst
    has one segment after the other heard, and not all at once in everybody's slots.
    """

    def __init__(self, engine: RemoteEngine, segment: OpenSegment, sink: Sink, delay_ms: int) -> None:
        self.ended = False
        self.backend: _Backend | None = None
        self.attempts = 0
        self._engine = engine
        self._segment = segment.segment
        self._delay_ms = delay_ms
        self._sink: Sink | None = sink
        self._unsent = bytearray()
        self._sent_bytes = 0
        self._heard_seconds = 0.0  # as far as is told
        self._first_sent_at = 0.0
        self._told_bytes = 0
        self._said: list[str] = []
        self._finished = False
        self._wake = asyncio.Event()
        self._socket: ClientConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None

    # ---- what the session asks

    def feed(self, pcm: bytes) -> None:
        if self.ended:
            return
        if self._finished:
            raise RuntimeError("audio after finish")
        self._unsent += pcm
        limit = self._engine.settings.backlog_seconds
        if seconds_of(len(self._unsent)) > limit:
            self.fail("overloaded", f"more than {limit:g} s of audio wait to be sent to a back end")
        else:
            self._wake.set()

    def finish(self) -> None:
        if self.ended or self._finished:
            return
        self._finished = True
        if not self._unsent and not self._sent_bytes:  # some servers never answer an utterance without audio
            self._end()
            self._tell(SegmentDone(self._segment))
        else:
            self._wake.set()

    def abort(self) -> None:
        self._sink = None
        self._end()

    # ---- what the engine asks

    def begin(self, backend: _Backend) -> None:
        """A back end has a slot."""
        self.backend = backend
        self.attempts += 1
        self.lose_patience(None)
        self._task = self._engine.run(self._run(backend))

    def lose_patience(self, timer: asyncio.TimerHandle | None) -> None:
        """What ends the wait, if it lasts too long; None when there is nothing to wait for any more."""
        if self._patience is not None:
            self._patience.cancel()
        self._patience = timer

    def fail(self, code: str, message: str) -> None:
        """Give the stream up."""
        if not self.ended:
            self._end()
            self._tell(EngineFailed(self._segment, code, message))

    def _end(self, *, cut: bool = True) -> None:
        """Free everything; ``cut`` the connection at once instead of letting it be closed in order."""
        if self.ended:
            return
        self.ended = True
        self._unsent.clear()
        if cut and self._socket is not None:
            self._socket.transport.abort()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._engine.release(self)

    def _tell(self, event: EngineEvent) -> None:
        """Say it from the loop: the caller may be in the midst of opening or feeding."""
        self._engine.loop.call_soon(self._deliver, event)

    def _deliver(self, event: EngineEvent) -> None:
        if self._sink is not None:  # not aborted in the meantime
            self._sink(event)

    # ---- the conversation

    async def _run(self, backend: _Backend) -> None:
        try:
            async with asyncio.timeout(self._engine.settings.connect_seconds):
                self._socket = socket = await self._connect(backend)
        except (OSError, InvalidHandshake, ConnectionClosed, WireError, TimeoutError) as error:
            self._engine.not_connected(self, backend, _reason(error))
            return
        async with asyncio.TaskGroup() as tasks:
            sender = tasks.create_task(self._send(socket, backend.offer))
            await self._receive(socket, backend)
            sender.cancel()
            await socket.close()

    async def _connect(self, backend: _Backend) -> ClientConnection:
        key = self._engine.settings.api_key
        socket = await connect(
            backend.address.realtime,
            additional_headers={"Authorization": f"Bearer {key}"} if key else None,
            compression=None,  # base64 of speech does not shrink by enough to pay for it
            max_size=LONGEST_FRAME_BYTES,
            open_timeout=None,
            close_timeout=CLOSE_SECONDS,
            ping_interval=PING_SECONDS,
            ping_timeout=PING_SECONDS,
        )
        try:
            greeting = realtime.decode_server(await socket.recv())
            if not isinstance(greeting, realtime.SessionCreated):
                raise WireError("invalid_event", f"{greeting!r:.200} instead of a greeting")
        except BaseException:
            socket.transport.abort()
            raise
        return socket

    async def _send(self, socket: ClientConnection, offer: Offer) -> None:
        """Everything that goes out. The end of the connection is the reader's to notice."""
        piece_bytes = bytes_of(PIECE_SECONDS)
        try:
            delay_ms = self._delay_ms if offer.delays_ms else None
            await socket.send(realtime.encode_client(realtime.SessionUpdate(offer.model, delay_ms)))
            await socket.send(realtime.encode_client(realtime.Commit(final=False)))
            while self._unsent or not self._finished:
                if not self._unsent:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                pcm = bytes(self._unsent[:piece_bytes])
                del self._unsent[:piece_bytes]
                await socket.send(realtime.encode_client(realtime.Append(encode_base64(pcm))))
                self._sent(len(pcm))
            await socket.send(realtime.encode_client(realtime.Commit(final=True)))
        except ConnectionClosed:
            return

    def _sent(self, byte_count: int) -> None:
        if not self._sent_bytes:
            self._first_sent_at = self._engine.loop.time()
        self._sent_bytes += byte_count
        if not self._finished and self._sent_bytes - self._told_bytes >= bytes_of(PIECE_SECONDS):
            self._progress("")

    def _progress(self, text: str) -> None:
        if self.ended:
            return
        self._told_bytes = self._sent_bytes
        sent = seconds_of(self._sent_bytes)
        spoken = min(sent, self._engine.loop.time() - self._first_sent_at) if sent else 0.0
        if not self._finished:
            self._heard_seconds = max(spoken, sent - BURST_LAG_SECONDS)
        self._deliver(Heard(self._segment, self._heard_seconds, text, transcribed_seconds=spoken))

    async def _receive(self, socket: ClientConnection, backend: _Backend) -> None:
        """Everything that comes in, until the stream is at its end."""
        while not self.ended:
            try:
                event = realtime.decode_server(await socket.recv())
            except ConnectionClosed as closed:
                self._engine.lost(self, backend, _reason(closed))
                return
            except WireError as error:
                self.fail(
                    "processing_error", f"the back end {backend.address} sent what makes no sense: {error.message}"
                )
                return
            match event:
                case realtime.Delta(delta):
                    self._say(delta)
                case realtime.Done():
                    self._done(event, backend)
                case realtime.Error(message, code):
                    self.fail(
                        "invalid_audio" if code == "invalid_audio" else "processing_error",
                        f"the back end {backend.address} says: {message}",
                    )
                case realtime.SessionCreated() | realtime.Unknown():
                    pass

    def _say(self, text: str) -> None:
        if text:
            self._said.append(text)
            self._progress(text)

    def _done(self, done: realtime.Done, backend: _Backend) -> None:
        said = "".join(self._said)
        if done.text.startswith(said):
            self._say(done.text[len(said) :])
        else:
            log.warning("the final text of %s is not the sum of its deltas; the deltas stand", backend.address)
        if self.ended:  # the sink may have aborted it
            return
        self._end(cut=False)
        self._deliver(SegmentDone(self._segment, _usage(done)))


def _usage(done: realtime.Done) -> Usage:
    counts = [(done.usage or {}).get(name) for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) else 0 for count in counts)
    return Usage(prompt, completion)


def _reason(error: Exception) -> str:
    match error:
        case InvalidStatus(response=response):
            hint = "; set --backend-api-key" if response.status_code in (401, 403) else ""
            return f"it answers {response.status_code} {response.reason_phrase}{hint}"
        case TimeoutError():
            return "it does not answer in time"
        case ConnectionClosed():
            return f"the connection ended: {error}"
        case _:
            return str(error) or type(error).__name__


class RemoteEngine:
    """Streams of segments to the least loaded of several back ends.

    A back end that loses a connection, or cannot be connected to, gets no new streams until it says that it is well. The streams
    that it had under way fail; those that it had not begun to hear go to another one. While no back end is up, streams fail at once.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        """Ask the back ends what they offer; blocks until one answers.

        Raises:
            EngineError: none does within ``start_seconds``, or what they offer does not go together.
        """
        self.settings = settings
        self.loop: asyncio.AbstractEventLoop
        self._answers = discover(settings)
        offers = {address: answer for address, answer in self._answers.items() if isinstance(answer, Offer)}
        self._terms = terms(offers, settings)
        self._backends: list[_Backend] = []
        self._watchers: list[asyncio.Task[None]] = []
        self._running: set[asyncio.Task[None]] = set()
        self._streams: set[_Stream] = set()
        self._waiting: deque[_Stream] = deque()
        self._stopped = True
        self._losses = 0

    @property
    def info(self) -> EngineInfo:
        agreed = self._terms
        return EngineInfo(
            name="vllm-remote",
            model=agreed.model,
            default_delay_seconds=agreed.default_delay_ms / 1000,
            delays_seconds=tuple(delay / 1000 for delay in agreed.delays_ms),
            languages=(),
            slots=agreed.slots,
            words=False,
            max_segment_seconds=agreed.max_segment_seconds,
            caveat=agreed.caveat,
        )

    def metrics(self) -> dict[str, float]:
        """``backends_up`` is how many get new streams, ``backend_losses`` how often one was taken out."""
        return {
            "busy_slots": sum(backend.busy for backend in self._backends),
            "waiting": len(self._waiting),
            "backends": len(self._backends),
            "backends_up": sum(backend.state == "up" for backend in self._backends),
            "backend_losses": self._losses,
        }

    # ---- start and stop

    async def start(self) -> None:
        """Begin to watch the back ends."""
        self.loop = asyncio.get_running_loop()
        self._stopped = False
        average = max(1, self._terms.slots // len(self.settings.addresses))
        for address, answer in self._answers.items():
            backend = _Backend(address, average)
            self._backends.append(backend)
            if isinstance(answer, Offer):
                self._take_in(backend, answer)
            else:
                backend.why = str(answer)
                log.warning("the back end %s is not there yet: %s", address, answer)
            self._watchers.append(asyncio.create_task(self._watch(backend)))

    async def stop(self) -> None:
        """End every connection; streams still under way fail."""
        self._stopped = True
        for watcher in self._watchers:
            watcher.cancel()
        for stream in list(self._streams):
            stream.fail("processing_error", STOPPED)
        tasks = {*self._watchers, *self._running}
        if tasks:
            await asyncio.wait(tasks)
        self._watchers.clear()
        self._backends.clear()

    # ---- streams

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        """Hear a segment as soon as a back end has a slot; fails through ``sink`` when there is none, or too many wait."""
        agreed, asked = self._terms, segment.options.delay_seconds
        delay_ms = agreed.default_delay_ms if asked is None else round(asked * 1000)
        stream = _Stream(self, segment, sink, delay_ms)
        self._streams.add(stream)
        if self._stopped:
            stream.fail("processing_error", STOPPED)
        elif delay_ms not in agreed.delays_ms:
            possible = ", ".join(str(delay) for delay in agreed.delays_ms)
            stream.fail("processing_error", f"a delay of {delay_ms} ms is not possible here; possible: {possible}")
        elif all(backend.state == "down" for backend in self._backends):
            stream.fail("processing_error", self._nobody())
        elif len(self._waiting) >= agreed.slots:
            stream.fail("overloaded", f"all back ends are full and {len(self._waiting)} segments wait already")
        else:
            self._wait(stream)
            self._dispatch()
        return stream

    def run(self, conversation: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a stream's conversation as a task of the engine's."""
        task = self.loop.create_task(conversation)
        self._running.add(task)
        task.add_done_callback(self._running_ended)
        return task

    def release(self, stream: _Stream) -> None:
        """The stream is at its end: its slot is free for another, or it needs no place in the queue."""
        self._streams.discard(stream)
        self._leave_queue(stream)
        self._free_slot(stream)
        self._dispatch()

    def not_connected(self, stream: _Stream, backend: _Backend, why: str) -> None:
        """The back end could not be connected to. Nothing is lost: another one may hear the stream."""
        if stream.ended:
            return
        self._suspect(backend, why)
        self._free_slot(stream)
        if stream.attempts > len(self._backends):
            stream.fail("processing_error", f"no back end can be connected to; the last one, {backend.address}: {why}")
        else:
            self._wait(stream, first=True)
            self._dispatch()

    def lost(self, stream: _Stream, backend: _Backend, why: str) -> None:
        """The connection ended in the midst of the stream."""
        if not stream.ended:
            self._suspect(backend, why)
            stream.fail(
                "processing_error", f"the back end {backend.address} was lost while it heard this segment: {why}"
            )

    def _running_ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a stream's conversation failed", exc_info=task.exception())

    def _wait(self, stream: _Stream, *, first: bool = False) -> None:
        if first:
            self._waiting.appendleft(stream)
        else:
            self._waiting.append(stream)
        stream.lose_patience(self.loop.call_later(self.settings.wait_seconds, self._out_of_patience, stream))

    def _out_of_patience(self, stream: _Stream) -> None:
        if stream in self._waiting:
            stream.fail("overloaded", f"no back end had a free slot for {self.settings.wait_seconds:g} s")

    def _leave_queue(self, stream: _Stream) -> None:
        stream.lose_patience(None)
        if stream in self._waiting:
            self._waiting.remove(stream)

    def _free_slot(self, stream: _Stream) -> None:
        if stream.backend is not None:
            stream.backend.busy -= 1
            stream.backend = None

    def _dispatch(self) -> None:
        """Give waiting streams to back ends with free slots; without any back end nobody shall wait."""
        while self._waiting:
            free = [backend for backend in self._backends if backend.free]
            if not free:
                break
            backend = min(free, key=_Backend.load)
            backend.busy += 1
            backend.opened += 1
            self._waiting.popleft().begin(backend)
        if self._waiting and all(backend.state == "down" for backend in self._backends):
            for stream in list(self._waiting):
                stream.fail("processing_error", self._nobody())

    def _nobody(self) -> str:
        reasons = "; ".join(f"{backend.address}: {backend.why}" for backend in self._backends)
        return f"no back end is up ({reasons})"

    # ---- back ends

    def _suspect(self, backend: _Backend, why: str) -> None:
        """Take a back end out, and ask it at once how it is."""
        if backend.state != "up":
            return
        log.warning("the back end %s gets no new streams until it is well: %s", backend.address, why)
        backend.state, backend.why = "checking", why
        self._losses += 1
        backend.wake.set()

    def _take_in(self, backend: _Backend, offer: Offer) -> None:
        missing = set(self._terms.delays_ms) - delays_of(offer, self.settings)
        if missing:
            backend.state = "down"
            backend.why = (
                f"it does not offer the delays {', '.join(map(str, sorted(missing)))} ms that this server has promised"
            )
            log.error("the back end %s stays out: %s", backend.address, backend.why)
            return
        backend.offer, backend.slots = offer, slots_of(offer, self.settings)
        backend.state, backend.why = "up", ""
        log.info("the back end %s is up: %s, %d slots", backend.address, offer.model, backend.slots)

    async def _watch(self, backend: _Backend) -> None:
        """Look at a back end again and again: seldom while it is well, with growing pauses while it is not."""
        failures = 0
        while True:
            pauses = self.settings.retry_seconds
            is_up = backend.state == "up" and not failures
            pause = self.settings.health_seconds if is_up else pauses[min(failures, len(pauses)) - 1 if failures else 0]
            try:
                async with asyncio.timeout(pause):
                    await backend.wake.wait()
            except TimeoutError:
                pass
            backend.wake.clear()
            try:
                await self._look(backend)
                failures = 0
            except BackendError as error:
                failures += 1
                if backend.state == "checking" or (backend.state == "up" and failures >= FAILED_LOOKS):
                    self._suspect(backend, str(error))
                    backend.state, backend.why = "down", str(error)
            self._dispatch()

    async def _look(self, backend: _Backend) -> None:
        address, key, seconds = backend.address, self.settings.api_key, self.settings.connect_seconds
        if backend.state == "up":
            await asyncio.to_thread(check_health, address, key, seconds)
        else:
            offer = await asyncio.to_thread(ask, address, key, seconds)
            self._take_in(backend, offer)
