"""The live page in a real Chromium before a real server: spoken to, given files, without a microphone, without a server."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests import chromium
from tests.chromium import Page
from tests.end_to_end.clients import text_of, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, RunningServer
from tests.end_to_end.speech import distinct_words, spoken
from tests.layout import CONTRASTS, FAULTS
from wire.words import TimedWord

DESKTOP, PHONE = 1280, 390
SPOKEN = ROOT / "datasets" / "spoken-en"
UTTERANCES = 3
ELSEWHERE = "earmark.test"  # resolves to this machine, and is not localhost to a browser
MICROPHONE = ("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream")
WATCH_TRACKS = """
const ask = navigator.mediaDevices?.getUserMedia.bind(navigator.mediaDevices);
if (ask) navigator.mediaDevices.getUserMedia = async what => {
  const stream = await ask(what);
  (window.tracks ??= []).push(...stream.getTracks());
  return stream;
};
"""


def start(*options: str) -> Any:
    program = chromium.program()
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium, or name one in EARMARK_CHROMIUM")
    return chromium.browser(program, f"--host-resolver-rules=MAP {ELSEWHERE} 127.0.0.1", *options)


def write_wav(path: Path, pcm: bytes, rate: int = 16_000, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm)
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Some utterances of spoken-en one after the other, and the words of their references."""
    manifest = [json.loads(line) for line in (SPOKEN / "manifest.jsonl").read_text().splitlines()[:UTTERANCES]]
    pcm = b"".join(soundfile.read(SPOKEN / one["audio"], dtype="int16")[0].tobytes() for one in manifest)
    words = [word for one in manifest for word in re.findall(r"[a-z']+", one["text"].lower())]
    return write_wav(tmp_path_factory.mktemp("speech") / "speech.wav", pcm), words


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[TimedWord]]:
    """Audio that carries its words, as a file."""
    pcm, words = spoken(distinct_words(8, seed=5), seed=5)
    return write_wav(tmp_path_factory.mktemp("scripted") / "words.wav", pcm), pcm, words


@pytest.fixture(scope="module")
def tab(speech: tuple[Path, list[str]]) -> Iterator[Page]:
    """A browser whose microphone says the speech once."""
    with start(*MICROPHONE, f"--use-file-for-fake-audio-capture={speech[0]}%noloop") as page:
        page.before_pages(WATCH_TRACKS)
        yield page


@pytest.fixture(scope="module")
def deaf() -> Iterator[Page]:
    """A browser without any microphone, on whose user's behalf every question is answered with yes."""
    with start(MICROPHONE[0]) as page:
        yield page


@pytest.fixture
def server(serve: Serve) -> RunningServer:
    return serve()


def show(page: Page, server: RunningServer, key: str = KEY, host: str = "localhost", width: int = DESKTOP) -> None:
    """The page, fresh, with a key in hand unless it is empty."""
    page.look(width)
    page.visit(f"http://{host}:{server.port}/")
    page.evaluate(
        f"sessionStorage.clear() || {json.dumps(key)} && sessionStorage.setItem('earmark-key', {json.dumps(key)})"
    )
    page.until("document.body.dataset.state === 'ready'")


def choose(page: Page, select: str, value: str) -> None:
    """An entry of the setup."""
    page.evaluate(
        f"(() => {{ const select = document.getElementById('{select}'); select.value = '{value}';"
        "select.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )
    assert page.evaluate(f"document.getElementById('{select}').value") == value


def state(page: Page, name: str) -> None:
    page.until(f"document.body.dataset.state === '{name}'")


def shown(page: Page) -> str:
    return str(page.evaluate("document.querySelector('.take:last-child .text').textContent"))


def summary(page: Page) -> dict[str, str]:
    """The figures below the newest transcript."""
    pairs = "[...document.querySelectorAll('.take:last-child .summary dl > div')]"
    texts = f"{pairs}.map(pair => [...pair.children].map(one => one.textContent))"
    return dict(page.evaluate(texts))


def complaint(page: Page) -> str:
    return str(page.until("document.getElementById('notice-text').textContent"))


def assert_nothing_amiss(page: Page, server: RunningServer, host: str = "localhost") -> None:
    """The console is free of errors, and only this server was asked for anything."""
    page.evaluate("1")  # events that are on their way come before its answer
    assert page.errors == []
    assert page.requests
    assert [url for url in page.requests if not url.startswith((f"http://{host}:{server.port}/", "blob:"))] == []


async def heard_by_yap(server: RunningServer, pcm: bytes) -> str:
    async with yap(server) as client:
        return text_of(await client.say(pcm))


# ---- recordings


@pytest.mark.parametrize("surface", ["yap", "realtime", "sessions"])
@pytest.mark.parametrize("pace", ["fast", "real"])
def test_a_recording_of_16_khz_gives_the_text_that_a_client_gets(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]], surface: str, pace: str
) -> None:
    path, pcm, words = recording
    show(tab, server)
    choose(tab, "surface", surface)
    choose(tab, "pace", pace)
    tab.give_file("#file", path)
    state(tab, "done")
    assert shown(tab) == asyncio.run(heard_by_yap(server, pcm)) == " ".join(word.text for word in words)
    figures = summary(tab)
    assert (figures["Words"], figures["Audio"]) == (str(len(words)), f"{len(pcm) / 32_000:.2f} s")
    assert {"First token", "To final"} <= set(figures)
    assert ("Lag, median" in figures) == (pace == "real" and surface != "sessions")
    assert_nothing_amiss(tab, server)


def test_a_session_shows_its_text_before_the_end_and_is_deleted_behind_it(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    path, _, words = recording
    show(tab, server)
    choose(tab, "surface", "sessions")
    choose(tab, "delay", "960")
    tab.give_file("#file", path)
    standing = "document.body.dataset.state === 'sending' && document.querySelectorAll('.word').length"
    assert tab.until(standing) < len(words), "what is committed stands while the rest is still to come"
    state(tab, "done")
    assert shown(tab).split() == [word.text for word in words]
    number, unit = summary(tab)["First token"].split()
    # the scripted engine tells a word so long after its end, and the first packet is sent 80 ms into the audio
    assert float(number) / (1000 if unit == "ms" else 1) > words[0].end + 0.85
    made = "performance.getEntriesByType('resource').find(one => /session.[0-9a-f-]{36}$/.test(one.name))?.name"
    session = tab.until(made).rpartition("/")[2]
    assert server.request("DELETE", f"/session/{session}")[0] == 404
    assert_nothing_amiss(tab, server)


@pytest.mark.parametrize("script", ["{}", '{"audio_rate": 10}'], ids=["more than the rate", "more than the engine"])
def test_a_session_loses_nothing_of_a_recording_that_is_sent_fast(
    tab: Page, serve: Serve, long_recording: Path, script: str
) -> None:
    server = serve("--script", script, "--sessions-queue", "60")
    show(tab, server)
    choose(tab, "surface", "sessions")
    choose(tab, "pace", "fast")
    tab.give_file("#file", long_recording)
    tab.until("document.body.dataset.state === 'done'", 50)
    assert len(shown(tab).split()) == 401
    assert server.metric("earmark_dropped_audio_seconds_total", surface="sessions") == 0


def test_a_session_is_kept_while_the_server_still_owes_its_text(
    tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    idle = ("--sessions-heartbeat-seconds", "0.4", "--sessions-inactivity-seconds", "0.6")
    server = serve("--script", '{"final_latency_ms": 2500}', *idle)
    show(tab, server)
    choose(tab, "surface", "sessions")
    choose(tab, "pace", "fast")
    tab.give_file("#file", recording[0])
    state(tab, "done")
    assert shown(tab).split() == [word.text for word in recording[2]]


def test_who_asks_for_too_many_sessions_is_told_how_long_to_wait(
    tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    server = serve("--sessions-create-per-minute", "1")
    show(tab, server)
    choose(tab, "surface", "sessions")
    choose(tab, "pace", "fast")
    tab.give_file("#file", recording[0])
    state(tab, "done")
    tab.give_file("#file", recording[0])
    told = complaint(tab)
    assert re.fullmatch(r"The server takes no more for now: more than 1 sessions a minute; try again in \d+ s\.", told)


def test_an_uploaded_recording_gives_the_text_and_the_times(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    path, pcm, words = recording
    show(tab, server)
    choose(tab, "surface", "transcriptions")
    assert tab.evaluate("document.getElementById('pace-field').hidden"), "a file goes as it is"
    tab.give_file("#file", path)
    state(tab, "done")
    assert shown(tab).split() == [word.text for word in words]
    assert summary(tab)["Audio"] == f"{len(pcm) / 32_000:.2f} s"
    assert "First token" not in summary(tab)
    assert tab.evaluate("document.querySelectorAll('.word:not(.timed)').length") == 0
    assert_nothing_amiss(tab, server)


def test_openai_sessions_hear_a_recording(tab: Page, serve: Serve, speech: tuple[Path, list[str]]) -> None:
    path, reference = speech
    server = serve(engine="sphinx")
    show(tab, server)
    choose(tab, "surface", "openai")
    choose(tab, "pace", "fast")
    tab.give_file("#file", path)
    state(tab, "done")
    said = shown(tab).split()
    assert sum(word in said for word in reference) >= 0.6 * len(reference), (said, reference)
    assert summary(tab)["Audio"] == f"{soundfile.info(path).duration:.2f} s"
    assert tab.evaluate("document.querySelectorAll('.word:not(.timed)').length") == 0
    assert_nothing_amiss(tab, server)


def test_every_sample_of_a_16_khz_file_arrives_as_it_was(tab: Page, server: RunningServer, tmp_path: Path) -> None:
    values = [-32768, 32767, -1, 0, 1, *random.Random(3).choices(range(-32768, 32768), k=20_000)]
    path = write_wav(tmp_path / "noise.wav", struct.pack(f"<{len(values)}h", *values))
    show(tab, server)
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<input type=file id=probe hidden>')")
    tab.give_file("#probe", path)
    decoded = tab.evaluate(
        "import('/page/audio.js').then(async ({decode}) => [...await decode(document.getElementById('probe').files[0], 16000)])"
    )
    assert decoded == values


def test_a_file_of_another_rate_and_two_channels_is_resampled_and_mixed(
    tab: Page, server: RunningServer, tmp_path: Path
) -> None:
    time = np.arange(44_100) / 44_100
    left = 0.5 * np.sin(2 * np.pi * 500 * time)
    both = np.stack([left, np.zeros_like(left)], axis=1)
    path = write_wav(tmp_path / "tone.wav", (both * 32767).astype("<i2").tobytes(), 44_100, 2)
    show(tab, server)
    tab.evaluate("document.body.insertAdjacentHTML('beforeend', '<input type=file id=probe hidden>')")
    tab.give_file("#probe", path)
    decoded = tab.evaluate(
        "import('/page/audio.js').then(async ({decode}) => [...await decode(document.getElementById('probe').files[0], 16000)])"
    )
    assert len(decoded) == pytest.approx(16_000, abs=2)
    middle = np.array(decoded[4000:12_000]) / 32768
    assert np.sqrt(2 * np.mean(middle**2)) == pytest.approx(0.25, rel=0.01)


def test_a_word_tells_its_time_to_a_pointer_and_to_the_keyboard(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    path, _, words = recording
    show(tab, server)
    choose(tab, "pace", "fast")
    tab.give_file("#file", path)
    state(tab, "done")
    tab.evaluate(
        "document.querySelectorAll('.word')[3].dispatchEvent(new PointerEvent('pointerover', {bubbles: true, pointerType: 'mouse'}))"
    )
    assert (
        tab.evaluate("document.getElementById('tip').textContent")
        == f"0:{words[3].start:05.2f} – 0:{words[3].end:05.2f}"
    )
    tab.evaluate("document.querySelector('.take .text').focus()")
    tab.press("ArrowRight")
    tab.press("ArrowRight")
    assert (
        tab.evaluate("document.getElementById('time').textContent")
        == f"{words[1].text}, 0:{words[1].start:05.2f} – 0:{words[1].end:05.2f}"
    )
    tab.press("End")
    assert tab.evaluate("document.querySelector('.current').textContent") == words[-1].text


def test_the_delay_that_is_chosen_is_the_one_in_force(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    show(tab, server)
    choose(tab, "delay", "960")
    tab.give_file("#file", recording[0])
    state(tab, "done")
    number, unit = summary(tab)["Lag, median"].split()
    # the scripted engine waits exactly so long; packets of 80 ms and the way add some
    assert float(number) / (1000 if unit == "ms" else 1) > 0.95


def test_what_is_no_recording_is_refused_in_a_sentence(tab: Page, server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no sound")
    show(tab, server)
    tab.give_file("#file", path)
    assert complaint(tab).startswith("notes.txt is no recording that this browser can decode")
    assert tab.evaluate("document.querySelectorAll('.take').length") == 0
    assert not tab.evaluate("document.getElementById('speak').disabled")


def test_a_dropped_file_is_transcribed(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    path, _, words = recording
    show(tab, server)
    choose(tab, "pace", "fast")
    drag = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        tab.call("Input.dispatchDragEvent", type=kind, x=640, y=300, data=drag)
    state(tab, "done")
    assert shown(tab).split() == [word.text for word in words]


def test_the_transcript_can_be_copied_and_downloaded(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]], tmp_path: Path
) -> None:
    path, _, words = recording
    show(tab, server)
    choose(tab, "pace", "fast")
    tab.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    tab.give_file("#file", path)
    state(tab, "done")
    tab.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    tab.evaluate("[...document.querySelectorAll('.summary button')].forEach(button => button.click())")
    text = " ".join(word.text for word in words)
    assert tab.until("window.copied") == text
    tab.until("[...document.querySelectorAll('.summary button')].some(button => button.textContent === 'Copied')")
    for _ in range(500):
        files = list(tmp_path.glob("transcript-*.txt"))
        if files and files[0].read_text() == text + "\n":
            break
        tab.evaluate("new Promise(done => setTimeout(done, 20))")  # the browser writes the file
    assert files[0].read_text() == text + "\n"


# ---- the microphone


def test_what_is_spoken_is_shown_and_the_microphone_is_let_go(
    tab: Page, serve: Serve, speech: tuple[Path, list[str]]
) -> None:
    server = serve(engine="sphinx")
    path, reference = speech
    seconds = soundfile.info(path).duration
    show(tab, server)
    tab.click("#speak")
    state(tab, "listening")
    tentative = tab.until("document.querySelector('.tentative')?.textContent")
    assert tentative
    tab.until(f"parseFloat(document.getElementById('audio').textContent) > {seconds + 1}", seconds + 30)
    assert re.fullmatch(r"-?\d+ ms|\d+\.\d\d s", tab.evaluate("document.getElementById('lag').textContent"))
    assert tab.evaluate("window.tracks.map(track => track.readyState)") == ["live"]
    tab.click("#speak")
    state(tab, "done")
    assert tab.evaluate("window.tracks.map(track => track.readyState)") == ["ended"]
    said = shown(tab).split()
    found = sum(word in said for word in reference)
    assert found >= 0.6 * len(reference), (said, reference)  # a weak recogniser, and a browser's resampling before it
    assert (
        tab.evaluate("[...document.querySelectorAll('#said p')].map(one => one.textContent).join(' ').split(/\\s+/)")
        == said[-len(said) :]
    )
    assert tab.evaluate("document.querySelectorAll('.word:not(.timed)').length") == 0
    assert_nothing_amiss(tab, server)


def test_a_microphone_that_is_pulled_out_ends_the_utterance_with_what_was_said(
    tab: Page, server: RunningServer
) -> None:
    show(tab, server)
    tab.click("#speak")
    state(tab, "listening")
    tab.until("parseFloat(document.getElementById('audio').textContent) > 0.3")
    tab.evaluate("window.tracks.at(-1).dispatchEvent(new Event('ended'))")
    state(tab, "done")
    assert tab.evaluate("document.querySelector('.note').textContent") == "The microphone was disconnected."
    assert tab.evaluate("document.querySelector('.text').textContent") == "No words were heard."
    assert_nothing_amiss(tab, server)


def test_the_low_pass_keeps_speech_and_stops_what_would_alias(tab: Page, server: RunningServer) -> None:
    show(tab, server)
    levels = tab.evaluate(
        """import('/page/pcm.js').then(({Resampler}) => [[48000, 16000], [44100, 16000], [48000, 24000], [8000, 16000]].map(([from, to]) =>
          [300, 3500, 7100, 9500, 15000].map(hertz => {
            const resampler = new Resampler(from, to), output = [];
            let at = 0;
            while (at < from) {
              const piece = Float32Array.from({length: 128}, (_, n) => Math.sin(2 * Math.PI * hertz * (at + n) / from));
              output.push(...resampler.push(piece));
              at += 128;
            }
            output.push(...resampler.flush());
            const middle = output.slice(to / 4, 3 * to / 4);
            return [output.length / at * from, 10 * Math.log10(2 * middle.reduce((sum, one) => sum + one * one, 0) / middle.length)];
          })))"""
    )
    to_16_khz, from_44, to_24_khz, from_8 = levels
    for (length, level), below in zip(to_16_khz + from_44, [0.1, 0.1, 0.1, None, None] * 2, strict=True):
        assert length == pytest.approx(16_000, abs=2)
        assert level == pytest.approx(0, abs=below) if below else level < -70
    assert [level for _, level in to_24_khz[:4]] == pytest.approx([0] * 4, abs=0.1)
    assert to_24_khz[4][1] < -70
    assert [level for _, level in from_8[:2]] == pytest.approx([0] * 2, abs=0.1)


def test_who_denies_the_microphone_is_told_how_to_allow_it(server: RunningServer) -> None:
    with start(MICROPHONE[1]) as page:
        page.call("Browser.setPermission", permission={"name": "microphone"}, setting="denied")
        show(page, server)
        page.click("#speak")
        assert "does not let this page use the microphone. Allow it" in complaint(page)
        assert page.evaluate("document.getElementById('speak').textContent") == "Speak"


def test_a_machine_without_a_microphone_is_told_so(deaf: Page, server: RunningServer) -> None:
    show(deaf, server)
    deaf.click("#speak")
    assert complaint(deaf).startswith("No microphone was found.")
    state(deaf, "failed")


def test_a_page_that_did_not_come_over_https_is_told_what_to_do_and_takes_recordings(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    show(tab, server, host=ELSEWHERE)
    tab.click("#speak")
    assert "HTTPS" in (told := complaint(tab))
    assert f"http://localhost:{server.port}" in told
    choose(tab, "pace", "fast")
    tab.give_file("#file", recording[0])
    state(tab, "done")
    assert shown(tab).split() == [word.text for word in recording[2]]
    assert_nothing_amiss(tab, server, ELSEWHERE)


# ---- the key


def test_the_key_is_asked_for_once_and_a_wrong_one_again(
    tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    key = "k&y+ü /?#%"
    server = serve(key=key)
    show(tab, server, key="")
    choose(tab, "pace", "fast")
    tab.give_file("#file", recording[0])
    tab.until("document.getElementById('ask').open")
    assert not tab.evaluate("document.getElementById('wrong').textContent")
    tab.type("wrong")
    tab.press("Enter", 13)
    assert tab.until("document.getElementById('wrong').textContent") == "The server does not know this key."
    assert tab.evaluate("document.activeElement.id") == "key"
    tab.type(key)
    tab.press("Enter", 13)
    state(tab, "done")
    tab.give_file("#file", recording[0])
    tab.until("document.querySelectorAll('.summary').length === 2")
    assert not tab.evaluate("document.getElementById('ask').open")
    assert key not in tab.evaluate(
        "document.documentElement.outerHTML + location.href + document.getElementById('key').value"
    )
    assert tab.evaluate("localStorage.length") == 0
    assert key not in server.log()
    assert_nothing_amiss(tab, server)


def test_who_gives_no_key_is_left_alone(tab: Page, server: RunningServer) -> None:
    show(tab, server, key="")
    tab.click("#speak")
    tab.until("document.getElementById('ask').open")
    tab.click("#no-key")
    tab.until("!document.getElementById('ask').open")
    assert tab.evaluate("document.querySelectorAll('.take').length") == 0
    assert tab.evaluate("document.body.dataset.state") == "ready"


def test_a_surface_that_needs_no_key_does_not_ask(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    show(tab, server, key="")
    choose(tab, "surface", "realtime")
    choose(tab, "pace", "fast")
    tab.give_file("#file", recording[0])
    state(tab, "done")
    assert not tab.evaluate("sessionStorage.length")


def test_where_a_key_is_required_it_opens_everything_that_a_browser_can_use(
    tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    server = serve("--require-key")
    tab.visit(f"http://localhost:{server.port}/")
    tab.evaluate("sessionStorage.clear()")
    tab.visit(f"http://localhost:{server.port}/")
    tab.until("document.getElementById('ask').open")
    tab.type(KEY)
    tab.press("Enter", 13)
    state(tab, "ready")
    assert tab.evaluate("[...document.getElementById('surface').options].map(one => [one.value, one.disabled])") == [
        ["yap", False],
        ["realtime", True],
        ["openai", False],
        ["sessions", False],
        ["transcriptions", False],
    ]
    choose(tab, "pace", "fast")
    for count, surface in enumerate(("yap", "openai", "sessions", "transcriptions"), 1):
        choose(tab, "surface", surface)
        tab.give_file("#file", recording[0])
        tab.until(f"document.querySelectorAll('.summary').length === {count}")
    assert_nothing_amiss(tab, server)
    choose(tab, "surface", "sessions")
    tab.evaluate("sessionStorage.setItem('earmark-key', 'wrong')")
    tab.give_file("#file", recording[0])
    assert tab.until("document.getElementById('wrong').textContent") == "The server does not know this key."
    tab.type(KEY)
    tab.press("Enter", 13)
    tab.until("document.querySelectorAll('.summary').length === 5")
    assert shown(tab).split() == [word.text for word in recording[2]]


# ---- the server in trouble


def test_a_server_that_goes_away_is_told_and_the_text_stays(
    tab: Page, own_server: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    server = own_server()
    show(tab, server)
    tab.give_file("#file", recording[0])
    tab.until("document.querySelectorAll('.word').length > 1")
    server.signal(signal.SIGKILL)
    server.wait()
    assert complaint(tab).startswith("The connection to the server was lost.")
    state(tab, "failed")
    assert shown(tab).split()[0] == recording[2][0].text
    assert tab.evaluate("document.querySelector('.note').textContent") == "This transcript ends early."
    tab.click("#dismiss")
    tab.give_file("#file", recording[0])
    assert complaint(tab).startswith("The server does not answer.")
    assert KEY not in json.dumps(tab.errors)


def test_a_full_server_says_so(tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]) -> None:
    server = serve("--max-concurrent-connections", "1")
    show(tab, server)

    async def beside_another() -> str:
        async with yap(server):
            await asyncio.to_thread(tab.give_file, "#file", recording[0])
            return await asyncio.to_thread(complaint, tab)

    assert asyncio.run(beside_another()).startswith("The server is at capacity: all 1 connections are taken")


def test_an_utterance_that_the_engine_fails_ends_with_its_reason(
    tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    server = serve("--script", '{"faults": [{"at": 1.5, "message": "the engine is tired"}]}')
    for surface in ("yap", "realtime", "sessions"):
        show(tab, server)
        choose(tab, "surface", surface)
        tab.give_file("#file", recording[0])
        assert "the engine is tired" in complaint(tab)
        state(tab, "failed")


def test_audio_that_the_server_leaves_out_is_told_in_one_sentence(tab: Page, serve: Serve, tmp_path: Path) -> None:
    server = serve("--script", '{"audio_rate": 4}', "--max-backlog-seconds", "0.2")
    path = write_wav(tmp_path / "long.wav", spoken(distinct_words(40, seed=2), seed=2)[0])
    show(tab, server)
    choose(tab, "pace", "fast")
    assert tab.evaluate("document.getElementById('pace-about').textContent")
    tab.give_file("#file", path)
    state(tab, "done")
    [told] = tab.evaluate("[...document.querySelectorAll('.note')].map(one => one.textContent)")
    found = re.fullmatch(r"The server could not keep up and left out (\d+\.\d) s of audio\.", told)
    assert found
    dropped = server.metric("earmark_dropped_audio_seconds_total", surface="yap")
    assert float(found[1]) == pytest.approx(dropped, abs=0.051)


def test_text_without_blanks_firms_up_sign_by_sign(tab: Page, server: RunningServer) -> None:
    show(tab, server)
    pieces = tab.evaluate(
        """import('/page/transcript.js').then(({Take}) => {
          const take = new Take(document.getElementById('takes'), '');
          take.append('\\u4eca\\u65e5 ok', [], 1);
          return take.words.map(word => [word.text, word.element.classList.contains('growing')]);
        })"""
    )
    assert pieces == [["\u4eca", False], ["\u65e5", False], ["ok", True]]


def test_what_is_under_way_can_be_cancelled(
    tab: Page, serve: Serve, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    server = serve("--script", '{"final_latency_ms": 60000}')
    show(tab, server)
    tab.give_file("#file", recording[0])
    state(tab, "finishing")
    assert tab.evaluate("document.getElementById('speak').textContent") == "Cancel"
    tab.click("#speak")
    state(tab, "failed")
    assert tab.evaluate("document.getElementById('notice').hidden")
    asyncio.run(server.until_idle())


# ---- how it looks


@pytest.fixture(scope="module")
def long_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many words that they do not fit the window, the last of them too long for a line."""
    pcm, _ = spoken([*distinct_words(400, seed=9), "m" * 60], seed=9)
    return write_wav(
        tmp_path_factory.mktemp("long") / "a-name-that-is-so-long-that-it-has-to-be-broken-somewhere-in-its-middle.wav",
        pcm,
    )


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_nothing_is_cut_off_and_everything_can_be_read(
    tab: Page,
    server: RunningServer,
    long_recording: Path,
    recording: tuple[Path, bytes, list[TimedWord]],
    width: int,
    dark: bool,
) -> None:
    show(tab, server, width=width)
    tab.look(width, dark=dark)

    def check(moment: str) -> None:
        tab.evaluate(
            "Promise.all(document.getAnimations().filter(one => one instanceof CSSTransition).map(one => one.finished))"
        )
        assert tab.evaluate("document.documentElement.clientWidth") == width
        assert tab.evaluate(FAULTS) == [], moment
        texts = tab.evaluate(CONTRASTS)
        assert len(texts) > 5
        assert [text for text in texts if text["ratio"] < (3 if text["large"] else 4.5)] == [], moment

    check("idle")
    tab.evaluate("document.getElementById('setup').open = true")
    texts = tab.evaluate(CONTRASTS)
    assert [text for text in texts if text["ratio"] < 4.5] == []
    tab.give_file("#file", recording[0])
    tab.until("document.querySelectorAll('.word').length > 4")
    check("under way")
    state(tab, "done")
    choose(tab, "pace", "fast")
    tab.give_file("#file", long_recording)
    tab.until("document.querySelectorAll('.summary').length === 2")
    check("done")
    tab.give_file("#file", Path(__file__))
    complaint(tab)
    check("complaint")


def test_the_page_follows_the_text_until_the_reader_scrolls_back(
    tab: Page, server: RunningServer, long_recording: Path
) -> None:
    show(tab, server)
    at_end = "innerHeight + scrollY >= document.documentElement.scrollHeight - 2"
    tab.give_file("#file", long_recording)  # in real time: it goes on for minutes
    tab.until("document.body.scrollHeight > innerHeight + 10 || document.querySelectorAll('.word').length > 3")
    tab.evaluate("document.getElementById('takes').style.paddingTop = '2000px'")
    count = tab.evaluate("document.querySelectorAll('.word').length")
    tab.until(f"document.querySelectorAll('.word').length > {count} && {at_end}")
    tab.evaluate("scrollTo({top: 100, behavior: 'instant'})")
    tab.until("!document.getElementById('newest').hidden")
    count = tab.evaluate("document.querySelectorAll('.word').length")
    tab.until(f"document.querySelectorAll('.word').length > {count + 1}")
    assert tab.evaluate("scrollY") == 100
    tab.click("#newest")
    tab.until(at_end)
    tab.until("document.getElementById('newest').hidden")
    tab.press("Escape")
    state(tab, "done")


def test_nothing_moves_for_who_wants_less_motion(
    tab: Page, server: RunningServer, recording: tuple[Path, bytes, list[TimedWord]]
) -> None:
    show(tab, server)
    moving = "document.getAnimations().length"
    tab.give_file("#file", recording[0])
    state(tab, "sending")
    assert tab.until(moving)
    tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    tab.until("document.querySelectorAll('.word').length > 2")
    assert tab.evaluate(moving) == 0
    state(tab, "done")


def test_everything_has_a_name_and_the_keyboard_reaches_it(tab: Page, server: RunningServer) -> None:
    show(tab, server)
    tab.evaluate("document.getElementById('setup').open = true")
    tree = tab.call("Accessibility.getFullAXTree")["nodes"]
    controls = {"button", "combobox", "textbox", "DisclosureTriangle", "link"}
    found = [node for node in tree if not node["ignored"] and node.get("role", {}).get("value") in controls]
    assert len(found) >= 6
    assert [node for node in found if not node.get("name", {}).get("value", "").strip()] == []
    reached = []
    tab.evaluate("document.activeElement.blur()")
    for _ in range(12):
        tab.press("Tab", 9)
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.tagName"))
        ring = tab.evaluate(
            "document.activeElement === document.body || getComputedStyle(document.activeElement).outlineStyle"
        )
        assert ring in (True, "solid"), reached[-1]
    assert {"surface", "model", "delay", "pace", "speak", "choose"} <= set(reached)
