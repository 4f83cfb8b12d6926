"""The realtime surface over real sockets: lifecycle, every row of its error table, bursts of any length."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.end_to_end.clients import RECEIVE_SECONDS, Realtime, encoded, realtime
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import distinct_words, random_words, sentence, spoken
from wire.pcm import seconds_of
from wire.scripted import speak
from wire.words import TimedWord

SILENCE = bytes(32_000)
HUGGING_FACE_ID = "mistralai/Voxtral-Mini-4B-Realtime-2602"


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


# ---- coming in


@pytest.mark.spec("realtime-02")
async def test_session_created_comes_first_and_by_itself(server: RunningServer) -> None:
    before = int(time.time())
    async with connect(server.ws("/v1/realtime")) as socket:
        frame = await Realtime(socket).receive()
    assert set(frame) == {"type", "id", "created"}
    assert frame["type"] == "session.created"
    assert re.fullmatch(r"sess-[0-9a-f]+", frame["id"])
    assert before <= frame["created"] <= time.time()


@pytest.mark.spec("realtime-03")
async def test_a_wrong_key_does_not_matter_where_none_is_required(server: RunningServer) -> None:
    async with connect(server.ws("/v1/realtime"), additional_headers={"Authorization": "Bearer wrong"}) as socket:
        assert (await Realtime(socket).receive())["type"] == "session.created"


@pytest.mark.spec("realtime-05")
async def test_there_is_no_cap_on_connections(serve: Serve) -> None:
    server = serve("--script", '{"slots": 2}', "--max-concurrent-connections", "1")
    clients = [await connect(server.ws("/v1/realtime")) for _ in range(40)]
    for socket in clients:
        assert (await Realtime(socket).receive())["type"] == "session.created"
    assert server.metric("earmark_connections_active", surface="realtime") == 40
    async with asyncio.timeout(RECEIVE_SECONDS):
        await asyncio.gather(*(socket.close() for socket in clients))
    await server.until_idle()


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x"])
@pytest.mark.spec("realtime-04", "http-11")
async def test_a_required_key_is_demanded_in_the_handshake(serve: Serve, authorization: str | None) -> None:
    server = serve("--require-key")
    headers = {} if authorization is None else {"Authorization": authorization}
    with pytest.raises(InvalidStatus) as refused:
        await connect(server.ws("/v1/realtime"), additional_headers=headers)
    assert refused.value.response.status_code == 401
    assert refused.value.response.body == b'{"error":"Unauthorized"}'
    assert server.get("/v1/models", **headers) == (401, b'{"error":"Unauthorized"}')


@pytest.mark.spec("realtime-04", "http-09", "http-11")
async def test_the_required_key_opens(serve: Serve) -> None:
    server = serve("--require-key")
    headers = {"Authorization": f"Bearer {KEY}"}
    async with connect(server.ws("/v1/realtime"), additional_headers=headers) as socket:
        assert (await Realtime(socket).receive())["type"] == "session.created"
    status, body = server.get("/v1/models", **headers)
    assert status == 200
    assert [model["id"] for model in json.loads(body)["data"]] == ["scripted", HUGGING_FACE_ID]
    assert server.get("/healthz")[0] == 200


async def test_a_required_key_is_made_up_when_there_is_none(serve: Serve) -> None:
    server = serve("--require-key", "--surfaces", "realtime", key="")
    made_up = re.search(r"The key of this run: (\S+)", server.log())
    assert made_up is not None
    async with connect(server.ws("/v1/realtime"), additional_headers={"Authorization": f"Bearer {made_up[1]}"}):
        pass


async def test_a_surface_that_is_off_is_not_there(serve: Serve) -> None:
    server = serve("--surfaces", "yap")
    with pytest.raises(InvalidStatus):
        await connect(server.ws("/v1/realtime"))


# ---- utterances


@pytest.mark.spec("realtime-11", "realtime-15", "realtime-22", "realtime-24", "realtime-25")
async def test_the_usual_order(server: RunningServer) -> None:
    async with realtime(server) as client:
        await client.start()
        await client.append(sentence("the", "usual", "order"), chunk_bytes=3200)
        await client.finish()
        frames = await client.receive_until("transcription.done")
        done = frames[-1]
        assert [set(frame) for frame in frames[:-1]] == [{"type", "delta"}] * (len(frames) - 1)
        assert all(frame["delta"] for frame in frames[:-1])
        assert "".join(frame["delta"] for frame in frames[:-1]) == done["text"] == "the usual order"
        # 1.2 s are 15 steps of 80 ms
        assert done["usage"] == {
            "prompt_tokens": 15,
            "completion_tokens": 3,
            "total_tokens": 18,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }
        assert done["words"][2] == {"text": "order", "start": 0.8, "end": 1.1}
        assert (done["delay_ms"], done["audio_seconds"]) == (480, 1.2)
        await client.silent()


@pytest.mark.spec("realtime-27")
async def test_the_tone_of_the_file_client_gives_a_done(server: RunningServer) -> None:
    # that client sends every frame before it reads the first answer
    async with realtime(server, model=HUGGING_FACE_ID) as client:
        assert await client.say(b"\x00\x10\x00\xf0" * 24_000, chunk_bytes=4096) == ""


@pytest.mark.spec("realtime-23")
async def test_deltas_come_while_audio_still_arrives(server: RunningServer) -> None:
    async with realtime(server) as client:
        await client.start()
        await client.append(sentence("early") + SILENCE)
        assert await client.receive() == {"type": "transcription.delta", "delta": "early"}
        await client.append(sentence("late"))
        await client.finish()
        frames = await client.receive_until("transcription.done")
        assert frames[-1]["text"] == "early late"


@pytest.mark.spec("realtime-13")
async def test_audio_before_the_commit_is_part_of_the_utterance(server: RunningServer) -> None:
    async with realtime(server, model=None) as client:
        await client.append(sentence("before", "the"))
        await client.update()  # even before the model was named
        await client.append(sentence("commit"))
        assert await client.say(sentence("and", "after")) == "before the commit and after"


@pytest.mark.spec("realtime-16")
async def test_a_final_commit_without_a_start_transcribes_what_there_is(server: RunningServer) -> None:
    async with realtime(server) as client:
        await client.append(sentence("no", "start"))
        await client.finish()
        assert await client.heard() == "no start"
        assert await client.say(sentence("as", "usual")) == "as usual"


@pytest.mark.spec("realtime-17")
async def test_a_final_commit_without_audio_is_an_empty_done(server: RunningServer) -> None:
    async with realtime(server) as client:
        for _ in range(3):
            await client.finish()
            frame = await client.receive()
            assert (frame["type"], frame["text"]) == ("transcription.done", "")
            assert frame["usage"]["total_tokens"] == 0
        assert await client.say(b"") == ""
        assert await client.say(sentence("then", "words")) == "then words"


@pytest.mark.spec("realtime-14")
async def test_a_second_commit_while_a_transcription_runs_is_ignored(server: RunningServer) -> None:
    async with realtime(server) as client:
        await client.start()
        await client.append(sentence("one", "of"))
        await client.start()
        await client.start()
        await client.append(sentence("one"))
        await client.finish()
        assert await client.heard() == "one of one"
        await client.silent()


@pytest.mark.spec("realtime-06", "realtime-19")
async def test_two_utterances_sent_back_to_back_are_both_complete(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 200, "latency_ms": 30}')
    async with realtime(server) as client:
        for words in (("the", "first", "one"), ("and", "the", "second"), ("third",)):
            await client.start()
            await client.append(sentence(*words), chunk_bytes=4096)
            await client.finish()
        assert [await client.heard() for _ in range(3)] == ["the first one", "and the second", "third"]
        await client.silent()


@pytest.mark.spec("realtime-18")
async def test_audio_after_the_final_commit_belongs_to_the_next_utterance(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 200}')
    async with realtime(server) as client:
        await client.start()
        await client.append(sentence("this"))
        await client.finish()
        await client.append(sentence("next"))
        assert await client.heard() == "this"
        await client.append(sentence("one"))
        assert await client.say(sentence("too")) == "next one too"


@pytest.mark.spec("realtime-11", "realtime-32")
async def test_the_model_stays_validated(server: RunningServer) -> None:
    async with realtime(server) as client:
        assert await client.say(sentence("one")) == "one"
        await client.update("other")
        assert (await client.error())["code"] == "model_not_found"
        await client.update("scripted")
        assert await client.say(sentence("two")) == "two"


@pytest.mark.parametrize("model", ["scripted", HUGGING_FACE_ID, "", " scripted "])
@pytest.mark.spec("realtime-12")
async def test_the_served_name_the_hub_name_and_the_empty_name_are_accepted(server: RunningServer, model: str) -> None:
    async with realtime(server, model=model) as client:
        assert await client.say(sentence("hello")) == "hello"


@pytest.mark.spec("realtime-12")
@pytest.mark.parametrize("model", ["my-asr", "scripted", HUGGING_FACE_ID])
async def test_a_model_served_under_another_name_keeps_its_own(serve: Serve, model: str) -> None:
    async with realtime(serve("--served-model-name", "my-asr"), model=model) as client:
        assert await client.say(sentence("hello")) == "hello"


@pytest.mark.spec("realtime-08")
async def test_unknown_fields_are_ignored(server: RunningServer) -> None:
    async with realtime(server, model=None) as client:
        await client.send("session.update", model="scripted", event_id="e1", session={"x": 1})
        await client.send("input_audio_buffer.commit", final=False, item_id=7)
        await client.send("input_audio_buffer.append", audio=encoded(sentence("fine")), seq=3)
        await client.send("input_audio_buffer.commit", final=True, why=None)
        assert await client.heard() == "fine"


@pytest.mark.spec("realtime-20")
async def test_the_delay_can_be_chosen(server: RunningServer) -> None:
    async with realtime(server, model=None) as client:
        await client.send("session.update", model="scripted", delay_ms=160)
        await client.start()
        await client.finish()
        assert (await client.receive())["delay_ms"] == 160
        await client.send("input_audio_buffer.commit", delay_ms=2400)
        await client.finish()
        assert (await client.receive())["delay_ms"] == 2400
        await client.finish()
        assert (await client.receive())["delay_ms"] == 160, "a commit's delay is that of one transcription"


@pytest.mark.parametrize("field", ["delay_ms", "vad"])
@pytest.mark.parametrize("value", [0, 100, "480", True, [], {}, "on"])
@pytest.mark.spec("realtime-21")
async def test_an_impossible_option_is_an_invalid_event(server: RunningServer, field: str, value: Any) -> None:
    async with realtime(server, model=None) as client:
        await client.send("session.update", model="scripted", **{field: value})
        assert (await client.error())["code"] == "invalid_event"
        await client.start()
        assert (await client.error())["code"] == "model_not_validated", "nothing of the update has happened"


@pytest.mark.spec("realtime-06")
async def test_nothing_ever_closes_the_connection(serve: Serve) -> None:
    server = serve("--idle-timeout-s", "0.1", "--max-connection-duration-s", "0.2")  # limits of the other surface
    async with realtime(server) as client:
        with pytest.raises(TimeoutError):
            await client.receive(0.6)
        await client.send_raw("garbage")
        await client.error()
        assert await client.say(sentence("still", "here")) == "still here"


@pytest.mark.spec("realtime-10")
async def test_closing_the_socket_ends_the_run(serve: Serve) -> None:
    server = serve("--script", '{"audio_rate": 1}')
    async with realtime(server) as client:
        await client.start()
        await client.append(SILENCE * 20)
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
    await server.until_idle()


# ---- the table of errors


ERRORS = [
    ("not json", "invalid_json", ""),
    ("", "invalid_json", ""),
    ("[" * 100_000, "invalid_json", ""),
    (b"binary", "invalid_json", ""),
    (b'{"type":"input_audio_buffer.commit"}', "invalid_json", ""),
    ('{"type":"response.create"}', "unknown_event", "response.create"),
    ('{"no":"type"}', "unknown_event", ""),
    ('{"type":"session.update"}', "invalid_event", "model"),
    ('{"type":"session.update","model":"other/model"}', "model_not_found", "other/model"),
    ('{"type":"session.update","model":"  "}', "model_not_found", ""),
    ('{"type":"session.update","model":7}', "processing_error", "model"),
    ('{"type":"input_audio_buffer.append","audio":"!!"}', "invalid_audio", ""),
    ('{"type":"input_audio_buffer.append","audio":"AQID"}', "invalid_audio", ""),
    ('{"type":"input_audio_buffer.append","audio":""}', "invalid_audio", ""),
    ('{"type":"input_audio_buffer.append"}', "processing_error", "audio"),
    ('{"type":"input_audio_buffer.append","audio":[1]}', "processing_error", "audio"),
    ('{"type":"input_audio_buffer.commit","final":"yes"}', "processing_error", "final"),
    ("[]", "processing_error", ""),
    ("7", "processing_error", ""),
]


@pytest.mark.parametrize(("frame", "code", "names"), ERRORS, ids=[f"{frame[:50]!r}" for frame, _, _ in ERRORS])
@pytest.mark.spec(
    "realtime-28",
    "realtime-29",
    "realtime-30",
    "realtime-31",
    "realtime-32",
    "realtime-34",
    "realtime-36",
    "realtime-39",
)
async def test_every_row_of_the_table(server: RunningServer, frame: str | bytes, code: str, names: str) -> None:
    async with realtime(server) as client:
        for moment in ("before", "within"):
            await client.send_raw(frame)
            error = await client.error()
            assert error["code"] == code, moment
            assert names in error["error"]
            await client.start()
        await client.append(sentence("not", "harmed"))
        await client.finish()
        assert await client.heard() == "not harmed"


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.spec("realtime-33")
async def test_a_commit_before_the_model_is_named_is_refused_and_does_nothing(
    server: RunningServer, final: bool
) -> None:
    async with realtime(server, model=None) as client:
        await client.append(sentence("kept"))
        await client.send("input_audio_buffer.commit", final=final)
        assert (await client.error())["code"] == "model_not_validated"
        await client.update("other")
        assert (await client.error())["code"] == "model_not_found"
        await client.send("input_audio_buffer.commit", final=final)
        assert (await client.error())["code"] == "model_not_validated"
        await client.update()
        await client.finish()
        assert await client.heard() == "kept"


@pytest.mark.spec("realtime-37", "realtime-39")
async def test_a_failing_engine_ends_the_run_without_a_done(serve: Serve) -> None:
    server = serve("--script", '{"faults": [{"at": 1.0, "message": "it broke"}]}')
    async with realtime(server) as client:
        await client.start()
        await client.append(sentence("one", "two", "three", "four"))
        frames = await client.receive_until("error")
        assert {frame["type"] for frame in frames[:-1]} <= {"transcription.delta"}
        assert frames[-1] == {"type": "error", "error": "it broke", "code": "processing_error"}
        await client.silent()
        assert await client.say(sentence("short")) == "short"
    await server.until_idle()


@pytest.mark.spec("realtime-38")
async def test_engines_that_are_full_are_told_as_a_processing_error(serve: Serve) -> None:
    server = serve("--script", '{"slots": 1}')
    async with realtime(server) as first, realtime(server) as second:
        await first.start()
        await first.append(SILENCE)
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
        await second.start()
        await second.append(SILENCE)
        assert (await second.error())["code"] == "processing_error"
        await first.finish()
        assert await first.heard() == ""


# ---- length


@pytest.mark.spec("realtime-41")
async def test_a_long_file_in_a_burst_is_heard_to_the_last_word(serve: Serve) -> None:
    server = serve("--no-vad")
    texts = random_words(1200, seed=11)
    pcm, _ = spoken(texts, seed=11)
    assert seconds_of(len(pcm)) > 600
    async with realtime(server) as client:
        assert await client.say(pcm, chunk_bytes=4096) == " ".join(texts)  # nothing is read before all is sent


@pytest.mark.spec("realtime-42")
async def test_44_minutes_in_a_burst(serve: Serve) -> None:
    server = serve("--no-vad")
    texts = random_words(5000, seed=12)
    pcm, _ = spoken(texts, seed=12)
    assert seconds_of(len(pcm)) > 44 * 60
    async with realtime(server) as client:
        async with asyncio.timeout(60):
            heard = await client.say(pcm, chunk_bytes=32_768)
        assert heard == " ".join(texts)
        assert server.metric("earmark_segments_total", surface="realtime") > 40
    await server.until_idle()


@pytest.mark.spec("realtime-43")
async def test_more_audio_than_may_wait_is_not_read_and_not_lost(serve: Serve) -> None:
    server = serve("--script", '{"audio_rate": 20}', "--max-queued-seconds", "2", "--no-vad")
    texts = distinct_words(60, seed=13)
    pcm, _ = spoken(texts, seed=13)
    async with realtime(server) as client:
        assert await client.say(pcm, chunk_bytes=4096) == " ".join(texts)


@pytest.mark.spec("realtime-09")
async def test_keepalive_pings_are_answered_while_a_burst_is_worked_off(serve: Serve) -> None:
    server = serve("--script", '{"audio_rate": 10}', "--no-vad")
    texts = distinct_words(60, seed=14)
    pcm, _ = spoken(texts, seed=14)
    async with realtime(server) as client:
        await client.start()
        await client.append(pcm)
        await client.finish()
        for _ in range(5):
            async with asyncio.timeout(RECEIVE_SECONDS):
                waited = await (await client.socket.ping())
            assert waited < 5
            await client.receive()
        assert server.metric("earmark_utterances_total", surface="realtime", outcome="final") == 0
        assert (await client.receive_until("transcription.done"))[-1]["text"] == " ".join(texts)


@pytest.mark.spec("realtime-07")
async def test_a_frame_of_almost_16_mib_is_heard(server: RunningServer) -> None:
    pcm = speak([TimedWord("first", 0.5, 1.0), TimedWord("last", 380.0, 380.5)], 390.0)  # 16.6 million characters
    async with realtime(server) as client:
        assert await client.say(pcm, chunk_bytes=len(pcm)) == "first last"


@pytest.mark.spec("realtime-07")
async def test_a_frame_beyond_16_mib_closes_with_1009(server: RunningServer) -> None:
    async with realtime(server) as client:
        sending = asyncio.create_task(client.socket.send(" " * (16 * 2**20 + 1)))
        assert await client.lost() == 1009
        await asyncio.wait([sending], timeout=RECEIVE_SECONDS)
        sending.cancel()
        assert sending.done()
        sending.exception()
    await server.until_idle()


@pytest.mark.spec("realtime-44")
async def test_uncommitted_audio_is_bounded(serve: Serve) -> None:
    server = serve("--max-queued-seconds", "2")
    async with realtime(server) as client:
        await client.append(sentence("kept") + SILENCE)
        await client.append(SILENCE, chunk_bytes=32_000)
        assert (await client.error())["code"] == "processing_error"
        await client.finish()
        assert await client.heard() == "kept"


# ---- the other paths of the same server


def test_the_other_paths_of_the_reference(server: RunningServer) -> None:
    assert server.get("/health")[0] == 200
    assert server.get("/ping")[0] == 200
    assert "version" in json.loads(server.get("/version")[1])
    listed = json.loads(server.get("/v1/models")[1])
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["scripted", HUGGING_FACE_ID]
    assert b"earmark_connections_active" in server.get("/metrics")[1]
