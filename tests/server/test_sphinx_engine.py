"""The embedded recogniser with its real processes, on real (synthetic) speech, with real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import jiwer
import psutil
import pytest
import soundfile

from server.core.events import EngineEvent, EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions, Usage
from server.engines.base import EngineError, EngineStream
from server.engines.sphinx.engine import SphinxEngine
from server.engines.sphinx.settings import SphinxSettings
from wire.pcm import bytes_of

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "datasets" / "spoken-en"
PATIENCE_SECONDS = 60.0  # a bound for the broken case only
ONE_SECOND = bytes(bytes_of(1.0))

pytest.importorskip("pocketsphinx")


def clips(count: int) -> list[tuple[str, bytes]]:
    """Text and PCM of the first clips of every voice in turn."""
    if not SPEECH.exists():
        pytest.skip("datasets/spoken-en is not there")
    rows = [json.loads(line) for line in (SPEECH / "manifest.jsonl").read_text().splitlines()[:count]]
    return [(row["text"], soundfile.read(SPEECH / row["audio"], dtype="int16")[0].tobytes()) for row in rows]


class Listener:
    """Collects what a stream says."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []
        self._news = asyncio.Event()

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        self._news.set()

    async def until(self, wanted: Callable[[EngineEvent], bool]) -> EngineEvent:
        """The first event that is wanted, now or later."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self._news.clear()
                await self._news.wait()

    async def heard(self, seconds: float = 0.0) -> EngineEvent:
        return await self.until(lambda event: isinstance(event, Heard) and event.audio_seconds >= seconds)

    async def end(self) -> EngineEvent:
        return await self.until(lambda event: isinstance(event, SegmentDone | EngineFailed))

    @property
    def said(self) -> list[Heard]:
        return [event for event in self.events if isinstance(event, Heard)]

    @property
    def text(self) -> str:
        return "".join(heard.committed for heard in self.said)


def begin(
    engine: SphinxEngine, segment: int = 0, options: StreamOptions | None = None
) -> tuple[EngineStream, Listener]:
    listener = Listener()
    return engine.open(OpenSegment(segment, options or StreamOptions()), listener), listener


async def transcribe(engine: SphinxEngine, pcm: bytes, cut: int = 2560, delay: float | None = None) -> Listener:
    stream, listener = begin(engine, 0, StreamOptions(delay_seconds=delay))
    for start in range(0, len(pcm), cut):
        stream.feed(pcm[start : start + cut])
    stream.finish()
    assert isinstance(await listener.end(), SegmentDone)
    return listener


@asynccontextmanager
async def running(settings: SphinxSettings | None = None) -> AsyncIterator[SphinxEngine]:
    engine = SphinxEngine(settings or SphinxSettings(workers=2))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()
    assert children() == []


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def parent_process() -> psutil.Process:
    (parent,) = psutil.Process().children()
    return parent


def recognisers() -> list[psutil.Process]:
    return parent_process().children()


# ---- what is heard


def word_errors(pairs: list[tuple[str, str]]) -> float:
    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower().replace("-", " ") if letter.isalpha() or letter in " '")

    return float(jiwer.wer([plain(text) for text, _ in pairs], [said or "-" for _, said in pairs]))


async def test_speech_becomes_text() -> None:
    spoken = clips(8)
    async with running() as engine:
        pairs = [(text, (await transcribe(engine, pcm, delay=2.4)).text) for text, pcm in spoken]
    assert word_errors(pairs) < 0.4  # about 0.2 over the whole set; a recogniser that guesses has 1


async def test_a_narrow_search_hears_worse() -> None:
    spoken = clips(4)
    async with running() as engine:
        good = [(text, (await transcribe(engine, pcm, delay=2.4)).text) for text, pcm in spoken]
    async with running(SphinxSettings(workers=2, maxhmmpf=300)) as engine:
        bad = [(text, (await transcribe(engine, pcm, delay=2.4)).text) for text, pcm in spoken]
    assert word_errors(bad) > word_errors(good)


async def test_the_accurate_profile_hears_too() -> None:
    ((text, pcm),) = clips(1)
    async with running(SphinxSettings(profile="accurate", workers=1)) as engine:
        said = (await transcribe(engine, pcm, delay=2.4)).text
    assert word_errors([(text, said)]) < 0.7


async def test_what_is_said_does_not_depend_on_how_the_audio_is_cut() -> None:
    ((_, pcm),) = clips(1)
    async with running() as engine:
        whole = await transcribe(engine, pcm, cut=len(pcm))
        assert whole.text
        for cut in (318, 2560, 10_002):
            assert (await transcribe(engine, pcm, cut=cut)).events == whole.events


async def test_what_is_said_does_not_depend_on_the_segment_before() -> None:
    (_, one), (_, other) = clips(2)
    async with running(SphinxSettings(workers=1)) as engine:
        first = await transcribe(engine, one)
        await transcribe(engine, other)
        aborted, listener = begin(engine)
        aborted.feed(other[: bytes_of(1.0)])
        await listener.heard()
        aborted.abort()
        assert (await transcribe(engine, one)).events == first.events


@pytest.mark.parametrize("delay", [0.16, 0.48, 0.96])
async def test_words_come_as_soon_as_the_delay_allows(delay: float) -> None:
    ((_, pcm),) = clips(1)
    async with running() as engine:
        listener = await transcribe(engine, pcm, delay=delay)
    *during, _last = listener.said
    waits = [heard.audio_seconds - word.end for heard in during for word in heard.words]
    assert waits
    assert min(waits) >= delay - 1e-9
    # Later than one step of 80 ms only where the recogniser changed its mind after the word had ended.
    assert sorted(waits)[len(waits) // 2] < delay + 0.08 + 1e-9


async def test_text_words_and_times_agree() -> None:
    ((_, pcm),) = clips(1)
    async with running() as engine:
        listener = await transcribe(engine, pcm)
    words = [word for heard in listener.said for word in heard.words]
    assert listener.text == " ".join(word.text for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))
    assert words[-1].end <= len(pcm) / 32_000
    steps = -(-len(pcm) // 2560)
    done = listener.events[-1]
    assert isinstance(done, SegmentDone)
    assert abs(done.usage.prompt_tokens - steps) <= 1
    assert done.usage.completion_tokens == len(words)


async def test_committed_and_tentative_text_join_with_single_spaces() -> None:
    ((_, pcm),) = clips(1)
    async with running() as engine:
        listener = await transcribe(engine, pcm)
    committed = ""
    for heard in listener.said:
        committed += heard.committed
        shown = committed + heard.tentative
        assert shown == " ".join(shown.split())
    assert any(heard.tentative for heard in listener.said)
    assert listener.said[-1].tentative == ""


async def test_silence_is_reported_as_heard_twice_a_second() -> None:
    async with running() as engine:
        listener = await transcribe(engine, ONE_SECOND * 4)
    times = [0.0, *(heard.audio_seconds for heard in listener.said)]
    assert max(after - before for before, after in pairwise(times)) <= 0.5
    assert times[-1] == 4.0


async def test_a_segment_without_audio_ends() -> None:
    async with running() as engine:
        listener = await transcribe(engine, b"")
    assert listener.events[-1] == SegmentDone(0, Usage())


async def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    ((_, pcm),) = clips(1)
    async with running() as engine:
        await transcribe(engine, pcm + ONE_SECOND)
        await transcribe(engine, b"")
    assert capfd.readouterr() == ("", "")


# ---- limits


@pytest.mark.parametrize(
    ("options", "message"),
    [(StreamOptions(language="de"), "English only"), (StreamOptions(delay_seconds=0.1), "multiple of 0.08")],
)
async def test_what_it_cannot_do_is_said_through_the_sink(options: StreamOptions, message: str) -> None:
    async with running(SphinxSettings(workers=1)) as engine:
        _, listener = begin(engine, 0, options)
        assert listener.events == []
        failed = await listener.end()
        assert isinstance(failed, EngineFailed)
        assert failed.code == "processing_error"
        assert message in failed.message


async def test_american_english_is_english() -> None:
    async with running(SphinxSettings(workers=1)) as engine:
        stream, listener = begin(engine, 0, StreamOptions(language="en_US"))
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)


async def test_more_than_may_wait_are_refused_and_the_others_are_heard_in_turn() -> None:
    async with running(SphinxSettings(workers=1, queue_limit=2)) as engine:
        first, first_listener = begin(engine, 1)
        first.feed(ONE_SECOND)
        await first_listener.heard()
        waiting = [begin(engine, number) for number in (2, 3)]
        order: list[int] = []
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
        for number, (_, listener) in enumerate(waiting):
            assert isinstance(await listener.end(), SegmentDone)
            order.append(number)
            assert listener.said[-1].audio_seconds == 1.0
        assert isinstance(first_listener.events[-1], SegmentDone)
        assert engine.metrics()["waiting"] == 0


async def test_an_aborted_segment_is_silent_and_makes_room() -> None:
    async with running(SphinxSettings(workers=1, queue_limit=1)) as engine:
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
    async with running(SphinxSettings(workers=1, backlog_seconds=2.0)) as engine:
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
    async with running(SphinxSettings(workers=2, queue_limit=10)) as engine:
        streams = [begin(engine, number) for number in range(8)]
        for stream, _ in streams:
            stream.feed(ONE_SECOND)
            stream.finish()
        for _, listener in streams:
            assert isinstance(await listener.end(), SegmentDone)
            assert len(recognisers()) <= 2
        assert engine.metrics()["workers"] == 2


async def test_audio_after_the_end_is_a_mistake() -> None:
    async with running(SphinxSettings(workers=1)) as engine:
        stream, _ = begin(engine)
        stream.finish()
        with pytest.raises(RuntimeError, match="audio after finish"):
            stream.feed(ONE_SECOND)


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
        assert len(recognisers()) == 2
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
    async with running(SphinxSettings(workers=4)) as engine:
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
    async with running(SphinxSettings(workers=1)) as engine:
        await transcribe(engine, ONE_SECOND)
        (recogniser,) = recognisers()
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
    async with running(SphinxSettings(workers=1)) as engine:
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
    async with running(SphinxSettings(workers=1, nice=7)) as engine:
        await transcribe(engine, ONE_SECOND)
        assert [process.nice() for process in recognisers()] == [7]


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
