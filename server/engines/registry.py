"""The engines that are loaded, by the name of their model: which one hears an utterance, which may be unloaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from server.engines.base import Engine, EngineError

DEFAULT = "default"


class UnknownModelError(EngineError):
    """No model of that name is loaded; the message lists those that are."""


class InUseError(EngineError):
    """The model cannot be unloaded: it is the last one."""


class Holder(Protocol):
    """Who has utterances that a model hears."""

    def lose(self, model: str) -> None:
        """The model is being taken away: what it hears for you fails now."""


@dataclass(slots=True, eq=False)
class Model:
    """One loaded engine. ``names`` are what clients may call it, the first is the one shown; ``id`` is the operator's name for it."""

    id: str
    engine: Engine
    names: Sequence[str]
    holders: set[Holder] = field(default_factory=set)
    leaving: bool = False
    unheld: asyncio.Event = field(default_factory=asyncio.Event)

    def hold(self, holder: Holder) -> None:
        """From now on the model is needed by the holder, until it lets go."""
        self.holders.add(holder)
        self.unheld.clear()

    def let_go(self, holder: Holder) -> None:
        """The holder needs it no longer."""
        self.holders.discard(holder)
        if not self.holders:
            self.unheld.set()


class Models:
    """See the module. The engine given at the start is the default one, with the id ``default``; it is started and stopped by whoever
    made it, the others by this.
    """

    def __init__(self, engine: Engine, names: Sequence[str] = ()) -> None:
        self._loaded: dict[str, Model] = {}
        self._add(DEFAULT, engine, names)
        self._default = DEFAULT

    def __iter__(self) -> Iterator[Model]:
        return iter(self._loaded.values())

    def __len__(self) -> int:
        return len(self._loaded)

    def __contains__(self, model_id: str) -> bool:
        return model_id in self._loaded

    @property
    def default(self) -> Model:
        """The one for clients that name none."""
        return self._loaded[self._default]

    @property
    def names(self) -> list[str]:
        """All names that clients may use, those of the default model first."""
        ordered = [self.default, *(model for model in self if model is not self.default)]
        return list(dict.fromkeys(name for model in ordered for name in model.names))

    def find(self, name: str | None) -> Model:
        """The model of that name or id; the default one for ``None`` and for the empty name.

        Raises:
            UnknownModelError: there is none, or it is being unloaded.
        """
        if not name:
            return self.default
        for model in self:
            if (name == model.id or name in model.names) and not model.leaving:
                return model
        raise UnknownModelError(f"model {name!r:.200} is not loaded; loaded: {', '.join(self.names)}")

    async def load(self, model_id: str, engine: Engine, names: Sequence[str] = ()) -> Model:
        """Start another engine and offer it under its id, its names and its model's own name.

        Raises:
            EngineError: the id is taken, or the engine cannot start.
        """
        if model_id in self._loaded:
            raise EngineError(f"a model with the id {model_id!r:.200} is loaded already")
        await engine.start()
        if model_id in self._loaded:
            await engine.stop()
            raise EngineError(f"a model with the id {model_id!r:.200} was loaded in the meantime")
        return self._add(model_id, engine, names)

    async def unload(self, model_id: str, drain_seconds: float | None = None) -> None:
        """Offer the model no longer, wait until nobody holds it (at most ``drain_seconds``; ``None`` waits on), then stop its engine.

        The default model may go as well: the one loaded first of those left takes its place.

        Raises:
            UnknownModelError: it is not loaded.
            InUseError: it is the last one.
        """
        model = self._loaded.get(model_id)
        if model is None or model.leaving:
            raise UnknownModelError(
                f"no model with the id {model_id!r:.200} is loaded; loaded: {', '.join(self._loaded)}"
            )
        staying = [other for other in self if other is not model and not other.leaving]
        if not staying:
            raise InUseError(f"{model_id!r:.200} is the last model that is loaded")
        model.leaving = True
        if self._default == model_id:
            self._default = staying[0].id
        try:
            async with asyncio.timeout(drain_seconds):
                await model.unheld.wait()
        except TimeoutError:
            for holder in list(model.holders):
                holder.lose(model_id)
        finally:
            del self._loaded[model_id]
            await model.engine.stop()

    async def stop(self) -> None:
        """Stop every engine that was loaded here."""
        for model in [model for model in self if model.id != DEFAULT]:
            await model.engine.stop()

    def _add(self, model_id: str, engine: Engine, names: Sequence[str]) -> Model:
        known = [*names, engine.info.model] + ([] if model_id == DEFAULT else [model_id])
        model = Model(model_id, engine, list(dict.fromkeys(filter(None, known))))
        model.unheld.set()
        self._loaded[model_id] = model
        return model
