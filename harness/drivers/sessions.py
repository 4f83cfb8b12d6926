"""Driver of the session surface: ``POST /session/create``, then raw PCM on the session's own WebSocket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from harness.drivers.base import (
    Ask,
    Done,
    Driver,
    DriverError,
    Fault,
    Final,
    Frame,
    Listener,
    Pause,
    Ready,
    Request,
    Said,
    Way,
    decode,
)
from harness.drivers.growing import Growing, joined
from wire.errors import WireError

ENDS = ("control", "silence")
DEFAULT_SILENCE_MS = 1500  # servers end an utterance after 1 s of it, as SILENCE_TIMEOUT_MS has it
REFUSALS = frozenset({"RATE_LIMITED", "CONNECTION_FAILED"})


class SessionsDriver(Driver):
    """The protocol has neither partial texts nor an end of audio; this project's server adds both, asked for by control messages. Its own
    silence detection is off then, so that an utterance is one whatever pauses it has.

    With ``end=silence`` nothing of that is needed: the server's silence detection ends the utterance, and the transcript is whole when no
    further piece came for a while.
    """

    name = "sessions"
    path = "/session/create"
    title = "this project's server, sessions with raw audio"
    takes_several = True
    server_options = ("--unlimited",)  # five sessions a minute are no load
    silence = "a server that knows no end message wants --driver-option end=silence"
    options: ClassVar[Mapping[str, str]] = {
        "end": f"{' or '.join(ENDS)}: how an utterance ends; the default is control, an addition of this project's server",
        "silence_ms": f"silence that is sent behind the utterance, with end=silence; the default is {DEFAULT_SILENCE_MS}",
        "partials": "true or false: whether to ask for text before the utterance ends; the default is true, with end=silence false",
        "language": "code of the audio's language; an addition of this project's server too",
    }

    def check(self, request: Request) -> None:
        super().check(request)
        for name, allowed in (("end", ENDS), ("partials", ("true", "false"))):
            if request.options.get(name, allowed[0]) not in allowed:
                raise DriverError(f"{name}={request.options[name]}: choose one of {', '.join(allowed)}")
        if "silence_ms" in request.options:
            if request.options.get("end") != "silence":
                raise DriverError("silence_ms is for end=silence")
            _silence_ms(request)

    def before(self, request: Request, stream: str, headers: Mapping[str, str]) -> Ask:  # noqa: ARG002
        return Ask(headers={"Content-Type": "application/json"})

    def way(self, stream: str, answer: bytes) -> Way:  # noqa: ARG002
        try:
            session = msgspec.json.decode(answer, type=_Session)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise WireError("no_session", f"the server's answer to /session/create cannot be read: {error}") from None
        if not session.websocket_url.startswith("/"):
            raise WireError("no_session", f"websocket_url is a path; the server says {session.websocket_url!r}")
        return Way(session.websocket_url, bye=Ask(f"/session/{session.session_id}", method="DELETE"))

    def hello(self, request: Request) -> Sequence[Frame]:
        asked = _additions(request)
        return [_control("configure", **asked)] if asked else []

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002
        return pcm

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return [_control("end")]  # whoever does not know it passes over it, and so it does no harm behind silence

    def trailing_silence_seconds(self, request: Request) -> float:
        return _silence_ms(request) / 1000 if request.options.get("end") == "silence" else 0.0

    def listen(self, request: Request) -> Listener:
        return _Utterance(configured=bool(_additions(request))).heard


def _additions(request: Request) -> dict[str, Any]:
    """What is asked of the server beyond the protocol."""
    by_silence = request.options.get("end") == "silence"
    asked: dict[str, Any] = {} if request.delay_ms is None else {"delay_ms": request.delay_ms}
    if request.options.get("partials", "false" if by_silence else "true") == "true":
        asked["partials"] = True
    if "language" in request.options:
        asked["language"] = request.options["language"]
    return asked if by_silence else asked | {"vad": "off"}


def _silence_ms(request: Request) -> int:
    text = request.options.get("silence_ms", str(DEFAULT_SILENCE_MS))
    if not text.isdecimal():
        raise DriverError(f"silence_ms={text}: a whole number of milliseconds is expected")
    return int(text)


def _control(kind: str, **fields: Any) -> str:
    return msgspec.json.encode({"type": "control", "control_type": kind, **fields}).decode()


class _Session(msgspec.Struct):
    session_id: str
    websocket_url: str


class _Status(msgspec.Struct):
    status: str = ""


class _Text(msgspec.Struct):
    text: str


class _Partial(_Text):
    committed: str = ""


class _Control(msgspec.Struct):
    control_type: str = ""
    delay_ms: int | None = None


class _Error(msgspec.Struct):
    error: str = "no reason given"
    code: str = "error"


_KINDS: Mapping[str, type[_Status | _Text | _Control | _Error]] = {
    "status": _Status,
    "partial": _Partial,
    "text_response": _Text,
    "control": _Control,
    "error": _Error,
}


class _Utterance:
    """What was said of one utterance of ours; the server may cut it into several at its pauses."""

    def __init__(self, *, configured: bool) -> None:
        """``configured``: whether the server is to say that it has taken what it was asked for."""
        self._configured = configured
        self._pieces: list[str] = []
        self._growing = Growing()

    def heard(self, frame: Frame) -> Sequence[Said]:
        try:
            message = decode(frame, _KINDS)
        except WireError as error:
            return [Fault("unreadable_frame", error.message)]
        match message:
            case _Status("connected"):
                return [] if self._configured else [Ready()]
            case _Control("configured", delay_ms):
                return [Ready(delay_ms)]
            case _Partial(text, committed):
                stands = joined([*self._pieces, committed.strip()]) if committed.strip() else joined(self._pieces)
                return self._growing.show(stands, joined([*self._pieces, text.strip()]))
            case _Text(text):
                self._pieces.append(text.strip())
                whole = joined(self._pieces)
                return [*self._growing.show(whole, whole), Pause(whole)]
            case _Control("ended"):
                return [Done()] if self._pieces else [Final(""), Done()]  # there was no speech
            case _Error(text, code):
                return [Fault(code, text, refused=code in REFUSALS)]
            case _:
                return []
