"""What nano is taught: streams, spectrograms and tokens."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.corpus import Clip, SpokenWord
from training.examples import (
    END_AFTER,
    FLOOR,
    FRONT,
    IGNORED,
    LEFT,
    RIGHT,
    STEP,
    Ears,
    Examples,
    Heard,
    Pool,
    end_of_stream,
    place,
    silent_for,
)
from training.model import BOS, EOS, FIRST_WORD, PAD, WORD

RATE = 16000


def clip(words: tuple[str, ...], voice: str = "one", kind: str = "sentence") -> Clip:
    """A buzz per word, 0.3 s each with 0.1 s before it."""
    at = np.arange(round(0.3 * RATE)) / RATE
    buzz = (8000 * np.sin(2 * np.pi * 220 * at)).astype(np.int16)
    gap = np.zeros(round(0.1 * RATE), np.int16)
    samples = np.concatenate([part for _ in words for part in (gap, buzz)] or [(buzz // 4)])
    spoken = tuple(SpokenWord(text, 0.4 * n + 0.1, 0.4 * n + 0.4) for n, text in enumerate(words))
    return Clip(samples, spoken, voice, kind)  # type: ignore[arg-type]


CLIPS = [
    clip(("go", "to", "room", "four")),
    clip(("we", "ate"), "two"),
    clip(("stop",), "two", "word"),
    clip((), "none", "noise"),
]


def examples(**changed: int) -> Examples:
    pool = Pool([c.kind for c in CLIPS], [c.voice for c in CLIPS], CLIPS)
    sizes = {"seed": 3, "tokens": 88, "size": 6, "delays": 2} | changed
    return Examples(pool, None, **sizes)  # type: ignore[arg-type]


words = st.lists(st.tuples(st.integers(0, 150), st.integers(0, 60 * STEP)), max_size=12).map(
    lambda items: tuple(Heard(word, max(end - 2000, 0), end) for word, end in items)
)


@given(words, st.sampled_from([1, 6, 30]))
def test_every_word_is_said_once_after_its_mark_and_never_before_its_delay(said: tuple[Heard, ...], delay: int) -> None:
    row = np.full(LEFT + 160, PAD)
    place(said, delay, row)
    at = np.flatnonzero(row >= FIRST_WORD)
    in_order = sorted(said, key=lambda word: word.end)
    assert [int(row[p]) - FIRST_WORD for p in at] == [word.word for word in in_order]
    assert (row[at - 1] == WORD).all()
    assert (row == WORD).sum() == len(said)
    for position, word in zip(at, in_order, strict=True):
        heard_until = (int(position) - 1 - LEFT + 1) * STEP  # the step of its mark
        assert heard_until >= word.end + (delay - 1) * STEP + 1 or word.end == 0


@given(words, st.sampled_from([1, 2, 15]))
def test_a_longer_delay_moves_every_word_by_that(said: tuple[Heard, ...], delay: int) -> None:
    first, second = np.full(LEFT + 200, PAD), np.full(LEFT + 200, PAD)
    place(said, delay, first)
    place(said, delay + 3, second)
    assert (second[3:] == first[:-3]).all()


@pytest.mark.parametrize("delay", [1, 6, 30])
def test_the_end_is_said_within_the_padding_and_not_before_the_last_word(delay: int) -> None:
    tokens = 20  # of audio, all loud, with a word that ends with it
    mel = torch.full((1, 128, 8 * (FRONT + tokens + delay + RIGHT)), FLOOR)
    mel[:, 5, 8 * FRONT : 8 * (FRONT + tokens)] = 0.0
    silent = silent_for(mel)[0].numpy()[FRONT:]
    row = np.full(LEFT + tokens + delay + RIGHT, PAD)
    place((Heard(3, 0, tokens * STEP),), delay, row)
    end_of_stream(row[LEFT:], silent, delay)
    (last_word,) = np.flatnonzero(row == FIRST_WORD + 3)
    ends = np.flatnonzero(row == EOS)
    assert ends[0] > last_word
    assert list(ends) == list(range(len(row) - (RIGHT - END_AFTER + 1), len(row)))
    assert (row[: last_word + 1] != IGNORED).all()


def test_silence_before_anything_was_heard_is_no_end() -> None:
    mel = torch.full((1, 128, 80), FLOOR)
    assert silent_for(mel).tolist() == [[0] * 10]
    mel[0, 0, 33] = 0.0
    assert silent_for(mel).tolist() == [[0, 0, 0, 0, 0, 1, 2, 3, 4, 5]]


def test_batches_are_the_same_again_and_differ_by_step_and_rank() -> None:
    first, again = examples().batch(4, 1), examples().batch(4, 1)
    for name in ("mel", "present", "given", "targets", "delays", "sounds", "ended"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    for other in (examples().batch(5, 1), examples().batch(4, 0), examples(seed=4).batch(4, 1)):
        assert not torch.equal(first.mel, other.mel)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_a_batch_fits_together(step: int) -> None:
    batch = examples().batch(step)
    assert batch.mel.shape == (6, 128, 8 * (FRONT + 88))
    assert batch.given.shape == batch.targets.shape == (2, 6, LEFT + 88)
    assert (batch.given[..., 0] == BOS).all()
    for which, number in np.ndindex(2, 6):
        delay = int(batch.delays[which, number])
        targets, said = batch.targets[which, number], batch.given[which, number]
        assert (targets[: LEFT + delay] == IGNORED).all()
        assert (said[1 : LEFT + delay + 1] == PAD).all()
        told = targets[LEFT + delay : -1]
        known = (told != IGNORED) & (told < FIRST_WORD)  # words may be replaced on purpose, and their marks
        same = said[LEFT + delay + 1 :][known] == told[known]
        assert bool((same | (told[known] == WORD)).all())
    spoken = (batch.targets >= FIRST_WORD).any(0).any(-1)
    assert bool(((batch.sounds > 0).any(-1) >= spoken).all())


def test_a_word_in_the_audio_is_where_its_targets_say() -> None:
    """The loudest tokens of a stream with one word end where ``ended`` begins."""
    pool = Pool(["sentence"], ["one"], [clip(("stop",))])
    random = np.random.default_rng(0)
    for _ in range(20):
        stream = pool.stream(random, 60)
        for word in stream.words:
            inside = stream.samples[word.start + 20 : word.end - 20]
            assert np.abs(inside).max() > 0
            assert np.abs(stream.samples[word.end + 20 : word.end + 400]).max(initial=0) == 0
            assert math.isclose((word.end - word.start) / RATE, 0.3, abs_tol=0.001)


def test_the_spectrogram_is_that_of_vllm() -> None:

    samples = torch.randn(1, 16000) * 0.1
    ears = Ears()
    mel = ears.mel(ears.power(samples))
    window = torch.hann_window(400)
    spectra = torch.stft(samples[0], 400, 160, window=window, return_complex=True)[..., :-1].abs() ** 2
    expected = ((ears.filters.T @ spectra).clamp(min=1e-10).log10().clamp(min=-6.5) + 4) / 4
    torch.testing.assert_close(mel[0][:, 2:-2], expected[:, 2:-2], atol=1e-4, rtol=1e-4)
