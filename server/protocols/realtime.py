"""The dialect of vLLM's realtime endpoint: model validation, queued audio, and its table of errors."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

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
from wire import realtime
from wire.errors import WireError
from wire.pcm import bytes_of, decode_base64

_CODES = {
    "unsupported_delay": "invalid_event",
    "unsupported_vad": "invalid_event",
    "no_active_utterance": "processing_error",
    "overloaded": "processing_error",
    "internal_error": "processing_error",
}
"""reason -> code; every other reason is its own code."""

_PIECE_BYTES = bytes_of(1.0)
_MAX_CLIP_BYTES = 2 * 25 * 1_048_576  # vLLM's limit for one event, which it counts in samples


class RealtimeDialect:
    """One connection. Audio that comes while no transcription takes it is kept for the next one."""

    def __init__(self, served: Served, max_uncommitted_seconds: float, offer: Offer | None = None) -> None:
        """``served`` is the default model, ``offer`` knows them all."""
        self._served = served
        self._offer = offer or only(served)
        self._max_uncommitted_bytes = bytes_of(max_uncommitted_seconds)
        self._validated = False
        self._running: str | None = None  # the utterance that takes audio
        self._uncommitted = bytearray()
        self._count = 0
        self._defaults = StreamOptions()

    def greet(self) -> Sequence[Step]:
        return [_reply(realtime.SessionCreated(f"sess-{secrets.token_hex(16)}", int(time.time())))]

    def receive(self, frame: str | bytes) -> Sequence[Step]:
        try:
            match realtime.decode_client(frame):
                case realtime.Append(audio):
                    return self._append(audio)
                case realtime.SessionUpdate() as update:
                    return self._update(update)
                case realtime.Commit() as commit:
                    return self._commit(commit)
        except WireError as error:
            return [_error(error.reason, error.message)]

    def urgent(self, frame: str | bytes) -> Sequence[Step] | None:  # noqa: ARG002
        return None  # nothing of this protocol may overtake

    def _update(self, update: realtime.SessionUpdate) -> Sequence[Step]:
        named = update.model.strip() if update.model else None
        served = self._offer(named)
        if served is None:
            return [_error("model_not_found", f"the model '{named:.200}' is not served here")]
        self._defaults = stream_options(served, update.delay_ms, update.vad, self._defaults)
        self._served = served
        self._validated = True
        return []

    def _append(self, audio: str) -> Sequence[Step]:
        pcm = decode_base64(audio)
        if len(pcm) > _MAX_CLIP_BYTES:
            return [_error("invalid_audio", f"more than {_MAX_CLIP_BYTES // 2} samples in one event")]
        if self._running is not None:
            return [Audio(pcm)]
        if len(self._uncommitted) + len(pcm) > self._max_uncommitted_bytes:
            seconds = self._max_uncommitted_bytes / bytes_of(1)
            return [
                _error("processing_error", f"more than {seconds:g} s of audio without a commit; the chunk is skipped")
            ]
        self._uncommitted += pcm  # not as a list: a client may send it sample by sample
        return []

    def _commit(self, commit: realtime.Commit) -> Sequence[Step]:
        if not self._validated:
            return [_error("model_not_validated", "send session.update with the model's name before the first commit")]
        options = stream_options(self._served, commit.delay_ms, commit.vad, self._defaults)
        steps: list[Step] = []
        if self._running is None:
            self._count += 1
            self._running = str(self._count)
            steps.append(Start(self._running, options))
            kept = bytes(self._uncommitted)
            steps += [Audio(kept[at : at + _PIECE_BYTES]) for at in range(0, len(kept), _PIECE_BYTES)]
            self._uncommitted.clear()
        if commit.final:
            self._running = None
            steps.append(Finish())
        return steps

    def refused(self, error: SessionError) -> Sequence[Step]:
        return [_error(error.reason, error.message)]

    def tell(self, event: Event) -> Sequence[Step]:
        match event:
            case Token(_, text):
                return [_reply(realtime.Delta(text))]
            case Final():
                done = realtime.Done(
                    event.text,
                    usage_object(event.usage),
                    words_field(self._served, event.words),
                    round(event.delay_seconds * 1000),
                    round(event.audio_seconds, 3),
                    event.ended_by,
                )
                return [_reply(done)]
            case Failed(utterance, code, message):
                self._running = None if self._running == utterance else self._running
                return [_error(code if code == "invalid_audio" else "processing_error", public_message(message))]
            case Started() | Speech() | Tentative() | Dropped() | Mute() | Cancelled():
                return []

    def overflow(self, frame: str | bytes, limit: int) -> Sequence[Step]:  # noqa: ARG002
        return [Close(1013)]

    def expired(self, limit: str) -> Sequence[Step]:
        return [Close(1000, f"{limit} limit reached")]

    def crashed(self) -> Sequence[Step]:
        return [_error("internal_error", "internal error; the connection is closed"), Close(1011)]


def _error(reason: str, message: str) -> Reply:
    return Reply(realtime.encode_server(realtime.Error(message, _CODES.get(reason, reason))), reason)


def _reply(event: realtime.ServerEvent) -> Reply:
    return Reply(realtime.encode_server(event))
