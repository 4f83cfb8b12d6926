"""The store gives back what was put into it, goes on where it stopped, and holds only what may be trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.corpus import (
    LAST_FAILURE,
    LOUDEST,
    MARGIN_SECONDS,
    SHARES,
    Clip,
    Clips,
    CorpusError,
    Shard,
    SpokenWord,
    clip_of,
    development_plan,
    make,
    manner,
    plan,
    speech,
    write_shard,
)
from training.grammar import WORDS, part
from training.noises import NOISES, at_some_level, babble
from training.speaking import PLAIN, RATE, Manner, Spoken, SpokenOtherwiseError, SynthesiserMissingError
from training.voices import SPEAKERS_FOR_TESTS, voice_named

WORD_SECONDS, SILENCE_SECONDS = 0.1, 0.2


class Whistler:
    """Whistles a tenth of a second for each word, between two of silence; says no word that is forbidden."""

    name = "whistler"

    def __init__(self, forbidden: frozenset[str] = frozenset()) -> None:
        self.forbidden = forbidden

    def speak(self, words: Sequence[str], manner: Manner) -> Spoken:
        if self.forbidden & set(words):
            raise SpokenOtherwiseError(f"{manner}")
        whistle = np.resize([0.3, -0.3], round(len(words) * WORD_SECONDS * RATE))
        silence = np.zeros(round(SILENCE_SECONDS * RATE))
        starts = [SILENCE_SECONDS + number * WORD_SECONDS for number in range(len(words))]
        samples = np.concatenate([silence, whistle, silence]).astype(np.float32)
        return Spoken(samples, tuple((start, start + WORD_SECONDS) for start in starts))


spoken_words = st.builds(SpokenWord, st.sampled_from(WORDS), st.floats(0, 9), st.floats(0, 9))
made_clips = st.builds(
    lambda samples, words, kind: Clip(np.array(samples, np.int16), tuple(words), "someone", kind),
    st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=50),
    st.lists(spoken_words, max_size=4),
    st.sampled_from(["sentence", "word", "noise"]),
)


# ---- the store -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(made_clips, min_size=1, max_size=5), min_size=1, max_size=3))
def test_what_is_read_is_what_was_written(shards: list[list[Clip]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for number, clips in enumerate(shards):
            write_shard(Path(folder), f"shard-{number}", clips)
        written = [clip for clips in shards for clip in clips]
        read = Clips(Path(folder))
        assert len(read) == len(written)
        assert read.seconds == pytest.approx(sum(len(clip.samples) for clip in written) / RATE)
        for index, clip in enumerate(written):
            assert np.array_equal(read[index].samples, clip.samples)
            assert read[index].words == read.words(index) == clip.words
            assert (read.voices[index], read.kinds[index]) == (clip.voice, clip.kind)


def test_a_folder_without_clips_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"python -m training\.corpus"):
        Clips(tmp_path)


@pytest.mark.parametrize("left", [0, 3, None])
def test_a_shard_that_was_cut_is_named(tmp_path: Path, left: int | None) -> None:
    write_shard(tmp_path, "whole", [Clip(np.zeros(5, np.int16), (), "someone", "noise")])
    sound = tmp_path / "whole.i16"
    if left is None:
        sound.unlink()
    else:
        sound.write_bytes(sound.read_bytes()[: 2 * left])
    with pytest.raises(CorpusError, match=r"whole\.parquet"):
        Clips(tmp_path)


def test_a_shard_without_its_table_is_not_there(tmp_path: Path) -> None:
    write_shard(tmp_path, "whole", [Clip(np.zeros(5, np.int16), (), "someone", "noise")])
    (tmp_path / "half.i16").write_bytes(b"\0\0")
    assert len(Clips(tmp_path)) == 1


# ---- what is in it -------------------------------------------------------------------------------------------------------


def test_a_clip_is_cut_close_to_its_words_and_as_loud_as_all() -> None:
    clip = clip_of(Whistler(), ["yes", "please"], "sentence", PLAIN)
    assert [word.text for word in clip.words] == ["yes", "please"]
    assert clip.words[0].start_s == pytest.approx(MARGIN_SECONDS, abs=1e-3)
    assert clip.words[0].end_s == clip.words[1].start_s
    assert len(clip.samples) / RATE == pytest.approx(clip.words[1].end_s + MARGIN_SECONDS, abs=1e-3)
    assert np.abs(clip.samples).max() == pytest.approx(LOUDEST * 32_767, abs=1)
    whistle = np.abs(clip.samples) > 1_000
    assert np.flatnonzero(whistle)[[0, -1]] / RATE == pytest.approx(
        [clip.words[0].start_s, clip.words[1].end_s], abs=2e-3
    )


def test_training_clips_are_training_sentences_and_every_word_alone() -> None:
    clips = list(islice(speech(Whistler(), "train", np.random.default_rng(1), varied=True), 2_500))
    assert all(part([word.text for word in clip.words]) == "train" for clip in clips)
    assert len({clip.words[0].text for clip in clips if clip.kind == "word"}) > 0.7 * len(WORDS)
    assert {word.text for clip in clips for word in clip.words} == set(WORDS)
    assert 0.08 < sum(clip.kind == "word" for clip in clips) / len(clips) < 0.16


def test_what_cannot_be_said_is_left_out_and_a_voice_that_says_nothing_is_an_error() -> None:
    some = list(islice(speech(Whistler(frozenset({"the"})), "train", np.random.default_rng(2), varied=False), 200))
    assert not any(word.text == "the" for clip in some for word in clip.words)
    with pytest.raises(CorpusError, match=f"{LAST_FAILURE} sentences running"):
        next(speech(Whistler(frozenset(WORDS)), "train", np.random.default_rng(2), varied=False))


def test_manners_are_wide_and_come_again_with_the_seed() -> None:
    random, again = np.random.default_rng(3), np.random.default_rng(3)
    manners = [manner(random, 5) for _ in range(300)]
    assert manners == [manner(again, 5) for _ in range(300)]
    for low, high, values in (
        (0.8, 1.3, [how.duration for how in manners]),
        (0.8, 1.3, [how.pitch for how in manners]),
        (0.87, 1.17, [how.formants for how in manners]),
    ):
        assert np.quantile(values, 0.1) < low < 1 < high < np.quantile(values, 0.9)
    assert 0.3 < np.mean([how.careful for how in manners]) < 0.5


@pytest.mark.parametrize("name", NOISES)
def test_noises_are_sounds_of_the_length_that_was_asked_for(name: str) -> None:
    random = np.random.default_rng(4)
    for samples in (32_000, 50_001):  # the shortest clip is of two seconds
        sound = NOISES[name](samples, random)
        assert sound.shape == (samples,)
        assert np.isfinite(sound).all()
        assert sound.std() > 0
        pcm = at_some_level(sound, name, random)
        assert pcm.dtype == np.int16
        assert np.abs(pcm.astype(int)).max() <= 32_767 * 10 ** (-8 / 20) + 4


def test_babble_is_backwards() -> None:
    """A click at the start of every voice is at the end of what is heard of it: sound swells up to it and breaks off."""
    voice = np.exp(-np.arange(4_000) / 500.0) * np.random.default_rng(5).normal(size=4_000)
    sound = babble([voice], 200_000, np.random.default_rng(6))
    power = np.convolve(sound**2, np.ones(200) / 200, "same")
    rise, fall = np.diff(np.log(power + 1e-4)).max(), np.diff(np.log(power + 1e-4)).min()
    assert abs(fall) > 2 * rise


def test_the_plan_has_the_shares_that_were_asked_for_and_nobody_who_is_kept_for_tests() -> None:
    shards = plan(10, SHARES)
    assert {shard.voice for shard in shards} == set(SHARES)
    assert not set(SPEAKERS_FOR_TESTS) & set(SHARES)
    assert all(shard.part == "train" and shard.varied for shard in shards)
    assert len({shard.name for shard in shards}) == len(shards)
    clips = {voice: sum(shard.clips for shard in shards if shard.voice == voice) for voice in SHARES}
    assert clips["slt"] / clips["kal16"] == pytest.approx(2, rel=0.05)
    first_half = shards[: len(shards) // 2]
    assert sum(shard.voice == "slt" for shard in first_half) == pytest.approx(
        sum(shard.voice == "slt" for shard in shards) / 2, abs=1
    )


def test_the_development_clips_are_half_by_strangers_beside_some_without_a_word() -> None:
    shards = development_plan()
    assert all(shard.part == "development" and not shard.varied for shard in shards)
    spoken = [shard for shard in shards if shard.voice != "noise"]
    strangers = sum(shard.clips for shard in spoken if shard.voice in SPEAKERS_FOR_TESTS)
    assert strangers == sum(shard.clips for shard in spoken) / 2
    assert len(spoken) < len(shards)


def test_a_corpus_goes_on_where_it_stopped_and_comes_out_the_same(tmp_path: Path) -> None:
    try:
        voice_named("kal16").speak(["yes"], PLAIN)
    except SynthesiserMissingError as error:
        pytest.skip(str(error))
    shards = [Shard("kal16", number, 3, "train", varied=True) for number in range(3)]
    make(shards, 1, tmp_path, processes=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "kal16-0001.parquet").unlink()
    make(shards, 1, tmp_path, processes=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert all((tmp_path / name).stat().st_mtime_ns == at for name, at in times.items() if "0001" not in name)
    assert len(Clips(tmp_path)) == 9
