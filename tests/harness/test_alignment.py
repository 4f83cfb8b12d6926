"""Forced alignment held against speech whose word times are known, and what is kept of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from harness import alignment, audio
from harness.alignment import Aligner, with_word_times
from harness.corpus import Corpus, Utterance, load
from wire.words import TimedWord

pytest.importorskip("pocketsphinx")


@pytest.fixture(scope="module")
def spoken() -> Corpus:
    return load("spoken-en", limit=16)


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner()


def untimed(corpus: Corpus, folder: Path, count: int = 3) -> Corpus:
    utterances = tuple(dataclasses.replace(one, words=None) for one in corpus.utterances[:count])
    manifest = folder / "manifest.jsonl"
    manifest.touch()
    return dataclasses.replace(corpus, utterances=utterances, sha256="before", alignment="", source=manifest)


def test_ends_of_words_lie_where_the_synthesiser_put_them(spoken: Corpus, aligner: Aligner) -> None:
    differences = []
    for one in spoken.utterances:
        found = aligner.align(audio.load(one), one.text)
        assert found is not None
        assert one.words is not None
        assert [word.text for word in found] == [word.text for word in one.words]
        differences += [abs(word.end - known.end) for word, known in zip(found, one.words, strict=True)]
    # All 1470 words of the set: median 9 ms, p90 26 ms (benchmarks/alignment.py). A frame is 10 ms.
    print(f"{len(differences)} words: median {np.median(differences):.3f} s, p90 {np.quantile(differences, 0.9):.3f} s")
    assert np.median(differences) < 0.015
    assert np.quantile(differences, 0.9) < 0.050


def test_what_was_heard_before_changes_nothing(spoken: Corpus) -> None:
    chosen = spoken.utterances[:8]
    forth, back = Aligner(), Aligner()
    there = {one.id: forth.align(audio.load(one), one.text) for one in chosen}
    assert {one.id: back.align(audio.load(one), one.text) for one in reversed(chosen)} == there


@pytest.mark.parametrize(
    ("spelled", "written"),
    [("twenty five", "25"), ("twenty five", "XXV25"), ("timer", "tymer"), ("oven", "Oven.")],
)
def test_tokens_that_no_dictionary_has_get_the_place_of_what_they_stand_for(
    aligner: Aligner, spelled: str, written: str
) -> None:
    said = next(
        one for one in load("spoken-en").utterances if one.id == "en-002-rms"
    )  # "... timer for twenty five minutes ... oven."
    assert said.words is not None
    text = said.text.replace(spelled, written).replace("oven..", "oven.")
    found = aligner.align(audio.load(said), text)
    assert found is not None
    place = next(number for number, word in enumerate(found) if word.text == written.strip("."))
    known = {word.text: word for word in said.words}
    first, last = known[spelled.split()[0]], known[spelled.split()[-1]]
    assert found[place].start == pytest.approx(first.start, abs=0.1 if written != "XXV25" else 1.0)
    assert found[place].end == pytest.approx(last.end, abs=0.1 if written != "XXV25" else 0.3)


def test_another_text_is_not_forced_upon_the_audio(spoken: Corpus, aligner: Aligner) -> None:
    text = "nothing of the kind was ever said in here by anybody and yet it goes on and on for a very long time indeed"
    assert aligner.align(audio.load(spoken.utterances[0]), text) is None
    assert aligner.align(bytes(32_000), "- ...") is None


def test_a_dash_has_no_time_of_its_own(spoken: Corpus, aligner: Aligner) -> None:
    one = spoken.utterances[0]
    first, rest = one.text.split(" ", 1)
    with_dash = aligner.align(audio.load(one), f"{first} – {rest}")
    assert with_dash == aligner.align(audio.load(one), one.text)


def test_times_are_made_once_and_kept_beside_the_manifest(spoken: Corpus, tmp_path: Path) -> None:
    corpus = untimed(spoken, tmp_path)
    said: list[str] = []
    first = with_word_times(corpus, said.append)
    assert (first.made, first.failed) == (3, 0)
    assert all(one.words for one in first.corpus.utterances)
    assert first.corpus.sha256 != corpus.sha256
    assert first.corpus.alignment.startswith("pocketsphinx 5.")
    (kept,) = tmp_path.glob(".manifest.pocketsphinx-5*.words.jsonl")
    assert "pocketsphinx 5" in kept.read_text().splitlines()[0]
    assert any("aligning the words of 3 utterances" in line for line in said)

    def never(utterance: Utterance) -> bytes:
        raise AssertionError(f"{utterance.id} was heard again")

    assert with_word_times(corpus, load=never) == first


def test_another_text_or_other_audio_is_aligned_anew(spoken: Corpus, tmp_path: Path) -> None:
    corpus = untimed(spoken, tmp_path, 2)
    with_word_times(corpus)
    heard: list[str] = []

    def listen(utterance: Utterance) -> bytes:
        heard.append(utterance.id)
        return audio.load(utterance)

    one, two = corpus.utterances
    changed = (dataclasses.replace(one, text=one.text.upper()), dataclasses.replace(two, audio_sha256="other"))
    with_word_times(dataclasses.replace(corpus, utterances=changed), load=listen)
    assert heard == [one.id, two.id]


def test_what_cannot_be_aligned_stays_without_times_and_is_counted(spoken: Corpus, tmp_path: Path) -> None:
    corpus = untimed(spoken, tmp_path)
    wrong = dataclasses.replace(corpus.utterances[0], text=" ".join(["never said a word of this"] * 12))
    french = dataclasses.replace(corpus.utterances[1], language="fr")
    silent = dataclasses.replace(corpus.utterances[2], text="")
    said: list[str] = []
    found = with_word_times(dataclasses.replace(corpus, utterances=(wrong, french, silent)), said.append)
    assert (found.made, found.failed) == (0, 1)
    assert [one.words for one in found.corpus.utterances] == [None, None, None]
    assert said[-1].startswith("1 of 1 utterances could not be aligned")


def test_a_corpus_with_times_is_left_alone(spoken: Corpus) -> None:
    assert with_word_times(spoken).corpus is spoken


def test_alternatives_are_aligned_by_the_first(spoken: Corpus, tmp_path: Path) -> None:
    corpus = untimed(spoken, tmp_path, 1)
    one = corpus.utterances[0]
    first, rest = one.text.split(" ", 1)
    open_ended = dataclasses.replace(one, text=f"{{{first}|Something}} {rest}")
    (found,) = with_word_times(dataclasses.replace(corpus, utterances=(open_ended,))).corpus.utterances
    assert found.words is not None
    assert found.words[0].text == first


def test_a_cache_that_cannot_be_written_beside_the_corpus_goes_to_the_users(
    spoken: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    corpus = dataclasses.replace(untimed(spoken, tmp_path, 1), source=tmp_path / "gone" / "manifest.jsonl")
    assert with_word_times(corpus).made == 1
    assert len(list((tmp_path / "cache" / "earmark" / "alignments").glob("*.words.jsonl"))) == 1


def test_a_broken_cache_is_made_again(spoken: Corpus, tmp_path: Path) -> None:
    corpus = untimed(spoken, tmp_path, 1)
    name = alignment.aligner()
    assert name is not None
    path = alignment.cache_file(corpus, name)
    path.write_text('{"aligner": "x"}\nnot json\n')
    found = with_word_times(corpus)
    assert found.made == 1
    assert isinstance((found.corpus.utterances[0].words or ())[0], TimedWord)
