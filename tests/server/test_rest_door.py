"""The REST surface without a socket: what the engine is asked for, and what becomes of a bug of ours."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI, WebSocket
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from structlog.testing import capture_logs

from server.app import build_app, build_service
from server.config import read
from server.core.events import Command, Event, Start, StreamOptions
from server.core.limits import Admission, FixedWindows
from server.core.session import SessionSettings
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.endpoints.rest.requests import BodyBounds, Door
from server.endpoints.rest.stream import Stream
from server.endpoints.rest.work import Bounds, Transcript, Wish, Work
from server.engines.registry import Models
from server.engines.scripted import Script, ScriptedEngine
from server.metrics import Metrics
from server.recordings import Recording, RecordingLimits
from server.service import Service
from tests.audio_files import wav_file
from tests.end_to_end.clients import encoded
from tests.end_to_end.speech import sentence


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


class Starts:
    """Notes the utterances that begin."""

    def __init__(self) -> None:
        self.options: list[StreamOptions] = []

    def command(self, command: Command, now: float) -> None:
        del now
        if isinstance(command, Start):
            self.options.append(command.options)

    def event(self, event: Event, now: float) -> None:
        pass

    def closed(self) -> None:
        pass


@pytest.mark.spec("rest-17")
@pytest.mark.parametrize(("language", "told"), [("en", "en"), ("de", None), (None, None)])
async def test_language_and_temperature_reach_the_engine(language: str | None, told: str | None) -> None:
    settings = read(["--engine", "scripted", "--surfaces", "rest"], {})
    service = build_service(settings, ScriptedEngine(Script(), 0.48))
    starts = Starts()
    watched = []
    service.observers.append(lambda surface, client: watched.append((surface, client)) or starts)  # type: ignore[func-returns-value]
    app = build_app(settings, service, ["rest"], Keys([]))
    file = encoded(wav_file(sentence("hello")))
    body = {"audio_file": file, "format": "wav", "language": language, "temperature": 0.7}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        one = await client.post("/transcribe/", json=body)
        several = await client.post(
            "/transcribe/batch", json={**body, "audio_files": [{"data": file, "format": "wav"}] * 2}
        )
    assert one.json()["transcription"] == "hello"
    assert [result["transcription"] for result in several.json()["results"]] == ["hello"] * 2
    assert starts.options == [StreamOptions(language=told, model="default", temperature=0.7)] * 3
    assert watched == [("rest", "127.0.0.1")] * 3


class BrokenWork(Work):
    """Work with a bug in it."""

    async def transcribe_pcm(self, recording: Recording, wish: Wish) -> Transcript:
        raise ZeroDivisionError(f"{recording.seconds} {wish.client}")


@pytest.mark.spec("rest-63")
def test_a_bug_closes_a_stream_with_1011() -> None:
    service = Service(Models(ScriptedEngine(Script(), 0.48)), Metrics())
    door = Door(service, None, Clients(), {}, Admission(1), BodyBounds({}, None, None))
    work = BrokenWork(service, SessionSettings(0.48, timed_words=True), Bounds(RecordingLimits(), None, None))
    streams = Admission(1)
    app = FastAPI()

    @app.websocket("/stream")
    async def stream(websocket: WebSocket) -> None:
        await Stream(websocket, door, work, streams, None).run()

    chunk = {"format": "wav", "chunk_id": 1, "audio_data": encoded(wav_file(sentence("hello")))}
    with capture_logs() as logged, TestClient(app) as client:
        for _ in range(2):  # its place is free again
            with client.websocket_connect("/stream") as socket:
                socket.send_json(chunk)
                with pytest.raises(WebSocketDisconnect) as closed:
                    socket.receive_json()
                assert closed.value.code == 1011
    assert (streams.active, service.guests) == (0, set())
    assert [type(line["exc_info"]) for line in logged if line["event"] == "stream failed"] == [ZeroDivisionError] * 2
