"""One clip through every surface: the same text, word for word, where its audio is cut in the same way."""

from __future__ import annotations

import pytest

from harness.audio import load as load_audio
from harness.corpus import load
from tests.end_to_end.conftest import Serve
from tests.end_to_end.speech import distinct_words, spoken
from tests.end_to_end.ways import ALL, WAYS, Way


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_scripted_speech_arrives_word_for_word(serve: Serve, way: Way) -> None:
    server = serve(*ALL, "--segment-seconds", "10")
    texts = distinct_words(90, seed=4)
    pcm, _ = spoken(texts, seed=4)
    assert len(pcm) > 25 * 32_000, "long enough to be rolled twice"
    assert (await way(server, pcm)).split() == texts


async def test_real_speech_gives_one_text_on_all_surfaces(serve: Serve) -> None:
    server = serve(*ALL, "--sphinx-workers", "2", engine="sphinx")
    utterance = min(load("spoken-en").utterances, key=lambda utterance: utterance.seconds)
    pcm = load_audio(utterance)
    texts = {way.__name__: await way(server, pcm) for way in WAYS}
    assert texts["by_yap"].split(), "something was recognised"
    assert set(texts.values()) == {texts["by_yap"]}, texts
