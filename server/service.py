"""What all surfaces of one server share: engines, keys, metrics, and who is inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from server.core.rpc_figures import RpcFigures
from server.core.voice import VoiceDetector
from server.engines.base import ChatEngine
from server.engines.registry import Model, Models, UnknownModelError
from server.hearing import Observer, Resources
from server.metrics import Metrics
from server.protocols.base import Served

T = TypeVar("T")

DELAY_STEP_MS = 80
MOST_DELAY_MS = 2400


class Guest(Protocol):
    """Whoever is being served for a while: a connection, a stream, a request."""

    @property
    def busy(self) -> bool:
        """Whether something is under way that should end before the server does."""

    def close(self, code: int, reason: str) -> None:
        """Go home: the server is shutting down. ``code`` is a WebSocket close code; others translate it."""


class Capture(Protocol):
    """Keeps the audio of one stream as it was received, before it is brought to 16 kHz."""

    def audio(self, pcm: bytes, rate: int) -> None:
        """The next PCM16, mono, at ``rate`` Hz. Never waits."""

    def closed(self) -> None:
        """The stream is over."""


@dataclass(slots=True)
class Service:
    """See the module. ``observers`` make what watches every hearing, given the surface's name and the client's address (None where there
    is nothing to watch); ``captures`` make what keeps a stream's received audio, given the surface's name and the stream's own. ``figures``
    are those of the gRPC system, whether it is served or not, ``other_figures`` the same of everything else. ``at_drain`` is told when the
    server begins to end; ``serving`` are the listeners that accept at the moment, by their names;
    ``health`` gives further keys of ``/health``.
    """

    models: Models
    metrics: Metrics
    voice: Callable[[], VoiceDetector] | None = None
    chat: ChatEngine | None = None
    observers: list[Callable[[str, str], Observer | None]] = field(default_factory=list)
    captures: list[Callable[[str, str], Capture]] = field(default_factory=list)
    figures: RpcFigures = field(default_factory=RpcFigures)
    other_figures: RpcFigures = field(default_factory=RpcFigures)
    at_drain: list[Callable[[], None]] = field(default_factory=list)
    health: list[Callable[[], Mapping[str, object]]] = field(default_factory=list)
    guests: set[Guest] = field(default_factory=set)
    serving: set[str] = field(default_factory=set)
    draining: bool = False
    shared: dict[type, Any] = field(default_factory=dict)

    @property
    def resources(self) -> Resources:
        """What a hearing needs."""
        return Resources(self.models, self.metrics, self.voice, self._observe)

    @property
    def default(self) -> Served:
        """What is known of the default model."""
        return self._served(self.models.default)

    def offer(self, name: str | None) -> Served | None:
        """What is known of the model of that name, of the default one for ``None``; ``None`` when it is not loaded."""
        if name is None:
            return self.default
        if not name.strip():
            return None
        try:
            model = self.models.find(name)
        except UnknownModelError:
            return None
        return replace(
            self._served(model), model=model.id
        )  # who names a model means that one, also when it is the default no longer

    def one(self, kind: type[T], make: Callable[[], T]) -> T:
        """What a surface has once, on however many listeners it is served; made by whoever asks first."""
        if kind not in self.shared:
            self.shared[kind] = make()
        found: T = self.shared[kind]
        return found

    async def drain(self, seconds: float) -> None:
        """Let nobody in, wait until no utterance is under way, at most ``seconds``, then send everybody home with 1012."""
        self.draining = True
        for tell in self.at_drain:
            tell()
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        # polled: a few times a second, once in a server's life, is simpler than every guest telling
        while any(guest.busy for guest in self.guests) and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        for guest in list(self.guests):
            guest.close(1012, "server is shutting down")
        end = loop.time() + min(seconds, 2.0)
        while self.guests and loop.time() < end:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def _observe(self, surface: str, client: str) -> Sequence[Observer]:
        made = (make(surface, client) for make in self.observers)
        return [observer for observer in made if observer is not None]

    def _served(self, model: Model) -> Served:
        info = model.engine.info
        possible = {round(delay * 1000) for delay in info.delays_seconds}
        return Served(
            list(model.names),
            [ms for ms in range(DELAY_STEP_MS, MOST_DELAY_MS + 1, DELAY_STEP_MS) if ms in possible],
            round(info.default_delay_seconds * 1000),
            info.words,
            self.voice is not None,
            tuple(info.languages),
            None if model is self.models.default else model.id,
        )
