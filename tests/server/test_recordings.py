"""Decoding of uploaded files: what comes out bit by bit, what is refused and why, and that bounds hold while decoding."""

from __future__ import annotations

import asyncio
import random
import struct
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.recordings import DecodingError, RecordingLimits, decode, format_of
from tests.audio_files import audio_file, stereo, wav_file
from tests.end_to_end.speech import sentence
from wire.scripted import frames

PCM = sentence("every", "sample", "counts")


def tone(hertz: float, seconds: float, rate: int = 16_000) -> bytes:
    at = np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * hertz * at)).astype("<i2").tobytes()


def strongest_hertz(pcm: bytes) -> float:
    samples = np.frombuffer(pcm, "<i2").astype(float)
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * 16_000 / len(samples))


async def refused(data: bytes, code: str, limits: RecordingLimits | None = None) -> str:
    with pytest.raises(DecodingError) as error:
        await decode(data, limits)
    assert error.value.code == code, error.value.message
    return error.value.message


@pytest.mark.parametrize("format", ["wav", "flac"])
async def test_lossless_files_at_16_khz_pass_bit_by_bit(format: str) -> None:
    recording = await decode(audio_file(PCM, format))
    assert recording.pcm == PCM
    assert (recording.sample_rate, recording.channels, recording.format) == (16_000, 1, format)
    assert (recording.seconds, recording.damaged_packets) == (1.2, 0)
    assert {frame.text for frame in frames(recording.pcm)} == {"every", "sample", "counts"}


async def test_a_wav_without_its_length_in_the_header_is_read_to_its_end() -> None:
    file = bytearray(wav_file(PCM))
    struct.pack_into("<I", file, 4, 0xFFFFFFFF)
    struct.pack_into("<I", file, 40, 0xFFFFFFFF)
    assert (await decode(bytes(file))).pcm == PCM


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("format", ["wav", "flac"])
async def test_every_rate_from_8_to_48_khz_keeps_pitch_and_length(format: str, rate: int) -> None:
    recording = await decode(audio_file(tone(700, 1, rate), format, rate))
    assert recording.sample_rate == rate
    assert recording.seconds == pytest.approx(1, abs=0.01)
    assert strongest_hertz(recording.pcm) == pytest.approx(700, abs=2)


@pytest.mark.parametrize("format", ["mp3", "m4a", "ogg", "vorbis", "aac", "webm"])
@pytest.mark.parametrize("channels", [1, 2])
async def test_lossy_files_keep_pitch_and_length(format: str, channels: int) -> None:
    pcm = tone(700, 2, 48_000)
    file = audio_file(stereo(pcm, pcm) if channels == 2 else pcm, format, 48_000, 2 if format == "vorbis" else channels)
    recording = await decode(file)
    assert recording.format == {"vorbis": "ogg"}.get(format, format)
    if format == "vorbis" and channels == 1:  # FFmpeg's encoder has two channels: half as long, an octave up
        assert strongest_hertz(recording.pcm) == pytest.approx(1400, abs=4)
        return
    assert recording.channels == channels
    assert recording.seconds == pytest.approx(2, abs=0.12)  # with what encoders put in front
    assert strongest_hertz(recording.pcm) == pytest.approx(700, abs=2)


async def test_stereo_is_mixed_down_to_the_mean() -> None:
    left, right = tone(500, 0.5), tone(900, 0.5)
    mixed = np.frombuffer((await decode(wav_file(stereo(left, right), channels=2))).pcm, "<i2").astype(int)
    mean = (np.frombuffer(left, "<i2").astype(int) + np.frombuffer(right, "<i2")) / 2
    assert np.abs(mixed - mean).max() <= 1.5  # rounding and dither


@pytest.mark.parametrize("format", ["mp3", "flac", "m4a", "ogg", "webm", "aac"])
async def test_content_decides_and_a_cut_file_gives_what_is_there(format: str) -> None:
    file = audio_file(tone(700, 4), format)
    if format == "m4a":  # its index is at the end
        assert "m4a" in await refused(file[: len(file) // 2], "not_audio")
        return
    recording = await decode(file[: len(file) // 2])
    assert 0.5 < recording.seconds < 4
    assert strongest_hertz(recording.pcm) == pytest.approx(700, abs=3)


async def test_tags_before_the_sound_are_skipped() -> None:
    tag = b"ID3\x04\x00\x00" + bytes([0, 0, 2, 0]) + bytes(256)
    assert (await decode(tag + audio_file(PCM, "flac"))).pcm == PCM
    assert (await decode(tag + audio_file(tone(700, 1), "mp3"))).format == "mp3"


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"RIFF1234WAVE",
        bytes(5000),
        random.Random(1).randbytes(100_000),
        b"OggS" + random.Random(2).randbytes(10_000),
        b"ID3\x04\x00\x00\x00\x00\x00\x00" + random.Random(3).randbytes(10_000),
        b"fLaC" + random.Random(4).randbytes(10_000),
        b"\x00\x00\x00\x20ftypM4A " + random.Random(5).randbytes(10_000),
        b"\x1aE\xdf\xa3" + random.Random(6).randbytes(10_000),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
    ],
    ids=lambda data: repr(data[:8]),
)
async def test_what_is_no_audio_is_refused(data: bytes) -> None:
    assert await refused(data, "not_audio")


async def test_empty_files_are_told_from_broken_ones() -> None:
    assert "empty" in await refused(b"", "empty")
    assert "no sound" in await refused(wav_file(b""), "empty")


@pytest.mark.parametrize("rate", [7_999, 48_001, 96_000])
async def test_rates_out_of_range_are_named(rate: int) -> None:
    message = await refused(wav_file(PCM, rate), "unsupported_rate")
    assert str(rate) in message
    assert "8000 to 48000" in message


async def test_more_than_two_channels_are_refused() -> None:
    assert "6 channels" in await refused(wav_file(PCM, channels=6), "unsupported_channels")


async def test_bytes_are_limited_before_anything_is_decoded() -> None:
    limits = RecordingLimits(most_bytes=1000)
    assert "at most 1000" in await refused(b"x" * 1001, "too_large", limits)
    assert "can be read" in await refused(b"x" * 1000, "not_audio", limits)


async def test_seconds_are_limited_to_the_sample() -> None:
    limits = RecordingLimits(most_seconds=1.0)
    assert (await decode(wav_file(bytes(32_000)), limits)).seconds == 1
    assert "longer than the 1 s" in await refused(wav_file(bytes(32_002)), "too_long", limits)


async def test_a_small_file_that_unpacks_to_hours_is_stopped_at_the_limit() -> None:
    hour = audio_file(bytes(32_000 * 3600), "flac")
    assert len(hour) < 1_000_000
    began = time.process_time()
    await refused(hour, "too_long", RecordingLimits(most_seconds=10))
    stopped = time.process_time() - began
    began = time.process_time()
    assert (await decode(hour, RecordingLimits(most_seconds=None))).seconds == 3600
    assert stopped < (time.process_time() - began) / 5, "it decoded more than it had to"


async def test_the_event_loop_goes_on_while_a_file_is_decoded_and_a_cancelled_one_is_given_up() -> None:
    hours = audio_file(bytes(32_000 * 3600), "flac")
    loop = asyncio.get_running_loop()
    work = [asyncio.create_task(decode(hours, RecordingLimits(most_seconds=None))) for _ in range(8)]
    turns = 0
    while not any(task.done() for task in work) and turns < 20:
        await asyncio.sleep(0)
        turns += 1
    assert turns == 20, "the loop did not run beside the decoder"
    for task in work:
        task.cancel()
    assert all(isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*work, return_exceptions=True))
    began = loop.time()
    assert (await decode(wav_file(PCM))).pcm == PCM  # threads are free again
    given_up = loop.time() - began
    began = loop.time()
    await decode(hours, RecordingLimits(most_seconds=None))
    assert given_up < loop.time() - began, "what was cancelled was decoded to its end"


async def test_files_at_once_do_not_mix() -> None:
    recordings = await asyncio.gather(*(decode(wav_file(PCM[: 2 * n])) for n in range(100, 140)))
    assert [recording.pcm for recording in recordings] == [PCM[: 2 * n] for n in range(100, 140)]


@given(st.binary(max_size=300), st.sampled_from(["wav", "mp3", "flac", "ogg", "m4a", "webm"]), st.integers(0, 2000))
def test_damage_anywhere_is_an_error_or_audio_and_nothing_else(damage: bytes, format: str, at: int) -> None:
    file = bytearray(audio_file(tone(700, 0.3), format))
    file[at : at + len(damage)] = damage
    try:
        recording = asyncio.run(decode(bytes(file), RecordingLimits(most_seconds=30)))
    except DecodingError as error:
        assert error.message
    else:
        assert recording.seconds <= 30


@given(st.binary(max_size=64))
def test_any_beginning_is_looked_at_without_an_error(data: bytes) -> None:
    assert format_of(data) in (None, "wav", "flac", "ogg", "mp3", "aac", "m4a", "webm")
