"""The REST surface over real HTTP: what is transcribed and answered, and every error in its table."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from tests.audio_files import FORMATS, audio_file, stereo, wav_file
from tests.chat_backend import COMPLETION, Backend, chat_backend, samples
from tests.end_to_end.clients import encoded, realtime
from tests.end_to_end.conftest import Serve
from tests.end_to_end.rest_requests import NO_RATES, ask, batch, refused, text_of, transcribe, understand, url
from tests.end_to_end.running_server import KEY, ROOT, RunningServer, clean_environment, command
from tests.end_to_end.speech import distinct_words, sentence, spoken

SLOW = '{"final_latency_ms": 60000}'
HELLO = wav_file(sentence("hello", "there"))


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve(*NO_RATES)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    with chat_backend() as backend:
        yield backend


@pytest.fixture
def answering(serve: Serve, backend: Backend) -> RunningServer:
    return serve(*NO_RATES, "--chat-engine", "remote", "--chat-url", backend.url)


# ---- in general


@pytest.mark.spec("rest-03")
@pytest.mark.parametrize("path", ["/transcribe", "/transcribe/", "/transcribe/batch", "/transcribe/batch/"])
async def test_both_forms_of_a_path_take_the_body(server: RunningServer, path: str) -> None:
    file = encoded(HELLO)
    body = {"audio_file": file, "audio_files": [{"data": file, "format": "wav"}], "format": "wav"}
    answer = await ask(server, "POST", path, json=body)
    assert answer.status_code == 200
    assert "hello there" in answer.text


@pytest.mark.spec("rest-03")
@pytest.mark.parametrize("path", ["/understand", "/understand/"])
async def test_both_forms_of_the_question_path(answering: RunningServer, path: str) -> None:
    body = {"audio_files": [{"data": encoded(HELLO), "format": "wav"}], "question": "Well?"}
    assert (await ask(answering, "POST", path, json=body)).json()["answer"] == "A greeting."


@pytest.mark.spec("rest-04")
async def test_a_port_of_its_own_bears_its_name(own_server: Serve) -> None:
    server = own_server("--surface-ports", "rest=0")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.ports['rest']}") as own:
        info = (await own.get("/openapi.json")).json()["info"]
        assert (info["title"], info["version"]) == ("Voxtral Transcription API", "0.1.0")
        assert (await own.get("/health")).json().keys() == (await own.get("/health/")).json().keys()
        assert (await own.get("/health")).json()["version"] == "0.1.0"
        assert (await own.post("/transcribe/", json={"audio_file": encoded(HELLO), "format": "wav"})).json()[
            "transcription"
        ] == "hello there"
        refused(await own.get("/nowhere"), 404, "HTTP_404")
        assert (await own.get("/docs")).status_code == 200
        assert (await own.get("/redoc")).status_code == 200
    async with httpx.AsyncClient(base_url=url(server)) as shared:
        assert (await shared.get("/openapi.json")).json()["info"]["title"] == "Earmark"


@pytest.mark.spec("rest-05")
async def test_the_root_tells_the_paths(server: RunningServer) -> None:
    root = (await ask(server, "GET", "/")).json()
    assert {"name", "version", "description", "docs_url", "health_url", "endpoints"} <= set(root)
    assert (root["docs_url"], root["health_url"]) == ("/docs", "/health")
    assert root["endpoints"] == {
        "transcription": "/transcribe",
        "batch_transcription": "/transcribe/batch",
        "audio_understanding": "/understand",
        "streaming_transcription": "/stream/transcribe",
    }


@pytest.mark.spec("rest-05")
async def test_without_the_surface_the_root_does_not_tell_them(own_server: Serve) -> None:
    server = own_server("--surfaces", "yap")
    assert "endpoints" not in (await ask(server, "GET", "/")).json()
    assert (await transcribe(server, HELLO)).status_code == 404


@pytest.mark.spec("rest-06")
async def test_a_required_key(serve: Serve) -> None:
    server = serve("--require-key")
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"X-API-Key": KEY}):
        answer = await transcribe(server, HELLO, headers=headers)
        refused(answer, 401, "HTTP_401")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert text_of(await transcribe(server, HELLO, headers={"Authorization": f"Bearer {KEY}"})) == "hello there"
    assert (await ask(server, "GET", "/health/")).status_code == 200


@pytest.mark.spec("rest-07")
@pytest.mark.parametrize("path", ["/transcribe/", "/transcribe", "/transcribe/batch", "/understand/", "/health/"])
async def test_pages_of_other_origins_may_come(server: RunningServer, path: str) -> None:
    asked = {
        "Origin": "https://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, x-mine",
    }
    answer = await ask(server, "OPTIONS", path, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert {"content-type", "x-mine"} <= set(re.split(", *", answer.headers["access-control-allow-headers"]))
    method = "GET" if path == "/health/" else "POST"
    answer = await ask(server, method, path, headers={"Origin": "https://page.example", "Cookie": "a=b"})
    assert answer.headers["access-control-allow-origin"] == "https://page.example"
    assert "X-RateLimit-Remaining" in answer.headers["access-control-expose-headers"]


@pytest.mark.spec("rest-07")
async def test_other_surfaces_are_not_opened_by_it(server: RunningServer) -> None:
    answer = await ask(server, "GET", "/v1/models", headers={"Origin": "https://page.example"})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.spec("rest-09")
async def test_unknown_fields_are_ignored(server: RunningServer) -> None:
    assert text_of(await transcribe(server, HELLO, prompt="names", model=7)) == "hello there"


@pytest.mark.spec("rest-10")
@pytest.mark.parametrize("path", ["/transcribe/", "/transcribe/batch"])
async def test_a_client_that_goes_away_frees_the_engine(serve: Serve, path: str) -> None:
    server = serve(*NO_RATES, "--script", SLOW)
    files = [{"data": encoded(HELLO), "format": "wav"}] * 3
    body = {"audio_file": encoded(HELLO), "format": "wav", "audio_files": files}
    request = asyncio.create_task(ask(server, "POST", path, json=body))
    await server.until_metric(lambda value: value > 0, "earmark_engine", figure="busy_slots")
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="rest")


@pytest.mark.spec("rest-11")
async def test_the_log_has_requests_and_not_what_is_in_them(own_server: Serve) -> None:
    server = own_server("--log-level", "debug")
    file = wav_file(sentence("confidential"))
    assert text_of(await transcribe(server, file)) == "confidential"
    refused(await transcribe(server, b"secret bytes"), 400, "AUDIO_PROCESSING_ERROR")
    await ask(server, "POST", "/transcribe/", content=b'{"audio_file": "verysecret"}')
    assert server.stop() == 0
    log = server.log()
    lines = [line for line in log.splitlines() if "path=/transcribe/" in line]
    assert [line for line in lines if "request " in line and "method=POST" in line][2:]
    assert [re.search(r"status=(\d+)", line)[1] for line in lines if "answered" in line] == ["200", "400", "422"]  # type: ignore[index]
    for secret in ("confidential", "verysecret", encoded(file)[:40], encoded(b"secret bytes")):
        assert secret not in log


@pytest.mark.spec("rest-12")
async def test_health(server: RunningServer) -> None:
    answer = await ask(server, "GET", "/health/")
    health = answer.json()
    assert answer.status_code == 200
    assert set(health) == {"status", "model", "timestamp", "version"}
    assert (health["status"], health["model"], health["version"]) == ("healthy", "scripted", "0.1.0")
    at = datetime.fromisoformat(health["timestamp"])
    assert at.tzinfo is None
    assert abs(datetime.now(UTC).replace(tzinfo=None) - at) < timedelta(minutes=5)


# ---- one file


@pytest.mark.spec("rest-14", "rest-18", "rest-19")
async def test_a_transcription(server: RunningServer) -> None:
    answer = await transcribe(server, HELLO, language="en", temperature=0.0)
    said = answer.json()
    assert set(said) == {
        *("transcription", "language_detected", "confidence", "processing_time_ms", "audio_duration_seconds"),
    }
    assert said["transcription"] == "hello there"
    assert said["language_detected"] == "en"
    assert said["confidence"] is None
    assert said["audio_duration_seconds"] == 0.8
    assert type(said["processing_time_ms"]) is int


@pytest.mark.spec("rest-19")
async def test_the_processing_time_is_real(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", '{"final_latency_ms": 300}')
    loop = asyncio.get_running_loop()
    began = loop.time()
    said = (await transcribe(server, HELLO)).json()
    assert 300 <= said["processing_time_ms"] <= (loop.time() - began) * 1000


@pytest.mark.spec("rest-15")
@pytest.mark.parametrize("format", ["wav", "flac"])
async def test_lossless_files_reach_the_engine_sample_by_sample(server: RunningServer, format: str) -> None:
    texts = distinct_words(40, seed=3)  # which the audio itself carries
    pcm, _ = spoken(texts, seed=3)
    assert text_of(await transcribe(server, audio_file(pcm, format), format)).split() == texts


@pytest.fixture(scope="module")
def real_speech() -> tuple[bytes, int]:
    """Three sentences of the embedded corpus at their own rate."""
    parts = []
    for name in ("en-001-slt", "en-002-rms", "en-003-awb"):
        part, rate = soundfile.read(ROOT / "datasets" / "spoken-en" / "flac" / f"{name}.flac", dtype="int16")
        parts.append(part)
    return np.concatenate(parts).tobytes(), rate


def overlap(said: str, reference: str) -> float:
    """The share of the reference's words that were said, counted with their number."""
    left = said.split()
    hits = 0
    for word in reference.split():
        if word in left:
            left.remove(word)
            hits += 1
    return hits / len(reference.split())


@pytest.mark.spec("rest-15")
async def test_every_format_says_what_the_wav_says(serve: Serve, real_speech: tuple[bytes, int]) -> None:
    server = serve(*NO_RATES, "--sphinx-workers", "2", engine="sphinx")
    pcm, rate = real_speech
    reference = text_of(await transcribe(server, audio_file(pcm, "wav", rate)))
    assert overlap(reference, "turn off the kitchen lights and lock the front door please") > 0.4, "it hears something"
    assert len(reference.split()) > 20
    answers = await asyncio.gather(*(transcribe(server, audio_file(pcm, format, rate), format) for format in FORMATS))
    for format, answer in zip(FORMATS, answers, strict=True):
        assert overlap(text_of(answer), reference) > 0.75, f"{format}: {text_of(answer)} / {reference}"
        assert abs(answer.json()["audio_duration_seconds"] - len(pcm) / 2 / rate) < 0.2
    two = await transcribe(server, audio_file(stereo(pcm, pcm), "wav", rate, channels=2))
    assert overlap(text_of(two), reference) > 0.75


@pytest.mark.spec("rest-16")
@pytest.mark.parametrize("content", ["flac", "mp3", "m4a", "ogg", "webm", "aac"])
async def test_the_content_decides(serve: Serve, content: str) -> None:
    server = serve(*NO_RATES, "--script", '{"words": [{"text": "known", "start": 0.1, "end": 0.4}]}')
    assert text_of(await transcribe(server, audio_file(bytes(48_000), content), "wav")) == "known"


@pytest.mark.spec("rest-17")
@pytest.mark.parametrize("language", ["en", "es", "fr", "pt", "hi", "de", "nl", "it", None])
async def test_languages_of_the_contract_are_taken_and_only_known_ones_claimed(
    server: RunningServer, language: str | None
) -> None:
    said = (await transcribe(server, HELLO, language=language)).json()
    assert said["transcription"] == "hello there"
    assert said["language_detected"] == ("en" if language == "en" else None)


@pytest.mark.spec("rest-20")
async def test_a_long_file_is_heard_in_segments_and_loses_no_word(serve: Serve) -> None:
    server = serve(*NO_RATES, "--segment-seconds", "10")
    texts = distinct_words(400, seed=8)
    pcm, _ = spoken(texts, seed=8)
    before = await asyncio.to_thread(server.metric, "earmark_segments_total", surface="rest")
    assert text_of(await transcribe(server, audio_file(pcm, "flac"), "flac")).split() == texts
    segments = await asyncio.to_thread(server.metric, "earmark_segments_total", surface="rest") - before
    assert segments >= len(pcm) / 32_000 / 10


@pytest.mark.spec("rest-21")
@pytest.mark.parametrize(
    "broken",
    [
        encoded(HELLO)[:-1],
        encoded(HELLO).rstrip("=") + "A",
        encoded(HELLO)[:76] + "\n" + encoded(HELLO)[76:],
        "data:audio/wav;base64," + encoded(HELLO),
        encoded(HELLO).replace("A", "-", 1),
        "ü" + encoded(HELLO)[1:],
        "not base64!",
    ],
)
async def test_base64_is_read_strictly(server: RunningServer, broken: str) -> None:
    answer = await ask(server, "POST", "/transcribe/", json={"audio_file": broken, "format": "wav"})
    error = refused(answer, 422, "VALIDATION_ERROR")
    assert [fault["loc"] for fault in error["errors"]] == [["body", "audio_file"]]
    assert "base64" in error["details"]


@pytest.mark.spec("rest-22", "rest-44")
@pytest.mark.parametrize(
    ("file", "says"),
    [
        (b"", "empty"),
        (wav_file(b""), "no sound"),
        (b"these are no samples", "no audio"),
        (b"OggS" + random.Random(1).randbytes(5000), "cannot be decoded"),
        (wav_file(bytes(20_000), 7_999), "7999 Hz"),
        (wav_file(bytes(20_000), 96_000), "96000 Hz"),
        (wav_file(bytes(24_000), channels=6), "6 channels"),
    ],
    ids=["empty", "no-sound", "text", "broken", "too-low", "too-high", "channels"],
)
async def test_files_that_are_not_taken(server: RunningServer, file: bytes, says: str) -> None:
    assert says in refused(await transcribe(server, file), 400, "AUDIO_PROCESSING_ERROR")["message"]


@pytest.mark.spec("rest-23")
async def test_a_file_that_is_too_large(serve: Serve) -> None:
    server = serve(*NO_RATES, "--max-file-size-mb", "0.05")
    most = round(0.05 * 2**20)
    assert text_of(await transcribe(server, HELLO)) == "hello there"
    exact = wav_file(bytes((most - 44) // 2 * 2))
    assert text_of(await transcribe(server, exact)) == ""
    error = refused(await transcribe(server, exact + b"more"), 400, "AUDIO_PROCESSING_ERROR")
    assert str(most) in error["message"]


@pytest.mark.spec("rest-23")
async def test_a_file_that_is_too_long_whatever_it_was_packed_to(serve: Serve) -> None:
    server = serve(*NO_RATES, "--max-audio-duration-seconds", "2")
    assert text_of(await transcribe(server, wav_file(bytes(64_000)))) == ""
    error = refused(await transcribe(server, wav_file(bytes(64_002))), 400, "AUDIO_PROCESSING_ERROR")
    assert "2 s" in error["message"]
    bomb = audio_file(bytes(32_000 * 3600), "flac")
    assert len(bomb) < 1_000_000
    refused(await transcribe(server, bomb, "flac"), 400, "AUDIO_PROCESSING_ERROR")
    answer = await batch(server, [{"data": encoded(bomb), "format": "flac"}])
    assert "2 s" in answer.json()["results"][0]["error"]


@pytest.mark.spec("rest-24", "rest-45")
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"format": "wma"}, "format"),
        ({"format": "WAV"}, "format"),
        ({"format": None}, "format"),
        ({"language": "xx"}, "language"),
        ({"language": "EN"}, "language"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"audio_file": 7}, "audio_file"),
        ({"audio_file": None}, "audio_file"),
    ],
)
async def test_fields_that_are_wrong(server: RunningServer, change: dict[str, Any], field: str) -> None:
    body = {"audio_file": encoded(HELLO), "format": "wav", **change}
    error = refused(await ask(server, "POST", "/transcribe/", json=body), 422, "VALIDATION_ERROR")
    assert [fault["loc"] for fault in error["errors"]] == [["body", field]]
    assert all(set(fault) == {"loc", "msg", "type"} for fault in error["errors"])
    assert field in error["details"]


@pytest.mark.spec("rest-24")
@pytest.mark.parametrize("temperature", [0, 2, 0.7, 1.0])
async def test_temperatures_in_range(server: RunningServer, temperature: float) -> None:
    assert text_of(await transcribe(server, HELLO, temperature=temperature)) == "hello there"


@pytest.mark.spec("rest-24", "rest-45")
@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b"[]", "application/json"),
        (b'"text"', "application/json"),
        (b"null", "application/json"),
        (b"{}", "application/json"),
        (b"\xff\xfe{}", "application/json"),
        (b'{"audio_file": "\\ud800", "format": "wav"}', "application/json"),
        (b'{"audio_file": "", "format": "wav", "temperature": NaN}', "application/json"),
        (b'{"audio_file": "", "format": "wav", "temperature": 1e999}', "application/json"),
        (b"[" * 200_000, "application/json"),
        (b'{"temperature": ' + b"9" * 10_000 + b"}", "application/json"),
        (b'{"audio_file": "", "format": "wav"}', "text/plain"),
        (b"audio_file=secretvalue", "application/x-www-form-urlencoded"),
    ],
)
async def test_bodies_that_are_not_what_is_wanted(server: RunningServer, content: bytes, content_type: str) -> None:
    for path in ("/transcribe/", "/transcribe/batch", "/understand/"):
        answer = await ask(server, "POST", path, content=content, headers={"Content-Type": content_type})
        error = refused(answer, 422, "VALIDATION_ERROR")
        assert error["errors"]
        assert "secretvalue" not in answer.text


@pytest.mark.spec("rest-45")
async def test_what_was_sent_does_not_come_back_in_an_error(server: RunningServer) -> None:
    answer = await transcribe(server, HELLO, format="confidentialformat")
    refused(answer, 422, "VALIDATION_ERROR")
    assert encoded(HELLO)[:60] not in answer.text
    assert "confidentialformat" not in answer.text


# ---- batches


@pytest.mark.spec("rest-25", "rest-26")
@pytest.mark.parametrize("count", [1, 2, 7, 10])
async def test_a_batch_keeps_its_order_with_failures_among_it(server: RunningServer, count: int) -> None:
    files: list[dict[str, Any]] = []
    expected: list[dict[str, Any]] = []
    for number in range(count):
        match number % 4:
            case 0:
                files.append({"data": encoded(wav_file(sentence(f"word{number}"))), "format": "wav"})
                expected.append({"id": f"file_{number}", "transcription": f"word{number}", "success": True})
            case 1:
                files.append({"data": encoded(b"no audio"), "format": "mp3", "id": f"bad {number}"})
                expected.append({"id": f"bad {number}", "transcription": None, "success": False})
            case 2:
                files.append({"data": "no base64", "format": "ogg", "id": ""})
                expected.append({"id": f"file_{number}", "transcription": None, "success": False})
            case _:
                pcm = sentence(f"word{number}")
                files.append({"data": encoded(audio_file(pcm, "flac")), "format": "flac", "id": "ü same"})
                expected.append({"id": "ü same", "transcription": f"word{number}", "success": True})
    answer = await batch(server, files, language="en", temperature=0.5)
    assert answer.status_code == 200
    said = answer.json()
    assert set(said) == {"results", "total_processing_time_ms"}
    assert type(said["total_processing_time_ms"]) is int
    for result, wanted in zip(said["results"], expected, strict=True):
        assert set(result) == {"id", "transcription", "error", "success"}
        assert {key: result[key] for key in wanted} == wanted
        assert (result["error"] is None) == result["success"]


@pytest.mark.spec("rest-26")
async def test_a_batch_of_nothing_but_failures_is_200(server: RunningServer) -> None:
    answer = await batch(server, [{"data": "", "format": "wav"}] * 3)
    assert answer.status_code == 200
    assert [result["success"] for result in answer.json()["results"]] == [False] * 3
    assert all("empty" in result["error"] for result in answer.json()["results"])


@pytest.mark.spec("rest-27")
@pytest.mark.parametrize(
    ("files", "place"),
    [
        ([], ["body", "audio_files"]),
        ([{"data": "", "format": "wav"}] * 11, ["body", "audio_files"]),
        ([{"data": "", "format": "wav"}, {"data": "", "format": "wma"}], ["body", "audio_files", 1, "format"]),
        ([{"format": "wav"}], ["body", "audio_files", 0, "data"]),
    ],
)
async def test_batches_that_are_refused_as_a_whole(server: RunningServer, files: Any, place: list[Any]) -> None:
    error = refused(await batch(server, files), 422, "VALIDATION_ERROR")
    assert [fault["loc"] for fault in error["errors"]] == [place]


@pytest.mark.spec("rest-28")
async def test_files_of_a_batch_are_heard_at_the_same_time_as_far_as_there_are_places(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", '{"final_latency_ms": 60000, "slots": 3}')
    request = asyncio.create_task(batch(server, [{"data": encoded(HELLO), "format": "wav"}] * 8))
    await server.until_metric(lambda value: value == 3, "earmark_engine", figure="busy_slots")
    assert not request.done()
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("rest-28", "rest-47")
async def test_files_beyond_the_places_wait_their_turn(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", '{"final_latency_ms": 200, "slots": 2}', "--processing-timeout-s", "1.5")
    files = [{"data": encoded(wav_file(sentence(f"w{number}"))), "format": "wav"} for number in range(10)]
    answer = await batch(server, files)  # five turns of 0.2 s, each with 1.5 s of its own
    assert [result["transcription"] for result in answer.json()["results"]] == [f"w{number}" for number in range(10)]
    async with realtime(server) as one, realtime(server) as other:  # which take both places
        for client in (one, other):
            await client.start()
            await client.append(bytes(3200))
        await server.until_metric(lambda value: value == 2, "earmark_engine", figure="busy_slots")
        answer = await transcribe(server, HELLO)
        assert "slots are taken" in refused(answer, 503, "MODEL_UNAVAILABLE")["message"]
        assert int(answer.headers["retry-after"]) >= 1


async def test_requests_and_streams_beside_one_another(server: RunningServer) -> None:
    words = [distinct_words(30, seed=seed) for seed in range(6)]
    audio = [spoken(texts, seed=seed)[0] for seed, texts in enumerate(words)]

    async def stream(pcm: bytes) -> str:
        async with realtime(server) as client:
            await client.start()
            await client.append(pcm)
            await client.finish()
            text: str = (await client.receive_until("transcription.done"))[-1]["text"]
            return text

    async def request(pcm: bytes) -> str:
        return text_of(await transcribe(server, wav_file(pcm)))

    said = await asyncio.gather(*(work(pcm) for pcm in audio for work in (stream, request)))
    assert [text.split() for text in said] == [texts for texts in words for _ in range(2)]


# ---- questions


@pytest.mark.spec("rest-29", "rest-30")
async def test_a_question_about_files(answering: RunningServer, backend: Backend) -> None:
    pcm = [sentence("one"), sentence("two")]
    answer = await understand(
        answering, [wav_file(part) for part in pcm], "What is it?", temperature=0.3, max_tokens=17, top_p=0.9
    )
    said = answer.json()
    assert type(said.pop("processing_time_ms")) is int
    assert said == {
        "answer": "A greeting.",
        "audio_count": 2,
        "token_usage": {"prompt_tokens": 390, "completion_tokens": 4, "total_tokens": 394},
    }
    path, _, body = backend.requests[-1]
    asked = json.loads(body)
    assert path == "/v1/chat/completions"
    assert [asked[name] for name in ("temperature", "max_tokens", "top_p")] == [0.3, 17, 0.9]
    [message] = asked["messages"]
    *audio, question = message["content"]
    assert question == {"type": "text", "text": "What is it?"}
    assert [samples(base64.b64decode(part["input_audio"]["data"])) for part in audio] == pcm


@pytest.mark.spec("rest-29")
async def test_defaults_of_a_question_and_tokens_that_are_not_known(answering: RunningServer, backend: Backend) -> None:
    backend.says("/v1/chat/completions", 200, {"choices": COMPLETION["choices"]})
    try:
        said = (await understand(answering, [HELLO], "Well?")).json()
    finally:
        backend.says("/v1/chat/completions", 200, COMPLETION)
    assert said["token_usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    asked = json.loads(backend.requests[-1][2])
    assert [asked[name] for name in ("temperature", "max_tokens", "top_p")] == [0.2, 500, 0.95]


@pytest.mark.spec("rest-31", "rest-33")
@pytest.mark.parametrize(
    ("files", "more", "status", "code"),
    [
        ([], {}, 422, "VALIDATION_ERROR"),
        ([HELLO] * 6, {}, 400, "HTTP_400"),
        ([HELLO], {"question": ""}, 422, "VALIDATION_ERROR"),
        ([HELLO], {"question": " \n\t "}, 400, "HTTP_400"),
        ([HELLO], {"question": None}, 422, "VALIDATION_ERROR"),
        ([HELLO], {"temperature": 2.5}, 422, "VALIDATION_ERROR"),
        ([HELLO], {"top_p": 1.5}, 422, "VALIDATION_ERROR"),
        ([HELLO], {"max_tokens": 0}, 422, "VALIDATION_ERROR"),
        ([HELLO], {"max_tokens": 1.5}, 422, "VALIDATION_ERROR"),
        ([HELLO, b"no audio"], {}, 400, "AUDIO_PROCESSING_ERROR"),
    ],
)
async def test_questions_that_are_refused(
    answering: RunningServer, files: list[bytes], more: dict[str, Any], status: int, code: str
) -> None:
    refused(await understand(answering, files, **{"question": "Well?", **more}), status, code)


@pytest.mark.spec("rest-33")
async def test_base64_of_a_question_is_named_by_its_place(answering: RunningServer) -> None:
    files = [{"data": encoded(HELLO), "format": "wav"}, {"data": "!", "format": "wav"}]
    answer = await ask(answering, "POST", "/understand/", json={"audio_files": files, "question": "Well?"})
    error = refused(answer, 422, "VALIDATION_ERROR")
    assert error["errors"][0]["loc"] == ["body", "audio_files", 1, "data"]


@pytest.mark.spec("rest-33")
async def test_the_length_of_recordings_to_ask_about(serve: Serve, backend: Backend) -> None:
    options = ("--chat-engine", "remote", "--chat-url", backend.url, "--max-audio-duration-seconds", "1")
    server = serve(*NO_RATES, *options, "--max-question-audio-seconds", "2")
    assert (await understand(server, [wav_file(bytes(64_000))], "Well?")).status_code == 200
    answer = await understand(server, [wav_file(bytes(64_002))], "Well?")
    assert "2 s" in refused(answer, 400, "AUDIO_PROCESSING_ERROR")["message"]


@pytest.mark.spec("rest-32")
async def test_without_a_chat_engine_there_are_no_answers(server: RunningServer) -> None:
    error = refused(await understand(server, [HELLO], "Well?"), 503, "MODEL_UNAVAILABLE")
    assert "--chat-engine" in error["message"]


@pytest.mark.spec("rest-32")
@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (500, b"oops", (503, "MODEL_UNAVAILABLE")),
        (429, {"error": {"message": "slow down"}}, (503, "MODEL_UNAVAILABLE")),
        (200, b"no JSON", (503, "MODEL_UNAVAILABLE")),
        (400, {"error": {"message": "maximum context length is 9"}}, (400, "AUDIO_PROCESSING_ERROR")),
        (400, {"error": {"message": "unknown option"}}, (400, "HTTP_400")),
    ],
)
async def test_a_chat_engine_that_fails(
    answering: RunningServer, backend: Backend, status: int, body: Any, expected: tuple[int, str]
) -> None:
    backend.says("/v1/chat/completions", status, body)
    try:
        refused(await understand(answering, [HELLO], "Well?"), *expected)
    finally:
        backend.says("/v1/chat/completions", 200, COMPLETION)


@pytest.mark.spec("rest-10", "rest-48")
async def test_a_question_is_given_up_with_its_client_and_with_its_time(serve: Serve, backend: Backend) -> None:
    options = ("--chat-engine", "remote", "--chat-url", backend.url)
    patient, hasty = serve(*NO_RATES, *options), serve(*NO_RATES, *options, "--processing-timeout-s", "0.3")
    backend.silent = True
    try:
        request = asyncio.create_task(understand(patient, [HELLO], "Well?"))
        while True:
            assert await asyncio.to_thread(backend.asked.acquire, timeout=20)
            if backend.requests[-1][0] == "/v1/chat/completions":
                break
        request.cancel()
        assert await asyncio.to_thread(backend.left.acquire, timeout=20)
        refused(await understand(hasty, [HELLO], "Well?"), 504, "PROCESSING_TIMEOUT")
        assert await asyncio.to_thread(backend.left.acquire, timeout=20)
    finally:
        backend.silent = False


# ---- errors


@pytest.mark.spec("rest-46")
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
@pytest.mark.parametrize("path", ["/transcribe/", "/transcribe", "/transcribe/batch", "/understand/"])
async def test_methods_that_a_path_does_not_have(server: RunningServer, method: str, path: str) -> None:
    answer = await ask(server, method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    if method != "HEAD":
        refused(answer, 405, "HTTP_405")
    refused(await ask(server, "POST", "/health/"), 405, "HTTP_405")


@pytest.mark.spec("rest-47")
async def test_an_engine_that_fails_is_told_with_its_reason(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", '{"faults": [{"at": 0.5, "message": "tripped"}]}')
    assert "tripped" in refused(await transcribe(server, HELLO), 503, "MODEL_UNAVAILABLE")["message"]
    files = [{"data": encoded(HELLO), "format": "wav"}, {"data": encoded(wav_file(bytes(3200))), "format": "wav"}]
    first, second = (await batch(server, files)).json()["results"]
    assert "tripped" in first["error"]
    assert second["success"]


@pytest.mark.spec("rest-48")
async def test_what_takes_too_long_is_given_up(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", SLOW, "--processing-timeout-s", "0.3")
    assert "0.3 s" in refused(await transcribe(server, HELLO), 504, "PROCESSING_TIMEOUT")["message"]
    answer = await batch(server, [{"data": encoded(HELLO), "format": "wav"}])
    assert answer.status_code == 200
    assert "0.3 s" in answer.json()["results"][0]["error"]
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("rest-50")
async def test_other_surfaces_keep_their_errors(server: RunningServer) -> None:
    assert (await ask(server, "GET", "/nowhere")).json() == {"detail": "Not Found"}
    assert "detail" in (await ask(server, "POST", "/v1/models")).json()


@pytest.mark.spec("rest-13", "rest-59")
async def test_a_server_that_ends_answers_what_is_under_way_and_nobody_else(own_server: Serve) -> None:
    server = own_server("--script", '{"final_latency_ms": 1500}')
    under_way = asyncio.create_task(transcribe(server, HELLO))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    server.signal(signal.SIGTERM)
    while (late := await ask(server, "GET", "/health/")).status_code == 200:
        assert not under_way.done(), "it ended before it was seen to end"
    refused(late, 503, "MODEL_UNAVAILABLE")
    answer = await transcribe(server, HELLO)
    refused(answer, 503, "MODEL_UNAVAILABLE")
    assert int(answer.headers["retry-after"]) >= 1
    assert text_of(await under_way) == "hello there"
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("rest-59")
async def test_what_does_not_end_in_time_is_answered_too(own_server: Serve) -> None:
    server = own_server("--script", SLOW, "--drain-seconds", "0.3")
    under_way = asyncio.create_task(transcribe(server, HELLO))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    server.signal(signal.SIGTERM)
    assert "shutting down" in refused(await under_way, 503, "MODEL_UNAVAILABLE")["message"]
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.log()


# ---- the page, and the original's own client


@pytest.fixture
def page() -> str:
    return (ROOT / "docs" / "protocols" / "rest.md").read_text(encoding="utf-8")


@pytest.mark.spec("rest-01")
def test_the_commands_of_the_page(server: RunningServer, page: str, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav_file(sentence("as", "the", "page", "says")))
    script = re.search(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]
    assert shutil.which("curl")
    ended = subprocess.run(
        ["sh", "-e", "-c", script.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")],
        cwd=tmp_path,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    health, one, several = json_values(ended.stdout)
    assert health["status"] == "healthy"
    assert one["transcription"] == "as the page says"
    assert several["results"][0] == {"id": "first", "transcription": "as the page says", "error": None, "success": True}


def json_values(text: str) -> list[Any]:
    """JSON values that stand one behind the other."""
    found, at, decoder = [], 0, json.JSONDecoder()
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


@pytest.mark.spec("rest-02")
def test_the_client_of_the_page(server: RunningServer, page: str, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(wav_file(sentence("as", "the", "page", "says")))
    client = re.search(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]  # type: ignore[index]
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", client, "speech.wav"],
        cwd=tmp_path,
        env=clean_environment({"STT_URL": url(server)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("as the page says\n", 0), ended.stderr


def test_every_setting_that_the_page_names_is_one_of_the_servers(page: str) -> None:
    told = subprocess.run(
        command("--help"), cwd=ROOT, env=clean_environment({}), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    codes = {
        *("AUDIO_PROCESSING_ERROR", "HTTP_400", "HTTP_401", "HTTP_404", "HTTP_405", "HTTP_408", "VALIDATION_ERROR"),
        *("RATE_LIMIT_EXCEEDED", "SERVER_ERROR", "MODEL_UNAVAILABLE", "PROCESSING_TIMEOUT"),
        *("INVALID_JSON", "INVALID_AUDIO_FORMAT", "PROCESSING_ERROR"),
    }
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)", page))
    assert codes <= named
    settings = set(re.findall(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+", told))
    assert named - codes <= settings
    own = {name for name in settings if "REST" in name or "RATE_LIMIT" in name}
    assert {name for name in own if not name.startswith("STT_")} <= named  # those are the operations plane's


@pytest.mark.spec("rest-61")
async def test_the_five_checks_of_the_original_test_program(answering: RunningServer) -> None:
    file = encoded(audio_file(sentence("speech"), "mp3"))
    async with httpx.AsyncClient(timeout=60.0) as client:
        answer = await client.get(f"{url(answering)}/")
        assert answer.status_code == 200
        assert answer.json()["name"]
        assert answer.json()["version"]
        answer = await client.get(f"{url(answering)}/health/")
        assert answer.status_code == 200
        assert answer.json()["status"]
        assert answer.json()["model"]
        answer = await client.get(f"{url(answering)}/openapi.json")
        assert answer.status_code == 200
        assert answer.json()["info"]["title"]
        assert answer.json()["info"]["version"]
        body: dict[str, Any] = {"audio_file": file, "format": "mp3", "language": "en", "temperature": 0.0}
        answer = await client.post(f"{url(answering)}/transcribe/", json=body)
        assert answer.status_code == 200
        assert answer.json()["processing_time_ms"] >= 0
        assert isinstance(answer.json()["transcription"][:100], str)
        body = {
            "audio_files": [{"data": file, "format": "mp3", "id": "test_audio"}],
            "question": "What is being said?",
            "temperature": 0.2,
            "max_tokens": 200,
            "top_p": 0.95,
        }
        answer = await client.post(f"{url(answering)}/understand/", json=body)
        assert answer.status_code == 200
        assert answer.json()["processing_time_ms"] >= 0
        assert answer.json()["answer"][:100] == "A greeting."
