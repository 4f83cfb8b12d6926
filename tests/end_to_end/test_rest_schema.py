"""The description of the REST surface: complete, and kept to by the server whatever it is sent."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.end_to_end.conftest import Serve
from tests.end_to_end.rest_requests import NO_RATES, ask, url
from tests.end_to_end.running_server import RunningServer

CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
VALID = GenerationMode.POSITIVE
PATHS = r"^/(transcribe/|transcribe/batch|understand/|health/)$"


@pytest.fixture(scope="module")
def server(serve: Serve) -> RunningServer:
    return serve(*NO_RATES)


@pytest.fixture(scope="module")
def api(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{url(server)}/openapi.json").include(path_regex=PATHS)


OPERATIONS = [("POST", "/transcribe/"), ("POST", "/transcribe/batch"), ("POST", "/understand/"), ("GET", "/health/")]


@pytest.mark.spec("rest-08")
@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        (method, path, mode)
        for method, path in OPERATIONS
        for mode in GenerationMode
        if method == "POST" or mode is VALID
    ],
)  # nothing can be wrong with a request without a body
def test_whatever_is_sent_the_answer_is_as_described(api: Any, method: str, path: str, mode: GenerationMode) -> None:
    operation = api[path][method]
    statuses = set()

    @settings(max_examples=60, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask_and_check(case: Any) -> None:
        answer = case.call(timeout=30)
        statuses.add(answer.status_code)
        assert answer.status_code != 500
        case.validate_response(answer, checks=CHECKS)

    ask_and_check()
    if method == "POST":
        assert statuses <= {200, 400, 422, 503}
        assert 422 in statuses or mode is VALID


@pytest.mark.spec("rest-08")
@pytest.mark.parametrize("path", ["/transcribe/", "/transcribe/batch"])
async def test_the_examples_of_requests_work(server: RunningServer, path: str) -> None:
    described = (await ask(server, "GET", "/openapi.json")).json()
    body = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    for example in described["components"]["schemas"][body.rpartition("/")[2]]["examples"]:
        answer = await ask(server, "POST", path, json=example)
        assert answer.status_code == 200, answer.text
        assert all(result["success"] for result in answer.json().get("results", []))


@pytest.mark.spec("rest-08")
async def test_every_model_has_a_title_and_an_example(server: RunningServer) -> None:
    described = (await ask(server, "GET", "/openapi.json")).json()
    names = {
        name
        for path, item in described["paths"].items()
        if re.match(PATHS, path)
        for name in re.findall(r"#/components/schemas/(\w+)", str(item))
    }
    while (
        more := {
            name
            for known in names
            for name in re.findall(r"#/components/schemas/(\w+)", str(described["components"]["schemas"][known]))
        }
        - names
    ):
        names |= more
    assert {"TranscriptionRequest", "BatchRequest", "UnderstandingRequest", "ErrorBody", "FieldError"} <= names
    for name in names:
        model = described["components"]["schemas"][name]
        assert model["title"] == name
        assert model["description"]
        assert model.get("examples") or name == "ErrorInfo", name


@pytest.mark.spec("rest-08")
async def test_paths_with_a_slash_at_the_end_are_described_once(server: RunningServer) -> None:
    described = set((await ask(server, "GET", "/openapi.json")).json()["paths"])
    assert {"/transcribe/", "/transcribe/batch", "/understand/", "/health/"} <= described
    assert not {"/transcribe", "/transcribe/batch/", "/understand"} & described
    paths = (await ask(server, "GET", "/openapi.json")).json()["paths"]
    for path, statuses in (
        ("/transcribe/", {"200", "400", "401", "408", "413", "422", "429", "500", "503", "504"}),
        ("/understand/", {"200", "400", "401", "408", "413", "422", "429", "500", "503", "504"}),
        ("/transcribe/batch", {"200", "401", "408", "413", "422", "429", "500", "503"}),
    ):
        assert set(paths[path]["post"]["responses"]) == statuses
