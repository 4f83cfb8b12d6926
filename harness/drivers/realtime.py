"""Driver of vLLM's realtime protocol, ``/v1/realtime``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.drivers.base import Appended, Done, Fault, Final, Ready, Request, Said, whole_numbers
from wire import realtime
from wire.errors import WireError
from wire.pcm import encode_base64


class RealtimeDriver:
    """Frames carry no ids, so all streams of an utterance are alike."""

    name = "realtime"
    path = "/v1/realtime"

    def credentials(self, api_key: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return {}, {"Authorization": f"Bearer {api_key}"}

    def hello(self, request: Request) -> Sequence[str]:
        if request.model is None:
            raise ValueError("the realtime protocol needs the name of the model (--model)")
        return [realtime.encode_client(realtime.SessionUpdate(request.model, request.delay_ms))]

    def start(self, utterance: str, request: Request) -> Sequence[str]:  # noqa: ARG002 - frames carry no ids here
        return [realtime.encode_client(realtime.Commit(final=False, delay_ms=request.delay_ms))]

    def audio(self, utterance: str, pcm: bytes) -> str:  # noqa: ARG002
        return realtime.encode_client(realtime.Append(encode_base64(pcm)))

    def end(self, utterance: str) -> str:  # noqa: ARG002
        return realtime.encode_client(realtime.Commit(final=True))

    def receive(self, frame: str | bytes) -> Sequence[Said]:
        try:
            event = realtime.decode_server(frame)
        except WireError as error:
            return [Fault("unreadable_frame", error.message)]
        match event:
            case realtime.Delta(delta):
                return [Appended(delta)] if delta else []  # vLLM sends an empty one for every silent step
            case realtime.Done():
                return [
                    Final(event.text, event.words or ()),
                    Done(whole_numbers(event.usage), event.delay_ms),
                ]
            case realtime.SessionCreated():
                return [Ready()]
            case realtime.Error(text, code):
                return [Fault(code or "error", text)]
            case _:
                return []
