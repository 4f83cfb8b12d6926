"""A driver of a made-up protocol: PCM in binary frames, ``end`` at the end; ``+text`` appends, ``=text`` is the transcript."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from harness.drivers.base import Appended, Done, Driver, Fault, Final, Frame, Listener, Request, Said

ANSWER = 42


class PlainDriver(Driver):
    name = "plain"
    path = "/hear"
    title = "an example"
    key_variable = "PLAIN_KEY"
    announces_ready = False
    describes_itself = False
    settable_delay = False
    options: ClassVar[Mapping[str, str]] = {"mood": "of the server"}

    def query(self, request: Request) -> Mapping[str, str]:
        return request.options

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002
        return pcm

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return ["end"]

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return heard


def heard(frame: Frame) -> Sequence[Said]:
    match str(frame)[:1], str(frame)[1:]:
        case "+", text:
            return [Appended(text)]
        case "=", text:
            return [Final(text), Done()]
        case _:
            return [Fault("unreadable_frame", f"neither + nor =: {frame!r}")]
