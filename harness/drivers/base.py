"""What a driver is: the translation between the replay and one streaming protocol, without any I/O."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec

from wire.errors import NOT_JSON, WireError
from wire.words import TimedWord

_Struct = TypeVar("_Struct", bound=msgspec.Struct)

Frame = str | bytes
"""A message: text or binary of a WebSocket, the serialised message of a gRPC stream, the data of a server-sent event."""


class Transport(StrEnum):
    """What carries a protocol."""

    WEBSOCKET = "websocket"
    HTTP = "http"  # one request with the whole recording; its answer, or the events that it answers with
    GRPC = "grpc"  # one stream of messages each way


@dataclass(frozen=True, slots=True)
class Ask:
    """An HTTP request, or a gRPC call with one message each way, to the target's host. Without ``path`` it goes where the target's
    URL points.
    """

    path: str = ""
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"


@dataclass(frozen=True, slots=True)
class Way:
    """What a stream learnt before it was opened: its path where that is its own, headers of its own (metadata of a gRPC stream), the
    delay that is in force if the server said so, and what to ask once it is over.
    """

    path: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_ms: int | None = None
    bye: Ask | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of an HTTP answer. ``body`` is empty where it came as server-sent events, each of which was a frame."""

    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Status:
    """How the server ended a gRPC stream: the name of its code, ``OK`` for a good end."""

    code: str
    details: str


class DriverError(ValueError):
    """A protocol that there is not, or one that cannot carry what is asked of it; the message says what to change."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every stream of a run asks of the server. ``None`` leaves the choice to the server.

    ``language`` is that of the audio (``en``), ``None`` where it has several. ``options`` are the driver's own, by name.
    """

    model: str | None = None
    delay_ms: int | None = None
    language: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)


# ---- what a server frame says -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The server accepted the session; ``delay_ms`` is the transcription delay it says is in force."""

    delay_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """Text to append to what was shown."""

    text: str


@dataclass(frozen=True, slots=True)
class Tentative:
    """Text that stands behind what was shown until the next text replaces it."""

    text: str


@dataclass(frozen=True, slots=True)
class Final:
    """The whole transcript, with the server's own word times where it gives any."""

    text: str
    words: tuple[TimedWord, ...] = ()


@dataclass(frozen=True, slots=True)
class Pause:
    """The whole text so far, which stands, and is all if nothing follows: of servers that cut an utterance by its silences. It becomes
    the final with `Done`, or where none comes, once nothing followed for a while.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """Nothing more comes for this utterance."""

    usage: Mapping[str, int] = field(default_factory=dict)
    delay_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """The server threw audio away."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Fault:
    """The server says error. ``refused``: for want of capacity, so the stream was never begun."""

    code: str
    message: str
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """The server's frame asks for an answer: these are sent at once."""

    frames: tuple[Frame, ...]


Said = Ready | Appended | Tentative | Final | Pause | Done | Dropped | Fault | Reply

Listener = Callable[[Frame], Sequence[Said]]
"""Says what a server frame says, given every frame of one stream in order; empty when it says nothing of interest.

One of an HTTP driver is given the `Answer` too, one of a gRPC driver the `Status` with which the stream ends.
"""


class Driver(ABC):
    """One protocol. It keeps nothing between calls, and client frames depend on utterance and request alone, so that streams share
    them; what must be remembered of a stream is in its listener.
    """

    name: ClassVar[str]
    transport: ClassVar[Transport] = Transport.WEBSOCKET
    path: ClassVar[str]
    """Where servers offer the protocol, for targets that name only a host."""
    title: ClassVar[str] = ""
    """What it speaks to, in a few words for a list."""
    home: ClassVar[str | None] = None
    """The address of the one service that speaks it; ``None`` where everybody runs servers of their own."""
    key_variable: ClassVar[str] = "EARMARK_API_KEY"
    """The environment variable that holds the key where none is given."""
    default_model: ClassVar[str | None] = None
    needs_model: ClassVar[bool] = False
    """Whether a model must be named."""
    settable_delay: ClassVar[bool] = True
    """Whether a transcription delay in milliseconds can be asked for."""
    sample_rate: ClassVar[int] = 16_000
    """Of the PCM16 that ``audio`` is given. Audio is resampled before a stream starts."""
    packet_ms: ClassVar[int] = 80
    """Audio per packet where nobody asks for another length."""
    largest_packet_bytes: ClassVar[int | None] = None
    """The most PCM that one frame may carry."""
    whole: ClassVar[bool] = False
    """Whether the whole recording goes in one packet, which is due when its last sample was spoken."""
    marks_last: ClassVar[bool] = False
    """Whether the last packet differs from the others, so that one cannot leave before it is known that another follows."""
    server_options: ClassVar[Sequence[str]] = ()
    """What this project's server must be started with to speak it."""
    announces_ready: ClassVar[bool] = True
    """Whether the server says that it is ready (``Ready``); where it does not, the open socket says so."""
    takes_several: ClassVar[bool] = False
    """Whether a connection can carry one utterance after another; ``hello`` is sent once then, and each has its own listener."""
    describes_itself: ClassVar[bool] = True
    """Whether ``/v1/models`` and ``/metrics`` of the same host are worth asking, with the key."""
    silence: ClassVar[str] = ""
    """What is likely the matter when a stream gets no answer at all."""
    options: ClassVar[Mapping[str, str]] = {}
    """The names of ``Request.options`` that it knows, and what each means."""

    def check(self, request: Request) -> None:
        """Refuse, before anything is sent, what the protocol cannot carry.

        Raises:
            DriverError: naming what cannot be.
        """
        for name in request.options:
            if name not in self.options:
                known = ", ".join(sorted(self.options)) or "none"
                raise DriverError(f"{self.name} has no option {name!r}; it has: {known}")
        if self.needs_model and not (request.model or self.default_model):
            raise DriverError(f"the {self.name} protocol needs the name of the model (--model)")
        if request.delay_ms is not None and not self.settable_delay:
            raise DriverError(f"{self.name} takes no transcription delay in milliseconds; use --delay-ms server")

    def credentials(self, api_key: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Query parameters and headers that carry the key."""
        return {}, {"Authorization": f"Bearer {api_key}"}

    def query(self, request: Request) -> Mapping[str, str]:  # noqa: ARG002 - for those that ask in the URL
        """Query parameters that carry what is asked for."""
        return {}

    def hello(self, request: Request) -> Sequence[Frame]:  # noqa: ARG002
        """Frames to send as soon as the socket is open."""
        return ()

    def start(self, utterance: str, request: Request) -> Sequence[Frame]:  # noqa: ARG002
        """Frames that begin the utterance."""
        return ()

    def before(self, request: Request, stream: str, headers: Mapping[str, str]) -> Ask | None:  # noqa: ARG002
        """What to ask before the stream is opened. ``stream`` is a name that no other stream has, ``headers`` are those that carry
        the key."""
        return None

    def way(self, stream: str, answer: bytes) -> Way:  # noqa: ARG002
        """What the answer to that says.

        Raises:
            WireError: the answer cannot be read.
        """
        return Way()

    def audio(self, utterance: str, pcm: bytes) -> Frame:
        """The frame that carries a packet of PCM16 at ``sample_rate``."""
        raise NotImplementedError(f"the driver {self.name!r} must say how audio goes: audio, or packet")

    def packet(self, utterance: str, request: Request, number: int, pcm: bytes, *, last: bool) -> Frame | Ask:  # noqa: ARG002
        """Packet ``number`` (from 0) of the utterance, for those to whom place or request matter; an `Ask` over HTTP."""
        return self.audio(utterance, pcm)

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        """The frames that say no more audio comes, none where the last packet says it."""
        return ()

    def trailing_silence_seconds(self, request: Request) -> float:  # noqa: ARG002
        """Digital silence to send after the utterance, for servers that take its end from that."""
        return 0.0

    @abstractmethod
    def listen(self, request: Request) -> Listener:
        """A listener for one stream."""


_SCHEMES: Mapping[Transport, Mapping[str, str]] = {
    Transport.WEBSOCKET: {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"},
    Transport.HTTP: {"http": "http", "https": "https", "ws": "http", "wss": "https"},
    Transport.GRPC: {"grpc": "grpc", "grpcs": "grpcs"},
}
EXAMPLES: Mapping[Transport, str] = {
    Transport.WEBSOCKET: "ws://127.0.0.1:8000",
    Transport.HTTP: "http://127.0.0.1:8000",
    Transport.GRPC: "grpc://127.0.0.1:50051",
}
"""Targets, as people may write them."""


def address(
    driver: Driver, target: str, api_key: str | None, request: Request | None = None
) -> tuple[str, dict[str, str]]:
    """The full URL for ``target``, and the headers to send with the handshake or request.

    ``target`` may be ``host:port`` or a URL; the protocol's own path is added when it names none. Query parameters that it names
    win over those of the request. A WebSocket's may be given as http, and the other way round; gRPC has a port of its own and is
    ``grpc://host:port`` (``grpcs`` with TLS).

    Raises:
        ValueError: when it is nothing of the kind.
    """
    schemes = _SCHEMES[driver.transport]
    parts = urlsplit(target if "://" in target else f"{next(iter(schemes))}://{target}")
    scheme = schemes.get(parts.scheme, "")
    try:
        usable = bool(scheme and parts.hostname) and (parts.port is None or parts.port > 0)
        usable = usable and (parts.port is not None or driver.transport is not Transport.GRPC)
    except ValueError:
        usable = False
    if not usable:
        kinds = " or ".join(f"{kind}://" for kind in dict.fromkeys(schemes.values()))
        what = "a host and a port" if driver.transport is Transport.GRPC else "a host"
        raise ValueError(f"target {target!r} is not a {kinds} URL with {what}, e.g. {EXAMPLES[driver.transport]}")
    asked = {} if request is None else driver.query(request)
    parameters, headers = driver.credentials(api_key) if api_key else ({}, {})
    named = [pair for pair in parse_qsl(parts.query) if pair[0] not in parameters]
    present = {name for name, _ in named}
    added = [*((name, value) for name, value in asked.items() if name not in present), *parameters.items()]
    path = parts.path if parts.path not in ("", "/") else driver.path
    return urlunsplit((scheme, parts.netloc, path, urlencode([*named, *added]), "")), dict(headers)


def whole_numbers(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """The counts in a usage object; servers mix null details among them."""
    return {
        key: value for key, value in (usage or {}).items() if isinstance(value, int) and not isinstance(value, bool)
    }


class _Typed(msgspec.Struct):
    type: str


def decode(frame: Frame, kinds: Mapping[str, type[_Struct]]) -> _Struct | None:
    """The event that a JSON frame with a ``type`` holds; ``None`` for a type that is not among ``kinds``.

    Raises:
        WireError: the frame is no such JSON, or its fields are not those of its type.
    """
    try:
        kind = kinds.get(msgspec.json.decode(frame, type=_Typed).type)
        return None if kind is None else msgspec.json.decode(frame, type=kind)
    except (*NOT_JSON, UnicodeDecodeError) as error:
        raise WireError("unreadable_frame", f"the server sent a frame that cannot be read: {error}") from None
