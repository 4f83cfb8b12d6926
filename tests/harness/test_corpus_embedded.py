"""The datasets that come with the project are whole, and are what their pages say."""

from __future__ import annotations

import hashlib
import itertools
import json
import string
from pathlib import Path

import numpy as np
import pytest

from harness import audio, corpus

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
RATE = 16_000
LONG_FORM = ["long-form-3m", "long-form-15m"]


def load(name: str) -> corpus.Corpus:
    return corpus.load(name, datasets=DATASETS)


def heard(utterance: corpus.Utterance) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    return np.frombuffer(audio.load(utterance), "<i2")


def loudness(samples: np.ndarray[tuple[int], np.dtype[np.int16]], start: float, end: float) -> float:
    """RMS in steps of 16-bit PCM between two times in seconds."""
    piece = samples[round(start * RATE) : round(end * RATE)].astype(float)
    return float(np.sqrt(np.mean(piece**2)))


@pytest.mark.parametrize("name", ["spoken-en", "non-speech", *LONG_FORM])
def test_nothing_is_wrong_with_a_dataset(name: str) -> None:
    assert corpus.check(name, datasets=DATASETS).problems == ()


def test_the_committed_audio_stays_small() -> None:
    flac = [path for name in ("spoken-en", "non-speech") for path in (DATASETS / name).rglob("*.flac")]
    assert len(flac) == 100
    assert sum(path.stat().st_size for path in flac) < 12_000_000


def test_all_that_load_by_name_are_listed() -> None:
    listed = [dataset.name for dataset in corpus.available(DATASETS) if not dataset.fetched]
    assert listed == [
        "long-form-15m",
        "long-form-3m",
        "non-speech",
        "spoken-en",
        "spoken-numbers",
        "spoken-numbers-30m",
    ]
    for dataset in corpus.available(DATASETS):
        assert dataset.card.description
        assert dataset.card.licence
        assert (dataset.folder / "README.md").is_file() or dataset.fetched


# ---- spoken-en -----------------------------------------------------------------------------------------------------------


def test_spoken_en_is_balanced_over_its_voices() -> None:
    utterances = load("spoken-en").utterances
    assert len(utterances) == 88
    assert {
        voice: sum(u.speaker == voice for u in utterances) for voice in ("slt", "rms", "awb", "kal16")
    } == dict.fromkeys(("slt", "rms", "awb", "kal16"), 22)
    assert len({utterance.text for utterance in utterances}) == 88
    assert all(2 <= utterance.seconds <= 15 for utterance in utterances)
    assert 7.5 < load("spoken-en").seconds / 60 < 8.5


def test_spoken_en_texts_have_no_digits_and_a_timed_word_for_every_token() -> None:
    for utterance in load("spoken-en").utterances:
        assert not any(character.isdigit() for character in utterance.text)
        tokens = [token.strip(string.punctuation) for token in utterance.text.split()]
        assert [word.text for word in utterance.words or ()] == tokens


def test_spoken_en_words_lie_where_the_sound_is() -> None:
    """An independent witness: the file is quiet before the first word and after the last, and every word of some length is loud."""
    for utterance in load("spoken-en").utterances:
        samples, words = heard(utterance), utterance.words or ()
        speech = loudness(samples, words[0].start, words[-1].end)
        assert words[0].start >= 0.25
        assert utterance.seconds - words[-1].end >= 0.39
        assert loudness(samples, 0, words[0].start - 0.05) < speech / 10, utterance.id
        assert loudness(samples, words[-1].end + 0.15, utterance.seconds) < speech / 20, utterance.id
        for word in words:
            if word.end - word.start > 0.2:
                assert loudness(samples, word.start, word.end) > speech / 5, (utterance.id, word)


# ---- non-speech ----------------------------------------------------------------------------------------------------------


def test_non_speech_has_no_text_and_the_sounds_it_names() -> None:
    clips = {utterance.tags["sound"]: utterance for utterance in load("non-speech").utterances}
    assert len(clips) == 12
    assert all(clip.text == "" and clip.words == () and 4 <= clip.seconds <= 8 for clip in clips.values())
    assert not heard(clips["digital-silence"]).any()
    for name, hertz in (("hum-50-hz", 50), ("hum-60-hz", 60)):
        samples = heard(clips[name]).astype(float)
        spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
        assert np.argmax(spectrum) * RATE / len(samples) == pytest.approx(hertz, abs=0.5)
    for name, slope in (("white-noise", 0.0), ("pink-noise", -1.0), ("brown-noise", -2.0)):
        samples = heard(clips[name]).astype(float)
        power = np.abs(np.fft.rfft(samples)) ** 2
        octaves = [(125 * 2**n, 250 * 2**n) for n in range(4)]
        density = [
            power[round(low * len(samples) / RATE) : round(high * len(samples) / RATE)].mean() for low, high in octaves
        ]
        assert np.polyfit(range(4), np.log2(density), 1)[0] == pytest.approx(slope, abs=0.3), name


# ---- long-form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LONG_FORM)
def test_long_form_is_the_pieces_after_their_silences(name: str) -> None:
    pieces = {utterance.id: utterance for utterance in load("spoken-en").utterances}
    recipes = [json.loads(line) for line in (DATASETS / name / "manifest.jsonl").read_text("utf-8").splitlines()]
    for utterance, recipe in zip(load(name).utterances, recipes, strict=True):
        samples = heard(utterance)
        assert len(samples) == round(utterance.seconds * RATE)
        words, texts, at = iter(utterance.words or ()), [], 0
        for part in recipe["parts"]:
            piece = pieces[part["id"]]
            gap = round(part["gap"] * RATE)
            assert not samples[at : at + gap].any()
            at += gap
            original = heard(piece)
            assert np.array_equal(samples[at : at + len(original)], original)
            for before, after in zip(piece.words or (), words, strict=False):
                assert after.text == before.text
                assert after.start == pytest.approx(at / RATE + before.start, abs=1e-5)
                assert after.end == pytest.approx(at / RATE + before.end, abs=1e-5)
            at += len(original)
            texts.append(piece.text)
        assert next(words, None) is None
        assert at == len(samples)
        assert utterance.text == " ".join(texts)


@pytest.mark.parametrize(("name", "recordings", "minutes"), [("long-form-3m", 2, 3), ("long-form-15m", 1, 15)])
def test_long_form_is_as_long_as_its_name_says(name: str, recordings: int, minutes: int) -> None:
    utterances = load(name).utterances
    assert len(utterances) == recordings
    for utterance in utterances:
        assert minutes * 60 - 15 < utterance.seconds <= minutes * 60
        assert set(utterance.speaker.split("+")) == {"slt", "rms", "awb", "kal16"}


def test_the_short_long_forms_share_no_sentence() -> None:
    one, two = load("long-form-3m").utterances
    assert not {path for path, _ in one.parts} & {path for path, _ in two.parts}


def test_the_hash_of_a_long_form_depends_on_pieces_and_silences(tmp_path: Path) -> None:
    digests: set[str] = set()
    for parts in ([("a", 0.5), ("b", 0.5)], [("b", 0.5), ("a", 0.5)], [("a", 0.5), ("b", 0.6)], [("a", 0.5)]):
        folder = tmp_path / f"long-{len(digests)}"
        folder.mkdir()
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / "sound.flac").touch()
        rows = [
            {
                "id": name,
                "audio": "sound.flac",
                "text": "x",
                "seconds": 1,
                "sha256": hashlib.sha256(name.encode()).hexdigest(),
            }
            for name in "ab"
        ]
        (tmp_path / "source" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
        row = {"id": "long", "parts": [{"from": "source", "id": name, "gap": gap} for name, gap in parts]}
        (folder / "manifest.jsonl").write_text(json.dumps(row), "utf-8")
        digests.add(corpus.load(folder).utterances[0].audio_sha256)
    assert len(digests) == 4


def test_long_form_words_never_run_backwards() -> None:
    for name in LONG_FORM:
        for utterance in load(name).utterances:
            assert all(one.end <= two.start + 1e-6 for one, two in itertools.pairwise(utterance.words or ()))
