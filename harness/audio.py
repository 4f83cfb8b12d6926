"""From any common audio file to what servers are fed: 16 kHz mono PCM16, little-endian bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import av
import av.error
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

SAMPLE_RATE = 16_000
SAMPLE_BYTES = 2
BLOCK_FRAMES = 65_536
QUALITY = "VHQ"  # soxr's best; resampling happens before a replay starts, so its cost is never measured

Samples = npt.NDArray[np.float32]  # -1..1, one dimension


class AudioError(ValueError):
    """A file cannot be decoded; the message names it."""


class Playable(Protocol):
    """What of an utterance is needed to hear it; ``harness.corpus.Utterance`` is one."""

    @property
    def id(self) -> str:
        """Named in errors."""

    @property
    def audio(self) -> Path | None:
        """The file, unless there are parts."""

    @property
    def parts(self) -> Sequence[tuple[Path, float]]:
        """Files, each with the seconds of silence before it."""


def load(utterance: Playable) -> bytes:
    """The utterance's audio; of one in parts, the parts joined, each after its silence (rounded to whole samples).

    Raises AudioError, naming the file, when a file is missing, is not audio or holds no samples.
    """
    if not utterance.parts:
        if utterance.audio is None:
            raise AudioError(f"utterance {utterance.id}: it has neither audio nor parts")
        return decode(utterance.audio)
    decoded: dict[Path, bytes] = {}  # a long recording may use a part twice
    joined = bytearray()
    for path, gap_seconds in utterance.parts:
        if path not in decoded:
            decoded[path] = decode(path)
        joined += bytes(SAMPLE_BYTES * round(gap_seconds * SAMPLE_RATE))
        joined += decoded[path]
    return bytes(joined)


def decode(path: Path) -> bytes:
    """The first sound track of the file, its channels averaged, resampled, rounded to 16 bits and clipped.

    16 kHz mono PCM16 and FLAC come out bit for bit. Memory beyond the result is bounded whatever the length.
    """
    if not path.is_file():
        raise AudioError(f"{path}: no such audio file")
    try:
        rate, blocks = _by_soundfile(path)
    except soundfile.LibsndfileError:
        rate, blocks = _by_ffmpeg(path)
    pcm = bytearray()
    for block in blocks if rate == SAMPLE_RATE else _resampled(blocks, rate):
        pcm += np.clip(np.rint(block * 32_768.0), -32_768, 32_767).astype("<i2").tobytes()
    if not pcm:
        raise AudioError(f"{path}: no samples in it")
    return bytes(pcm)


def resample(pcm: bytes, rate: int) -> bytes:
    """16 kHz PCM16 at another sample rate. A sample at time t stays at time t, to the nearest one at the end."""
    if rate == SAMPLE_RATE:
        return pcm
    samples = np.frombuffer(pcm, "<i2").astype(np.float32)
    resampled = soxr.resample(samples, SAMPLE_RATE, rate, quality=QUALITY)
    whole: bytes = np.clip(np.rint(resampled), -32_768, 32_767).astype("<i2").tobytes()
    return whole


class Resampler:
    """PCM16 from one rate to another as it comes, what soxr keeps back at first included in what it gives at the end."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        self._stream = (
            None if from_rate == to_rate else soxr.ResampleStream(from_rate, to_rate, 1, dtype="int16", quality=QUALITY)
        )

    def feed(self, pcm: bytes, *, last: bool = False) -> bytes:
        """What is ready by now."""
        if self._stream is None:
            return pcm
        ready: bytes = self._stream.resample_chunk(np.frombuffer(pcm, "<i2"), last=last).astype("<i2").tobytes()
        return ready


def _by_soundfile(path: Path) -> tuple[int, Iterator[Samples]]:
    """WAV, FLAC, Ogg, MP3, AIFF. Raises LibsndfileError for what libsndfile does not know."""
    file = soundfile.SoundFile(path)

    def blocks() -> Iterator[Samples]:
        with file:
            try:
                for block in file.blocks(BLOCK_FRAMES, dtype="float32", always_2d=True):
                    yield block.mean(axis=1) if block.shape[1] > 1 else block[:, 0]
            except soundfile.LibsndfileError as error:
                raise AudioError(f"{path}: broken audio ({error.error_string})") from error

    return file.samplerate, blocks()


def _by_ffmpeg(path: Path) -> tuple[int, Iterator[Samples]]:
    """Everything else: M4A, AAC, WebM, Opus in odd containers, the sound of a video."""
    try:
        container = av.open(str(path))
    except av.error.FFmpegError as error:
        raise AudioError(f"{path}: not an audio file that can be decoded ({error.strerror})") from error
    if not container.streams.audio:
        container.close()
        raise AudioError(f"{path}: there is no sound in it")
    stream = container.streams.audio[0]

    def blocks() -> Iterator[Samples]:
        to_planar_float = av.AudioResampler(format="fltp")
        try:
            with container:
                for frame in container.decode(stream):
                    for converted in to_planar_float.resample(frame):
                        yield converted.to_ndarray().mean(axis=0, dtype=np.float32)
        except av.error.FFmpegError as error:
            raise AudioError(f"{path}: broken audio ({error.strerror})") from error

    return stream.rate, blocks()


def _resampled(blocks: Iterator[Samples], rate: int) -> Iterator[Samples]:
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality=QUALITY)
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)
