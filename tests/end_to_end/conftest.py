"""Servers for the tests of this folder: one per module and set of options, its log shown when a test fails."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

from tests.end_to_end.running_server import RunningServer

Serve = Callable[..., RunningServer]

_running: list[RunningServer] = []


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Start a server with these options, or give the one that this module has started with them already.

    When the module is over every server is stopped, and its log must not hold a traceback.
    """
    started: dict[Any, RunningServer] = {}

    def give(*options: str, **settings: Any) -> RunningServer:
        what = (options, str(settings))
        if what not in started:
            started[what] = RunningServer(*options, **settings)
            _running.append(started[what])
        return started[what]

    yield give
    logs = []
    for server in started.values():
        server.signal(signal.SIGTERM)  # all at once, then one after the other
    for server in started.values():
        try:
            server.wait_or_kill()
        finally:
            logs.append(server.log())
            _running.remove(server)
            server.forget()
    for log in logs:
        assert "Traceback" not in log, log
        assert "connection failed" not in log, log


@pytest.fixture
def own_server() -> Iterator[Serve]:
    """Start servers of this test alone, which may end them as it likes."""
    started: list[RunningServer] = []

    def give(*options: str, **settings: Any) -> RunningServer:
        server = RunningServer(*options, **settings)
        started.append(server)
        _running.append(server)
        return server

    yield give
    for server in started:
        server.kill()
        _running.remove(server)
        server.forget()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Show what the servers had to say beside the failure."""
    report = yield
    if report.failed:
        for server in _running:
            report.sections.append((f"log of the server on port {server.port}", server.log()[-6000:]))
    return report
