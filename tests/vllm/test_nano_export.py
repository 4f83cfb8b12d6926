"""Nano's files against transformers and against unmodified vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.corpus import Clip, SpokenWord, write_shard
from training.export import from_mistral_rows, params, shape_of, tekken, to_mistral_rows, to_transformers, write
from training.grammar import WORDS
from training.model import FIRST_WORD_ID, TOKEN_IDS, VOCABULARY, Nano, Shape

ROOT = Path(__file__).parents[2]
ENGINE_SECONDS = 600.0  # for two engines to start, one after the other
SMALL = Shape(
    encoder_layers=2, encoder_width=64, encoder_hidden=96, encoder_window=24, layers=2, width=64, hidden=96, window=20
)


@pytest.fixture(scope="module")
def nano() -> Nano:
    """Weights large enough for the tokens to depend on what is heard."""
    torch.manual_seed(4)
    made = Nano(SMALL)
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if "embed_tokens" in name:
                tensor.mul_(3.0)
            elif tensor.ndim > 1:
                tensor.mul_(2.0)
            elif "bias" in name:
                tensor.normal_(0, 0.1)
    made.eval()
    return made


@given(st.integers(1, 4), st.sampled_from([2, 4, 32]), st.integers(1, 5))
def test_orders_of_rows_are_each_others_reverse(heads: int, width: int, columns: int) -> None:
    matrix = torch.arange(heads * width * columns).reshape(heads * width, columns)
    assert torch.equal(from_mistral_rows(to_mistral_rows(matrix, width), width), matrix)
    assert torch.equal(to_mistral_rows(matrix, width)[1], matrix[width // 2])  # the partner of row 0 comes next


def test_float32_files_read_back_are_the_model(nano: Nano, tmp_path: Path) -> None:
    write(nano.voxtral, SMALL, tmp_path, torch.float32)
    read = to_transformers(tmp_path)
    for (name, expected), (other, tensor) in zip(nano.voxtral.named_parameters(), read.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(tensor, expected), name


def test_parameters_tell_the_shape() -> None:
    assert shape_of(params(SMALL)) == SMALL
    assert shape_of(params(Shape())) == Shape()


def test_the_default_shape_is_small_enough(tmp_path: Path) -> None:
    write(Nano(Shape()).voxtral, Shape(), tmp_path, torch.bfloat16)
    assert (tmp_path / "consolidated.safetensors").stat().st_size < 8_000_000


def test_mistral_common_knows_the_words_and_the_audio(tmp_path: Path) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    (tmp_path / "tekken.json").write_text(json.dumps(tekken()))
    tokenizer = Tekkenizer.from_file(tmp_path / "tekken.json")
    assert tokenizer.n_words == VOCABULARY
    for number, word in enumerate(WORDS):
        assert tokenizer.id_to_byte_piece(FIRST_WORD_ID + number) == f" {word}".encode()
    assert tokenizer.decode([FIRST_WORD_ID + WORDS.index(word) for word in ("stop", "left")]) == " stop left"
    assert all(tokenizer.is_special(token) for token in TOKEN_IDS[:4])


@pytest.mark.timeout(1.2 * ENGINE_SECONDS)
def test_vllm_says_what_transformers_says(nano: Nano, tmp_path: Path) -> None:
    """In float32, step by step: the same tokens, and log-probabilities that differ by rounding only."""
    write(nano.voxtral, SMALL, tmp_path / "nano", torch.bfloat16)
    random = np.random.default_rng(5)
    clips = []
    for seconds in (1.0, 4.3):
        at = np.arange(round(seconds * 16000)) / 16000
        sweep = np.sin(2 * np.pi * (200 + 900 * np.abs(np.sin(3 * at))) * at) + 0.2 * random.standard_normal(len(at))
        words = (SpokenWord("go", 0.1, 0.5),)
        clips.append(Clip((6000 * sweep).astype(np.int16), words, "sweep", "sentence"))
    write_shard(tmp_path / "clips", "sweep-0000", clips)
    done = subprocess.run(
        [sys.executable, "-m", "training.parity", str(tmp_path / "nano"), "--corpus", str(tmp_path / "clips"),
         "--delays", "80,960", "--clips", "2"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=ENGINE_SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count("same tokens") == 4
