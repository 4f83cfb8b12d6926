from __future__ import annotations

from pathlib import Path

import pytest

from harness import example
from harness.corpus import CorpusError, load
from harness.corpus.mix import load_mix


def test_a_mix_has_each_part_as_often_as_it_says() -> None:
    found = load_mix("spoken-en*2+non-speech", limit=3)
    ids = [utterance.id for utterance in found.utterances]
    assert len(ids) == 9
    assert sorted({ids.count(one) for one in ids}) == [1, 2]
    assert all(one.startswith("spoken-en/") == (ids.count(one) == 2) for one in ids)
    assert found.name == "spoken-enx2+non-speech"
    assert found.seconds == pytest.approx(2 * load("spoken-en", limit=3).seconds + load("non-speech", limit=3).seconds)


def test_another_share_is_another_corpus() -> None:
    hashes = {load_mix(names, limit=2).sha256 for names in ("spoken-en*2+non-speech", "spoken-en*3+non-speech")}
    assert len(hashes) == 2


def test_one_name_is_that_dataset() -> None:
    assert load_mix("spoken-en", limit=2) == load("spoken-en", limit=2)


def test_a_path_with_the_signs_of_a_mix_is_a_path(tmp_path: Path) -> None:
    folder = example.dataset(tmp_path / "a+b*2", words_each=2)
    assert load_mix(str(folder)).utterances[0].id == "said-0"


@pytest.mark.parametrize("names", ["spoken-en+", "spoken-en*0+non-speech", "spoken-en*x+non-speech", "*2", "a*2*2"])
def test_mixes_that_make_no_sense_are_refused(names: str) -> None:
    with pytest.raises(CorpusError, match=r"NAME\*SHARE"):
        load_mix(names)
