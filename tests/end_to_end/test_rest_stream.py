"""``/stream/transcribe`` over real sockets: files, their continuations, errors that leave it open, and its end."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.audio_files import FORMATS, audio_file, wav_file
from tests.end_to_end.clients import Client, chunks, encoded
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import distinct_words, sentence, spoken

SLOW = '{"final_latency_ms": 60000}'
RESULT = {"chunk_id", "transcription", "is_final", "confidence", "processing_time_ms"}


class Chunks(Client):
    """Speaks the chunk protocol."""

    async def send(self, number: int, data: bytes, format: str = "wav", **more: Any) -> None:
        fields = {"format": format, "chunk_id": number, "audio_data": encoded(data), **more}
        await self.send_raw(json.dumps(fields))

    async def text(self, number: int, *, is_final: bool = False) -> str:
        """The next answer, which must be that of a chunk that went well."""
        answer = await self.receive()
        assert set(answer) == RESULT, answer
        assert (answer["chunk_id"], answer["is_final"], answer["confidence"]) == (number, is_final, None)
        assert type(answer["processing_time_ms"]) is int
        text: str = answer["transcription"]
        return text

    async def say(self, number: int, data: bytes, format: str = "wav", **more: Any) -> str:
        await self.send(number, data, format, **more)
        return await self.text(number)

    async def error(self, code: str, chunk_id: int | None = None) -> str:
        """The message of the next answer, which must be this error."""
        answer = await self.receive()
        assert set(answer) == {"error"}, answer
        error = answer["error"]
        assert error.get("chunk_id") == chunk_id
        assert set(error) - {"chunk_id"} == {"code", "message"}
        assert error["code"] == code, error
        message: str = error["message"]
        assert message
        return message


@asynccontextmanager
async def streaming(
    server: RunningServer, path: str = "/stream/transcribe", headers: dict[str, str] | None = None
) -> AsyncIterator[Chunks]:
    async with connect(server.ws(path), open_timeout=15, additional_headers=headers) as socket:
        yield Chunks(socket)


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


@pytest.mark.spec("rest-03", "rest-34", "rest-35")
@pytest.mark.parametrize("path", ["/stream/transcribe", "/stream/transcribe/"])
async def test_chunks_are_answered_in_order_until_the_final_one(server: RunningServer, path: str) -> None:
    async with streaming(server, path) as client:
        for number in range(7):  # all sent before the first answer is read
            await client.send(number, wav_file(sentence(f"word{number}")), language="en")
        await client.send(-5, wav_file(sentence("last")), is_final=True)
        assert [await client.text(number) for number in range(7)] == [f"word{number}" for number in range(7)]
        assert await client.text(-5, is_final=True) == "last"
        assert await client.closed() == ([], 1000, "")


@pytest.mark.spec("rest-36")
@pytest.mark.parametrize("format", ["wav", "flac"])
async def test_chunks_that_are_files_by_themselves(server: RunningServer, format: str) -> None:
    async with streaming(server) as client:
        for number in range(3):
            file = audio_file(sentence(f"one{number}", f"two{number}"), format)
            assert await client.say(number, file, format) == f"one{number} two{number}"


@pytest.mark.spec("rest-36")
async def test_raw_samples_continue_a_wav_file_wherever_it_is_cut(server: RunningServer) -> None:
    texts = distinct_words(30, seed=1)
    pcm, words = spoken(texts, seed=1)
    pauses = [
        0,
        *(round((a.end + b.start) / 2 * 16_000) * 2 for a, b in zip(words[4::5], words[5::5], strict=False)),
        len(pcm),
    ]
    parts = [pcm[a:b] for a, b in itertools.pairwise(pauses)]
    async with streaming(server) as client:
        said = [await client.say(0, wav_file(parts[0]))]
        for number, part in enumerate(parts[1:], 1):
            said.append(await client.say(number, part))
    assert " ".join(said).split() == texts


@pytest.mark.spec("rest-36")
async def test_a_wav_file_may_be_cut_inside_a_sample(server: RunningServer) -> None:
    file = wav_file(sentence("cut", "within"))
    async with streaming(server) as client:
        assert await client.say(1, file[: 44 + 10_001]) == "cut"
        assert await client.say(2, file[44 + 10_001 :]) == "within"


@pytest.mark.spec("rest-36")
async def test_a_continued_flac_file_is_heard_on_from_where_it_was(server: RunningServer) -> None:
    texts = distinct_words(24, seed=2)
    pcm, _ = spoken(texts, seed=2, longest_pause_seconds=1.0)
    file = audio_file(pcm, "flac")
    async with streaming(server) as client:
        said = [await client.say(n, piece, "flac") for n, piece in enumerate(chunks(file, len(file) // 3 + 1))]
    heard = " ".join(said).split()
    assert [text for text in texts if text in heard] == heard, "in order, none twice"
    assert len(heard) >= len(texts) - 2 * 2, "but those that a cut went through"


@pytest.mark.spec("rest-36")
@pytest.mark.parametrize("format", ["mp3", "ogg", "m4a"])
async def test_lossy_files_are_continued(serve: Serve, format: str) -> None:
    words = [{"text": f"w{n}", "start": n / 10, "end": n / 10 + 0.05} for n in range(100)]
    server = serve("--script", json.dumps({"words": words}))  # says how much audio it was given
    file = audio_file(bytes(32_000 * 6), format, fragmented=format == "m4a")
    async with streaming(server) as client:
        said = [await client.say(n, piece, format) for n, piece in enumerate(chunks(file, len(file) // 3 + 1))]
    counts = [len(text.split()) for text in said]
    assert 57 <= sum(counts) <= 63, counts  # six seconds, and an encoder's padding
    assert max(counts) < 50


@pytest.mark.spec("rest-36")
async def test_what_another_format_began_is_not_continued(server: RunningServer) -> None:
    async with streaming(server) as client:
        assert await client.say(1, wav_file(sentence("one"))) == "one"
        await client.send(2, sentence("two"), "mp3")
        assert "no audio" in await client.error("PROCESSING_ERROR", 2)
        assert await client.say(3, sentence("three")) == "three"


@pytest.mark.spec("rest-36", "rest-38")
async def test_a_file_that_is_not_taken_is_no_continuation(server: RunningServer) -> None:
    async with streaming(server) as client:
        for format in ("wav", "flac"):
            assert await client.say(1, audio_file(sentence("one"), format), format) == "one"
            await client.send(2, audio_file(bytes(192_000), format, 96_000), format)
            assert "96000 Hz" in await client.error("PROCESSING_ERROR", 2)


@pytest.mark.spec("rest-36")
async def test_a_first_chunk_continues_nothing(server: RunningServer) -> None:
    async with streaming(server) as client:
        await client.send(1, sentence("raw"))
        await client.error("PROCESSING_ERROR", 1)


@pytest.mark.spec("rest-36")
async def test_a_continued_file_has_a_largest_size_and_a_continued_wav_has_none(serve: Serve) -> None:
    server = serve("--max-chunk-size-mb", "0.04")
    most = round(0.04 * 2**20)
    flac = audio_file(b"".join(sentence(f"w{n}") for n in range(200)), "flac")
    assert len(flac) > most
    async with streaming(server) as client:
        await client.send(1, flac[:30_000], "flac")
        assert (await client.receive())["chunk_id"] == 1
        await client.send(2, flac[30_000:60_000], "flac")
        assert f"{most} bytes: begin a new file" in await client.error("PROCESSING_ERROR", 2)
        wav = wav_file(sentence("first"))
        assert await client.say(3, wav) == "first"
        for number in range(4, 14):
            assert await client.say(number, sentence("more", "words")) == "more words"


@pytest.mark.spec("rest-37")
async def test_the_beginning_of_a_file_without_sound_is_answered_with_nothing(server: RunningServer) -> None:
    file = wav_file(sentence("now", "sound"))
    async with streaming(server) as client:
        assert await client.say(1, file[:44]) == ""
        assert await client.say(2, file[44:]) == "now sound"


@pytest.mark.spec("rest-38")
@pytest.mark.parametrize(
    ("frame", "code", "chunk_id", "says"),
    [
        ("{", "INVALID_JSON", None, "JSON"),
        ("", "INVALID_JSON", None, "JSON"),
        (b"\x00\x01binary", "INVALID_JSON", None, "JSON"),
        ("[" * 100_000, "INVALID_JSON", None, "JSON"),
        ('"\\ud800"', "INVALID_JSON", None, "JSON"),
        ("[]", "PROCESSING_ERROR", None, "object"),
        ("null", "PROCESSING_ERROR", None, "object"),
        ("{}", "PROCESSING_ERROR", None, "chunk_id"),
        ({"format": "wma", "chunk_id": 9, "audio_data": ""}, "INVALID_AUDIO_FORMAT", 9, "wma"),
        ({"format": "WAV", "chunk_id": 9, "audio_data": ""}, "INVALID_AUDIO_FORMAT", 9, "WAV"),
        ({"format": None, "chunk_id": 9, "audio_data": ""}, "INVALID_AUDIO_FORMAT", 9, "None"),
        ({"format": ["wav"], "chunk_id": 9, "audio_data": ""}, "INVALID_AUDIO_FORMAT", 9, "wav"),
        ({"chunk_id": 9, "audio_data": ""}, "PROCESSING_ERROR", 9, "format"),
        ({"format": "wav", "audio_data": ""}, "PROCESSING_ERROR", None, "chunk_id"),
        ({"format": "wav", "chunk_id": "x", "audio_data": ""}, "PROCESSING_ERROR", None, "chunk_id"),
        ({"format": "wav", "chunk_id": 9}, "PROCESSING_ERROR", 9, "audio_data"),
        ({"format": "wav", "chunk_id": 9, "audio_data": 7}, "PROCESSING_ERROR", 9, "audio_data"),
        ({"format": "wav", "chunk_id": 9, "audio_data": "!!"}, "PROCESSING_ERROR", 9, "base64"),
        ({"format": "wav", "chunk_id": 9, "audio_data": ""}, "PROCESSING_ERROR", 9, "empty"),
        ({"format": "mp3", "chunk_id": 9, "audio_data": encoded(b"text")}, "PROCESSING_ERROR", 9, "no audio"),
        ({"format": "wav", "chunk_id": 9, "audio_data": "", "is_final": "?"}, "PROCESSING_ERROR", 9, "is_final"),
        ({"format": "wav", "chunk_id": 9, "audio_data": "", "language": "xx"}, "PROCESSING_ERROR", 9, "language"),
    ],
)
async def test_errors_leave_the_stream_open(
    server: RunningServer, frame: Any, code: str, chunk_id: int | None, says: str
) -> None:
    async with streaming(server) as client:
        await client.send_raw(json.dumps(frame) if isinstance(frame, dict) else frame)
        assert says in await client.error(code, chunk_id)
        assert await client.say(1, wav_file(sentence("still", "here"))) == "still here"


@pytest.mark.spec("rest-38")
async def test_an_engine_that_fails_or_takes_too_long_is_an_error_of_the_chunk(serve: Serve) -> None:
    fails = serve("--script", '{"faults": [{"at": 0.5, "message": "tripped"}]}')
    async with streaming(fails) as client:
        await client.send(1, wav_file(bytes(32_000)))
        assert "tripped" in await client.error("PROCESSING_ERROR", 1)
        assert await client.say(2, wav_file(bytes(6_400))) == ""
    slow = serve("--script", SLOW, "--processing-timeout-s", "0.3")
    async with streaming(slow) as client:
        await client.send(1, wav_file(sentence("slow")))
        assert "0.3 s" in await client.error("PROCESSING_ERROR", 1)


@pytest.mark.spec("rest-39")
async def test_a_final_chunk_that_fails_does_not_end_the_stream(server: RunningServer) -> None:
    async with streaming(server) as client:
        await client.send(1, b"no audio", is_final=True)
        await client.error("PROCESSING_ERROR", 1)
        await client.send(2, wav_file(sentence("end")), is_final=True)
        assert await client.text(2, is_final=True) == "end"
        assert (await client.closed())[1] == 1000


@pytest.mark.spec("rest-40")
async def test_a_chunk_of_more_than_ten_mebibytes(server: RunningServer) -> None:
    exact = wav_file(bytes((10 << 20) - 44))
    async with streaming(server) as client:
        assert await client.say(1, exact) == ""
        await client.send(2, exact + b"xx")
        assert "at most 10485760" in await client.error("PROCESSING_ERROR", 2)
        assert await client.say(3, wav_file(sentence("open"))) == "open"


@pytest.mark.spec("rest-41")
async def test_a_stream_too_many(serve: Serve) -> None:
    server = serve("--max-rest-streams", "1")
    async with streaming(server) as first:
        assert await first.say(1, wav_file(sentence("in"))) == "in"
        async with streaming(server) as second:
            message = await second.error("MODEL_UNAVAILABLE")
            assert await second.closed() == ([], 1011, message)
        await server.until_metric(
            lambda value: value == 1,
            "earmark_connections_rejected_total",
            surface="rest",
            reason="server_at_capacity",
        )
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="rest")
    async with streaming(server) as third:
        assert await third.say(1, wav_file(sentence("free"))) == "free"


@pytest.mark.spec("rest-42")
async def test_no_greeting_no_idle_limit_and_no_rate(serve: Serve) -> None:
    server = serve("--rate-limit-transcription", "1", "--idle-timeout-s", "0.2", "--rate-limit-window", "600")
    async with streaming(server) as client:
        with pytest.raises(TimeoutError):  # longer than others may idle
            await client.receive(0.6)
        for number in range(20):
            assert await client.say(number, wav_file(sentence("again"))) == "again"


@pytest.mark.spec("rest-10")
async def test_a_client_that_leaves_frees_the_engine(serve: Serve) -> None:
    server = serve("--script", SLOW)
    async with streaming(server) as client:
        for number in range(3):
            await client.send(number, wav_file(sentence("never", "answered")))
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    await server.until_metric(lambda value: value == 0, "earmark_engine", figure="busy_slots")
    await server.until_metric(lambda value: value == 0, "earmark_connections_active", surface="rest")


@pytest.mark.spec("rest-41", "rest-43")
async def test_a_server_that_ends_answers_chunks_that_came(own_server: Serve) -> None:
    server = own_server("--script", '{"final_latency_ms": 800}')
    async with streaming(server) as client:
        await client.send(1, wav_file(sentence("one")))
        await client.send(2, wav_file(sentence("two")))
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
        server.signal(signal.SIGTERM)
        while (await asyncio.to_thread(server.get, "/healthz"))[0] == 200:
            pass
        async with streaming(server) as late:
            assert "shutting down" in await late.error("MODEL_UNAVAILABLE")
            assert (await late.closed())[1] == 1011
        assert await client.text(1) == "one"
        assert await client.text(2) == "two"
        assert (await client.closed())[1:] == (1012, "server is shutting down")
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("rest-06")
async def test_a_required_key_is_asked_for_in_the_handshake(serve: Serve) -> None:
    server = serve("--require-key")
    with pytest.raises(InvalidStatus, match="401"):
        async with streaming(server):
            pass
    async with streaming(server, headers={"Authorization": f"Bearer {KEY}"}) as client:
        assert await client.say(1, wav_file(sentence("in"))) == "in"


@pytest.mark.spec("rest-36")
async def test_every_format_stands_by_itself(serve: Serve) -> None:
    server = serve("--script", '{"words": [{"text": "known", "start": 0.1, "end": 0.4}]}')
    async with streaming(server) as client:
        for number, format in enumerate([*FORMATS, *FORMATS]):
            assert await client.say(number, audio_file(bytes(48_000), format), format) == "known"


async def test_streams_do_not_mix(server: RunningServer) -> None:
    async def one(seed: int) -> None:
        texts = distinct_words(12, seed)
        async with streaming(server) as client:
            said = [await client.say(n, wav_file(sentence(*texts[n : n + 3]))) for n in range(0, 12, 3)]
        assert " ".join(said).split() == texts

    await asyncio.gather(*(one(seed) for seed in range(8)))
