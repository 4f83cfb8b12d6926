"""The Whisper engine with a model that is really loaded and really decodes, and whose words are known beforehand."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from server.core.events import EngineFailed, OpenSegment, SegmentDone, StreamOptions
from server.engines.base import EngineError, EngineStream
from server.engines.whisper.engine import THREAD_NAME, WhisperEngine
from server.engines.whisper.settings import PROFILES, DecodeProfile, WhisperSettings
from tests.listener import Listener
from tests.server import tone_whisper
from tests.server.tone_whisper import GERMAN, TRANSLATED, WORDS, tones
from wire.pcm import bytes_of

faster_whisper = pytest.importorskip("faster_whisper")

ENGLISH = StreamOptions(language="en")
ONE_SECOND = bytes(bytes_of(1.0))
LONG = [WORDS[(7 * n * n + n // 3) % 6] for n in range(30)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone_whisper.write(tmp_path_factory.mktemp("whisper") / "tones")


@pytest.fixture(scope="module")
def english_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tone_whisper.write(tmp_path_factory.mktemp("whisper") / "tones.en", multilingual=False)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)] == []


@asynccontextmanager
async def running(checkpoint: Path, **settings: Any) -> AsyncIterator[WhisperEngine]:
    """An engine of one thread, without what the tones are not made for: text before the window, detection of voices."""
    given = {
        "device": "cpu",
        "compute_type": "float32",
        "cpu_threads": 1,
        "prompt_characters": 0,
        "vad_filter": False,
        "ahead_seconds": 0.0,
    }
    engine = WhisperEngine(WhisperSettings(model=str(checkpoint), **{**given, **settings}))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


def begin(engine: WhisperEngine, segment: int = 0, options: StreamOptions = ENGLISH) -> tuple[EngineStream, Listener]:
    listener = Listener()
    return engine.open(OpenSegment(segment, options), listener), listener


async def transcribe(
    engine: WhisperEngine, pcm: bytes, options: StreamOptions = ENGLISH, step: float = 0.5
) -> Listener:
    """As somebody speaks who waits after each step until it is heard."""
    stream, listener = begin(engine, 0, options)
    size = bytes_of(step)
    for at in range(0, len(pcm), size):
        stream.feed(pcm[at : at + size])
        heard = min(at + size, len(pcm)) / bytes_of(1.0)
        interval = engine.settings.partial_interval_seconds
        await listener.heard(heard // interval * interval - 1e-6) if heard >= interval else None
    stream.finish()
    assert isinstance(await listener.end(), SegmentDone)
    return listener


class Recording(faster_whisper.WhisperModel):  # type: ignore[misc,name-defined]
    """The library's model, which also keeps what it is asked; class-wide, for the engine makes its own."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012
    fails_at = -1

    def transcribe(self, audio: Any, **options: Any) -> Any:
        self.asked.append({"seconds": len(audio) / 16000, **options})
        if len(self.asked) == self.fails_at:
            raise RuntimeError("out of memory")
        return super().transcribe(audio, **options)


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> type[Recording]:
    monkeypatch.setattr(faster_whisper, "WhisperModel", Recording)
    monkeypatch.setattr(Recording, "asked", [])
    monkeypatch.setattr(Recording, "fails_at", -1)
    return Recording


# ---- hearing


async def test_it_hears_words_and_when_they_were_said(checkpoint: Path) -> None:
    said = ["delta", "alpha", "alpha", "fox.", "bravo", "echo", "cobra"]
    async with running(checkpoint) as engine:
        listener = await transcribe(engine, tones(*said))
    assert listener.text == " ".join(said)
    words = [word for heard in listener.said for word in heard.words]
    assert [word.text for word in words] == said
    for number, word in enumerate(words):
        assert word.start == pytest.approx(number * 0.5, abs=0.1)
        assert word.end == pytest.approx(number * 0.5 + 0.5, abs=0.1)
    assert all(before.end <= after.start for before, after in pairwise(words))


async def test_words_come_while_somebody_speaks_and_what_is_uncertain_is_replaced(checkpoint: Path) -> None:
    async with running(checkpoint, partial_interval_seconds=0.78) as engine:
        listener = await transcribe(engine, tones("alpha", "bravo", "cobra", "delta", "echo"), step=0.78)
    told = [(heard.committed, heard.tentative) for heard in listener.said]
    assert told == [
        ("", "alpha br"),  # 0.28 s of the second word
        ("alpha", " bravo cobra"),
        (" bravo cobra", " delta echo"),
        (" delta echo", ""),
    ]


@pytest.mark.parametrize("delay", [0.08, 0.48, 1.2, 2.4])
async def test_no_word_is_shown_before_its_end_lies_the_delay_behind(checkpoint: Path, delay: float) -> None:
    async with running(checkpoint) as engine:
        listener = await transcribe(engine, tones(*LONG[:10]), StreamOptions(language="en", delay_seconds=delay))
    assert listener.text == " ".join(LONG[:10])
    *before, last = listener.said
    assert all(word.end <= heard.audio_seconds - delay + 1e-3 for heard in before for word in heard.words)
    assert len(last.words) >= delay / 0.5


async def test_the_same_audio_gives_the_same_text_at_the_same_time(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        first = await transcribe(engine, tones(*LONG[:8]))
        again = await transcribe(engine, tones(*LONG[:8]), step=0.1)
    assert [(h.audio_seconds, h.committed) for h in first.said] == [(h.audio_seconds, h.committed) for h in again.said]


async def test_a_long_segment_is_heard_through_a_window_that_is_cut(
    checkpoint: Path, recording: type[Recording]
) -> None:
    async with running(checkpoint, window_seconds=4.0, longest_window_seconds=8.0) as engine:
        listener = await transcribe(engine, tones(*LONG))
        assert engine.metrics()["forced_cuts"] == 0
    assert listener.text == " ".join(LONG)
    assert max(asked["seconds"] for asked in recording.asked) <= 5.0


async def test_the_end_comes_after_the_rest_of_the_text(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        stream, listener = begin(engine, 7)
        stream.feed(tones("alpha", "bravo"))
        stream.finish()
        done = await listener.end()
        stream.finish()
        stream.feed(ONE_SECOND)  # too late, and harmless
        await transcribe(engine, ONE_SECOND)
    assert listener.text == "alpha bravo"
    assert listener.events[-1] is done
    assert isinstance(done, SegmentDone)
    assert (done.segment, done.usage.prompt_tokens, done.usage.completion_tokens) == (7, 12, 2)


async def test_a_segment_without_audio_or_with_less_than_a_step_ends_too(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        for pcm in (b"", bytes(2), bytes(bytes_of(0.3))):
            listener = Listener()
            stream = engine.open(OpenSegment(1, ENGLISH), listener)
            stream.feed(pcm)
            stream.finish()
            assert listener.events == []  # nothing is said from inside
            assert isinstance(await listener.end(), SegmentDone)
            assert listener.text == ""


@pytest.mark.parametrize("vad_filter", [False, True])
@pytest.mark.parametrize("language", [None, "en"])
async def test_nothing_is_heard_in_silence(checkpoint: Path, vad_filter: bool, language: str | None) -> None:
    async with running(checkpoint, vad_filter=vad_filter) as engine:
        listener = await transcribe(engine, ONE_SECOND * 3, StreamOptions(language=language))
    assert listener.text == ""
    assert listener.said[-1].audio_seconds == 3.0


async def test_eight_streams_at_once_all_end_with_their_own_text(checkpoint: Path) -> None:
    async with running(checkpoint, workers=2) as engine:
        assert engine.info.slots == 16
        texts = [LONG[number : number + 6] for number in range(8)]
        heard = await asyncio.gather(*(transcribe(engine, tones(*text)) for text in texts))
        assert engine.metrics()["busy_slots"] == engine.metrics()["queued"] == engine.metrics()["decoding"] == 0
    assert [listener.text for listener in heard] == [" ".join(text) for text in texts]


async def test_the_event_loop_goes_on_while_windows_are_decoded(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        stream, listener = begin(engine)
        stream.feed(tones(*LONG))
        stream.finish()
        turns = 0
        while engine.metrics()["decoding"]:
            turns += 1
            await asyncio.sleep(0)
        assert isinstance(await listener.end(), SegmentDone)
        assert listener.text == " ".join(LONG)
    assert turns > 10


async def test_what_is_decoded_is_counted(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        await transcribe(engine, tones("alpha", "bravo"))
        metrics = engine.metrics()
    assert metrics["decodes"] == 3  # at 0.48, 0.96 and 1 s
    assert metrics["last_decodes"] == 1
    assert metrics["decode_seconds"] > 0


# ---- options


async def test_a_language_that_is_named_is_what_the_model_hears(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        listener = await transcribe(engine, tones("alpha", "fox."), StreamOptions(language="de-AT"))
    assert listener.text == f"{GERMAN[0]} {GERMAN[5]}"


async def test_the_language_of_the_settings_is_for_those_who_name_none(checkpoint: Path) -> None:
    async with running(checkpoint, language="de") as engine:
        assert (await transcribe(engine, tones("alpha", "bravo"), StreamOptions())).text == f"{GERMAN[0]} {GERMAN[1]}"
        assert (await transcribe(engine, tones("alpha", "bravo"), ENGLISH)).text == "alpha bravo"


@pytest.mark.parametrize(("first", "expected"), [("alpha", "alpha bravo"), ("delta", f"{GERMAN[3]} {GERMAN[1]}")])
async def test_a_language_that_nobody_names_is_detected(checkpoint: Path, first: str, expected: str) -> None:
    async with running(checkpoint) as engine:
        listener = await transcribe(engine, tones(first, "bravo"), StreamOptions())
    assert listener.text == expected


async def test_a_language_is_not_detected_for_ever(checkpoint: Path, recording: type[Recording]) -> None:
    async with running(checkpoint, detect_seconds=1.0) as engine:
        await transcribe(engine, tones(*["alpha"] * 6), StreamOptions())
    languages = [asked["language"] for asked in recording.asked[1:]]  # the first is to warm up
    assert languages == [None, None, None, "en", "en", "en", "en"]  # at 0.48, 0.96 and 1.44 s


async def test_translate_reaches_the_model(checkpoint: Path) -> None:
    async with running(checkpoint, task="translate") as engine:
        listener = await transcribe(engine, tones("alpha", "delta"), StreamOptions(language="de"))
    assert listener.text == f"{TRANSLATED[0]} {TRANSLATED[3]}"


async def test_an_utterance_may_be_translated_while_others_are_not(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        translated = await transcribe(engine, tones("alpha", "delta"), StreamOptions(language="de", task="translate"))
        transcribed = await transcribe(engine, tones("alpha", "delta"), StreamOptions(language="de"))
    assert translated.text == f"{TRANSLATED[0]} {TRANSLATED[3]}"
    assert transcribed.text == f"{GERMAN[0]} {GERMAN[3]}"


async def test_profile_and_temperature_of_the_utterance_reach_the_model(
    checkpoint: Path, recording: type[Recording]
) -> None:
    profiles = {**PROFILES, "mine": DecodeProfile(beam_size=3, best_of=2, no_speech_threshold=0.3)}
    async with running(checkpoint, profiles=profiles) as engine:
        await transcribe(engine, tones("alpha"), StreamOptions(language="en", profile="mine", temperature=0.2))
        asked = recording.asked[-1]
        assert (asked["beam_size"], asked["best_of"], asked["no_speech_threshold"]) == (3, 2, 0.3)
        assert asked["temperature"] == 0.2
        await transcribe(engine, tones("alpha"))
        assert (recording.asked[-1]["beam_size"], recording.asked[-1]["temperature"]) == (1, 0.0)


@pytest.mark.parametrize(("profile", "beam"), [("realtime", 1), ("accurate", 5)])
async def test_the_profile_reaches_the_model(
    checkpoint: Path, recording: type[Recording], profile: str, beam: int
) -> None:
    async with running(checkpoint, profile=profile) as engine:
        listener = await transcribe(engine, tones("alpha", "bravo"))
    assert listener.text == "alpha bravo"
    asked = recording.asked[-1]
    assert (asked["beam_size"], asked["best_of"], asked["temperature"]) == (beam, beam, 0.0)
    assert (asked["word_timestamps"], asked["without_timestamps"]) == (True, True)


async def test_text_before_the_window_goes_with_it(checkpoint: Path, recording: type[Recording]) -> None:
    async with running(checkpoint, window_seconds=2.0, prompt_characters=12) as engine:
        stream, listener = begin(engine)
        for number in range(8):
            stream.feed(tones(WORDS[number % 4]))
            await listener.heard(number * 0.5)
        stream.abort()
    prompts = [asked["initial_prompt"] for asked in recording.asked]
    assert prompts[:4] == [None] * 4
    first = next(filter(None, prompts))
    assert " ".join(WORDS[:4]).startswith(first)
    assert all(len(prompt or "") <= 12 for prompt in prompts)


async def test_an_english_model_hears_english(english_checkpoint: Path) -> None:
    async with running(english_checkpoint) as engine:
        assert engine.info.languages == ("en",)
        for options in (StreamOptions(language="de"), StreamOptions(task="translate")):
            _, listener = begin(engine, 3, options)
            failed = await listener.end()
            assert isinstance(failed, EngineFailed)
            assert (failed.segment, failed.code) == (3, "processing_error")
            assert "English only" in failed.message
    assert "cannot translate" in await refusal(model=str(english_checkpoint), task="translate", compute_type="float32")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (StreamOptions(language="klingon"), "100 languages"),
        (StreamOptions(delay_seconds=0.1), "multiple of 0.08"),
        (StreamOptions(task="answer"), "one of transcribe, translate, got 'answer'"),
        (StreamOptions(profile="fast"), "one of realtime, accurate, got 'fast'"),
        (StreamOptions(temperature=2.5), "temperature must be in 0..2, got 2.5"),
    ],
)
async def test_what_it_cannot_do_is_said_through_the_sink(checkpoint: Path, options: StreamOptions, told: str) -> None:
    async with running(checkpoint) as engine:
        stream, listener = begin(engine, 1, options)
        assert listener.events == []
        failed = await listener.end()
        stream.feed(ONE_SECOND)
        stream.finish()
        assert engine.metrics()["busy_slots"] == 0
    assert isinstance(failed, EngineFailed)
    assert failed.code == "processing_error"
    assert told in failed.message


# ---- limits and ends


async def test_streams_beyond_the_slots_wait_and_as_many_beyond_that_are_refused(checkpoint: Path) -> None:
    async with running(checkpoint, slots=1) as engine:
        first, _ = begin(engine, 1)
        waiting, waiting_listener = begin(engine, 2)
        waiting.feed(tones("bravo"))
        waiting.finish()
        _, refused = begin(engine, 3)
        failed = await refused.end()
        assert isinstance(failed, EngineFailed)
        assert (failed.segment, failed.code) == (3, "overloaded")
        metrics = engine.metrics()
        assert (metrics["busy_slots"], metrics["waiting"], metrics["refused"], metrics["decoding"]) == (1, 1, 1, 0)
        first.abort()
        assert isinstance(await waiting_listener.end(), SegmentDone)
        assert waiting_listener.text == "bravo"
        assert (await transcribe(engine, tones("echo"))).text == "echo"


async def test_who_waits_for_a_slot_may_leave(checkpoint: Path) -> None:
    async with running(checkpoint, slots=1) as engine:
        first, first_listener = begin(engine, 1)
        waiting, waiting_listener = begin(engine, 2)
        waiting.feed(tones("bravo"))
        waiting.abort()
        assert engine.metrics()["waiting"] == 0
        first.feed(tones("alpha"))
        first.finish()
        assert isinstance(await first_listener.end(), SegmentDone)
    assert waiting_listener.events == []


async def test_audio_counts_as_heard_before_a_long_interval_is_full(checkpoint: Path) -> None:
    async with running(checkpoint, slots=1, partial_interval_seconds=4.0, ahead_seconds=20.0) as engine:
        first, first_listener = begin(engine, 1)
        waiting, waiting_listener = begin(engine, 2)
        for stream in (first, waiting):
            stream.feed(tones(*LONG[:4]))  # 2 s, as much as a session feeds without an answer
        await first_listener.heard(2.0)
        assert waiting_listener.events == []
        first.abort()
        await waiting_listener.heard(2.0)
        waiting.finish()
        assert isinstance(await waiting_listener.end(), SegmentDone)
    assert waiting_listener.text == " ".join(LONG[:4])


async def test_a_burst_is_decoded_in_few_large_windows(checkpoint: Path, recording: type[Recording]) -> None:
    async with running(checkpoint, ahead_seconds=20.0) as engine:
        stream, listener = begin(engine)
        pcm = tones(*LONG)
        for at in range(0, len(pcm), bytes_of(0.5)):  # as much ahead as a session goes
            stream.feed(pcm[at : at + bytes_of(0.5)])
            await listener.heard(at / bytes_of(1.0) - 2.0)
        stream.finish()
        assert isinstance(await listener.end(), SegmentDone)
    assert listener.text == " ".join(LONG)
    assert len(recording.asked) < 10  # 15 s at 0.48 s each would be 31
    heard = [event.audio_seconds for event in listener.said]
    assert heard == sorted(heard)
    for event in listener.said:
        assert all(word.end <= (event.transcribed_seconds or event.audio_seconds) for word in event.words)


async def test_audio_that_nobody_hears_is_bounded(checkpoint: Path) -> None:
    async with running(checkpoint, backlog_seconds=2.0) as engine:
        stream, listener = begin(engine)
        stream.feed(ONE_SECOND * 3)
        failed = await listener.end()
    assert isinstance(failed, EngineFailed)
    assert failed.code == "overloaded"
    assert "more than 2 s" in failed.message


async def test_an_aborted_stream_is_silent_and_makes_room(checkpoint: Path) -> None:
    async with running(checkpoint, slots=2) as engine:
        decoded, decoded_listener = begin(engine, 1)
        decoded.feed(tones(*LONG[:10]))
        waiting, waiting_listener = begin(engine, 2)
        waiting.feed(tones(*LONG[:10]))
        assert (engine.metrics()["decoding"], engine.metrics()["queued"]) == (1, 1)
        decoded.abort()
        waiting.abort()
        assert (engine.metrics()["busy_slots"], engine.metrics()["queued"]) == (0, 0)
        assert (await transcribe(engine, tones("echo"))).text == "echo"
        assert (
            engine.metrics()["decodes"] == 2 + 1
        )  # the aborted one's too, for nobody can stop it; the other's never began
    assert decoded_listener.events == []
    assert waiting_listener.events == []


async def test_whose_audio_has_ended_does_not_wait_behind_those_who_still_speak(checkpoint: Path) -> None:
    ends: list[str] = []
    async with running(checkpoint) as engine:
        begun = [begin(engine, number) for number in range(4)]
        for stream, _ in begun:
            stream.feed(tones(*LONG[:4]))  # the first is being decoded, the others wait
        begun[3][0].finish()

        async def first_news(number: int) -> None:
            await begun[number][1].heard()
            ends.append(str(number))

        await asyncio.gather(*(first_news(number) for number in range(4)))
        for stream, _ in begun:
            stream.abort()
    assert "".join(ends) == "0312"


async def test_a_window_that_cannot_be_decoded_fails_its_stream_alone(
    checkpoint: Path, recording: type[Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "fails_at", 2)
    async with running(checkpoint) as engine:
        stream, listener = begin(engine)
        stream.feed(tones("alpha"))
        failed = await listener.end()
        assert isinstance(failed, EngineFailed)
        assert failed.code == "processing_error"
        assert "out of memory" in failed.message
        assert (await transcribe(engine, tones("echo"))).text == "echo"
        assert engine.metrics()["failed_decodes"] == 1


async def test_audio_after_the_end_is_a_mistake(checkpoint: Path) -> None:
    async with running(checkpoint) as engine:
        stream, _ = begin(engine)
        stream.feed(ONE_SECOND)
        stream.finish()
        with pytest.raises(RuntimeError, match="audio after finish"):
            stream.feed(ONE_SECOND)
        stream.abort()


async def test_stop_fails_what_is_under_way_and_ends_the_threads(checkpoint: Path) -> None:
    async with running(checkpoint, workers=2) as engine:
        begun = [begin(engine, number) for number in range(4)]
        for stream, _ in begun:
            stream.feed(tones(*LONG[:10]))
        assert engine.metrics()["decoding"] == 2
        await engine.stop()
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]
        for _, listener in begun:
            assert isinstance(await listener.end(), EngineFailed)
        _, late = begin(engine)
        failed = await late.end()
        assert isinstance(failed, EngineFailed)
        assert "stopped" in failed.message


def test_it_works_on_the_loop_that_the_server_runs_on(checkpoint: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def hear() -> str:
        async with running(checkpoint) as engine:
            return (await transcribe(engine, tones("alpha", "bravo"))).text

    assert uvloop.run(hear()) == "alpha bravo"


# ---- what may be missing


def test_it_says_what_it_is_before_it_starts() -> None:
    info = WhisperEngine(WhisperSettings(model="models/whisper-small/", workers=2)).info
    assert (info.name, info.model, info.slots, info.words) == ("whisper", "whisper-small", 16, True)
    assert len(info.languages) == 100
    assert (info.delays_seconds[0], info.delays_seconds[-1]) == (0.08, 2.4)
    assert WhisperEngine(WhisperSettings(model="tiny.en")).info.languages == ("en",)


async def refusal(**settings: Any) -> str:
    engine = WhisperEngine(WhisperSettings(device="cpu", **settings))
    with pytest.raises(EngineError) as refused:
        await engine.start()
    await engine.stop()
    return str(refused.value)


async def test_a_model_that_is_not_there_is_an_error_that_says_how_to_get_it(tmp_path: Path) -> None:
    told = await refusal(model="small", model_dir=str(tmp_path), download=False)
    assert "the model 'small' is not on this machine" in told
    assert "download_model('small', 'models/whisper')" in told
    assert "--whisper-model models/whisper" in told


async def test_a_name_that_means_nothing_is_an_error_that_lists_the_sizes() -> None:
    told = await refusal(model="enormous")
    assert "'enormous', which is neither a folder" in told
    assert "large-v3" in told


async def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    assert f"there is no model.bin in {tmp_path}" in await refusal(model=str(tmp_path))


async def test_a_file_that_is_no_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"nothing of the kind")
    told = await refusal(model=str(tmp_path))
    assert f"the model in {tmp_path} cannot be used on cpu" in told
    assert "ct2-transformers-converter" in told


async def test_a_type_that_this_machine_cannot_compute_is_named(checkpoint: Path) -> None:
    assert "as nonsense" in await refusal(model=str(checkpoint), compute_type="nonsense")


async def test_a_missing_library_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faster_whisper", None)
    assert "pip install 'earmark[whisper]'" in await refusal(model=str(checkpoint))


async def test_the_types_that_it_chooses_by_itself_work_here(checkpoint: Path) -> None:
    async with running(checkpoint, compute_type="auto") as engine:
        assert (await transcribe(engine, tones("alpha", "bravo"))).text == "alpha bravo"
