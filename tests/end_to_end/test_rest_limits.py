"""Limits of the REST surface: allowances and their headers, places, memory, bodies that are too long or stop coming."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.audio_files import audio_file, wav_file
from tests.end_to_end.clients import encoded
from tests.end_to_end.conftest import Serve
from tests.end_to_end.rest_requests import NO_RATES, ask, batch, refused, text_of, transcribe, understand, url
from tests.end_to_end.running_server import RunningServer
from tests.end_to_end.speech import sentence
from wire.rest import MOST_BATCH_FILES

SLOW = '{"final_latency_ms": 60000}'
HELLO = wav_file(sentence("hello"))
FILES = [{"data": encoded(HELLO), "format": "wav"}]


def rates(answer: httpx.Response) -> tuple[int, int]:
    """Limit and remaining requests; the reset lies in the window."""
    reset = int(answer.headers["x-ratelimit-reset"])
    assert time.time() - 1 <= reset <= time.time() + 61
    return int(answer.headers["x-ratelimit-limit"]), int(answer.headers["x-ratelimit-remaining"])


@pytest.mark.spec("rest-51", "rest-52", "rest-53", "rest-54")
async def test_the_default_allowances_and_their_headers(serve: Serve) -> None:
    server = serve("--log-level", "warning")
    async with httpx.AsyncClient(base_url=url(server), timeout=30) as client:
        for method, path, limit in (
            ("POST", "/transcribe/", 50),
            ("POST", "/transcribe/batch", 10),
            ("POST", "/understand", 20),
            ("GET", "/health/", 100),
        ):
            for number in range(limit):
                answer = await client.request(method, path, json={"good": "no"} if number % 2 else None)
                assert answer.status_code in (200, 422)
                assert rates(answer) == (limit, limit - number - 1)
                assert "retry-after" not in answer.headers
            answer = await client.request(method, path)
            assert str(limit) in refused(answer, 429, "RATE_LIMIT_EXCEEDED")["message"]
            assert rates(answer) == (limit, 0)
            assert 1 <= int(answer.headers["retry-after"]) <= 60
    await server.until_metric(
        lambda value: value == 4, "earmark_connections_rejected_total", surface="rest", reason="rate_limited"
    )
    assert (await ask(server, "GET", "/health")).status_code == 200, "which is everybody's here"


@pytest.mark.spec("rest-51", "rest-54")
async def test_both_forms_of_a_path_share_an_allowance_which_comes_back(serve: Serve) -> None:
    server = serve("--rate-limit-transcription", "2", "--rate-limit-window", "1")
    loop = asyncio.get_running_loop()
    began = loop.time()
    body = {"audio_file": encoded(HELLO), "format": "wav"}
    assert (await ask(server, "POST", "/transcribe", json=body)).status_code == 200
    assert (await ask(server, "POST", "/transcribe/", json=body)).status_code == 200
    third = await ask(server, "POST", "/transcribe", json=body)
    if loop.time() - began < 0.9:  # on a machine that is busy the window may have passed
        refused(third, 429, "RATE_LIMIT_EXCEEDED")
    while (answer := await ask(server, "POST", "/transcribe", json=body)).status_code == 429:
        assert loop.time() - began < 10
    assert text_of(answer) == "hello"
    assert loop.time() - began >= 0.9


@pytest.mark.spec("rest-52")
async def test_clients_are_told_apart_behind_a_trusted_proxy_only(serve: Serve) -> None:
    options = ("--rate-limit-requests", "1", "--rate-limit-window", "600")

    async def health(server: RunningServer, address: str) -> int:
        return (await ask(server, "GET", "/health/", headers={"X-Forwarded-For": address})).status_code

    trusting = serve(*options, "--trusted-proxies", "127.0.0.1")
    assert [await health(trusting, address) for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1")] == [200, 200, 429]
    plain = serve(*options)
    assert [await health(plain, address) for address in ("10.0.0.1", "10.0.0.2")] == [200, 429]


@pytest.mark.spec("rest-62")
async def test_each_port_counts_by_itself(own_server: Serve) -> None:
    server = own_server("--surface-ports", "rest=0", "--rate-limit-requests", "1", "--rate-limit-window", "600")
    async with httpx.AsyncClient() as client:
        own = f"http://127.0.0.1:{server.ports['rest']}"
        statuses = [(await client.get(f"{base}/health/")).status_code for base in (url(server), own) for _ in range(2)]
    assert statuses == [200, 429, 200, 429]


@pytest.mark.spec("rest-55")
async def test_one_request_too_many(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", SLOW, "--max-rest-requests", "2")
    first = [asyncio.create_task(transcribe(server, HELLO)), asyncio.create_task(batch(server, FILES))]
    await server.until_metric(lambda value: value == 2, "earmark_engine", figure="busy_slots")
    for answer in (await transcribe(server, HELLO), await batch(server, FILES), await understand(server, [HELLO], "?")):
        assert "2 requests" in refused(answer, 503, "MODEL_UNAVAILABLE")["message"]
        assert int(answer.headers["retry-after"]) >= 1
    assert (await ask(server, "GET", "/health/")).status_code == 200
    await server.until_metric(
        lambda value: value == 3, "earmark_connections_rejected_total", surface="rest", reason="server_at_capacity"
    )
    for task in first:
        task.cancel()
    await asyncio.gather(*first, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="rest")
    again = asyncio.create_task(transcribe(server, HELLO))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("rest-56")
async def test_bodies_of_all_requests_share_a_bound(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", SLOW, "--max-upload-mb", "1")
    large = wav_file(sentence("large") + bytes(500_000))  # two thirds of a mebibyte in base64
    first = asyncio.create_task(transcribe(server, large))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    answer = await transcribe(server, large)
    assert "large requests" in refused(answer, 503, "MODEL_UNAVAILABLE")["message"]
    assert int(answer.headers["retry-after"]) >= 1
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")
    again = asyncio.create_task(transcribe(server, large))
    await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")


@pytest.mark.spec("rest-57")
@pytest.mark.parametrize(("path", "files"), [("/transcribe/", 1), ("/transcribe/batch", 10), ("/understand", 5)])
@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_longer_than_its_files_could_make_it(
    serve: Serve, path: str, files: int, declared: bool
) -> None:
    server = serve(*NO_RATES, "--max-file-size-mb", "0.1")
    most = files * (round(0.1 * 2**20) * 4 // 3 + 65_536) + 65_536
    content = b'{"audio_file": "' + b"A" * most + b'"}'

    async def piecewise() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 65_536):
            yield content[at : at + 65_536]

    answer = await ask(server, "POST", path, content=content if declared else piecewise())
    assert str(most) in refused(answer, 413, "AUDIO_PROCESSING_ERROR")["message"]


@pytest.mark.spec("rest-57")
async def test_a_full_batch_of_the_largest_files_fits(serve: Serve) -> None:
    server = serve(*NO_RATES, "--max-file-size-mb", "0.1")
    largest = wav_file(bytes((round(0.1 * 2**20) - 44) // 2 * 2))
    answer = await batch(server, [{"data": encoded(largest), "format": "wav"}] * MOST_BATCH_FILES)
    assert [result["success"] for result in answer.json()["results"]] == [True] * MOST_BATCH_FILES


HEAD = "POST /transcribe/ HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n"


@pytest.mark.spec("rest-58")
@pytest.mark.parametrize("dripping", [False, True])
async def test_an_upload_that_stops_or_drips_is_given_up(serve: Serve, dripping: bool) -> None:
    server = serve(*NO_RATES, "--upload-idle-s", "0.5")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD.encode() + b'{"audio_file": "')
    answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    async with asyncio.timeout(10):
        while not (await asyncio.wait({answer}, timeout=0.02))[0]:
            if dripping:
                writer.write(b"A")
        assert (await answer).startswith(b"HTTP/1.1 408")
        assert b'"HTTP_408"' in await reader.read(), "and then the end"
    writer.close()
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="rest")


@pytest.mark.spec("rest-58")
async def test_an_upload_that_takes_its_time_is_taken(serve: Serve) -> None:
    server = serve(*NO_RATES, "--upload-idle-s", "0.5")
    content = json.dumps({"audio_file": encoded(wav_file(sentence("slow") + bytes(120_000))), "format": "wav"}).encode()
    pieces = [content[at : at + 8000] for at in range(0, len(content), 8000)]

    async def slowly() -> AsyncIterator[bytes]:
        for piece in pieces:  # 80 kB a second at most, longer than it may be idle
            await asyncio.wait({asyncio.get_running_loop().create_future()}, timeout=0.1)
            yield piece

    headers = {"Content-Type": "application/json"}
    assert text_of(await ask(server, "POST", "/transcribe/", content=slowly(), headers=headers)) == "slow"


@pytest.mark.spec("rest-10")
async def test_a_client_that_leaves_in_the_midst_of_its_upload_leaves_nothing(serve: Serve) -> None:
    server = serve(*NO_RATES, "--script", SLOW)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD.encode() + b'{"audio_file": "' + b"A" * 1000)
    await server.until_metric(lambda value: value == 1, "earmark_connections_active", surface="rest")
    writer.close()
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="rest")


@pytest.mark.spec("rest-60")
async def test_unlimited_switches_every_limit_off(serve: Serve) -> None:
    server = serve(
        *("--rate-limit-requests", "1", "--rate-limit-transcription", "1", "--rate-limit-batch", "1"),
        *("--max-rest-requests", "1", "--max-file-size-mb", "0.001", "--max-audio-duration-seconds", "0.1"),
        *("--max-upload-mb", "0.001", "--processing-timeout-s", "0.001", "--unlimited"),
        *("--script", '{"final_latency_ms": 50}'),
    )
    long = audio_file(sentence("hello") + bytes(320_000), "flac")
    answers = await asyncio.gather(*(transcribe(server, long) for _ in range(4)))
    assert [text_of(answer) for answer in answers] == ["hello"] * 4
    assert all("x-ratelimit-limit" not in answer.headers for answer in answers)
    assert [(await ask(server, "GET", "/health/")).status_code for _ in range(3)] == [200] * 3
    assert [(await batch(server, FILES)).status_code for _ in range(3)] == [200] * 3


@pytest.mark.spec("rest-60")
async def test_a_limit_of_zero_is_none(serve: Serve) -> None:
    server = serve(*NO_RATES, "--max-rest-requests", "off", "--max-audio-duration-seconds", "0")
    assert text_of(await transcribe(server, wav_file(sentence("long") + bytes(32_000 * 1801)))) == "long"
    for _ in range(60):
        assert "x-ratelimit-limit" not in (await transcribe(server, HELLO)).headers


@pytest.mark.spec("rest-23")
async def test_thirty_minutes_pass_and_no_second_more(serve: Serve) -> None:
    server = serve(*NO_RATES)
    silence = bytes(32_000 * 1800)
    said = (await transcribe(server, audio_file(silence, "flac"), "flac")).json()
    assert (said["transcription"], said["audio_duration_seconds"]) == ("", 1800)
    answer = await transcribe(server, audio_file(silence + bytes(3200), "flac"), "flac")
    assert "1800 s" in refused(answer, 400, "AUDIO_PROCESSING_ERROR")["message"]


@pytest.mark.spec("rest-23")
async def test_a_file_near_the_largest_goes_through(serve: Serve) -> None:
    server = serve(*NO_RATES)
    large = wav_file(sentence("hello") + bytes(48_000 * 2 * 2 * 500), 48_000, 2)  # 96 MB
    answer = await transcribe(server, large)
    assert answer.status_code == 200, answer.text
    assert answer.json()["audio_duration_seconds"] == pytest.approx(500, abs=0.2)
