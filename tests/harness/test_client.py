"""The client for people: recordings and live voices to small servers of every transport, and the sources of live audio."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from harness.audio import AudioError, Resampler, resample
from harness.client import Heard, listen, transcribe
from harness.drivers import DRIVERS
from harness.drivers.base import Request, address
from harness.drivers.recordings import wav
from harness.replay.carrying import Destination
from harness.replay.exchange import Patience
from harness.sources import BLOCK_MS, Microphone, Played, SourceError, devices, sound_library
from harness.timeline import Kind, Outcome
from tests.harness import services
from tests.harness.surfaces import KEY, chunks, over_grpc, over_http, recordings, sessions
from tests.harness.tones import sing, words_of

TEXT = "one two three four five"
QUICK = Patience(connect_seconds=5, ready_seconds=5, final_seconds=5, done_seconds=0.3, close_seconds=1)
BLOCK_BYTES = BLOCK_MS * 32

Server = Callable[..., AbstractAsyncContextManager[Any]]
SERVERS: dict[str, Server] = {
    "openai": lambda **settings: services.local("openai", **settings),
    "deepgram": lambda **settings: services.local("deepgram", **settings),
    "sessions": lambda **settings: over_http(sessions, **settings),
    "rest": lambda **settings: over_http(recordings, **settings),
    "openai-files": lambda **settings: over_http(recordings, **settings),
    "rest-stream": lambda **settings: over_http(chunks, **settings),
    "grpc": over_grpc,
}


def sound(text: str = TEXT) -> bytes:
    words = words_of(text, 0.3)
    return sing(words, round(words[-1].end + 0.3, 2))


def destination(name: str, server: Any, **options: str) -> Destination:
    driver, request = DRIVERS[name], Request("a-model", None, None, options)
    if name in ("openai", "deepgram"):
        base = server.url
    else:
        base = server.url({"grpc": "grpc", "sessions": "ws", "rest-stream": "ws"}.get(name, "http"))
    url, headers = address(driver, base, KEY, request)
    return Destination(driver, url, headers, request)


def packet_ms(name: str) -> int:
    return 300 if name == "rest-stream" else 80  # a word and the gap behind it


class Given:
    """A source whose audio is all there: blocks follow each other as fast as they are taken."""

    def __init__(self, pcm: bytes, block_bytes: int = BLOCK_BYTES, then: Exception | None = None) -> None:
        self.lost = 0
        self._pcm, self._block_bytes, self._then = pcm, block_bytes, then
        self.stopped = False

    async def blocks(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._pcm), self._block_bytes):
            await asyncio.sleep(0)
            if self.stopped:
                return
            yield self._pcm[at : at + self._block_bytes]
        if self._then is not None:
            raise self._then

    def stop(self) -> None:
        self.stopped = True


async def heard_live(name: str, source: Any, server: Any, **options: str) -> tuple[Heard, list[tuple[str, str]]]:
    seen: list[tuple[str, str]] = []
    heard = await listen(
        source,
        destination(name, server, **options),
        packet_ms=packet_ms(name),
        patience=QUICK,
        shown=lambda stable, tentative: seen.append((stable, tentative)),
    )
    return heard, seen


# ---- recordings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVERS)
async def test_a_recording_is_transcribed_and_its_text_seen_as_it_comes(name: str) -> None:
    seen: list[str] = []
    async with SERVERS[name]() as server:
        heard = await transcribe(
            "a.wav",
            sound(),
            destination(name, server),
            packet_ms=packet_ms(name),
            speed=8.0,
            patience=QUICK,
            shown=lambda stable, tentative: seen.append(stable + tentative),
        )
    assert (heard.ok, heard.text, heard.words, heard.record.error) == (True, TEXT, 5, None)
    assert seen[-1] == TEXT
    assert all(TEXT.startswith(text) for text in seen)
    told = heard.as_json()
    assert told["audio_seconds"] == heard.record.audio_seconds == pytest.approx(len(sound()) / 32_000, abs=0.001)
    assert heard.real_time_factor is not None
    assert heard.first_token_seconds is not None
    # no text can be whole before the last word was spoken, nor seen before the first was
    assert heard.real_time_factor * heard.record.audio_seconds >= (heard.record.audio_seconds - 0.3) / 8.0
    assert heard.first_token_seconds >= 0.3 / 8.0


async def test_a_recording_at_full_speed_is_whole() -> None:
    async with SERVERS["grpc"]() as server:
        heard = await transcribe(
            "a", sound(), destination("grpc", server), packet_ms=80, speed=math.inf, patience=QUICK
        )
    assert (heard.ok, heard.text) == (True, TEXT)


async def test_a_recording_without_an_answer_has_a_reason_and_no_figures() -> None:
    async with over_http(recordings, status=400, body='{"error":{"code":"AUDIO","message":"too long"}}') as server:
        heard = await transcribe("a", sound(), destination("rest", server), packet_ms=80, speed=8.0, patience=QUICK)
    told = heard.as_json()
    assert (told["outcome"], told["error"]) == ("failed", "HTTP 400: AUDIO: too long")
    assert told["time_to_final_seconds"] is None
    assert told["real_time_factor"] is None
    assert told["first_token_seconds"] is None


# ---- live ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVERS)
@pytest.mark.parametrize("block_bytes", [BLOCK_BYTES, 1000, 40_000])
async def test_what_a_source_says_is_transcribed_whatever_its_blocks(name: str, block_bytes: int) -> None:
    async with SERVERS[name]() as server:
        heard, seen = await heard_live(name, Given(sound(), block_bytes), server)
    assert (heard.ok, heard.text, heard.record.error) == (True, TEXT, None)
    assert heard.record.audio_seconds == len(sound()) / 32_000
    assert seen[-1] == (TEXT, "")
    sent = [entry.value or 0.0 for entry in heard.record.of(Kind.PACKET)]
    assert sent == sorted(sent)
    assert sent[-1] == pytest.approx(heard.record.audio_seconds)


@pytest.mark.parametrize("packets", [2, 2.5, 0.25])
async def test_of_live_chunks_only_the_last_says_so(packets: float) -> None:
    pcm = sound("one two three")[: round(packets * 300 * 32)]
    async with SERVERS["rest-stream"]() as server:
        await heard_live("rest-stream", Given(pcm), server)
    assert [chunk["is_final"] for chunk in server.seen] == [False] * (math.ceil(packets) - 1) + [True]
    assert [chunk["chunk_id"] for chunk in server.seen] == list(range(math.ceil(packets)))
    assert sum(chunk["seconds"] for chunk in server.seen) == pytest.approx(packets * 0.3)


async def test_live_audio_ends_by_silence_where_that_is_asked_for() -> None:
    async with SERVERS["sessions"](additions=False) as server:
        heard, _ = await heard_live("sessions", Given(sound()), server, end="silence")
    assert (heard.ok, heard.text) == (True, TEXT)


@pytest.mark.parametrize("name", SERVERS)
async def test_a_source_without_audio_is_told(name: str) -> None:
    async with SERVERS[name]() as server:
        heard, _ = await heard_live(name, Given(b""), server)
    assert (heard.record.outcome, heard.record.error) == (Outcome.FAILED, "no audio came")


async def test_a_server_that_gives_up_ends_the_listening() -> None:
    source = Given(sound() * 1000)
    async with SERVERS["grpc"](faults="ERR2003 too many bytes") as server:
        heard, _ = await heard_live("grpc", source, server)
    assert heard.record.error == "RESOURCE_EXHAUSTED: ERR2003 too many bytes"
    assert source.stopped


async def test_a_source_that_breaks_off_is_raised() -> None:
    async with SERVERS["grpc"]() as server:
        with pytest.raises(SourceError, match="unplugged"):
            await heard_live("grpc", Given(sound(), then=SourceError("unplugged")), server)


# ---- sources ---------------------------------------------------------------------------------------------------


async def test_a_played_file_comes_in_blocks_no_earlier_than_spoken(tmp_path: Path) -> None:
    pcm = sound("one")
    (tmp_path / "a.wav").write_bytes(wav(pcm, 16_000))
    loop = asyncio.get_running_loop()
    began, blocks = loop.time(), []
    async for block in Played(tmp_path / "a.wav").blocks():
        blocks.append(block)
        assert loop.time() - began >= len(b"".join(blocks)) / 32_000 - 0.002
    assert b"".join(blocks) == pcm
    assert {len(block) for block in blocks[:-1]} == {BLOCK_BYTES}


async def test_a_played_file_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav(bytes(32_000 * 60), 16_000))
    source, count = Played(tmp_path / "a.wav"), 0
    async with asyncio.timeout(10):
        async for _ in source.blocks():
            count += 1
            if count == 3:
                source.stop()
    assert count == 3


def test_a_file_that_is_no_audio_cannot_be_played(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("not a sound")
    with pytest.raises(AudioError, match=r"a\.wav"):
        Played(tmp_path / "a.wav")


@pytest.mark.parametrize("rate", [24_000, 8_000, 16_000])
def test_resampling_as_it_comes_is_that_of_the_whole(rate: int) -> None:
    pcm = sound()
    resampler = Resampler(16_000, rate)
    cut = [resampler.feed(pcm[at : at + 640]) for at in range(0, len(pcm), 640)] + [resampler.feed(b"", last=True)]
    whole, parts = resample(pcm, rate), b"".join(cut)
    assert abs(len(whole) - len(parts)) <= 4
    length = min(len(whole), len(parts))
    one, other = (np.frombuffer(sound[:length], "<i2").astype(int) for sound in (whole, parts))
    assert np.abs(one - other).max() <= 2


class PortAudio:
    """What sounddevice offers, of which a microphone plays a recording. ``rates`` are those that it can be opened with."""

    class PortAudioError(Exception):
        pass

    def __init__(self, pcm: bytes = b"", rates: Sequence[int] = (16_000,), *, there: bool = True) -> None:
        self._pcm, self._rates, self._there = pcm, rates, there
        self.opened: dict[str, Any] = {}

    def query_devices(self, device: object = None, kind: str | None = None) -> Any:
        found = {"name": "Desk", "max_input_channels": 1, "default_samplerate": float(self._rates[-1])}
        if kind is None:
            return [{"name": "Speaker", "max_input_channels": 0, "default_samplerate": 48_000.0}] + [
                found
            ] * self._there
        if not self._there or device not in (None, 1, "Desk"):
            raise ValueError("No input device matching")
        return found

    def check_input_settings(self, _device: object, *, samplerate: int, **_: object) -> None:
        if samplerate not in self._rates:
            raise self.PortAudioError("Invalid sample rate")

    def RawInputStream(self, **options: Any) -> Any:  # noqa: N802 - its name there
        self.opened = options
        block = options["blocksize"] * 2
        pcm, call = self._pcm, options["callback"]

        class Stream:
            def __enter__(self) -> None:
                for number, at in enumerate(range(0, len(pcm), block)):
                    call(memoryview(pcm[at : at + block]), block // 2, SimpleNamespace(), number == 1)

            def __exit__(self, *_: object) -> None:
                pass

        return Stream()


async def taken(microphone: Microphone, blocks: int) -> bytes:
    got = []
    async with asyncio.timeout(10):
        async for block in microphone.blocks():
            got.append(block)
            if len(got) == blocks:
                microphone.stop()
    return b"".join(got)


async def test_a_microphone_is_taken_block_by_block_and_what_it_lost_is_counted() -> None:
    library = PortAudio(sound("one"))
    microphone = Microphone(library=library)
    assert await taken(microphone, len(sound("one")) // BLOCK_BYTES) == sound("one")
    assert microphone.name == "Desk"
    assert microphone.lost == 1
    assert (library.opened["channels"], library.opened["dtype"], library.opened["samplerate"]) == (1, "int16", 16_000)


async def test_a_microphone_of_another_rate_is_resampled() -> None:
    spoken = resample(sound("one"), 48_000)
    microphone = Microphone("1", library=PortAudio(spoken, [44_100, 48_000]))
    pcm = await taken(microphone, len(spoken) // (BLOCK_BYTES * 3))
    assert abs(len(pcm) - len(sound("one"))) <= 2 * BLOCK_BYTES
    async with SERVERS["grpc"]() as server:
        heard, _ = await heard_live("grpc", Given(pcm), server)
    assert heard.text == "one"


async def test_no_microphone_and_no_such_microphone_say_what_to_do() -> None:
    with pytest.raises(SourceError, match=r"there is no microphone .*--wav"):
        Microphone(library=PortAudio(there=False))
    with pytest.raises(SourceError, match=r"--device lamp: no such microphone .*--list-devices"):
        Microphone("lamp", library=PortAudio())
    with pytest.raises(SourceError, match="no microphone here"):
        devices(PortAudio(there=False))


def test_microphones_are_listed_with_their_numbers() -> None:
    assert devices(PortAudio(rates=[44_100])) == ["*   1  Desk  (1 channels, 44100 Hz)"]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SourceError, match=r"earmark\[mic\]"):
        sound_library()
