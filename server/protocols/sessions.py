"""The dialects of the conversational sessions: audio sockets, and the control sockets beside them."""

from __future__ import annotations

import re
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from server.core.conversations import Conversation, Conversations
from server.core.events import (
    Audio,
    Cancelled,
    Dropped,
    Event,
    Failed,
    Final,
    Finish,
    Mute,
    Speech,
    Start,
    Started,
    StreamOptions,
    Tentative,
    Token,
)
from server.core.resampling import Resampler
from server.core.session import SessionError
from server.core.voice import EndpointerSettings
from server.protocols.base import Ask, Close, Displace, Offer, Reply, Served, Step, public_message, stream_options
from wire import sessions
from wire.errors import WireError
from wire.pcm import SAMPLE_RATE, bytes_of, seconds_of

UNKNOWN_CLOSE_CODE = 4404
INACTIVE_CLOSE_CODE = 4000
REFUSED_CLOSE_CODE = 1008
BUSY_CLOSE_CODE = 1013

_THRESHOLDS = (0.3, 0.4, 0.5, 0.7)
"""By sensitivity: the least probability of speech that counts. As in the detectors this scale comes from, 3 is the strictest."""

_HYSTERESIS = 0.15
_MIN_SPEECH_SECONDS = 0.1
_LEAD_SECONDS = 0.3
"""The chat engine hears so much of what came before speech was certain to begin."""

_MOST_ERRORS = 10
_MOST_ASKS = 16
"""Of one socket: so many answers may be under way or waiting."""

_TOO_LATE = "Audio processing: the utterance was heard so late that none of its audio is kept for a reply"
_ADDRESS = re.compile(r"\b[a-z]+://\S+")
_NO_CHAT = "this server has no chat engine, so text is not answered (--chat-engine); send audio to have it transcribed"


@dataclass(frozen=True, slots=True)
class Policy:
    """What the surface's settings say to its dialects. ``None`` and False switch limits off."""

    reply_by_chat: bool = False
    question: str = "Reply to what is said in the recording."
    reply_seconds: float = 120.0
    temperature: float = 0.2
    sample_rate: int = SAMPLE_RATE
    silence_seconds: float = 1.0
    heartbeat_seconds: float = 30.0
    inactivity_seconds: float | None = 60.0
    count_errors: bool = True


class Measures(Protocol):
    """Takes what the surface's own series are made of."""

    def inferred(self, seconds: float) -> None:
        """A model has taken so long, from the end of an utterance's audio to its text, or from a question to its answer."""

    def processed(self, seconds: float) -> None:
        """So long after the end of an utterance its response is ready."""

    def displaced(self, seconds: float) -> None:
        """So much audio had no place in the queue and was pushed out."""

    def unanswered(self, seconds: float) -> None:
        """So much of an utterance's audio is older than what the chat engine is to hear."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the sockets of all sessions share. ``chat``: whether there is a chat engine; ``clock`` gives Unix seconds."""

    conversations: Conversations
    policy: Policy
    offer: Offer
    measures: Measures
    chat: bool = False
    clock: Callable[[], float] = time.time


@dataclass(slots=True)
class _Asked:
    """An answer that is awaited: since when, since when the utterance has been over, and how many ``Ended`` come after it."""

    at: float
    over_at: float | None = None
    ends: int = 0

    @property
    def stage(self) -> str:
        """What an error about it begins with."""
        return "Text processing" if self.over_at is None else "Audio processing"


class _Socket:
    """What both kinds of socket do alike: texts, errors, the count of both."""

    def __init__(self, conversation: Conversation, around: Surroundings) -> None:
        self._conversation = conversation
        self._around = around
        self._policy = around.policy
        self._now = 0.0
        self._errors = 0
        self._handling_errors = 0
        self._asked: deque[_Asked] = deque()

    # ---- texts

    def _text(self, text: str) -> list[Step]:
        if not text.strip():
            return []
        if not self._around.conversations.texts.take(self._conversation.id, self._now).allowed:
            limit = self._around.conversations.texts.limit
            return self._error(sessions.RATE_LIMITED, f"more than {limit} texts a minute; this one is dropped")
        if not self._around.chat:
            return self._error(sessions.PROCESSING_ERROR, f"Text processing: {_NO_CHAT}", handling=False)
        return self._ask(text, (), None)

    def _ask(self, question: str, audios: tuple[bytes, ...], over_at: float | None) -> list[Step]:
        if len(self._asked) >= _MOST_ASKS:
            message = f"{_MOST_ASKS} answers of this socket are awaited; this one is not given"
            return self._error(sessions.RATE_LIMITED, message)
        conversation = self._conversation
        temperature = self._policy.temperature if conversation.temperature is None else conversation.temperature
        self._asked.append(_Asked(self._now, over_at))
        return [Ask(question, audios, temperature, conversation.max_length)]

    def answered(self, text: str) -> Sequence[Step]:
        asked = self._asked.popleft()
        self._around.measures.inferred(self._now - asked.at)
        if asked.over_at is not None:
            self._around.measures.processed(self._now - asked.over_at)
        steps = self._response(text) or self._failed(f"{asked.stage}: the chat engine's answer is empty")
        return [*steps, *self._owe(asked.ends)]

    def unanswered(self, message: str) -> Sequence[Step]:
        asked = self._asked.popleft()
        return [*self._failed(f"{asked.stage}: {message}"), *self._owe(asked.ends)]

    def _owe(self, ends: int) -> list[Step]:
        """``Ended`` after everything that was asked before."""
        if self._asked:
            self._asked[-1].ends += ends
            return []
        return [_reply(sessions.Ended(self._around.clock())) for _ in range(ends)]

    def _response(self, text: str) -> list[Step]:
        text = text.strip()
        return [_reply(sessions.TextResponse(text, self._around.clock()))] if text else []

    # ---- errors

    def _failed(self, message: str) -> list[Step]:
        """What an engine could not do. Clients need not know where a chat engine lives; the log has it."""
        message = public_message(_ADDRESS.sub("the chat engine", message))
        exhausted = "out of memory" in message.lower()
        return self._error(sessions.GPU_OOM if exhausted else sessions.PROCESSING_ERROR, message)

    def _error(self, code: str, message: str, *, handling: bool = True) -> list[Step]:
        """An error frame; the eleventh about something that could not be handled is the last."""
        self._errors += 1
        steps: list[Step] = [_error_reply(code, message, self._around.clock())]
        if handling and code != sessions.RATE_LIMITED:
            self._handling_errors += 1
            if self._policy.count_errors and self._handling_errors > _MOST_ERRORS:
                steps.append(Close(REFUSED_CLOSE_CODE, "too many errors"))
        return steps

    def expired(self, limit: str) -> Sequence[Step]:
        return [Close(INACTIVE_CLOSE_CODE, f"{limit} limit reached")]

    def crashed(self) -> Sequence[Step]:
        text = "internal error; the connection is closed"
        return [
            replace(_error_reply(sessions.PROCESSING_ERROR, text, self._around.clock()), error="internal_error"),
            Close(1011),
        ]


class AudioDialect(_Socket):
    """One audio socket. Audio begins an utterance; it ends in silence, or where the client says so."""

    def __init__(self, conversation: Conversation, around: Surroundings, now: float) -> None:
        super().__init__(conversation, around)
        served = around.offer(None)
        assert served is not None, "there is always a default model"
        self._served: Served = served
        self._now = self._opened_at = self._active_at = now
        self._beat_at = now + around.policy.heartbeat_seconds
        self._client_id = f"client_{uuid.uuid4().hex[:12]}"
        self._connected_at = self._last_activity = around.clock()
        self._frames = 0
        self._waiting = 0
        self._resampler = Resampler(around.policy.sample_rate)
        # what the client asks of its utterances
        self._defaults = StreamOptions(endpointing=served.endpointing)
        self._partials = False
        self._version = (0, 0)  # of the session's settings and of this socket's own
        self._own_version = 0
        # the utterance that takes audio, and those whose audio has ended: how many Ended each of them owes
        self._count = 0
        self._open: str | None = None
        self._listening = False  # for its end
        self._ending: deque[int] = deque()
        # the utterance that is being heard, which is the first of all these
        self._speaking = False
        self._spoken_from: float | None = None
        self._over_at: float | None = None
        self._continues = False  # it was ended by silence: another one follows under its name
        self._said = ""
        self._kept = _Kept(bytes_of(around.policy.reply_seconds)) if around.policy.reply_by_chat else None

    # ---- what the shell asks

    @property
    def busy(self) -> bool:
        """Whether the client is owed something."""
        if self._asked or self._ending:
            return True
        return self._open is not None and (not self._listening or self._speaking or bool(self._said))

    def greet(self) -> Sequence[Step]:
        return [_reply(sessions.Connected(self._client_id, self._conversation.id, self._around.clock()))]

    def arrived(self, waiting: int) -> None:
        self._frames += 1
        self._waiting = waiting
        self._active_at = self._now
        self._last_activity = self._around.clock()

    # ---- time

    def at(self, now: float) -> None:
        self._now = now

    def deadline(self) -> float | None:
        return self._beat_at

    def due(self) -> Sequence[Step]:
        if self._now < self._beat_at:
            return []
        limit = self._policy.inactivity_seconds
        if limit is not None and self._now - self._active_at > limit:
            return [Close(INACTIVE_CLOSE_CODE, "inactive")]
        while self._beat_at <= self._now:
            self._beat_at += self._policy.heartbeat_seconds
        return [_reply(sessions.Heartbeat(self._around.clock()))]

    # ---- frames

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        if isinstance(frame, bytes):
            return self._audio(frame)
        try:
            return self._obey(sessions.decode_client(frame))
        except WireError as error:
            return self._error(error.reason, f"Message processing: {error.message}")

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:
        if isinstance(frame, bytes):
            return None
        try:
            message = sessions.decode_client(frame)
        except WireError:
            return None
        return self._obey(message) if isinstance(message, sessions.Ping | sessions.GetStats) else None

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:  # noqa: ARG002 - part of Dialect
        return [Displace()]

    def displaced(self, frame: str | bytes) -> Sequence[Step]:
        if isinstance(frame, str):
            message = "Message processing: too many frames wait to be handled; this one is dropped"
            return self._error(sessions.PROCESSING_ERROR, message, handling=False)
        self._around.measures.displaced(len(frame) / (2 * self._policy.sample_rate))
        return []

    def _obey(self, message: sessions.ClientMessage) -> list[Step]:
        match message:
            case sessions.TextInput(text):
                return self._text(text)
            case sessions.Ping():
                return [_reply(sessions.Pong(self._around.clock()))]
            case sessions.GetStats():
                return [_reply(sessions.Stats(self._stats()))]
            case sessions.End():
                return self._end()
            case sessions.Configure():
                return self._configure(message)
            case sessions.ConfigUpdate() | sessions.Other():
                return []

    def _stats(self) -> sessions.StatsFigures:
        return sessions.StatsFigures(
            client_id=self._client_id,
            session_id=self._conversation.id,
            connection_duration=round(self._now - self._opened_at, 3),
            message_count=self._frames,
            error_count=self._errors,
            queue_size=self._waiting,
            connected_at=self._connected_at,
            last_activity=self._last_activity,
        )

    def _configure(self, wanted: sessions.Configure) -> list[Step]:
        served = self._served
        if wanted.model is not None:
            named = wanted.model.strip() if isinstance(wanted.model, str) else ""
            offered = self._around.offer(named) if named else None
            if offered is None:
                raise WireError(
                    sessions.PROCESSING_ERROR,
                    f"model {wanted.model!r:.100} is not served here; use {served.models[0]!r}",
                )
            served = offered
        if wanted.partials is not None and not isinstance(wanted.partials, bool):
            raise WireError(sessions.PROCESSING_ERROR, "'partials' must be true or false")
        try:
            defaults = stream_options(served, wanted.delay_ms, wanted.vad, self._defaults)
        except WireError as error:
            raise WireError(sessions.PROCESSING_ERROR, error.message) from None
        if wanted.language is not None:
            defaults = replace(defaults, language=_language(wanted.language, served))
        self._served, self._defaults = served, defaults
        self._partials = self._partials if wanted.partials is None else wanted.partials
        self._own_version += 1
        delay = defaults.delay_seconds
        delay_ms = served.default_delay_ms if delay is None else round(delay * 1000)
        return [_reply(sessions.Configured(self._around.clock(), delay_ms))]

    # ---- audio in

    def _audio(self, data: bytes) -> list[Step]:
        if not self._around.conversations.audio.take(self._conversation.id, self._now, len(data)):
            rate = self._around.conversations.audio.rate
            message = f"more than {rate:.0f} bytes of audio a second; this frame of {len(data)} bytes is dropped"
            return self._error(sessions.RATE_LIMITED, message)
        if len(data) % 2:
            message = f"Audio processing: PCM16 needs an even number of bytes, got {len(data)}; the frame is dropped"
            return self._error(sessions.AUDIO_FORMAT_ERROR, message)
        return self._hear(self._resampler.feed(data)) if data else []

    def _hear(self, pcm: bytes) -> list[Step]:
        if not pcm:
            return []
        steps: list[Step] = []
        if self._open is not None and self._stale and not self._speaking:
            steps += self._finish(0)  # what has changed holds from here on; nobody is cut short
        if self._open is None:
            self._count += 1
            self._open = str(self._count)
            self._version = self._versions
            self._listening = self._defaults.endpointing
            steps.append(Start(self._open, self._options()))
        if self._kept is not None:
            self._kept.append(pcm)
        return [*steps, Audio(pcm)]

    @property
    def _versions(self) -> tuple[int, int]:
        return self._conversation.version, self._own_version

    @property
    def _stale(self) -> bool:
        """Whether the open utterance is heard by settings that have changed. Without detection of speech they hold from the next one."""
        return self._listening and self._version != self._versions

    def _options(self) -> StreamOptions:
        threshold = _THRESHOLDS[self._conversation.vad_sensitivity]
        endpointer = EndpointerSettings(
            threshold, threshold - _HYSTERESIS, _MIN_SPEECH_SECONDS, self._policy.silence_seconds
        )
        temperature = self._conversation.temperature
        return replace(
            self._defaults,
            endpointer=endpointer,
            temperature=self._defaults.temperature if temperature is None else temperature,
        )

    def _end(self) -> list[Step]:
        steps = self._hear(self._resampler.finish())
        self._resampler = Resampler(self._policy.sample_rate)
        if self._open is not None:
            return [*steps, *self._finish(1)]
        if self._ending:
            self._ending[-1] += 1
            return steps
        return [*steps, *self._owe(1)]

    def _finish(self, ends: int) -> list[Step]:
        self._open = None
        self._ending.append(ends)
        if self._over_at is None and len(self._ending) == 1:
            self._over_at = self._now
        return [Finish()]

    # ---- what is heard

    def tell(self, event: Event) -> Sequence[Step]:
        match event:
            case Speech(_, speaking, at_seconds):
                self._speaking = speaking
                if speaking:
                    self._spoken_from = at_seconds
                else:
                    self._over_at, self._continues = self._now, True
                return []
            case Token(_, text):
                self._said += text
                return self._partial("")
            case Tentative(_, text):
                return self._partial(text)
            case Final():
                return self._final(event)
            case Failed(_, _, message):
                if self._kept is not None:
                    self._kept.clear()
                return [*self._failed(f"Audio processing: {message}"), *self._owe(self._over())]
            case Started() | Dropped() | Mute() | Cancelled():
                return []

    def _partial(self, tentative: str) -> list[Step]:
        text = (self._said + tentative).strip()
        partial = sessions.Partial(text, self._around.clock(), self._said.strip())
        return [_reply(partial)] if self._partials and text else []

    def _final(self, final: Final) -> list[Step]:
        over_at = self._now if self._over_at is None else self._over_at
        spoken_from = self._spoken_from
        steps: list[Step] = []
        if self._kept is not None:
            begin = 0.0 if spoken_from is None else spoken_from - _LEAD_SECONDS
            audio, missing = self._kept.take(bytes_of(max(0.0, begin)), bytes_of(final.audio_seconds))
            if spoken_from is not None or final.text.strip():
                self._around.measures.unanswered(seconds_of(missing))
                steps = self._ask(self._policy.question, (audio,), over_at) if audio else self._failed(_TOO_LATE)
        else:
            steps = self._response(final.text)
            if steps:
                self._around.measures.inferred(self._now - over_at)
                self._around.measures.processed(self._now - over_at)
        return [*steps, *self._owe(self._over())]

    def _over(self) -> int:
        """The utterance being heard is over; how many ``Ended`` it owes."""
        last = not self._continues
        self._speaking = self._continues = False
        self._spoken_from = None
        self._said = ""
        ends = 0
        if last and self._ending:
            ends = self._ending.popleft()
        elif last:
            self._open = None
        self._over_at = self._now if self._ending else None  # the next one's audio has ended already
        return ends

    def refused(self, error: SessionError) -> Sequence[Step]:
        """Only a model that was taken away meanwhile, or a detector that is not there, makes a command senseless here."""
        if error.reason == "no_active_utterance":
            return []  # told already, when the utterance could not be started
        self._open = None
        return self._failed(f"Audio processing: {error.message}")


class ControlDialect(_Socket):
    """One control socket: texts, and settings of the session."""

    @property
    def busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._asked)

    def greet(self) -> Sequence[Step]:
        return []

    def arrived(self, waiting: int) -> None:
        """Nothing waits here."""

    def at(self, now: float) -> None:
        self._now = now

    def deadline(self) -> float | None:
        return None

    def due(self) -> Sequence[Step]:
        return []

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        try:
            if isinstance(frame, bytes):
                raise WireError(sessions.PROCESSING_ERROR, "audio belongs on /ws/audio; send JSON text here")
            match sessions.decode_client(frame, plain_text=False):
                case sessions.TextInput(text):
                    return self._text(text)
                case sessions.ConfigUpdate(config):
                    self._conversation.set(*_session_settings(config))
                    return [_reply(sessions.ConfigUpdated())]
                case _:
                    return []
        except WireError as error:
            return self._error(error.reason, f"Message processing: {error.message}")

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:  # noqa: ARG002 - part of Dialect
        return None

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:  # noqa: ARG002 - part of Dialect
        return [Close(BUSY_CLOSE_CODE)]

    def displaced(self, frame: str | bytes) -> Sequence[Step]:  # noqa: ARG002 - part of ConversingDialect
        return []

    def tell(self, event: Event) -> Sequence[Step]:  # noqa: ARG002 - part of Dialect
        return []

    def refused(self, error: SessionError) -> Sequence[Step]:
        return self._failed(f"Message processing: {error.message}")


class _Kept:
    """The newest audio of a socket, by its place in the utterance that is being heard; positions are bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._pcm = bytearray()
        self._begins = 0  # where it begins

    def append(self, pcm: bytes) -> None:
        """The next audio; the oldest makes room."""
        self._pcm += pcm
        surplus = len(self._pcm) - self._most_bytes
        if surplus > 0:
            del self._pcm[:surplus]
            self._begins += surplus

    def take(self, begin: int, end: int) -> tuple[bytes, int]:
        """The utterance's audio, which ends there, from ``begin`` on, and how much of it is gone. What follows is the next one's."""
        first, last = max(0, begin - self._begins), max(0, end - self._begins)
        taken = bytes(self._pcm[first:last])
        missing = min(max(0, self._begins - begin), max(0, end - begin))
        del self._pcm[:last]
        self._begins = max(0, self._begins - end)
        return taken, missing

    def clear(self) -> None:
        """Nobody knows any more whose audio this is."""
        self._pcm.clear()
        self._begins = 0


def rejection(code: str, message: str, close: int, clock: Callable[[], float] = time.time) -> tuple[Reply, Close]:
    """What somebody is told who is not let in."""
    return _error_reply(code, message, clock()), Close(close, code)


def _language(value: Any, served: Served) -> str:
    if not isinstance(value, str) or not value.strip():
        raise WireError(sessions.PROCESSING_ERROR, f"'language' must be a code such as 'en', got {value!r:.50}")
    code = value.strip().lower()
    if served.languages and code not in served.languages:
        known = ", ".join(served.languages)
        raise WireError(sessions.PROCESSING_ERROR, f"language {code!r:.50} is not known here; known: {known}")
    return code


def _session_settings(config: Any) -> tuple[int | None, float | None, int | None]:
    """Sensitivity, temperature and length, each ``None`` where it is not given. Raises WireError for a bad value of theirs."""
    if not isinstance(config, dict):
        raise WireError(sessions.PROCESSING_ERROR, "'config' must be an object")
    sensitivity, temperature, length = (config.get(name) for name in ("vad_sensitivity", "temperature", "max_length"))
    if sensitivity is not None and not (_whole(sensitivity) and 0 <= sensitivity <= 3):
        raise WireError(sessions.PROCESSING_ERROR, f"'vad_sensitivity' must be 0, 1, 2 or 3, got {sensitivity!r:.50}")
    if temperature is not None and not (_number(temperature) and 0 <= temperature <= 2):
        raise WireError(sessions.PROCESSING_ERROR, f"'temperature' must be a number in 0..2, got {temperature!r:.50}")
    if length is not None and not (_whole(length) and 1 <= length <= 2**31 - 1):
        raise WireError(sessions.PROCESSING_ERROR, f"'max_length' must be a whole number from 1 on, got {length!r:.50}")
    return sensitivity, None if temperature is None else float(temperature), length


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _reply(message: sessions.ServerMessage) -> Reply:
    return Reply(sessions.encode_server(message))


def _error_reply(code: str, message: str, timestamp: float) -> Reply:
    return Reply(sessions.encode_server(sessions.Error(message, timestamp, code)), code)
