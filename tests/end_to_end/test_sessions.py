"""Conversational sessions, whole: creating, talking, texts, settings, deleting, against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import subprocess
import time
import uuid
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soxr
from websockets.asyncio.client import connect

from tests.chat_backend import Backend, chat_backend
from tests.end_to_end.clients import RECEIVE_SECONDS, new_session, talk
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer, clean_environment, command
from tests.end_to_end.speech import random_words, sentence, spoken, voice, voiced

OPEN = ("--sessions-create-per-minute", "off", "--sessions-connect-per-minute", "off")
"""Tests come from one address."""

FAST = (*OPEN, "--sessions-audio-bytes-per-second", "off")
SILENCE = bytes(32_000)  # 1 s


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve(*FAST)


@pytest.fixture
def backend() -> Iterator[Backend]:
    with chat_backend() as backend:
        yield backend


def chat(backend: Backend) -> tuple[str, ...]:
    """Options of a server that asks this one."""
    return ("--chat-engine", "remote", "--chat-url", backend.url)


def asked(backend: Backend) -> list[dict[str, Any]]:
    """The questions that the backend was sent."""
    return [json.loads(body) for path, _, body in backend.requests if path == "/v1/chat/completions"]


def reply(text: str) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}


# ---- over HTTP


@pytest.mark.spec("sessions-02")
def test_a_session_is_created(server: RunningServer) -> None:
    status, body, _ = server.request("POST", "/session/create")
    created = json.loads(body)
    assert status == 200
    assert set(created) == {"session_id", "status", "websocket_url"}
    assert uuid.UUID(created["session_id"]).version == 4
    assert str(uuid.UUID(created["session_id"])) == created["session_id"]
    assert created["status"] == "created"
    assert created["websocket_url"] == f"/ws/audio/{created['session_id']}"


@pytest.mark.spec("sessions-03")
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", None),
        ("application/json", b""),
        ("application/json", b"{broken"),
        ("application/json", b'{"session_id": 7}'),
        ("multipart/form-data", b"\xff\x00"),
        ("text/plain", b"x" * 100_000),
    ],
)
def test_the_body_of_a_creation_is_ignored(server: RunningServer, content_type: str, body: bytes | None) -> None:
    status, answer, _ = server.request("POST", "/session/create", body, {"Content-Type": content_type})
    assert status == 200
    assert json.loads(answer)["status"] == "created"


@pytest.mark.spec("sessions-04", "sessions-05", "sessions-09")
async def test_a_session_is_deleted_once(server: RunningServer) -> None:
    name = await new_session(server)
    status, body, _ = server.request("DELETE", f"/session/{name}")
    assert (status, json.loads(body)) == (200, {"status": "deleted", "session_id": name})
    status, body, _ = server.request("DELETE", f"/session/{name}")
    refused = json.loads(body)
    assert status == 404
    assert set(refused) == {"detail", "error"}
    assert refused["error"] == "SESSION_NOT_FOUND"
    assert name in refused["detail"]


@pytest.mark.spec("sessions-10")
def test_pages_of_every_origin_may_create_and_delete(server: RunningServer) -> None:
    origin = {"Origin": "https://elsewhere.example"}
    for method in ("POST", "DELETE"):
        wanted = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "content-type"}
        status, _, headers = server.request("OPTIONS", "/session/create", headers=origin | wanted)
        assert status == 200
        assert headers["Access-Control-Allow-Origin"] == "*"
        assert headers["Access-Control-Allow-Methods"] == "*"
        assert headers["Access-Control-Allow-Headers"] == "*"
    for method, path in (("POST", "/session/create"), ("DELETE", "/session/unknown")):
        _, _, headers = server.request(method, path, headers=origin)
        assert headers["Access-Control-Allow-Origin"] == "*"


@pytest.mark.spec("sessions-11")
async def test_with_required_keys_creating_and_deleting_need_one(serve: Serve) -> None:
    server = serve(*OPEN, "--require-key")
    key = {"Authorization": f"Bearer {KEY}"}
    for method, path in (("POST", "/session/create"), ("DELETE", "/session/x")):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
            status, body, _ = server.request(method, path, headers=headers)
            assert status == 401
            assert set(json.loads(body)) == {"detail", "error"}
    status, body, _ = server.request("POST", "/session/create", headers=key)
    assert status == 200
    name = json.loads(body)["session_id"]
    async with talk(server, name) as client:
        await client.synchronise()
    assert server.request("DELETE", f"/session/{name}", headers=key)[0] == 200


@pytest.mark.spec("sessions-12")
async def test_a_session_is_the_same_on_every_listener(own_server: Serve) -> None:
    server = own_server(*OPEN, "--surface-ports", "sessions=0")
    own_port = server.ports["sessions"]
    name = await new_session(server)
    async with connect(f"ws://127.0.0.1:{own_port}/ws/audio/{name}") as socket:
        assert json.loads(await socket.recv())["session_id"] == name
    assert json.loads(server.get("/health")[1])["active_sessions"] == 1


# ---- the audio socket


@pytest.mark.spec("sessions-13", "sessions-16")
async def test_the_first_frame_says_who_is_connected(server: RunningServer) -> None:
    before = time.time()
    async with talk(server, greeted=False) as client:
        frame = await client.receive()
        assert set(frame) == {"type", "status", "client_id", "session_id", "server_time"}
        assert (frame["type"], frame["status"]) == ("status", "connected")
        assert frame["session_id"] == client.session_id
        assert isinstance(frame["client_id"], str)
        assert frame["client_id"]
        assert before - 1 <= frame["server_time"] <= time.time() + 1


@pytest.mark.spec("sessions-14", "sessions-49")
@pytest.mark.parametrize("kind", ["audio", "control"])
@pytest.mark.parametrize("name", ["1", "never-created", str(uuid.UUID(int=7)), "%20"])
async def test_an_unknown_session_is_told_and_not_created(server: RunningServer, kind: str, name: str) -> None:
    before = json.loads(server.get("/health")[1])["active_sessions"]
    async with talk(server, name, kind=kind, greeted=False) as client:
        assert await client.error("SESSION_NOT_FOUND")
        assert (await client.closed())[:2] == ([], 4404)
    assert json.loads(server.get("/health")[1])["active_sessions"] == before


@pytest.mark.spec("sessions-14")
async def test_a_deleted_session_is_unknown(server: RunningServer) -> None:
    name = await new_session(server)
    server.request("DELETE", f"/session/{name}")
    async with talk(server, name, greeted=False) as client:
        assert await client.error("SESSION_NOT_FOUND")
        assert (await client.closed())[1] == 4404


@pytest.mark.spec("sessions-15")
async def test_several_sockets_of_a_session_have_their_own_words_and_figures(server: RunningServer) -> None:
    async with talk(server) as first, talk(server, first.session_id) as second:
        assert first.client_id != second.client_id
        await first.hear(sentence("mine"))
        assert await second.say(sentence("yours", "alone")) == "yours alone"
        assert await first.end() == "mine"
        stats = [await client.stats() for client in (first, second)]
    assert [figures["client_id"] for figures in stats] == [first.client_id, second.client_id]
    assert {figures["session_id"] for figures in stats} == {first.session_id}
    assert stats[0]["message_count"] != stats[1]["message_count"]


@pytest.mark.spec("sessions-18", "sessions-19")
async def test_speech_and_silence_make_an_utterance_and_the_next_one_begins_by_itself(server: RunningServer) -> None:
    async with talk(server) as client:
        for words in (("hello", "there"), ("how", "are", "you"), ("fine",)):
            await client.hear(voiced(*words) + SILENCE * 2)
            sent = time.time()
            frame = await client.receive()
            assert set(frame) == {"type", "text", "timestamp"}
            assert (frame["type"], frame["text"]) == ("text_response", " ".join(words))
            assert sent - 30 <= frame["timestamp"] <= time.time() + 1
        await client.synchronise()


@pytest.mark.spec("sessions-19")
async def test_the_silence_that_ends_an_utterance_can_be_set(serve: Serve) -> None:
    patient = serve(*FAST, environment={"SILENCE_TIMEOUT_MS": "3000"})
    quick = serve(*FAST, environment={"SILENCE_TIMEOUT_MS": "300"})
    pcm = voiced("one") + SILENCE + voiced("two") + SILENCE
    async with talk(patient) as client:
        await client.hear(pcm)
        await client.synchronise()
        assert await client.end() == "one two"
    async with talk(quick) as client:
        await client.hear(pcm)
        assert [(await client.receive())["text"] for _ in range(2)] == ["one", "two"]


@pytest.mark.spec("sessions-20")
async def test_silence_is_not_answered(server: RunningServer) -> None:
    async with talk(server) as client:
        await client.hear(SILENCE * 6)
        await client.synchronise()
        assert await client.end() == ""


@pytest.mark.spec("sessions-20")
async def test_less_than_100_ms_of_speech_is_not_answered(server: RunningServer) -> None:
    loud = voice()[32_000 : 32_000 + 2560]  # 80 ms from the middle
    async with talk(server) as client:
        await client.hear(sentence("click") + SILENCE + loud + SILENCE * 3)
        await client.synchronise()


@pytest.mark.spec("sessions-16", "sessions-18")
@pytest.mark.parametrize("chunk_bytes", [2, 2048, 8192, 16_000, 10**6])
async def test_audio_comes_in_frames_of_any_size(server: RunningServer, chunk_bytes: int) -> None:
    texts = random_words(6 if chunk_bytes == 2 else 40, seed=chunk_bytes)
    pcm, _ = spoken(texts, seed=3, longest_pause_seconds=0.05)
    async with talk(server) as client:
        await client.send_raw(b"")
        assert await client.say(pcm, chunk_bytes) == " ".join(texts)


@pytest.mark.spec("sessions-21")
async def test_an_odd_number_of_bytes_is_told_and_the_socket_goes_on(server: RunningServer) -> None:
    async with talk(server) as client:
        await client.hear(sentence("before"))
        await client.send_raw(b"\x01\x02\x03")
        assert (await client.error("AUDIO_FORMAT_ERROR")).startswith("Audio processing: ")
        assert await client.say(sentence("after")) == "before after"
        assert (await client.stats())["error_count"] == 1


@pytest.mark.spec("sessions-22")
@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
async def test_audio_of_other_rates_is_resampled(own_server: Serve, backend: Backend, rate: int) -> None:
    server = own_server(*FAST, *chat(backend), "--sessions-reply", "chat", environment={"AUDIO_SAMPLE_RATE": str(rate)})
    original = np.frombuffer(voice(), dtype="<i2")
    sent = soxr.resample(original, 16_000, rate).astype("<i2").tobytes()
    async with talk(server) as client:
        await client.hear(sent + bytes(4 * rate), 2048)
        frame = await client.receive()
        assert frame["type"] == "text_response", frame
    [question] = asked(backend)
    heard = np.frombuffer(recording(question), dtype="<i2").astype(float)
    speech = original[np.abs(original) > 0]
    assert 1.5 < len(heard) / 16_000 < 2.3 + 2
    spectrum = np.abs(np.fft.rfft(heard))
    assert spectrum[: len(spectrum) // 2].sum() > spectrum[len(spectrum) // 2 :].sum(), "speech lies below 4 kHz"
    assert 0.5 < heard.std() / speech.std() < 1.5


def recording(question: dict[str, Any]) -> bytes:
    """The audio that goes with a question."""
    audio, _ = question["messages"][0]["content"]
    with wave.open(io.BytesIO(base64.b64decode(audio["input_audio"]["data"]))) as reader:
        assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (16_000, 1, 2)
        return bytes(reader.readframes(reader.getnframes()))


@pytest.mark.spec("sessions-23", "sessions-39")
@pytest.mark.parametrize(("message", "code"), [("it broke", "PROCESSING_ERROR"), ("CUDA out of memory", "GPU_OOM")])
async def test_an_engine_that_fails_is_told_and_the_next_utterance_is_heard(
    serve: Serve, message: str, code: str
) -> None:
    fault = json.dumps({"faults": [{"at": 1.0, "message": message}]})
    async with talk(serve(*FAST, "--script", fault)) as client:
        await client.hear(sentence("one", "two", "three", "four"))
        assert await client.error(code) == f"Audio processing: {message}"
        await client.end()
        assert await client.say(sentence("five")) == "five"


@pytest.mark.spec("sessions-25")
async def test_without_voice_detection_only_end_ends_an_utterance(serve: Serve) -> None:
    server = serve(*FAST, "--no-vad")
    assert "utterance ends only where its client says so" in server.log()
    async with talk(server) as client:
        await client.hear(voiced("one") + SILENCE * 3 + voiced("two") + SILENCE * 3)
        await client.synchronise()
        assert await client.end() == "one two"
        await client.control("configure", vad="auto")
        assert "voice activity" in await client.error("PROCESSING_ERROR")


# ---- texts and answers


@pytest.mark.spec("sessions-26", "sessions-27", "sessions-43")
async def test_texts_are_answered_by_the_chat_engine(own_server: Serve, backend: Backend) -> None:
    server = own_server(*FAST, *chat(backend))
    name = await new_session(server)
    async with talk(server, name) as audio, talk(server, name, kind="control") as control:
        for client in (audio, control):
            await client.send("text_input", text="What is it?", timestamp=1)
            frame = await client.receive()
            assert set(frame) == {"type", "text", "timestamp"}
            assert (frame["type"], frame["text"]) == ("text_response", "A greeting.")
            assert isinstance(frame["timestamp"], float)
        for text in ("plain words", '["no", "object"]', "17"):
            await audio.send_raw(text)
            assert (await audio.receive())["text"] == "A greeting."
    questions = [question["messages"][0]["content"] for question in asked(backend)]
    assert questions == [
        [{"type": "text", "text": text}]
        for text in ("What is it?", "What is it?", "plain words", '["no", "object"]', "17")
    ]


@pytest.mark.spec("sessions-28", "sessions-36")
async def test_what_says_nothing_is_ignored(own_server: Serve, backend: Backend) -> None:
    async with talk(own_server(*FAST, *chat(backend))) as client:
        for frame in (
            *(
                '{"type":"text_input"}',
                '{"type":"text_input","text":""}',
                '{"type":"text_input","text":"  "}',
                "",
                "  ",
            ),
            *("{}", '{"type":"audio_chunk"}', '{"type":"heartbeat"}', '{"type":"config_update","config":{}}'),
            *('{"type":"control"}', '{"type":"control","control_type":"dance"}', '{"type":7}'),
        ):
            await client.send_raw(frame)
        await client.synchronise()
        await client.send("text_input", text=7)
        assert (await client.error("PROCESSING_ERROR")).startswith("Message processing: ")
    assert asked(backend) == []


@pytest.mark.spec("sessions-29")
@pytest.mark.parametrize("kind", ["audio", "control"])
async def test_without_a_chat_engine_a_text_is_refused_with_a_sentence(server: RunningServer, kind: str) -> None:
    async with talk(server, kind=kind) as client:
        for _ in range(12):
            await client.send("text_input", text="hello")
            sentence_ = await client.error("PROCESSING_ERROR")
            assert sentence_.startswith("Text processing: ")
            assert "--chat-engine" in sentence_


@pytest.mark.spec("sessions-30")
@pytest.mark.parametrize(("said", "code"), [("it broke", "PROCESSING_ERROR"), ("CUDA out of memory", "GPU_OOM")])
async def test_an_answer_that_fails_is_an_error(own_server: Serve, backend: Backend, said: str, code: str) -> None:
    backend.says("/v1/chat/completions", 500, {"error": {"message": said}})
    server = own_server(*FAST, *chat(backend))
    for kind in ("audio", "control"):
        async with talk(server, kind=kind) as client:
            await client.send("text_input", text="hello")
            assert said in await client.error(code)


@pytest.mark.spec("sessions-31", "sessions-34")
async def test_a_slow_answer_holds_up_neither_transcripts_nor_pings(own_server: Serve, backend: Backend) -> None:
    backend.silent = True
    server = own_server(*FAST, *chat(backend))
    async with talk(server) as client:
        await client.send("text_input", text="Are you there?")
        await asyncio.to_thread(backend.asked.acquire, timeout=RECEIVE_SECONDS)  # for its models
        assert await asyncio.to_thread(backend.asked.acquire, timeout=RECEIVE_SECONDS)
        await client.synchronise()
        await client.hear(voiced("not", "held", "up") + SILENCE * 2)
        assert (await client.receive())["text"] == "not held up"


@pytest.mark.spec("sessions-31")
async def test_answers_come_in_the_order_of_their_questions(own_server: Serve, backend: Backend) -> None:
    def echo(body: bytes) -> bytes:
        return json.dumps(reply("re: " + json.loads(body)["messages"][0]["content"][0]["text"])).encode()

    server = own_server(*FAST, *chat(backend))
    backend.says("/v1/chat/completions", 200, echo)
    backend.hold.clear()
    async with talk(server) as client:
        for number in range(10):
            await client.send("text_input", text=f"question {number}")
        await client.synchronise()
        backend.hold.set()
        assert [(await client.receive())["text"] for _ in range(10)] == [
            f"re: question {number}" for number in range(10)
        ]


@pytest.mark.spec("sessions-32", "sessions-33")
async def test_so_many_answers_may_be_awaited_and_they_go_with_the_socket(own_server: Serve, backend: Backend) -> None:
    server = own_server(*FAST, *chat(backend))
    backend.silent = True
    async with talk(server) as client:
        for number in range(17):
            await client.send("text_input", text=f"question {number}")
        for _ in range(2):  # for its models, and the first question
            assert await asyncio.to_thread(backend.asked.acquire, timeout=RECEIVE_SECONDS)
        assert "16" in await client.error("RATE_LIMITED")
        await client.synchronise()
    assert await asyncio.to_thread(backend.left.acquire, timeout=RECEIVE_SECONDS), "the question under way was given up"
    await server.until_idle()
    await server.until_metric(lambda value: value == 0, "earmark_chat", figure="requests")
    assert len(asked(backend)) == 1, "the others were never asked"


@pytest.mark.spec("sessions-24")
async def test_the_chat_engine_replies_to_the_audio_of_an_utterance(own_server: Serve, backend: Backend) -> None:
    server = own_server(
        *(*FAST, *chat(backend), "--sessions-reply", "chat"),
        environment={"EARMARK_SESSIONS_QUESTION": "Say something.", "TEMPERATURE": "0.7", "MAX_LENGTH": "99"},
    )
    backend.says("/v1/chat/completions", 200, reply("Hello to you."))
    async with talk(server) as client:
        await client.hear(SILENCE * 3 + voice() + SILENCE * 2)
        frame = await client.receive()
        assert (frame["type"], frame["text"]) == ("text_response", "Hello to you.")
        await client.hear(SILENCE * 3)
        assert await client.end() == "", "silence is no utterance"
        assert await client.say(sentence("words", "of", "the", "script")) == "Hello to you."
    first, second = asked(backend)
    assert (first["temperature"], first["max_tokens"]) == (0.7, 99)
    assert first["messages"][0]["content"][1] == {"type": "text", "text": "Say something."}
    heard = recording(first)
    assert 1.5 < len(heard) / 32_000 < 3.7, "not the silence before it"
    assert voice()[16_000:48_000] in heard
    assert sentence("words", "of", "the", "script") in recording(second)


@pytest.mark.spec("sessions-24")
async def test_of_a_long_utterance_the_chat_engine_hears_the_end(own_server: Serve, backend: Backend) -> None:
    server = own_server(*FAST, *chat(backend), "--sessions-reply", "chat", "--sessions-reply-seconds", "1.5")
    texts = [str(number) for number in range(10)]
    async with talk(server) as client:
        await client.configure(vad="off")
        assert await client.say(sentence(*texts)) == "A greeting."
    [question] = asked(backend)
    assert recording(question) == sentence(*texts)[-48_000:]
    assert server.metric("earmark_sessions_unanswered_audio_seconds_total") == pytest.approx(2.5)


@pytest.mark.spec("sessions-24", "sessions-22")
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--sessions-reply", "chat"], "--sessions-reply=chat needs a chat engine"),
        (["--sessions-sample-rate", "11025"], "--sessions-sample-rate=11025"),
    ],
)
def test_what_cannot_work_stops_the_start(options: list[str], told: str) -> None:
    ended = subprocess.run(
        command("--engine", "scripted", "--port", "0", *options),
        cwd=ROOT,
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    assert told in ended.stderr
    assert "Traceback" not in ended.stderr


# ---- control frames


@pytest.mark.spec("sessions-34", "sessions-36")
async def test_ping_is_answered_with_the_servers_time(server: RunningServer) -> None:
    async with talk(server) as client:
        await client.control("ping", timestamp=12)
        frame = await client.receive()
    assert set(frame) == {"type", "control_type", "timestamp"}
    assert (frame["type"], frame["control_type"]) == ("control", "pong")
    assert abs(frame["timestamp"] - time.time()) < 60


@pytest.mark.spec("sessions-35")
async def test_stats_tell_of_this_socket(server: RunningServer) -> None:
    async with talk(server) as client:
        await client.hear(bytes(640), 64)
        await client.send_raw(bytes(3))
        await client.error("AUDIO_FORMAT_ERROR")
        stats = await client.stats()
        assert set(stats) == {
            *("client_id", "session_id", "connection_duration", "message_count", "error_count", "queue_size"),
            *("connected_at", "last_activity"),
        }
        assert (stats["client_id"], stats["session_id"]) == (client.client_id, client.session_id)
        assert (stats["message_count"], stats["error_count"], stats["queue_size"]) == (12, 1, 0)
        assert 0 <= stats["connection_duration"] < 60
        assert stats["connected_at"] <= stats["last_activity"] <= time.time() + 1


# ---- the control socket


@pytest.mark.spec("sessions-42", "sessions-48")
async def test_a_control_socket_is_silent_until_asked(serve: Serve) -> None:
    server = serve(*OPEN, environment={"HEARTBEAT_INTERVAL": "0.05"})
    async with talk(server, kind="control") as client, talk(server) as other:
        assert (await other.receive())["type"] == "heartbeat"  # that long has passed
        for frame in ("{}", '{"type":"control","control_type":"ping"}', '{"type":"dance"}'):
            await client.send_raw(frame)
        await client.send("config_update", config={})
        assert await client.receive() == {"type": "config_updated", "status": "success"}


@pytest.mark.spec("sessions-48")
async def test_what_is_no_json_object_is_refused_on_a_control_socket(server: RunningServer) -> None:
    async with talk(server, kind="control") as client:
        for frame in ("not JSON", "[1]", "7", b"\x00\x01", '{"type":'):
            await client.send_raw(frame)
            assert (await client.error("PROCESSING_ERROR")).startswith("Message processing: ")
        await client.send("config_update", config={"temperature": 0.3})
        assert (await client.receive())["type"] == "config_updated"


@pytest.mark.spec("sessions-44", "sessions-46", "sessions-47")
async def test_temperature_and_length_are_those_of_answers_from_then_on(own_server: Serve, backend: Backend) -> None:
    server = own_server(*FAST, *chat(backend))
    async with talk(server) as audio, talk(server, audio.session_id, kind="control") as control, talk(server) as other:
        await control.send(
            "config_update", config={"temperature": 0.3, "max_length": 256, "vad_sensitivity": 3, "x": []}
        )
        assert await control.receive() == {"type": "config_updated", "status": "success"}
        for client in (audio, control, other):
            await client.send("text_input", text="hello")
            assert (await client.receive())["type"] == "text_response"
    assert [(question["temperature"], question["max_tokens"]) for question in asked(backend)] == [
        *[(0.3, 256)] * 2,
        (0.2, 512),
    ]


@pytest.mark.spec("sessions-45")
async def test_a_strict_detector_does_not_hear_what_a_lenient_one_does(server: RunningServer) -> None:
    """A voice so quiet and noisy that it counts as speech for the one and not for the other."""
    noise = np.random.default_rng(1).normal(0, 1, len(voice()) // 2)
    quiet = np.frombuffer(voice(), dtype="<i2") * 0.027 + noise * 150
    pcm = sentence("faint") + quiet.astype("<i2").tobytes() + SILENCE * 2
    heard = {}
    for sensitivity in (0, 3):
        async with talk(server) as audio, talk(server, audio.session_id, kind="control") as control:
            await audio.hear(SILENCE)
            await audio.synchronise()  # its utterance has begun already
            await control.send("config_update", config={"vad_sensitivity": sensitivity})
            assert (await control.receive())["status"] == "success"
            await audio.hear(pcm)
            await audio.control("ping")
            heard[sensitivity] = [frame.get("text") for frame in (await audio.receive_until("control"))[:-1]]
    assert heard == {0: ["faint"], 3: []}


@pytest.mark.spec("sessions-47")
@pytest.mark.parametrize(
    ("name", "value"),
    [("vad_sensitivity", 4), ("vad_sensitivity", "3"), ("temperature", 2.5), ("temperature", None), ("max_length", 0)],
)
async def test_a_bad_setting_of_a_session_is_named_and_nothing_is_set(
    own_server: Serve, backend: Backend, name: str, value: Any
) -> None:
    server = own_server(*FAST, *chat(backend))
    async with talk(server, kind="control") as client:
        await client.send(
            "config_update", config={"temperature": 1.5, "max_length": 9, name: value if value is not None else []}
        )
        assert f"'{name}'" in await client.error("PROCESSING_ERROR")
        await client.send("text_input", text="hello")
        assert (await client.receive())["type"] == "text_response"
    assert (asked(backend)[-1]["temperature"], asked(backend)[-1]["max_tokens"]) == (0.2, 512)


# ---- additive


@pytest.mark.spec("sessions-58")
async def test_end_ends_an_utterance_at_once(server: RunningServer) -> None:
    async with talk(server) as client:
        for number in range(3):
            assert await client.say(sentence("round", str(number))) == f"round {number}"
        assert await client.end() == "", "nothing was said"
        await client.hear(sentence("one"))
        for _ in range(3):
            await client.control("end")
        assert (await client.receive())["text"] == "one"
        for _ in range(3):
            assert (await client.receive())["control_type"] == "ended"


@pytest.mark.spec("sessions-59")
async def test_configure_tells_the_delay_in_force(server: RunningServer) -> None:
    async with talk(server) as client:
        frame = await client.configure()
        assert set(frame) == {"type", "control_type", "timestamp", "delay_ms"}
        assert frame["delay_ms"] == 480
        assert (await client.configure(delay_ms=80, language="en", model="scripted", vad="auto"))["delay_ms"] == 80
        assert (await client.configure(partials=False))["delay_ms"] == 80
        assert await client.say(sentence("still", "here")) == "still here"


@pytest.mark.spec("sessions-60")
@pytest.mark.parametrize(
    ("field", "value", "possible"),
    [
        ("delay_ms", 100, "80, 160"),
        ("partials", "yes", "true or false"),
        ("model", "mystery", "scripted"),
        ("language", "xx", "en"),
        ("vad", "perhaps", "'auto' or 'off'"),
    ],
)
async def test_an_impossible_configuration_is_told(
    server: RunningServer, field: str, value: Any, possible: str
) -> None:
    async with talk(server) as client:
        await client.control("configure", **({"delay_ms": 160, "partials": True} | {field: value}))
        assert possible in await client.error("PROCESSING_ERROR")
        await client.hear(sentence("nothing", "was", "set"))
        await client.control("end")
        assert [frame["type"] for frame in await client.receive_until("control")] == ["text_response", "control"]
        assert (await client.configure())["delay_ms"] == 480


@pytest.mark.spec("sessions-61")
async def test_partials_grow_to_the_whole_text(server: RunningServer) -> None:
    texts = random_words(20, seed=5)
    pcm, _ = spoken(texts, seed=5, longest_pause_seconds=0.1)
    async with talk(server) as client:
        await client.configure(partials=True, vad="off")
        for _ in range(2):
            await client.hear(pcm)
            await client.control("end")
            frames = await client.receive_until("control")
            partials = [frame["text"] for frame in frames if frame["type"] == "partial"]
            assert frames[-2]["text"] == " ".join(texts)
            assert len(partials) > 5
            assert partials[-1] == " ".join(texts)
            assert all(" ".join(texts).startswith(partial) and partial for partial in partials)
            assert partials == sorted(partials, key=len)
            assert all(set(frame) == {"type", "text", "timestamp", "committed"} for frame in frames[:-2])
            stands = [frame["committed"] for frame in frames[:-2]]
            assert all(text.startswith(part) for text, part in zip(partials, stands, strict=True))
            assert all(later.startswith(part) for part, later in itertools.pairwise(stands)), "nothing is taken back"


@pytest.mark.spec("sessions-62")
async def test_with_vad_off_nothing_but_end_ends_an_utterance(server: RunningServer) -> None:
    async with talk(server) as client:
        await client.configure(vad="off")
        await client.hear(voiced("one") + SILENCE * 3 + voiced("two") + SILENCE * 3)
        await client.synchronise()
        assert await client.end() == "one two"
        await client.configure(vad="auto")
        await client.hear(voiced("three") + SILENCE * 2)
        assert (await client.receive())["text"] == "three"


async def test_a_change_in_the_midst_of_silence_loses_no_word(server: RunningServer) -> None:
    async with talk(server) as client:
        await client.hear(SILENCE + sentence("one"))
        await client.configure(delay_ms=160)
        await client.hear(sentence("two"))
        await client.control("end")
        texts = [frame["text"] for frame in (await client.receive_until("control"))[:-1]]
    assert " ".join(texts) == "one two"


# ---- the clients of the protocol's own document


@pytest.mark.spec("sessions-02", "sessions-13", "sessions-18", "sessions-26")
async def test_the_python_client_of_the_document(own_server: Serve, backend: Backend) -> None:
    """Creates without a body, sends 1024 samples a frame and a text; its handler reads ``type``, ``text`` and ``error``."""
    server = own_server(*FAST, *chat(backend))
    status, body, _ = server.request("POST", "/session/create")
    assert status == 200
    name = json.loads(body)["session_id"]
    heard: list[str] = []
    async with asyncio.timeout(60), connect(server.ws(f"/ws/audio/{name}")) as socket:

        async def listen() -> None:
            async for message in socket:
                if isinstance(message, bytes):
                    continue
                data = json.loads(message)
                if data["type"] == "text_response":
                    heard.append(data["text"])
                elif data["type"] == "error":
                    raise AssertionError(data["error"])
                if len(heard) == 2:
                    return

        listening = asyncio.create_task(listen())
        pcm = voiced("hello", "from", "python") + SILENCE * 2
        for at in range(0, len(pcm), 2048):
            await socket.send(pcm[at : at + 2048])
        await socket.send(json.dumps({"type": "text_input", "text": "Hello, Voxtral!", "timestamp": time.time()}))
        await listening
    assert sorted(heard) == ["A greeting.", "hello from python"]


@pytest.mark.spec("sessions-10", "sessions-13", "sessions-18", "sessions-37")
@pytest.mark.parametrize("block_bytes", [8192, 16_000])
async def test_the_browser_client(serve: Serve, block_bytes: int) -> None:
    """Asks leave first, creates with a content type and no body; blocks of 4096 samples, or of half a second."""
    server = serve(*FAST, environment={"HEARTBEAT_INTERVAL": "0.2"})
    origin = {"Origin": "http://page.example"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    assert server.request("OPTIONS", "/session/create", headers=origin | wanted)[0] == 200
    status, body, _ = server.request("POST", "/session/create", headers=origin | {"Content-Type": "application/json"})
    assert 200 <= status < 300
    async with talk(server, json.loads(body)["session_id"], headers=origin) as client:
        assert client.client_id
        pcm = voiced("from", "the", "page") + SILENCE * 2
        await client.hear(pcm, block_bytes)
        frames = await client.receive_until("text_response")
        assert frames[-1]["text"] == "from the page"
        assert isinstance(frames[-1]["timestamp"], float)
        beat = (await client.receive_until("heartbeat"))[-1]
        assert 0 <= time.time() - beat["timestamp"] < 60, "seconds, of which the page makes a latency"


# ---- deleting


@pytest.mark.spec("sessions-06")
async def test_deleting_closes_all_sockets_in_the_midst_of_it(serve: Serve) -> None:
    server = serve(*FAST, "--script", '{"audio_rate": 2}')
    name = await new_session(server)
    async with talk(server, name) as one, talk(server, name) as two, talk(server, name, kind="control") as control:
        await one.hear(sentence("never", "to", "be", "heard") * 5)
        assert (await asyncio.to_thread(server.request, "DELETE", f"/session/{name}"))[0] == 200
        for client in (one, two, control):
            assert await client.closed() == ([], 1000, "session deleted")
    await server.until_idle()


@pytest.mark.spec("sessions-06")
async def test_a_neighbour_session_goes_on_when_one_is_deleted(server: RunningServer) -> None:
    async with talk(server) as doomed, talk(server) as neighbour:
        await neighbour.hear(sentence("going"))
        server.request("DELETE", f"/session/{doomed.session_id}")
        assert (await doomed.closed())[1] == 1000
        assert await neighbour.say(sentence("on")) == "going on"


# ---- health and series


@pytest.mark.spec("sessions-63")
async def test_health_has_what_monitoring_of_sessions_reads(serve: Serve) -> None:
    server = serve(*OPEN, "--surfaces", "sessions")
    async with talk(server), talk(server):
        name = await new_session(server)
        status, body = server.get("/health")
        health = json.loads(body)
    assert status == 200
    assert health["status"] == "healthy"
    assert abs(health["timestamp"] - time.time()) < 60
    assert set(health["system"]) == {"cpu_percent", "memory_percent", "disk_usage"}
    assert all(isinstance(value, float) and 0 <= value <= 100 for value in health["system"].values())
    gpu = health["gpu"]
    assert gpu == {} or set(gpu) == {"gpu_count", "gpu_memory", "gpu_memory_allocated", "gpu_memory_cached"}
    assert all(isinstance(value, int) for value in gpu.values())
    assert (health["active_sessions"], health["queue_size"]) == (3, 0)
    server.request("DELETE", f"/session/{name}")
    assert json.loads(server.get("/health")[1])["active_sessions"] == 2


@pytest.mark.spec("sessions-64")
async def test_metrics_have_the_names_that_dashboards_ask_for(own_server: Serve) -> None:
    server = own_server(*FAST)
    async with talk(server) as client, talk(server, client.session_id, kind="control") as control:
        await control.send("config_update", config={})
        await control.receive()
        assert await client.say(sentence("hello")) == "hello"
        text = server.get("/metrics")[1].decode()
        assert server.metric("websocket_connections_active") == 1, "of audio sockets alone"
    await server.until_metric(lambda value: value == 0, "websocket_connections_active")
    assert server.metric("websocket_connections_total") == 1
    for line in (
        *("# TYPE websocket_connections_total counter", "# TYPE websocket_connections_active gauge"),
        *("# TYPE audio_processing_duration_seconds histogram", "# TYPE model_inference_duration_seconds histogram"),
        *("# TYPE gpu_memory_allocated_bytes gauge", "audio_processing_duration_seconds_count 1.0"),
        "model_inference_duration_seconds_count 1.0",
        *(f'audio_processing_duration_seconds_bucket{{le="{bound}"}}' for bound in ("0.005", "0.01", "0.025", "0.05")),
    ):
        assert line in text


# ---- what stays private


@pytest.mark.spec("sessions-66")
async def test_texts_are_in_no_log(own_server: Serve, backend: Backend) -> None:
    server = own_server(*FAST, *chat(backend), "--log-level", "debug")
    async with talk(server) as client, talk(server, client.session_id, kind="control") as control:
        assert await client.say(sentence("confidential")) == "confidential"
        for socket in (client, control):
            await socket.send("text_input", text="clandestine")
            await socket.receive_until("text_response")
        await client.send_raw("undisclosed")
        await client.receive_until("text_response")
    assert server.stop() == 0
    log = server.log()
    assert "accepted" in log
    for word in ("confidential", "clandestine", "undisclosed", "greeting"):
        assert word not in log
