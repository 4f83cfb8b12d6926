"""Whose turn it is to be decoded: who only waits for an end comes first, then who has waited longest."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

__all__ = ["Turns"]

T = TypeVar("T", bound=Hashable)


class Turns(Generic[T]):
    """Streams that wait for a decoder, each at most once."""

    def __init__(self) -> None:
        self._last: dict[T, None] = {}  # their audio has ended; dicts keep the order of coming
        self._others: dict[T, None] = {}

    def __len__(self) -> int:
        return len(self._last) + len(self._others)

    def ask(self, stream: T, *, last: bool) -> None:
        """The stream has something to decode; ``last`` when its audio has ended. Asking again keeps its place."""
        if last:
            self._others.pop(stream, None)
            self._last.setdefault(stream)
        elif stream not in self._last:
            self._others.setdefault(stream)

    def leave(self, stream: T) -> None:
        """The stream does not want to be decoded any more."""
        self._last.pop(stream, None)
        self._others.pop(stream, None)

    def next(self) -> T:
        """Take the one whose turn it is.

        Raises:
            LookupError: nobody waits.
        """
        queue = self._last or self._others
        if not queue:
            raise LookupError("nobody waits")
        stream = next(iter(queue))
        del queue[stream]
        return stream
