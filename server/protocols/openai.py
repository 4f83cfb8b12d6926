"""The dialect of OpenAI's realtime transcription sessions: items, server VAD, and its table of errors.

An utterance of ours is an item of theirs. It begins with the first audio after the last commit, so that text comes while the audio does.
With turn detection the session itself ends utterances; what a client's commit leaves is known once that audio has been heard, so a
commit, and a clear behind it, are answered then.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

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
from server.protocols.base import Close, Dialect, Offer, Reply, Served, Step, words_field
from wire import openai
from wire.errors import WireError
from wire.pcm import bytes_of, decode_base64, seconds_of

LEAST_SECONDS = 0.1
"""A commit of less audio is an error, as it is there."""

MOST_AUDIO_BYTES = 15 * 2**20
"""Of one append, decoded."""

ERRORS: Mapping[str, tuple[str, str]] = {
    "invalid_json": ("invalid_request_error", "invalid_json"),
    "invalid_event_type": ("invalid_request_error", "invalid_event_type"),
    "missing_required_parameter": ("invalid_request_error", "missing_required_parameter"),
    "invalid_type": ("invalid_request_error", "invalid_type"),
    "invalid_value": ("invalid_request_error", "invalid_value"),
    "invalid_audio": ("invalid_request_error", "invalid_value"),
    "audio_too_large": ("invalid_request_error", "invalid_value"),
    "model_not_found": ("invalid_request_error", "model_not_found"),
    "no_endpointing": ("invalid_request_error", "invalid_value"),
    "commit_empty": ("invalid_request_error", "input_audio_buffer_commit_empty"),
    "server_busy": ("server_error", "rate_limit_exceeded"),
    "internal_error": ("server_error", "internal_error"),
}
"""reason -> type and code of the error frame."""


@dataclass(slots=True)
class _Item:
    """A piece of audio. ``utterance`` is the session's name for it; ``offset_seconds`` where it begins in the session's audio."""

    id: str
    utterance: str
    endpointing: bool
    offset_seconds: float = 0.0
    received_bytes: int = 0  # of 16 kHz audio; counted where no VAD cuts it
    committed: bool = False  # the client was told
    discarded: bool = False
    spoken: bool = False
    asked_by: str | None = None  # event_id of the commit that waits for an answer
    asked: bool = False
    after: list[openai.ServerEvent] = field(default_factory=list)  # what has to wait for that answer


class OpenAIDialect:
    """One connection."""

    def __init__(self, served: Served, offer: Offer, aliases: Sequence[str] = ()) -> None:
        """``served`` is the default model, ``offer`` knows them all; ``aliases`` are names of OpenAI's that mean the default one."""
        self._offer = offer
        self._aliases = frozenset(aliases)
        self._served = served
        self._session = openai.Session(
            f"sess_{secrets.token_hex(12)}",
            served.models[0],
            turn_detection=openai.TurnDetection() if served.endpointing else None,
            delay_ms=served.default_delay_ms,
        )
        self._delay_ms: int | None = None
        self._flat = False
        self._items: deque[_Item] = deque()  # those without a final, in the session's order
        self._open: _Item | None = None  # the one that takes audio
        self._resampler = Resampler(self._session.rate)
        self._previous: str | None = None
        self._heard_seconds = 0.0  # of items that are over
        self._events = 0
        self._count = 0

    # ---- frames

    def greet(self) -> Sequence[Step]:
        return [self._reply(openai.SessionCreated(self._session))]

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        event_id: str | None = None
        try:
            event = openai.decode_client(frame)
            event_id = event.event_id
            match event:
                case openai.Append(audio):
                    return self._append(audio)
                case openai.Commit():
                    return self._commit(event_id)
                case openai.Clear():
                    return self._clear()
                case openai.SessionUpdate():
                    return self._update(event)
        except openai.EventError as error:
            return [self._error(error.reason, error.message, error.param, error.event_id or event_id)]
        except WireError as error:
            return [self._error(error.reason, error.message, "audio", event_id)]

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:  # noqa: ARG002
        return None  # nothing of this protocol may overtake

    def _append(self, audio: str) -> Sequence[Step]:
        pcm = decode_base64(audio)
        if len(pcm) > MOST_AUDIO_BYTES:
            message = f"{len(pcm)} bytes of audio in one event; {MOST_AUDIO_BYTES} are the most"
            raise openai.EventError("audio_too_large", message, "audio")
        steps: list[Step] = []
        if self._open is None:
            steps.append(self._begin())
        assert self._open is not None
        heard = self._resampler.feed(pcm)
        self._open.received_bytes += len(heard)
        if heard:
            steps.append(Audio(heard))
        return steps

    def _begin(self) -> Step:
        vad = self._session.turn_detection
        item = _Item(self._fresh(), "", endpointing=vad is not None)
        item.utterance = item.id
        self._items.append(item)
        self._open = item
        self._resampler = Resampler(self._session.rate)
        options = StreamOptions(
            delay_seconds=None if self._delay_ms is None else self._delay_ms / 1000,
            endpointing=vad is not None,
            language=self._session.language,
            model=self._served.model,
            endpointer=None if vad is None else _endpointer(vad),
        )
        return Start(item.utterance, options)

    def _commit(self, event_id: str | None) -> Sequence[Step]:
        item = self._open
        rest = b"" if item is None else self._resampler.finish()
        if item is None:
            return [self._nothing_to_commit(event_id)]
        item.received_bytes += len(rest)
        if not item.endpointing and item.received_bytes < bytes_of(LEAST_SECONDS):
            self._resampler = Resampler(self._session.rate)
            return [*_audio(rest), self._nothing_to_commit(event_id, seconds_of(item.received_bytes))]
        self._open = None
        if item.endpointing:
            item.asked, item.asked_by = True, event_id
            return [*_audio(rest), Finish()]
        return [*_audio(rest), *self._tell_committed(item), Finish()]

    def _clear(self) -> Sequence[Step]:
        item, self._open = self._open, None
        waiting = next((other for other in reversed(self._items) if other.asked), None)
        if waiting is not None:
            waiting.after.append(openai.Cleared())
            answer: list[Step] = []
        else:
            answer = [self._reply(openai.Cleared())]
        if item is None:
            return answer
        item.discarded = True
        return [*answer, Finish()]

    def _update(self, update: openai.SessionUpdate) -> Sequence[Step]:
        wanted = update.settings
        session, served, delay_ms = self._session, self._served, self._delay_ms
        if isinstance(wanted.model, str | None):
            served = self._model(wanted.model)
            session = msgspec.structs.replace(session, model=wanted.model or served.models[0])
        if isinstance(wanted.delay_ms, int | None):
            delay_ms = None if wanted.delay_ms is None else _nearest(wanted.delay_ms, served)
        elif delay_ms is not None:
            delay_ms = _nearest(delay_ms, served)
        if isinstance(wanted.language, str | None):
            language = wanted.language
            if language is not None and served.languages and language not in served.languages:
                known = ", ".join(served.languages)
                raise openai.EventError("invalid_value", f"{language!r:.50} is not spoken here; {known} is", "language")
            session = msgspec.structs.replace(session, language=language)
        if isinstance(wanted.turn_detection, openai.TurnDetection | None):
            if wanted.turn_detection is not None and not served.endpointing:
                message = "this server has no voice activity detection; set turn_detection to null"
                raise openai.EventError("no_endpointing", message, "turn_detection")
            session = msgspec.structs.replace(session, turn_detection=wanted.turn_detection)
        if isinstance(wanted.rate, int):
            session = msgspec.structs.replace(session, rate=wanted.rate)
        in_force = served.default_delay_ms if delay_ms is None else delay_ms
        self._session = msgspec.structs.replace(session, delay_ms=in_force)
        self._served, self._delay_ms, self._flat = served, delay_ms, update.flat
        return [self._reply(openai.SessionUpdated(self._session, update.flat))]

    def _model(self, name: str | None) -> Served:
        served = self._offer(None if name is None or name in self._aliases else name)
        if served is None:
            message = f"the model {name!r:.200} is not served here; GET /v1/models lists those that are"
            raise openai.EventError("model_not_found", message, "model")
        return served

    # ---- events

    def tell(self, event: Event) -> Sequence[Step]:
        item = self._items[0] if self._items else None
        if item is None:
            return []
        match event:
            case Token(_, text) if not item.discarded:
                return [self._reply(openai.Delta(item.id, text))]
            case Speech(_, speaking, at_seconds) if not item.discarded:
                return self._speech(item, speaking, at_seconds)
            case Final():
                return self._final(item, event)
            case Failed(_, code, message):
                return self._failed(item, code, message)
            case Started() | Speech() | Token() | Tentative() | Dropped() | Mute() | Cancelled():
                return []

    def _speech(self, item: _Item, speaking: bool, at_seconds: float) -> Sequence[Step]:
        vad = self._session.turn_detection
        at_ms = round(1000 * (self._heard_seconds + at_seconds))
        if speaking:
            item.spoken = True
            padding = 0 if vad is None else vad.prefix_padding_ms
            return [self._reply(openai.SpeechStarted(max(0, at_ms - padding), item.id))]
        return [self._reply(openai.SpeechStopped(at_ms, item.id)), *self._tell_committed(item)]

    def _final(self, item: _Item, final: Final) -> Sequence[Step]:
        self._items.popleft()
        self._heard_seconds += final.audio_seconds
        steps: list[Step] = []
        if not item.discarded:
            if not item.committed and (final.text or item.spoken):
                steps += self._tell_committed(item)
            if item.committed:
                steps.append(self._reply(self._completed(item, final)))
            elif item.asked:
                steps.append(self._nothing_to_commit(item.asked_by))
        if final.ended_by == "silence":
            self._go_on(item)
        else:
            steps += [self._reply(event) for event in item.after]
        return steps

    def _go_on(self, item: _Item) -> None:
        """The session has ended the item and begun the next one, which inherits what is still to come of it."""
        following = _Item(self._fresh(), item.utterance, endpointing=True)
        following.asked, following.asked_by, following.after = item.asked, item.asked_by, item.after
        following.discarded = item.discarded
        self._items.appendleft(following)
        if self._open is item:
            self._open = following

    def _completed(self, item: _Item, final: Final) -> openai.Completed:
        return openai.Completed(
            item.id,
            final.text,
            final.usage.prompt_tokens,
            final.usage.completion_tokens,
            words_field(self._served, final.words) or None,
            round(final.delay_seconds * 1000),
            round(final.audio_seconds, 3),
        )

    def _failed(self, item: _Item, code: str, message: str) -> Sequence[Step]:
        self._items.popleft()
        if self._open is item:
            self._open = None  # what comes next is a new item
        if item.discarded:
            return [self._reply(event) for event in item.after]
        steps = [] if item.committed else list(self._tell_committed(item))
        steps.append(self._reply(openai.Failed(item.id, code, message), error=code))
        return [*steps, *(self._reply(event) for event in item.after)]

    def refused(self, error: SessionError) -> Sequence[Step]:
        if self._open is not None and error.reason in ("model_not_found", "no_endpointing"):
            self._items.remove(self._open)
            self._open = None
        return [self._error(error.reason if error.reason in ERRORS else "internal_error", error.message)]

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:  # noqa: ARG002
        return [self._error("server_busy", f"{limit} events wait already"), Close(1013)]

    def expired(self, limit: str) -> Sequence[Step]:
        return [Close(1000, f"{limit} limit reached")]

    def crashed(self) -> Sequence[Step]:
        return [self._error("internal_error", "internal error; the connection is closed"), Close(1011)]

    # ---- replies

    def _fresh(self) -> str:
        self._count += 1
        return f"item_{self._session.id[5:]}{self._count:04d}"

    def _tell_committed(self, item: _Item) -> Sequence[Step]:
        if item.committed:
            return []
        item.committed = True
        previous, self._previous = self._previous, item.id
        return [
            self._reply(openai.Committed(previous, item.id)),
            self._reply(openai.ItemAdded(previous, item.id, self._flat)),
        ]

    def _nothing_to_commit(self, event_id: str | None, seconds: float = 0.0) -> Reply:
        least, got = f"{1000 * LEAST_SECONDS:.0f}", f"{1000 * seconds:.0f}"
        message = f"nothing to commit: at least {least} ms of audio (with turn detection: of speech) are expected, there are {got}"
        return self._error("commit_empty", message, event_id=event_id)

    def _error(self, reason: str, message: str, param: str | None = None, event_id: str | None = None) -> Reply:
        kind, code = ERRORS.get(reason, ("server_error", reason))
        return self._reply(openai.Error(message, code, kind, param, event_id), error=reason)

    def _reply(self, event: openai.ServerEvent, error: str = "") -> Reply:
        self._events += 1
        return Reply(openai.encode_server(event, f"event_{self._session.id[5:]}{self._events:06d}"), error)


class EitherDialect:
    """Both dialects of ``/v1/realtime`` on a connection that did not say which: the first frame tells.

    It is greeted as vLLM greets, which both kinds of clients understand.
    """

    def __init__(self, plain: Dialect, openai_dialect: OpenAIDialect) -> None:
        self._plain = plain
        self._openai = openai_dialect
        self._chosen: Dialect = plain
        self._undecided = True

    def greet(self) -> Sequence[Step]:
        return self._plain.greet()

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        self._decide(frame)
        return self._chosen.receive(frame)

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:
        self._decide(frame)
        return self._chosen.urgent(frame)

    def _decide(self, frame: str | bytes) -> None:
        if self._undecided:
            self._undecided = False
            self._chosen = self._openai if openai.speaks_openai(frame) else self._plain

    def refused(self, error: SessionError) -> Sequence[Step]:
        return self._chosen.refused(error)

    def tell(self, event: Event) -> Sequence[Step]:
        return self._chosen.tell(event)

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:
        return self._chosen.overflow(frame, limit)

    def expired(self, limit: str) -> Sequence[Step]:
        return self._chosen.expired(limit)

    def crashed(self) -> Sequence[Step]:
        return self._chosen.crashed()


def _audio(pcm: bytes) -> Sequence[Step]:
    return [Audio(pcm)] if pcm else []


def _endpointer(vad: openai.TurnDetection) -> EndpointerSettings:
    """Hysteresis of 0.15 below the threshold, as everywhere here."""
    release = max(vad.threshold - 0.15, vad.threshold / 2)
    return EndpointerSettings(vad.threshold, release, LEAST_SECONDS, vad.silence_duration_ms / 1000)


def _nearest(delay_ms: int, served: Served) -> int:
    """The delay that the model can do and that lies nearest; the longer one of two."""
    return min(
        served.delays_ms, key=lambda possible: (abs(possible - delay_ms), -possible), default=served.default_delay_ms
    )
