"""The drivers of commercial services against small servers that speak as those are documented, and refuse what those refuse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import audio
from harness.bench import BenchError, Load, Plan
from harness.corpus import Utterance
from harness.drivers import DRIVERS
from harness.drivers.base import (
    Appended,
    Done,
    DriverError,
    Fault,
    Final,
    Frame,
    Listener,
    Request,
    Said,
    Tentative,
    address,
)
from harness.replay import Cell, Replayed, ReplayError, replay
from harness.replay.carrying import Destination
from harness.replay.exchange import Patience
from harness.timeline import Kind, Outcome, StreamRecord
from tests.harness.services import KEY, Service, local
from tests.harness.tones import Ear, sing, words_of
from wire.pcm import SAMPLE_RATE

TEXTS = ("one two three four five six seven", "eight one eight two", "five four three two one")
QUICK = Patience(connect_seconds=5, ready_seconds=5, final_seconds=5, done_seconds=1, close_seconds=1)
NAMES = ("deepgram", "openai", "mistral")


def corpus() -> list[Utterance]:
    found = []
    for index, text in enumerate(TEXTS):
        words = words_of(text)
        found.append(Utterance(f"u{index}", text, round(words[-1].end + 0.3, 2), words=words, speaker=f"s{index}"))
    return found


def pcm_of(utterance: Utterance) -> bytes:
    return sing(utterance.words or (), utterance.seconds)


def ask(options: Mapping[str, str] | None = None, model: str | None = None, delay_ms: int | None = None) -> Request:
    return Request(model, delay_ms, "en", options or {})


async def run(name: str, server: Service, request: Request, *, key: str = KEY, cell: Cell | None = None) -> Replayed:
    driver = DRIVERS[name]
    driver.check(request)
    url, headers = address(driver, server.url, key, request)
    where = Destination(driver, url, headers, request)
    return await replay(corpus(), where, cell or Cell(concurrency=2, warm_up=0, speed=4.0), pcm_of, patience=QUICK)


def states(record: StreamRecord) -> list[str]:
    return [stable + tentative for _, stable, tentative in record.shown()]


# ---- the whole way over a socket ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
async def test_what_was_said_is_what_the_service_hears_and_what_the_harness_records(name: str) -> None:
    async with local(name) as server:
        replayed = await run(name, server, ask())
    assert server.faults == []
    assert [(record.outcome, record.error) for record in replayed.records] == [(Outcome.OK, None)] * len(TEXTS)
    assert sorted(server.heard) == sorted(tuple(text.split()) for text in TEXTS)
    assert [record.hypothesis for record in replayed.records] == list(TEXTS)
    for record in replayed.records:
        finals = list(record.of(Kind.FINAL))
        assert len(finals) == 1
        assert len(states(record)) >= len(record.hypothesis.split())  # word by word, as they were said
        assert states(record)[-1] == record.hypothesis
        assert states(record)[0] in ("one", "eight", "five")


async def test_utterances_on_one_connection_have_transcripts_of_their_own() -> None:
    async with local("openai") as server:
        cell = Cell(concurrency=1, per_connection=0, warm_up=0, speed=4.0)
        replayed = await run("openai", server, ask(), cell=cell)
    assert len(server.seen) == 1  # one session
    assert server.faults == []
    assert [(record.outcome, record.error) for record in replayed.records] == [(Outcome.OK, None)] * len(TEXTS)
    assert [record.hypothesis for record in replayed.records] == list(TEXTS)


@pytest.mark.parametrize("name", ["deepgram", "mistral"])
def test_a_service_that_ends_the_connection_with_the_utterance_cannot_be_asked_to_keep_it(name: str) -> None:
    with pytest.raises(BenchError, match=f"{name} every connection carries one utterance"):
        Plan(protocol=name, target="h:1", load=Load(per_connection=2))


async def test_words_of_deepgram_come_with_their_times() -> None:
    async with local("deepgram") as server:
        replayed = await run("deepgram", server, ask())
    for record in replayed.records:
        assert record.words is not None
        assert [word.text.lower() for word in record.hypothesis_words] == [word.text for word in record.words]
        for heard, spoken in zip(record.hypothesis_words, record.words, strict=True):
            assert heard.start == pytest.approx(spoken.start, abs=0.021)
            assert heard.end == pytest.approx(spoken.end, abs=0.021)


async def test_what_is_asked_of_deepgram_is_in_its_url() -> None:
    async with local("deepgram") as server:
        await run("deepgram", server, ask({"endpointing": "300", "smart_format": "true"}, model="nova-3-medical"))
    raw = {"encoding": "linear16", "sample_rate": "16000", "channels": "1", "interim_results": "true", "language": "en"}
    assert server.seen[0] == {**raw, "model": "nova-3-medical", "endpointing": "300", "smart_format": "true"}


async def test_without_interim_results_deepgram_shows_final_text_alone() -> None:
    async with local("deepgram") as server:
        replayed = await run("deepgram", server, ask({"interim_results": "false"}))
    assert [record.hypothesis for record in replayed.records] == list(TEXTS)
    assert not [entry for record in replayed.records for entry in record.of(Kind.TENTATIVE)]


async def test_a_finalize_without_an_answer_leaves_the_last_word_to_the_summary() -> None:
    async with local("deepgram", silent_finalize=True) as server:
        replayed = await run("deepgram", server, ask())
    assert [(record.outcome, record.hypothesis) for record in replayed.records] == [
        (Outcome.OK, text) for text in TEXTS
    ]


async def test_openai_hears_24_khz_in_pieces_that_it_cuts_itself() -> None:
    async with local("openai") as server:
        replayed = await run("openai", server, ask({"turn_detection": "server_vad"}, model="gpt-4o-transcribe"))
    # The first and the second text end behind a piece of three words or with words left; none of that is a fault to the user.
    assert set(server.faults) <= {"input_audio_buffer_commit_empty"}
    assert [(record.outcome, record.hypothesis) for record in replayed.records] == [
        (Outcome.OK, text) for text in TEXTS
    ]
    assert server.seen[0]["audio"]["input"]["turn_detection"] == {"type": "server_vad"}
    pieces = [3, 2, 2]  # seven words, four and five, in threes
    assert [record.usage["input_tokens"] for record in replayed.records] == [10 * count for count in pieces]
    assert [record.usage["output_tokens"] for record in replayed.records] == [len(text.split()) for text in TEXTS]


async def test_mistral_says_which_delay_is_in_force() -> None:
    async with local("mistral") as server:
        asked = await run("mistral", server, ask({"language": "en", "context_bias": "Voxtral, nano"}, delay_ms=960))
        own = await run("mistral", server, ask())
    assert {record.delay_ms_in_force for record in asked.records} == {960}
    assert {record.delay_ms_in_force for record in own.records} == {480}
    assert server.seen[0] == {
        "model": "voxtral-mini-transcribe-realtime-2602",
        "audio_format": {"encoding": "pcm_s16le", "sample_rate": 16_000},
        "target_streaming_delay_ms": 960,
        "language": "en",
        "context_bias": ["Voxtral", "nano"],
    }


@pytest.mark.parametrize("name", NAMES)
async def test_a_wrong_key_is_told_with_the_variable_that_holds_it(name: str) -> None:
    async with local(name) as server:
        replayed = await run(name, server, ask(), key="wrong")
        with pytest.raises(ReplayError, match=DRIVERS[name].key_variable):
            await run(name, server, ask(), key="wrong", cell=Cell(warm_up=1))
    assert {record.outcome for record in replayed.records} == {Outcome.FAILED}
    assert all("HTTP 401" in (record.error or "") for record in replayed.records)
    assert all("wrong" not in (record.error or "") for record in replayed.records)


@pytest.mark.parametrize("name", NAMES)
async def test_a_full_service_rejects_and_does_not_fail(name: str) -> None:
    async with local(name, streams_at_once=0) as server:
        replayed = await run(name, server, ask())
    assert {record.outcome for record in replayed.records} == {Outcome.REJECTED}


async def test_what_openai_refuses_ends_the_stream_in_its_words() -> None:
    async with local("openai") as server:
        replayed = await run("openai", server, ask({"delay": "low"}))
    assert {record.error for record in replayed.records} == {
        "invalid_value: 'delay' is not supported with gpt-live-transcribe"
    }


# ---- what drivers refuse by themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "request_", "told"),
    [
        ("deepgram", ask(delay_ms=480), "--delay-ms server"),
        ("openai", ask(delay_ms=480), "--delay-ms server"),
        ("vllm", ask(model="m", delay_ms=480), "--delay-ms server"),
        ("deepgram", ask({"endpoint": "300"}), "endpointing"),
        ("openai", ask({"turn_detection": "yes"}), "semantic_vad"),
        ("openai", ask({"delay": "480"}), "minimal"),
        ("openai", ask({"silence_duration_ms": "200"}), "turn_detection=server_vad"),
        ("openai", ask({"silence_duration_ms": "x", "turn_detection": "server_vad"}), "whole number"),
        ("vllm", ask({"served-delay-ms": "soon"}, model="m"), "milliseconds"),
        ("vllm", ask(), "--model"),
        ("yap", ask({"anything": "1"}), "none"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(name: str, request_: Request, told: str) -> None:
    with pytest.raises(DriverError, match=told):
        DRIVERS[name].check(request_)


# ---- listeners, frame by frame -----------------------------------------------------------------------------------


def told(listener: Listener, *events: Mapping[str, Any]) -> list[Said]:
    return [said for event in events for said in listener(json.dumps(event))]


def results(text: str, *, final: bool = False, **marks: Any) -> dict[str, Any]:
    alternatives = [{"transcript": text, "confidence": 1.0, "words": []}]
    return {"type": "Results", "is_final": final, "channel": {"alternatives": alternatives}, **marks}


def test_deepgram_text_replaces_itself_until_it_is_final() -> None:
    said = told(
        DRIVERS["deepgram"].listen(ask()),
        results("too"),
        results("two be"),
        results("to be", final=True),
        results("or"),
        results("", final=True),  # it was nothing after all
        results("", final=True),
        results("or not", final=True, speech_final=True),
        {"type": "UtteranceEnd", "channel": [0], "last_word_end": 1.0},
        {"type": "Metadata", "duration": 1.0},
    )
    assert said == [
        Tentative("too"),
        Tentative("two be"),
        Appended("to be"),
        Tentative(" or"),
        Tentative(""),
        Appended(" or not"),
        Final("to be or not"),
        Done(),
    ]


def test_deepgram_errors_are_told_in_its_words() -> None:
    event = {"type": "Error", "variant": "SchemaError", "description": "cannot parse"}
    assert told(DRIVERS["deepgram"].listen(ask()), event) == [Fault("SchemaError", "cannot parse")]


def delta(item: str, text: str) -> dict[str, Any]:
    return {"type": "conversation.item.input_audio_transcription.delta", "item_id": item, "delta": text}


def completed(item: str, text: str) -> dict[str, Any]:
    usage = {"type": "duration", "seconds": 1.5}
    return {
        "type": "conversation.item.input_audio_transcription.completed",
        "item_id": item,
        "transcript": text,
        "usage": usage,
    }


CLEARED = {"type": "input_audio_buffer.cleared"}


def committed(item: str) -> dict[str, Any]:
    return {"type": "input_audio_buffer.committed", "item_id": item}


def test_openai_waits_for_every_piece_that_it_announced() -> None:
    listener = DRIVERS["openai"].listen(ask())
    assert told(listener, committed("a"), delta("a", "to"), committed("b"), CLEARED) == [Appended("to")]
    assert told(listener, completed("b", "or not")) == [
        Tentative(" or not")
    ]  # more of the first piece may come before it
    assert told(listener, completed("a", "to be")) == [Appended(" be or not"), Final("to be or not"), Done({})]
    assert told(listener, CLEARED) == []


def test_openai_a_completed_text_that_differs_from_its_deltas_counts() -> None:
    listener = DRIVERS["openai"].listen(ask())
    said = told(listener, committed("a"), delta("a", "two bee"), completed("a", "to be"), CLEARED)
    assert said == [Appended("two bee"), Final("to be"), Done({})]


def test_openai_nothing_to_commit_is_a_transcript_without_words() -> None:
    empty = {
        "type": "error",
        "error": {"type": "invalid_request_error", "code": "input_audio_buffer_commit_empty", "message": "m"},
    }
    assert told(DRIVERS["openai"].listen(ask()), empty, CLEARED) == [Final(""), Done({})]


def test_openai_failures_are_faults_and_only_a_rate_limit_is_a_refusal() -> None:
    listener = DRIVERS["openai"].listen(ask())
    failed = {
        "type": "conversation.item.input_audio_transcription.failed",
        "item_id": "a",
        "error": {"code": "c", "message": "m"},
    }
    limit = {"type": "error", "error": {"type": "t", "code": "rate_limit_exceeded", "message": "slow down"}}
    plain = {"type": "error", "error": {"type": "server_error", "code": None, "message": "oops"}}
    assert told(listener, failed, limit, plain) == [
        Fault("c", "m"),
        Fault("rate_limit_exceeded", "slow down", refused=True),
        Fault("server_error", "oops"),
    ]


_pieces = st.lists(st.lists(st.sampled_from(["one", " two", "three", " "]), max_size=4), min_size=1, max_size=4)


@settings(deadline=None)
@given(pieces=_pieces, turns=st.lists(st.integers(0, 3), max_size=20))
def test_openai_pieces_in_any_interleaving_give_one_transcript_and_shown_text_only_grows(
    pieces: list[list[str]], turns: list[int]
) -> None:
    """Deltas of a piece keep their order, pieces are committed in order, everything else may cross."""
    listener = DRIVERS["openai"].listen(ask())
    queues = [
        [*(delta(f"i{index}", text) for text in texts), completed(f"i{index}", "".join(texts))]
        for index, texts in enumerate(pieces)
    ]
    said = told(listener, *(committed(f"i{index}") for index in range(len(pieces))), CLEARED)
    for turn in turns:
        said += told(listener, *queues[turn % len(queues)][:1])
        del queues[turn % len(queues)][:1]
    said += told(listener, *(event for queue in queues for event in queue))
    *shown, final, done = said
    assert isinstance(final, Final)
    assert isinstance(done, Done)
    stable = ""
    for one in shown:
        assert isinstance(one, Appended | Tentative)
        stable += one.text if isinstance(one, Appended) else ""
    assert final.text.split() == " ".join("".join(texts) for texts in pieces).split()
    assert stable == final.text


def test_mistral_errors_are_told_in_its_words() -> None:
    listener = DRIVERS["mistral"].listen(ask())
    nested = {"type": "error", "error": {"message": {"detail": "no such model"}, "code": 1500}}
    plain = {"type": "error", "error": {"message": "too long", "code": 3000}}
    assert told(listener, nested, plain) == [Fault("1500", "no such model"), Fault("3000", "too long")]


NONSENSE: tuple[Frame, ...] = (
    "[]",
    "{}",
    '{"type":7}',
    "\ud800",
    b"\xff",
    '{"type":"Results"}',
    '{"type":"error","error":1}',
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frame", NONSENSE)
def test_frames_that_make_no_sense_are_faults_and_never_crash(name: str, frame: Frame) -> None:
    said = DRIVERS[name].listen(ask())(frame)
    assert all(isinstance(one, Fault) for one in said)


# ---- 24 kHz ------------------------------------------------------------------------------------------------------


def test_resampled_speech_is_the_same_speech_at_the_same_times() -> None:
    words = words_of(TEXTS[0])
    pcm = sing(words, 3.0)
    at_24, wrong = Ear(24_000), Ear(24_000)
    at_24.hear(audio.resample(pcm, 24_000))
    wrong.hear(pcm)  # 16 kHz taken for 24 kHz
    at_24.end()
    assert [word.text for word in at_24.words] == TEXTS[0].split()
    assert [word.start for word in at_24.words] == pytest.approx([word.start for word in words], abs=0.021)
    assert at_24.seconds == pytest.approx(3.0, abs=1 / 24_000)
    assert wrong.words == []


def test_a_tone_keeps_its_level_when_resampled() -> None:
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(SAMPLE_RATE) / SAMPLE_RATE)).astype("<i2").tobytes()
    up = np.frombuffer(audio.resample(tone, 24_000), "<i2").astype(float)[2_000:-2_000]
    assert np.sqrt((up**2).mean()) == pytest.approx(8000 / np.sqrt(2), rel=0.001)
    assert audio.resample(tone, SAMPLE_RATE) is tone
