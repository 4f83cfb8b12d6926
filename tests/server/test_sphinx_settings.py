"""Settings of the embedded recogniser that cannot work stop the start with name and value."""

from __future__ import annotations

from typing import Any

import pytest

from server.engines.base import EngineError
from server.engines.sphinx.settings import SphinxSettings, check_delay


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"profile": "best"}, "profile must be one of fast, accurate, got 'best'"),
        ({"workers": -1}, "workers must be from 0 to 4096, got -1"),
        ({"queue_limit": -1}, "queue_limit must be from 0"),
        ({"nice": 20}, "nice must be from 0 to 19, got 20"),
        ({"backlog_seconds": 0}, "backlog_seconds must be above 0 and at most 500, got 0"),
        ({"backlog_seconds": float("nan")}, "backlog_seconds must be above 0"),
        ({"maxhmmpf": 0}, "maxhmmpf must be at least 1, got 0"),
        ({"default_delay_seconds": 0.5}, "multiple of 0.08 s .* got 0.5"),
    ],
)
def test_a_wrong_setting_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        SphinxSettings(**wrong)


@pytest.mark.parametrize(("seconds", "steps"), [(0.08, 1), (0.48, 6), (480 / 1000, 6), (0.1 * 2.4, 3), (2.4, 30)])
def test_delays_are_whole_steps(seconds: float, steps: int) -> None:
    assert check_delay(seconds) == steps


@pytest.mark.parametrize("seconds", [0, -0.08, 0.04, 0.1, 2.48, float("inf"), float("nan")])
def test_other_delays_are_refused(seconds: float) -> None:
    with pytest.raises(EngineError, match=r"multiple of 0\.08"):
        check_delay(seconds)


def test_the_pool_grows_with_the_cores_and_the_queue_with_the_pool() -> None:
    fast, accurate = SphinxSettings(), SphinxSettings(profile="accurate")
    assert fast.worker_count == 2 * accurate.worker_count
    assert fast.waiting_count == fast.worker_count
    assert SphinxSettings(workers=5, queue_limit=2).waiting_count == 2
