"""Audio of every common kind comes out as 16 kHz mono PCM16 that still sounds the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import audio

RATES = (8_000, 16_000, 22_050, 44_100, 48_000)
Samples = npt.NDArray[np.float64]


@dataclass
class Clip:
    id: str
    audio: Path | None = None
    parts: tuple[tuple[Path, float], ...] = ()


def tone(hertz: float, seconds: float, rate: int, peak: float = 0.5) -> Samples:
    return np.asarray(peak * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate))


def write_m4a(path: Path, samples: Samples, rate: int) -> None:
    """AAC in MP4, one row of ``samples`` per channel."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=rate)
        stream.layout = "mono" if len(samples) == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(samples.astype(np.float32), format="fltp", layout=stream.layout.name)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def heard(pcm: bytes) -> Samples:
    return np.frombuffer(pcm, "<i2").astype(np.float64) / 32_768


def loudest_hertz(samples: Samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * audio.SAMPLE_RATE / len(samples))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "m4a"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_a_tone_keeps_pitch_level_and_length(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    path, original = tmp_path / f"tone.{suffix}", tone(440, 1.5, rate)
    if suffix == "m4a":
        write_m4a(path, np.stack([original] * channels), rate)
    else:
        soundfile.write(path, np.stack([original] * channels, axis=1), rate)
    found = heard(audio.decode(path))
    assert len(found) / audio.SAMPLE_RATE == pytest.approx(1.5, abs=0.3 if suffix == "m4a" and rate == 8_000 else 0.15)
    middle = found[8_000:16_000]
    assert loudest_hertz(middle) == pytest.approx(440, abs=2)
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


@given(st.lists(st.integers(-32_768, 32_767), min_size=1, max_size=500), st.sampled_from(["WAV", "FLAC"]))
@settings(max_examples=60)
def test_16_khz_mono_pcm16_comes_out_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[int], kind: str
) -> None:
    path = tmp_path_factory.mktemp("exact") / f"clip.{kind.lower()}"
    pcm = np.array(values, np.int16)
    soundfile.write(path, pcm, 16_000, subtype="PCM_16", format=kind)
    assert audio.decode(path) == pcm.tobytes()


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000, 96_000])
def test_length_after_resampling_is_that_of_the_original(tmp_path: Path, rate: int) -> None:
    seconds = 5.0  # more than one block at every rate above 13 kHz
    soundfile.write(tmp_path / "long.wav", tone(300, seconds, rate), rate)
    assert abs(len(heard(audio.decode(tmp_path / "long.wav"))) - seconds * 16_000) <= 1


def test_resampling_leaves_no_trace_of_the_block_seams(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", tone(1_000, 6, 48_000), 48_000, subtype="FLOAT")
    found = heard(audio.decode(tmp_path / "long.wav"))
    error = (found - tone(1_000, 6, 16_000))[800:-800]
    assert np.abs(error).max() < 2 / 32_768  # rounding is half a step; a seam would be far more


def test_what_16_khz_cannot_carry_is_removed_not_folded_back(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "high.wav", tone(11_000, 2, 48_000) + tone(500, 2, 48_000, 0.1), 48_000, subtype="FLOAT")
    found = heard(audio.decode(tmp_path / "high.wav"))[8_000:24_000]
    spectrum = np.abs(np.fft.rfft(found * np.hanning(len(found))))
    assert loudest_hertz(found) == pytest.approx(500, abs=2)
    folded = spectrum[4_900:5_100].max()  # 11 kHz would come back at 5 kHz; one bin is one hertz
    assert folded < spectrum.max() * 10 ** (-80 / 20)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left = tone(300, 1, 16_000)
    soundfile.write(tmp_path / "left.wav", np.stack([left, np.zeros_like(left)], axis=1), 16_000, subtype="FLOAT")
    assert np.abs(heard(audio.decode(tmp_path / "left.wav"))).max() == pytest.approx(0.25, abs=0.001)


def test_too_loud_is_clipped_not_wrapped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", np.array([2.0, -2.0, 0.0]), 16_000, subtype="FLOAT")
    assert audio.decode(tmp_path / "loud.wav") == np.array([32_767, -32_768, 0], "<i2").tobytes()


def test_parts_are_joined_after_their_silences(tmp_path: Path) -> None:
    one, two = np.array([1, 2, 3], np.int16), np.array([-5, -6], np.int16)
    soundfile.write(tmp_path / "one.wav", one, 16_000)
    soundfile.write(tmp_path / "two.flac", two, 16_000)
    clip = Clip(
        "joined", parts=((tmp_path / "one.wav", 0.001), (tmp_path / "two.flac", 0.0005), (tmp_path / "one.wav", 0.0))
    )
    expected = np.concatenate([np.zeros(16, np.int16), one, np.zeros(8, np.int16), two, one])
    assert audio.load(clip) == expected.tobytes()


def test_a_single_file_is_loaded_as_it_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "one.wav", np.array([1, 2, 3], np.int16), 16_000)
    assert audio.load(Clip("one", tmp_path / "one.wav")) == np.array([1, 2, 3], "<i2").tobytes()


def test_an_utterance_without_audio_is_named() -> None:
    with pytest.raises(audio.AudioError, match="utterance lonely: it has neither audio nor parts"):
        audio.load(Clip("lonely"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(audio.AudioError, match=r"gone\.wav: no such audio file"):
        audio.decode(tmp_path / "gone.wav")


def test_a_file_that_is_not_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "words.wav").write_text("these are words " * 100)
    with pytest.raises(audio.AudioError, match=r"words\.wav: not an audio file that can be decoded"):
        audio.decode(tmp_path / "words.wav")


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.mp3").touch()
    with pytest.raises(audio.AudioError, match=r"empty\.mp3"):
        audio.decode(tmp_path / "empty.mp3")


def test_audio_without_samples_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0, np.int16), 16_000)
    with pytest.raises(audio.AudioError, match=r"nothing\.wav: no samples in it"):
        audio.decode(tmp_path / "nothing.wav")


def test_a_truncated_flac_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    soundfile.write(tmp_path / "whole.flac", random.integers(-9_000, 9_000, 80_000).astype(np.int16), 16_000)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(audio.AudioError, match=r"cut\.flac"):
        audio.decode(tmp_path / "cut.flac")


def test_a_picture_of_sound_has_no_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(audio.AudioError, match=r"mute\.mp4: there is no sound in it"):
        audio.decode(tmp_path / "mute.mp4")
