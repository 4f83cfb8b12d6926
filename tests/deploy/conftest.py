"""One real server per module for what the deployment files say of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.running_server import RunningServer


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """The scripted engine; its log shows when it does not start."""
    running = RunningServer()
    yield running
    try:
        assert running.stop() == 0
        assert "Traceback" not in running.log()
    finally:
        running.forget()
