"""Driver of vLLM's own realtime endpoint, which says less than this project's server does of the same protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from harness.drivers.base import DriverError, Frame, Listener, Ready, Request, Said
from harness.drivers.realtime import RealtimeDriver, read


class VllmDriver(RealtimeDriver):
    """The transcription delay belongs to vLLM's start and is never said, so it can be told here, not asked for.

    The empty deltas that vLLM sends, one per step of a stream, are no text and leave no entry.
    """

    name = "vllm"
    title = "vLLM's own realtime endpoint (vllm serve)"
    key_variable = "VLLM_API_KEY"
    settable_delay = False
    silence = "vLLM takes any number of streams and leaves those beyond its --max-num-seqs waiting without a word"
    options: ClassVar[Mapping[str, str]] = {
        "served-delay-ms": "the transcription delay that the server was started with; it cannot say"
    }

    def check(self, request: Request) -> None:
        super().check(request)
        _served_delay_ms(request)

    def listen(self, request: Request) -> Listener:
        delay_ms = _served_delay_ms(request)

        def heard(frame: Frame) -> list[Said]:
            return [Ready(delay_ms) if isinstance(said, Ready) else said for said in read(frame)]

        return heard


def _served_delay_ms(request: Request) -> int | None:
    text = request.options.get("served-delay-ms")
    if text is None:
        return None
    if not text.isdecimal():
        raise DriverError(f"served-delay-ms={text}: a whole number of milliseconds is expected")
    return int(text)
