"""OpenAI's transcription sessions over real sockets: through OpenAI's own Python client, and frame by frame."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import soxr
from openai import AsyncOpenAI
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from harness.audio import load as load_audio
from harness.corpus import load
from tests.end_to_end.clients import RECEIVE_SECONDS, Client, Frame, chunks, encoded, realtime
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import sentence

TRANSCRIPTION = "conversation.item.input_audio_transcription"
TWO_WORDS = '{"words": [{"text": "first", "start": 0.5, "end": 0.9}, {"text": "second", "start": 1.0, "end": 1.6}]}'
VAD = {"type": "server_vad", "threshold": 0.5, "prefix_padding_ms": 100, "silence_duration_ms": 500}


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


@pytest.fixture(scope="module")
def speech() -> bytes:
    """About four seconds of one sentence, 16 kHz, with a second of silence after it."""
    utterance = next(iter(load("spoken-en").utterances))
    return load_audio(utterance) + bytes(32_000)


class Transcription(Client):
    """A transcription session."""

    async def send(self, kind: str, **fields: Any) -> None:
        await self.send_raw(json.dumps({"type": kind, **fields}))

    async def update(self, turn_detection: Any = None, rate: int = 16_000, **transcription: Any) -> Frame:
        """Set the session up; the session object of the answer."""
        heard = {"format": {"type": "audio/pcm", "rate": rate}, "transcription": transcription}
        heard["turn_detection"] = turn_detection
        await self.send("session.update", session={"type": "transcription", "audio": {"input": heard}})
        answer = await self.receive()
        assert answer["type"] == "session.updated", answer
        session: Frame = answer["session"]
        return session

    async def append(self, pcm: bytes, size: int = 64_000) -> None:
        for chunk in chunks(pcm, size):
            await self.send("input_audio_buffer.append", audio=encoded(chunk))

    async def error(self) -> Frame:
        """The next frame, which must be an error in OpenAI's shape; what is under ``error``."""
        frame = await self.receive()
        assert set(frame) == {"type", "event_id", "error"}, frame
        assert frame["type"] == "error"
        error: Frame = frame["error"]
        assert set(error) == {"type", "code", "message", "param", "event_id"}
        assert error["message"]
        return error


@asynccontextmanager
async def session(server: RunningServer, query: str = "?intent=transcription") -> AsyncIterator[Transcription]:
    """A session whose greeting has been read."""
    async with connect(server.ws(f"/v1/realtime{query}"), open_timeout=RECEIVE_SECONDS, max_queue=None) as socket:
        client = Transcription(socket)
        greeting = await client.receive()
        assert greeting["type"] == "session.created"
        yield client


def transcript(frames: list[Frame]) -> str:
    """The text of one item, whose deltas must add up to it."""
    assert frames[-1]["type"] == f"{TRANSCRIPTION}.completed", frames[-1]
    item = frames[-1]["item_id"]
    deltas = [f["delta"] for f in frames if f["type"] == f"{TRANSCRIPTION}.delta" and f["item_id"] == item]
    text: str = frames[-1]["transcript"]
    assert "".join(deltas) == text
    return text


# ---- the official client


@pytest.mark.spec("openai-01", "openai-02", "openai-05", "openai-06")
async def test_the_official_client_transcribes_a_committed_piece(server: RunningServer) -> None:
    client = AsyncOpenAI(api_key="anything", base_url=f"http://127.0.0.1:{server.port}/v1")
    async with client, client.realtime.connect(extra_query={"intent": "transcription"}) as connection:
        heard: Any = {
            "format": {"type": "audio/pcm", "rate": 16_000},
            "transcription": {"model": "gpt-4o-transcribe", "language": "en"},
            "turn_detection": None,
        }
        wanted: Any = {"type": "transcription", "audio": {"input": heard}}
        await connection.session.update(session=wanted)
        await connection.input_audio_buffer.append(audio=encoded(sentence("one", "two", "three")))
        await connection.input_audio_buffer.commit()
        kinds, said = [], ""
        async with asyncio.timeout(RECEIVE_SECONDS):
            async for event in connection:
                kinds.append(event.type)
                if event.type == "conversation.item.input_audio_transcription.delta":
                    said += event.delta or ""
                if event.type == "conversation.item.input_audio_transcription.completed":
                    assert event.transcript == said == "one two three"
                    assert event.usage.type == "tokens"
                    assert event.usage.total_tokens == event.usage.input_tokens + event.usage.output_tokens
                    break
        assert kinds[:2] == ["session.created", "session.updated"]
        assert "input_audio_buffer.committed" in kinds
        assert "conversation.item.added" in kinds


@pytest.mark.spec("openai-07")
async def test_text_comes_before_the_commit(server: RunningServer) -> None:
    async with session(server) as client:
        await client.update()
        await client.append(sentence("early", "words") + bytes(64_000))
        frames = [await client.receive(), await client.receive()]
        assert [frame["type"] for frame in frames] == [f"{TRANSCRIPTION}.delta"] * 2
        await client.send("input_audio_buffer.commit")
        frames += await client.receive_until(f"{TRANSCRIPTION}.completed")
        assert transcript(frames) == "early words"
        assert len({frame["item_id"] for frame in frames if "item_id" in frame}) == 1


@pytest.mark.spec("openai-08")
async def test_items_follow_each_other_and_are_told_apart(server: RunningServer) -> None:
    async with session(server) as client:
        await client.update()
        ids: list[str] = []
        for text in ("red", "green", "blue"):
            await client.append(sentence(text, text))
            await client.send("input_audio_buffer.commit")
            frames = await client.receive_until(f"{TRANSCRIPTION}.completed")
            assert transcript(frames) == f"{text} {text}"
            committed = next(frame for frame in frames if frame["type"] == "input_audio_buffer.committed")
            assert committed["previous_item_id"] == (ids[-1] if ids else None)
            ids.append(committed["item_id"])
        assert len(set(ids)) == 3


@pytest.mark.spec("openai-08")
async def test_pieces_committed_in_a_burst_are_all_transcribed_in_order(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 200}')
    async with session(server) as client:
        await client.update()
        for number in range(5):
            await client.append(sentence(f"word{number}"))
            await client.send("input_audio_buffer.commit")
        texts = [transcript(await client.receive_until(f"{TRANSCRIPTION}.completed")) for _ in range(5)]
        assert texts == [f"word{number}" for number in range(5)]


@pytest.mark.spec("openai-03")
async def test_24_khz_is_the_default_and_is_resampled(serve: Serve, speech: bytes) -> None:
    server = serve("--script", TWO_WORDS)
    samples = np.frombuffer(speech, "<i2")
    high = soxr.resample(samples, 16_000, 24_000).astype("<i2").tobytes()
    async with session(server) as client:
        await client.send(
            "session.update", session={"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        )
        answer = await client.receive()
        assert answer["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24_000}
        await client.append(high, size=4_800)
        await client.send("input_audio_buffer.commit")
        frames = await client.receive_until(f"{TRANSCRIPTION}.completed")
        assert transcript(frames) == "first second"
        assert frames[-1]["audio_seconds"] == pytest.approx(len(samples) / 16_000, abs=0.001)


@pytest.mark.spec("openai-09")
async def test_server_vad_cuts_pieces_by_itself_and_a_commit_finds_nothing_left(serve: Serve, speech: bytes) -> None:
    server = serve("--script", TWO_WORDS)
    async with session(server) as client:
        in_force = await client.update(turn_detection=VAD)
        assert in_force["audio"]["input"]["turn_detection"] == VAD
        await client.append(speech + speech, size=3_200)
        await client.send("input_audio_buffer.commit", event_id="mine")
        await client.send("input_audio_buffer.clear")
        frames = await client.receive_until("input_audio_buffer.cleared")
        kinds = [frame["type"] for frame in frames if not frame["type"].endswith(".delta")]
        piece = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            f"{TRANSCRIPTION}.completed",
        ]
        assert kinds == [*piece, *piece, "error", "input_audio_buffer.cleared"]
        completed = [frame for frame in frames if frame["type"] == f"{TRANSCRIPTION}.completed"]
        assert [frame["transcript"] for frame in completed] == ["first second"] * 2
        started = [frame["audio_start_ms"] for frame in frames if "audio_start_ms" in frame]
        stopped = [frame["audio_end_ms"] for frame in frames if "audio_end_ms" in frame]
        once_ms = len(speech) // 32
        assert started[0] < 500  # the sentence begins a quarter of a second in
        assert started[1] - started[0] == pytest.approx(once_ms, abs=150)
        assert stopped[1] - stopped[0] == pytest.approx(once_ms, abs=150)
        error = frames[-2]["error"]
        assert (error["code"], error["event_id"]) == ("input_audio_buffer_commit_empty", "mine")


@pytest.mark.spec("openai-10")
async def test_what_is_cleared_is_not_transcribed_and_harms_nothing_else(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 200}')
    async with session(server) as client:
        await client.update()
        await client.append(sentence("kept"))
        await client.send("input_audio_buffer.commit")
        await client.append(sentence("thrown", "away"))
        await client.send("input_audio_buffer.clear")
        await client.append(sentence("also"))
        await client.send("input_audio_buffer.commit")
        first = await client.receive_until(f"{TRANSCRIPTION}.completed")
        assert transcript(first) == "kept"
        assert transcript(await client.receive_until(f"{TRANSCRIPTION}.completed")) == "also"
    await server.until_idle()


@pytest.mark.spec("openai-04")
async def test_the_older_flat_names_are_understood(server: RunningServer) -> None:
    async with session(server) as client:
        await client.send(
            "transcription_session.update",
            session={
                "input_audio_format": "pcm16",
                "input_audio_transcription": {"model": "scripted", "language": "en"},
                "turn_detection": None,
            },
        )
        answer = await client.receive()
        assert answer["type"] == "transcription_session.updated"
        assert answer["session"]["input_audio_format"] == "pcm16"
        assert answer["session"]["input_audio_transcription"]["model"] == "scripted"
        await client.append(bytes(9_600))  # 0.2 s
        await client.send("input_audio_buffer.commit")
        frames = await client.receive_until(f"{TRANSCRIPTION}.completed")
        assert "conversation.item.created" in [frame["type"] for frame in frames]


@pytest.mark.spec("openai-02")
async def test_without_the_query_the_first_event_tells_the_dialects_apart(server: RunningServer) -> None:
    async with session(server, "") as client:
        await client.update()
        await client.append(sentence("nested"))
        await client.send("input_audio_buffer.commit")
        assert transcript(await client.receive_until(f"{TRANSCRIPTION}.completed")) == "nested"
    async with realtime(server) as plain:
        await plain.start()
        await plain.append(sentence("flat"))
        await plain.finish()
        assert (await plain.receive_until("transcription.done"))[-1]["text"] == "flat"


@pytest.mark.spec("openai-11")
@pytest.mark.parametrize(
    ("word", "delay_ms"), [("minimal", 160), ("low", 240), ("medium", 480), ("high", 960), ("xhigh", 2400)]
)
async def test_delays_in_words(server: RunningServer, word: str, delay_ms: int) -> None:
    async with session(server) as client:
        in_force = await client.update(delay=word)
        assert in_force["audio"]["input"]["transcription"]["delay_ms"] == delay_ms
        await client.append(sentence("slow"))
        await client.send("input_audio_buffer.commit")
        frames = await client.receive_until(f"{TRANSCRIPTION}.completed")
        assert frames[-1]["delay_ms"] == delay_ms
        assert frames[-1]["words"] == [{"text": "slow", "start": 0.0, "end": 0.3}]


# ---- errors


@pytest.mark.spec("openai-20", "openai-21", "openai-22", "openai-23", "openai-24", "openai-25", "openai-26")
@pytest.mark.parametrize(
    ("frame", "code", "param"),
    [
        ("{", "invalid_json", None),
        ("[1]", "invalid_json", None),
        (b"\x00\x01", "invalid_json", None),
        ('{"no": "type"}', "missing_required_parameter", "type"),
        ('{"type": "response.create"}', "invalid_event_type", "type"),
        ('{"type": "input_audio_buffer.append"}', "missing_required_parameter", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": 7}', "invalid_type", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "%%%"}', "invalid_value", "audio"),
        ('{"type": "input_audio_buffer.append", "audio": "AAAA"}', "invalid_value", "audio"),  # three bytes
        ('{"type": "session.update"}', "missing_required_parameter", "session"),
        ('{"type": "session.update", "session": {"type": "realtime"}}', "invalid_value", "session.type"),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcmu"}}}}}',
            "invalid_value",
            "session.audio.input.format",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 8000}}}}}',
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"transcription": {"model": "nobody"}}}}}',
            "model_not_found",
            "model",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"transcription": {"language": "xx"}}}}}',
            "invalid_value",
            "language",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"type": "psychic"}}}}}',
            "invalid_value",
            "session.audio.input.turn_detection.type",
        ),
        (
            '{"type": "session.update", "session": {"audio": {"input": {"turn_detection": {"threshold": 7}}}}}',
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        ('{"type": "input_audio_buffer.commit", "event_id": "e1"}', "input_audio_buffer_commit_empty", None),
    ],
)
async def test_errors_name_field_and_event_and_leave_the_session_open(
    server: RunningServer, frame: str | bytes, code: str | None, param: str | None
) -> None:
    async with session(server) as client:
        await client.send_raw(frame)
        if code is not None:
            error = await client.error()
            assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param)
            assert error["event_id"] == ("e1" if b"e1" in frame.encode() else None) if isinstance(frame, str) else True
        await client.update()
        await client.append(sentence("still", "here"))
        await client.send("input_audio_buffer.commit")
        assert transcript(await client.receive_until(f"{TRANSCRIPTION}.completed")).endswith("still here")


@pytest.mark.spec("openai-27")
async def test_an_engine_that_fails_fails_the_item_and_not_the_session(serve: Serve) -> None:
    server = serve("--script", '{"faults": [{"at": 0.5, "message": "tripped"}]}')
    async with session(server) as client:
        await client.update()
        await client.append(sentence("one", "two", "three"))
        frames = await client.receive_until(f"{TRANSCRIPTION}.failed")
        assert frames[-1]["error"] == {
            "type": "transcription_error",
            "code": "processing_error",
            "message": "tripped",
            "param": None,
        }
        await client.append(sentence("short"))
        await client.send("input_audio_buffer.commit")
        assert transcript(await client.receive_until(f"{TRANSCRIPTION}.completed")) == "short"


@pytest.mark.spec("openai-28")
async def test_without_voice_detection_turn_detection_is_refused_and_off(serve: Serve) -> None:
    server = serve("--no-vad")
    async with session(server) as client:
        await client.send("session.update", session={"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
        assert (await client.error())["param"] == "turn_detection"
        assert (await client.update())["audio"]["input"]["turn_detection"] is None


@pytest.mark.spec("openai-29")
async def test_a_required_key_is_asked_for_in_the_handshake(serve: Serve) -> None:
    server = serve("--require-key")
    url = server.ws("/v1/realtime?intent=transcription")
    with pytest.raises(InvalidStatus) as refused:
        await connect(url)
    assert refused.value.response.status_code == 401
    assert json.loads(refused.value.response.body)["error"]["code"] == "invalid_api_key"
    async with connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as socket:
        assert json.loads(await socket.recv())["type"] == "session.created"


@pytest.mark.spec("openai-69")
async def test_a_browser_offers_its_key_as_a_subprotocol(serve: Serve) -> None:
    server = serve("--require-key")
    url = server.ws("/v1/realtime?intent=transcription")
    async with connect(url, subprotocols=_offered(KEY)) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(await socket.recv())["type"] == "session.created"
    for path, key in (("/v1/realtime?intent=transcription", "wrong"), ("/v1/realtime", KEY)):
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.ws(path), subprotocols=_offered(key))
        assert refused.value.response.status_code == 401


def _offered(key: str) -> list[Subprotocol]:
    return [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{key}")]


@pytest.mark.spec("openai-30")
async def test_the_surface_can_be_off_or_have_a_port_of_its_own(own_server: Serve) -> None:
    server = own_server("--surfaces", "yap", "--surface-ports", "openai=0")
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.ws("/v1/realtime?intent=transcription"))
    assert refused.value.response.status_code in (403, 404)
    async with connect(f"ws://127.0.0.1:{server.ports['openai']}/v1/realtime?intent=transcription") as socket:
        assert json.loads(await socket.recv())["type"] == "session.created"


def test_base64_of_the_tests_is_what_it_says() -> None:
    assert len(base64.b64decode("AAA=")) == 2
    assert len(base64.b64decode("AAAA")) == 3
