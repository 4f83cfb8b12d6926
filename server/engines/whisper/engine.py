"""Whisper as the server sees it: streams on the event loop, their windows decoded by a few threads, one model for all."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions, Usage
from server.engines.base import MOST_TEMPERATURE, EngineError, EngineInfo, EngineStream, Sink
from server.engines.sphinx.settings import DELAY_STEP_SECONDS, MAX_DELAY_SECONDS, check_delay
from server.engines.whisper.hearing import Hearing, Progress, Window
from server.engines.whisper.languages import LANGUAGES, check_language
from server.engines.whisper.model import Decoded, Model, Wanted, check_task
from server.engines.whisper.settings import PROFILES, WhisperSettings
from server.engines.whisper.turns import Turns

__all__ = ["THREAD_NAME", "WhisperEngine"]

log = logging.getLogger(__name__)

STOPPED = "the recogniser is stopped"
THREAD_NAME = "whisper"
LATE_SECONDS = 1.0
"""A stream with so much audio that no window has reached is a burst, or there are too many streams."""
TOLD_SECONDS = 0.4


class _Stream:
    """One segment being heard."""

    def __init__(self, engine: WhisperEngine, segment: int, hearing: Hearing, wanted: Wanted, sink: Sink) -> None:
        self.hearing = hearing
        self.wanted = wanted
        self.admitted = False
        self.decoding = False
        self.ended = False
        self._engine = engine
        self._segment = segment
        self._sink: Sink | None = sink
        self._words = 0
        self._told_seconds = 0.0  # audio that counts as heard

    # ---- what the session asks

    def feed(self, pcm: bytes) -> None:
        if self.ended:
            return
        if self.hearing.finishing:
            raise RuntimeError("audio after finish")
        self.hearing.add(pcm)
        limit = self._engine.settings.backlog_seconds
        if self.hearing.end_seconds - self.hearing.heard_seconds > limit:
            self.fail("overloaded", f"more than {limit:g} s of audio wait to be heard")
            return
        self.take_ahead()
        self._engine.consider(self)

    def finish(self) -> None:
        if not self.ended:
            self.hearing.finishing = True
            self._engine.consider(self)

    def abort(self) -> None:
        self._sink = None
        self._end()

    # ---- what the engine has to tell

    def heard(self, window: Window, decoded: Decoded) -> None:
        """A window was decoded."""
        if self.wanted.language is None and decoded.words:
            self._keep_language(window, decoded)
        forced = self.hearing.forced_cuts
        self._progress(self.hearing.hear(window, decoded.words))
        self._engine.forced_cuts += self.hearing.forced_cuts - forced

    def done(self) -> None:
        """All audio was decoded, and no more comes."""
        last = self.hearing.finish()
        if last.committed:
            self._progress(last)
        self._end()
        steps = round(self.hearing.heard_seconds / DELAY_STEP_SECONDS)
        self._tell(SegmentDone(self._segment, Usage(steps, self._words)))

    def fail(self, code: str, message: str) -> None:
        """Give the stream up."""
        self._end()
        self._tell(EngineFailed(self._segment, code, message))

    def _keep_language(self, window: Window, decoded: Decoded) -> None:
        """Detecting costs as much as decoding, and later windows may be too short to tell: once is enough."""
        if window.end_seconds - window.start_seconds >= self._engine.settings.detect_seconds:
            self.wanted = Wanted(self.wanted.profile, self.wanted.task, decoded.language)

    def take_ahead(self) -> None:
        """Ask for more where audio waits: the next window takes in all of it, and a large one costs little more than a small one."""
        fed, heard = self.hearing.end_seconds, self.hearing.heard_seconds
        told = min(fed, heard + self._engine.settings.ahead_seconds)
        if self.admitted and fed - heard > LATE_SECONDS and told - self._told_seconds >= TOLD_SECONDS:
            self._told_seconds = told
            self._tell(Heard(self._segment, told, "", self.hearing.tentative, transcribed_seconds=heard))

    def _progress(self, said: Progress) -> None:
        self._words += len(said.words)
        heard = said.audio_seconds
        self._told_seconds = max(self._told_seconds, heard)
        transcribed = heard if heard < self._told_seconds else None
        self._tell(Heard(self._segment, self._told_seconds, said.committed, said.tentative, said.words, transcribed))

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._engine.release(self)

    def _tell(self, event: EngineEvent) -> None:
        """Say it from the loop: the caller may be in the midst of opening or feeding, and what the sink does wrong is its own."""
        self._engine.loop.call_soon(self._deliver, event)

    def _deliver(self, event: EngineEvent) -> None:
        if self._sink is not None:  # not aborted in the meantime
            self._sink(event)


class WhisperEngine:
    """Whisper models through faster-whisper.

    Whisper hears windows, not streams. So a stream's newest audio is decoded again and again, as often as ``workers`` threads get round to
    it, and text on which two decodings agree is committed. A stream has one decoding at a time; those whose audio has ended come
    first, then whoever has waited longest. The library lets go of the interpreter while it computes, so the event loop goes on.
    """

    def __init__(self, settings: WhisperSettings | None = None) -> None:
        self.settings = settings or WhisperSettings()
        self.loop: asyncio.AbstractEventLoop
        self.forced_cuts = 0
        self._model: Model | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._streams: set[_Stream] = set()  # that have a slot
        self._waiting: deque[_Stream] = deque()  # for one
        self._turns: Turns[_Stream] = Turns()
        self._running: set[asyncio.Future[Decoded]] = set()
        self._decodes = 0
        self._last_decodes = 0
        self._decode_seconds = 0.0
        self._failed_decodes = 0
        self._refused = 0

    @property
    def info(self) -> EngineInfo:
        steps = round(MAX_DELAY_SECONDS / DELAY_STEP_SECONDS)
        return EngineInfo(
            name="whisper",
            model=self.settings.model.rstrip("/").rpartition("/")[2],
            default_delay_seconds=self.settings.default_delay_seconds,
            delays_seconds=tuple(round(step * DELAY_STEP_SECONDS, 2) for step in range(1, steps + 1)),
            languages=self._languages,
            slots=self.settings.slot_count,
            words=True,
        )

    @property
    def _languages(self) -> tuple[str, ...]:
        if self._model is not None:
            return self._model.languages
        return ("en",) if self.settings.model.endswith(".en") else LANGUAGES

    def metrics(self) -> dict[str, float]:
        return {
            "busy_slots": len(self._streams),
            "waiting": len(self._waiting),
            "queued": len(self._turns),
            "decoding": len(self._running),
            "decodes": self._decodes,
            "last_decodes": self._last_decodes,
            "decode_seconds": self._decode_seconds,
            "failed_decodes": self._failed_decodes,
            "forced_cuts": self.forced_cuts,
            "refused": self._refused,
        }

    # ---- start and stop

    async def start(self) -> None:
        """Find or fetch the model, load it and decode once.

        Raises:
            EngineError: faster-whisper is not installed, the model cannot be had, or it does not work here.
        """
        self.loop = asyncio.get_running_loop()
        threads = ThreadPoolExecutor(self.settings.workers, thread_name_prefix=THREAD_NAME)
        try:
            self._model = await self.loop.run_in_executor(threads, Model.load, self.settings)
        except BaseException as error:
            # who does not want to wait for the end of the loading does not have to
            threads.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
            raise
        self._threads = threads

    async def stop(self) -> None:
        """Let the decodings under way end, and all threads; streams still under way fail."""
        self._model = None
        for stream in [*self._waiting, *self._streams]:
            stream.fail("processing_error", STOPPED)
        if self._running:
            await asyncio.wait(self._running)
        if self._threads is not None:
            self._threads.shutdown()
            self._threads = None

    # ---- streams

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        """Hear a segment as soon as a slot is free; fails through ``sink`` when as many as there are slots wait already."""
        settings, options = self.settings, segment.options
        problem = None
        delay_seconds, wanted = settings.default_delay_seconds, Wanted(PROFILES["realtime"], "transcribe", None)
        try:
            if self._model is None:
                raise EngineError(STOPPED)
            if options.delay_seconds is not None:
                delay_seconds = check_delay(options.delay_seconds) * DELAY_STEP_SECONDS
            wanted = self._wanted(options)
        except EngineError as error:
            problem = str(error)
        stream = _Stream(self, segment.segment, Hearing(settings, delay_seconds), wanted, sink)
        if problem is not None:
            stream.fail("processing_error", problem)
        elif len(self._waiting) >= settings.slot_count:
            self._refused += 1
            slots = settings.slot_count
            stream.fail(
                "overloaded", f"all {slots} slots of the recogniser are taken and {slots} segments wait already"
            )
        else:
            self._waiting.append(stream)
            self._admit()
        return stream

    def _wanted(self, options: StreamOptions) -> Wanted:
        """What the options ask of the decoder; the settings stand in for what they do not say.

        Raises:
            EngineError: the model cannot do that.
        """
        settings = self.settings
        name = options.profile or settings.profile
        profile = settings.profiles.get(name)
        if profile is None:
            raise EngineError(f"profile must be one of {', '.join(settings.profiles)}, got {name!r}")
        if not 0 <= options.temperature <= MOST_TEMPERATURE:
            raise EngineError(f"temperature must be in 0..{MOST_TEMPERATURE:g}, got {options.temperature!r}")
        if options.temperature:
            profile = replace(profile, temperature=options.temperature)
        task = settings.task if options.task == "transcribe" else options.task
        translates = self._model is not None and self._model.translates
        language = check_language(options.language or settings.language, self._languages)
        return Wanted(profile, check_task(task, translates=translates), language)

    def consider(self, stream: _Stream) -> None:
        """Something about the stream has changed: it may have to be decoded, or be done."""
        if stream.ended or stream.decoding or not stream.admitted:
            return
        if stream.hearing.due:
            self._turns.ask(stream, last=stream.hearing.finishing)
            self._dispatch()
        elif stream.hearing.over:
            stream.done()

    def release(self, stream: _Stream) -> None:
        """The stream is at its end. A decoding of it that is under way is not waited for, nor is its result."""
        self._streams.discard(stream)
        self._turns.leave(stream)
        if stream in self._waiting:
            self._waiting.remove(stream)
        self._admit()

    def _admit(self) -> None:
        """Give free slots to those who wait for one, in the order of their coming."""
        while self._waiting and len(self._streams) < self.settings.slot_count:
            stream = self._waiting.popleft()
            stream.admitted = True
            self._streams.add(stream)
            stream.take_ahead()
            self.consider(stream)

    def _dispatch(self) -> None:
        """Give free threads to those who wait."""
        while self._turns and len(self._running) < self.settings.workers:
            model = self._model
            if model is None:
                return
            stream = self._turns.next()
            stream.decoding = True
            window = stream.hearing.window()
            self._last_decodes += stream.hearing.finishing
            future = self.loop.run_in_executor(self._threads, model.decode, window.pcm, window.prompt, stream.wanted)
            self._running.add(future)
            future.add_done_callback(partial(self._decoded, stream, window))

    def _decoded(self, stream: _Stream, window: Window, future: asyncio.Future[Decoded]) -> None:
        self._running.discard(future)
        stream.decoding = False
        error = future.exception()
        if error is not None:
            self._failed_decodes += 1
            log.error("a window could not be decoded", exc_info=error)
            if not stream.ended:
                stream.fail("processing_error", f"the recogniser failed: {error}")
        else:
            decoded = future.result()
            self._decodes += 1
            self._decode_seconds += decoded.seconds
            if not stream.ended:
                stream.heard(window, decoded)
        self.consider(stream)
        self._dispatch()
