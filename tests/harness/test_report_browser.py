"""The pages in a real Chromium, as wide as a desktop and as a telephone: nothing is cut off, nothing lies on something else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import report
from harness.commands import compare as compare_command
from harness.corpus import load
from tests import chromium
from tests.chromium import Page
from tests.harness.made_runs import make
from tests.layout import FAULTS

DESKTOP, PHONE = 1280, 390


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    program = chromium.program()
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium, or name one in EARMARK_CHROMIUM")
    with chromium.browser(program) as page:
        yield page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three delays over recordings with sound, two sides against each other, delays by concurrencies, one invalid run, a search."""
    root = tmp_path_factory.mktemp("pages")
    spoken = load("spoken-en", limit=16).utterances
    one = [
        make(root / "one", spoken=spoken, delay_ms=d, substituted=s) for d, s in ((160, 0.3), (480, 0.15), (2400, 0.05))
    ]
    for delay, substituted in ((160, 0.4), (480, 0.1), (2400, 0.05)):
        make(root / "other", spoken=spoken, delay_ms=delay, substituted=substituted, late_final=0.5, noise_seed=2)
    crowd = [make(root / "crowd", utterances=70, concurrency=c, delay_ms=d) for d in (480, 2400) for c in (10, 20)]
    alone = make(root / "alone", utterances=9, failing=2, pacing_late=0.02, complete=False)
    made = {
        "runs": report.report(one, root / "runs.html"),
        "crowd": report.report(crowd, root / "crowd.html"),
        "alone": report.report([alone], root / "alone.html"),
        "sides": root / "sides.html",
    }
    compare_command.compare(root / "one", root / "other", html=made["sides"])
    search = root / "search"
    (search / "runs").mkdir(parents=True)
    rungs = [(1, "idle", "holds", 0.6), (2, "search", "holds", 0.8), (4, "search", "holds", 1.0), (8, "search", "fails", 3.1),
             (6, "search", "fails", 1.9), (5, "search", "holds", 1.1), (5, "confirm", "holds", 1.12)]  # fmt: skip
    (search / "capacity.json").write_text(json.dumps(capacity(rungs)))
    made["capacity"] = report.report([search], root / "capacity.html")
    return made


def capacity(rungs: list[tuple[int, str, str, float]]) -> dict[str, object]:
    """What a search over these rungs writes down."""
    ladder = [
        {"streams": n, "purpose": purpose, "verdict": verdict, "reasons": [] if verdict == "holds" else ["p95 word latency over 1.2 s"],
         "seconds": 16.0, "run": None, "ended_early": "", "word_p95": p95, "word_p95_low": 0.9 * p95, "word_p95_high": 1.1 * p95,
         "final_p95": p95, "errors": 0.0, "drift": 0.001, "wer": 0.2, "pacing_p99": 0.002}
        for n, purpose, verdict, p95 in rungs
    ]  # fmt: skip
    return {
        "schema": 1, "complete": True, "sentence": "5 streams at delay 480 ms on 2 cores with p95 word latency <= 1.2 s.", "streams": 5,
        "above": 6, "limited_by": "slo", "repeats": 2, "notes": [], "place": "2 cores", "limits": {"word_p95": 1.2, "errors": 0.01},
        "delay_ms": 480, "ladder": ladder,
    }  # fmt: skip


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", ["runs", "sides", "crowd", "alone", "capacity"])
def test_nothing_is_cut_off_and_nothing_overlaps(tab: Page, pages: dict[str, Path], name: str, width: int) -> None:
    tab.look(width)
    tab.open(pages[name])
    assert tab.evaluate("document.documentElement.clientWidth") == width
    assert tab.evaluate(FAULTS) == []


@pytest.mark.parametrize("name", ["runs", "sides"])
def test_the_page_asks_for_nothing_and_complains_of_nothing(tab: Page, pages: dict[str, Path], name: str) -> None:
    tab.look(DESKTOP, dark=True)
    tab.open(pages[name])
    tab.evaluate("document.querySelector('audio') && document.querySelector('audio').load()")
    assert [url for url in tab.requests if not url.startswith(("data:", pages[name].as_uri()))] == []
    assert tab.errors == []


def test_the_audio_of_an_utterance_can_be_heard(tab: Page, pages: dict[str, Path]) -> None:
    tab.look(DESKTOP)
    tab.open(pages["runs"])
    heard = tab.evaluate(
        """(async () => { const audio = document.querySelector('audio');
        await new Promise((done, failed) => {
          audio.onloadedmetadata = done; audio.onerror = failed; audio.preload = 'auto'; audio.load(); });
        return [audio.duration, document.querySelector('.utterance .about b').textContent]; })()"""
    )
    seconds = {one.id: one.seconds for one in load("spoken-en", limit=16).utterances}
    assert heard[0] == pytest.approx(seconds[heard[1]], abs=0.15)


def test_light_and_dark_are_different_and_paper_is_white(tab: Page, pages: dict[str, Path]) -> None:
    def ground() -> str:
        return str(tab.evaluate("getComputedStyle(document.body).backgroundColor"))

    tab.look(DESKTOP)
    tab.open(pages["runs"])
    light = ground()
    tab.look(DESKTOP, dark=True)
    dark = ground()
    tab.look(DESKTOP, dark=True, medium="print")
    assert (light, dark, ground()) == ("rgb(245, 246, 248)", "rgb(15, 20, 25)", "rgb(255, 255, 255)")


def test_it_prints(tab: Page, pages: dict[str, Path]) -> None:
    tab.look(DESKTOP)
    tab.open(pages["runs"])
    printed = tab.pdf()
    assert printed.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 30


def test_a_fault_is_found(tab: Page, tmp_path: Path) -> None:
    """What looks for faults does find each kind of them."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta charset=utf-8><body style='margin:0'>"
        "<div style='position:absolute;top:0'>upper text</div><div style='position:absolute;top:4px'>lower text</div>"
        "<p style='margin-top:60px;width:40px;overflow:hidden;white-space:nowrap'>much too long for its box</p>"
        "<div style='width:2000px'>wide</div>"
        "<svg viewBox='0 0 100 50' width=100 aria-label=plot><text x=90 y=20>outside</text><text x=5 y=20>one label</text>"
        "<text x=8 y=22>another</text><text x=5 y=45 font-size=3>small</text></svg>"
    )
    tab.look(PHONE)
    tab.open(page)
    found = "\n".join(tab.evaluate(FAULTS))
    for fault in (
        "the page is",
        "beyond the edge",
        "cut off",
        "lies on it:",
        "outside of",
        'lies on it in "plot"',
        "letters of",
    ):
        assert fault in found
