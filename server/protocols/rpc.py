"""One stream of the gRPC service: chunks go in, commands for a hearing and results for the client come out.

Whoever runs it tells the time with every call, carries the steps out in order, and calls ``due`` when ``deadline`` has come.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from server.core.events import (
    Audio,
    Command,
    Event,
    Failed,
    Final,
    Finish,
    Speech,
    Start,
    Started,
    StreamOptions,
    Tentative,
    Token,
)
from server.core.loudness import Loudness
from server.core.resampling import Resampler
from server.core.rpc_figures import DecodeTiming, RpcFigures
from server.core.session import SessionError
from server.protocols.rpc_sessions import RpcSession, RpcSessions
from wire.pcm import BYTES_PER_SAMPLE, SAMPLE_RATE, seconds_of
from wire.stt import errors
from wire.stt.errors import SttError, SttRefusedError
from wire.stt.languages import LANGUAGES
from wire.stt.stt_pb2 import AudioChunk, STTResult

LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000

_ROUNDING_SECONDS = 1e-6
_MOST_RESULTS = 10_000
"""So many results may wait for a client that does not read, whatever the settings."""

_MOST_RESULT_CHARACTERS = 8 * 2**20
_MOST_ARRIVALS = 5_000


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """The limits of a stream, in seconds unless the name says otherwise. ``None`` switches a limit off."""

    sample_rate: int = SAMPLE_RATE
    max_chunk_seconds: float | None = 2.0
    max_audio_seconds: float | None = 300.0
    partial_interval_seconds: float | None = 1.5
    speech_rms_threshold: float = 0.0
    session_timeout_seconds: float | None = 60.0
    decode_timeout_seconds: float | None = 30.0
    decode_queue_seconds: float | None = 1.0
    max_pending_results: int | None = 8


@dataclass(frozen=True, slots=True)
class Result:
    """One message for the client. ``partial``: its utterance goes on, so a later one says more and this one may be dropped."""

    text: str
    is_final: bool
    partial: bool
    start_seconds: float
    end_seconds: float
    committed_characters: int
    timing: DecodeTiming = DecodeTiming()


@dataclass(frozen=True, slots=True)
class End:
    """The stream ends after what was sent so far: well, or with an error of the table."""

    error: SttError | None = None
    message: str = ""


Step = Command | Result | End


class DecodeQueue:
    """The places for utterances whose audio has ended and whose text has not come, of all streams together. ``limit`` None: no end."""

    def __init__(self, limit: int | None, figures: RpcFigures) -> None:
        self._limit = limit
        self._figures = figures
        self._taken = 0
        self._waiting: deque[RpcStream] = deque()

    @property
    def full(self) -> bool:
        """Whether the next one has to wait."""
        return self._limit is not None and self._taken >= self._limit

    def take(self) -> None:
        """Take a place in any case: the engine is at work on the text already."""
        self._taken += 1
        self._figures.decodes_pending += 1

    def enter(self, stream: RpcStream) -> bool:
        """Take a place; False when the stream has to wait for ``granted``."""
        if self.full:
            self._waiting.append(stream)
            self._figures.decodes_waiting += 1
            return False
        self.take()
        return True

    def leave(self) -> None:
        """Give a place back; who has waited longest has it."""
        self._taken -= 1
        self._figures.decodes_pending -= 1
        while self._waiting and not self.full:
            stream = self._waiting.popleft()
            self._figures.decodes_waiting -= 1
            self.take()
            stream.granted()

    def give_up(self, stream: RpcStream) -> None:
        """The stream does not wait any more."""
        if stream in self._waiting:
            self._waiting.remove(stream)
            self._figures.decodes_waiting -= 1


class Outbox:
    """Results that wait for the client to read. At the limit the oldest partial goes, or the new one where there is none but it; before
    any other result all partials go.
    """

    def __init__(self, limit: int | None, figures: RpcFigures) -> None:
        self._limit = limit
        self._figures = figures
        self._results: deque[Result] = deque()
        self._characters = 0

    def __len__(self) -> int:
        return len(self._results)

    def put(self, result: Result) -> bool:
        """False when the client has left more unread than there can be."""
        if self._limit is not None and len(self._results) >= self._limit:
            partials = [waiting for waiting in self._results if waiting.partial]
            if result.partial and not partials:
                self._figures.partials_dropped += 1
                return True
            for dropped in partials[:1] if result.partial else partials:
                self._results.remove(dropped)
                self._characters -= len(dropped.text)
                self._figures.partials_dropped += 1
        self._results.append(result)
        self._characters += len(result.text)
        return len(self._results) <= _MOST_RESULTS and self._characters <= _MOST_RESULT_CHARACTERS

    def take(self) -> Result | None:
        """The next one to send."""
        if not self._results:
            return None
        result = self._results.popleft()
        self._characters -= len(result.text)
        return result

    def clear(self) -> int:
        """Forget them all; how many there were."""
        count = len(self._results)
        self._results.clear()
        self._characters = 0
        return count


class _Phase(Enum):
    UNBOUND = auto()
    OPEN = auto()
    QUEUED = auto()  # the audio has ended, and the final decode waits for a place
    ENDING = auto()
    OVER = auto()


@dataclass(slots=True)
class _Utterance:
    """What is known of the utterance under way; seconds count from its own first sample."""

    committed: str = ""
    tentative: str = ""
    words_start: float | None = None
    words_end: float = 0.0
    speech_start: float | None = None
    speech_end: float | None = None
    partial_text: str = ""
    partial_at: float = 0.0
    partials: int = 0


class _Arrivals:
    """When which audio of the stream came, as far as no result has covered it."""

    def __init__(self) -> None:
        self._pieces: deque[tuple[float, float]] = deque()  # end in the stream, time
        self._covered_seconds = 0.0

    def add(self, end_seconds: float, now: float) -> None:
        self._pieces.append((end_seconds, now))
        if len(self._pieces) > _MOST_ARRIVALS:
            del self._pieces[1]  # hours without a text: the first one and the newest ones are enough

    def cover(
        self, end_seconds: float, now: float, ended_at: float | None = None, asked_at: float | None = None
    ) -> DecodeTiming:
        """A result covers the audio up to there; of a final one the utterance had ended, and the engine was told, at these times."""
        first = last = self._pieces[0][1] if self._pieces else now if ended_at is None else ended_at
        while self._pieces:
            end, last = self._pieces[0]
            if end > end_seconds + _ROUNDING_SECONDS:
                break
            self._pieces.popleft()
        audio = max(0.0, end_seconds - self._covered_seconds)
        self._covered_seconds = max(self._covered_seconds, end_seconds)
        ended_at = last if ended_at is None else ended_at
        asked_at = ended_at if asked_at is None else asked_at
        return DecodeTiming(max(0.0, ended_at - first), asked_at - ended_at, max(0.0, now - asked_at), audio)


@dataclass(slots=True)
class _Totals:
    """The trailing metadata of a stream, over its results that were handed to the transport."""

    buffer_wait: float = 0.0
    queue_wait: float = 0.0
    inference: float = 0.0
    response_emit: float = 0.0
    count: int = 0

    def metadata(self) -> tuple[tuple[str, str], ...]:
        parts = {
            "buffer-wait": self.buffer_wait,
            "queue-wait": self.queue_wait,
            "inference": self.inference,
            "response-emit": self.response_emit,
        }
        rounded = {name: round(seconds, 6) for name, seconds in parts.items()}
        rounded["total"] = sum(rounded.values())
        seconds = tuple((f"stt-decode-{name}-sec", f"{value:.6f}") for name, value in rounded.items())
        return (*seconds, ("stt-decode-count", str(self.count)))


class RpcStream:
    """See the module. ``wake`` is called when a place in the queue was granted: ``poll`` then has steps."""

    def __init__(
        self,
        sessions: RpcSessions,
        policy: StreamPolicy,
        figures: RpcFigures,
        queue: DecodeQueue,
        now: float,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._policy = policy
        self._figures = figures
        self._queue = queue
        self._wake = wake
        self._phase = _Phase.UNBOUND
        self._session: RpcSession | None = None
        self._options = StreamOptions()
        self._active_at = now
        self._rate = policy.sample_rate
        self._resampler: Resampler | None = None
        self._received_seconds = 0.0  # as the client counts, for the limit
        self._heard_bytes = 0  # handed to the hearing
        self._started = False
        self._offset_seconds = 0.0  # where the utterance under way begins in the stream
        self._utterance = _Utterance()
        self._owed: Result | None = None  # the last utterance's result, as long as it was not told as final
        self._arrivals = _Arrivals()
        self._loudness = Loudness() if policy.speech_rms_threshold > 0 else None
        self._pending = 0  # decodes of this stream among those of the queue
        self._speaking = False
        self._triggered = False  # the speaker has ended the utterance, its text is to come
        self._triggered_at = 0.0
        self._gate_rest = False
        self._ended_at = 0.0
        self._asked_at = 0.0
        self._blocked_at: float | None = None
        self._totals = _Totals()

    # ---- what is known

    @property
    def session(self) -> RpcSession | None:
        """The session that the stream is bound to."""
        return self._session

    @property
    def over(self) -> bool:
        """Whether an End has been said."""
        return self._phase is _Phase.OVER

    @property
    def listening(self) -> bool:
        """Whether chunks are still wanted."""
        return self._phase in (_Phase.UNBOUND, _Phase.OPEN)

    def trailing(self) -> tuple[tuple[str, str], ...]:
        """The trailing metadata; nothing for a stream that was never bound."""
        return self._totals.metadata() if self._session is not None else ()

    # ---- what the client does

    def open(self, metadata: dict[str, str], now: float) -> None:
        """The stream has begun. Metadata ``session-id`` or ``session_id`` binds it before any audio.

        Raises:
            SttRefusedError: there is no such session.
        """
        session_id = metadata.get("session-id", "").strip() or metadata.get("session_id", "").strip()
        if session_id:
            self._bind(session_id, now)

    def receive(self, chunk: AudioChunk, now: float) -> Sequence[Step]:
        """The next chunk. The order of the checks is part of the contract.

        Raises:
            SttRefusedError: the stream has to end with it.
        """
        if not self.listening:
            return []
        self._active_at = now
        if self._session is None:
            self._bind(chunk.session_id, now)
        session = self._session
        assert session is not None
        if chunk.session_id and chunk.session_id != session.id:
            self._figures.chunks_ignored += 1
            return []
        if session.token and not hmac.compare_digest(session.token.encode(), chunk.session_token.encode()):
            raise SttRefusedError(errors.SESSION_TOKEN_INVALID, "session_token is missing or wrong")
        steps: list[Step] = []
        self._take_rate(chunk.sample_rate, steps, now)
        if chunk.pcm16:
            self._check_audio(session, len(chunk.pcm16), now)
            if self._resampler is None:
                self._resampler = Resampler(self._rate)
            self._hear(self._resampler.feed(chunk.pcm16), now, steps)
        if chunk.is_final:
            self._end_audio(now, steps)
        return steps

    def half_close(self, now: float) -> Sequence[Step]:
        """The client sends no more.

        Raises:
            SttRefusedError: it never said which session.
        """
        if not self.listening:
            return []
        if self._session is None:
            self._bind("", now)
        self._gate_rest = True
        steps: list[Step] = []
        self._end_audio(now, steps)
        return steps

    def _bind(self, session_id: str, now: float) -> None:
        self._session = self._sessions.bind(session_id, now)
        self._options = self._session.options
        self._phase = _Phase.OPEN

    def _take_rate(self, rate: int, steps: list[Step], now: float) -> None:
        if rate <= 0 or rate == self._rate:
            return
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            message = f"sample_rate must be in {LOWEST_RATE}..{HIGHEST_RATE} Hz, got {rate}"
            raise SttRefusedError(errors.AUDIO_CHUNK_TOO_LARGE, message)
        self._flush(now, steps)
        self._rate = rate

    def _check_audio(self, session: RpcSession, count: int, now: float) -> None:
        policy = self._policy
        if policy.max_chunk_seconds is not None:
            most = round(policy.max_chunk_seconds * self._rate) * BYTES_PER_SAMPLE
            if count > most:
                message = f"the chunk has {count} bytes, at most {most} are allowed"
                raise SttRefusedError(errors.AUDIO_CHUNK_TOO_LARGE, message)
        if count % BYTES_PER_SAMPLE:
            message = f"pcm16 has samples of {BYTES_PER_SAMPLE} bytes, got {count} bytes"
            raise SttRefusedError(errors.AUDIO_CHUNK_TOO_LARGE, message)
        if not self._sessions.take_bytes(session, count, now):
            limit = self._sessions.policy.bytes_rate
            raise SttRefusedError(errors.STREAM_RATE_LIMITED, f"more than {limit:g} bytes of audio per second")
        self._received_seconds += count / BYTES_PER_SAMPLE / self._rate
        most_seconds = policy.max_audio_seconds
        if most_seconds is not None and self._received_seconds > most_seconds + _ROUNDING_SECONDS:
            message = f"a stream may have {most_seconds:g} s of audio"
            raise SttRefusedError(errors.STREAM_AUDIO_LIMIT_EXCEEDED, message)

    def _hear(self, pcm: bytes, now: float, steps: list[Step]) -> None:
        if not pcm:
            return
        if not self._started:
            self._started = True
            steps.append(Start("stream", self._options))
        self._heard_bytes += len(pcm)
        self._arrivals.add(seconds_of(self._heard_bytes), now)
        if self._loudness is not None:
            self._loudness.feed(pcm)
        steps.append(Audio(pcm))

    def _flush(self, now: float, steps: list[Step]) -> None:
        if self._resampler is not None:
            self._hear(self._resampler.finish(), now, steps)
            self._resampler = None

    def _end_audio(self, now: float, steps: list[Step]) -> None:
        self._flush(now, steps)
        if not self._started:
            steps.append(self._end())
            return
        self._ended_at = now
        if self._queue.enter(self):
            self._finish(now, steps)
        else:
            self._phase = _Phase.QUEUED

    def _finish(self, now: float, steps: list[Step]) -> None:
        self._asked_at = now
        self._phase = _Phase.ENDING
        self._pending += 1
        steps.append(Finish())

    # ---- the queue

    def granted(self) -> None:
        """A place in the queue is the stream's; for the queue."""
        self._wake()

    def poll(self, now: float) -> Sequence[Step]:
        """After ``wake``: the audio's end may go to the engine."""
        if self._phase is not _Phase.QUEUED:
            self._queue.leave()  # granted to one that has ended meanwhile
            return []
        steps: list[Step] = []
        self._finish(now, steps)
        return steps

    # ---- what the hearing tells

    def tell(self, event: Event, heard_seconds: float, now: float) -> Sequence[Step]:
        """The hearing says something. ``heard_seconds``: audio of the utterance under way that the engine has heard."""
        if self.over:
            return []
        utterance = self._utterance
        match event:
            case Started():
                self._utterance = _Utterance()
            case Token(_, text, words):
                utterance.committed += text
                utterance.tentative = ""
                if words:
                    first = utterance.words_start
                    utterance.words_start = words[0].start if first is None else first
                    utterance.words_end = max(utterance.words_end, words[-1].end)
                return self._partial(heard_seconds, now)
            case Tentative(_, text):
                utterance.tentative = text
                return self._partial(heard_seconds, now)
            case Speech(_, speaking, at_seconds):
                self._speech(at_seconds, now, speaking=speaking)
            case Final():
                return self._final(event, now)
            case Failed(_, code, message):
                self._figures.outcome("failure", now)
                return [self._end(errors.DECODE_TASK_FAILED, f"{code}: {message}")]
            case _:
                pass
        return []

    def progressed(self, heard_seconds: float, now: float) -> Sequence[Step]:
        """The engine has heard more audio."""
        self._active_at = now
        if self._blocked_at is not None:
            self._blocked_at = now
        return [] if self.over else self._partial(heard_seconds, now)

    def refused(self, error: SessionError) -> Sequence[Step]:
        """The hearing refused a command: the model is gone (another takes its place), or something is wrong with us."""
        if error.reason == "model_not_found" and self._options.model is not None:
            self._options = self._sessions.plain(self._options)
            return [Start("stream", self._options)]
        return [] if self.over else [self._end(errors.DECODE_TASK_FAILED, error.message)]

    def _speech(self, at_seconds: float, now: float, *, speaking: bool) -> None:
        utterance = self._utterance
        if speaking != self._speaking:
            self._speaking = speaking
            self._figures.vad_utterances += 1 if speaking else -1
        if speaking:
            utterance.speech_start = at_seconds
            return
        utterance.speech_end = at_seconds
        self._triggered = True
        self._triggered_at = now
        self._figures.vad_triggers += 1
        self._pending += 1
        self._queue.take()

    def _partial(self, heard_seconds: float, now: float) -> Sequence[Step]:
        """A partial, if one is due: the text is another one, and enough audio was heard since the last."""
        session, utterance, interval = self._session, self._utterance, self._policy.partial_interval_seconds
        if session is None or session.auto_end or interval is None or self._triggered:
            return []
        if heard_seconds - utterance.partial_at < interval - _ROUNDING_SECONDS:
            return []
        text = (utterance.committed + utterance.tentative).strip()
        if not text or text == utterance.partial_text:
            return []
        utterance.partial_at = heard_seconds
        if self._queue.full:
            self._figures.partials_dropped += 1
            return []
        utterance.partial_text = text
        utterance.partials += 1
        timing = self._arrivals.cover(self._offset_seconds + heard_seconds, now)
        return [self._result(text, heard_seconds, timing, partial=True, is_final=False)]

    def _final(self, final: Final, now: float) -> Sequence[Step]:
        by_client = final.ended_by == "client"
        triggered, self._triggered = self._triggered, False
        if by_client or triggered:
            self._pending -= 1
            self._queue.leave()
        asked_at = self._asked_at if by_client else self._triggered_at
        timing = self._arrivals.cover(
            self._offset_seconds + final.audio_seconds, now, self._ended_at if by_client else asked_at, asked_at
        )
        loudness = None if self._loudness is None else self._loudness.take(final.audio_seconds)
        gated = loudness is not None and loudness < self._policy.speech_rms_threshold
        if gated and (not by_client or self._gate_rest):
            self._figures.utterances_gated += 1
            text = ""
        else:
            self._figures.outcome("success", now)
            text = final.text.strip()
        if by_client:
            steps = self._last(text, final.audio_seconds, timing)
        else:
            steps = self._at_silence(text, final.audio_seconds, timing, gated=gated)
        self._offset_seconds += final.audio_seconds
        self._utterance = _Utterance()
        return steps

    def _at_silence(self, text: str, audio_seconds: float, timing: DecodeTiming, *, gated: bool) -> Sequence[Step]:
        """The speaker has ended the utterance."""
        assert self._session is not None
        is_final = self._session.auto_end or self._session.final_on_vad
        steps: list[Step] = []
        if text:
            result = self._result(text, audio_seconds, timing, partial=False, is_final=is_final)
            self._owed = None if is_final else result
            steps.append(result)
        if self._session.auto_end and not gated:
            steps.append(self._end())
        return steps

    def _last(self, text: str, audio_seconds: float, timing: DecodeTiming) -> Sequence[Step]:
        """The client has ended the audio. What was said last is told as final, also when silence had ended it before."""
        assert self._session is not None
        steps: list[Step] = []
        interval = self._policy.partial_interval_seconds
        if text:
            unseen = not self._utterance.partials and not self._session.auto_end and not self._queue.full
            if unseen and interval is not None and audio_seconds >= interval:
                steps.append(self._result(text, audio_seconds, DecodeTiming(), partial=True, is_final=False))
            steps.append(self._result(text, audio_seconds, timing, partial=False, is_final=True))
        elif self._owed is not None:
            steps.append(replace(self._owed, is_final=True, timing=timing))
        steps.append(self._end())
        return steps

    def _result(
        self, text: str, heard_seconds: float, timing: DecodeTiming, *, partial: bool, is_final: bool
    ) -> Result:
        utterance = self._utterance
        start = utterance.words_start if utterance.words_start is not None else utterance.speech_start or 0.0
        end = heard_seconds
        if not partial and utterance.words_start is not None:
            end = utterance.words_end
        elif not partial and utterance.speech_end is not None:
            end = utterance.speech_end
        committed = len(utterance.committed.lstrip()) if partial and utterance.tentative.strip() else len(text)
        return Result(
            text,
            is_final,
            partial,
            self._offset_seconds + min(start, end),
            self._offset_seconds + end,
            min(committed, len(text)),
            timing,
        )

    # ---- what the transport tells

    def message(self, result: Result) -> STTResult:
        """The result as the client gets it."""
        assert self._session is not None
        language = self._session.language
        return STTResult(
            text=result.text,
            is_final=result.is_final,
            start_sec=result.start_seconds,
            end_sec=result.end_seconds,
            language_code=language,
            language=LANGUAGES.get(language, ""),
            probability=1.0 if self._options.language else 0.0,
            committed_text=result.text[: result.committed_characters],
            unstable_text=result.text[result.committed_characters :],
        )

    def written(self, result: Result, emit_seconds: float, now: float) -> None:
        """The result was handed to the transport, which took so long."""
        self._active_at = now
        self._totals.buffer_wait += result.timing.buffer_wait
        self._totals.queue_wait += result.timing.queue_wait
        self._totals.inference += result.timing.inference
        self._totals.response_emit += emit_seconds
        self._totals.count += 1
        self._figures.decoded(result.timing, emit_seconds)

    def blocked(self, now: float) -> None:
        """The stream is not read for now: too much audio waits."""
        if self._blocked_at is None:
            self._blocked_at = now

    def unblocked(self, now: float) -> None:
        """It is read again."""
        self._blocked_at = None
        self._active_at = now

    # ---- time, and the end

    def deadline(self) -> float | None:
        """When ``due`` has something to say; None: never, as things stand."""
        policy, candidates = self._policy, []
        match self._phase:
            case _Phase.OVER:
                return None
            case _Phase.UNBOUND | _Phase.OPEN if self._blocked_at is not None:
                if policy.decode_timeout_seconds is not None:
                    candidates.append(self._blocked_at + policy.decode_timeout_seconds)
            case _Phase.UNBOUND | _Phase.OPEN:
                if policy.session_timeout_seconds is not None:
                    candidates.append(self._active_at + policy.session_timeout_seconds)
            case _Phase.QUEUED | _Phase.ENDING:
                if policy.decode_timeout_seconds is not None:
                    candidates.append(self._ended_at + policy.decode_timeout_seconds)
                if self._phase is _Phase.QUEUED and policy.decode_queue_seconds is not None:
                    candidates.append(self._ended_at + policy.decode_queue_seconds)
        return min(candidates, default=None)

    def due(self, now: float) -> Sequence[Step]:
        """What has to happen by now."""
        due = self.deadline()
        if due is None or now < due:
            return []
        policy = self._policy
        if self.listening and self._blocked_at is None:
            message = f"nothing came for {policy.session_timeout_seconds:g} s"
            return [self._end(errors.SESSION_TIMEOUT, message)]
        self._figures.outcome("timeout", now)
        if self._phase is _Phase.QUEUED and due != self._ended_at + (policy.decode_timeout_seconds or -1.0):
            message = f"no place for the final decode within {policy.decode_queue_seconds:g} s"
        else:
            message = f"the engine was not ready within {policy.decode_timeout_seconds:g} s"
        return [self._end(errors.DECODE_TIMEOUT, message)]

    def fail(self, error: SttError, message: str) -> Sequence[Step]:
        """The stream has to end for a reason from outside: a refusal, the server's end, a bug of ours."""
        return [] if self.over else [self._end(error, message)]

    def close(self) -> None:
        """The stream is gone, by whichever side: give everything back."""
        self._end()
        if self._session is not None:
            self._sessions.remove(self._session)

    def _end(self, error: SttError | None = None, message: str = "") -> End:
        if not self.over:
            self._queue.give_up(self)
            for _ in range(self._pending):
                self._queue.leave()
            self._figures.decodes_cancelled += self._pending + (self._phase is _Phase.QUEUED)
            self._pending = 0
            if self._speaking:
                self._speaking = False
                self._figures.vad_utterances -= 1
        self._phase = _Phase.OVER
        return End(error, message)
