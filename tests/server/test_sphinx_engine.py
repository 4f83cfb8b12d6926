"""The processes of the embedded recogniser: their number, their queue, their deaths, with real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from harness.audio import load as load_audio
from harness.corpus import load
from server.core.events import EngineEvent, EngineFailed, OpenSegment, SegmentDone, StreamOptions
from server.engines.base import EngineError
from server.engines.sphinx.engine import SphinxEngine
from server.engines.sphinx.settings import SphinxSettings
from tests.listener import PATIENCE_SECONDS, Listener
from tests.server.sphinx_streams import ONE_SECOND, ROOT, begin, running, transcribe

pytest.importorskip("pocketsphinx")


of_others: set[psutil.Process] = set()
"""Children of this process that were there before the test, such as the one that `multiprocessing` keeps for good."""


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    of_others.clear()
    of_others.update(psutil.Process().children(recursive=True))
    yield
    assert children() == []


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child not in of_others]


def parent_process() -> psutil.Process:
    (parent,) = (child for child in psutil.Process().children() if child not in of_others)
    return parent


def recognisers() -> list[psutil.Process]:
    return parent_process().children()


async def recognisers_once_at_most(count: int, *, without: Sequence[psutil.Process] = ()) -> list[psutil.Process]:
    """Those that are left once the ones that have heard their segment are gone, ``without`` among them."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        # no event tells of the processes of another process
        while not 0 < len(left := recognisers()) <= count or set(left) & set(without):  # noqa: ASYNC110
            await asyncio.sleep(0)
    return left


async def test_what_is_heard_does_not_depend_on_who_spoke_before() -> None:
    """These two one after the other in one decoder gave "been eating" for "the meeting", its cepstral mean set again."""
    corpus = {utterance.id: load_audio(utterance) for utterance in load("spoken-en").utterances}
    async with running(workers=1) as engine:
        alone = (await transcribe(engine, corpus["en-013-slt"])).text
        await transcribe(engine, corpus["en-006-rms"])
        assert (await transcribe(engine, corpus["en-013-slt"])).text == alone


# ---- limits


@pytest.mark.parametrize(
    ("options", "message"),
    [(StreamOptions(language="de"), "English only"), (StreamOptions(delay_seconds=0.1), "multiple of 0.08")],
)
async def test_what_it_cannot_do_is_said_through_the_sink(options: StreamOptions, message: str) -> None:
    async with running(workers=1) as engine:
        _, listener = begin(engine, 0, options)
        assert listener.events == []
        failed = await listener.end()
        assert isinstance(failed, EngineFailed)
        assert failed.code == "processing_error"
        assert message in failed.message


async def test_american_english_is_english() -> None:
    async with running(workers=1) as engine:
        stream, listener = begin(engine, 0, StreamOptions(language="en_US"))
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)


async def test_more_than_may_wait_are_refused_and_the_others_are_heard_in_turn() -> None:
    async with running(workers=1, queue_limit=2) as engine:
        first, first_listener = begin(engine, 1)
        first.feed(ONE_SECOND)
        await first_listener.heard()
        waiting = [begin(engine, number) for number in (2, 3)]
        for stream, listener in waiting:
            stream.feed(ONE_SECOND)
            stream.finish()
            assert listener.events == []
        _, refused = begin(engine, 4)
        assert refused.events == []  # nothing is said from inside open
        failed = await refused.end()
        assert isinstance(failed, EngineFailed)
        assert (failed.segment, failed.code) == (4, "overloaded")
        assert engine.metrics()["busy_slots"] == 1
        assert engine.metrics()["waiting"] == 2

        first.finish()
        for _, listener in waiting:
            assert isinstance(await listener.end(), SegmentDone)
            assert listener.said[-1].audio_seconds == 1.0
        assert isinstance(first_listener.events[-1], SegmentDone)
        assert engine.metrics()["waiting"] == 0


async def test_those_who_wait_are_heard_in_the_order_of_their_coming() -> None:
    order: list[int] = []
    last = Listener()

    def sink(event: EngineEvent) -> None:
        order.append(event.segment)
        if event.segment == 4:
            last(event)

    async with running(workers=1, queue_limit=4) as engine:
        for number in range(5):
            stream = engine.open(OpenSegment(number, StreamOptions()), sink)
            stream.feed(ONE_SECOND)
            stream.finish()
        await last.end()
    assert order == sorted(order)
    assert set(order) == set(range(5))


async def test_as_many_as_processes_and_places_are_taken_at_once() -> None:
    async with running(workers=3, queue_limit=2) as engine:
        streams = [begin(engine, number) for number in range(6)]  # while two processes are not even forked
        for stream, listener in streams[:5]:
            stream.finish()
            assert isinstance(await listener.end(), SegmentDone)
        assert isinstance(await streams[5][1].end(), EngineFailed)


async def test_an_aborted_segment_is_silent_and_makes_room() -> None:
    async with running(workers=1, queue_limit=1) as engine:
        heard, heard_listener = begin(engine, 1)
        heard.feed(ONE_SECOND * 50)
        await heard_listener.heard()
        waiting, waiting_listener = begin(engine, 2)
        waiting.abort()
        last, last_listener = begin(engine, 3)
        last.finish()
        heard.abort()
        said = len(heard_listener.events)
        assert isinstance(await last_listener.end(), SegmentDone)
        assert len(heard_listener.events) == said
        assert heard_listener.said[-1].audio_seconds < 50  # nobody waited for the rest
        assert engine.metrics()["restarts"] == 0
        assert waiting_listener.events == []


async def test_audio_that_nobody_hears_is_bounded() -> None:
    async with running(workers=1, backlog_seconds=2.0) as engine:
        blocking, blocking_listener = begin(engine, 1)
        blocking.feed(ONE_SECOND)
        await blocking_listener.heard()
        stream, listener = begin(engine, 2)
        stream.feed(ONE_SECOND * 2)
        stream.feed(ONE_SECOND)
        assert listener.events == []  # nothing is said from inside feed
        failed = await listener.end()
        assert isinstance(failed, EngineFailed)
        assert (failed.segment, failed.code) == (2, "overloaded")
        stream.feed(ONE_SECOND)  # too late, and harmless
        stream.abort()
        blocking.finish()
        assert isinstance(await blocking_listener.end(), SegmentDone)


async def test_the_pool_never_grows_beyond_its_size() -> None:
    async with running(workers=2, queue_limit=10) as engine:
        streams = [begin(engine, number) for number in range(8)]
        for stream, _ in streams:
            stream.feed(ONE_SECOND)
            stream.finish()
        for _, listener in streams:
            assert isinstance(await listener.end(), SegmentDone)
            assert engine.metrics()["workers"] <= 2
        await recognisers_once_at_most(2)


async def test_audio_after_the_end_is_a_mistake() -> None:
    async with running(workers=1) as engine:
        stream, _ = begin(engine)
        stream.finish()
        with pytest.raises(RuntimeError, match="audio after finish"):
            stream.feed(ONE_SECOND)


async def test_a_sink_that_fails_hurts_nobody_else() -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context.get("exception")))

    def broken(event: EngineEvent) -> None:
        raise ArithmeticError(event)

    async with running(workers=1) as engine:
        stream = engine.open(OpenSegment(1, StreamOptions()), broken)
        stream.feed(ONE_SECOND)
        stream.finish()
        assert (await transcribe(engine, ONE_SECOND)).said[-1].audio_seconds == 1.0
        assert engine.metrics()["restarts"] == 0
    assert complaints
    assert all(isinstance(complaint, ArithmeticError) for complaint in complaints)


# ---- processes that die


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSEGV])
async def test_a_process_that_dies_takes_only_its_own_segment_along(by: signal.Signals) -> None:
    async with running() as engine:
        streams = [begin(engine, number) for number in (1, 2)]
        for stream, listener in streams:
            stream.feed(ONE_SECOND)
            await listener.heard()
        victim = recognisers()[0]
        victim.send_signal(by)
        ends = [asyncio.ensure_future(listener.end()) for _, listener in streams]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_SECONDS)
        ((lost, failed),) = [(number, end.result()) for number, end in enumerate(ends) if end.done()]
        assert isinstance(failed, EngineFailed)
        assert failed.code == "processing_error"
        streams[lost][0].feed(ONE_SECOND)
        streams[lost][0].abort()
        survivor = 1 - lost
        streams[survivor][0].finish()
        assert isinstance(await ends[survivor], SegmentDone)
        assert engine.metrics()["restarts"] == 1
        for listener in await asyncio.gather(*(transcribe(engine, ONE_SECOND) for _ in range(2))):
            assert listener.said[-1].audio_seconds == 1.0
        await recognisers_once_at_most(2)
        assert all(process.status() != psutil.STATUS_ZOMBIE for process in children())


async def test_the_death_of_the_parent_process_is_survived() -> None:
    async with running() as engine:
        stream, listener = begin(engine)
        stream.feed(ONE_SECOND)
        await listener.heard()
        orphans = recognisers()
        old = parent_process()
        old.kill()
        other = await transcribe(engine, ONE_SECOND)  # by a child of the next one, or one that is still idle
        assert other.said[-1].audio_seconds == 1.0
        stream.feed(ONE_SECOND)
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)
        assert listener.said[-1].audio_seconds == 2.0
        while engine.metrics()["restarts"] == 0 or engine.metrics()["workers"] == 0:
            await transcribe(engine, ONE_SECOND)
        assert parent_process().pid != old.pid
        await ended(orphans)


async def test_the_death_of_all_processes_fails_what_was_heard_and_nothing_after() -> None:
    async with running() as engine:
        stream, listener = begin(engine)
        stream.feed(ONE_SECOND)
        await listener.heard()
        for process in children():
            process.kill()
        assert isinstance(await listener.end(), EngineFailed)
        assert (await transcribe(engine, ONE_SECOND)).said[-1].audio_seconds == 1.0


async def test_segments_that_begin_while_the_parent_process_dies_are_heard() -> None:
    async with running(workers=4) as engine:
        await transcribe(engine, ONE_SECOND)
        for process in children():
            process.kill()
        streams = [begin(engine, number) for number in range(4)]  # the loop has not yet seen anybody die
        for stream, listener in streams:
            stream.feed(ONE_SECOND)
            stream.finish()
            assert isinstance(await listener.end(), SegmentDone)
            assert listener.said[-1].audio_seconds == 1.0


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
async def test_nobody_waits_for_a_process_that_cannot_be_made() -> None:
    async with running(workers=1) as engine:
        (first,) = await recognisers_once_at_most(1)
        await transcribe(engine, ONE_SECOND)
        (recogniser,) = await recognisers_once_at_most(1, without=[first])
        parent = parent_process()
        before = parent.rlimit(psutil.RLIMIT_NOFILE)
        parent.rlimit(psutil.RLIMIT_NOFILE, (0, before[1]))  # it cannot even receive the socket for its child
        recogniser.kill()
        stream, listener = begin(engine)
        stream.finish()
        failed = await listener.end()
        assert isinstance(failed, EngineFailed)
        assert failed.code == "processing_error"
        parent.rlimit(psutil.RLIMIT_NOFILE, before)
        assert (await transcribe(engine, ONE_SECOND)).said[-1].audio_seconds == 1.0


async def test_signals_to_the_group_do_not_end_what_the_server_still_drains() -> None:
    async with running() as engine:
        stream, listener = begin(engine)
        stream.feed(ONE_SECOND)
        await listener.heard()
        for process in children():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                process.send_signal(number)
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)
        assert engine.metrics()["restarts"] == 0


async def test_stop_ends_every_process_and_fails_what_is_under_way() -> None:
    async with running(workers=1) as engine:
        heard, heard_listener = begin(engine, 1)
        heard.feed(ONE_SECOND)
        await heard_listener.heard()
        _, waiting_listener = begin(engine, 2)
        await engine.stop()
        assert children() == []
        for listener in (heard_listener, waiting_listener):
            assert isinstance(await listener.end(), EngineFailed)
        _, late_listener = begin(engine, 3)
        assert isinstance(await late_listener.end(), EngineFailed)


SERVER = """
import asyncio, sys
import psutil
from server.core.events import OpenSegment, StreamOptions
from server.engines.sphinx.engine import SphinxEngine
from server.engines.sphinx.settings import SphinxSettings

async def main():
    engine = SphinxEngine(SphinxSettings(workers=2))
    await engine.start()
    heard = asyncio.Event()
    stream = engine.open(OpenSegment(1, StreamOptions()), lambda event: heard.set())
    stream.feed(bytes(32000))
    await heard.wait()
    stream.feed(bytes(32000 * 50))  # still at work when the end comes
    print(*(process.pid for process in psutil.Process().children(recursive=True)), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_no_process_outlives_a_server_that_is_killed() -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": "."}
    )
    assert server.stdout is not None
    processes = [psutil.Process(int(pid)) for pid in (await server.stdout.readline()).split()]
    assert len(processes) >= 2
    server.kill()
    await server.wait()
    await ended(processes)


async def ended(processes: list[psutil.Process]) -> None:
    """Wait until they have ended; whether whoever inherited them collects them is not ours to say."""

    def alive(process: psutil.Process) -> bool:
        try:
            return bool(process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    async with asyncio.timeout(PATIENCE_SECONDS):
        while any(alive(process) for process in processes):
            await asyncio.to_thread(psutil.wait_procs, processes, 0.02)


async def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pocketsphinx.py").write_text("raise ImportError('No module named pocketsphinx')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    engine = SphinxEngine()
    with pytest.raises(EngineError, match=r"No module named pocketsphinx.*pip install 'earmark\[sphinx\]'"):
        await engine.start()
    await engine.stop()
    assert children() == []


async def test_recognisers_leave_the_front_end_the_precedence() -> None:
    async with running(workers=1, nice=7) as engine:
        await transcribe(engine, ONE_SECOND)
        assert {process.nice() for process in recognisers()} == {os.nice(0) + 7}


def test_it_works_on_the_loop_that_the_server_runs_on() -> None:
    uvloop = pytest.importorskip("uvloop")

    async def live_through_a_death() -> None:
        async with running() as engine:
            stream, listener = begin(engine)
            stream.feed(ONE_SECOND)
            await listener.heard()
            for process in children():
                process.kill()
            assert isinstance(await listener.end(), EngineFailed)
            assert (await transcribe(engine, ONE_SECOND)).said[-1].audio_seconds == 1.0

    uvloop.run(live_through_a_death())


def test_it_says_what_it_is_before_it_starts() -> None:
    info = SphinxEngine(SphinxSettings(workers=3)).info
    assert (info.name, info.slots, info.languages, info.words) == ("sphinx", 3, ("en",), True)
    assert info.delays_seconds[0] == 0.08
    assert info.delays_seconds[-1] == 2.4
    assert "weak" in info.caveat
