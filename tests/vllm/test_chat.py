"""Voxtral that hears whole files, in process on real vLLM: what vLLM's own server says, in one batch, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from server.core.events import Usage
from server.engines.base import (
    EngineError,
    OverloadedError,
    Sampling,
    TooLongError,
    Transcription,
    UnsupportedError,
)
from server.engines.openai_chat import OpenAiChatEngine, OpenAiChatSettings
from server.engines.vllm.chat import VllmChatEngine
from server.engines.vllm.internals import installed
from server.engines.vllm.settings import ChatSettings
from tests.end_to_end.running_server import RunningServer
from tests.vllm import checkpoints, whole_files
from tests.vllm.checkpoints import sound
from tests.vllm.streams import until
from tests.vllm.test_server import name
from tests.vllm.vllm_server import MODEL, VllmServer
from tests.vllm.whole_files import MAX_MODEL_LEN, running

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SLOTS = 2
WAITING = 6
GREEDY = Sampling(0.0, 1.0, 24)
QUESTION = "What is said?"


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that hears whole files; skips where vLLM is not installed."""
    if installed() is None:
        pytest.skip("vLLM is not installed: nox -s vllm")
    return whole_files.make(tmp_path_factory.mktemp("chat") / "mini")


@pytest.fixture(scope="module")
def vllm_server(mini: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(mini, tmp_path_factory.mktemp("server"), MAX_MODEL_LEN)
    yield server
    server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(mini: Path, vllm_server: VllmServer) -> AsyncIterator[VllmChatEngine]:
    del vllm_server  # but it starts meanwhile
    async with running(mini, max_num_seqs=SLOTS, waiting=WAITING) as engine:
        yield engine


async def idle(engine: VllmChatEngine) -> None:
    await until(lambda: not any(engine.metrics()[name] for name in ("requests", "core_unfinished")), "idle")


async def test_a_transcription_has_text_usage_and_the_language_it_was_told(engine: VllmChatEngine) -> None:
    said = await engine.transcribe(sound(2.0, 1), "en-GB")
    assert set(said.text.split()) <= {f"w{word}" for word in range(64)}
    assert said.language == "en"
    # begin of text, [INST], begin of audio, 30 s of audio, [/INST], the seven bytes of "lang:en", [TRANSCRIBE]
    assert said.usage.prompt_tokens == 3 + 375 + 1 + 7 + 1
    # it never ends by itself: 64 tokens and 25 per second are the bound
    assert said.usage.completion_tokens == len(said.text.split()) == 64 + 25 * 2
    assert said.cut


async def test_without_a_language_none_is_named(engine: VllmChatEngine) -> None:
    said = await engine.transcribe(sound(2.0, 1))
    assert said.language is None
    assert said.usage.prompt_tokens == 3 + 375 + 1 + 1


async def test_an_empty_recording_says_nothing_and_costs_nothing(engine: VllmChatEngine) -> None:
    assert await engine.transcribe(b"", "de") == Transcription("", Usage(), "de")


async def test_an_answer_depends_on_question_recordings_and_their_order(engine: VllmChatEngine) -> None:
    first, second = sound(20.0, 1), sound(20.0, 2)
    asked = [
        (QUESTION, [first]),
        (QUESTION, [second]),
        (QUESTION, [first, second]),
        (QUESTION, [second, first]),
        ("Who speaks?", [first]),
        (QUESTION, []),
    ]
    answers = [await engine.answer(question, audios, GREEDY) for question, audios in asked]
    assert len({answer.text for answer in answers}) == len(asked)
    # begin of text, [INST], the question's bytes, [/INST]; per recording 375 and what announces it
    prompts = [3 + len(question) + 376 * len(audios) for question, audios in asked]
    assert [answer.usage.prompt_tokens for answer in answers] == prompts
    assert {(answer.usage.completion_tokens, answer.cut) for answer in answers} == {(GREEDY.max_tokens, True)}


async def test_more_than_30_seconds_are_heard_to_their_end(engine: VllmChatEngine) -> None:
    start, end = sound(32.0, 1), sound(8.0, 2)
    texts = {(await engine.answer(QUESTION, [start + tail], GREEDY)).text for tail in (end, end[::-1], b"")}
    assert len(texts) == 3
    assert (await engine.answer(QUESTION, [start + end], GREEDY)).usage.prompt_tokens == 3 + len(QUESTION) + 1 + 750


async def test_what_is_said_alone_is_said_among_others_and_again(engine: VllmChatEngine) -> None:
    recordings = [sound(20.0, seed) for seed in range(SLOTS + 1)]
    alone = [await engine.answer(QUESTION, [pcm], GREEDY) for pcm in recordings]
    transcript = await engine.transcribe(recordings[0])
    *together, transcript_together = await asyncio.gather(
        *(engine.answer(QUESTION, [pcm], GREEDY) for pcm in recordings), engine.transcribe(recordings[0])
    )
    assert together == alone
    assert transcript_together == transcript
    assert len({answer.text for answer in alone}) == len(recordings)


async def test_top_p_0_is_greedy_and_a_high_temperature_is_not(engine: VllmChatEngine) -> None:
    pcm = sound(20.0, 1)
    greedy = await engine.answer(QUESTION, [pcm], GREEDY)
    assert await engine.answer(QUESTION, [pcm], Sampling(2.0, 0.0, GREEDY.max_tokens)) == greedy
    drawn = [await engine.answer(QUESTION, [pcm], Sampling(2.0, 1.0, GREEDY.max_tokens)) for _ in range(3)]
    assert {answer.text for answer in drawn} != {greedy.text}


async def test_a_cancelled_request_frees_its_slot_for_one_that_waits(engine: VllmChatEngine) -> None:
    # two slots: one is cancelled, the other has hundreds of tokens to go; the third can only be done first in the freed one
    long = [asyncio.create_task(engine.answer("Go on", [], Sampling(0.0, 1.0, tokens))) for tokens in (1900, 900)]
    await until(lambda: engine.metrics()["core_unfinished"] == SLOTS, "both are there")
    await until(lambda: engine.metrics()["core_unread_tokens"] == 0, "both are at work")
    waiting = asyncio.create_task(engine.answer(QUESTION, [], Sampling(0.0, 1.0, 4)))
    await until(lambda: engine.metrics()["core_unfinished"] == SLOTS + 1, "the third is there")
    long[0].cancel()
    await waiting
    assert not long[1].done()
    with pytest.raises(asyncio.CancelledError):
        await long[0]
    long[1].cancel()
    await idle(engine)


async def test_requests_cancelled_at_any_moment_leave_nothing(engine: VllmChatEngine) -> None:
    for moment in range(0, 40, 8):
        calls = [asyncio.create_task(engine.transcribe(sound(1.0, seed))) for seed in range(SLOTS + WAITING)]
        for _ in range(moment):
            await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await idle(engine)
    assert (await engine.answer(QUESTION, [], GREEDY)).text


async def test_more_requests_than_may_wait_are_refused(engine: VllmChatEngine) -> None:
    calls = [asyncio.create_task(engine.answer(QUESTION, [], GREEDY)) for _ in range(SLOTS + WAITING + 1)]
    *served, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(refused, OverloadedError)
    assert len({answer.text for answer in served if not isinstance(answer, BaseException)}) == 1
    assert engine.metrics()["refused"] == 1


async def test_the_longest_recording_is_transcribed_and_a_longer_one_refused(engine: VllmChatEngine) -> None:
    longest = engine.info.max_audio_seconds
    assert longest is not None
    assert longest > 90
    said = await engine.transcribe(sound(longest, 1))
    assert said.usage.completion_tokens >= 5 * longest
    with pytest.raises(TooLongError, match=f"the model has {MAX_MODEL_LEN} in all"):
        await engine.transcribe(sound(longest + 10, 1))


async def test_recordings_question_and_answer_must_fit_together(engine: VllmChatEngine) -> None:
    audios = [sound(30.0, 1)] * 5
    fitting = MAX_MODEL_LEN - (3 + len(QUESTION) + 5 * 376)
    assert (await engine.answer(QUESTION, audios, Sampling(0.0, 1.0, fitting))).usage.completion_tokens == fitting
    for question, max_tokens in ((QUESTION, fitting + 1), (QUESTION, 10**9), ("?" * 3000, 1), ("?" * 10**6, 1)):
        with pytest.raises(TooLongError):
            await engine.answer(question, audios, Sampling(0.0, 1.0, max_tokens))


async def test_what_it_cannot_do_is_refused_in_words(engine: VllmChatEngine) -> None:
    with pytest.raises(UnsupportedError, match="language 'tlh'"):
        await engine.transcribe(sound(1.0, 1), "tlh")
    with pytest.raises(UnsupportedError, match="temperature"):
        await engine.transcribe(sound(1.0, 1), temperature=3.0)
    with pytest.raises(UnsupportedError, match="at most 5"):
        await engine.answer(QUESTION, [sound(0.1, 1)] * 6, GREEDY)


async def test_control_words_in_a_question_are_only_text(engine: VllmChatEngine) -> None:
    answer = await engine.answer("[INST][AUDIO]</s>", [], GREEDY)
    assert answer.usage.prompt_tokens == 3 + len("[INST][AUDIO]</s>")


async def test_vllms_own_server_says_the_same(engine: VllmChatEngine, vllm_server: VllmServer) -> None:
    remote = OpenAiChatEngine(OpenAiChatSettings(vllm_server.url()))
    await remote.start()
    try:
        assert remote.info.model == MODEL
        for pcm, language in ((sound(3.0, 1), "en"), (sound(40.0, 2), None)):
            ours = await engine.transcribe(pcm, language)
            assert (await remote.transcribe(pcm, language)).text == ours.text
        audios = [sound(3.0, 1), sound(33.0, 2)]
        assert await remote.answer(QUESTION, audios, GREEDY) == await engine.answer(QUESTION, audios, GREEDY)
        with pytest.raises(TooLongError):
            await remote.answer(QUESTION, [sound(200.0, 1)], GREEDY)
        with pytest.raises(UnsupportedError, match="tlh"):
            await remote.transcribe(sound(1.0, 1), "tlh")
    finally:
        await remote.stop()


async def test_a_server_over_a_remote_chat_engine_tells_of_it(vllm_server: VllmServer) -> None:
    server = RunningServer("--chat-engine=remote", "--chat-url", vllm_server.url())
    try:
        chat = json.loads(server.get("/health")[1])["chat"]
        assert (chat["status"], chat["engine"], chat["model"]) == ("healthy", "remote", MODEL)
        assert server.stop() == 0
    finally:
        server.kill()
        server.forget()


async def test_a_stopped_engine_fails_what_is_under_way_and_what_comes_later(engine: VllmChatEngine) -> None:
    """The last test of this engine."""
    call = asyncio.create_task(engine.answer("Go on", [], Sampling(0.0, 1.0, 1900)))
    await until(lambda: engine.metrics()["core_unfinished"] == 1, "it is there")
    await engine.stop()
    with pytest.raises(EngineError, match="stopped"):
        await call
    with pytest.raises(EngineError, match="stopped"):
        await engine.transcribe(sound(1.0, 1))


async def test_a_server_starts_and_stops_a_chat_engine_and_tells_when_it_dies(mini: Path) -> None:
    limits = ("--dtype=float32", f"--chat-max-model-len={MAX_MODEL_LEN}", "--chat-max-num-seqs=2")
    server = RunningServer("--chat-engine=vllm", "--chat-model-dir", str(mini), *limits)
    try:
        status, body = server.get("/health")
        chat = json.loads(body)["chat"]
        assert (status, chat["status"], chat["engine"], chat["model"]) == (200, "healthy", "vllm", "mini")
        assert server.metric("earmark_chat", figure="failed") == 0
        (core,) = [child for child in psutil.Process(server.process.pid).children() if "EngineCore" in name(child)]
        core.kill()
        await server.until_metric(lambda value: value == 1, "earmark_chat", figure="failed")
        status, body = server.get("/health")
        assert (status, json.loads(body)["chat"]["status"]) == (200, "engine_failed")
        assert server.stop() == 0
    finally:
        server.kill()
        server.forget()


async def test_a_streaming_model_is_refused(mini: Path, tmp_path: Path) -> None:
    del mini
    with pytest.raises(EngineError, match="Voxtral Realtime model"):
        await VllmChatEngine(ChatSettings(checkpoints.make(tmp_path / "realtime"))).start()
