"""A Whisper checkpoint made by hand that recognises tones: its weights are set, not trained, so what it says is known beforehand.

Half a second of one of six tones is a word. The encoder tells the tones apart in the spectrum, the decoder's n-th token looks at the n-th
half second of the window (which is also how its words are timed), and says the word of the tone it finds there, the beginning of the word
when it finds half of it, and the end of the text when it finds none. The token of the language and that of the task
choose among three vocabularies. A language is detected by the first tone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("ctranslate2")
pytest.importorskip("faster_whisper")

from ctranslate2.specs.whisper_spec import WhisperConfig, WhisperSpec
from faster_whisper.feature_extractor import FeatureExtractor
from faster_whisper.tokenizer import _LANGUAGE_CODES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from wire.pcm import SAMPLE_RATE

WORD_SECONDS = 0.5
WORDS = ("alpha", "bravo", "cobra", "delta", "echo", "fox.")
"""What the tones are in English; the tone of the last one ends a sentence."""
GERMAN = ("anton", "berta", "caesar", "dora", "emil", "fritz.")
TRANSLATED = tuple(word.upper() for word in WORDS)
FRAGMENTS = tuple(word[:2] for word in WORDS)
"""What is said of a word of which 0.28 s are in the window. Of less than 0.24 s nothing is said, from 0.36 s on the word."""
GERMAN_FIRST = 3
"""A window whose first tone is this one or a later one is taken for German when no language is given."""

_SIZE = 128
_BINS = (10, 20, 30, 40, 50, 60)
_TONES = slice(0, 6)
_SLOTS = slice(8, 68)
_TASK, _GERMAN, _TRANSLATE, _NEITHER, _ONE, _SAID_GERMAN, _SAID_TRANSLATE, _BALANCE = range(70, 78)
_TIMESTAMPS = 1501

Array = npt.NDArray[np.float32]


def tones(*words: str, seconds: float = WORD_SECONDS) -> bytes:
    """PCM16 in which these English words are heard one after the other, without pauses."""
    filters = FeatureExtractor.get_mel_filters(SAMPLE_RATE, 400, 80)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pieces = []
    for word in words:
        hertz = float(np.argmax(filters[_BINS[WORDS.index(word)]])) * SAMPLE_RATE / 400
        pieces.append((np.sin(2 * np.pi * hertz * time) * 16000).astype("<i2").tobytes())
    return b"".join(pieces)


def write(folder: Path, *, multilingual: bool = True) -> Path:
    """The checkpoint with its tokenizer, as CTranslate2 and faster-whisper read it, in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, tokens = _tokenizer(multilingual=multilingual)
    ids = {token: number for number, token in enumerate(tokens)}
    spec = WhisperSpec(1, 1, 1, 1)
    _encoder(spec.encoder)
    _decoder(spec.decoder, ids)
    spec.register_vocabulary(tokens)
    config: WhisperConfig = spec.config
    config.suppress_ids, config.suppress_ids_begin = [], []
    config.lang_ids = [ids[f"<|{code}|>"] for code in _LANGUAGE_CODES]
    config.alignment_heads = [(0, 0)]
    spec.validate()
    spec.save(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def _tokenizer(*, multilingual: bool) -> tuple[Tokenizer, list[str]]:
    """A byte-level tokenizer that has the words whole, and all its tokens by number, in Whisper's order."""
    text = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for word in (*WORDS, *GERMAN, *TRANSLATED, *FRAGMENTS):
        piece = "Ġ"
        for character in word:
            merges.append((piece, character))
            piece += character
            text.append(piece)
    if multilingual:
        text.append("")  # by this CTranslate2 knows such a model
    text = list(dict.fromkeys(text))
    special = ["<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in _LANGUAGE_CODES)]
    special += ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>"]
    special += ["<|notimestamps|>", *(f"<|{step * 0.02:.2f}|>" for step in range(_TIMESTAMPS))]
    tokens = [*text, *special]
    tokenizer = Tokenizer(
        models.BPE({token: number for number, token in enumerate(tokens)}, list(dict.fromkeys(merges)))
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special[:-_TIMESTAMPS]])
    return tokenizer, tokens


def _encoder(spec: Any) -> None:
    """Tones in ``_TONES``, in which half second it is in ``_SLOTS``; its layer adds nothing."""
    conv1 = np.zeros((_SIZE, 80, 3), np.float32)
    for tone, mel in enumerate(_BINS):
        conv1[tone, list(_BINS), 1] = -1.0  # against the other tones, whatever the loudness
        conv1[tone, mel, 1] = 5.0
    spec.conv1.weight, spec.conv1.bias = conv1, np.full(_SIZE, -4.0, np.float32)
    conv2 = np.zeros((_SIZE, _SIZE, 3), np.float32)
    conv2[np.arange(6), np.arange(6), 1] = 1.0
    spec.conv2.weight, spec.conv2.bias = conv2, np.zeros(_SIZE, np.float32)
    positions = np.zeros((1500, _SIZE), np.float32)
    frame = np.arange(1500)
    positions[frame, _SLOTS.start + frame // 25] = 20.0
    late = frame[
        (frame % 25 >= 21) & (frame < 1475)
    ]  # who looks for a half second that is not there, looks at the end of the last
    positions[late, _SLOTS.start + late // 25 + 1] = 6.0
    spec.position_encodings.encodings = positions
    _norm(spec.layer_norm)
    (layer,) = spec.layer
    _norm(layer.self_attention.layer_norm)
    _linear(layer.self_attention.linear[0], np.zeros((3 * _SIZE, _SIZE), np.float32))
    _linear(layer.self_attention.linear[1], np.zeros((_SIZE, _SIZE), np.float32))
    _no_feed_forward(layer.ffn)


def _decoder(spec: Any, ids: dict[str, int]) -> None:
    embeddings = np.zeros((len(ids), _SIZE), np.float32)
    for name in ("transcribe", "translate", *_LANGUAGE_CODES):
        # each has two features, so that the norm leaves all of them equally visible
        feature = {"de": _GERMAN, "translate": _TRANSLATE}.get(name, _NEITHER)
        embeddings[ids[f"<|{name}|>"], [_TASK, feature]] = 20.0
    spec.embeddings.weight = embeddings
    positions = np.zeros((448, _SIZE), np.float32)
    positions[:, _ONE] = 20.0
    positions[0, _SLOTS.start] = 20.0
    for slot in range(60):  # start of transcript, language, task and "no timestamps" come before the text
        positions[3 + slot, _SLOTS.start + slot] = 20.0
    spec.position_encodings.encodings = positions
    (layer,) = spec.layer
    # to the tokens of language and task, and what they say
    _norm(layer.self_attention.layer_norm)
    project = np.zeros((3 * _SIZE, _SIZE), np.float32)
    project[_TASK, _ONE] = 3.0
    project[_SIZE + _TASK, _TASK] = 3.0
    project[2 * _SIZE + _SAID_GERMAN, _GERMAN] = 10.0
    project[2 * _SIZE + _SAID_TRANSLATE, _TRANSLATE] = 10.0
    _linear(layer.self_attention.linear[0], project)
    _linear(layer.self_attention.linear[1], np.eye(_SIZE, dtype=np.float32))
    # to the half second of this token, and which tone is in it
    _norm(layer.attention.layer_norm)
    slots = np.arange(_SLOTS.start, _SLOTS.stop)
    query = np.zeros((_SIZE, _SIZE), np.float32)
    query[slots, slots] = 3.0
    memory = np.zeros((2 * _SIZE, _SIZE), np.float32)
    memory[slots, slots] = 3.0
    memory[_SIZE + np.arange(6), np.arange(6)] = 120.0
    _linear(layer.attention.linear[0], query)
    _linear(layer.attention.linear[1], memory)
    _linear(layer.attention.linear[2], np.eye(_SIZE, dtype=np.float32))
    _no_feed_forward(layer.ffn)
    _norm(spec.layer_norm)
    spec.projection.weight = _projection(ids)


def _projection(ids: dict[str, int]) -> Array:
    """Which token follows, from the share s of the half second that a tone fills (0 to about 50), in units of ``_ONE`` (20)."""
    rows = np.zeros((len(ids), _SIZE), np.float32)
    rows[:, _ONE] = -10.0
    for tone in range(6):
        whole, part = ids["Ġ" + WORDS[tone]], ids["Ġ" + FRAGMENTS[tone]]
        german, translated = ids["Ġ" + GERMAN[tone]], ids["Ġ" + TRANSLATED[tone]]
        rows[[whole, german, translated], tone] = 2.0
        rows[[whole, german, translated], _ONE] = 0.0
        rows[[german, translated], _ONE] = -0.3
        rows[part, tone], rows[part, _ONE] = 1.0, 3.2
        rows[[german, translated, part], _SAID_GERMAN] = 6.0
        rows[[translated, part], _SAID_TRANSLATE] = 12.0
        rows[ids["<|de|>" if tone >= GERMAN_FIRST else "<|en|>"], tone] = 0.5
    rows[[ids["<|de|>"], ids["<|en|>"]], _ONE] = -2.0
    rows[ids["<|endoftext|>"], [_ONE, _SAID_GERMAN, _SAID_TRANSLATE]] = 4.2, 6.0, 12.0
    rows[:, _BALANCE] = -rows.sum(axis=1)  # so that the mean, which the norm takes away, changes nothing
    return rows


def _norm(spec: Any) -> None:
    spec.gamma, spec.beta = np.ones(_SIZE, np.float32), np.zeros(_SIZE, np.float32)


def _linear(spec: Any, weight: Array) -> None:
    spec.weight, spec.bias = weight, np.zeros(len(weight), np.float32)


def _no_feed_forward(spec: Any) -> None:
    _norm(spec.layer_norm)
    _linear(spec.linear_0, np.zeros((8, _SIZE), np.float32))
    _linear(spec.linear_1, np.zeros((_SIZE, 8), np.float32))
