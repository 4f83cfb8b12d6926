"""Nano's forward pass for training against transformers' own."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from torch.nn.functional import scaled_dot_product_attention

from training.model import TOKEN_IDS, Nano, Shape, _window_mask, windowed_attention

SMALL = Shape(
    encoder_layers=2, encoder_width=64, encoder_hidden=96, encoder_window=24, layers=2, width=64, hidden=96, window=20
)


@pytest.fixture(scope="module")
def nano() -> Nano:
    torch.manual_seed(1)
    made = Nano(SMALL)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if "bias" in name:
                tensor.normal_(0, 0.1)
            if "norm.weight" in name or name.endswith("layernorm.weight"):
                tensor.normal_(1, 0.1)
    made.eval()
    return made


@pytest.mark.parametrize("tokens", [4, 17, 50])
@pytest.mark.parametrize("delay", [1, 30])
def test_scores_are_those_of_transformers(nano: Nano, tokens: int, delay: int) -> None:
    """Shorter than both windows, and longer; the last one three times as long as the decoder's."""
    torch.manual_seed(tokens)
    mel = torch.randn(2, 128, 8 * tokens)
    said = torch.randint(0, len(TOKEN_IDS), (2, tokens))
    with torch.no_grad():
        audio, _ = nano.hear(mel)
        ours = nano.scores(nano.say(audio, said, torch.full((2,), delay)))[..., :-1]
        theirs = nano.voxtral(
            input_ids=torch.tensor(TOKEN_IDS)[said], input_features=mel, num_delay_tokens=delay, use_cache=False
        ).logits
    torch.testing.assert_close(ours, theirs[..., list(TOKEN_IDS)], atol=2e-5, rtol=1e-4)
    rest = torch.ones(theirs.shape[-1], dtype=torch.bool)
    rest[list(TOKEN_IDS)] = False
    assert not theirs[..., rest].any()


def test_examples_of_one_batch_may_differ_in_delay(nano: Nano) -> None:
    torch.manual_seed(5)
    audio = torch.randn(2, 30, SMALL.width)
    said = torch.randint(0, len(TOKEN_IDS), (2, 30))
    with torch.no_grad():
        together = nano.say(audio, said, torch.tensor([1, 12]))
        alone = [nano.say(audio[n : n + 1], said[n : n + 1], torch.tensor([d])) for n, d in ((0, 1), (1, 12))]
        swapped = nano.say(audio, said, torch.tensor([12, 1]))
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)
    assert (together - swapped).abs().max() > 0.01


@pytest.mark.parametrize(("length", "window"), [(5, 8), (8, 8), (9, 8), (40, 8), (41, 8)])
def test_attention_in_blocks_is_attention_with_a_mask(length: int, window: int) -> None:
    torch.manual_seed(length)
    query, key, value = torch.randn(3, 2, 3, length, 16).unbind(0)
    at = torch.arange(length)
    seen = (at[None] <= at[:, None]) & (at[None] > at[:, None] - window)
    expected = scaled_dot_product_attention(query, key, value, attn_mask=seen)
    mask = _window_mask(window, length, query)
    torch.testing.assert_close(windowed_attention(query, key, value, window, mask), expected, atol=1e-5, rtol=1e-4)


def test_a_continued_stream_starts_in_the_middle_of_silence(nano: Nano) -> None:
    """All frames of silence are alike, so that what lies before them need not be computed."""
    silence = torch.full((1, 128, 64), -0.625)
    with torch.no_grad():
        audio, frames = nano.hear(silence, continued=True)
        long_audio, _ = nano.hear(torch.full((1, 128, 8 * 64), -0.625))
    torch.testing.assert_close(frames, frames[:, :1].expand_as(frames), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(audio[:, -1], long_audio[:, -1], atol=1e-4, rtol=1e-3)
