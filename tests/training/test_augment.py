"""Augmentation keeps shapes and word times, keeps to its levels, differs between examples, and comes again with its seed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from training.augment import NOISE_SAMPLES, NONE, RATE, Augment  # noqa: E402

Tensor = Any


@pytest.fixture(scope="module")
def speech() -> Tensor:
    """Four seconds each of something like speech: bursts of a voiced sound between silences."""
    time = torch.arange(4 * RATE) / RATE
    voice = sum(torch.sin(2 * math.pi * 120 * n * time) / n for n in range(1, 30))
    loud = ((time % 1.0) > 0.3) & ((time % 1.0) < 0.8)
    return (0.2 * voice * loud).repeat(6, 1).float()


def band_db(sound: Tensor, low: float, high: float) -> Tensor:
    power = torch.fft.rfft(sound).abs() ** 2
    hertz = torch.fft.rfftfreq(sound.shape[1], 1 / RATE)
    return 10 * torch.log10(power[:, (hertz >= low) & (hertz < high)].sum(1) + 1e-12)


def test_the_same_seed_gives_the_same_sound_and_another_seed_another(speech: Tensor) -> None:
    one, again, other = (Augment(seed).waveform(speech) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_every_example_is_changed_in_its_own_way_and_stays_within_full_scale(speech: Tensor) -> None:
    before = speech.clone()
    heard = Augment(3).waveform(speech)
    assert torch.equal(speech, before)
    assert heard.shape == speech.shape
    assert heard.dtype == torch.float32
    assert heard.isfinite().all()
    assert heard.abs().max() <= 1
    for one in range(len(heard)):
        for two in range(one):
            assert not torch.allclose(heard[one], heard[two], atol=1e-3)


def test_with_everything_switched_off_nothing_changes(speech: Tensor) -> None:
    assert torch.allclose(Augment(1, chances=NONE).waveform(speech), speech.clamp(-1, 1), atol=1e-5)


def test_noise_has_the_level_that_was_asked_for(speech: Tensor) -> None:
    quiet = 0.1 * speech
    added = Augment(1, chances=replace(NONE, noise=1.0, snr_db=(20.0, 20.0))).waveform(quiet) - quiet
    loud = quiet.abs() > 0.02 * quiet.abs().amax()
    snr_db = 10 * torch.log10((quiet[loud] ** 2).mean() / (added**2).mean(1))
    assert snr_db == pytest.approx(np.full(len(speech), 20.0), abs=1.5)


def test_silence_gets_noise_and_never_anything_undefined() -> None:
    silent = torch.zeros(5, RATE)
    assert Augment(2).waveform(silent).isfinite().all()
    assert (Augment(2, chances=replace(NONE, noise=1.0)).waveform(silent).std(1) > 0).all()


def test_a_room_moves_no_word(speech: Tensor) -> None:
    """The envelope correlates best with itself unmoved, to 30 ms: the travel of sound."""
    heard = Augment(4, chances=replace(NONE, room=1.0)).waveform(speech)
    assert not torch.allclose(heard, speech, atol=0.01)
    width = RATE // 100
    envelopes = [x.abs().unfold(1, width, width).mean(2) for x in (speech, heard)]
    for before, after in zip(*(e - e.mean(1, keepdim=True) for e in envelopes), strict=True):
        shifts = range(-20, 21)
        best = max(shifts, key=lambda shift: float((before * after.roll(-shift)).sum()))
        assert -1 <= best <= 3


def test_a_telephone_has_no_treble() -> None:
    noise = 0.1 * torch.randn(6, 2 * RATE, generator=torch.Generator().manual_seed(1))
    heard = Augment(5, chances=replace(NONE, telephone=1.0)).waveform(noise)
    assert (band_db(noise, 300, 3_000) - band_db(heard, 300, 3_000)).abs().max() < 0.5
    assert (band_db(noise, 7_000, 8_000) - band_db(heard, 7_000, 8_000) > 20).all()


def test_a_coarse_codec_is_heard_only_a_little(speech: Tensor) -> None:
    """G.711 keeps some 38 dB above its noise for loud speech; seven bits and a sign leave at least 30."""
    error = Augment(6, chances=replace(NONE, mu_law=1.0)).waveform(speech) - speech
    ratio_db = 10 * torch.log10((speech**2).mean() / (error**2).mean())
    assert 30 < float(ratio_db) < 45


def test_a_warp_moves_the_filters_and_no_warp_leaves_them() -> None:
    centres = torch.linspace(5, 180, 20)
    filters = torch.clamp(1 - (torch.arange(201.0)[:, None] - centres).abs() / 10, 0)  # triangles
    warped = Augment(7).filterbanks(filters, 40)
    assert warped.shape == (40, 201, 20)
    peaks = warped.argmax(1)[:, 10].float()
    assert 0.75 * centres[10] < peaks.min() < 0.95 * centres[10]
    assert 1.05 * centres[10] < peaks.max() < 1.3 * centres[10]
    assert (warped >= 0).all()
    assert torch.allclose(Augment(7, chances=NONE).filterbanks(filters, 3), filters.expand(3, -1, -1), atol=1e-3)


def test_masks_hide_a_little_and_leave_the_rest() -> None:
    mel = torch.randn(8, 128, 400, generator=torch.Generator().manual_seed(2))
    masked = Augment(8, chances=replace(NONE, frequency_masks=1.0, time_masks=1.0)).mask(mel)
    changed = masked != mel
    assert ((changed.float().mean((1, 2)) > 0.01) & (changed.float().mean((1, 2)) < 0.35)).all()
    assert torch.allclose(masked[changed], mel.mean((1, 2), keepdim=True).expand_as(mel)[changed])
    assert torch.equal(Augment(8, chances=NONE).mask(mel), mel)


def test_sound_that_is_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        Augment(9).waveform(torch.zeros(1, NOISE_SAMPLES))


def test_babble_is_the_others_backwards(speech: Tensor) -> None:
    """One example sounds, the others are silent: what the others get is that one from its end, at the level asked for."""
    lonely = torch.zeros_like(speech)
    lonely[2] = speech[2]
    heard = Augment(10, chances=replace(NONE, babble=1.0)).waveform(lonely)
    backwards = lonely[2].flip(0)
    got = [one for one in range(len(lonely)) if one != 2 and heard[one].abs().max() > 1e-3]
    assert got
    for one in got:
        assert torch.nn.functional.cosine_similarity(heard[one], backwards, dim=0) > 0.999
