"""Driver of the JSON-envelope protocol, ``/api/asr-streaming``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.drivers.base import (
    Appended,
    Done,
    Driver,
    Dropped,
    Fault,
    Final,
    Frame,
    Listener,
    Ready,
    Request,
    Said,
    whole_numbers,
)
from wire import yap
from wire.errors import WireError
from wire.pcm import encode_base64

SESSION_ID = "earmark"


class YapDriver(Driver):
    """The session id is the same for all streams and the request id is the utterance, so streams can share frames."""

    name = "yap"
    path = "/api/asr-streaming"
    title = "this project's server, the envelope protocol"
    takes_several = True

    def credentials(self, api_key: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return {"api_key": api_key}, {}

    def hello(self, request: Request) -> Sequence[Frame]:
        return [yap.encode_client(yap.SessionUpdate(request.model, request.delay_ms), SESSION_ID, "hello")]

    def start(self, utterance: str, request: Request) -> Sequence[Frame]:
        return [yap.encode_client(yap.Commit(final=False, delay_ms=request.delay_ms), SESSION_ID, utterance)]

    def audio(self, utterance: str, pcm: bytes) -> Frame:
        return yap.encode_client(yap.Append(encode_base64(pcm)), SESSION_ID, utterance)

    def end(self, utterance: str) -> Sequence[Frame]:
        return [yap.encode_client(yap.Commit(final=True), SESSION_ID, utterance)]

    def listen(self, request: Request) -> Listener:  # noqa: ARG002 - every frame speaks for itself
        return _read


def _read(frame: Frame) -> Sequence[Said]:
    try:
        message, _ = yap.decode_server(frame)
    except WireError as error:
        return [Fault("unreadable_frame", error.message)]
    match message:
        case yap.Token(text):
            return [Appended(text)]
        case yap.Final(text, words):
            return [Final(text, words or ())]
        case yap.Done(usage, delay_ms):
            return [Done(whole_numbers(usage), delay_ms)]
        case yap.SessionUpdated(_, delay_ms):
            return [Ready(delay_ms)]
        case yap.Status("overload_drop", dropped_seconds):
            return [Dropped(dropped_seconds or 0.0)]
        case yap.Error(code, text):
            return [Fault(code, text, refused=code == "server_at_capacity")]
        case yap.CancelledReply(reason):
            return [Fault("cancelled", reason)]
        case yap.SessionEnd():
            return [Fault("session_end", "the server ended the session")]
        case _:
            return []
