"""What a driver is: the translation between the replay and one streaming protocol, without any I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from wire.words import TimedWord


@dataclass(frozen=True, slots=True)
class Request:
    """What every stream of a run asks of the server. ``None`` leaves the choice to the server."""

    model: str | None = None
    delay_ms: int | None = None


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


Said = Ready | Appended | Tentative | Final | Done | Dropped | Fault


class Driver(Protocol):
    """One protocol. Stateless but for ``listen``; client frames depend on the utterance alone, so that streams can share them."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> str:
        """Where servers offer the protocol, for targets that name only a host."""

    def credentials(self, api_key: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Query parameters and headers that carry the key."""

    def hello(self, request: Request) -> Sequence[str]:
        """Frames to send as soon as the socket is open."""

    def start(self, utterance: str, request: Request) -> Sequence[str]:
        """Frames that begin the utterance."""

    def audio(self, utterance: str, pcm: bytes) -> str:
        """The frame that carries a packet."""

    def end(self, utterance: str) -> str:
        """The frame that says no more audio comes."""

    def receive(self, frame: str | bytes) -> Sequence[Said]:
        """What a server frame says; empty when it says nothing of interest."""


def address(driver: Driver, target: str, api_key: str | None) -> tuple[str, dict[str, str]]:
    """The full ``ws://`` URL for ``target``, and the headers to send with the handshake.

    ``target`` may be ``host:port``, or a ws, wss, http or https URL; the protocol's own path is added when it names none.

    Raises:
        ValueError: when it is nothing of the kind.
    """
    parts = urlsplit(target if "://" in target else f"ws://{target}")
    scheme = {"http": "ws", "https": "wss"}.get(parts.scheme, parts.scheme)
    try:
        usable = scheme in ("ws", "wss") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"target {target!r} is not a ws:// or wss:// URL with a host, e.g. ws://127.0.0.1:8000")
    query, headers = (
        (dict(parse_qsl(parts.query)), {}) if not api_key else _with_key(driver, api_key, dict(parse_qsl(parts.query)))
    )
    path = parts.path if parts.path not in ("", "/") else driver.path
    return urlunsplit((scheme, parts.netloc, path, urlencode(query), "")), headers


def _with_key(driver: Driver, api_key: str, query: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    parameters, headers = driver.credentials(api_key)
    return {**query, **parameters}, dict(headers)


def whole_numbers(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """The counts in a usage object; servers mix null details among them."""
    return {key: value for key, value in (usage or {}).items() if isinstance(value, int)}
