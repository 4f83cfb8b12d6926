"""Messages, errors and close codes that clients rely on, as tests/golden/ lists them: more may come, nothing may go or change."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect

from harness.audio import load as load_audio
from harness.corpus import load
from server.protocols.base import Close, Reply, Served
from server.protocols.yap import YapDialect
from tests.end_to_end.clients import Frame, Realtime, Talk, Yap, encoded, realtime, talk, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, RunningServer
from tests.end_to_end.speech import sentence
from wire import realtime as realtime_wire
from wire import sessions as sessions_wire
from wire import yap as yap_wire

GOLDEN = Path(__file__).parents[1] / "golden"
FAULTY = json.dumps({"faults": [{"at": 1.0}]})
SLOW = json.dumps({"audio_rate": 0.1})
FOUR_WORDS = sentence("one", "two", "three", "four")


def golden(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


YAP, REALTIME = golden("yap.messages.json"), golden("realtime.messages.json")
SESSIONS = golden("sessions.messages.json")


# ---- what servers send


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", dict: "object", list: "array"}
    return "null" if value is None else kinds[type(value)]


def shape(objects: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """Each key that any of the objects has, with the types of its values."""
    keys: dict[str, set[str]] = {}
    for each in objects:
        for key, value in each.items():
            keys.setdefault(key, set()).add(kind_of(value))
    return keys


def assert_kept(expected: dict[str, str], objects: Iterable[dict[str, Any]]) -> None:
    """Every key of the list is there, with nothing but its type."""
    found = shape(objects)
    assert {key: {kind} for key, kind in expected.items()} == {key: found.get(key) for key in expected}


@pytest.mark.spec("yap-14", "yap-78")
async def test_every_message_and_key_of_yap_is_still_sent(serve: Serve) -> None:
    frames: list[Frame] = []
    async with yap(serve(), greeted=False) as client:
        frames.append(await client.receive())
        for kind in ("session.update", "ping", "cancel", "unheard-of"):
            await client.send(kind)
            frames.append(await client.receive())
        await client.start()
        await client.append(sentence("said"))
        await client.finish()
        frames += await client.receive_until("done")
        await client.start()
        speech = b"".join(load_audio(utterance) for utterance in load("spoken-en").utterances[:20])
        await client.append(speech)  # of which the scripted engine makes nothing
        frames += await client.receive_until("status")
        await client.send("end")
        frames += await client.receive_until("session_end")
    async with yap(serve("--script", SLOW, "--max-backlog-seconds", "0.1", "--no-vad")) as client:
        await client.start()
        await client.append(bytes(320_000))
        frames += await client.receive_until("status")
    [final] = [frame["payload"] for frame in frames if frame["type"] == "final"]
    async with yap(serve("--sphinx-workers", "1", engine="sphinx")) as client:  # which revises what it heard
        frames = [frame for frame in frames if frame["type"] != "token"]  # they have words for who asks
        await client.start(tentative=True)
        await client.append(load_audio(load("spoken-en").utterances[0]))
        await client.finish()
        frames += await client.receive_until("done")
    for kind, expected in YAP["server"].items():
        said = [frame for frame in frames if frame["type"] == kind]
        assert said, f"no {kind} came"
        assert_kept(YAP["envelope"], said)
        assert_kept(expected, [frame["payload"] for frame in said])
    assert_kept(YAP["usage"], [frame["payload"]["usage"] for frame in frames if frame["type"] == "done"])
    assert_kept(YAP["words"], final["words"])


@pytest.mark.spec("realtime-48")
async def test_every_event_and_field_of_realtime_is_still_sent(serve: Serve) -> None:
    events: list[Frame] = []
    async with connect(serve().ws("/v1/realtime")) as socket:
        client = Realtime(socket)
        events.append(await client.receive())
        await client.send("unheard-of")
        events.append(await client.receive())
        await client.update()
        await client.start()
        await client.append(sentence("said"))
        await client.finish()
        events += await client.receive_until("transcription.done")
    for kind, expected in REALTIME["server"].items():
        assert_kept({"type": "string", **expected}, [event for event in events if event["type"] == kind])
    assert_kept(REALTIME["usage"], [events[-1]["usage"]])
    assert_kept(REALTIME["words"], events[-1]["words"])


def called(frame: Frame) -> str:
    """What the list of sessions calls it: some types are several messages."""
    return " ".join(frame[key] for key in ("type", "status", "control_type") if key in frame)


@pytest.mark.spec("sessions-68")
async def test_every_message_and_key_of_sessions_is_still_sent(serve: Serve) -> None:
    frames: list[Frame] = []
    server = serve(environment={"HEARTBEAT_INTERVAL": "0.2"})
    async with talk(server, greeted=False) as client, talk(server, client.session_id, kind="control") as control:
        frames.append(await client.receive())
        await client.control("configure", partials=True)
        for kind in ("ping", "get_stats"):
            await client.control(kind)
        await client.send_raw(bytes(3))
        await client.hear(sentence("said"))
        await client.control("end")
        while called(frames[-1]) != "control ended":
            frames.append(await client.receive())
        frames += await client.receive_until("heartbeat")
        await control.send("config_update", config={})
        frames.append(await control.receive())
    for kind, expected in SESSIONS["server"].items():
        said = [frame for frame in frames if called(frame) == kind]
        assert said, f"no {kind} came"
        assert_kept(expected, said)
    assert_kept(SESSIONS["stats"], [frame["stats"] for frame in frames if "stats" in frame])


# ---- what servers take in

SAMPLES = {
    "model": "m",
    "delay_ms": 480,
    "vad": "off",
    "tentative": True,
    "final": True,
    "audio": encoded(b"\1\0"),
    "reason": "because",
    "text": "said",
    "partials": True,
    "language": "en",
    "config": {},
}


@pytest.mark.spec("yap-78")
@pytest.mark.parametrize("kind", YAP["client"])
def test_every_message_and_key_of_yap_is_still_taken_in(kind: str) -> None:
    payload = {key: SAMPLES[key] for key in YAP["client"][kind]}
    assert shape([payload]) == {key: {kind_} for key, kind_ in YAP["client"][kind].items()}
    frame = json.dumps({"type": kind, "session_id": "s", "request_id": "r", "payload": payload})
    message = yap_wire.client_message(yap_wire.decode_envelope(frame))
    assert {key: getattr(message, key) for key in payload} == payload


@pytest.mark.spec("realtime-48")
@pytest.mark.parametrize("kind", REALTIME["client"])
def test_every_event_and_field_of_realtime_is_still_taken_in(kind: str) -> None:
    fields = {key: SAMPLES[key] for key in REALTIME["client"][kind]}
    assert shape([fields]) == {key: {kind_} for key, kind_ in REALTIME["client"][kind].items()}
    event = realtime_wire.decode_client(json.dumps({"type": kind, **fields}))
    assert {key: getattr(event, key) for key in fields} == fields


@pytest.mark.spec("sessions-68")
@pytest.mark.parametrize("kind", SESSIONS["client"])
def test_every_message_and_key_of_sessions_is_still_taken_in(kind: str) -> None:
    fields = {key: SAMPLES[key] for key in SESSIONS["client"][kind]}
    assert shape([fields]) == {key: {kind_} for key, kind_ in SESSIONS["client"][kind].items()}
    names = dict(zip(("type", "control_type"), kind.split(), strict=False))
    message = sessions_wire.decode_client(json.dumps(names | fields), plain_text=False)
    assert not isinstance(message, sessions_wire.Other)
    assert {key: getattr(message, key) for key in fields} == fields


# ---- errors

Sent = list[tuple[str, dict[str, Any]]]
START: Sent = [("input_audio_buffer.commit", {"final": False})]
YAP_MISTAKES: dict[str, Sent] = {
    "invalid_message": [(" ", {})],
    "unknown_message_type": [("unheard-of", {})],
    "unsupported_model": [("session.update", {"model": "other"})],
    "unsupported_delay": [("session.update", {"delay_ms": 1})],
    "unsupported_vad": [("session.update", {"vad": "on"})],
    "no_active_request": [("input_audio_buffer.commit", {"final": True})],
    "missing_audio": [("input_audio_buffer.append", {})],
    "invalid_audio": [*START, ("input_audio_buffer.append", {"audio": "!"})],
    "processing_error": [*START, ("input_audio_buffer.append", {"audio": encoded(FOUR_WORDS)})],
}


async def mistaken(serve: Serve, reason: str) -> tuple[Frame, int | None]:
    """The error of this reason, provoked, and the code of the close that follows; None when the connection stays open."""
    match reason:
        case "authentication_failed":
            return await turned_away(serve(), "wrong")
        case "server_at_capacity":
            server = serve("--max-concurrent-connections", "1")
            async with yap(server):
                return await turned_away(server, KEY)
        case "inbound_queue_full":
            options = ("--max-backlog-seconds", "off", "--max-queued-seconds", "1", "--inbound-queue-max", "1")
            async with yap(serve("--script", SLOW, *options)) as client:
                await client.start()
                await client.append(bytes(320_000), chunk_bytes=32_000)
                [frame], code, _ = await client.closed()
                return frame, code
        case "internal_error":  # cannot be brought about from outside
            dialect = YapDialect(Served(["m"], [480], 480, timed_words=True, endpointing=True))
            reply, close = dialect.crashed()
            assert isinstance(reply, Reply)
            assert isinstance(close, Close)
            return json.loads(reply.frame), close.code
    async with yap(serve("--script", FAULTY)) as client:
        if reason == "request_id_mismatch":
            await client.start("another")
            await client.finish()
        for kind, payload in YAP_MISTAKES.get(reason, []):
            await client.send(kind, **payload)
        frames = await client.receive_until("error")
        await client.synchronise()
        return frames[-1], None


async def turned_away(server: RunningServer, key: str) -> tuple[Frame, int]:
    async with connect(server.ws(f"/api/asr-streaming?api_key={quote(key)}")) as socket:
        [frame], code, _ = await Yap(socket).closed()
    return frame, code


@pytest.mark.spec("yap-52", "yap-78")
@pytest.mark.parametrize("row", golden("yap.errors.json"), ids=lambda row: row["reason_code"])
async def test_every_error_of_yap_keeps_its_codes_its_details_and_its_close(serve: Serve, row: dict[str, Any]) -> None:
    frame, close = await mistaken(serve, row["reason_code"])
    payload = frame["payload"]
    assert (payload["code"], payload["details"]["reason_code"]) == (row["code"], row["reason_code"])
    assert set(row["details"]) <= set(payload["details"])
    assert close == row["close"]


REALTIME_MISTAKES = {
    "invalid_json": "{",
    "unknown_event": '{"type":"unheard-of"}',
    "invalid_event": '{"type":"session.update"}',
    "model_not_found": '{"type":"session.update","model":"other"}',
    "model_not_validated": '{"type":"input_audio_buffer.commit"}',
    "invalid_audio": '{"type":"input_audio_buffer.append","audio":"!"}',
    "processing_error": '{"type":"input_audio_buffer.append"}',
}


@pytest.mark.spec("realtime-39", "realtime-48")
@pytest.mark.parametrize("row", golden("realtime.errors.json"), ids=lambda row: row["code"])
async def test_every_error_of_realtime_keeps_its_code_and_leaves_the_connection_open(
    serve: Serve, row: dict[str, Any]
) -> None:
    async with realtime(serve(), model=None) as client:
        await client.send_raw(REALTIME_MISTAKES[row["code"]])
        assert (await client.error())["code"] == row["code"]
        assert row["close"] is None
        async with asyncio.timeout(15):
            await client.silent()


@pytest.mark.spec("sessions-68")
@pytest.mark.parametrize("row", golden("sessions.errors.json"), ids=lambda row: row["code"])
async def test_every_error_of_sessions_keeps_its_code_and_its_close(serve: Serve, row: dict[str, Any]) -> None:
    assert await told(serve, row["code"]) == (row["code"], row["close"])


async def told(serve: Serve, code: str) -> tuple[str, int | None]:
    """The code of this error, provoked, and that of the close that follows; None when the socket stays open."""
    match code:
        case "CONNECTION_FAILED":
            server = serve(environment={"MAX_CONNECTIONS": "1"})
            async with talk(server) as inside, talk(server, inside.session_id, greeted=False) as client:
                return await turned_away_from_sessions(client)
        case "SESSION_NOT_FOUND":
            async with talk(serve(), "unheard-of", greeted=False) as client:
                return await turned_away_from_sessions(client)
        case "RATE_LIMITED":
            server = serve("--sessions-connect-per-minute", "1")
            async with talk(server) as first, talk(server, first.session_id, greeted=False) as client:
                return await turned_away_from_sessions(client)
        case "AUDIO_FORMAT_ERROR":
            server, sent = serve(), bytes(3)
        case "PROCESSING_ERROR":
            server, sent = serve("--script", FAULTY), FOUR_WORDS
        case _:
            faults = json.dumps({"faults": [{"at": 1.0, "message": "out of memory"}]})
            server, sent = serve("--script", faults), FOUR_WORDS
    async with talk(server) as client:
        await client.send_raw(sent)
        found: str = (await client.receive())["code"]
        await client.synchronise()
        return found, None


async def turned_away_from_sessions(client: Talk) -> tuple[str, int]:
    [frame], code, _ = await client.closed()
    return frame["code"], code
