"""Driver of the gRPC surface, ``stt.STTBackend``: a session is created, then audio and results stream against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from google.protobuf.message import DecodeError

from harness.drivers.base import (
    Answer,
    Ask,
    Done,
    Driver,
    DriverError,
    Fault,
    Final,
    Frame,
    Listener,
    Pause,
    Request,
    Said,
    Status,
    Transport,
    Way,
)
from harness.drivers.growing import Growing, joined
from wire.errors import WireError
from wire.stt import stt_pb2

SERVICE = "/stt.STTBackend"
PROFILES = {"realtime": stt_pb2.DECODE_PROFILE_REALTIME, "accurate": stt_pb2.DECODE_PROFILE_ACCURATE}
REFUSALS = ("ERR1008", "ERR1011", "ERR1012", "ERR1013")
"""No room for another session; all others are faults of a stream that was begun."""


class GrpcDriver(Driver):
    """Voice activity detection is off unless asked for, so that an utterance is one utterance whatever pauses it has.

    The end of our audio is a chunk that says so; the server ends the stream behind the last result.
    """

    name = "grpc"
    transport = Transport.GRPC
    path = f"{SERVICE}/StreamingRecognize"
    title = "this project's server, gRPC streaming"
    announces_ready = False
    describes_itself = False
    server_options = ("--surfaces=grpc", "--grpc-port=0", "--unlimited")
    options: ClassVar[Mapping[str, str]] = {
        "vad_threshold": "probability of speech above which audio is heard, 0 to 1; the default is 0, which hears everything",
        "vad_silence": "seconds of silence that end an utterance of the server's; the server's unless given",
        "language": "code of the audio's language; found out by the server unless given",
        "decode_profile": f"{' or '.join(PROFILES)}; the server's unless given",
    }

    def check(self, request: Request) -> None:
        super().check(request)
        _number(request, "vad_threshold", 1.0)
        _number(request, "vad_silence", 60.0)
        profile = request.options.get("decode_profile")
        if profile is not None and profile not in PROFILES:
            raise DriverError(f"decode_profile={profile}: choose one of {', '.join(PROFILES)}")

    def before(self, request: Request, stream: str, headers: Mapping[str, str]) -> Ask:
        attributes = {"session_id": stream}
        key = headers.get("Authorization", "").removeprefix("Bearer ")
        attributes |= {"api_key": key} if key else {}
        attributes |= {} if request.model is None else {"model_id": request.model}
        attributes |= {} if request.delay_ms is None else {"delay_ms": str(request.delay_ms)}
        if _number(request, "vad_threshold", 1.0):
            attributes["emit_final_on_vad"] = "true"  # else an utterance that silence ended looks like a partial text
        asked = stt_pb2.SessionRequest(
            session_id=stream,
            attributes=attributes,
            vad_silence=_number(request, "vad_silence", 60.0),
            vad_threshold_override=_number(request, "vad_threshold", 1.0),
            language_code=request.options.get("language", ""),
        )
        profile = request.options.get("decode_profile")
        if profile is not None:
            asked.decode_profile = PROFILES[profile]
        return Ask(f"{SERVICE}/CreateSession", asked.SerializeToString())

    def way(self, stream: str, answer: bytes) -> Way:
        try:
            session = stt_pb2.SessionResponse.FromString(answer)
        except DecodeError as error:
            raise WireError("no_session", f"the server's answer to CreateSession cannot be read: {error}") from None
        if session.token_required:
            raise WireError("token", "the server wants a token with every chunk, which this driver does not ask for")
        return Way(headers={"session-id": stream})

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002
        return stt_pb2.AudioChunk(pcm16=pcm, sample_rate=self.sample_rate).SerializeToString()

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return [stt_pb2.AudioChunk(sample_rate=self.sample_rate, is_final=True).SerializeToString()]

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return _Results().heard


def _number(request: Request, name: str, largest: float) -> float:
    text = request.options.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= largest:
        raise DriverError(f"{name}={text}: a number from 0 to {largest:g} is expected")
    return value


class _Results:
    """The results of one stream. A partial one tells of the utterance under way, a final one ends it."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._growing = Growing()

    def heard(self, frame: Frame | Answer | Status) -> Sequence[Said]:
        match frame:
            case bytes():
                try:
                    return self._result(stt_pb2.STTResult.FromString(frame))
                except DecodeError as error:
                    return [Fault("unreadable_frame", f"the server sent a result that cannot be read: {error}")]
            case Status("OK"):
                return [Done()] if self._pieces else [Final(""), Done()]  # what was not speech may get no result
            case Status(code, details):
                return [Fault(code, details or "no reason given", refused=details.startswith(REFUSALS))]
            case _:
                return [Fault("unreadable_frame", "the server sent what is neither a result nor a status")]

    def _result(self, result: stt_pb2.STTResult) -> Sequence[Said]:
        if result.is_final:
            self._pieces.append(result.text.strip())
            text = joined(self._pieces)
            return [*self._growing.show(text, text), Pause(text)]
        stands = joined([*self._pieces, result.committed_text])
        told = result.text or joined([result.committed_text, result.unstable_text])
        return self._growing.show(stands, joined([*self._pieces, told]))
