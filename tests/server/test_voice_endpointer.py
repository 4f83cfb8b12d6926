"""Where the endpointer sees speech begin and end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as rules
from hypothesis import strategies as st

from server.core.voice import Endpointer, EndpointerSettings, SpeechEnded, SpeechStarted

# On a machine with other work a single example may take any time.
patient = rules(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FRAME = 0.032
SETTINGS = st.builds(
    lambda threshold, fall, speech, silence: EndpointerSettings(threshold, threshold * fall, speech, silence),
    st.floats(0.1, 1.0),
    st.floats(0.1, 1.0),
    st.integers(0, 10).map(lambda frames: frames * FRAME),
    st.integers(1, 30).map(lambda frames: frames * FRAME),
)
# Runs of like probabilities, as real speech has them, with lone frames between.
PROBABILITIES = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 20)), max_size=20).map(
    lambda runs: [probability for probability, length in runs for _ in range(length)]
)
Change = SpeechStarted | SpeechEnded


def run(probabilities: list[float], settings: EndpointerSettings | None = None) -> tuple[list[Change], Endpointer]:
    endpointer = Endpointer(settings)
    changes = [endpointer.feed(probability, FRAME) for probability in probabilities]
    return [change for change in changes if change is not None], endpointer


@patient
@given(PROBABILITIES, SETTINGS)
def test_starts_and_ends_alternate_in_order_of_time(probabilities: list[float], settings: EndpointerSettings) -> None:
    changes, endpointer = run(probabilities, settings)
    assert [type(change) for change in changes] == [SpeechStarted, SpeechEnded] * (len(changes) // 2) + (
        [SpeechStarted] if len(changes) % 2 else []
    )
    assert endpointer.speaking == bool(len(changes) % 2)
    for before, after in pairwise(changes):
        least = settings.min_speech_seconds if isinstance(before, SpeechStarted) else settings.silence_seconds
        assert after.at_seconds - before.at_seconds >= least - 1e-6


@patient
@given(PROBABILITIES, SETTINGS)
def test_an_end_is_told_in_the_very_frame_that_makes_the_silence_long_enough(
    probabilities: list[float], settings: EndpointerSettings
) -> None:
    endpointer = Endpointer(settings)
    for probability in probabilities:
        speaking = endpointer.speaking
        change = endpointer.feed(probability, FRAME)
        long_enough = endpointer.in_silence_seconds >= settings.silence_seconds - 1e-6
        assert isinstance(change, SpeechEnded) == (speaking and long_enough)
        if isinstance(change, SpeechEnded):
            assert change.at_seconds == pytest.approx(endpointer.heard_seconds - settings.silence_seconds, abs=1e-6)


@patient
@given(PROBABILITIES, SETTINGS)
def test_voiced_frames_are_counted_once_and_only_within_speech(
    probabilities: list[float], settings: EndpointerSettings
) -> None:
    changes, endpointer = run(probabilities, settings)
    borders = [change.at_seconds for change in changes]
    if endpointer.speaking:
        borders.append(endpointer.heard_seconds)
    within = sum(end - start for start, end in zip(borders[::2], borders[1::2], strict=True))
    certain = [
        number
        for number, probability in enumerate(probabilities)
        if probability >= settings.threshold
        and any(s - 1e-6 <= number * FRAME < e - 1e-6 for s, e in zip(borders[::2], borders[1::2], strict=True))
    ]
    assert len(certain) * FRAME - 1e-6 <= endpointer.speech_seconds <= within + 1e-6


@patient
@given(PROBABILITIES)
def test_a_second_stream_after_reset_is_heard_like_a_first(probabilities: list[float]) -> None:
    used = Endpointer()
    for probability in probabilities:
        used.feed(probability, FRAME)
    used.reset()
    fresh = Endpointer()
    for probability in probabilities:
        assert used.feed(probability, FRAME) == fresh.feed(probability, FRAME)
    assert (used.in_silence_seconds, used.speech_seconds) == (fresh.in_silence_seconds, fresh.speech_seconds)


def test_a_clear_utterance() -> None:
    changes, endpointer = run([0.0] * 10 + [0.9] * 20 + [0.0] * 30)
    assert [type(change) for change in changes] == [SpeechStarted, SpeechEnded]
    assert [change.at_seconds for change in changes] == pytest.approx([10 * FRAME, 30 * FRAME])
    assert endpointer.speech_seconds == pytest.approx(20 * FRAME)
    assert endpointer.in_silence_seconds == pytest.approx(30 * FRAME)


def test_between_the_two_thresholds_everything_stays_as_it_is() -> None:
    assert run([0.45] * 50)[0] == []
    assert run([0.9] + [0.45] * 50)[0] == [SpeechStarted(0.0)]


def test_a_click_is_no_speech() -> None:
    changes, endpointer = run([0.9] * 3 + [0.0] * 40)  # 96 ms where 100 are needed
    assert changes == []
    assert endpointer.speech_seconds == 0


def test_a_pause_within_an_utterance_does_not_end_it() -> None:
    pause = [0.0] * 24  # 768 ms where 800 end it
    changes, _ = run([0.9] * 10 + pause + [0.9] * 10 + pause)
    assert changes == [SpeechStarted(0.0)]


def test_a_stream_without_voice_is_silence_from_its_start() -> None:
    changes, endpointer = run([0.1] * 100)
    assert changes == []
    assert endpointer.in_silence_seconds == endpointer.heard_seconds == pytest.approx(3.2)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 0.3}, "0 < release <= threshold"),
        ({"threshold": 1.1}, "<= 1"),
        ({"release": 0.0}, "0 < release"),
        ({"min_speech_seconds": -0.1}, "min_speech_seconds must not be negative"),
        ({"silence_seconds": 0.0}, "silence_seconds must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EndpointerSettings(**wrong)
