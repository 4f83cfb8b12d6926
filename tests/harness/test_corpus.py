"""Corpora in every format load with the right content, and what is wrong with a row is said with its file and line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from harness import audio, corpus
from harness.corpus.utterance import corpus_sha256
from wire.words import TimedWord

REPOSITORY = Path(__file__).resolve().parents[2]
DATASETS = REPOSITORY / "datasets"
REAL_SPEECH = REPOSITORY.parent / "shared" / "speech" / "real"


def write_audio(path: Path, hertz: float = 440, seconds: float = 1.0, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)
    if path.suffix == ".m4a":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("aac", rate=rate)
            stream.layout = "mono"
            frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
            frame.sample_rate = rate
            for packet in [*stream.encode(frame), *stream.encode(None)]:
                container.mux(packet)
    else:
        soundfile.write(path, np.stack([wave] * channels, axis=1), rate)
    return path


def write_lines(path: Path, *rows: str | Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def pitch(utterance: corpus.Utterance) -> float:
    """Which tone the utterance's audio is, after decoding: proof that text and file were put together rightly."""
    samples = np.frombuffer(audio.load(utterance), "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * 16_000 / len(samples))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---- our own manifest --------------------------------------------------------------------------------------------------


def test_a_manifest_row_says_everything(tmp_path: Path) -> None:
    write_audio(tmp_path / "a" / "one.flac", 300, 1.25)
    write_lines(
        tmp_path / "manifest.jsonl",
        {
            "id": "one",
            "audio": "a/one.flac",
            "seconds": 1.25,
            "text": "Well, hello!",
            "speaker": "ann",
            "language": "de",
            "tags": {"kind": "greeting"},
            "words": [{"text": "Well", "start": 0.1, "end": 0.4}, {"text": "hello", "start": 0.5, "end": 0.9}],
            "sha256": sha256(tmp_path / "a" / "one.flac"),
        },
    )
    loaded = corpus.load(tmp_path)
    assert (loaded.name, loaded.language, loaded.seconds, loaded.notes) == (tmp_path.name, "de", 1.25, "")
    assert loaded.utterances == (
        corpus.Utterance(
            id="one",
            text="Well, hello!",
            seconds=1.25,
            speaker="ann",
            language="de",
            audio=tmp_path / "a" / "one.flac",
            words=(TimedWord("Well", 0.1, 0.4), TimedWord("hello", 0.5, 0.9)),
            tags={"kind": "greeting"},
            audio_sha256=sha256(tmp_path / "a" / "one.flac"),
        ),
    )


def test_loading_believes_a_manifest_and_opens_no_audio(tmp_path: Path) -> None:
    (tmp_path / "one.flac").write_bytes(b"not audio at all")
    row = {"id": "one", "audio": "one.flac", "seconds": 3.5, "text": "hello", "sha256": "0" * 64}
    write_lines(tmp_path / "manifest.jsonl", row)
    assert corpus.load(tmp_path).seconds == 3.5


# ---- NeMo and kin ------------------------------------------------------------------------------------------------------


def test_a_nemo_manifest_loads_with_measured_lengths_and_hashes(tmp_path: Path) -> None:
    one = write_audio(tmp_path / "wavs" / "one.wav", 300, 1.5, 44_100, channels=2)
    two = write_audio(tmp_path / "elsewhere" / "two.m4a", 500, 2.0, 22_050)
    manifest = write_lines(
        tmp_path / "lists" / "train.json",
        {
            "audio_filepath": "../wavs/one.wav",
            "duration": 1.5,
            "text": "first",
            "lang": "fr",
            "speaker": 17,
            "extra": [1, 2],
        },
        "",
        {"audio_filepath": str(two), "text": "second"},
    )
    first, second = corpus.load(manifest, language="es").utterances
    assert (first.id, first.text, first.language, first.speaker, first.seconds) == ("one", "first", "fr", "17", 1.5)
    assert (second.id, second.text, second.language, second.speaker) == ("two", "second", "es", "")
    assert second.seconds == pytest.approx(2.0, abs=0.1)
    assert (first.audio_sha256, second.audio_sha256) == (sha256(one), sha256(two))
    assert pitch(first) == pytest.approx(300, abs=2)
    assert pitch(second) == pytest.approx(500, abs=2)


def test_files_of_one_name_in_several_folders_get_ids_with_the_folder(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_audio(tmp_path / folder / "same.wav")
    rows = [{"audio_filepath": f"{name}.wav", "text": name} for name in ("a/same", "b/same")]
    write_lines(tmp_path / "manifest.jsonl", *rows)
    assert [utterance.id for utterance in corpus.load(tmp_path).utterances] == ["a/same", "b/same"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ('{"audio": "one.wav", "text": "a"', "not a manifest row"),
        ('["one.wav", "a"]', "Expected `object`, got `array`"),
        ({"audio": "one.wav", "text": 5}, r"Expected `str \| null`, got `int` - at `\$\.text`"),
        ({"audio": "one.wav", "text": "a", "seconds": "long"}, r"at `\$\.seconds`"),
        ({"audio": "one.wav", "text": "a", "seconds": -1}, "a length of -1 s"),
        ({"audio": "one.wav"}, "no 'text'"),
        ({"text": "a"}, "no audio: expected the key 'audio' or 'audio_filepath'"),
        ({"audio": "one.wav", "text": "a", "offset": 3.5}, "pieces of a longer file are not supported"),
        ({"audio": "gone.wav", "text": "a", "seconds": 1, "sha256": "0"}, r"no such audio file: .*gone\.wav"),
        ({"audio": "text.wav", "text": "a"}, r"text\.wav: not audio that can be decoded"),
        ({"id": "good", "audio": "one.wav", "text": "a"}, r"id 'good' again; it was first at .*manifest\.jsonl:1"),
        ({"parts": [{"from": "nowhere", "id": "y"}]}, "parts, but no id"),
        ({"id": "x", "parts": [{"from": "nowhere", "id": "y"}]}, "made from 'nowhere', but there is no"),
    ],
)
def test_a_bad_row_names_file_and_line_and_is_skipped_only_on_request(
    tmp_path: Path, row: str | Mapping[str, Any], why: str
) -> None:
    write_audio(tmp_path / "one.wav")
    (tmp_path / "text.wav").write_text("words")
    write_lines(tmp_path / "manifest.jsonl", {"id": "good", "audio": "one.wav", "text": "fine"}, row)
    with pytest.raises(corpus.CorpusError, match=rf"manifest\.jsonl:2: .*{why}.*--skip-bad"):
        corpus.load(tmp_path)
    loaded = corpus.load(tmp_path, skip_bad=True)
    assert [utterance.id for utterance in loaded.utterances] == ["good"]
    assert loaded.notes.startswith("bad rows skipped: 1\n")
    assert "manifest.jsonl:2" in loaded.notes


def test_bytes_that_are_not_utf_8_are_a_bad_row(tmp_path: Path) -> None:
    write_audio(tmp_path / "one.wav")
    (tmp_path / "manifest.jsonl").write_bytes(b'{"audio": "one.wav", "text": "caf\xe9"}\n')
    with pytest.raises(corpus.CorpusError, match=r"manifest\.jsonl:1: not a manifest row"):
        corpus.load(tmp_path)


def test_a_table_that_is_not_utf_8_is_a_bad_row(tmp_path: Path) -> None:
    with (common_voice(tmp_path) / "test.tsv").open("ab") as table:
        table.write(b"xyz\tcommon_voice_cy_1.mp3\tcaf\xe9\t2\t0\t\t\t\tcy\t\n")
    with pytest.raises(corpus.CorpusError, match=r"test\.tsv:4: not UTF-8"):
        corpus.load(tmp_path)


def test_nothing_but_bad_rows_is_an_error_even_when_they_are_skipped(tmp_path: Path) -> None:
    write_lines(tmp_path / "manifest.jsonl", {"audio": "gone.wav", "text": "a"})
    with pytest.raises(corpus.CorpusError, match=r"no utterance left.*bad rows skipped: 1"):
        corpus.load(tmp_path, skip_bad=True)


# ---- LibriSpeech -------------------------------------------------------------------------------------------------------


def librispeech(root: Path) -> Path:
    hertz = iter(range(300, 2_000, 100))
    for split, speaker, chapter, texts in (
        ("test-clean", "61", "70968", ["HE BEGAN A CONFUSED COMPLAINT", "GIVE NOT SO EARNEST A MIND"]),
        ("test-clean", "121", "121726", ["ALSO A POPULAR CONTRIVANCE"]),
        ("test-other", "367", "130732", ["LOBSTERS AND LOBSTERS"]),
    ):
        folder = root / "LibriSpeech" / split / speaker / chapter
        names = [f"{speaker}-{chapter}-{number:04d}" for number in range(len(texts))]
        for name in names:
            write_audio(folder / f"{name}.flac", next(hertz), 1.0)
        write_lines(folder / f"{speaker}-{chapter}.trans.txt", *map(" ".join, zip(names, texts, strict=True)))
    return root


def test_a_librispeech_split_loads(tmp_path: Path) -> None:
    loaded = corpus.load(librispeech(tmp_path), split="test-clean")
    assert [(u.id, u.text, u.speaker, u.tags["chapter"], u.seconds) for u in loaded.utterances] == [
        ("121-121726-0000", "ALSO A POPULAR CONTRIVANCE", "121", "121726", 1.0),
        ("61-70968-0000", "HE BEGAN A CONFUSED COMPLAINT", "61", "70968", 1.0),
        ("61-70968-0001", "GIVE NOT SO EARNEST A MIND", "61", "70968", 1.0),
    ]
    assert [round(pitch(utterance)) for utterance in loaded.utterances] == [500, 300, 400]


def test_a_librispeech_split_can_be_the_path_itself(tmp_path: Path) -> None:
    loaded = corpus.load(librispeech(tmp_path) / "LibriSpeech" / "test-other")
    assert [(u.id, u.tags["split"]) for u in loaded.utterances] == [("367-130732-0000", "test-other")]


def test_several_librispeech_splits_are_never_mixed(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match="several splits; choose one of: test-clean, test-other"):
        corpus.load(librispeech(tmp_path))
    with pytest.raises(corpus.CorpusError, match="no split 'dev'; there are: test-clean, test-other"):
        corpus.load(tmp_path, split="dev")


def test_a_librispeech_line_without_text_or_audio_is_a_bad_row(tmp_path: Path) -> None:
    folder = librispeech(tmp_path) / "LibriSpeech" / "test-clean" / "61" / "70968"
    with (folder / "61-70968.trans.txt").open("a") as transcript:
        transcript.write("61-70968-0002\n61-70968-0003 NOBODY RECORDED THIS\n")
    loaded = corpus.load(tmp_path, split="test-clean", skip_bad=True)
    assert len(loaded.utterances) == 3
    assert "61-70968.trans.txt:3: expected 'SPEAKER-CHAPTER-NUMBER TEXT'" in loaded.notes
    assert "61-70968.trans.txt:4: no such audio file" in loaded.notes


# ---- Common Voice ------------------------------------------------------------------------------------------------------

COMMON_VOICE_HEADER = "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment"


def common_voice(root: Path, header: str = COMMON_VOICE_HEADER) -> Path:
    write_audio(root / "clips" / "common_voice_cy_1.mp3", 300, 1.5, 48_000)
    write_audio(root / "clips" / "common_voice_cy_2.mp3", 600, 2.0, 48_000)
    write_lines(
        root / "test.tsv",
        header,
        'abc\tcommon_voice_cy_1.mp3\t"Bore da," meddai.\t2\t0\ttwenties\tfemale\t\tcy\t',
        "def\tcommon_voice_cy_2.mp3\tNos da.\t2\t0\t\t\t\tcy\t",
    )
    write_lines(root / "dev.tsv", header, "ghi\tcommon_voice_cy_2.mp3\tNos da.\t2\t0\t\t\t\tcy\t")
    write_lines(root / "reported.tsv", "sentence\tsentence_id\tlocale\treason")
    return root


def test_common_voice_loads_its_test_split_unless_told_otherwise(tmp_path: Path) -> None:
    first, second = corpus.load(common_voice(tmp_path)).utterances
    assert (first.id, first.text, first.speaker, first.language) == (
        "common_voice_cy_1",
        '"Bore da," meddai.',
        "abc",
        "cy",
    )
    assert (first.tags, second.tags) == ({"age": "twenties", "gender": "female", "locale": "cy"}, {"locale": "cy"})
    assert [round(pitch(utterance)) for utterance in (first, second)] == [300, 600]
    assert [first.seconds, second.seconds] == pytest.approx([1.5, 2.0], abs=0.1)
    assert [utterance.speaker for utterance in corpus.load(tmp_path, split="dev").utterances] == ["ghi"]
    assert [utterance.speaker for utterance in corpus.load(tmp_path / "dev.tsv").utterances] == ["ghi"]
    with pytest.raises(corpus.CorpusError, match=r"no split 'train' \(train\.tsv\); there are: dev, reported, test"):
        corpus.load(tmp_path, split="train")


def test_a_common_voice_row_with_a_missing_cell_is_a_bad_row(tmp_path: Path) -> None:
    with (common_voice(tmp_path) / "test.tsv").open("a") as table:
        table.write("xyz\tcommon_voice_cy_1.mp3\tHalf a row\n")
    with pytest.raises(corpus.CorpusError, match=r"test\.tsv:4: 3 columns where the header has 10"):
        corpus.load(tmp_path)


# ---- FLEURS ------------------------------------------------------------------------------------------------------------


def fleurs(root: Path, folder: str = "audio/test") -> Path:
    write_audio(root / folder / "111.wav", 300, 1.0)
    write_audio(root / folder / "222.wav", 700, 2.0)
    write_lines(
        root / "test.tsv",
        "1675\t111.wav\tHsieh said, however, it was 5 o'clock.\thsieh said however it was 5 o'clock\th s i |\t16000\tMALE",
        "1675\t222.wav\tHsieh said, however, it was 5 o'clock.\thsieh said however it was 5 o'clock\th s i |\t32000\tFEMALE",
    )
    return root


@pytest.mark.parametrize("folder", ["audio/test", "test"])
@pytest.mark.parametrize(
    ("name", "language"), [("en_us", "en"), ("cmn_hans_cn", "zh"), ("fil_ph", "fil"), ("mine", "sv")]
)
def test_fleurs_loads_with_the_language_of_its_folder(tmp_path: Path, folder: str, name: str, language: str) -> None:
    first, second = corpus.load(fleurs(tmp_path / name, folder), language="sv").utterances
    assert (first.id, second.id, first.tags["sentence"], second.tags["gender"]) == ("111", "222", "1675", "female")
    assert (first.text, first.language) == ("Hsieh said, however, it was 5 o'clock.", language)
    assert first.tags["transcription"] == "hsieh said however it was 5 o'clock"
    assert [round(pitch(utterance)) for utterance in (first, second)] == [300, 700]
    assert (first.seconds, second.seconds) == (1.0, 2.0)


def test_a_fleurs_row_with_too_few_columns_is_a_bad_row(tmp_path: Path) -> None:
    with (fleurs(tmp_path) / "test.tsv").open("a") as table:
        table.write("1676\t333.wav\tno more\n")
    with pytest.raises(corpus.CorpusError, match=r"test\.tsv:3: expected 7 columns"):
        corpus.load(tmp_path)


# ---- a folder of audio and text ----------------------------------------------------------------------------------------


def test_a_folder_of_audio_and_text_loads(tmp_path: Path) -> None:
    for name, hertz, rate, text in (
        ("bob/a.wav", 300, 8_000, "hello there"),
        ("bob/b.ogg", 400, 44_100, "two\nlines "),
        ("eve/c.mp3", 500, 22_050, "\ufeffwith a mark"),
        ("d.flac", 600, 48_000, ""),
        ("e.m4a", 700, 16_000, "last"),
    ):
        write_audio(tmp_path / name, hertz, 1.5, rate)
        (tmp_path / name).with_suffix(".txt").write_text(text, "utf-8")
    loaded = corpus.load(tmp_path, language="nl")
    assert [(u.id, u.text, u.speaker, u.language, round(pitch(u), -1)) for u in loaded.utterances] == [
        ("a", "hello there", "bob", "nl", 300),
        ("b", "two lines", "bob", "nl", 400),
        ("d", "", "", "nl", 600),
        ("e", "last", "", "nl", 700),
        ("c", "with a mark", "eve", "nl", 500),
    ]


def test_audio_without_its_text_is_a_bad_row(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    write_audio(tmp_path / "b.wav")
    (tmp_path / "b.txt").write_text("only b")
    with pytest.raises(corpus.CorpusError, match=r"a\.wav: no transcript a\.txt beside it"):
        corpus.load(tmp_path)


# ---- which format, which name ------------------------------------------------------------------------------------------


def test_a_folder_with_no_corpus_says_what_was_looked_for(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.wav")
    with pytest.raises(corpus.CorpusError, match=r"no corpus in here. Looked for manifest\.jsonl.*\.trans\.txt"):
        corpus.load(tmp_path)


def test_several_manifests_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("dev.jsonl", "test.jsonl"):
        write_lines(tmp_path / name, {"audio": "a.wav", "text": "a"})
    with pytest.raises(corpus.CorpusError, match=r"several manifests; give the path of one: dev\.jsonl, test\.jsonl"):
        corpus.load(tmp_path)


def test_a_file_that_is_no_manifest_shows_its_first_line(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match=r"its first line is 'hello'.*format=jsonl"):
        corpus.load(write_lines(tmp_path / "x.csv", "hello"))


def test_a_forced_format_is_obeyed(tmp_path: Path) -> None:
    folder = fleurs(tmp_path)
    (folder / "audio" / "test" / "111.txt").write_text("from the text file")
    (folder / "audio" / "test" / "222.txt").write_text("and this")
    assert [u.text for u in corpus.load(folder, format="folder").utterances] == ["from the text file", "and this"]
    with pytest.raises(corpus.CorpusError, match="not a Common Voice table"):
        corpus.load(folder, format="common-voice")
    with pytest.raises(corpus.CorpusError, match="format 'kaldi': there are jsonl, librispeech"):
        corpus.load(folder, format="kaldi")


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(corpus.CorpusError, match=r"'spoken-fr'; datasets here: .*spoken-en.*datasets fetch"):
        corpus.load("spoken-fr", datasets=DATASETS)


def test_a_fetched_dataset_loads_by_name(tmp_path: Path) -> None:
    librispeech(tmp_path / ".cache" / "librispeech-tiny")
    card = {
        "name": "librispeech-tiny",
        "format": "librispeech",
        "path": "LibriSpeech",
        "split": "test-other",
        "licence": "CC BY 4.0",
    }
    write_lines(tmp_path / ".cache" / "librispeech-tiny" / "dataset.json", card)
    loaded = corpus.load("librispeech-tiny", datasets=tmp_path)
    assert (loaded.name, loaded.licence, len(loaded.utterances)) == ("librispeech-tiny", "CC BY 4.0", 1)
    assert [(dataset.name, dataset.fetched) for dataset in corpus.available(tmp_path)] == [("librispeech-tiny", True)]


def test_a_broken_card_names_its_file(tmp_path: Path) -> None:
    write_lines(tmp_path / "mine" / "dataset.json", {"name": "mine", "licens": "?"})
    with pytest.raises(corpus.CorpusError, match=r"mine/dataset\.json: .*licens"):
        corpus.available(tmp_path)


def test_a_card_is_found_by_the_folder_it_lies_in(tmp_path: Path) -> None:
    write_lines(tmp_path / "mine" / "dataset.json", {"name": "yours"})
    with pytest.raises(corpus.CorpusError, match="its name 'yours' is not that of its folder"):
        corpus.load("mine", datasets=tmp_path)


def test_a_broken_card_does_not_stand_in_the_way_of_another_dataset(tmp_path: Path) -> None:
    shutil.copytree(DATASETS / "non-speech", tmp_path / "non-speech")
    write_lines(tmp_path / "broken" / "dataset.json", "{")
    assert corpus.load("non-speech", datasets=tmp_path).name == "non-speech"


def test_a_wrong_datasets_folder_is_said_with_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARMARK_DATASETS", "/no/such/place")
    with pytest.raises(corpus.CorpusError, match="EARMARK_DATASETS=/no/such/place: no such folder"):
        corpus.available()


def test_the_datasets_are_found_from_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EARMARK_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    assert corpus.load("spoken-en").name == "spoken-en"


# ---- choosing ----------------------------------------------------------------------------------------------------------


def many(root: Path) -> Path:
    write_audio(root / "clip.wav")
    rows = [
        {
            "id": f"{speaker}{number}",
            "speaker": speaker,
            "audio": "clip.wav",
            "text": "x",
            "seconds": number,
            "language": language,
        }
        for speaker, language, count in (("ann", "en", 4), ("bob", "de", 2), ("eve", "en", 3))
        for number in range(1, count + 1)
    ]
    return write_lines(root / "manifest.jsonl", *rows)


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ({"limit": 2}, ["ann1", "bob1"]),
        ({"limit": 4}, ["ann1", "ann2", "bob1", "eve1"]),
        ({"limit": 8}, ["ann1", "ann2", "ann3", "bob1", "bob2", "eve1", "eve2", "eve3"]),
        ({"languages": ["de"]}, ["bob1", "bob2"]),
        ({"speakers": ["eve", "bob"], "min_seconds": 2}, ["bob2", "eve2", "eve3"]),
        ({"max_seconds": 1}, ["ann1", "bob1", "eve1"]),
        ({"max_seconds": 3, "min_seconds": 3, "limit": 1}, ["ann3"]),
    ],
)
def test_utterances_can_be_chosen(tmp_path: Path, wanted: dict[str, Any], ids: list[str]) -> None:
    assert [utterance.id for utterance in corpus.load(many(tmp_path), **wanted).utterances] == ids


def test_the_language_of_a_mixed_corpus_is_mul(tmp_path: Path) -> None:
    assert corpus.load(many(tmp_path)).language == "mul"
    assert corpus.load(tmp_path, languages=["en"]).language == "en"


def test_nothing_chosen_and_a_senseless_limit_are_errors(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match="no utterance left"):
        corpus.load(many(tmp_path), languages=["fr"])
    with pytest.raises(corpus.CorpusError, match="limit=0"):
        corpus.load(tmp_path, limit=0)


# ---- the hash ----------------------------------------------------------------------------------------------------------

utterances = st.builds(
    corpus.Utterance,
    id=st.text(max_size=8),
    text=st.text(max_size=20),
    seconds=st.just(1.0),
    words=st.none()
    | st.lists(st.builds(TimedWord, st.text(max_size=5), st.floats(0, 9), st.floats(0, 9)), max_size=3).map(tuple),
    audio_sha256=st.text("0123456789abcdef", max_size=4),
)


@given(st.lists(utterances, max_size=6, unique_by=lambda utterance: utterance.id), st.randoms())
def test_the_hash_does_not_depend_on_order_or_place(some: list[corpus.Utterance], dice: Any) -> None:
    before = corpus_sha256(some)
    moved = [
        corpus.Utterance(
            u.id, u.text, u.seconds, audio=Path("/elsewhere") / "x.wav", words=u.words, audio_sha256=u.audio_sha256
        )
        for u in dice.sample(some, len(some))
    ]
    assert corpus_sha256(moved) == before


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"},
        {"text": "Hello"},
        {"audio_sha256": "00"},
        {"words": None},
        {"words": (TimedWord("hello", 0.1, 0.201),)},
    ],
)
def test_the_hash_depends_on_everything_that_is_scored(change: dict[str, Any]) -> None:
    base: dict[str, Any] = {"id": "a", "text": "hello", "audio_sha256": "ff", "words": (TimedWord("hello", 0.1, 0.2),)}
    one, other = corpus.Utterance(seconds=1, **base), corpus.Utterance(seconds=1, **base | change)
    assert corpus_sha256([one]) != corpus_sha256([other])


def test_the_hash_is_over_the_bytes_written_down_here() -> None:
    one = corpus.Utterance("b", "é", 1.0, words=(TimedWord("é", 0.1, 0.25),), audio_sha256="ff")
    two = corpus.Utterance("a", "", 1.0)
    expected = b'earmark-corpus/1\n["a","",null,""]\n["b","\\u00e9",[["\\u00e9",100000,250000]],"ff"]\n'
    assert corpus_sha256([one, two]) == hashlib.sha256(expected).hexdigest()


def test_a_copy_of_a_dataset_has_the_same_hash(tmp_path: Path) -> None:
    shutil.copytree(DATASETS / "non-speech", tmp_path / "non-speech")
    assert corpus.load(tmp_path / "non-speech").sha256 == corpus.load("non-speech", datasets=DATASETS).sha256


# ---- real speech, where it is there ------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL_SPEECH.is_dir(), reason="no real recordings beside the repository")
def test_recordings_of_people_load_and_decode() -> None:
    loaded = corpus.load(REAL_SPEECH)
    stated = [json.loads(line) for line in (REAL_SPEECH / "manifest.jsonl").read_text("utf-8").splitlines()]
    assert [(u.id, u.text, u.speaker, u.language) for u in loaded.utterances] == [
        (row["id"], row["text"], row["speaker"], row["lang"]) for row in stated
    ]
    for utterance in loaded.utterances[::10]:
        assert len(audio.load(utterance)) / 32_000 == pytest.approx(utterance.seconds, abs=0.02)
