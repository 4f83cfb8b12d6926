"""What hears one client: its session, its engine streams, their timer and what is counted about them, without a socket.

Everything happens on the event loop's thread. Commands and what the engine says go through one queue, so that the session sees one thing at
a time. Whoever owns a hearing gives it commands and is told events; nothing here waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from server.core.events import (
    AbortSegment,
    Audio,
    Cancel,
    Cancelled,
    CloseSegment,
    Command,
    Dropped,
    EngineEvent,
    EngineFailed,
    Event,
    Failed,
    Feed,
    Final,
    Finish,
    Heard,
    Mute,
    OpenSegment,
    Output,
    Start,
    Started,
    StreamOptions,
    Token,
)
from server.core.session import Session, SessionError, SessionSettings
from server.core.voice import VoiceDetector
from server.engines.base import EngineError, EngineInfo, EngineStream
from server.engines.registry import Model, Models, UnknownModelError
from server.metrics import Metrics
from wire.pcm import seconds_of

_log = structlog.get_logger("earmark.hearing")

_SEGMENT_MARGIN_SECONDS = 10.0
"""Left free below an engine's longest segment: the last seconds of an utterance may exceed the target length."""

_RECORDING_LOOKAHEAD_SECONDS = 30.0
"""A recording is all there: so much of it may wait at the engine."""


class Observer(Protocol):
    """Sees everything that happens to one client's utterances: for metrics, recordings of audio, logs of transcripts."""

    def command(self, command: Command, now: float) -> None:
        """The client wants this; it may still be refused."""

    def event(self, event: Event, now: float) -> None:
        """The client is told this."""

    def closed(self) -> None:
        """The client is gone, with whatever was under way."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What every hearing needs of the server. ``observe`` makes further observers, given the surface's name and who the client is."""

    models: Models
    metrics: Metrics
    voice: Callable[[], VoiceDetector] | None = None
    observe: Callable[[str, str], Sequence[Observer]] = lambda surface, client: ()  # noqa: ARG005


class Owner(Protocol):
    """Whom a hearing tells what happens."""

    def told(self, event: Event, now: float) -> None:
        """Something for the client."""

    def refused(self, error: SessionError) -> None:
        """A command makes no sense now, or asks for a model that is not loaded (reason ``model_not_found``); nothing has changed."""

    def progressed(self, event: EngineEvent | None) -> None:
        """After the engine has said something, or the timer rang (None), and all that follows from it was told."""

    def crashed(self) -> None:
        """A bug of ours, logged already. Nothing more will be told."""


def policy_for(info: EngineInfo, policy: SessionSettings) -> SessionSettings:
    """A surface's policy within the bounds of an engine."""
    segment_seconds = policy.segment_seconds
    if info.max_segment_seconds is not None:
        longest = info.max_segment_seconds
        segment_seconds = min(segment_seconds or longest, longest - _SEGMENT_MARGIN_SECONDS)
    return replace(
        policy,
        default_delay_seconds=info.default_delay_seconds,
        timed_words=info.words,
        segment_seconds=segment_seconds,
    )


class Hearing:
    """See the module. ``close`` has to be called when the client is gone."""

    def __init__(
        self, surface: str, policy: SessionSettings, resources: Resources, owner: Owner, client: str = ""
    ) -> None:
        self._surface = surface
        self._policy = policy
        self._models = resources.models
        self._owner = owner
        default = policy_for(self._models.default.engine.info, policy)
        self._session = Session(default, resources.voice, for_model=self._policy_for)
        self._loop = asyncio.get_running_loop()
        self._streams: dict[int, tuple[EngineStream, Model]] = {}
        self._held: set[Model] = set()
        self._happenings: deque[Command | EngineEvent] = deque()
        self._working = False
        self._closed = False
        self._timer: asyncio.Handle | None = None
        self._timer_due = 0.0  # uvloop's handles do not know, when it is at once
        self._observed = _Observed(resources.metrics, surface)
        self._observers = resources.observe(surface, client)

    # ---- what the owner asks

    @property
    def busy(self) -> bool:
        """Whether an utterance is under way."""
        return self._session.busy

    @property
    def working(self) -> bool:
        """Whether a happening is being worked off at this moment, further up the stack."""
        return self._working

    @property
    def accepts_audio(self) -> bool:
        """False while as much audio waits as may wait."""
        return self._session.accepts_audio

    @property
    def unheard_seconds(self) -> float:
        """Audio received and not yet heard by the engine."""
        return self._session.unheard_seconds

    # ---- what the owner does

    def do(self, command: Command) -> None:
        """Carry the command out, or have it wait its turn. An engine may answer from inside."""
        if self._closed:
            return
        if isinstance(command, Start) and not self._hold(command.options):
            return
        self._happen(command)
        self._rearm()

    def error(self, reason: str) -> None:
        """Count an error that the client was told."""
        self._observed.error(reason)

    def close(self) -> None:
        """The client is gone: stop everything."""
        if self._closed:
            return
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for stream, _ in self._streams.values():
            stream.abort()
        self._streams.clear()
        if self._session.busy:
            self._observed.outcome("cancelled")
        for observer in self._observers:
            observer.closed()
        for model in self._held:
            model.let_go(self)
        self._held.clear()

    def lose(self, model: str) -> None:
        """The model is being taken away: whatever it hears fails."""
        for number, (stream, owner) in list(self._streams.items()):
            if owner.id == model:
                stream.abort()
                self._heard(EngineFailed(number, "processing_error", f"model {model!r} was unloaded"))

    # ---- models

    def _hold(self, options: StreamOptions) -> bool:
        try:
            model = self._models.find(options.model)
        except UnknownModelError as error:
            self._owner.refused(SessionError("model_not_found", str(error)))
            return False
        model.hold(self)
        self._held.add(model)
        return True

    def _let_go(self) -> None:
        for model in self._held:
            model.let_go(self)
        self._held.clear()

    def _policy_for(self, name: str) -> SessionSettings:
        for model in self._held:  # also one that is leaving: who holds it still uses it
            if name == model.id or name in model.names:
                return policy_for(model.engine.info, self._policy)
        return policy_for(self._models.find(name).engine.info, self._policy)

    def _model(self, name: str | None) -> Model:
        for model in self._held:
            if name is not None and (name == model.id or name in model.names):
                return model
        return self._models.find(name)

    # ---- happenings

    def _happen(self, happening: Command | EngineEvent) -> None:
        """Let the session see it. An engine may answer from inside ``feed``: then it waits for its turn."""
        self._happenings.append(happening)
        if self._working:
            return
        self._working = True
        try:
            while self._happenings:
                current = self._happenings.popleft()
                now = self._loop.time()
                if isinstance(current, Start | Audio | Finish | Cancel):
                    self._observed.command(current, now)
                    for observer in self._observers:
                        observer.command(current, now)
                try:
                    outputs = self._session.handle(current, now)
                except SessionError as error:
                    self._owner.refused(error)
                    continue
                for output in outputs:
                    self._carry_out(output, now)
        finally:
            self._working = False
        if self._held and not self._session.busy:
            self._let_go()

    def _heard(self, event: EngineEvent) -> None:
        """The sink of every engine stream of this client."""
        if self._closed:
            return
        if not isinstance(event, Heard):
            self._streams.pop(event.segment, None)
        try:
            self._happen(event)
            self._owner.progressed(event)
            self._rearm()
        except Exception:  # noqa: BLE001 - logged by _crash, which ends this client's hearing alone
            self._crash()

    def _carry_out(self, output: Output, now: float) -> None:
        match output:
            case Feed(number, pcm):
                open_stream = self._streams.get(number)
                if open_stream is not None:
                    open_stream[0].feed(pcm)
            case OpenSegment(number):
                self._observed.segment()
                self._open(output)
            case CloseSegment(number):
                open_stream = self._streams.get(number)
                if open_stream is not None:
                    open_stream[0].finish()
            case AbortSegment(number):
                open_stream = self._streams.pop(number, None)
                if open_stream is not None:
                    open_stream[0].abort()
            case _:
                self._observed.event(output, now, self._session.unheard_seconds)
                for observer in self._observers:
                    observer.event(output, now)
                self._owner.told(output, now)

    def _open(self, segment: OpenSegment) -> None:
        try:
            model = self._model(segment.options.model)
        except UnknownModelError as error:
            self._happenings.append(EngineFailed(segment.segment, "processing_error", str(error)))
            return
        self._streams[segment.segment] = model.engine.open(segment, self._heard), model

    def _crash(self) -> None:
        """A bug of ours: this client's hearing ends, the others never notice."""
        _log.exception("hearing failed", surface=self._surface)
        self._happenings.clear()
        self._owner.crashed()

    # ---- time

    def _rearm(self) -> None:
        """Have ``_time_is_up`` called no later than the session's next deadline; too early does no harm."""
        if self._closed:
            return
        due = self._session.deadline()
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
        if self._closed:
            return
        now = self._loop.time()
        try:
            for output in self._session.expire(now):
                self._carry_out(output, now)
            if self._held and not self._session.busy:
                self._let_go()
            self._owner.progressed(None)
            self._rearm()
        except Exception:  # noqa: BLE001 - logged by _crash, which ends this client's hearing alone
            self._crash()


class RecordingError(EngineError):
    """A recording was not transcribed; ``code`` is one of the session's: ``processing_error``, ``overloaded``, ``model_not_found``..."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class _RecordingOwner:
    def __init__(self, tell: Callable[[Event], None] | None) -> None:
        self._tell = tell
        self.over: asyncio.Future[Final] = asyncio.get_running_loop().create_future()

    def told(self, event: Event, now: float) -> None:  # noqa: ARG002 - part of Owner
        if self._tell is not None:
            self._tell(event)
        match event:
            case Final() if not self.over.done():
                self.over.set_result(event)
            case Failed(_, code, message):
                self._fail(code, message)

    def refused(self, error: SessionError) -> None:
        self._fail(error.reason, error.message)

    def progressed(self, event: EngineEvent | None) -> None:
        pass

    def crashed(self) -> None:
        self._fail("internal_error", "internal error")

    def _fail(self, code: str, message: str) -> None:
        if not self.over.done():
            self.over.set_exception(RecordingError(code, message))


async def hear_recording(
    pcm: bytes,
    options: StreamOptions,
    surface: str,
    policy: SessionSettings,
    resources: Resources,
    tell: Callable[[Event], None] | None = None,
    client: str = "",
) -> Final:
    """Have a whole recording (PCM16, mono, 16 kHz) heard as one utterance, rolled like any stream; cancelling it frees everything.

    ``tell`` is told every event as it happens, the Final last.

    Raises:
        RecordingError: the engine failed or refused.
    """
    owner = _RecordingOwner(tell)
    unhurried = replace(
        policy,
        max_backlog_seconds=None,
        lookahead_seconds=max(policy.lookahead_seconds, _RECORDING_LOOKAHEAD_SECONDS),
    )
    hearing = Hearing(surface, unhurried, resources, owner, client)
    try:
        hearing.do(Start("recording", options))
        if pcm and not owner.over.done():
            hearing.do(Audio(pcm))
        if not owner.over.done():
            hearing.do(Finish())
        return await owner.over
    finally:
        hearing.close()


class _Observed:
    """What a hearing adds to the metrics."""

    def __init__(self, metrics: Metrics, surface: str) -> None:
        self._audio = metrics.audio_seconds.labels(surface)
        self._dropped = metrics.dropped_seconds.labels(surface)
        self._mute = metrics.mute.labels(surface)
        self._segments = metrics.segments.labels(surface)
        self._first_token = metrics.first_token.labels(surface)
        self._finalisation = metrics.finalisation.labels(surface)
        self._lag = metrics.audio_lag.labels(surface)
        self._metrics = metrics
        self._surface = surface
        self._first_audio_at: float | None = None
        self._finished_at: float | None = None
        self._silent = True

    def error(self, reason: str) -> None:
        self._metrics.errors.labels(self._surface, reason).inc()

    def segment(self) -> None:
        self._segments.inc()

    def outcome(self, outcome: str) -> None:
        self._metrics.utterances.labels(self._surface, outcome).inc()

    def command(self, command: Command, now: float) -> None:
        match command:
            case Audio(pcm):
                self._audio.inc(seconds_of(len(pcm)))
                if self._first_audio_at is None:
                    self._first_audio_at = now
            case Finish():
                self._finished_at = now
            case Start() | Cancel():
                pass

    def event(self, event: Event, now: float, unheard_seconds: float) -> None:
        match event:
            case Token():
                self._lag.observe(unheard_seconds)
                if self._silent and self._first_audio_at is not None:
                    self._first_token.observe(now - self._first_audio_at)
                self._silent = False
            case Started():
                self._silent, self._first_audio_at, self._finished_at = True, None, None
            case Final(ended_by=ended_by):
                if ended_by == "client" and self._finished_at is not None:
                    self._finalisation.observe(now - self._finished_at)
                self.outcome("final")
            case Failed():
                self.outcome("failed")
            case Cancelled(utterances):
                for _ in utterances:
                    self.outcome("cancelled")
            case Dropped(_, seconds):
                self._dropped.inc(seconds)
            case Mute():
                self._mute.inc()
            case _:
                pass
