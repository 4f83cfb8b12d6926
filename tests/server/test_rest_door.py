"""What becomes of a bug of ours on the REST surface: an answer in its shape, and a traceback in the log alone."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI
from structlog.testing import capture_logs

from server.core.limits import Admission, FixedWindows
from server.endpoints.access import Clients
from server.endpoints.rest.requests import BodyBounds, Door
from server.engines.registry import Models
from server.engines.scripted import Script, ScriptedEngine
from server.metrics import Metrics
from server.service import Service


def app_with_a_bug(*, debug: bool) -> FastAPI:
    service = Service(Models(ScriptedEngine(Script(), 0.48)), Metrics())
    bodies = BodyBounds({"transcription": 1000}, 5.0, 1000)
    rates = {"transcription": FixedWindows(5)}
    door = Door(service, None, Clients(), rates, Admission(1), bodies, debug=debug)
    router = door.router("transcription")

    @router.post("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("division of a secret by zero")

    app = FastAPI()
    app.include_router(router)
    return app


@pytest.mark.spec("rest-49")
@pytest.mark.parametrize("debug", [False, True])
async def test_a_bug_is_told_without_its_details_but_in_debug(debug: bool) -> None:
    transport = httpx.ASGITransport(app_with_a_bug(debug=debug))
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        with capture_logs() as logged:
            answers = [await client.post("/broken") for _ in range(3)]
    for answer in answers:  # the place and the memory are free again
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (500, "SERVER_ERROR")
        assert error.get("details") == ("ZeroDivisionError: division of a secret by zero" if debug else None)
    faults = [line for line in logged if line["event"] == "request failed"]
    assert [type(line["exc_info"]) for line in faults] == [ZeroDivisionError] * 3
