"""Driver of the realtime protocol that vLLM brought up, ``/v1/realtime``, with this project's additions."""

from __future__ import annotations

from collections.abc import Sequence

from harness.drivers.base import (
    Appended,
    Done,
    Driver,
    Fault,
    Final,
    Frame,
    Listener,
    Ready,
    Request,
    Said,
    whole_numbers,
)
from wire import realtime
from wire.errors import WireError
from wire.pcm import encode_base64


class RealtimeDriver(Driver):
    """Frames carry no ids, so all streams of an utterance are alike."""

    name = "realtime"
    path = "/v1/realtime"
    title = "this project's server, vLLM's realtime protocol with a delay per utterance"
    needs_model = True
    takes_several = True

    def hello(self, request: Request) -> Sequence[Frame]:
        return [realtime.encode_client(realtime.SessionUpdate(request.model or "", request.delay_ms))]

    def start(self, utterance: str, request: Request) -> Sequence[Frame]:  # noqa: ARG002 - frames carry no ids here
        return [realtime.encode_client(realtime.Commit(final=False, delay_ms=request.delay_ms))]

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002
        return realtime.encode_client(realtime.Append(encode_base64(pcm)))

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return [realtime.encode_client(realtime.Commit(final=True))]

    def listen(self, request: Request) -> Listener:  # noqa: ARG002 - every frame speaks for itself
        return read


def read(frame: Frame) -> Sequence[Said]:
    """What a server frame says, whatever came before it."""
    try:
        event = realtime.decode_server(frame)
    except WireError as error:
        return [Fault("unreadable_frame", error.message)]
    match event:
        case realtime.Delta(delta):
            return [Appended(delta)] if delta else []  # vLLM sends an empty one for every silent step
        case realtime.Done():
            return [Final(event.text, event.words or ()), Done(whole_numbers(event.usage), event.delay_ms)]
        case realtime.SessionCreated():
            return [Ready()]
        case realtime.Error(text, code):
            return [Fault(code or "error", text)]
        case _:
            return []
