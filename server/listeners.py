"""What accepts connections: an address that is ours, served until told to leave."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import uvicorn
from fastapi import FastAPI

_LARGEST_FRAME_BYTES = 16 * 1024 * 1024
_GRACE_SECONDS = 5


class Listener(Protocol):
    """One address. Its socket is bound when it is made, and nobody is accepted before ``serve``."""

    @property
    def name(self) -> str:
        """What it is for, in logs and in the announcement."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are bound."""

    async def serve(self, started: asyncio.Event) -> None:
        """Accept until ``leave``; ``started`` is set once it does."""

    def leave(self, *, at_once: bool = False) -> None:
        """Accept nobody any more and end; ``at_once`` without waiting for requests under way."""

    def close(self) -> None:
        """Give the address back; also when it was never served."""


class HttpListener:
    """HTTP and WebSockets over uvicorn."""

    def __init__(self, name: str, app: FastAPI, host: str, port: int) -> None:
        """Bind the address.

        Raises:
            OSError: it is taken, or not one of this machine's.
        """
        self._name = name
        self._socket = bind(host, port)
        config = uvicorn.Config(
            app,
            host,
            port,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="websockets-sansio",
            ws_per_message_deflate=False,
            ws_max_size=_LARGEST_FRAME_BYTES,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            server_header=False,
        )
        self._server = _Server(config)

    @property
    def name(self) -> str:
        return self._name

    @property
    def address(self) -> tuple[str, int]:
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def serve(self, started: asyncio.Event) -> None:
        watch = asyncio.create_task(self._watch(started))
        try:
            await self._server.serve([self._socket])
        finally:
            watch.cancel()

    async def _watch(self, started: asyncio.Event) -> None:
        while not self._server.started:  # noqa: ASYNC110 - uvicorn offers a flag, no event
            await asyncio.sleep(0.01)
        started.set()

    def leave(self, *, at_once: bool = False) -> None:
        self._server.force_exit |= at_once
        self._server.should_exit = True

    def close(self) -> None:
        self._socket.close()


class _Server(uvicorn.Server):
    """uvicorn without its own handling of signals: several of it run in one process, which ends them all."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """The address is ours, or it is known at once that it cannot be; connections are refused until somebody listens.

    Raises:
        OSError: it is taken, or not one of this machine's.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}") from None
    return listener
