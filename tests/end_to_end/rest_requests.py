"""Requests of the REST surface written by its contract, and what holds of every answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx

from tests.end_to_end.clients import encoded
from tests.end_to_end.running_server import RunningServer

NO_RATES = (
    *("--rate-limit-requests", "0", "--rate-limit-transcription", "0"),
    *("--rate-limit-batch", "0", "--rate-limit-understanding", "0"),
)
"""All tests come from one address."""


def url(server: RunningServer) -> str:
    return f"http://127.0.0.1:{server.port}"


async def ask(server: RunningServer, method: str, path: str, **options: Any) -> httpx.Response:
    """The answer to one request on a connection of its own; redirects are not followed."""
    async with httpx.AsyncClient(base_url=url(server), timeout=60) as client:
        return await client.request(method, path, **options)


async def transcribe(server: RunningServer, file: bytes, format: str = "wav", **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    body = {"audio_file": encoded(file), "format": format, **more}
    return await ask(server, "POST", "/transcribe/", json=body, headers=headers)


async def batch(server: RunningServer, files: Sequence[dict[str, Any]], **more: Any) -> httpx.Response:
    return await ask(server, "POST", "/transcribe/batch", json={"audio_files": list(files), **more})


async def understand(server: RunningServer, files: Sequence[bytes], question: str, **more: Any) -> httpx.Response:
    audio_files = [{"data": encoded(file), "format": "wav"} for file in files]
    return await ask(server, "POST", "/understand/", json={"audio_files": audio_files, "question": question, **more})


def text_of(answer: httpx.Response) -> str:
    """The transcription in a good answer."""
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["transcription"]
    return text


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer, which must have the surface's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) - {"details", "errors"} == {"code", "message", "timestamp"}
    assert error["code"] == code, error
    assert error["message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", error["timestamp"])
    return error
