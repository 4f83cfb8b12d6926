"""The envelope dialect: request ids, barge-in, and its table of errors."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from server.core.events import (
    Audio,
    Cancel,
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
from server.core.session import SessionError
from server.protocols.base import (
    Close,
    Offer,
    Reply,
    Served,
    Step,
    only,
    public_message,
    stream_options,
    usage_object,
    words_field,
)
from wire import yap
from wire.errors import WireError
from wire.pcm import decode_base64

_CODES = {
    "invalid_message": "invalid_message",
    "unknown_message_type": "invalid_message",
    "unsupported_model": "invalid_payload",
    "unsupported_delay": "invalid_payload",
    "unsupported_vad": "invalid_payload",
    "no_active_request": "invalid_payload",
    "request_id_mismatch": "invalid_payload",
    "missing_audio": "invalid_payload",
    "inbound_queue_full": "internal_error",
}
"""reason_code -> code; every other reason is its own code."""

UNAUTHORIZED_CLOSE_CODE = 1008
BUSY_CLOSE_CODE = 1013
IDLE_CLOSE_CODE = 4000
DURATION_CLOSE_CODE = 4003
_CLOSE_REASON_BYTES = 123
_BARGE_IN = ""  # a client that gives an empty reason is understood as giving none


def rejection(reason_code: str, message: str) -> tuple[Reply, Close]:
    """What a client is told that may not come in: ``authentication_failed`` or ``server_at_capacity``."""
    error = yap.Error(reason_code, message, {"reason_code": reason_code})
    code = UNAUTHORIZED_CLOSE_CODE if reason_code == "authentication_failed" else BUSY_CLOSE_CODE
    reason = message.encode()[:_CLOSE_REASON_BYTES].decode(errors="ignore")
    return Reply(yap.encode_server(error, yap.UNKNOWN, yap.UNKNOWN), reason_code), Close(code, reason)


class YapDialect:
    """One connection. ``active`` is the request that takes audio, ``in_flight`` those whose audio has ended, oldest first.

    More than one is in flight only while a client uses an id again before its ``done``.
    """

    def __init__(self, served: Served, idle_close_reason: str = "idle_timeout", offer: Offer | None = None) -> None:
        """``served`` is the default model, ``offer`` knows them all."""
        self._served = served
        self._offer = offer or only(served)
        self._idle_close_reason = idle_close_reason
        self._session_id = yap.UNKNOWN  # ids of the newest valid frame
        self._request_id = yap.UNKNOWN
        self._active: str | None = None
        self._in_flight: list[str] = []
        self._started_by: dict[str, str] = {}  # request id -> session id, of requests not over
        self._defaults = StreamOptions()
        self._wants_tentative = False

    def greet(self) -> Sequence[Step]:
        created = yap.SessionCreated(f"sess-{secrets.token_hex(16)}", int(time.time()))
        return [Reply(yap.encode_server(created, yap.UNKNOWN, yap.UNKNOWN))]

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        try:
            envelope = yap.decode_envelope(frame)
            self._session_id, self._request_id = envelope.session_id, envelope.request_id
            return self._obey(yap.client_message(envelope))
        except WireError as error:
            return [self._error(error.reason, error.message)]

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:
        try:
            envelope = yap.decode_envelope(frame)
        except WireError:
            return None
        return self.receive(frame) if envelope.type in ("ping", "pong", "end") else None

    def _obey(self, message: yap.ClientMessage) -> Sequence[Step]:
        match message:
            case yap.Append(audio):
                return self._append(audio)
            case yap.Commit(final=False):
                return self._begin(message)
            case yap.Commit():
                return self._finish()
            case yap.SessionUpdate():
                return self._update(message)
            case yap.Cancel(reason):
                self._forget()
                return [Cancel(reason)]
            case yap.Ping():
                return [self._reply(yap.PongReply())]
            case yap.Pong():
                return []
            case yap.End():
                return [Cancel(_BARGE_IN), self._reply(yap.SessionEnd()), Close(1000)]

    def _update(self, update: yap.SessionUpdate) -> Sequence[Step]:
        model = update.model
        served = self._offer(model.strip() if isinstance(model, str) and model else None)
        if served is None:
            allowed = self._served.models[0]
            message = f"model {model!r:.100} is not served here; use {allowed!r}"
            return [self._error("unsupported_model", message, allowed_model=allowed, requested=model)]
        self._defaults = stream_options(served, update.delay_ms, update.vad, self._defaults)
        self._ask_tentative(update.tentative)
        self._served = served
        delay = self._defaults.delay_seconds
        delay_ms = self._served.default_delay_ms if delay is None else round(delay * 1000)
        return [self._reply(yap.SessionUpdated(self._served.models[0], delay_ms))]

    def _begin(self, commit: yap.Commit) -> Sequence[Step]:
        request = self._request_id
        options = stream_options(self._served, commit.delay_ms, commit.vad, self._defaults)
        self._ask_tentative(commit.tentative)
        if self._active == request:
            return []
        steps: list[Step] = []
        if self._active is not None or any(other != request for other in self._in_flight):
            steps.append(Cancel(_BARGE_IN))
            self._forget()
        self._active = request
        self._started_by[request] = self._session_id
        return [*steps, Start(request, options)]

    def _ask_tentative(self, wanted: Any) -> None:
        """For this connection from now on; ``None`` leaves it as it is."""
        if wanted is not None:
            self._wants_tentative = bool(wanted)

    def _finish(self) -> Sequence[Step]:
        wrong = self._not_active()
        if wrong is not None:
            return [wrong]
        self._active = None
        self._in_flight.append(self._request_id)
        return [Finish()]

    def _append(self, audio: str) -> Sequence[Step]:
        wrong = self._not_active()
        return [Audio(decode_base64(audio))] if wrong is None else [wrong]

    def _not_active(self) -> Reply | None:
        if self._active is None:
            return self._error(
                "no_active_request", "no request is active; send input_audio_buffer.commit final=false first"
            )
        if self._active != self._request_id:
            message = f"request '{self._request_id:.100}' is not the active one"
            return self._error("request_id_mismatch", message, active_request_id=self._active)
        return None

    def refused(self, error: SessionError) -> Sequence[Step]:
        return [self._error("no_active_request", error.message)]

    def tell(self, event: Event) -> Sequence[Step]:
        match event:
            case Token(request, text, words):
                timed = words_field(self._served, words) if self._wants_tentative and words else None
                return [self._about(request, yap.Token(text, timed))]
            case Tentative(request, text) if self._wants_tentative:
                return [self._about(request, yap.Tentative(text))]
            case Final(request):
                return self._final(request, event)
            case Dropped(request, seconds, limit):
                status = yap.Status("overload_drop", seconds, limit, "pending_buffer")
                return [self._about(request, status)]
            case Mute(request, seconds):
                return [self._about(request, yap.Status("speech_without_text", seconds=round(seconds, 3)))]
            case Cancelled(_, reason):
                return [] if reason == _BARGE_IN else [self._reply(yap.CancelledReply(reason))]
            case Failed(request, code, message):
                error = yap.Error(_CODES.get(code, code), public_message(message), {"reason_code": code})
                reply = Reply(self._about(request, error).frame, code)
                self._over(request)
                return [reply]
            case Started() | Speech() | Tentative():
                return []

    def _final(self, request: str, final: Final) -> Sequence[Step]:
        text = yap.Final(final.text, words_field(self._served, final.words))
        done = yap.Done(
            usage_object(final.usage), round(final.delay_seconds * 1000), round(final.audio_seconds, 3), final.ended_by
        )
        steps = [self._about(request, text), self._about(request, done)]
        if final.ended_by == "client":
            self._over(request)
        return steps

    def _over(self, request: str) -> None:
        """The oldest use of the id has ended."""
        if request in self._in_flight:
            self._in_flight.remove(request)
        elif request == self._active:
            self._active = None
        if request != self._active and request not in self._in_flight:
            self._started_by.pop(request, None)

    def _forget(self) -> None:
        """Everything under way is being cancelled."""
        self._active = None
        self._in_flight.clear()
        self._started_by.clear()

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:
        try:
            envelope = yap.decode_envelope(frame)
            self._session_id, self._request_id = envelope.session_id, envelope.request_id
        except WireError:
            pass  # the ids stay those of the newest valid frame
        error = self._error("inbound_queue_full", f"more than {limit} messages wait", inbound_queue_max=limit)
        return [error, Close(BUSY_CLOSE_CODE)]

    def expired(self, limit: str) -> Sequence[Step]:
        if limit == "idle":
            return [Close(IDLE_CLOSE_CODE, self._idle_close_reason)]
        return [Close(DURATION_CLOSE_CODE, "max connection duration reached")]

    def crashed(self) -> Sequence[Step]:
        return [self._error("internal_error", "internal error; the connection is closed"), Close(1011)]

    def _error(self, reason: str, message: str, **details: Any) -> Reply:
        error = yap.Error(_CODES.get(reason, reason), message, {**details, "reason_code": reason})
        return Reply(yap.encode_server(error, self._session_id, self._request_id), reason)

    def _reply(self, message: yap.ServerMessage) -> Reply:
        return Reply(yap.encode_server(message, self._session_id, self._request_id))

    def _about(self, request: str, message: yap.ServerMessage) -> Reply:
        return Reply(yap.encode_server(message, self._started_by.get(request, self._session_id), request))
