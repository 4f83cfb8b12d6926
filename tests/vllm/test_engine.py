"""The engine on real vLLM: the same tokens as vLLM itself, and slots that are given, waited for and given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from pathlib import Path

import pytest
import pytest_asyncio

from server.core.events import EngineFailed, Heard, OpenSegment, SegmentDone, StreamOptions, Usage
from server.engines.base import EngineStream
from server.engines.vllm.engine import VllmEngine
from tests.listener import Listener
from tests.vllm.checkpoints import sound
from tests.vllm.conftest import DELAYS_MS, SECONDS, SEEDS, Reference, words
from tests.vllm.streams import begin, running, send, transcribe, until

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.timeout(900),  # the first test waits for five engines of vLLM's own, one after the other
]

SLOTS = len(DELAYS_MS) * len(SEEDS)
WAITING_SECONDS = 5.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(checkpoint: Path) -> AsyncIterator[VllmEngine]:
    async with running(checkpoint, max_num_seqs=SLOTS, waiting_seconds=WAITING_SECONDS, backlog_seconds=100) as engine:
        yield engine


async def idle(engine: VllmEngine) -> float:
    """Seconds until nothing runs and no KV is held."""
    return await until(
        lambda: engine.metrics()["busy_slots"] == engine.metrics()["kv_cache_usage"] == 0, "all slots and KV free"
    )


def fill(engine: VllmEngine, count: int = SLOTS) -> list[tuple[EngineStream, Listener]]:
    """Streams that have begun and wait for audio, as live ones do between two packets."""
    streams = [begin(engine) for _ in range(count)]
    for stream, _ in streams:
        stream.feed(sound(1.0, 9))
    return streams


async def test_streams_of_all_delays_share_a_batch_and_each_says_what_vllm_itself_says_at_its_delay(
    engine: VllmEngine, reference: Reference
) -> None:
    keys = list(reference)
    listeners = await asyncio.gather(*(transcribe(engine, sound(SECONDS, seed), delay) for delay, seed in keys))
    assert {key: listener.text for key, listener in zip(keys, listeners, strict=True)} == {
        key: words(tokens) for key, tokens in reference.items()
    }
    # what makes the comparison worth something: neither the delay nor the audio is without effect
    assert len({listener.text for listener in listeners}) == len(keys)


async def test_a_stream_says_alone_what_it_says_among_others(engine: VllmEngine) -> None:
    alone = await transcribe(engine, sound(SECONDS, 5), 480)
    together = await asyncio.gather(
        *(transcribe(engine, sound(SECONDS, seed), delay) for seed, delay in ((5, 480), (6, 80), (7, 2400), (8, 480)))
    )
    assert together[0].text == alone.text
    assert together[3].text != alone.text


@pytest.mark.parametrize("cut", [2, 500, 7000, 10**6])
async def test_how_the_audio_is_cut_makes_no_difference(engine: VllmEngine, cut: int) -> None:
    pcm = sound(1.5, 3)
    whole = await transcribe(engine, pcm, 160)
    assert (await transcribe(engine, pcm, 160, cut)).text == whole.text


async def test_usage_counts_the_prompt_and_one_token_per_step(engine: VllmEngine, reference: Reference) -> None:
    listener = await transcribe(engine, sound(SECONDS, SEEDS[0]), 960)
    # begin of text, 32 steps of left padding, 960 / 80 steps of delay
    expected = Usage(1 + 32 + 12, len(reference[960, SEEDS[0]]))
    assert listener.events[-1] == SegmentDone(0, expected)


async def test_progress_is_told_twice_a_second_even_before_the_first_step(engine: VllmEngine) -> None:
    stream, listener = begin(engine, 2400)  # whose first step needs 2.48 s of audio
    at = 0.0
    for _ in range(20):
        stream.feed(sound(0.24, 1))
        at += 0.24
        if at > 0.5:
            await listener.heard(at - 0.5)
    stream.abort()
    progress = [event.audio_seconds for event in listener.events if isinstance(event, Heard)]
    assert progress == sorted(progress)


async def test_a_stream_without_audio_ends_at_once(engine: VllmEngine) -> None:
    stream, listener = begin(engine)
    stream.finish()
    assert isinstance(await listener.end(), SegmentDone)


async def test_more_streams_than_slots_wait_or_are_refused_in_words(engine: VllmEngine) -> None:
    pcm = sound(2.0, 1)
    alone = await transcribe(engine, pcm, 480)
    streams = [begin(engine, 480, number) for number in range(2 * SLOTS + 3)]
    assert engine.metrics()["busy_slots"] == SLOTS
    assert engine.metrics()["waiting"] == SLOTS
    for stream, _ in streams:
        send(stream, pcm)
    ends = [await listener.end() for _, listener in streams]
    refused = [end for end in ends if isinstance(end, EngineFailed)]
    assert [end.segment for end in refused] == [2 * SLOTS, 2 * SLOTS + 1, 2 * SLOTS + 2]
    assert {end.code for end in refused} == {"overloaded"}
    assert f"all {SLOTS} slots are busy" in refused[0].message
    assert {listener.text for _, listener in streams[: 2 * SLOTS]} == {alone.text}


async def test_a_segment_that_gets_no_slot_in_time_is_told_so(engine: VllmEngine) -> None:
    parked = fill(engine)
    stream, listener = begin(engine)
    send(stream, sound(0.5, 1))
    end = await listener.end()
    assert isinstance(end, EngineFailed)
    assert end.code == "overloaded"
    assert f"within {WAITING_SECONDS:g} s" in end.message
    for other, _ in parked:
        other.abort()
    await idle(engine)


async def test_an_aborted_stream_gives_its_slot_to_the_next_at_once(engine: VllmEngine) -> None:
    parked = fill(engine)
    for _, listener in parked:
        await listener.heard(0.9)
    stream, waiting = begin(engine)
    send(stream, sound(0.5, 1))
    assert engine.metrics()["waiting"] == 1
    parked[0][0].abort()
    assert engine.metrics()["waiting"] == 0
    assert isinstance(await waiting.end(), SegmentDone)
    said = len(parked[0][1].events)
    for other, _ in parked:
        other.abort()
    await idle(engine)
    assert len(parked[0][1].events) == said, "an aborted stream is silent"


async def test_vanished_streams_leave_slots_and_kv_within_a_second(engine: VllmEngine) -> None:
    seconds = []
    for _ in range(3):  # one quiet moment of the machine is enough
        streams = fill(engine)
        for _, listener in streams:
            await listener.heard(0.9)
        await until(lambda: engine.metrics()["kv_cache_usage"] > 0, "KV in use")
        for stream, _ in streams:
            stream.abort()
        seconds.append(await idle(engine))
    assert min(seconds) < 1.0


async def test_streams_that_vanish_at_any_moment_leave_nothing(engine: VllmEngine) -> None:
    for moment in range(0, 30, 3):
        streams = [begin(engine, DELAYS_MS[number % 5]) for number in range(SLOTS + 4)]
        for stream, _ in islice(streams, 0, None, 2):
            send(stream, sound(1.0, moment))
        for _ in range(moment):
            await asyncio.sleep(0)
        for stream, _ in streams:
            stream.abort()
    await idle(engine)
    assert engine.metrics()["waiting"] == 0
    assert isinstance((await transcribe(engine, sound(0.5, 1))).events[-1], SegmentDone)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (StreamOptions(delay_seconds=1.28), "--allow-untrained-delay"),
        (StreamOptions(delay_seconds=0.5), "multiple of 80"),
        (StreamOptions(language="tlh"), "language 'tlh'"),
    ],
)
async def test_what_it_cannot_do_is_refused_in_words(engine: VllmEngine, options: StreamOptions, part: str) -> None:
    listener = Listener()
    engine.open(OpenSegment(4, options), listener)
    assert not listener.events, "never from inside open"
    end = await listener.end()
    assert isinstance(end, EngineFailed)
    assert part in end.message


async def test_a_segment_longer_than_the_model_allows_fails_in_words_and_the_promised_length_does_not(
    engine: VllmEngine,
) -> None:
    longest = engine.info.max_segment_seconds
    assert longest is not None
    fine = await transcribe(engine, sound(longest, 1), 2400, 10**7)
    assert isinstance(fine.events[-1], SegmentDone)
    long = await transcribe(engine, sound(longest + 0.2, 1), 2400, 10**7)
    assert isinstance(long.events[-1], EngineFailed)
    assert "1024 tokens" in long.events[-1].message


async def test_audio_that_nobody_can_hear_is_bounded(engine: VllmEngine) -> None:
    parked = fill(engine)
    stream, listener = begin(engine)
    stream.feed(sound(99.0, 1))
    assert not listener.events
    stream.feed(sound(2.0, 1))
    end = await listener.end()
    assert isinstance(end, EngineFailed)
    assert end.code == "overloaded"
    for other, _ in parked:
        other.abort()
    await idle(engine)
