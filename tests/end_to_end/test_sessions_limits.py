"""Limits and times of conversational sessions, set small: rates, places, queue, errors, heartbeats, expiry, and the end."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from contextlib import AsyncExitStack, suppress
from email.message import Message

import pytest
from websockets.exceptions import ConnectionClosed

from tests.chat_backend import chat_backend
from tests.end_to_end.clients import RECEIVE_SECONDS, Talk, new_session, talk
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import RunningServer
from tests.end_to_end.speech import distinct_words, sentence, voiced

OPEN = ("--sessions-create-per-minute", "off", "--sessions-connect-per-minute", "off")
FAST = (*OPEN, "--sessions-audio-bytes-per-second", "off")
LATE_SECONDS = 3.0
"""How much later than set a limit may act here; a loaded machine is not what these tests are about."""


def told_by_a_proxy(address: str | None) -> dict[str, str]:
    return {} if address is None else {"X-Forwarded-For": address}


def create(server: RunningServer, address: str | None = None) -> tuple[int, dict[str, str], Message]:
    """Status, body and headers of a creation."""
    status, body, answered = server.request("POST", "/session/create", headers=told_by_a_proxy(address))
    return status, json.loads(body), answered


# ---- creating


@pytest.mark.spec("sessions-50", "sessions-51", "sessions-09")
def test_five_sessions_a_minute_and_no_more(own_server: Serve) -> None:
    server = own_server()
    for number in range(5):
        status, _, headers = create(server)
        assert status == 200
        assert (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) == ("5", str(4 - number))
        assert time.time() < int(headers["X-RateLimit-Reset"]) <= time.time() + 61
    status, body, headers = create(server)
    assert status == 429
    assert set(body) == {"detail", "error"}
    assert body["error"] == "RATE_LIMITED"
    assert (headers["X-RateLimit-Limit"], headers["X-RateLimit-Remaining"]) == ("5", "0")
    assert abs(int(headers["X-RateLimit-Reset"]) - time.time() - int(headers["Retry-After"])) <= 2
    assert 0 < int(headers["Retry-After"]) <= 60


@pytest.mark.spec("sessions-50", "sessions-57")
def test_behind_a_trusted_proxy_every_client_has_its_own_limit(serve: Serve) -> None:
    server = serve("--sessions-create-per-minute", "1", "--trusted-proxies", "127.0.0.0/8")
    for address in ("203.0.113.1", "203.0.113.2", "6.6.6.6, 203.0.113.3"):
        assert create(server, address)[0] == 200
    for address in ("203.0.113.1", "203.0.113.3", "7.7.7.7, 203.0.113.2"):
        assert create(server, address)[0] == 429


@pytest.mark.spec("sessions-57")
def test_nobody_else_can_claim_another_address(serve: Serve) -> None:
    server = serve("--sessions-create-per-minute", "1")
    assert create(server, "203.0.113.1")[0] == 200
    assert create(server, "203.0.113.2")[0] == 429


@pytest.mark.spec("sessions-56")
def test_without_the_limit_there_is_no_word_of_it(serve: Serve) -> None:
    server = serve("--sessions-create-per-minute", "off")
    for _ in range(20):
        status, _, headers = create(server)
        assert status == 200
        assert not [name for name in headers if name.lower().startswith("x-ratelimit")]


@pytest.mark.spec("sessions-08", "sessions-09")
def test_there_may_be_only_so_many_sessions(own_server: Serve) -> None:
    server = own_server("--sessions-create-per-minute", "off", "--sessions-max", "2")
    _, first, _ = create(server)
    assert create(server)[0] == 200
    status, body, _ = create(server)
    assert (status, body["error"]) == (503, "CONNECTION_FAILED")
    assert server.request("DELETE", f"/session/{first['session_id']}")[0] == 200
    assert create(server)[0] == 200


@pytest.mark.spec("sessions-07", "sessions-14")
async def test_a_session_expires_without_a_socket_and_not_with_one(serve: Serve) -> None:
    server = serve(*OPEN, "--sessions-expiry-seconds", "1.5")
    idle = await new_session(server)
    async with talk(server) as busy:
        end = time.monotonic() + RECEIVE_SECONDS
        while json.loads((await asyncio.to_thread(server.get, "/health"))[1])["active_sessions"] != 1:
            assert time.monotonic() < end
        async with talk(server, idle, greeted=False) as late:
            await late.error("SESSION_NOT_FOUND")
            assert (await late.closed())[1] == 4404
        assert server.request("DELETE", f"/session/{idle}")[0] == 404
        async with talk(server, busy.session_id) as another:
            await another.synchronise()
    end = time.monotonic() + RECEIVE_SECONDS
    while json.loads((await asyncio.to_thread(server.get, "/health"))[1])["active_sessions"] != 0:
        assert time.monotonic() < end


# ---- connecting


@pytest.mark.spec("sessions-52")
@pytest.mark.parametrize("kind", ["audio", "control"])
async def test_ten_sockets_a_minute_and_no_more(own_server: Serve, kind: str) -> None:
    server = own_server()
    name = await new_session(server)
    for number in range(10):
        async with talk(server, name, kind=["audio", "control"][number % 2]):
            pass
    async with talk(server, name, kind=kind, greeted=False) as refused:
        assert "10" in await refused.error("RATE_LIMITED")
        assert (await refused.closed())[:2] == ([], 1008)
    rejected = server.metric("earmark_connections_rejected_total", surface="sessions", reason="RATE_LIMITED")
    assert rejected == 1


@pytest.mark.spec("sessions-52", "sessions-57")
async def test_sockets_are_counted_by_the_address_that_a_trusted_proxy_tells(serve: Serve) -> None:
    server = serve(
        *("--sessions-create-per-minute", "off", "--sessions-connect-per-minute", "1"),
        *("--trusted-proxies", "127.0.0.1"),
    )
    name = await new_session(server)
    for address in ("203.0.113.1", "203.0.113.2"):
        async with talk(server, name, headers=told_by_a_proxy(address)) as client:
            await client.synchronise()
    async with talk(server, name, greeted=False, headers=told_by_a_proxy("203.0.113.2")) as refused:
        await refused.error("RATE_LIMITED")


@pytest.mark.spec("sessions-55")
async def test_a_full_server_says_so_and_a_place_is_free_again_at_once(serve: Serve) -> None:
    server = serve(*OPEN, environment={"MAX_CONNECTIONS": "2"})
    name = await new_session(server)
    async with talk(server, name):
        async with talk(server, name, kind="control") as control:
            await control.send("config_update", config={})
            await control.receive()
            async with talk(server, name, greeted=False) as refused:
                await refused.error("CONNECTION_FAILED")
                assert (await refused.closed())[1] == 1013
        await server.until_metric(lambda value: value == 1, "earmark_connections_active", surface="sessions")
        async with talk(server, name) as client:
            await client.synchronise()


# ---- sending


@pytest.mark.spec("sessions-53")
async def test_audio_beyond_a_megabyte_a_second_is_dropped_and_told(serve: Serve) -> None:
    server = serve(*OPEN)
    async with talk(server) as client:
        await client.send_raw(bytes(1_000_002))  # more than can ever pass
        assert "1000002" in await client.error("RATE_LIMITED")
        assert await client.say(sentence("still", "here")) == "still here"


@pytest.mark.spec("sessions-53")
async def test_the_rate_of_audio_is_the_sessions_and_comes_back_with_time(serve: Serve) -> None:
    server = serve(*OPEN, "--sessions-audio-bytes-per-second", "12800")
    pcm = sentence("a")  # 12 800 bytes
    async with talk(server) as one, talk(server, one.session_id) as two, talk(server) as other:
        await one.send_raw(pcm)
        await one.synchronise()
        await two.send_raw(pcm)
        await two.error("RATE_LIMITED")
        assert await one.end() == "a"
        assert await other.say(pcm, len(pcm)) == "a"
        end = time.monotonic() + RECEIVE_SECONDS
        while not (text := await again(two, pcm)):
            assert time.monotonic() < end
        assert text == "a"


async def again(client: Talk, pcm: bytes) -> str:
    """The text of the utterance, empty when its audio was refused."""
    await client.send_raw(pcm)
    await client.control("end")
    *frames, ended = await client.receive_until("control")
    assert ended["control_type"] == "ended"
    [frame] = frames
    assert frame["type"] == "text_response" or frame["code"] == "RATE_LIMITED"
    text: str = frame.get("text", "")
    return text


@pytest.mark.spec("sessions-54")
async def test_texts_beyond_sixty_a_minute_are_dropped_and_told(serve: Serve) -> None:
    server = serve(*OPEN)
    async with talk(server) as audio, talk(server, audio.session_id, kind="control") as control:
        for number in range(60):
            client = (audio, control)[number % 2]
            await client.send("text_input", text="hello")
            await client.error("PROCESSING_ERROR")  # there is no chat engine
        for client in (audio, control):
            for _ in range(15):
                await client.send("text_input", text="hello")
                assert "60" in await client.error("RATE_LIMITED")
        await audio.synchronise()
        assert await audio.say(sentence("still", "here")) == "still here"


@pytest.mark.spec("sessions-17")
async def test_a_frame_of_more_than_16_mib_closes_with_1009_and_broken_text_with_1007(serve: Serve) -> None:
    server = serve(*FAST)
    async with talk(server) as client:
        await client.send_raw(bytes(16 * 2**20))
        with suppress(ConnectionClosed):
            await client.send_raw(bytes(16 * 2**20 + 2))
        assert await client.lost() == 1009
    async with talk(server) as client:
        await client.socket.send(b"\xff\xfe", text=True)
        assert await client.lost() == 1007


# ---- queue


SLOW = '{"audio_rate": 20}'


@pytest.mark.spec("sessions-40", "sessions-34", "sessions-35")
async def test_a_full_queue_pushes_out_the_oldest_audio_and_nothing_else(own_server: Serve) -> None:
    server = own_server(*FAST, "--no-vad", "--script", SLOW, "--sessions-queue", "20", "--max-queued-seconds", "1")
    texts = distinct_words(100, seed=9)
    words = [sentence(text) for text in texts]  # 0.4 s each
    async with talk(server) as client:
        for pcm in words:
            await client.send_raw(pcm)
        await client.control("ping")
        await client.control("get_stats")
        await client.control("end")
        frames = [await client.receive() for _ in range(2)]
        assert [frame["type"] for frame in frames] == ["control", "status"], "at once"
        assert frames[1]["stats"]["queue_size"] == 20
        assert frames[1]["stats"]["message_count"] == len(words) + 2
        frames = await client.receive_until("control")
    heard = frames[0]["text"].split()
    dropped = server.metric("earmark_dropped_audio_seconds_total", surface="sessions")
    assert dropped == pytest.approx(0.4 * (len(texts) - len(heard)))
    assert dropped > 10
    kept = [texts.index(word) for word in heard]
    assert kept == sorted(set(kept))
    assert heard[-19:] == texts[-19:], "the newest stays; the end took one more place"


@pytest.mark.spec("sessions-63")
async def test_health_counts_what_waits(own_server: Serve) -> None:
    server = own_server(*FAST, "--no-vad", "--script", '{"audio_rate": 0.5}', "--max-queued-seconds", "1")
    async with talk(server) as client:
        for _ in range(30):
            await client.send_raw(sentence("word"))
        await client.synchronise()
        waiting = json.loads(server.get("/health")[1])["queue_size"]
        assert 15 < waiting < 30


@pytest.mark.spec("sessions-40")
async def test_where_no_audio_waits_a_message_too_many_is_refused(own_server: Serve) -> None:
    server = own_server(
        *FAST, "--no-vad", "--script", '{"audio_rate": 0.2}', "--sessions-queue", "3", "--max-queued-seconds", "1"
    )
    async with talk(server) as client:
        await client.send_raw(sentence(*"abcdefghij"))  # 4 s: more than is taken in
        for _ in range(3):
            await client.control("configure", delay_ms=480)
        await client.control("configure", delay_ms=480)
        assert "too many frames" in await client.error("PROCESSING_ERROR")
        await client.synchronise()


@pytest.mark.spec("sessions-41")
@pytest.mark.parametrize("kind", ["audio", "control"])
async def test_the_eleventh_error_closes_the_socket(serve: Serve, kind: str) -> None:
    server = serve(*FAST)
    async with talk(server, kind=kind) as client:
        for _ in range(11):
            await client.send_raw(bytes(3))
        frames, code, reason = await client.closed()
    assert [frame["type"] for frame in frames] == ["error"] * 11
    assert (code, reason) == (1008, "too many errors")


@pytest.mark.spec("sessions-41", "sessions-39")
async def test_limits_do_not_count_as_errors_of_handling(serve: Serve) -> None:
    server = serve(*OPEN, "--sessions-audio-bytes-per-second", "10")
    async with talk(server) as client:
        for _ in range(30):
            await client.send_raw(bytes(100))
            await client.error("RATE_LIMITED")
        await client.synchronise()


# ---- time


@pytest.mark.spec("sessions-37")
async def test_heartbeats_come_again_and_again(serve: Serve) -> None:
    server = serve(*OPEN, environment={"HEARTBEAT_INTERVAL": "0.2"})
    began = time.monotonic()
    async with talk(server) as client:
        for _ in range(4):
            frame = await client.receive()
            assert set(frame) == {"type", "timestamp"}
            assert frame["type"] == "heartbeat"
            assert abs(frame["timestamp"] - time.time()) < 60
        assert time.monotonic() - began >= 0.75


@pytest.mark.spec("sessions-38")
async def test_who_sends_nothing_is_closed_at_a_heartbeat(serve: Serve) -> None:
    server = serve(*OPEN, "--sessions-heartbeat-seconds", "0.3", "--sessions-inactivity-seconds", "0.7")
    async with talk(server) as client:
        began = time.monotonic()
        frames, code, reason = await client.closed()
        took = time.monotonic() - began
    assert (code, reason) == (4000, "inactive")
    assert {frame["type"] for frame in frames} == {"heartbeat"}
    assert 0.6 <= took <= 0.9 + LATE_SECONDS
    await server.until_idle()


@pytest.mark.spec("sessions-38")
@pytest.mark.parametrize("frame", [bytes(64), "{}", '{"type":"control","control_type":"ping"}'])
async def test_any_frame_is_activity(serve: Serve, frame: str | bytes) -> None:
    server = serve(*OPEN, "--sessions-heartbeat-seconds", "0.5", "--sessions-inactivity-seconds", "1.5")
    async with talk(server) as client:
        end = time.monotonic() + 3.2
        while time.monotonic() < end:
            await client.send_raw(frame)
            await client.receive_until("heartbeat")
        assert (await client.closed())[1] == 4000


@pytest.mark.spec("sessions-56")
async def test_unlimited_means_all_of_it(own_server: Serve) -> None:
    server = own_server(
        *("--unlimited", "--no-vad", "--sessions-inactivity-seconds", "0.2", "--sessions-heartbeat-seconds", "0.1"),
        *("--sessions-queue", "1", "--sessions-expiry-seconds", "0.01", "--sessions-max", "1"),
        *("--sessions-texts-per-minute", "1", "--script", '{"audio_rate": 50}'),
        environment={"MAX_CONNECTIONS": "1"},
    )
    names = [await new_session(server) for _ in range(12)]
    texts = distinct_words(60, seed=4)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(talk(server, name)) for name in names]
        client = clients[0]
        for _ in range(10):
            assert (await client.receive())["type"] == "heartbeat"  # long after the inactivity
        for text in texts:
            await client.send_raw(sentence(text))
        for _ in range(15):
            await client.send_raw(bytes(3))
        await client.send_raw(bytes(2_000_000))
        await client.control("end")
        frames = await client.receive_until("control", 30)
        assert [f["code"] for f in frames if f["type"] == "error"] == ["AUDIO_FORMAT_ERROR"] * 15
        assert [f["text"] for f in frames if f["type"] == "text_response"] == [" ".join(texts)]
        for _ in range(3):
            await client.send("text_input", text="hello")
            assert (await client.receive_until("error"))[-1]["code"] == "PROCESSING_ERROR"


# ---- the end of the server


@pytest.mark.spec("sessions-65")
async def test_a_server_that_ends_lets_utterances_end_and_nobody_in(own_server: Serve) -> None:
    server = own_server(*FAST, "--script", '{"final_latency_ms": 500}')
    name = await new_session(server)
    async with talk(server, name) as speaking, talk(server, name) as silent, talk(server, name) as ending:
        await silent.hear(bytes(32_000))  # an open microphone
        await ending.hear(sentence("my", "end"))
        await speaking.hear(voiced("last", "words"))
        await speaking.synchronise()
        await ending.control("end")
        await ending.synchronise()
        server.signal(signal.SIGTERM)
        end = time.monotonic() + 5
        while (await asyncio.to_thread(server.get, "/health"))[0] != 503:
            assert time.monotonic() < end
        status, body, _ = server.request("POST", "/session/create")
        assert (status, json.loads(body)["error"]) == (503, "CONNECTION_FAILED")
        async with talk(server, name, greeted=False) as late:
            await late.error("CONNECTION_FAILED")
            assert (await late.closed())[1] == 1013
        await speaking.hear(bytes(64_000))
        assert (await speaking.receive())["text"] == "last words"
        assert [frame["type"] for frame in await ending.receive_until("control")] == ["text_response", "control"]
        for client in (speaking, silent, ending):
            assert (await client.closed())[1:] == (1012, "server is shutting down")
    assert await asyncio.to_thread(server.wait, 10) == 0
    assert "Traceback" not in server.log()


@pytest.mark.spec("sessions-65")
async def test_an_open_microphone_does_not_hold_up_the_end(own_server: Serve) -> None:
    server = own_server(*FAST, "--drain-seconds", "60")
    async with talk(server) as client:
        await client.hear(bytes(64_000))
        await client.synchronise()
        server.signal(signal.SIGTERM)
        assert (await client.closed())[1] == 1012
    assert await asyncio.to_thread(server.wait, 10) == 0


@pytest.mark.spec("sessions-65")
async def test_an_answer_under_way_comes_before_the_end(own_server: Serve) -> None:
    with chat_backend() as backend:
        server = own_server(*FAST, "--chat-engine", "remote", "--chat-url", backend.url)
        backend.hold.clear()
        async with talk(server) as client:
            await client.send("text_input", text="one last thing")
            await client.synchronise()
            server.signal(signal.SIGTERM)
            end = time.monotonic() + 5
            while (await asyncio.to_thread(server.get, "/health"))[0] != 503:
                assert time.monotonic() < end
            backend.hold.set()
            assert (await client.receive())["text"] == "A greeting."
            assert (await client.closed())[1] == 1012
        assert await asyncio.to_thread(server.wait, 10) == 0
