"""The envelope surface over real sockets: keys, messages, utterances, every row of the error catalogue."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from contextlib import suppress
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from harness.audio import load as load_audio
from harness.corpus import load
from tests.end_to_end.clients import Yap, encoded, realtime, text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import sentence
from wire.scripted import speak
from wire.words import TimedWord

PATH = "/api/asr-streaming"
MODEL = "scripted"
SILENCE = bytes(32_000)


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


# ---- coming in


async def rejected(url: str, **headers: str) -> tuple[dict[str, Any], int, str]:
    """The one frame, close code and reason that a client gets who may not come in."""
    async with connect(url, additional_headers=headers) as socket:
        frames, code, reason = await Yap(socket).closed()
    assert len(frames) == 1
    return frames[0], code, reason


def assert_rejection(told: tuple[dict[str, Any], int, str], reason_code: str, close_code: int) -> None:
    frame, code, reason = told
    assert code == close_code
    assert frame == {
        "type": "error",
        "session_id": "unknown",
        "request_id": "unknown",
        "payload": {"code": reason_code, "message": reason, "details": {"reason_code": reason_code}},
    }
    assert 0 < len(reason.encode()) <= 123


async def admitted(url: str, **headers: str) -> None:
    async with connect(url, additional_headers=headers) as socket:
        assert (await Yap(socket).receive())["type"] == "session.created"


@pytest.mark.parametrize(
    ("query", "header"),
    [
        ("", None),
        ("?api_key=", None),
        ("?api_key=%20", None),
        ("?api_key=wrong", None),
        ("", "wrong"),
        ("?api_key=wrong", KEY),
        (f"?api_key={KEY}x", None),
        (f"?api_key={KEY.upper()}", None),
        ("?api_key=%ff%fe", None),
        ("?api_key=schl%C3%BCssel", None),
    ],
)
@pytest.mark.spec("yap-04", "yap-05", "yap-06", "yap-09")
async def test_without_the_right_key_nobody_comes_in(server: RunningServer, query: str, header: str | None) -> None:
    headers = {} if header is None else {"X-API-Key": header}
    assert_rejection(await rejected(server.ws(PATH + query), **headers), "authentication_failed", 1008)


@pytest.mark.parametrize(
    ("query", "header"),
    [(f"?api_key={KEY}", None), ("", KEY), ("?api_key=", KEY), ("?api_key=%20%20", KEY), (f"?api_key={KEY}", "wrong")],
)
@pytest.mark.spec("yap-04", "yap-05")
async def test_the_key_in_the_query_wins_unless_it_is_blank(
    server: RunningServer, query: str, header: str | None
) -> None:
    await admitted(server.ws(PATH + query), **({} if header is None else {"X-API-Key": header}))


@pytest.mark.spec("yap-07", "yap-08", "yap-09", "yap-12")
async def test_a_full_server_says_so_after_it_has_looked_at_the_key(serve: Serve) -> None:
    server = serve("--max-concurrent-connections", "2")
    await server.until_idle()
    async with yap(server) as first, yap(server):
        assert_rejection(await rejected(server.ws(f"{PATH}?api_key={KEY}")), "server_at_capacity", 1013)
        assert_rejection(await rejected(server.ws(f"{PATH}?api_key=wrong")), "authentication_failed", 1008)
        await first.synchronise()
        await first.send("end")
        assert (await first.receive())["type"] == "session_end"
        await server.until_metric(lambda value: value == 1, "earmark_connections_active", surface="yap")
        await admitted(server.ws(f"{PATH}?api_key={KEY}"))


@pytest.mark.spec("yap-12")
async def test_places_of_clients_that_vanish_while_coming_in_are_free_again(serve: Serve) -> None:
    server = serve("--max-concurrent-connections", "2")
    await server.until_idle()
    handshake = (
        f"GET {PATH}?api_key={KEY} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    for key in (KEY, "wrong") * 20:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(handshake.replace(KEY.encode(), key.encode()))
        writer.transport.abort()
    await server.until_idle()
    async with yap(server), yap(server) as second:
        await second.synchronise()


@pytest.mark.spec("yap-07")
async def test_capacity_is_the_engines_slots_unless_it_is_set(serve: Serve) -> None:
    server = serve("--script", '{"slots": 1}')
    await server.until_idle()
    async with yap(server):
        assert_rejection(await rejected(server.ws(f"{PATH}?api_key={KEY}")), "server_at_capacity", 1013)


@pytest.mark.spec("yap-10")
async def test_any_of_several_keys_opens(serve: Serve) -> None:
    server = serve(environment={"EARMARK_API_KEYS": "second, third"})
    for key in (KEY, "second", "third"):
        await admitted(server.ws(f"{PATH}?api_key={key}"))
    assert_rejection(await rejected(server.ws(f"{PATH}?api_key=second,")), "authentication_failed", 1008)


@pytest.mark.spec("yap-11")
async def test_a_server_without_a_key_is_locked_and_prints_the_key_it_made_up(serve: Serve) -> None:
    server = serve(key="  ")
    assert_rejection(await rejected(server.ws(PATH)), "authentication_failed", 1008)
    made_up = re.search(r"No VOXTRAL_API_KEY is set. The key of this run: (\S+)", server.log())
    assert made_up is not None
    await admitted(server.ws(f"{PATH}?api_key={made_up[1]}"))


@pytest.mark.spec("http-02")
def test_health_is_exactly_what_the_launcher_wants(server: RunningServer) -> None:
    assert server.get("/healthz") == (200, b'{"status":"ok"}')
    assert json.loads(server.get("/")[1])["status"] == "ok"
    assert server.get("/health")[0] == 200


# ---- greeting and session.update


@pytest.mark.spec("yap-02")
async def test_session_created_comes_first(server: RunningServer) -> None:
    before = int(time.time())
    async with yap(server, greeted=False) as client:
        frame = await client.receive()
    assert (frame["type"], frame["session_id"], frame["request_id"]) == ("session.created", "unknown", "unknown")
    assert set(frame["payload"]) == {"id", "created"}
    assert re.fullmatch(r"sess-[0-9a-f]+", frame["payload"]["id"])
    assert before <= frame["payload"]["created"] <= time.time()


@pytest.mark.spec("yap-03")
async def test_no_two_sessions_have_the_same_id(server: RunningServer) -> None:
    ids = set()
    for _ in range(3):
        async with yap(server, greeted=False) as client:
            ids.add((await client.receive())["payload"]["id"])
    assert len(ids) == 3


@pytest.mark.parametrize(
    "payload",
    [{}, {"model": None}, {"model": 5}, {"model": ["x"]}, {"model": ""}, {"model": MODEL}, {"model": f" {MODEL}\n"}],
)
@pytest.mark.spec("yap-23", "yap-24")
async def test_a_session_update_with_the_served_model_is_answered(
    server: RunningServer, payload: dict[str, Any]
) -> None:
    async with yap(server) as client:
        await client.send("session.update", "r9", "s9", **payload)
        frame = await client.receive()
    assert (frame["type"], frame["session_id"], frame["request_id"]) == ("session.updated", "s9", "r9")
    assert frame["payload"] == {"model": MODEL, "delay_ms": 480}


@pytest.mark.parametrize("model", ["other", " ", "\n\t", MODEL.upper(), MODEL + "x"])
@pytest.mark.spec("yap-25")
async def test_another_model_is_refused(server: RunningServer, model: str) -> None:
    async with yap(server) as client:
        await client.send("session.update", model=model)
        error = await client.error()
        assert error["code"] == "invalid_payload"
        assert error["details"] == {"allowed_model": MODEL, "requested": model, "reason_code": "unsupported_model"}
        assert text_of(await client.say(sentence("still", "works"))) == "still works"


@pytest.mark.parametrize("name", ["my-asr", "scripted", "mistralai/Voxtral-Mini-4B-Realtime-2602"])
@pytest.mark.spec("yap-24")
async def test_a_server_may_serve_its_model_under_another_name(serve: Serve, name: str) -> None:
    server = serve("--served-model-name", "my-asr")
    async with yap(server) as client:
        await client.send("session.update", model=name)
        assert (await client.receive())["payload"]["model"] == "my-asr"


@pytest.mark.parametrize("delay_ms", [80, 160, 480, 2400, 160.0])
@pytest.mark.spec("yap-27")
async def test_the_delay_of_an_utterance_can_be_chosen(server: RunningServer, delay_ms: float) -> None:
    async with yap(server) as client:
        await client.send("session.update", delay_ms=delay_ms)
        assert (await client.receive())["payload"] == {"model": MODEL, "delay_ms": delay_ms}
        frames = await client.say(sentence("hello"))
        assert frames[-1]["payload"]["delay_ms"] == delay_ms
        await client.start("r2", delay_ms=240)
        await client.append(sentence("again"), "r2")
        await client.finish("r2")
        assert (await client.heard("r2"))[-1]["payload"]["delay_ms"] == 240
        assert (await client.say(sentence("hello"), "r3"))[-1]["payload"]["delay_ms"] == delay_ms


@pytest.mark.parametrize("field", ["delay_ms", "vad"])
@pytest.mark.parametrize("value", [0, -80, 100, 2480, 1e300, "480", True, False, [], {}, "auto ", "on", 480.5])
@pytest.mark.spec("yap-29")
async def test_an_impossible_option_is_refused_and_nothing_starts(
    server: RunningServer, field: str, value: Any
) -> None:
    async with yap(server) as client:
        starts: dict[str, Any] = {"session.update": {}, "input_audio_buffer.commit": {"final": False}}
        for kind, payload in starts.items():
            await client.send(kind, **{**payload, field: value})
            error = await client.error()
            assert error["code"] == "invalid_payload"
            assert error["details"] == {
                "reason_code": "unsupported_delay" if field == "delay_ms" else "unsupported_vad"
            }
        await client.send("input_audio_buffer.append", audio=encoded(SILENCE))
        assert (await client.error())["details"]["reason_code"] == "no_active_request"


@pytest.mark.spec("yap-28", "yap-29")
async def test_vad_cannot_be_had_where_it_is_switched_off(serve: Serve) -> None:
    async with yap(serve("--no-vad")) as client:
        await client.start(vad="auto")
        assert (await client.error())["details"] == {"reason_code": "unsupported_vad"}
        await client.start(vad="off")
        await client.append(sentence("fine"))
        await client.finish()
        assert text_of(await client.heard()) == "fine"


# ---- at once: ping, pong, end


@pytest.mark.spec("yap-40")
async def test_ping_is_answered_with_the_same_ids(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.send("ping", "r5", "s5", anything=1)
        assert await client.receive() == {"type": "pong", "session_id": "s5", "request_id": "r5", "payload": {}}


@pytest.mark.spec("yap-41")
async def test_pong_is_ignored(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.send("pong")
        await client.synchronise()


@pytest.mark.spec("yap-42")
async def test_end_is_answered_and_closes_whatever_is_under_way(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.start()
        await client.append(sentence("never", "heard"))
        await client.send("end", "r6", "s6")
        frames, code, _ = await client.closed()
    assert frames[-1] == {"type": "session_end", "session_id": "s6", "request_id": "r6", "payload": {}}
    assert {frame["type"] for frame in frames[:-1]} <= {"token"}
    assert code == 1000


# ---- utterances


@pytest.mark.spec("yap-14", "yap-26", "yap-32", "yap-43", "yap-44", "yap-48", "yap-49")
async def test_an_utterance_is_tokens_final_and_done(server: RunningServer) -> None:
    async with yap(server) as client:
        frames = await client.say(sentence("the", "quick", "brown", "fox"))
        assert text_of(frames) == "the quick brown fox"
        assert len(frames) > 3
        done = frames[-1]["payload"]
        # the engine without tokens counts 80 ms steps and words: 1.6 s are 20 steps
        assert done["usage"] == {
            "prompt_tokens": 20,
            "completion_tokens": 4,
            "total_tokens": 24,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }
        assert done["audio_seconds"] == 1.6
        assert done["ended_by"] == "client"
        words = frames[-2]["payload"]["words"]
        assert words[1] == {"text": "quick", "start": 0.4, "end": 0.7}
        await client.synchronise()


@pytest.mark.spec("yap-45")
async def test_text_comes_while_the_audio_still_arrives(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.start()
        await client.append(sentence("early", "bird") + SILENCE)
        shown = ""
        while shown != "early bird":
            frame = await client.receive()
            assert frame["type"] == "token"
            shown += frame["payload"]["text"]
        await client.append(sentence("late"))
        await client.finish()
        assert text_of([*await client.receive_until("done")]) == "early bird late"


@pytest.mark.parametrize("pcm", [b"", b"\0\0", SILENCE])
@pytest.mark.spec("yap-46")
async def test_silence_gives_an_empty_final(server: RunningServer, pcm: bytes) -> None:
    async with yap(server) as client:
        frames = await client.say(pcm)
        assert [frame["type"] for frame in frames] == ["final", "done"]
        assert text_of(frames) == ""
        assert frames[-1]["payload"]["audio_seconds"] == round(len(pcm) / 32_000, 3)


@pytest.mark.parametrize("chunk_bytes", [2, 2560, 4094, 1_000_000])
@pytest.mark.spec("yap-31")
async def test_any_chunk_size_works(server: RunningServer, chunk_bytes: int) -> None:
    async with yap(server) as client:
        pcm = sentence("any", "size") if chunk_bytes > 2 else speak([TimedWord("any size", 0.0, 0.05)], 0.06)
        assert text_of(await client.say(pcm, chunk_bytes=chunk_bytes)) == "any size"


@pytest.mark.spec("yap-39")
async def test_two_utterances_on_one_connection(server: RunningServer) -> None:
    async with yap(server) as client:
        assert text_of(await client.say(sentence("number", "one"), "first")) == "number one"
        assert text_of(await client.say(sentence("number", "two"), "second")) == "number two"
        assert text_of(await client.say(sentence("number", "three"), "first")) == "number three"


async def test_one_session_id_on_two_connections(server: RunningServer) -> None:
    async with yap(server) as one, yap(server) as two:
        for client in (one, two):
            await client.start()
        await one.append(sentence("to", "the", "left"))
        await two.append(sentence("to", "the", "right"))
        for client in (two, one):
            await client.finish()
        assert text_of(await one.heard()) == "to the left"
        assert text_of(await two.heard()) == "to the right"


@pytest.mark.spec("yap-13")
async def test_connections_with_one_session_id_are_strangers(server: RunningServer) -> None:
    async with yap(server) as one, yap(server) as two:
        for client, word in ((one, "mine"), (two, "yours")):
            await client.start()  # both say s1 and r1
            await client.append(sentence(word))
        await one.send("cancel")
        await one.receive_until("cancelled")
        await two.finish()
        assert text_of(await two.heard()) == "yours"


@pytest.mark.spec("yap-51")
async def test_speech_without_text_is_told_and_the_utterance_goes_on(serve: Serve) -> None:
    """Real speech, of which the scripted engine makes nothing."""
    utterances = load("spoken-en").utterances[:20]
    pcm = b"".join(load_audio(utterance) for utterance in utterances)
    async with yap(serve()) as client:
        await client.start()
        await client.append(pcm + sentence("text", "at", "last"))
        status = await client.receive()
        assert (status["type"], status["request_id"]) == ("status", "r1")
        assert set(status["payload"]) == {"kind", "seconds"}
        assert status["payload"]["kind"] == "speech_without_text"
        assert 10 <= status["payload"]["seconds"] <= len(pcm) / 32_000
        await client.finish()
        assert text_of(await client.receive_until("done")) == "text at last"


@pytest.mark.spec("yap-47")
async def test_frames_of_an_utterance_carry_the_session_id_that_started_it(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.send("input_audio_buffer.commit", "r1", "starter", final=False)
        await client.send("input_audio_buffer.append", "r1", "other", audio=encoded(sentence("whose")))
        await client.send("input_audio_buffer.commit", "r1", "another", final=True)
        assert {frame["session_id"] for frame in await client.heard()} == {"starter"}


@pytest.mark.spec("yap-15")
async def test_ids_are_trimmed(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.send(" input_audio_buffer.commit ", " r1", "\ts1 ", final=False)
        await client.append(sentence("trimmed"))
        await client.send("input_audio_buffer.commit", "r1 ", " s1", final=True)
        assert text_of(await client.heard("r1")) == "trimmed"


@pytest.mark.spec("yap-30")
@pytest.mark.parametrize(
    ("start", "finish"), [({}, {"final": "false"}), ({"final": None}, {"final": 1}), ({"final": 0}, {"final": [0]})]
)
async def test_final_is_judged_by_truthiness(
    server: RunningServer, start: dict[str, Any], finish: dict[str, Any]
) -> None:
    async with yap(server) as client:
        await client.send("input_audio_buffer.commit", **start)
        await client.append(sentence("truly", "final"))
        await client.send("input_audio_buffer.commit", **finish)
        assert text_of(await client.heard()) == "truly final"


@pytest.mark.spec("yap-16")
@pytest.mark.parametrize("payload", ["", ',"payload":null'])
async def test_a_payload_may_be_missing_or_null(server: RunningServer, payload: str) -> None:
    async with yap(server) as client:
        for kind, answer in (("ping", "pong"), ("session.update", "session.updated"), ("cancel", "cancelled")):
            await client.send_raw(f'{{"type":"{kind}","session_id":"s","request_id":"r"{payload}}}')
            assert (await client.receive())["type"] == answer


@pytest.mark.spec("yap-33")
async def test_committing_the_active_id_again_is_no_cancel(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.start()
        await client.append(sentence("before"))
        await client.start()
        await client.append(sentence("after"))
        await client.finish()
        assert text_of(await client.heard()) == "before after"


@pytest.mark.spec("yap-35")
async def test_the_id_of_a_finished_utterance_can_start_the_next_before_its_done(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 300}')
    async with yap(server) as client:
        for word in ("one", "two"):
            await client.start()
            await client.append(sentence(word))
            await client.finish()
        assert text_of(await client.heard()) == "one"
        assert text_of(await client.heard()) == "two"
        await client.synchronise()


# ---- cancel and barge-in


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ({"reason": "user pressed stop"}, "user pressed stop"),
        ({}, "client_request"),
        ({"reason": None}, "client_request"),
        ({"reason": ""}, "client_request"),
        ({"reason": 5}, "client_request"),
    ],
)
@pytest.mark.spec("yap-37")
async def test_cancel_is_answered_even_when_nothing_runs(
    server: RunningServer, payload: dict[str, Any], reason: str
) -> None:
    async with yap(server) as client:
        await client.send("cancel", "r7", "s7", **payload)
        assert await client.receive() == {
            "type": "cancelled",
            "session_id": "s7",
            "request_id": "r7",
            "payload": {"reason": reason},
        }
        await client.synchronise()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.spec("yap-38")
async def test_after_a_cancel_nothing_of_it_comes_and_the_next_is_whole(serve: Serve, finished: bool) -> None:
    server = serve("--script", '{"final_latency_ms": 300}')
    async with yap(server) as client:
        await client.start("gone")
        await client.append(sentence("gone", "with", "the", "wind"), "gone")
        if finished:
            await client.finish("gone")
        await client.send("cancel", "gone")
        frames = await client.receive_until("cancelled")
        assert {frame["type"] for frame in frames[:-1]} <= {"token"}
        await client.send("input_audio_buffer.append", "gone", audio=encoded(SILENCE))
        assert (await client.error())["details"]["reason_code"] == "no_active_request"
        assert text_of(await client.say(sentence("here", "to", "stay"), "next")) == "here to stay"
        assert text_of(await client.say(sentence("and", "again"), "gone")) == "and again"
        await client.synchronise()
    await server.until_idle()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.spec("yap-34")
async def test_barge_in_says_nothing_about_the_cancelled_one(serve: Serve, finished: bool) -> None:
    server = serve("--script", '{"final_latency_ms": 300, "latency_ms": 50}')
    async with yap(server) as client:
        await client.start("gone")
        await client.append(sentence("gone", "with", "the", "wind"), "gone")
        if finished:
            await client.finish("gone")
        frames = await client.say(sentence("here", "to", "stay"), "next")  # takes nothing but frames of "next"
        assert text_of(frames) == "here to stay"
        await client.synchronise()
        assert text_of(await client.say(sentence("once", "more"), "third")) == "once more"
    await server.until_idle()


@pytest.mark.spec("yap-34")
async def test_barge_in_after_the_same_id_was_finished_twice(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 300, "latency_ms": 200}')
    async with yap(server) as client:
        for _ in range(2):
            await client.start("twice")
            await client.append(sentence("twice"), "twice")
            await client.finish("twice")
        await client.heard("twice")  # the second one is still in flight
        assert text_of(await client.say(sentence("other"), "other")) == "other"
        await client.synchronise()


@pytest.mark.spec("yap-34")
async def test_many_barge_ins_leave_the_last_one(server: RunningServer) -> None:
    async with yap(server) as client:
        for n in range(50):
            await client.start(f"r{n}")
            await client.append(sentence(f"word{n}"), f"r{n}")
        await client.finish("r49")
        frames = await client.receive_until("done")
        assert text_of(frames) == "word49"
        assert [frame["type"] for frame in frames if frame["request_id"] != "r49"] in ([], ["token"])
    await server.until_idle()


# ---- the error catalogue


@pytest.mark.spec("yap-15", "yap-17", "yap-18", "yap-19")
async def test_bad_frames_are_answered_with_the_newest_valid_ids_and_change_nothing(server: RunningServer) -> None:
    good = {"type": "ping", "session_id": "s", "request_id": "r", "payload": {}}
    bad: list[str | bytes] = [
        "",
        "not json",
        "[" * 100_000,
        "[1, 2]",
        "null",
        b"\x00\x01\x02\x03",
        b"",
        json.dumps(good).encode(),  # right, but binary
        json.dumps(good | {"payload": []}),
        json.dumps(good | {"type": "  "}),
        json.dumps(good | {"session_id": "\t"}),
        json.dumps(good | {"request_id": 7}),
        json.dumps({"type": "ping"}),
    ]
    async with yap(server) as client:
        for ids in (("unknown", "unknown"), ("s1", "r1")):
            for frame in bad:
                await client.send_raw(frame)
                answer = await client.receive()
                assert (answer["session_id"], answer["request_id"]) == ids
                assert answer["type"] == "error"
                assert answer["payload"]["code"] == "invalid_message"
                assert answer["payload"]["details"] == {"reason_code": "invalid_message"}
            if ids[0] == "unknown":
                await client.start()
                await client.append(sentence("in", "between"))
                assert (await client.receive())["type"] == "token"
        await client.finish()
        assert text_of(await client.receive_until("done")) == "in between"


@pytest.mark.spec("yap-53")
async def test_an_unknown_type_is_named(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.send("input_audio_buffer.clear", "r8", "s8")
        frame = await client.receive()
        assert (frame["session_id"], frame["request_id"]) == ("s8", "r8")
        assert frame["payload"]["code"] == "invalid_message"
        assert frame["payload"]["details"] == {"reason_code": "unknown_message_type"}
        assert "input_audio_buffer.clear" in frame["payload"]["message"]
        await client.synchronise()


@pytest.mark.parametrize("payload", [{}, {"audio": None}, {"audio": 5}, {"audio": ""}, {"audio": " \n"}])
@pytest.mark.parametrize("request_id", ["r1", "not-active"])
@pytest.mark.spec("yap-52", "yap-54")
async def test_missing_audio_comes_before_the_ids(
    server: RunningServer, payload: dict[str, Any], request_id: str
) -> None:
    async with yap(server) as client:
        for _ in range(2):
            await client.send("input_audio_buffer.append", request_id, **payload)
            error = await client.error()
            assert (error["code"], error["details"]) == ("invalid_payload", {"reason_code": "missing_audio"})
            await client.start()


@pytest.mark.spec("yap-52", "yap-55")
async def test_without_an_active_request_audio_and_finish_are_refused(server: RunningServer) -> None:
    async with yap(server) as client:
        for after in ("connecting", "final commit"):
            await client.send("input_audio_buffer.append", audio=encoded(SILENCE))
            error = await client.error()
            assert (error["code"], error["details"]) == ("invalid_payload", {"reason_code": "no_active_request"}), after
            await client.finish()
            error = await client.error()
            assert (error["code"], error["details"]) == ("invalid_payload", {"reason_code": "no_active_request"}), after
            await client.say(sentence("done"))


@pytest.mark.spec("yap-55")
async def test_audio_behind_the_final_commit_is_refused_and_the_text_stands(serve: Serve) -> None:
    server = serve("--script", '{"final_latency_ms": 300}')
    async with yap(server) as client:
        await client.start()
        await client.append(sentence("the", "end"))
        await client.finish()
        await client.send("input_audio_buffer.append", audio=encoded(sentence("too", "late")))
        await client.finish()
        frames = await client.receive_until("done")
        errors = [frame["payload"]["details"] for frame in frames if frame["type"] == "error"]
        assert errors == [{"reason_code": "no_active_request"}] * 2
        assert text_of(frames) == "the end"


@pytest.mark.spec("yap-52", "yap-56")
async def test_another_id_than_the_active_one_is_a_mismatch(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.start("right")
        await client.send("input_audio_buffer.append", "wrong", "s2", audio=encoded(SILENCE))
        frame = await client.receive()
        assert (frame["session_id"], frame["request_id"]) == ("s2", "wrong")
        details = {"active_request_id": "right", "reason_code": "request_id_mismatch"}
        assert (frame["payload"]["code"], frame["payload"]["details"]) == ("invalid_payload", details)
        await client.finish("wrong")
        error = await client.error()
        assert (error["code"], error["details"]) == ("invalid_payload", details)
        await client.append(sentence("goes", "on"), "right")
        await client.finish("right")
        assert text_of(await client.heard("right")) == "goes on"


@pytest.mark.parametrize(
    "audio",
    ["!!!", "AQI", "AQ==", "AQID", "AQI=AQI=", base64.urlsafe_b64encode(b"\xff\xfe" * 3).decode(), "====", "ÄÖ=="],
    ids=[
        "no base64",
        "no padding",
        "one byte",
        "three bytes",
        "padding inside",
        "the other alphabet",
        "nothing",
        "umlauts",
    ],
)
@pytest.mark.spec("yap-57")
async def test_bad_audio_is_skipped_and_the_utterance_goes_on(server: RunningServer, audio: str) -> None:
    async with yap(server) as client:
        await client.start()
        await client.send("input_audio_buffer.append", audio=audio)
        frame = await client.receive()
        assert frame["request_id"] == "r1"
        assert (frame["payload"]["code"], frame["payload"]["details"]) == (
            "invalid_audio",
            {"reason_code": "invalid_audio"},
        )
        await client.append(sentence("goes", "on"))
        await client.finish()
        assert text_of(await client.heard()) == "goes on"


@pytest.mark.parametrize("code", ["processing_error", "invalid_audio", "overloaded"])
@pytest.mark.spec("yap-50")
async def test_a_failing_engine_ends_the_utterance_with_its_code(serve: Serve, code: str) -> None:
    server = serve("--script", json.dumps({"faults": [{"at": 1.0, "code": code, "message": "it broke"}]}))
    async with yap(server) as client:
        for request in ("first", "second"):
            await client.start(request)
            await client.append(sentence("one", "two", "three", "four"), request)
            frames = await client.receive_until("error")
            assert {frame["type"] for frame in frames[:-1]} <= {"token"}
            assert frames[-1]["request_id"] == request
            assert frames[-1]["payload"] == {"code": code, "message": "it broke", "details": {"reason_code": code}}
            await client.finish(request)
            assert (await client.error())["details"]["reason_code"] == "no_active_request"
        assert text_of(await client.say(sentence("short"), "third")) == "short"
    await server.until_idle()


@pytest.mark.spec("yap-79", "realtime-49")
async def test_a_failing_engine_tells_nothing_of_its_machine(serve: Serve) -> None:
    said = "cannot read /opt/models/x.safetensors for <Engine at 0x7f3a5c001d30>, 3/4 done, see https://example.org/a/b"
    server = serve("--script", json.dumps({"faults": [{"at": 0.1, "message": said}]}))
    public = "cannot read ... for <Engine at ...>, 3/4 done, see https://example.org/a/b"
    async with yap(server) as envelope, realtime(server) as plain:
        await envelope.start()
        await plain.start()
        for client in (envelope, plain):
            await client.append(sentence("one"))
        assert (await envelope.receive_until("error"))[-1]["payload"]["message"] == public
        assert (await plain.receive_until("error"))[-1]["error"] == public


# ---- frames beyond the ordinary


@pytest.mark.spec("yap-20")
async def test_a_frame_of_almost_16_mib_is_heard(server: RunningServer) -> None:
    words = [TimedWord("first", 0.5, 1.0), TimedWord("last", 380.0, 380.5)]
    pcm = speak(words, 390.0)  # 12.5 MB, 16.6 million characters
    async with yap(server) as client:
        assert text_of(await client.say(pcm, chunk_bytes=len(pcm))) == "first last"


@pytest.mark.spec("yap-20")
async def test_a_frame_beyond_16_mib_closes_with_1009(server: RunningServer) -> None:
    async with yap(server) as client, yap(server) as neighbour:
        await client.start()
        await neighbour.start()
        with suppress(ConnectionClosed):  # it may come before all has been sent
            await client.send_raw(" " * (16 * 2**20 + 1))
        assert await client.lost() == 1009
        await neighbour.append(sentence("not", "me"))
        await neighbour.finish()
        assert text_of(await neighbour.heard()) == "not me"
    await server.until_idle()


@pytest.mark.spec("yap-21")
async def test_text_that_is_no_utf8_closes_with_1007(server: RunningServer) -> None:
    async with yap(server) as client:
        await client.socket.send(b"\xff\xfe{}", text=True)
        assert await client.lost() == 1007
    await server.until_idle()


@pytest.mark.spec("yap-20")
async def test_a_frame_in_fragments_is_one(server: RunningServer) -> None:
    async with yap(server) as client:
        text = json.dumps({"type": "ping", "session_id": "s", "request_id": "r", "payload": {"x": "ü" * 100}})
        await client.socket.send(text[n : n + 7] for n in range(0, len(text), 7))
        assert (await client.receive())["type"] == "pong"


@pytest.mark.spec("yap-22")
async def test_unusual_ids_come_back_as_they_are(server: RunningServer) -> None:
    async with yap(server) as client:
        for name in ("ü😀\u0000", "x" * 100_000, '"\\', "unknown"):
            assert text_of(await client.say(sentence("fine"), name)) == "fine"


# ---- going away


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.spec("yap-12")
async def test_a_client_that_vanishes_frees_slot_and_place(serve: Serve, finished: bool) -> None:
    server = serve("--script", '{"audio_rate": 1}')
    async with yap(server) as client:
        await client.start()
        await client.append(SILENCE * 20)
        if finished:
            await client.finish()
        await server.until_metric(lambda value: value == 1, "earmark_engine", figure="busy_slots")
        client.socket.transport.abort()
        await server.until_idle()
