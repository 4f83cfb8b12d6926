"""What can be set about remote back ends, checked when it is set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from server.engines.base import EngineError

REALTIME_PATH = "/v1/realtime"
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a back end is: its WebSocket, and the root of its HTTP paths."""

    realtime: str
    root: str

    def __str__(self) -> str:
        return self.realtime.removesuffix(REALTIME_PATH)


def read_address(text: str) -> Address:
    """An address as people write it: ``ws://host:8000``, ``https://host/prefix``, ``host:8000``, with or without ``/v1/realtime``.

    Raises:
        EngineError: it is none.
    """
    text = text.strip()
    complaint = f"{text!r:.100} is no address of a back end; ws://host:port or wss://host/prefix is expected"
    try:
        parts = urlsplit(text if "://" in text else f"ws://{text}")
        port = parts.port
    except ValueError:
        raise EngineError(complaint) from None
    scheme = _SCHEMES.get(parts.scheme.lower())
    if scheme is None or not parts.hostname or port == 0 or parts.query or parts.fragment or parts.username:
        raise EngineError(complaint)
    prefix = parts.path.rstrip("/").removesuffix(REALTIME_PATH)
    return Address(
        urlunsplit((scheme, parts.netloc, prefix + REALTIME_PATH, "", "")),
        urlunsplit(("https" if scheme == "wss" else "http", parts.netloc, prefix, "", "")),
    )


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Settings of remote back ends.

    ``fixed_delay_ms`` is the transcription delay of back ends that cannot be asked for theirs, vLLM's own (0: the default delay).
    ``slots`` is how many streams one back end may have at once, where it does not say (0: ``DEFAULT_SLOTS``) or fewer than it says; for
    vLLM it must not exceed ``--max-num-seqs``, beyond which vLLM lets streams starve without a word. As many streams as there are
    slots may wait, each for ``wait_seconds``. ``backlog_seconds`` bounds the audio of one stream that is not sent yet.
    ``retry_seconds`` are the pauses between looks at a back end that is down; the last one repeats.
    """

    addresses: Sequence[Address]
    default_delay_ms: int = 480
    fixed_delay_ms: int = 0
    slots: int = 0
    api_key: str = ""
    start_seconds: float = 60.0
    wait_seconds: float = 30.0
    connect_seconds: float = 5.0
    health_seconds: float = 5.0
    retry_seconds: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
    backlog_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not self.addresses:
            raise EngineError("no back ends are named; say --backends ws://host:8000, several comma-separated")
        if len(set(self.addresses)) < len(self.addresses):
            raise EngineError("a back end is named twice; name each once")


DEFAULT_SLOTS = 128
"""What this project's servers run vLLM with unless told otherwise."""
