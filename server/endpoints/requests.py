"""Requests that take a while: bounded in number and size, waited for at the end, and given up when their client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import Request

from server.core.limits import Admission
from server.service import Service

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class TooLargeError(Exception):
    """The body has more bytes than are taken."""


class RefusedError(Exception):
    """The request is not begun; the message says why. It may be later."""


class RequestGuest:
    """A request under way."""

    busy = True

    def close(self, code: int, reason: str) -> None:
        """It ends with its answer; there is nothing to send home."""


@contextmanager
def under_way(service: Service, admission: Admission) -> Iterator[None]:
    """Take a place for the time of a request, and have the server wait for its end.

    Raises:
        RefusedError: all places are taken, or the server is shutting down.
    """
    if service.draining:
        raise RefusedError("the server is shutting down")
    if not admission.enter():
        raise RefusedError(f"{admission.active} requests are under way already")
    guest = RequestGuest()
    service.guests.add(guest)
    try:
        yield
    finally:
        service.guests.discard(guest)
        admission.leave()


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work returns. Its body must have been read. The work is cancelled when the client goes.

    Raises:
        ClientGoneError: it went.
    """
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def limited(request: Request, most_bytes: int | None) -> AsyncGenerator[bytes, None]:
    """The body, piece by piece.

    Raises:
        TooLargeError: it is larger than that; what came so far is given up.
    """
    taken = 0
    async for piece in request.stream():
        taken += len(piece)
        if most_bytes is not None and taken > most_bytes:
            raise TooLargeError(f"the body is larger than the {most_bytes} bytes that are taken")
        yield piece
