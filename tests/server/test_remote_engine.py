"""The engine of remote back ends, against servers that keep to the protocol and against some that do not."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions, Usage
from server.engines.base import EngineError
from server.engines.vllm_remote.engine import RemoteEngine
from server.engines.vllm_remote.settings import RemoteSettings, read_address
from tests.server.realtime_peer import GREETING, OWN_MODEL, VLLM_MODEL, Peer, as_vllm, peer, send

SECOND = bytes(range(256)) * 125  # 32,000 bytes
PATIENCE_SECONDS = 10.0


class Listener:
    """A sink that can be waited for."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def end(self) -> SegmentDone | EngineFailed:
        """The event that ends the stream."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not self.events or isinstance(self.events[-1], Heard):
                self._news.clear()
                await self._news.wait()
        assert not isinstance(self.events[-1], Heard)
        return self.events[-1]

    async def failure(self) -> EngineFailed:
        end = await self.end()
        assert isinstance(end, EngineFailed), end
        return end

    @property
    def text(self) -> str:
        return "".join(event.committed for event in self.events if isinstance(event, Heard))


@asynccontextmanager
async def engine(*peers: Peer, **settings: Any) -> AsyncIterator[RemoteEngine]:
    """An engine on these peers; afterwards it holds nothing any more."""
    usual: dict[str, Any] = {"start_seconds": 0.0, "retry_seconds": (0.02,), "connect_seconds": 2.0}
    given = RemoteSettings([read_address(one.url) for one in peers], **usual | settings)
    made = await asyncio.to_thread(RemoteEngine, given)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
        assert made.metrics()["busy_slots"] == made.metrics()["waiting"] == 0
        assert [task for task in asyncio.all_tasks() if "RemoteEngine" in str(task) or "_Stream" in str(task)] == []


def begin(on: RemoteEngine, number: int = 1, delay_seconds: float | None = None) -> tuple[Any, Listener]:
    listener = Listener()
    return on.open(OpenSegment(number, StreamOptions(delay_seconds)), listener), listener


async def until(condition: Any) -> None:
    """Return once the condition holds of something that has no way to tell."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# ---- a healthy conversation


async def test_what_is_sent_and_what_is_heard() -> None:
    async with peer() as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        stream.feed(SECOND)
        stream.finish()
        assert await listener.end() == SegmentDone(1, Usage(39, 22))
        assert listener.text == " hello there"
        update, start, *appends, end = back_end.frames
        assert update == {"type": "session.update", "model": "voxtral"}  # vLLM knows no other field
        assert start == {"type": "input_audio_buffer.commit", "final": False}
        assert end == {"type": "input_audio_buffer.commit", "final": True}
        assert b"".join(base64.b64decode(frame["audio"]) for frame in appends) == SECOND * 2
        await until(lambda: back_end.connections[0].close_code == 1000)


async def test_progress_is_told_at_least_twice_per_second_of_audio_sent() -> None:
    async with peer() as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        for at in range(0, len(SECOND), 2560):  # packets of 80 ms
            stream.feed(SECOND[at : at + 2560])
            await back_end.until_frames(3 + at // 2560)  # each on its own
        stream.feed(SECOND * 9)
        await back_end.until_frames(2 + 13 + 1)
        await until(lambda: told and told[-1].audio_seconds >= 8.6 if (told := heard(listener)) else False)
        positions = [0.0, *(event.audio_seconds for event in heard(listener))]
        steps = [after - before for before, after in pairwise(positions)]
        assert min(steps) > 0
        assert max(steps) <= 0.5
        stream.abort()


def heard(listener: Listener) -> list[Heard]:
    return [event for event in listener.events if isinstance(event, Heard)]


async def test_text_is_not_put_further_than_live_speech_could_be() -> None:
    """A minute sent in a burst is heard, as far as anybody knows, no faster than it would be spoken."""
    async with peer() as back_end, engine(back_end) as remote:
        begun_at = asyncio.get_running_loop().time()
        stream, listener = begin(remote)
        stream.feed(SECOND * 59)
        await until(lambda: (told := heard(listener)) and told[-1].audio_seconds > 57.5)
        stream.finish()
        await listener.end()
        lasted = asyncio.get_running_loop().time() - begun_at
        said = [event for event in heard(listener) if event.committed]
        assert all(event.audio_seconds > 57.5 for event in said)
        assert "".join(event.committed for event in said) == " hello there"
        assert all(event.transcribed_seconds is not None and event.transcribed_seconds <= lasted for event in said)


async def test_audio_behind_the_finish_counts_as_heard_only_at_the_end() -> None:
    """So a session that hands over a burst waits with the next segment until this one is done."""
    async with peer() as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND * 2)
        stream.finish()  # before anything could be sent
        assert isinstance(await listener.end(), SegmentDone)
        assert listener.text == " hello there"
        assert {event.audio_seconds for event in heard(listener)} == {0.0}


async def test_live_audio_counts_as_heard_when_it_is_sent() -> None:
    async with peer() as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        begun_at = asyncio.get_running_loop().time()
        for packet in range(25):
            stream.feed(SECOND[:2560])
            await until(lambda due=begun_at + 0.08 * packet: asyncio.get_running_loop().time() >= due)
        await until(lambda: heard(listener) and heard(listener)[-1].audio_seconds > 25 * 0.08 - 0.48)
        stream.abort()


async def test_nothing_is_said_from_inside_a_call() -> None:
    async with peer() as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        assert listener.events == []
        _, refused = begin(remote, delay_seconds=0.1)
        assert refused.events == []
        assert "possible: 480" in (await refused.failure()).message
        stream.abort()


async def test_a_segment_without_audio_is_done_without_asking_anybody() -> None:
    """vLLM never answers such an utterance."""

    async def never(peer: Peer, socket: ServerConnection) -> None:
        await socket.send('{"type":"session.created","id":"sess-1"}')
        await peer.receive_all(socket)
        await socket.wait_closed()

    async with peer(never) as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.finish()
        assert await listener.end() == SegmentDone(1, Usage())


async def test_the_delay_goes_to_servers_that_take_one() -> None:
    async with peer(model=OWN_MODEL) as back_end, engine(back_end) as remote:
        assert remote.info.delays_seconds == (0.08, 0.48, 0.96)
        assert remote.info.slots == 3
        for number, (asked, sent) in enumerate([(0.96, 960), (None, 480)]):
            stream, listener = begin(remote, number, asked)
            stream.feed(SECOND)
            stream.finish()
            await listener.end()
            updates = [frame for frame in back_end.frames if frame["type"] == "session.update"]
            assert updates[-1] == {"type": "session.update", "model": "voxtral", "delay_ms": sent}


async def test_text_that_only_the_end_brings_is_heard() -> None:
    async def terse(peer: Peer, socket: ServerConnection) -> None:
        await send(socket, **GREETING_EVENT)
        await peer.receive_all(socket)
        await send(socket, "transcription.delta", delta="one")
        await send(socket, "transcription.done", text="one two", usage=None)
        await socket.wait_closed()

    async with peer(terse) as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        stream.finish()
        assert await listener.end() == SegmentDone(1, Usage())
        assert listener.text == "one two"


GREETING_EVENT: dict[str, Any] = {"kind": GREETING["type"], "id": GREETING["id"]}


async def test_a_segment_that_the_back_end_ends_early_is_done() -> None:
    """vLLM does so at its greatest length."""

    async def short(peer: Peer, socket: ServerConnection) -> None:
        await send(socket, **GREETING_EVENT)
        for _ in range(4):
            await peer.receive(socket)
        await send(socket, "transcription.done", text="", usage=None)
        await socket.wait_closed()

    async with peer(short) as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        assert isinstance(await listener.end(), SegmentDone)
        stream.feed(SECOND)  # the session may not know yet
        stream.finish()


# ---- ends


async def listens(peer: Peer, socket: ServerConnection) -> None:
    """Takes all there is and never says a word."""
    await send(socket, **GREETING_EVENT)
    while True:
        await peer.receive(socket)


async def test_abort_cuts_the_connection_and_frees_the_slot_at_once() -> None:
    async with peer(listens) as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        await back_end.until_frames(3)
        assert remote.metrics()["busy_slots"] == 1
        stream.abort()
        assert remote.metrics()["busy_slots"] == 0
        told = len(listener.events)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await back_end.connections[0].wait_closed()
        assert back_end.connections[0].close_code == 1006  # no goodbye that could wait behind audio
        assert len(listener.events) == told
        assert remote.metrics()["backends_up"] == 1


async def test_stop_fails_what_is_under_way() -> None:
    async with peer(listens) as back_end, engine(back_end) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        await back_end.until_frames(3)
        await remote.stop()
        assert (await listener.failure()).message == "the engine is stopped"
        _, late = begin(remote)
        assert (await late.failure()).message == "the engine is stopped"


@pytest.mark.parametrize(
    ("code", "ours"), [("invalid_audio", "invalid_audio"), ("processing_error", "processing_error")]
)
async def test_an_error_of_the_back_end_fails_the_stream(code: str, ours: str) -> None:
    async def unwell(peer: Peer, socket: ServerConnection) -> None:
        await send(socket, **GREETING_EVENT)
        await peer.receive(socket)
        await send(socket, "error", error="out of memory", code=code)
        await socket.wait_closed()

    async with peer(unwell) as back_end, engine(back_end) as remote:
        _, listener = begin(remote)
        failed = await listener.failure()
        assert failed.code == ours
        assert failed.message == f"the back end {back_end.url} says: out of memory"
        assert remote.metrics()["backends_up"] == 1  # an answer is a sign of life


async def test_frames_that_make_no_sense_fail_the_stream() -> None:
    async def babbles(peer: Peer, socket: ServerConnection) -> None:  # noqa: ARG001
        await send(socket, **GREETING_EVENT)
        await socket.send("]")
        await socket.wait_closed()

    async with peer(babbles) as back_end, engine(back_end) as remote:
        _, listener = begin(remote)
        assert "sent what makes no sense" in (await listener.failure()).message


async def test_more_audio_than_may_wait_fails_the_stream() -> None:
    async with peer(listens) as back_end, engine(back_end, backlog_seconds=5.0) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND * 6)
        failed = await listener.failure()
        assert (failed.code, failed.message) == ("overloaded", "more than 5 s of audio wait to be sent to a back end")


# ---- several back ends


async def test_the_least_loaded_one_is_taken() -> None:
    async with (
        peer(listens) as one,
        peer(listens, OWN_MODEL) as two,
        engine(one, two, slots=6) as remote,
    ):  # six and three
        streams = [begin(remote, number)[0] for number in range(6)]
        await until(lambda: (len(one.connections), len(two.connections)) == (4, 2))
        streams[0].abort()
        streams[1].abort()
        assert remote.metrics()["busy_slots"] == 4


async def test_a_lost_connection_fails_its_stream_and_takes_the_back_end_out() -> None:
    async def dies(peer: Peer, socket: ServerConnection) -> None:
        await send(socket, **GREETING_EVENT)
        for _ in range(3):
            await peer.receive(socket)
        peer.health = HTTPStatus.SERVICE_UNAVAILABLE
        socket.transport.abort()

    async with peer(dies) as bad, peer(listens) as good, engine(bad, good) as remote:
        first, first_listener = begin(remote, 1)
        second, second_listener = begin(remote, 2)
        second.feed(SECOND)
        await good.until_frames(3)
        first.feed(SECOND)
        failed = await first_listener.failure()
        assert failed.code == "processing_error"
        assert failed.message.startswith(f"the back end {bad.url} was lost while it heard this segment:")
        assert not any(isinstance(event, EngineFailed) for event in second_listener.events)
        for number in range(3, 6):
            begin(remote, number)
        await until(lambda: len(good.connections) == 4)
        assert len(bad.connections) == 1
        bad.health, bad.behaviour = HTTPStatus.OK, listens
        await until(lambda: remote.metrics()["backends_up"] == 2)
        begin(remote, 6)
        await until(lambda: len(bad.connections) == 2)
        assert remote.metrics()["backend_losses"] == 1


async def test_a_back_end_that_never_greets_loses_its_streams_to_another() -> None:
    async def mute(peer: Peer, socket: ServerConnection) -> None:
        peer.health = HTTPStatus.SERVICE_UNAVAILABLE
        await socket.wait_closed()

    async with peer(mute) as bad, peer(as_vllm) as good, engine(bad, good, connect_seconds=0.3) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)
        assert listener.text == " hello there"
        assert (len(bad.connections), len(good.connections)) == (1, 1)


async def test_without_any_back_end_streams_fail_at_once_and_say_why() -> None:
    async with peer(listens) as back_end, engine(back_end, health_seconds=0.02) as remote:
        back_end.health = HTTPStatus.SERVICE_UNAVAILABLE
        await until(lambda: remote.metrics()["backends_up"] == 0)
        _, listener = begin(remote)
        failed = await listener.failure()
        assert failed.message.startswith(f"no back end is up ({back_end.url}: http")
        assert "503" in failed.message


async def test_health_checks_leave_streams_under_way_alone() -> None:
    """A server that drains says 503 and goes on with what it has."""
    async with peer(as_vllm) as back_end, engine(back_end, health_seconds=0.02) as remote:
        stream, listener = begin(remote)
        stream.feed(SECOND)
        await back_end.until_frames(3)
        back_end.health = HTTPStatus.SERVICE_UNAVAILABLE
        await until(lambda: remote.metrics()["backends_up"] == 0)
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)


async def test_one_failed_health_check_is_forgiven() -> None:
    async with peer(listens) as back_end, engine(back_end, health_seconds=0.02, retry_seconds=(0.2,)) as remote:
        back_end.health = HTTPStatus.SERVICE_UNAVAILABLE
        asked = back_end.asked
        await until(lambda: back_end.asked > asked)
        back_end.health = HTTPStatus.OK
        await until(lambda: back_end.asked > asked + 2)
        assert remote.metrics()["backend_losses"] == 0


async def test_a_back_end_that_comes_back_with_less_stays_out() -> None:
    async with peer(listens, OWN_MODEL) as back_end, engine(back_end, health_seconds=0.02) as remote:
        back_end.health = HTTPStatus.SERVICE_UNAVAILABLE
        await until(lambda: remote.metrics()["backends_up"] == 0)
        back_end.model, back_end.health = OWN_MODEL | {"delays_ms": [480]}, HTTPStatus.OK
        asked = back_end.asked
        await until(lambda: back_end.asked > asked + 2)
        _, listener = begin(remote)
        assert "does not offer the delays 80, 960 ms" in (await listener.failure()).message


# ---- slots


async def test_more_than_the_slots_wait_their_turn_and_more_than_may_wait_are_refused() -> None:
    async with peer(as_vllm) as back_end, engine(back_end, slots=2) as remote:
        begun = [begin(remote, number) for number in range(5)]
        failed = await begun[4][1].failure()
        assert (failed.code, failed.message) == ("overloaded", "all back ends are full and 2 segments wait already")
        assert remote.metrics() == {
            "busy_slots": 2,
            "waiting": 2,
            "backends": 1,
            "backends_up": 1,
            "backend_losses": 0,
        }
        for stream, _ in begun[:4]:
            stream.feed(SECOND)
            stream.finish()
        for _, listener in begun[:4]:
            assert isinstance(await listener.end(), SegmentDone)
            assert listener.text == " hello there"


async def test_waiting_too_long_is_said() -> None:
    async with peer(listens) as back_end, engine(back_end, slots=1, wait_seconds=0.05) as remote:
        begin(remote, 1)
        _, listener = begin(remote, 2)
        failed = await listener.failure()
        assert (failed.code, failed.message) == ("overloaded", "no back end had a free slot for 0.05 s")


async def test_an_aborted_stream_leaves_the_queue() -> None:
    async with peer(listens) as back_end, engine(back_end, slots=1) as remote:
        begin(remote, 1)
        stream, listener = begin(remote, 2)
        stream.abort()
        assert remote.metrics()["waiting"] == 0
        assert listener.events == []


# ---- the start


async def test_nobody_there_stops_the_start() -> None:
    async with peer() as back_end:
        gone = back_end.url
    settings = RemoteSettings([read_address(gone)], start_seconds=0.0, connect_seconds=1.0)
    with pytest.raises(EngineError, match=r"no back end answered within 0 s .*Connection refused"):
        await asyncio.to_thread(RemoteEngine, settings)


async def test_a_back_end_may_come_later() -> None:
    async with peer() as later:
        port = later.port
    async with peer() as there:
        absent = Peer(as_vllm, VLLM_MODEL, port=port)
        async with engine(there, absent) as remote:
            assert remote.info.slots == 256
            assert remote.metrics()["backends_up"] == 1
            async with peer(port=port):
                await until(lambda: remote.metrics()["backends_up"] == 2)


@pytest.mark.parametrize("model", [{"name": "voxtral"}, {"id": "voxtral", "delays_ms": "all"}])
async def test_a_model_list_that_makes_no_sense_stops_the_start(model: dict[str, Any]) -> None:
    async with peer(model=model) as back_end:
        settings = RemoteSettings([read_address(back_end.url)], start_seconds=0.0)
        with pytest.raises(EngineError, match="its /v1/models makes no sense"):
            await asyncio.to_thread(RemoteEngine, settings)


# ---- all at once


async def moody(peer: Peer, socket: ServerConnection) -> None:
    """Answers, fails, hangs up, ends early or says nothing, by turns."""
    mood = len(peer.connections) % 6
    if mood == 1:
        socket.transport.abort()
        return
    await send(socket, **GREETING_EVENT)
    if mood == 2:
        await socket.close(1011)
        return
    await peer.receive_all(socket)
    await send(socket, "transcription.delta", delta="word")
    if mood == 3:
        await send(socket, "error", error="no", code="processing_error")
    elif mood == 4:
        socket.transport.abort()
    else:
        await send(socket, "transcription.done", text="word", usage=None)
    await socket.wait_closed()


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_every_stream_ends_once_and_nothing_is_left(seed: int) -> None:
    chosen = random.Random(seed)
    async with peer(moody) as one, peer(moody) as two, engine(one, two, slots=5, health_seconds=0.02) as remote:
        begun = []
        for number in range(120):
            stream, listener = begin(remote, number)
            begun.append((listener, chosen.random() < 0.3))
            for _ in range(chosen.randint(0, 3)):
                stream.feed(SECOND[: 2 * chosen.randint(1, 9000)])
                await asyncio.sleep(0)  # let the others have a turn
            stream.abort() if begun[-1][1] else stream.finish()
            if chosen.random() < 0.2:
                await until(lambda: remote.metrics()["waiting"] == 0)
        for listener, aborted in begun:
            if not aborted:
                await listener.end()
        await until(lambda: remote.metrics()["busy_slots"] == remote.metrics()["waiting"] == 0)
        for listener, aborted in begun:
            ends = [event for event in listener.events if not isinstance(event, Heard)]
            assert len(ends) <= 1 if aborted else ends == listener.events[-1:]
        outcomes = {type(listener.events[-1]) for listener, aborted in begun if not aborted}
        assert outcomes == {SegmentDone, EngineFailed}
