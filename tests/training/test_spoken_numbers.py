"""The embedded test corpus of nano's language: new sentences, known and strange voices, and words where their sound is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from harness import audio, corpus
from training.grammar import WORDS, part
from training.voices import SPEAKERS_FOR_TESTS, TRAINED_ON

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
RATE = 16_000


@pytest.fixture(scope="module")
def utterances() -> tuple[corpus.Utterance, ...]:
    return corpus.load("spoken-numbers", datasets=DATASETS).utterances


@pytest.mark.parametrize("name", ["spoken-numbers", "spoken-numbers-30m"])
def test_nothing_is_wrong_with_it(name: str) -> None:
    assert corpus.check(name, datasets=DATASETS).problems == ()


def test_no_sentence_of_it_can_be_in_a_training_corpus(utterances: tuple[corpus.Utterance, ...]) -> None:
    assert all(part(utterance.text.split()) == "test" for utterance in utterances)
    assert len({utterance.text for utterance in utterances}) == len(utterances) == 150


def test_it_is_in_the_vocabulary_and_covers_most_of_it(utterances: tuple[corpus.Utterance, ...]) -> None:
    said = Counter(word.text for utterance in utterances for word in utterance.words or ())
    assert set(said) <= set(WORDS)
    assert len(said) > 0.85 * len(WORDS)
    assert said.total() > 800
    for utterance in utterances:
        assert [word.text for word in utterance.words or ()] == utterance.text.split()


def test_a_third_is_said_by_a_stranger(utterances: tuple[corpus.Utterance, ...]) -> None:
    assert Counter(utterance.speaker for utterance in utterances) == {"slt": 32, "rms": 32, "kal16": 32, "awb": 54}
    for utterance in utterances:
        strange = utterance.speaker in SPEAKERS_FOR_TESTS
        assert utterance.tags["trained-on"] == ("no" if strange else "yes")
        assert strange != (utterance.speaker in TRAINED_ON)


def test_it_is_short_enough_for_every_bench(utterances: tuple[corpus.Utterance, ...]) -> None:
    assert 7 < sum(utterance.seconds for utterance in utterances) / 60 < 8.5
    assert sum(path.stat().st_size for path in (DATASETS / "spoken-numbers").rglob("*.flac")) < 8_000_000


def test_words_lie_where_the_sound_is(utterances: tuple[corpus.Utterance, ...]) -> None:
    """An independent witness: quiet before the first word and after the last, loud in every word of some length."""
    for utterance in utterances:
        samples, words = np.frombuffer(audio.load(utterance), "<i2").astype(float), utterance.words or ()

        def loudness(
            start: float, end: float, samples: np.ndarray[tuple[int], np.dtype[np.float64]] = samples
        ) -> float:
            return float(np.sqrt(np.mean(samples[round(start * RATE) : round(end * RATE)] ** 2)))

        speech = loudness(words[0].start, words[-1].end)
        assert words[0].start >= 0.2
        assert utterance.seconds - words[-1].end == pytest.approx(0.4, abs=0.01)
        assert loudness(0, words[0].start - 0.05) < speech / 10, utterance.id
        assert loudness(words[-1].end + 0.15, utterance.seconds) < speech / 20, utterance.id
        for word in words:
            if word.end - word.start > 0.2:
                assert loudness(word.start, word.end) > speech / 6, (utterance.id, word)


def test_the_half_hour_is_all_of_it_several_times() -> None:
    (recording,) = corpus.load("spoken-numbers-30m", datasets=DATASETS).utterances
    assert 29 * 60 < recording.seconds <= 30 * 60
    times = Counter(path.stem for path, _ in recording.parts)
    assert len(times) == 150
    assert max(times.values()) - min(times.values()) <= 1
    assert len(recording.words or ()) == len(recording.text.split())
