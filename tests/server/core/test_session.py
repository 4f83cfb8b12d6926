"""The session's state machine, with the clock and the engine in the test's hands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core.events import (
    AbortSegment,
    Audio,
    Cancel,
    Cancelled,
    CloseSegment,
    Command,
    Dropped,
    EngineEvent,
    EngineFailed,
    Event,
    Failed,
    Feed,
    Final,
    Finish,
    Heard,
    Mute,
    OpenSegment,
    Output,
    SegmentDone,
    Start,
    Started,
    StreamOptions,
    Token,
    Usage,
)
from server.core.session import Session, SessionError, SessionSettings
from server.core.voice import VoiceDetector
from wire.pcm import bytes_of, seconds_of

SETTINGS = SessionSettings(default_delay_seconds=0.48, timed_words=False, segment_seconds=None)


class Bench:
    """A session and all it put out; the engine is what the test says it is."""

    def __init__(self, settings: SessionSettings = SETTINGS, voice: Callable[[], VoiceDetector] | None = None) -> None:
        self.session = Session(settings, voice)
        self.now = 0.0
        self.fed: dict[int, bytearray] = {}
        self.offsets: dict[int, float] = {}
        self.closed: list[int] = []
        self.aborted: list[int] = []
        self.events: list[Event] = []

    def do(self, *happenings: Command | EngineEvent) -> list[Event]:
        """Handle these; the events that came out."""
        before = len(self.events)
        for happening in happenings:
            self.keep(self.session.handle(happening, self.now))
        return self.events[before:]

    def keep(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            match output:
                case OpenSegment(segment, _, offset):
                    self.fed[segment], self.offsets[segment] = bytearray(), offset
                case Feed(segment, pcm):
                    assert segment not in self.closed, "audio after the close of its segment"
                    self.fed[segment] += pcm
                case CloseSegment(segment):
                    self.closed.append(segment)
                case AbortSegment(segment):
                    self.aborted.append(segment)
                case _:
                    self.events.append(output)

    def hear_all(self) -> None:
        """The engine consumes everything it was given, and finishes what was closed."""
        progress = True
        while progress:
            before = (sum(map(len, self.fed.values())), len(self.events))
            for segment, pcm in list(self.fed.items()):
                self.do(Heard(segment, seconds_of(len(pcm))))
            for segment in list(self.closed):
                self.do(SegmentDone(segment, Usage(1, 1)))
            progress = before != (sum(map(len, self.fed.values())), len(self.events))


def audio(seconds: float, fill: int = 0) -> Audio:
    return Audio(bytes([fill, fill]) * (bytes_of(seconds) // 2))


def test_a_short_utterance_goes_through_one_segment() -> None:
    bench = Bench()
    bench.do(Start("u"), audio(0.1), audio(0.1), Finish())
    assert {segment: len(pcm) for segment, pcm in bench.fed.items()} == {0: bytes_of(0.2)}
    assert bench.closed == [0]
    assert bench.do(Heard(0, 0.2, "hello"), SegmentDone(0, Usage(3, 1))) == [
        Token("u", "hello"),
        Final("u", "hello", (), Usage(3, 1), 0.48, 0.2, "client"),
    ]
    assert not bench.session.busy


def test_no_audio_gives_an_empty_final_at_once() -> None:
    bench = Bench()
    assert bench.do(Start("u"), Finish()) == [Started("u", 0.48), Final("u", "", (), Usage(), 0.48, 0.0, "client")]


@pytest.mark.parametrize("command", [audio(0.1), Finish()])
def test_audio_and_finish_need_an_utterance(command: Command) -> None:
    bench = Bench()
    with pytest.raises(SessionError) as refused:
        bench.do(command)
    assert refused.value.reason == "no_active_utterance"
    bench.do(Start("u"), audio(0.1), Finish())
    with pytest.raises(SessionError):
        bench.do(command)  # the audio of u has ended


def test_endpointing_without_a_detector_is_refused_before_anything_changes() -> None:
    bench = Bench()
    with pytest.raises(SessionError) as refused:
        bench.do(Start("u", StreamOptions(endpointing=True)))
    assert refused.value.reason == "no_endpointing"
    assert not bench.session.busy


def test_a_second_utterance_waits_for_the_end_of_the_first() -> None:
    bench = Bench()
    bench.do(Start("a"), audio(0.1, 1), Finish(), Start("b"), audio(0.2, 2), Finish())
    assert list(bench.fed) == [0], "b must not be heard before a has ended"
    events = bench.do(Heard(0, 0.1, "first"), SegmentDone(0))
    assert [type(event) for event in events] == [Token, Final, Started]
    assert bytes(bench.fed[1]) == audio(0.2, 2).pcm
    assert bench.do(Heard(1, 0.2, "second"), SegmentDone(1))[-1] == Final(
        "b", "second", (), Usage(), 0.48, 0.2, "client"
    )


def test_cancel_aborts_everything_and_late_output_does_not_leak() -> None:
    bench = Bench()
    bench.do(Start("a"), audio(0.1), Finish(), Start("b"), audio(0.1))
    assert bench.do(Cancel("why")) == [Cancelled(("a", "b"), "why")]
    assert bench.aborted == [0]
    assert bench.do(Heard(0, 0.1, "late"), SegmentDone(0), EngineFailed(0, "processing_error", "late")) == []
    bench.do(Start("c"), audio(0.3), Finish())
    assert bench.do(Heard(1, 0.3, "heard"), SegmentDone(1))[-1] == Final("c", "heard", (), Usage(), 0.48, 0.3, "client")


def test_cancel_with_nothing_running_is_answered() -> None:
    assert Bench().do(Cancel("why")) == [Cancelled((), "why")]


def test_an_engine_failure_ends_the_utterance_without_a_final_and_the_next_one_goes_on() -> None:
    bench = Bench()
    bench.do(Start("a"), audio(0.1), Finish(), Start("b"), audio(0.1), Finish())
    events = bench.do(EngineFailed(0, "processing_error", "broken"))
    assert events == [Failed("a", "processing_error", "broken"), Started("b", 0.48)]
    assert bench.do(SegmentDone(1))[-1] == Final("b", "", (), Usage(), 0.48, 0.1, "client")


@pytest.mark.spec("yap-80")
def test_a_segment_that_never_finishes_fails_its_utterance_in_bounded_time() -> None:
    bench = Bench()
    bench.do(Start("a"), audio(0.1), Finish())
    assert bench.session.deadline() == 120.0
    bench.keep(bench.session.expire(119.9))
    assert bench.session.busy
    bench.keep(bench.session.expire(120.0))
    assert isinstance(bench.events[-1], Failed)
    assert bench.aborted == [0]


def test_the_engine_is_never_more_than_the_lookahead_behind_what_it_was_fed() -> None:
    bench = Bench()
    bench.do(Start("a"), audio(10.0))
    assert seconds_of(len(bench.fed[0])) == 2.0
    assert bench.session.queued_seconds == 8.0
    bench.do(Heard(0, 0.5))
    assert seconds_of(len(bench.fed[0])) == 2.5


def test_reading_stops_at_the_queue_bound_and_goes_on_below_it() -> None:
    bench = Bench(SessionSettings(0.48, timed_words=False, segment_seconds=None, max_queued_seconds=3.0))
    bench.do(Start("a"), audio(4.9))
    assert bench.session.accepts_audio
    bench.do(audio(0.1))
    assert not bench.session.accepts_audio
    bench.do(Heard(0, 1.0))
    assert bench.session.accepts_audio


# ---- backlog

BACKLOG = SessionSettings(0.48, timed_words=False, segment_seconds=None, max_backlog_seconds=5.0)


def test_a_burst_is_not_dropped_while_the_engine_works_it_off() -> None:
    bench = Bench(BACKLOG)
    bench.do(Start("a"), audio(60.0))
    bench.now = 4.9
    bench.hear_all()
    assert seconds_of(len(bench.fed[0])) == 60.0
    assert not [event for event in bench.events if isinstance(event, Dropped)]


def test_audio_that_waited_longer_than_the_limit_is_dropped_oldest_first() -> None:
    bench = Bench(BACKLOG)
    bench.do(Start("a"), *[audio(1.0, second) for second in range(10)])
    assert bench.session.deadline() == 5.0
    bench.keep(bench.session.expire(5.0))  # 2 s are fed, 8 s wait, 5 s may
    assert bench.events[-1] == Dropped("a", 3.0, 5.0)
    bench.now = 5.0
    bench.hear_all()
    heard_fills = [bench.fed[0][bytes_of(at + 0.5)] for at in range(7)]
    assert heard_fills == [0, 1, 5, 6, 7, 8, 9]


def test_a_backlog_of_zero_drops_nothing() -> None:
    bench = Bench()
    bench.do(Start("a"), audio(600.0))
    bench.keep(bench.session.expire(1000.0))
    bench.hear_all()
    assert seconds_of(sum(map(len, bench.fed.values()))) >= 600.0
    assert not [event for event in bench.events if isinstance(event, Dropped)]


# ---- segments

ROLLING = SessionSettings(0.48, timed_words=False, segment_seconds=10.0, overlap_seconds=0.8, park_seconds=30.0)


def test_a_full_segment_rolls_and_the_next_one_hears_the_overlap_again() -> None:
    bench = Bench(ROLLING)
    pcm = bytes(range(256)) * (bytes_of(16.0) // 256)
    bench.do(Start("a"), Audio(pcm))
    bench.hear_all()
    assert len(bench.fed[0]) == bytes_of(10.0)
    assert bench.offsets[1] == pytest.approx(9.2)
    assert bytes(bench.fed[0] + bench.fed[1][bytes_of(0.8) :]) == pcm


def test_the_last_seconds_of_a_finished_utterance_need_no_segment_of_their_own() -> None:
    bench = Bench(ROLLING)
    bench.do(Start("a"), audio(10.0))
    bench.hear_all()
    bench.do(audio(3.0))  # fed after the finish below only if it waits: keep the engine two seconds behind
    bench.do(Finish())
    bench.hear_all()
    assert isinstance(bench.events[-1], Final)
    assert bench.events[-1].audio_seconds == 13.0


def test_an_utterance_without_audio_gives_its_engine_slot_back_and_takes_one_again() -> None:
    bench = Bench(ROLLING)
    bench.do(Start("a"), audio(1.0, 1))
    bench.hear_all()
    assert bench.session.deadline() == 30.0
    bench.keep(bench.session.expire(30.0))
    assert bench.closed == [0]
    bench.hear_all()
    assert bench.session.busy, "the utterance is not over"
    bench.now = 40.0
    bench.do(audio(1.0, 2), Finish())
    assert bytes(bench.fed[1]) == audio(0.8, 1).pcm + audio(1.0, 2).pcm
    bench.hear_all()
    assert isinstance(bench.events[-1], Final)


def test_what_a_later_segment_says_waits_for_the_earlier_one() -> None:
    bench = Bench(ROLLING)
    bench.do(Start("a"), audio(10.0))
    bench.do(Heard(0, 8.5, "one"))
    bench.do(audio(3.0))
    bench.do(Heard(0, 10.0, " two"))
    assert 1 in bench.fed
    assert bench.do(Heard(1, 1.0, "four five six")) == []
    assert bench.do(Heard(0, 10.0, " three"))[-1] == Token("a", " three")
    bench.do(SegmentDone(0))
    bench.do(Finish(), Heard(1, 3.8, " seven"), SegmentDone(1))
    final = bench.events[-1]
    assert isinstance(final, Final)
    assert final.text == "one two three four five six seven"


class LoudIsSpeech:
    """A detector for made audio: a frame whose first byte is not 0 is speech."""

    frame_seconds = 0.1

    def feed(self, pcm: bytes) -> Sequence[float]:
        return [float(pcm[at] > 0) for at in range(0, len(pcm), bytes_of(0.1))]

    def reset(self) -> None:
        raise AssertionError("a detector belongs to one utterance")


@pytest.mark.parametrize(("timed_words", "replayed_from"), [(False, 7.0), (True, 6.5)])
def test_near_its_end_a_segment_is_cut_in_silence(timed_words: bool, replayed_from: float) -> None:
    """At the first 0.3 s of silence. Stitched by text, only silence is heard again; by time, the whole overlap is."""
    bench = Bench(dataclasses.replace(ROLLING, timed_words=timed_words), LoudIsSpeech)
    bench.do(Start("a"), audio(7.0, 1), audio(0.5, 0), audio(2.0, 1))
    bench.hear_all()
    for _ in range(3):
        bench.do(audio(0.1, 1))
        bench.hear_all()
    assert 7.3 <= seconds_of(len(bench.fed[0])) <= 7.5
    assert replayed_from <= bench.offsets[1] < 7.5
    assert len(bench.fed[1]) >= bytes_of(2.3 + 7.5 - bench.offsets[1]) - bytes_of(0.3)


def test_speech_without_text_is_reported_and_the_engine_starts_afresh() -> None:
    bench = Bench(SETTINGS, LoudIsSpeech)
    bench.do(Start("a"))
    for _ in range(130):
        bench.do(audio(0.1, 1))
        bench.hear_all()
    assert [type(event) for event in bench.events] == [Started, Mute]
    assert isinstance(bench.events[1], Mute)
    assert bench.events[1].seconds == pytest.approx(12.0)  # 10 s, then 2 s of speech
    assert bench.closed == [0]
    assert bench.offsets[1] == pytest.approx(12.0 - 0.8)


def test_silence_without_text_is_no_fault_and_seldom_listened_to() -> None:
    heard_bytes = 0

    class Counting(LoudIsSpeech):
        def feed(self, pcm: bytes) -> Sequence[float]:
            nonlocal heard_bytes
            heard_bytes += len(pcm)
            return super().feed(pcm)

    bench = Bench(SETTINGS, Counting)
    bench.do(Start("a"))
    for _ in range(1200):
        bench.do(audio(0.1, 0))
        bench.hear_all()
    assert bench.events == [Started("a", 0.48)]
    assert 0 < seconds_of(heard_bytes) <= 12.0  # a tenth of two minutes


def test_speech_with_text_is_never_called_mute() -> None:
    bench = Bench(SETTINGS, LoudIsSpeech)
    bench.do(Start("a"))
    for tenth in range(600):
        bench.do(audio(0.1, 1))
        bench.hear_all()
        if tenth % 90 == 0:
            bench.do(Heard(0, seconds_of(len(bench.fed[0])), " word"))
    assert not [event for event in bench.events if isinstance(event, Mute)]


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(st.integers(1, 40_000), min_size=1, max_size=40),
    lags=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    segment_seconds=st.sampled_from([2.0, 3.3, 10.0]),
    overlap_seconds=st.sampled_from([0.0, 0.25, 0.8]),
)
def test_no_byte_is_lost_or_doubled_outside_the_overlap(
    chunks: list[int], lags: list[int], segment_seconds: float, overlap_seconds: float
) -> None:
    bench = Bench(
        SessionSettings(
            0.48,
            timed_words=False,
            segment_seconds=segment_seconds,
            overlap_seconds=overlap_seconds,
            lookahead_seconds=1.0,
        )
    )
    sent = bytearray()
    bench.do(Start("a"))
    for index, samples in enumerate(chunks):
        pcm = b"".join(((len(sent) // 2 + n) % 65_536).to_bytes(2, "little") for n in range(samples))
        sent += pcm
        bench.do(Audio(pcm))
        if lags[index % len(lags)] == 0:
            bench.hear_all()
    bench.do(Finish())
    bench.hear_all()
    assert isinstance(bench.events[-1], Final)
    rebuilt = bytearray()
    for segment, fed in sorted(bench.fed.items()):
        at = round(bench.offsets[segment] * 16_000) * 2
        assert at <= len(rebuilt), "a gap between segments"
        assert rebuilt[at:] == fed[: len(rebuilt) - at], "the overlap is not what was heard before"
        rebuilt[at:] = fed
    assert rebuilt == sent


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["start", "audio", "finish", "cancel", "hear", "done", "fail", "expire"]), max_size=60))
def test_any_order_of_happenings_keeps_the_books(steps: list[str]) -> None:
    """Every started utterance ends at most once, shown text only grows, and an idle session holds nothing."""
    bench = Bench(
        SessionSettings(0.48, timed_words=False, segment_seconds=2.0, max_backlog_seconds=1.0, park_seconds=3.0)
    )
    started = 0
    for step in steps:
        bench.now += 0.7
        newest = max(bench.fed, default=0)
        try:
            match step:
                case "start":
                    started += 1
                    bench.do(Start(str(started)))
                case "audio":
                    bench.do(audio(0.9))
                case "finish":
                    bench.do(Finish())
                case "cancel":
                    bench.do(Cancel("x"))
                case "hear":
                    bench.do(Heard(newest, seconds_of(len(bench.fed.get(newest, b""))), " w"))
                case "done":
                    bench.do(SegmentDone(newest))
                case "fail":
                    bench.do(EngineFailed(newest, "processing_error", "x"))
                case "expire":
                    bench.keep(bench.session.expire(bench.now))
        except SessionError:
            pass
    bench.do(Cancel("end"))
    assert not bench.session.busy
    assert bench.session.queued_seconds == 0
    assert bench.session.deadline() is None
    ended: list[str] = []
    shown: dict[str, str] = {}
    for event in bench.events:
        match event:
            case Token(utterance, text):
                assert utterance not in ended
                shown[utterance] = shown.get(utterance, "") + text
            case Final(utterance, text):
                assert text == shown.get(utterance, "")
                ended.append(utterance)
            case Failed(utterance):
                ended.append(utterance)
            case Cancelled(utterances):
                ended += utterances
            case _:
                pass
    assert len(ended) == len(set(ended)) == started
