"""Voxtral Realtime on vLLM as the server sees it: streams that wait for a slot, hear in steps of 80 ms and give the slot back."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections import deque
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions, Usage
from server.engines.base import EngineError, EngineInfo, EngineStream, Sink
from server.engines.vllm import delays, internals, snapshot, tuning
from server.engines.vllm.frames import Frames
from server.engines.vllm.mark import mark
from server.engines.vllm.settings import VllmSettings
from server.engines.vllm.text import TokenText

__all__ = ["VllmEngine"]

log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.4
"""Progress is told at least this often, in seconds of audio."""

_PADDING_STEPS = 43
"""Left and right padding of a stream, less its delay: 32 steps before the audio, 11 behind it."""

_LANGUAGES = ("ar", "de", "en", "es", "fr", "hi", "it", "ja", "ko", "nl", "pt", "ru", "zh")
STOPPED = "the recogniser is stopped"


class _Stream:
    """One segment, waiting for a slot or heard."""

    def __init__(self, engine: VllmEngine, segment: OpenSegment, request: str, delay_ms: int, sink: Sink) -> None:
        opening = engine.opening(delay_ms)
        self.request = request
        self.ended = False
        self.running = False
        self.timer: asyncio.TimerHandle | None = None  # of its patience while it waits
        self._engine = engine
        self._segment = segment.segment
        self._sink: Sink | None = sink
        self._prompt = opening.prompt
        self._frames = Frames(opening.shape, engine.mark(delay_ms))
        self._text = TokenText(engine.core.tokenizer.pieces)
        self._next: tuple[int, ...] | None = (
            opening.prompt
        )  # what the next step begins with; None while one is under way
        self._steps = 0
        self._said = 0
        self._reported_seconds = 0.0
        self._finished = False

    # ---- what the session asks

    def feed(self, pcm: bytes) -> None:
        if self.ended:
            return
        if self._finished:
            raise RuntimeError("audio after finish")
        self._frames.append(pcm)
        limit = self._engine.settings.backlog_seconds
        if self._frames.fed_seconds - self._frames.taken_seconds > limit:
            self.fail("overloaded", f"more than {limit:g} s of audio wait to be heard")
            return
        self._advance()

    def finish(self) -> None:
        if self.ended or self._finished:
            return
        self._finished = True
        self._frames.finish()
        self._advance()

    def abort(self) -> None:
        self._sink = None
        self._end()

    # ---- what the engine has to tell

    def begin(self) -> None:
        """There is a slot."""
        self.running = True
        self._advance()

    def heard(self, token: int) -> None:
        """The token of the step under way."""
        self._said += 1
        self._next = (token,)
        text = self._text.take(token)
        self._advance()  # before anybody is told: the engine need not wait for that
        self._report(text)
        if not self.ended and self._next is not None and self._frames.exhausted:
            self._done()

    def fail(self, code: str, message: str) -> None:
        """Give the stream up."""
        if self.ended:
            return
        self._end()
        self._tell_soon(EngineFailed(self._segment, code, message))

    # ---- inside

    def _advance(self) -> None:
        """Take the next step if its audio is there and the one before is done."""
        if not self.running or self.ended or self._next is None:
            return
        frame = self._frames.next()
        if frame is not None and len(self._prompt) + self._steps >= self._engine.core.max_model_len:
            self.fail("processing_error", f"the segment is longer than {self._engine.core.max_model_len} tokens")
        elif frame is not None:
            self._engine.core.step(self.request, self._steps, self._next, frame)
            self._steps += 1
            self._next = None
        elif not self._steps:
            self._report("")  # what is kept for the first step has arrived; the session may go on feeding

    def _report(self, text: str) -> None:
        seconds = self._frames.taken_seconds
        if text or seconds - self._reported_seconds >= _REPORT_SECONDS:
            self._reported_seconds = seconds
            self._tell(Heard(self._segment, seconds, text))

    def _done(self) -> None:
        rest = self._text.end()
        usage = Usage(len(self._prompt), self._said)
        self._end()
        if rest:
            self._tell(Heard(self._segment, self._frames.taken_seconds, rest))
        self._tell(SegmentDone(self._segment, usage))

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._engine.release(self)

    def _tell(self, event: EngineEvent) -> None:
        if self._sink is not None:
            self._sink(event)

    def _tell_soon(self, event: EngineEvent) -> None:
        """From the loop: the caller may be in the midst of opening."""
        self._engine.loop.call_soon(self._tell, event)


class VllmEngine:
    """See the module. Slots are vLLM's ``max_num_seqs``, or as many streams of full length as its KV cache holds, if that is less."""

    def __init__(self, settings: VllmSettings) -> None:
        self.settings = settings
        self.core: internals.Core
        self.loop: asyncio.AbstractEventLoop
        self._model = snapshot.model_name(settings.model_dir, settings.model_id)
        self._caveat = snapshot.caveat(settings.model_dir)
        self._slots = settings.max_num_seqs or 128
        self._openings: dict[int, internals.Opening] = {}
        self._running: dict[str, _Stream] = {}
        self._waiting: deque[_Stream] = deque()
        self._receiver: asyncio.Task[None] | None = None
        self._held = ExitStack()
        self._started = False
        self._failure = ""
        self._opened = 0
        self._refused = 0
        self._steps = 0

    @property
    def info(self) -> EngineInfo:
        settings = self.settings
        allowed = delays.allowed_ms(untrained=settings.allow_untrained_delay)
        if settings.uniform_delay:
            allowed = (settings.default_delay_ms,)
        longest_tokens = settings.max_model_len - 1 - _PADDING_STEPS - max(allowed) // delays.STEP_MS
        return EngineInfo(
            name="vllm",
            model=self._model,
            default_delay_seconds=settings.default_delay_ms / 1000,
            delays_seconds=tuple(ms / 1000 for ms in allowed),
            languages=_LANGUAGES,
            slots=self._slots,
            words=False,
            max_segment_seconds=longest_tokens * delays.STEP_SECONDS,
            caveat=self._caveat,
        )

    def metrics(self) -> dict[str, float]:
        figures = self.core.figures if self._started else internals.Figures()
        return {
            "busy_slots": len(self._running),
            "waiting": len(self._waiting),
            "failed": float(bool(self._failure)),
            "refused": self._refused,
            "steps": self._steps,
            "core_running": figures.running,
            "core_waiting": figures.waiting,
            "kv_cache_usage": figures.kv_cache_usage,
            "kv_cache_tokens": self.core.kv_cache_tokens if self._started else 0,
        }

    # ---- start and stop

    async def start(self) -> None:
        """Fetch the model if need be, tune, load. The loop stands still while vLLM loads: nobody is served yet.

        Raises:
            EngineError: with a sentence that tells the operator what to do.
        """
        self.loop = asyncio.get_running_loop()
        settings = self.settings
        internals.check_installation(plugin=not settings.uniform_delay)
        await asyncio.to_thread(snapshot.fetch, settings.model_dir, settings.model_id, os.environ.get("HF_TOKEN"))
        params = snapshot.read_params(settings.model_dir)
        internals.prepare_environment(settings)
        internals.import_vllm()
        tuned = tuning.tune(settings, internals.machine(), params)
        directory = settings.model_dir
        if settings.uniform_delay:
            directory = self._held.enter_context(snapshot.with_delay(directory, settings.default_delay_ms))
        try:
            self.settings, self.core = _start_core(tuned.settings, directory)
        except BaseException:
            self._held.close()
            raise
        fitting = int(self.core.full_length_streams) or self.settings.max_num_seqs or 1
        self._slots = min(self.settings.max_num_seqs or 1, fitting)
        kept = tuning.Choice(
            "slots",
            str(self._slots),
            f"KV cache of {self.core.kv_cache_tokens} tokens, {fitting} streams of full length",
        )
        log.info("vLLM is ready (%s)\n%s", self.core.dtype, tuning.Tuned(self.settings, (*tuned.choices, kept)).table())
        self._started = True
        self._receiver = asyncio.create_task(self._supervise())
        await self._warm_up()
        gc.collect()
        gc.freeze()  # what vLLM and torch brought stays for ever: no collection need look at it again

    async def _warm_up(self) -> None:
        """Hear a little silence, so that the first client does not wait for what is made on first use."""
        done: asyncio.Future[EngineEvent] = self.loop.create_future()

        def take(event: EngineEvent) -> None:
            if not isinstance(event, Heard) and not done.done():
                done.set_result(event)

        stream = self.open(OpenSegment(0, StreamOptions()), take)
        stream.feed(bytes(32000))
        stream.finish()
        event = await done
        if isinstance(event, EngineFailed):
            await self.stop()
            raise EngineError(f"vLLM cannot hear a second of silence: {event.message}")

    async def stop(self) -> None:
        """End the engine process; streams still under way fail."""
        if not self._started:
            return
        self._started = False
        if self._receiver is not None:
            self._receiver.cancel()
            await asyncio.wait([self._receiver])
        self._fail_all(STOPPED)
        await self.core.stop()
        gc.unfreeze()  # or libraries complain about leaks when the interpreter ends
        self._held.close()

    async def _supervise(self) -> None:
        try:
            await self._receive()
        except internals.CoreDiedError as error:
            self._die(f"vLLM's engine process died: {error}")
        except Exception as error:
            log.exception("the vLLM engine failed")
            self._die(f"the vLLM engine failed: {type(error).__name__}: {error}")

    async def _receive(self) -> None:
        while True:
            for heard in await self.core.receive():
                stream = self._running.get(heard.request)
                if stream is None:
                    continue  # said before the engine process knew that the stream had ended
                try:
                    if heard.token is None:
                        stream.fail("processing_error", f"vLLM ended the segment: {heard.failure}")
                    else:
                        self._steps += 1
                        stream.heard(heard.token)
                except Exception:
                    log.exception("a stream failed")  # a bug of ours or of its sink's: the others go on
                    stream.fail("processing_error", "internal error")

    def _die(self, message: str) -> None:
        if self._failure or not self._started:
            return
        self._failure = message
        log.error("%s", message)
        self._fail_all(message)

    def _fail_all(self, message: str) -> None:
        for stream in [*self._waiting, *self._running.values()]:
            stream.fail("processing_error", message)

    # ---- streams

    def open(self, segment: OpenSegment, sink: Sink) -> EngineStream:
        """Hear a segment as soon as there is a slot; fails through ``sink`` when too many wait already, or it waits too long."""
        try:
            delay_ms = self._check(segment.options)
        except EngineError as error:
            return self._refuse(segment, sink, "processing_error", str(error))
        if self._failure or not self._started:
            return self._refuse(segment, sink, "processing_error", self._failure or STOPPED)
        if len(self._running) >= self._slots and len(self._waiting) >= (self.settings.waiting or self._slots):
            self._refused += 1
            message = f"all {self._slots} slots are busy and {len(self._waiting)} segments wait already"
            return self._refuse(segment, sink, "overloaded", message)
        self._opened += 1
        stream = _Stream(self, segment, f"s{self._opened}", delay_ms, sink)
        self._waiting.append(stream)
        self._dispatch()
        if not stream.running:
            stream.timer = self.loop.call_later(self.settings.waiting_seconds, self._lose_patience, stream)
        return stream

    def _check(self, options: StreamOptions) -> int:
        """The delay in milliseconds.

        Raises:
            EngineError: the options ask for what the engine cannot do.
        """
        settings = self.settings
        if options.language is not None and options.language.lower().split("-")[0] not in _LANGUAGES:
            raise EngineError(f"language {options.language!r} is not one of {', '.join(_LANGUAGES)}")
        if options.delay_seconds is None:
            return settings.default_delay_ms
        delay_ms = round(options.delay_seconds * 1000)
        delays.check_ms(delay_ms, untrained=settings.allow_untrained_delay)
        if settings.uniform_delay and delay_ms != settings.default_delay_ms:
            raise EngineError(f"this server has one delay for all streams, {settings.default_delay_ms} ms")
        return delay_ms

    def _refuse(self, segment: OpenSegment, sink: Sink, code: str, message: str) -> EngineStream:
        stream = _RefusedStream(EngineFailed(segment.segment, code, message), sink)
        asyncio.get_running_loop().call_soon(stream.tell)
        return stream

    def opening(self, delay_ms: int) -> internals.Opening:
        """How streams of a delay begin and end."""
        if delay_ms not in self._openings:
            self._openings[delay_ms] = self.core.tokenizer.opening(delay_ms)
        return self._openings[delay_ms]

    def mark(self, delay_ms: int) -> np.float32 | None:
        """What frames of streams of a delay carry; the unmodified model knows no mark."""
        return None if self.settings.uniform_delay else mark(delay_ms // delays.STEP_MS)

    def release(self, stream: _Stream) -> None:
        """The stream is at its end: its slot is free at once, since the engine process sees the abort first."""
        if stream.timer is not None:
            stream.timer.cancel()
        if stream.running:
            del self._running[stream.request]
            if not self._failure:
                self.core.abort(stream.request)
                self._dispatch()
        elif stream in self._waiting:
            self._waiting.remove(stream)

    def _dispatch(self) -> None:
        while self._waiting and len(self._running) < self._slots and self._started and not self._failure:
            stream = self._waiting.popleft()
            if stream.timer is not None:
                stream.timer.cancel()
            self._running[stream.request] = stream
            stream.begin()

    def _lose_patience(self, stream: _Stream) -> None:
        self._refused += 1
        stream.fail(
            "overloaded", f"no slot came free within {self.settings.waiting_seconds:g} s, {self._slots} are busy"
        )


class _RefusedStream:
    """A segment that is not heard."""

    def __init__(self, failed: EngineFailed, sink: Sink) -> None:
        self._failed = failed
        self._sink: Sink | None = sink

    def feed(self, pcm: bytes) -> None:
        """Nobody listens."""

    def finish(self) -> None:
        """It has ended already."""

    def abort(self) -> None:
        self._sink = None

    def tell(self) -> None:
        """Say why."""
        if self._sink is not None:
            self._sink(self._failed)


def _start_core(settings: VllmSettings, directory: Path) -> tuple[VllmSettings, internals.Core]:
    """The engine process, and the settings that it accepted: without an FP8 KV cache where its attention has none."""
    try:
        return settings, internals.Core.start(settings, directory)
    except EngineError as error:
        if not settings.kv_cache_dtype.startswith("fp8"):
            raise
        log.warning("vLLM does not start with an FP8 KV cache, trying without: %s", error)
    plain = replace(settings, kv_cache_dtype="auto")
    return plain, internals.Core.start(plain, directory)
