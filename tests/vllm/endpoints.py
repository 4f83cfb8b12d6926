"""A server of ``/v1/realtime``, whoever made it, as the tests see it: connections, and what its engine holds."""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from websockets.asyncio.client import connect

from tests.end_to_end.clients import RECEIVE_SECONDS, Realtime

Series = tuple[str, dict[str, str]]
"""A metric's name, and labels that the series has among its own."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``slots`` streams are heard at once; ``running`` and ``kv_usage`` are the names of these figures in its ``/metrics``."""

    port: int
    model: str
    slots: int
    running: Series
    kv_usage: Series

    @asynccontextmanager
    async def client(self, *, validated: bool = True) -> AsyncIterator[Realtime]:
        """A connection, its greeting read, its model validated unless told otherwise."""
        url = f"ws://127.0.0.1:{self.port}/v1/realtime"
        # all that comes is taken in, or the server's close would wait behind what nobody reads
        async with connect(url, open_timeout=RECEIVE_SECONDS, ping_interval=None, max_queue=None) as socket:
            client = Realtime(socket)
            assert (await client.receive())["type"] == "session.created"
            if validated:
                await client.update(self.model)
            yield client

    @asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[list[Realtime]]:
        """So many connections."""
        async with AsyncExitStack() as stack:
            yield [await stack.enter_async_context(self.client()) for _ in range(count)]

    async def figure(self, series: Series) -> float:
        """Its present value."""
        return await asyncio.to_thread(self._figure, *series)

    def _figure(self, name: str, labels: dict[str, str]) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            families = text_string_to_metric_families(answer.read().decode())
            return sum(
                sample.value
                for family in families
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            )

    async def until(self, series: Series, holds: Callable[[float], bool], at_most_seconds: float) -> bool:
        """Whether the figure fulfils the condition, now or in time."""
        end = time.monotonic() + at_most_seconds
        while not holds(await self.figure(series)):
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.02)  # between two looks at another process, which has no way to tell us
        return True
