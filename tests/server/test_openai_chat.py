"""The remote chat engine against a real HTTP server that speaks the documented shapes, and every way in which one may not."""

from __future__ import annotations

import asyncio
import base64
import email.parser
import email.policy
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.core.events import Usage
from server.engines.base import (
    Answer,
    EngineError,
    OverloadedError,
    Sampling,
    TooLongError,
    Transcription,
    UnsupportedError,
)
from server.engines.openai_chat import OpenAiChatEngine, OpenAiChatSettings
from tests.chat_backend import COMPLETION, MODELS, Backend, chat_backend, samples

PCM = bytes(range(200)) * 16


@pytest.fixture
def backend() -> Iterator[Backend]:
    with chat_backend() as backend:
        yield backend


@asynccontextmanager
async def running(backend: Backend, **settings: Any) -> AsyncIterator[OpenAiChatEngine]:
    engine = OpenAiChatEngine(OpenAiChatSettings(**{"url": backend.url, **settings}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def form(headers: dict[str, str], body: bytes) -> dict[str, bytes]:
    """The parts of a multipart body, as the standard library reads them."""
    text = b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(text)
    parts = {}
    for part in message.iter_parts():
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts[str(part.get_param("name", header="content-disposition"))] = content
    return parts


async def test_a_recording_goes_as_a_file_in_a_form(backend: Backend) -> None:
    async with running(backend) as engine:
        assert engine.info.model == "mini"
        said = await engine.transcribe(PCM, "en", 0.5)
    assert said == Transcription("hello there", Usage(), "en")
    path, headers, body = backend.requests[-1]
    parts = form(headers, body)
    assert path == "/v1/audio/transcriptions"
    assert (parts["model"], parts["language"], parts["temperature"]) == (b"mini", b"en", b"0.5")
    assert samples(parts["file"]) == PCM


async def test_no_language_is_named_if_none_is_known(backend: Backend) -> None:
    async with running(backend) as engine:
        assert (await engine.transcribe(PCM)).language is None
    _, headers, body = backend.requests[-1]
    assert "language" not in form(headers, body)


async def test_a_question_goes_behind_its_recordings(backend: Backend) -> None:
    async with running(backend, url=backend.url + "/v1/", model="other") as engine:
        answer = await engine.answer("What is it?", [PCM, PCM[::-1]], Sampling(0.3, 0.9, 17))
    assert answer == Answer("A greeting.", Usage(390, 4))
    path, _, body = backend.requests[-1]
    request = json.loads(body)
    assert path == "/v1/chat/completions"
    assert [request[name] for name in ("model", "temperature", "top_p", "max_tokens")] == ["other", 0.3, 0.9, 17]
    (message,) = request["messages"]
    first, second, last = message["content"]
    assert last == {"type": "text", "text": "What is it?"}
    sent = [samples(base64.b64decode(part["input_audio"]["data"])) for part in (first, second)]
    assert sent == [PCM, PCM[::-1]]
    assert first["input_audio"]["format"] == "wav"


async def test_an_answer_that_ends_at_its_limit_is_said_to_be_cut(backend: Backend) -> None:
    choice = COMPLETION["choices"][0] | {"finish_reason": "length"}
    backend.says("/v1/chat/completions", 200, {"choices": [choice]})
    async with running(backend) as engine:
        assert await engine.answer("?", [], Sampling()) == Answer("A greeting.", Usage(), cut=True)


async def test_the_key_goes_along_if_there_is_one(backend: Backend) -> None:
    async with running(backend, api_key="open sesame") as engine:
        await engine.transcribe(PCM)
    assert [headers["Authorization"] for _, headers, _ in backend.requests] == ["Bearer open sesame"] * 2
    async with running(backend):
        pass
    assert "Authorization" not in backend.requests[-1][1]


async def test_an_empty_recording_asks_nobody(backend: Backend) -> None:
    async with running(backend) as engine:
        assert await engine.transcribe(b"", "de") == Transcription("", Usage(), "de")
    assert [path for path, _, _ in backend.requests] == ["/v1/models"]


@pytest.mark.parametrize(
    ("status", "body", "kind", "part"),
    [
        (400, {"error": {"message": "This model's maximum context length is 2048 tokens."}}, TooLongError, "2048"),
        (400, {"error": {"message": "Unsupported language"}}, UnsupportedError, "^Unsupported language$"),
        (422, {"detail": "odd"}, UnsupportedError, "odd"),
        (413, b"too big", TooLongError, "too big"),
        (401, {"error": "Unauthorized"}, EngineError, "EARMARK_CHAT_API_KEY.*Unauthorized"),
        (404, {"message": "no model"}, EngineError, "status 404: no model"),
        (429, {"error": {"message": "slow down"}}, OverloadedError, "slow down"),
        (503, b"", OverloadedError, "busy"),
        (500, b"<html>oops</html>", EngineError, "status 500: <html>oops"),
        (200, b"not JSON", EngineError, "JSON"),
        (200, b"[]", EngineError, "object"),
        (200, {"texts": []}, EngineError, "no text"),
        (200, {"text": None}, EngineError, "no text"),
        (200, b'"' + b"x" * (9 << 20) + b'"', EngineError, "more than"),
    ],
)
async def test_what_the_server_refuses_is_said_in_its_words(
    backend: Backend, status: int, body: Any, kind: type[EngineError], part: str
) -> None:
    backend.says("/v1/audio/transcriptions", status, body)
    async with running(backend) as engine:
        with pytest.raises(EngineError, match=part) as caught:
            await engine.transcribe(PCM)
        assert type(caught.value) is kind
        assert engine.metrics() == {"requests": 0, "refused": 0, "failed": 0}


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": [1]}, {"choices": [{"message": {"content": None}}]}])
async def test_a_completion_without_text_is_an_error(backend: Backend, body: Any) -> None:
    backend.says("/v1/chat/completions", 200, body)
    async with running(backend) as engine:
        with pytest.raises(EngineError, match="answer has no"):
            await engine.answer("?", [], Sampling())


async def until_asked(backend: Backend, times: int = 1) -> None:
    for _ in range(times):
        assert await asyncio.to_thread(backend.asked.acquire, timeout=20)


async def test_a_cancelled_call_leaves_the_server(backend: Backend) -> None:
    async with running(backend) as engine:
        backend.silent = True
        await until_asked(backend)  # for its models
        call = asyncio.create_task(engine.transcribe(PCM))
        await until_asked(backend)
        assert engine.metrics()["requests"] == 1
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(backend.left.acquire, timeout=20)
        assert engine.metrics()["requests"] == 0


async def test_calls_beyond_those_that_may_wait_are_refused_and_the_end_fails_the_others(backend: Backend) -> None:
    async with running(backend, slots=1, waiting=1) as engine:
        backend.silent = True
        calls = [asyncio.create_task(engine.transcribe(PCM)) for _ in range(3)]
        await until_asked(backend, 2)  # models, then one: the other waits for a connection
        with pytest.raises(OverloadedError, match="2 requests are under way"):
            await calls[2]
        await engine.stop()
        for call in calls[:2]:
            with pytest.raises(EngineError, match="stopped"):
                await call
        assert engine.metrics()["refused"] == 1


async def test_a_server_that_takes_too_long_is_given_up(backend: Backend) -> None:
    async with running(backend, answer_seconds=0.2) as engine:
        backend.silent = True
        with pytest.raises(EngineError, match="not answered in time"):
            await engine.transcribe(PCM)
        assert await asyncio.to_thread(backend.left.acquire, timeout=20)


@pytest.mark.parametrize(
    ("status", "body", "part"),
    [
        (200, {"data": []}, "serves no model"),
        (200, {"models": []}, "no data"),
        (404, b"", "status 404"),
        (200, MODELS, "serves mini, other, not mine"),
    ],
)
async def test_a_start_without_the_model_says_what_there_is(
    backend: Backend, status: int, body: Any, part: str
) -> None:
    backend.says("/v1/models", status, body)
    with pytest.raises(EngineError, match=part):
        async with running(backend, model="mine"):
            pass


async def test_a_server_that_is_not_there_is_named(backend: Backend) -> None:
    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:9 does not answer.*chat-url"):
        async with running(backend, url="http://127.0.0.1:9"):
            pass
