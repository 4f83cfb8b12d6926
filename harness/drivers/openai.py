"""Driver of OpenAI's realtime transcription sessions, ``/v1/realtime?intent=transcription``, as its API reference describes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from harness.drivers.base import (
    Done,
    Driver,
    DriverError,
    Fault,
    Final,
    Frame,
    Listener,
    Ready,
    Request,
    Said,
    decode,
    whole_numbers,
)
from harness.drivers.growing import Growing, joined
from wire.errors import WireError
from wire.pcm import encode_base64

COMMIT = '{"type":"input_audio_buffer.commit"}'
CLEAR = '{"type":"input_audio_buffer.clear"}'
NOTHING_TO_COMMIT = "input_audio_buffer_commit_empty"
TURNS = ("none", "server_vad", "semantic_vad")
DELAYS = ("minimal", "low", "medium", "high", "xhigh")
NOISE = ("near_field", "far_field")
TRANSCRIPTION = "conversation.item.input_audio_transcription"


class OpenAIDriver(Driver):
    """24 kHz PCM in, one transcript per committed piece of audio out.

    Without turn detection the whole utterance is one piece, committed at its end. With it the server commits pieces on its own, and
    our commit at the end may find nothing left, which is no fault. Which pieces there are is known once the server has answered
    what was sent behind the commit: clearing the buffer, which has nothing in it by then and nobody else asks for.
    """

    name = "openai"
    path = "/v1/realtime"
    title = "OpenAI's realtime transcription sessions"
    home: ClassVar[str | None] = "wss://api.openai.com"
    key_variable = "OPENAI_API_KEY"
    default_model: ClassVar[str | None] = "gpt-live-transcribe"
    settable_delay = False
    sample_rate = 24_000
    largest_packet_bytes = 15 * 2**20 * 3 // 4
    takes_several = True
    describes_itself = False
    options: ClassVar[Mapping[str, str]] = {
        "delay": f"{', '.join(DELAYS)}: how long gpt-realtime-whisper waits before it shows text",
        "turn_detection": f"{', '.join(TURNS)}: how the server cuts audio into pieces; the default is none",
        "silence_duration_ms": "silence that ends a piece, with turn_detection=server_vad",
        "noise_reduction": f"{' or '.join(NOISE)}; off unless given",
        "language": "two-letter code of the audio's language; recognised by the service unless given",
        "languages": "comma-separated codes of languages to expect, for gpt-live-transcribe",
        "prompt": "text that guides the model, where it takes one",
        "keywords": "comma-separated terms to expect, for gpt-live-transcribe",
    }

    def check(self, request: Request) -> None:
        super().check(request)
        chosen = request.options
        for name, allowed in (("turn_detection", TURNS), ("delay", DELAYS), ("noise_reduction", NOISE)):
            if chosen.get(name, allowed[0]) not in allowed:
                raise DriverError(f"{name}={chosen[name]}: choose one of {', '.join(allowed)}")
        if "silence_duration_ms" in chosen:
            if chosen.get("turn_detection") != "server_vad":
                raise DriverError("silence_duration_ms is for turn_detection=server_vad")
            if not chosen["silence_duration_ms"].isdecimal():
                raise DriverError(f"silence_duration_ms={chosen['silence_duration_ms']}: a whole number is expected")

    def query(self, request: Request) -> Mapping[str, str]:  # noqa: ARG002 - a model in the URL would make it a conversation
        return {"intent": "transcription"}

    def hello(self, request: Request) -> Sequence[Frame]:
        chosen = request.options
        transcription: dict[str, Any] = {"model": request.model or self.default_model}
        if request.delay_ms is not None:
            transcription["delay_ms"] = request.delay_ms
        transcription |= {name: chosen[name] for name in ("delay", "language", "prompt") if name in chosen}
        for name in ("languages", "keywords"):
            if name in chosen:
                transcription[name] = [part.strip() for part in chosen[name].split(",")]
        heard: dict[str, Any] = {
            "format": {"type": "audio/pcm", "rate": self.sample_rate},
            "transcription": transcription,
            "turn_detection": _turn_detection(chosen),
        }
        if "noise_reduction" in chosen:
            heard["noise_reduction"] = {"type": chosen["noise_reduction"]}
        session = {"type": "transcription", "audio": {"input": heard}}
        return [msgspec.json.encode({"type": "session.update", "session": session}).decode()]

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002 - frames carry no ids
        return msgspec.json.encode({"type": "input_audio_buffer.append", "audio": encode_base64(pcm)}).decode()

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return [COMMIT, CLEAR]

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return _Stream().heard


class OpenAIRealtimeDriver(OpenAIDriver):
    """The same to a server of ours, which takes a delay in milliseconds and 16 kHz too, so that it hears the very samples of the other
    protocols. `OpenAIDriver` speaks to it as to OpenAI, at 24 kHz.
    """

    name = "openai-realtime"
    title = "this project's server, OpenAI's realtime transcription sessions"
    home = None
    sample_rate = 16_000
    key_variable = Driver.key_variable
    default_model = None
    needs_model = True
    settable_delay = True
    describes_itself = True


def _turn_detection(chosen: Mapping[str, str]) -> dict[str, Any] | None:
    kind = chosen.get("turn_detection", "none")
    if kind == "none":
        return None
    silence = chosen.get("silence_duration_ms")
    return {"type": kind} if silence is None else {"type": kind, "silence_duration_ms": int(silence)}


class _InForce(msgspec.Struct):
    delay_ms: int | None = None


class _Input(msgspec.Struct):
    transcription: _InForce | None = None


class _Audio(msgspec.Struct):
    input: _Input | None = None


class _Session(msgspec.Struct):
    audio: _Audio | None = None


class _Updated(msgspec.Struct):
    session: _Session | None = None

    @property
    def delay_ms(self) -> int | None:
        """What a server of ours says is in force; OpenAI's does not."""
        heard = self.session and self.session.audio and self.session.audio.input
        return heard.transcription.delay_ms if heard and heard.transcription else None


class _Committed(msgspec.Struct):
    item_id: str


class _Cleared(msgspec.Struct):
    pass


class _Delta(msgspec.Struct):
    item_id: str
    delta: str | None = None


class _Completed(msgspec.Struct):
    item_id: str
    transcript: str
    usage: dict[str, Any] | None = None


class _Detail(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    code: str | None = None


class _Failed(msgspec.Struct):
    error: _Detail


class _Error(msgspec.Struct):
    error: _Detail


_KINDS: Mapping[str, type[_Updated | _Committed | _Cleared | _Delta | _Completed | _Failed | _Error]] = {
    "session.updated": _Updated,
    "input_audio_buffer.committed": _Committed,
    "input_audio_buffer.cleared": _Cleared,
    f"{TRANSCRIPTION}.delta": _Delta,
    f"{TRANSCRIPTION}.completed": _Completed,
    f"{TRANSCRIPTION}.failed": _Failed,
    "error": _Error,
}


@dataclass(slots=True)
class _Piece:
    """Audio between two commits: its text so far, and whether that is the last word on it."""

    text: str = ""
    complete: bool = False


class _Stream:
    """Pieces in the order in which they were first mentioned, joined by blanks.

    Text is appended where it only grows. Text of a piece behind one that is still growing is tentative, for more may come before
    it. A completed transcript that differs from its deltas shows in the final text.
    """

    def __init__(self) -> None:
        self._pieces: dict[str, _Piece] = {}
        self._growing = Growing()
        self._usage: dict[str, int] = {}
        self._all_known = self._over = False

    def heard(self, frame: Frame) -> Sequence[Said]:
        try:
            event = decode(frame, _KINDS)
        except WireError as error:
            return [Fault("unreadable_frame", error.message)]
        match event:
            case _Updated():
                return [Ready(event.delay_ms)]
            case _Committed(item_id):
                self._pieces.setdefault(item_id, _Piece())
                return []
            case _Cleared():
                self._all_known = True
                return self._end()
            case _Delta(item_id, delta):
                self._pieces.setdefault(item_id, _Piece()).text += delta or ""
                return self._grow()
            case _Completed(item_id, transcript, usage):
                return self._complete(item_id, transcript, usage)
            case _Failed(detail) | _Error(detail):
                return self._fault(detail)
            case _:
                return []

    def _complete(self, item_id: str, transcript: str, usage: Mapping[str, Any] | None) -> Sequence[Said]:
        piece = self._pieces.setdefault(item_id, _Piece())
        piece.text, piece.complete = transcript, True
        for name, count in whole_numbers(usage).items():
            self._usage[name] = self._usage.get(name, 0) + count
        return [*self._grow(), *self._end()]

    def _grow(self) -> Sequence[Said]:
        pieces = list(self._pieces.values())
        growing = next((index for index, piece in enumerate(pieces) if not piece.complete), len(pieces))
        return self._growing.show(_text(pieces[: growing + 1]), _text(pieces))

    def _end(self) -> Sequence[Said]:
        if self._over or not self._all_known or not all(piece.complete for piece in self._pieces.values()):
            return []
        self._over = True
        return [Final(_text(self._pieces.values())), Done(self._usage)]

    def _fault(self, error: _Detail) -> Sequence[Said]:
        if error.code == NOTHING_TO_COMMIT:
            return []  # the server had committed everything by itself, or the rest was too short to be a piece
        code = error.code or error.type or "error"
        return [Fault(code, error.message or "no reason given", refused=code == "rate_limit_exceeded")]


def _text(pieces: Iterable[_Piece]) -> str:
    return joined(piece.text for piece in pieces)
