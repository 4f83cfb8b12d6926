"""The one shell of every WebSocket connection: socket, dialect and hearing put together.

Everything happens on the event loop's thread. A frame is taken in as soon as it is read. Frames to send wait in an outbox for the
writer. Nothing here waits for the client except the writer, and the reader while the session has all the audio it may hold.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import structlog

from server.core.events import EngineEvent, Event, Heard
from server.core.limits import Lifetime, LifetimeLimits
from server.core.session import SessionError, SessionSettings
from server.engines.base import ChatEngine, EngineError, Sampling
from server.hearing import Hearing, Resources
from server.metrics import Metrics
from server.protocols.base import Ask, Close, ConversingDialect, Dialect, Displace, Reply, Step, TimedDialect

_log = structlog.get_logger("earmark.connection")

_OUTBOX_FRAMES = 20_000
"""A client that leaves so many frames unread is disconnected."""

_OUTBOX_CHARACTERS = 8 * 2**20
"""So is one that leaves so much text unread: errors repeat what the client sent, which may be large."""

_CLOSE_SECONDS = 5.0
"""So long the last frames and the close may take to leave. A client that does not read them by then is given up."""


class Socket(Protocol):
    """What the shell needs of a WebSocket that has been accepted."""

    async def receive(self) -> str | bytes | None:
        """The next frame; None once the client is gone."""

    async def send(self, frame: str) -> None:
        """Send a text frame; returns when it is on its way."""

    async def close(self, code: int, reason: str) -> None:
        """Close the socket."""


@dataclass(frozen=True, slots=True)
class Surface:
    """How connections of one protocol are run. ``inbound_limit``: frames that may wait behind a full session before the policy is
    ``reject``; None means the policy is ``wait`` (the socket is not read). ``chat`` answers what a dialect asks.
    """

    name: str
    session: SessionSettings
    lifetime: LifetimeLimits
    inbound_limit: int | None
    dialect: Callable[[], Dialect]
    chat: ChatEngine | None = None


class Connection:
    """Run one accepted socket until it ends, by whichever side. ``client`` is who it is, as an address, for observers."""

    def __init__(self, socket: Socket, surface: Surface, resources: Resources, client: str = "") -> None:
        self._socket = socket
        self._surface = surface
        self._dialect = surface.dialect()
        self._timed = self._dialect if isinstance(self._dialect, TimedDialect) else None
        self._conversing = self._dialect if isinstance(self._dialect, ConversingDialect) else None
        self._hearing = Hearing(surface.name, surface.session, resources, self, client)
        self._loop = asyncio.get_running_loop()
        self._lifetime = Lifetime(surface.lifetime, self._loop.time())
        self._inbound: deque[str | bytes] = deque()
        self._room = asyncio.Event()
        self._outbox: deque[tuple[str | Close, float]] = deque()  # each with the time at which it was put there
        self._outbox_characters = 0
        self._outbox_filled = asyncio.Event()
        self._closing = False
        self._tasks: asyncio.TaskGroup | None = None
        self._asks: deque[Ask] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0  # uvloop's handles do not know, when it is at once
        self._observed = _Observed(resources.metrics, surface.name)

    @property
    def busy(self) -> bool:
        """Whether an utterance is under way."""
        return self._hearing.busy if self._conversing is None else self._conversing.busy

    @property
    def waiting(self) -> int:
        """Frames that wait for room in the session."""
        return len(self._inbound)

    async def run(self) -> None:
        """Serve until the socket is closed."""
        self._observed.opened()
        opened_at = self._loop.time()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._writer = writer = tasks.create_task(self._write())
                reader = tasks.create_task(self._read())
                self._tell_the_time()
                self._take_steps(self._dialect.greet())
                self._rearm()
                await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
                self._tasks = None  # nothing more is asked: the group would wait for it
                reader.cancel()
                writer.cancel()
                if self._answering is not None:
                    self._answering.cancel()
        finally:
            self._closing = True
            if self._timer is not None:
                self._timer.cancel()
            self._hearing.close()
            self._observed.closed(self._loop.time() - opened_at)

    def close(self, code: int, reason: str) -> None:
        """Have the socket closed after what is in the outbox."""
        self._take_steps([Close(code, reason)])

    # ---- reading

    async def _read(self) -> None:
        while not self._closing:
            frame = await self._socket.receive()
            if frame is None:
                return
            self._lifetime.touch(self._loop.time())
            try:
                self._tell_the_time()
                if self._conversing is not None:
                    self._conversing.arrived(len(self._inbound))
                await self._arrived(frame)
            except Exception:  # noqa: BLE001 - logged by _crash, which ends this connection alone
                self._crash()
        await asyncio.Event().wait()  # the writer sends the close; its end ends the connection

    async def _arrived(self, frame: str | bytes) -> None:
        if self._hearing.accepts_audio and not self._inbound:
            self._take_steps(self._dialect.receive(frame))
        elif self._surface.inbound_limit is None:
            self._inbound.append(frame)
            self._room.clear()
            await self._room.wait()
        else:
            urgent = self._dialect.urgent(frame)
            if urgent is not None:
                self._take_steps(urgent)
            elif len(self._inbound) >= self._surface.inbound_limit:
                for step in self._dialect.overflow(frame, self._surface.inbound_limit):
                    self._take_steps(self._displaced_by(frame) if isinstance(step, Displace) else (step,))
            else:
                self._inbound.append(frame)
        self._rearm()

    def _take_inbound(self) -> None:
        """Go on with frames that waited for room in the session."""
        while self._inbound and self._hearing.accepts_audio and not self._closing:
            self._take_steps(self._dialect.receive(self._inbound.popleft()))
        if not self._inbound:
            self._room.set()

    def _displaced_by(self, frame: str | bytes) -> Iterable[Step]:
        oldest = next((n for n, waiting in enumerate(self._inbound) if isinstance(waiting, bytes)), None)
        lost = frame
        if oldest is not None:
            lost = self._inbound[oldest]
            del self._inbound[oldest]
            self._inbound.append(frame)
        return () if self._conversing is None else self._conversing.displaced(lost)

    # ---- answers

    async def _answer(self, chat: ChatEngine, dialect: ConversingDialect) -> None:
        """Have everything answered that was asked, in its order."""
        while self._asks:
            try:
                text, failure = await _answer_to(self._asks.popleft(), chat)
                if self._closing:
                    return
                self._tell_the_time()
                self._take_steps(dialect.answered(text) if failure is None else dialect.unanswered(failure))
            except Exception:  # noqa: BLE001 - logged by _crash, which ends this connection alone
                self._crash()

    # ---- steps

    def _take_steps(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._take_step(step)

    def _take_step(self, step: Step) -> None:
        match step:
            case Reply(frame, error):
                if error:
                    self._hearing.error(error)
                self._send(frame)
            case Close():
                self._send(step)
            case Ask():
                self._ask(step)
            case Displace():
                pass  # only an overflow has something to push out
            case _:
                if not self._closing:
                    self._hearing.do(step)

    def _ask(self, ask: Ask) -> None:
        chat, dialect, tasks = self._surface.chat, self._conversing, self._tasks
        if self._closing or chat is None or dialect is None or tasks is None:
            return
        self._asks.append(ask)
        if self._answering is None or self._answering.done():
            self._answering = tasks.create_task(self._answer(chat, dialect))

    # ---- what the hearing tells its owner

    def told(self, event: Event, now: float) -> None:
        """The session has something to say."""
        if self._timed is not None:
            self._timed.at(now)
        self._take_steps(self._dialect.tell(event))

    def refused(self, error: SessionError) -> None:
        """The session refused a command."""
        self._take_steps(self._dialect.refused(error))

    def progressed(self, event: EngineEvent | None) -> None:
        """There may be room for frames that waited."""
        if self._closing:
            return
        if self._inbound and not self._hearing.working:
            self._take_inbound()  # else whoever is at work goes on with them, after the frame in hand
        if event is not None and not isinstance(event, Heard):
            self._lifetime.touch(self._loop.time())
        self._rearm()

    def crashed(self) -> None:
        """A bug of ours, logged by whoever noticed: this connection ends, the others never notice."""
        if not self._closing:
            self._take_steps(self._dialect.crashed())

    def _crash(self) -> None:
        _log.exception("connection failed", surface=self._surface.name)
        self.crashed()

    # ---- time

    def _tell_the_time(self) -> None:
        if self._timed is not None:
            self._timed.at(self._loop.time())

    def _rearm(self) -> None:
        """Have ``_time_is_up`` called no later than the next deadline; too early does no harm."""
        if self._closing:
            return
        due = self._lifetime.deadline(busy=self._hearing.busy)
        if self._timed is not None:
            own = self._timed.deadline()
            due = own if due is None else due if own is None else min(due, own)
        if due is None:
            return
        if self._timer is not None:
            if self._timer_due <= due and not self._timer.cancelled():
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._time_is_up)

    def _time_is_up(self) -> None:
        self._timer = None
        now = self._loop.time()
        try:
            limit = self._lifetime.expired(now, busy=self._hearing.busy)
            if limit is not None:
                self._take_steps(self._dialect.expired(limit))
                return
            if self._timed is not None:
                self._timed.at(now)
                self._take_steps(self._timed.due())
            self._rearm()
        except Exception:  # noqa: BLE001 - logged by _crash, which ends this connection alone
            self._crash()

    # ---- writing

    def _send(self, frame: str | Close) -> None:
        if self._closing:
            return
        if isinstance(frame, str):
            self._outbox_characters += len(frame)
            if len(self._outbox) >= _OUTBOX_FRAMES or (self._outbox and self._outbox_characters > _OUTBOX_CHARACTERS):
                self._outbox.clear()
                frame = Close(1013, "client reads too slowly")
        self._outbox.append((frame, self._loop.time()))
        self._outbox_filled.set()
        if isinstance(frame, Close):
            self._closing = True
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(_CLOSE_SECONDS, self._give_up)

    def _give_up(self) -> None:
        if self._writer is not None:
            self._writer.cancel()

    async def _write(self) -> None:
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                frame, ready_at = self._outbox.popleft()
                if isinstance(frame, Close):
                    await self._socket.close(frame.code, frame.reason)
                    return
                self._outbox_characters -= len(frame)
                await self._socket.send(frame)
                now = self._loop.time()
                self._lifetime.touch(now)
                self._observed.sent(now - ready_at)


async def _answer_to(ask: Ask, chat: ChatEngine) -> tuple[str, str | None]:
    """The answer, or why there is none."""
    try:
        sampling = Sampling(ask.temperature, max_tokens=ask.max_tokens)
        return (await chat.answer(ask.question, ask.audios, sampling)).text, None
    except EngineError as error:
        reason = str(error) if type(error) is EngineError else type(error).__name__  # the others quote the client
        _log.warning("not answered", reason=reason)
        return "", str(error)


class _Observed:
    """What a connection adds to the metrics."""

    def __init__(self, metrics: Metrics, surface: str) -> None:
        self._active = metrics.connections_active.labels(surface)
        self._accepted = metrics.connections.labels(surface)
        self._life = metrics.connection_seconds.labels(surface)
        self._frame_delay = metrics.frame_delay.labels(surface)

    def opened(self) -> None:
        self._accepted.inc()
        self._active.inc()

    def closed(self, lived_seconds: float) -> None:
        self._active.dec()
        self._life.observe(lived_seconds)

    def sent(self, delay_seconds: float) -> None:
        self._frame_delay.observe(delay_seconds)
