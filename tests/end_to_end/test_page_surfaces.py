"""The page against bare protocols that it speaks beside those of a server by default."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Page
from tests.end_to_end.page_peer import KEY, TOKEN, Peer, running
from tests.end_to_end.speech import distinct_words, spoken
from tests.end_to_end.test_page_browser import choose, complaint, shown, start, state, summary, write_wav

PCM = spoken(distinct_words(3, seed=1), seed=1)[0]


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    with start("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream") as page:
        yield page


@pytest.fixture
def peer() -> Iterator[Peer]:
    with running() as peer:
        yield peer


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    return write_wav(tmp_path / "some.wav", PCM)


def show(page: Page, peer: Peer, surface: str, key: str = "") -> None:
    page.look(1280)
    page.visit(f"http://localhost:{peer.port}/")
    page.evaluate(f"sessionStorage.clear() || '{key}' && sessionStorage.setItem('earmark-key', '{key}')")
    page.visit(f"http://localhost:{peer.port}/")
    state(page, "ready")
    choose(page, "surface", surface)
    choose(page, "pace", "fast")


def test_surfaces_that_the_page_does_not_know_are_not_offered(tab: Page, peer: Peer) -> None:
    show(tab, peer, "openai")
    offered = tab.evaluate("[...document.getElementById('surface').options].map(one => one.value)")
    assert sorted(offered) == ["openai", "transcriptions"]
    assert not tab.evaluate("document.getElementById('delay-field').hidden")
    assert not tab.evaluate("document.getElementById('language-field').hidden")
    assert tab.errors == []


def test_openai_transcription_sessions_are_given_24_khz_and_their_pieces_joined(
    tab: Page, peer: Peer, recording: Path
) -> None:
    show(tab, peer, "openai")
    choose(tab, "language", "en")
    tab.give_file("#file", recording)
    state(tab, "done")
    assert shown(tab) == "Hello, there"
    assert len(peer.audio) == pytest.approx(len(PCM) * 1.5, abs=8)
    audio = {
        "input": {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "transcription": {"model": "some/model", "language": "en"},
            "turn_detection": None,
        }
    }
    assert peer.told == [{"type": "transcription", "audio": audio}]
    assert tab.errors == []


def test_a_file_is_uploaded_as_it_is(tab: Page, peer: Peer, recording: Path) -> None:
    show(tab, peer, "transcriptions")
    choose(tab, "language", "de")
    tab.give_file("#file", recording)
    state(tab, "done")
    assert shown(tab) == "zwei Worte"
    assert bytes(peer.audio) == recording.read_bytes()
    options = {"model": "some/model", "language": "de", "response_format": "verbose_json"}
    assert peer.told == [options | {"timestamp_granularities[]": "word", "name": "some.wav"}]
    assert summary(tab)["Audio"] == "1.25 s"
    tab.evaluate(
        "document.querySelectorAll('.word')[1].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))"
    )
    assert tab.evaluate("document.getElementById('tip').textContent") == "0:00.50 – 0:00.90"
    choose(tab, "language", "en")
    tab.give_file("#file", recording)
    assert complaint(tab) == "The server refused: no such language."


def test_what_the_microphone_heard_is_uploaded_as_a_file(tab: Page, peer: Peer) -> None:
    show(tab, peer, "transcriptions")
    choose(tab, "language", "de")
    tab.click("#speak")
    tab.until("parseFloat(document.getElementById('audio').textContent) > 0.5")
    assert shown(tab) == "The transcript comes when you stop."
    tab.click("#speak")
    state(tab, "done")
    assert shown(tab) == "zwei Worte"
    assert peer.told[0]["name"] == "microphone.wav"
    assert bytes(peer.audio[:4] + peer.audio[8:16]) == b"RIFFWAVEfmt "
    assert int.from_bytes(peer.audio[40:44], "little") == len(peer.audio) - 44 >= 16_000


def test_a_required_key_goes_the_way_that_each_surface_has(tab: Page, recording: Path) -> None:
    with running(require_key=True) as peer:
        show(tab, peer, "transcriptions", KEY)
        choose(tab, "language", "de")
        tab.give_file("#file", recording)
        state(tab, "done")
        assert shown(tab) == "zwei Worte"
        choose(tab, "surface", "openai")
        tab.give_file("#file", recording)
        assert complaint(tab).startswith("This key has characters that cannot be sent here.")
        tab.evaluate("document.getElementById('setup').open = true")
        tab.click("#forget")
        tab.give_file("#file", recording)
        tab.until("document.getElementById('ask').open")
        tab.type("wrong")
        tab.press("Enter", 13)
        assert "The server does not know this key." in tab.until("document.getElementById('wrong').textContent")
        tab.type(TOKEN)
        tab.press("Enter", 13)
        tab.until("document.querySelectorAll('.summary').length === 2")
        assert shown(tab) == "Hello, there"
