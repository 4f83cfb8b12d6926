"""What the embedded recogniser hears in real (synthetic) speech, and when it says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise

import jiwer
import pytest
import pytest_asyncio

from server.core.events import SegmentDone, Usage
from server.engines.sphinx.engine import SphinxEngine
from tests.server.sphinx_streams import ONE_SECOND, begin, clips, running, transcribe
from wire.pcm import bytes_of

pytest.importorskip("pocketsphinx")
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[SphinxEngine]:
    """One engine for all who do nothing to it but speak."""
    async with running(workers=3, queue_limit=100) as engine:
        yield engine


def word_errors(pairs: list[tuple[str, str]]) -> float:
    def plain(text: str) -> str:
        return "".join(letter for letter in text.lower().replace("-", " ") if letter.isalpha() or letter in " '")

    return float(jiwer.wer([plain(text) for text, _ in pairs], [said or "-" for _, said in pairs]))


async def transcripts(engine: SphinxEngine, spoken: list[tuple[str, bytes]]) -> list[tuple[str, str]]:
    """What was meant and what was heard, with the longest delay."""
    listeners = await asyncio.gather(*(transcribe(engine, pcm, delay=2.4) for _, pcm in spoken))
    return [(text, listener.text) for (text, _), listener in zip(spoken, listeners, strict=True)]


async def test_speech_becomes_text(engine: SphinxEngine) -> None:
    spoken = clips(6)
    assert (
        word_errors(await transcripts(engine, spoken)) < 0.4
    )  # about 0.2 over the whole set; a recogniser that guesses has 1


async def test_a_narrow_search_hears_worse(engine: SphinxEngine) -> None:
    spoken = clips(4)
    good = await transcripts(engine, spoken)
    async with running(maxhmmpf=300) as narrow:
        bad = await transcripts(narrow, spoken)
    assert word_errors(bad) > word_errors(good)


async def test_the_accurate_profile_hears_too() -> None:
    ((text, pcm),) = clips(1)
    async with running(profile="accurate", workers=1) as engine:
        said = (await transcribe(engine, pcm, delay=2.4)).text
    assert word_errors([(text, said)]) < 0.7


async def test_what_is_said_does_not_depend_on_how_the_audio_is_cut(engine: SphinxEngine) -> None:
    ((_, pcm),) = clips(1)
    whole = await transcribe(engine, pcm, cut=len(pcm))
    assert whole.text
    for cut in (318, 2560, 10_002):
        assert (await transcribe(engine, pcm, cut=cut)).events == whole.events


async def test_what_is_said_does_not_depend_on_the_segment_before() -> None:
    (_, one), (_, other) = clips(2)
    async with running(workers=1) as engine:
        first = await transcribe(engine, one)
        await transcribe(engine, other)
        aborted, listener = begin(engine)
        aborted.feed(other[: bytes_of(1.0)])
        await listener.heard()
        aborted.abort()
        assert (await transcribe(engine, one)).events == first.events


@pytest.mark.parametrize("delay", [0.16, 0.48, 0.96])
async def test_words_come_as_soon_as_the_delay_allows(engine: SphinxEngine, delay: float) -> None:
    ((_, pcm),) = clips(1)
    listener = await transcribe(engine, pcm, delay=delay)
    *during, _last = listener.said
    waits = [heard.audio_seconds - word.end for heard in during for word in heard.words]
    assert waits
    assert min(waits) >= delay - 1e-9
    # Later than one step of 80 ms only where the recogniser changed its mind after the word had ended.
    assert sorted(waits)[len(waits) // 2] < delay + 0.08 + 1e-9


async def test_text_words_and_times_agree(engine: SphinxEngine) -> None:
    ((_, pcm),) = clips(1)
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


async def test_committed_and_tentative_text_join_with_single_spaces(engine: SphinxEngine) -> None:
    ((_, pcm),) = clips(1)
    listener = await transcribe(engine, pcm)
    committed = ""
    for heard in listener.said:
        committed += heard.committed
        shown = committed + heard.tentative
        assert shown == " ".join(shown.split())
    assert any(heard.tentative for heard in listener.said)
    assert listener.said[-1].tentative == ""


async def test_silence_is_reported_as_heard_twice_a_second(engine: SphinxEngine) -> None:
    listener = await transcribe(engine, ONE_SECOND * 4)
    times = [0.0, *(heard.audio_seconds for heard in listener.said)]
    assert max(after - before for before, after in pairwise(times)) <= 0.5
    assert times[-1] == 4.0


async def test_a_segment_without_audio_ends(engine: SphinxEngine) -> None:
    listener = await transcribe(engine, b"")
    assert listener.events[-1] == SegmentDone(0, Usage())


async def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    ((_, pcm),) = clips(1)
    async with running() as engine:
        await transcribe(engine, pcm + ONE_SECOND)
        await transcribe(engine, b"")
    assert capfd.readouterr() == ("", "")
