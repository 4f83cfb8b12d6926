"""Uploads as OpenAI takes them, through OpenAI's own Python client and plain HTTP, against a real server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from tests.audio_files import FORMATS, audio_file, wav_file
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer, clean_environment
from tests.end_to_end.speech import distinct_words, sentence, spoken

PATH = "/v1/audio/transcriptions"
SLOW = '{"final_latency_ms": 60000}'


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


async def upload(server: RunningServer, data: bytes | None, **fields: Any) -> httpx.Response:
    """The answer to a form with these fields."""
    files = [("file", ("speech.bin", data))] if data is not None else [("nothing", ("x", b""))]
    headers = fields.pop("headers", {})
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client:
        return await client.post(PATH, files=files, data=fields, headers=headers)


def error(answer: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and param of a refusal in OpenAI's shape."""
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return answer.status_code, body["error"]["code"], body["error"]["param"]


@pytest.mark.spec("openai-12", "openai-40", "openai-42", "openai-44")
async def test_the_official_client_in_all_its_forms(server: RunningServer) -> None:
    file = ("speech.wav", wav_file(sentence("now", "hear", "this")))
    async with AsyncOpenAI(api_key="anything", base_url=f"http://127.0.0.1:{server.port}/v1") as client:
        plain = await client.audio.transcriptions.create(model="whisper-1", file=file)
        assert plain.text == "now hear this"
        verbose = await client.audio.transcriptions.create(
            model="scripted",
            file=file,
            response_format="verbose_json",
            timestamp_granularities=["word", "segment"],
            language="en",
        )
        assert (verbose.text, verbose.language, verbose.duration) == ("now hear this", "en", 1.2)
        assert verbose.words is not None
        assert verbose.segments is not None
        assert [(word.word, word.start, word.end) for word in verbose.words] == [
            ("now", 0.0, 0.3),
            ("hear", 0.4, 0.7),
            ("this", 0.8, 1.1),
        ]
        assert [(cue.text, cue.start, cue.end) for cue in verbose.segments] == [("now hear this", 0.0, 1.1)]
        assert verbose.segments[0].avg_logprob is None
        events = [
            event async for event in await client.audio.transcriptions.create(model="scripted", file=file, stream=True)
        ]
        assert [event.type for event in events] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
        assert "".join(event.delta for event in events[:-1]) == "now hear this"
        assert events[-1].text == "now hear this"
        listed = [model.id async for model in client.models.list()]
        assert listed[0] == "scripted"
        assert (await client.models.retrieve("scripted")).id == "scripted"
        with pytest.raises(NotFoundError, match="nobody"):
            await client.audio.transcriptions.create(model="nobody", file=file)
        with pytest.raises(BadRequestError, match="temperature"):
            await client.audio.transcriptions.create(model="scripted", file=file, temperature=7)


@pytest.mark.spec("openai-41", "openai-43")
@pytest.mark.parametrize(
    ("response_format", "media_type", "body"),
    [
        ("text", "text/plain; charset=utf-8", "one two.\n"),
        ("srt", "text/plain; charset=utf-8", "1\n00:00:00,000 --> 00:00:00,700\none two.\n\n"),
        ("vtt", "text/vtt; charset=utf-8", "WEBVTT\n\n00:00:00.000 --> 00:00:00.700\none two.\n\n"),
    ],
)
async def test_plain_text_and_subtitles(
    server: RunningServer, response_format: str, media_type: str, body: str
) -> None:
    answer = await upload(server, wav_file(sentence("one", "two.")), model="scripted", response_format=response_format)
    assert (answer.status_code, answer.headers["content-type"], answer.text) == (200, media_type, body)


@pytest.mark.spec("openai-45")
@pytest.mark.parametrize("format", FORMATS)
async def test_files_are_told_apart_by_their_content(serve: Serve, format: str) -> None:
    server = serve(
        "--script", '{"words": [{"text": "known", "start": 0.1, "end": 0.4}]}'
    )  # lossy codecs blur words in audio
    answer = await upload(server, audio_file(bytes(48_000), format), model="scripted")
    assert answer.json()["text"] == "known", answer.text


@pytest.mark.spec("openai-46", "openai-47", "openai-49", "openai-50")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model": "nobody"}, (404, "model_not_found", "model")),
        ({}, (400, "missing_required_parameter", "model")),
        ({"model": "scripted", "data": None}, (400, "missing_required_parameter", "file")),
        ({"model": "scripted", "data": b"no audio at all"}, (400, "invalid_value", "file")),
        ({"model": "scripted", "data": b""}, (400, "invalid_value", "file")),
        ({"model": "scripted", "temperature": "hot"}, (400, "invalid_value", "temperature")),
        ({"model": "scripted", "response_format": "xml"}, (400, "invalid_value", "response_format")),
        ({"model": "scripted", "stream": "perhaps"}, (400, "invalid_value", "stream")),
        ({"model": "scripted", "language": "xx"}, (400, "invalid_value", "language")),
        (
            {"model": "scripted", "timestamp_granularities[]": "word"},
            (400, "invalid_value", "timestamp_granularities"),
        ),
        (
            {"model": "scripted", "response_format": "verbose_json", "timestamp_granularities[]": "letter"},
            (400, "invalid_value", "timestamp_granularities"),
        ),
    ],
)
async def test_bad_requests_name_the_field(server: RunningServer, fields: dict[str, Any], expected: Any) -> None:
    data = fields.pop("data", wav_file(sentence("fine")))
    assert error(await upload(server, data, **fields)) == expected


@pytest.mark.spec("openai-47")
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"\x00\xff"),
    ],
)
async def test_bodies_that_are_no_form(server: RunningServer, content_type: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        answer = await client.post(PATH, content=body, headers={"Content-Type": content_type})
    assert error(answer)[0] == 400


@pytest.mark.spec("openai-48")
async def test_files_that_are_too_large_or_too_long(serve: Serve) -> None:
    server = serve("--openai-max-file-mb", "1", "--openai-max-audio-seconds", "10")
    assert error(await upload(server, bytes(4 << 20), model="scripted")) == (413, "file_too_large", "file")
    long = audio_file(bytes(32_000 * 11), "flac")  # silence packs to nearly nothing
    assert len(long) < 100_000
    assert error(await upload(server, long, model="scripted")) == (413, "file_too_large", "file")
    free = serve("--openai-max-file-mb", "1", "--openai-max-audio-seconds", "10", "--unlimited")
    assert (await upload(free, long, model="scripted")).status_code == 200


@pytest.mark.spec("openai-60")
async def test_unlimited_takes_long_files(serve: Serve) -> None:
    server = serve("--openai-max-audio-seconds", "1", "--unlimited")
    assert (await upload(server, wav_file(bytes(320_000)), model="scripted")).json()["text"] == ""


@pytest.mark.spec("openai-51")
async def test_fields_that_change_nothing_are_named(server: RunningServer) -> None:
    answer = await upload(
        server, wav_file(sentence("same")), **{"model": "scripted", "prompt": "names: Xyz", "include[]": "logprobs"}
    )
    assert answer.json()["text"] == "same"
    assert answer.headers["x-ignored-fields"] == "include, prompt"


@pytest.mark.spec("openai-52", "openai-54")
async def test_one_too_many_is_told_to_come_later_and_who_goes_frees_its_place(serve: Serve) -> None:
    server = serve("--script", SLOW, "--openai-max-requests", "1")
    first = asyncio.ensure_future(upload(server, wav_file(sentence("slow")), model="scripted"))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    second = await upload(server, wav_file(sentence("late")), model="scripted")
    assert error(second) == (503, "server_busy", None)
    assert int(second.headers["retry-after"]) >= 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")
    third = asyncio.ensure_future(upload(server, wav_file(sentence("next")), model="scripted"))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    third.cancel()
    await asyncio.gather(third, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("openai-54")
async def test_who_leaves_a_stream_of_events_frees_the_engine(serve: Serve) -> None:
    server = serve("--script", SLOW)
    form = {"model": "scripted", "stream": "true"}
    files = {"file": ("speech.wav", wav_file(sentence("one", "two")))}
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client,
        client.stream("POST", PATH, data=form, files=files) as answer,
    ):
        async for line in answer.aiter_lines():
            assert json.loads(line.removeprefix("data: "))["delta"]
            break
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("openai-53")
async def test_what_takes_too_long_is_given_up(serve: Serve) -> None:
    server = serve("--script", SLOW, "--openai-timeout-seconds", "0.3")
    assert error(await upload(server, wav_file(sentence("slow")), model="scripted")) == (504, "timeout", None)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("openai-55")
async def test_a_required_key(serve: Serve) -> None:
    server = serve("--require-key")
    audio = wav_file(sentence("secret"))
    assert error(await upload(server, audio, model="scripted")) == (401, "invalid_api_key", None)
    answer = await upload(server, audio, model="scripted", headers={"Authorization": f"Bearer {KEY}"})
    assert answer.json()["text"] == "secret"


@pytest.mark.spec("openai-56")
def test_one_model(server: RunningServer) -> None:
    status, body = server.get("/v1/models/scripted")
    assert (status, json.loads(body)["id"]) == (200, "scripted")
    status, body = server.get("/v1/models/nobody")
    assert (status, json.loads(body)["error"]["code"]) == (404, "model_not_found")


@pytest.mark.spec("openai-57")
async def test_a_long_file_is_rolled_and_loses_no_word(serve: Serve) -> None:
    server = serve("--segment-seconds", "10")
    texts = distinct_words(200, seed=6)
    pcm, _ = spoken(texts, seed=6)
    before = await asyncio.to_thread(server.metric, "earmark_segments_total", surface="openai")
    answer = await upload(server, audio_file(pcm, "flac"), model="scripted")
    assert answer.json()["text"].split() == texts
    after = await asyncio.to_thread(server.metric, "earmark_segments_total", surface="openai")
    assert after - before >= len(pcm) / 32_000 / 10


@pytest.mark.spec("openai-58")
async def test_a_failing_engine_is_told_with_its_reason(serve: Serve) -> None:
    server = serve("--script", '{"faults": [{"at": 0.5, "message": "tripped"}]}')
    audio = wav_file(sentence("one", "two", "three"))
    answer = await upload(server, audio, model="scripted")
    assert error(answer)[:2] == (500, "processing_error")
    assert "tripped" in answer.json()["error"]["message"]
    streamed = await upload(server, audio, model="scripted", stream="true")
    last = json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))
    assert (last["error"]["code"], last["error"]["type"]) == ("processing_error", "server_error")


@pytest.mark.spec("openai-59")
def test_the_client_and_the_curl_lines_of_the_page(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    page = (ROOT / "docs" / "protocols" / "openai.md").read_text(encoding="utf-8")
    (tmp_path / "speech.wav").write_bytes(wav_file(sentence("as", "the", "page", "says")))
    code = page.split("```python\n")[1].split("```")[0]
    ended = subprocess.run(
        [sys.executable, "-c", code, "speech.wav"],
        cwd=tmp_path,
        env=clean_environment({"OPENAI_BASE_URL": f"http://127.0.0.1:{server.port}/v1"}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("as the page says\n", 0), ended.stderr
    curls = [line.strip() for line in page.splitlines() if line.startswith("    curl")]
    assert len(curls) == 2
    outputs = [
        subprocess.run(
            line.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").split(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout
        for line in curls
    ]
    assert json.loads(outputs[0])["text"] == "as the page says"
    assert outputs[1].startswith("1\n00:00:00,000 --> ")
