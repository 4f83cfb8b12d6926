"""Voices say the words they are given, in the manner they are given, and know when."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest

from training import festival
from training.espeak import word_times
from training.festival import FESTIVAL, RECORDINGS
from training.speaking import (
    PLAIN,
    RATE,
    Manner,
    Samples,
    Spoken,
    SpokenOtherwiseError,
    SynthesiserMissingError,
    replayed,
    written,
)
from training.voices import SPEAKERS_FOR_TESTS, TRAINED_ON, voice_named

SENTENCE = ["wait", "for", "ten", "minutes", "and", "call", "oscar"]
HEARD = ["slt", "kal16", "awb", "ked", "lp", "espeak"]  # one of each kind; to start all takes long
RADIO = "aa ae ah ao aw ax ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh pau".split()  # noqa: SIM905 - sounds


def spoken(voice: str, words: list[str], manner: Manner = PLAIN) -> Spoken:
    try:
        return voice_named(voice).speak(words, manner)
    except SynthesiserMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", autouse=True)
def _no_festival_stays_behind() -> Iterator[None]:
    yield
    for process in festival._running.values():
        process.close()
    festival._running.clear()


def loudness(samples: Samples, start: float, end: float) -> float:
    return float(np.sqrt(np.mean(samples[round(start * RATE) : round(end * RATE)] ** 2)))


# ---- what holds without a synthesiser ------------------------------------------------------------------------------------


def test_the_stranger_is_not_among_those_who_are_trained_on() -> None:
    assert not set(SPEAKERS_FOR_TESTS) & set(TRAINED_ON)
    assert len(TRAINED_ON) >= 10
    for voice in (*TRAINED_ON, *SPEAKERS_FOR_TESTS):
        assert voice_named(voice).name == voice


def test_a_voice_that_nobody_has_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'hal'.*slt"):
        voice_named("hal")


def test_commas_make_pauses_and_care_says_words_in_full() -> None:
    words = ["wait", "for", "two", "minutes"]
    assert written(words, PLAIN) == "wait for two minutes"
    assert written(words, Manner(pauses=(True, False, True), careful=True)) == "wait, four two, minutes"
    assert written(["yes"], Manner(pauses=(True,))) == "yes"


def test_replaying_faster_moves_pitch_and_times_alike() -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(32_000) / 32_000).astype(np.float32)
    faster = replayed(tone, 32_000, [(0.2, 0.6)], 1.25)
    assert len(faster.samples) == pytest.approx(RATE / 1.25, abs=2)
    assert np.ravel(faster.times) == pytest.approx([0.16, 0.48])
    peak = np.argmax(np.abs(np.fft.rfft(faster.samples * np.hanning(len(faster.samples))))) * RATE / len(faster.samples)
    assert peak == pytest.approx(1_250, abs=3)


def test_every_language_has_something_to_say_for_every_english_sound() -> None:
    for recordings in RECORDINGS.values():
        if recordings.phones != "radio":
            assert set(RADIO) <= set(recordings.sounds)


def test_words_run_together_share_their_time_and_silence_belongs_to_none() -> None:
    """400 Hz frames of five samples: "on the" from 1.0 s to 2.0 s, told as one word; "left" from 2.5 s to 3.0 s."""
    samples = np.zeros(1_000, np.float32)
    samples[250:500] = samples[625:750] = 0.5
    times = word_times("on the left", [(0, 240), (7, 505)], samples, 250.0)
    assert np.array(times).ravel() == pytest.approx([1.0, 1.0 + 3 / 7, 1.0 + 3 / 7, 2.0, 2.5, 3.0], abs=0.03)
    assert word_times("on the left", [(7, 505)], samples, 250.0) == ()
    assert word_times("on", [(0, 0)], np.zeros(1_000, np.float32), 250.0) == ()


# ---- what needs one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", HEARD)
def test_every_word_has_its_time_and_sounds_then(voice: str) -> None:
    said = spoken(voice, SENTENCE)
    assert len(said.times) == len(SENTENCE)
    assert all(0 <= start < end <= len(said.samples) / RATE + 0.02 for start, end in said.times)
    assert all(one[1] <= two[0] + 1e-3 for one, two in itertools.pairwise(said.times))
    assert 0.05 < np.abs(said.samples).max() <= 1
    speech = loudness(said.samples, said.times[0][0], said.times[-1][1])
    assert all(loudness(said.samples, start, end) > speech / 10 for start, end in said.times)
    after = said.times[-1][1] + 0.1
    if after + 0.02 < len(said.samples) / RATE:
        assert loudness(said.samples, after, len(said.samples) / RATE) < speech / 5


@pytest.mark.parametrize("voice", ["kal16", "ked", "espeak"])
def test_longer_sounds_take_longer_and_a_shorter_throat_does_not(voice: str) -> None:
    """Between the first word's start and the last one's end, so that silence at the ends does not count."""

    def seconds(manner: Manner) -> float:
        times = spoken(voice, SENTENCE, manner).times
        return times[-1][1] - times[0][0]

    plain = seconds(PLAIN)
    assert seconds(Manner(duration=1.3)) / plain == pytest.approx(1.3, abs=0.09)
    assert seconds(Manner(formants=1.2)) / plain == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("voice", ["kal16", "slt", "espeak"])
def test_a_higher_pitch_is_higher(voice: str) -> None:
    low, high = (_pitch(spoken(voice, SENTENCE, Manner(pitch=factor)).samples) for factor in (0.8, 1.25))
    assert high / low == pytest.approx(1.25 / 0.8, rel=0.2)


def test_a_pause_is_heard_where_it_is_asked_for() -> None:
    for voice in ("slt", "ked"):
        times = spoken(voice, SENTENCE, Manner(pauses=(False, False, False, True))).times
        gaps = [after[0] - before[1] for before, after in itertools.pairwise(times)]
        assert gaps[3] > 0.08
        assert max(gap for place, gap in enumerate(gaps) if place != 3) < 0.03


def test_a_festival_that_dies_is_started_again() -> None:
    spoken("lp", ["yes"])
    os.kill(festival._running["lp", os.getpid()]._festival.pid, signal.SIGKILL)
    with pytest.raises(SpokenOtherwiseError, match="lp"):
        FESTIVAL["lp"].speak(["yes"], PLAIN)
    assert len(FESTIVAL["lp"].speak(["yes"], PLAIN).times) == 1


def _pitch(samples: Samples) -> float:
    """The median pitch of voiced frames by their autocorrelation, in hertz."""
    found = []
    for at in range(0, len(samples) - 1_024, 256):
        frame = samples[at : at + 1_024] * np.hanning(1_024)
        if np.abs(frame).max() > 0.1 * np.abs(samples).max():
            similar = np.fft.irfft(np.abs(np.fft.rfft(frame, 4_096)) ** 2)[: RATE // 60]
            peak = RATE // 350 + int(np.argmax(similar[RATE // 350 :]))
            if similar[peak] > 0.4 * similar[0]:
                found.append(RATE / peak)
    return float(np.median(found))
