"""The whole OpenAPI document of a server with all surfaces on: whatever is made from it, no answer is a fault of the server."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import RunningServer

OPERATIONS = [
    *(("GET", path) for path in ("/", "/healthz", "/health", "/ping", "/version", "/metrics", "/v1/models")),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health/"),
    ("POST", "/session/create"),
    ("DELETE", "/session/{session_id}"),
    ("POST", "/transcribe/"),
    ("POST", "/transcribe/batch"),
    ("POST", "/understand/"),
    ("POST", "/v1/audio/transcriptions"),
]
UNAVAILABLE = {"/understand/"}
"""503 is their answer without a chat engine."""


@pytest.fixture(scope="module")
def server(serve: Serve) -> RunningServer:
    return serve("--unlimited")


@pytest.fixture(scope="module")
def document(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")


def test_the_operations_tested_here_are_those_of_the_document(document: Any) -> None:
    found = {
        (method.upper(), path)
        for path, item in document.raw_schema["paths"].items()
        for method in item
        if method in ("get", "post", "put", "delete", "patch")
    }
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_answer_is_a_fault_of_the_server(document: Any, method: str, path: str, server: RunningServer) -> None:
    operation = document[path][method]
    modes = list(GenerationMode) if method == "POST" and path != "/session/create" else [GenerationMode.POSITIVE]
    statuses = set()
    for mode in modes:

        @settings(
            max_examples=25, derandomize=True, database=None, suppress_health_check=list(HealthCheck), deadline=None
        )
        @given(operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            statuses.add(case.call(timeout=30).status_code)

        ask()
    faults = {status for status in statuses if status >= 500}
    assert faults <= ({503} if path in UNAVAILABLE else set())
    assert server.get("/healthz")[0] == 200
