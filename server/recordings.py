"""Files of encoded audio made into what engines hear: PCM16 of one channel at 16 kHz, within bounds, in worker threads.

What a file is, its content says, not its name. Nothing but its own bytes is ever opened.
"""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import av

from wire.pcm import BYTES_PER_SAMPLE, SAMPLE_RATE, seconds_of

__all__ = ["DecodingError", "Recording", "RecordingLimits", "decode", "format_of"]

_DECODERS = (
    *("aac", "alac", "flac", "mp1float", "mp2float", "mp3float", "mp2", "mp3", "opus", "libopus", "vorbis"),
    *("adpcm_ima_wav", "adpcm_ms", "pcm_alaw", "pcm_mulaw", "pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le"),
    *("pcm_s64le", "pcm_f32le", "pcm_f64le"),
)
_DEMUXERS = {
    "wav": "wav",
    "flac": "flac",
    "ogg": "ogg",
    "mp3": "mp3",
    "aac": "aac",
    "m4a": "mov",
    "webm": "matroska",
}
"""FFmpeg's name for each format's reader. It also has readers that fetch what a file points to; those are not among them."""

_threads = ThreadPoolExecutor(os.cpu_count() or 1, "decoding")


@dataclass(frozen=True, slots=True)
class RecordingLimits:
    """What is taken in. ``None`` leaves size or length unlimited; rates in samples a second."""

    most_bytes: int | None = 100 << 20
    most_seconds: float | None = 1800.0
    least_rate: int = 8_000
    most_rate: int = 48_000
    most_channels: int = 2


@dataclass(frozen=True, slots=True)
class Recording:
    """A decoded file. ``pcm`` is PCM16 (mono, 16 kHz, little-endian) and lasts ``seconds``.

    ``sample_rate``, ``channels`` and ``format`` (one of ``wav``, ``flac``, ``ogg``, ``mp3``, ``aac``, ``m4a``, ``webm``) are the
    file's own. ``damaged_packets`` could not be decoded and are missing from the audio.
    """

    pcm: bytes = field(repr=False)
    seconds: float
    sample_rate: int
    channels: int
    format: str
    damaged_packets: int = 0


class DecodingError(ValueError):
    """The file is not taken. ``message`` is for people; ``code`` says why:

    ``empty`` (no bytes, or no sound in them), ``too_large`` (bytes), ``too_long`` (seconds), ``not_audio`` (unknown, broken, or a codec
    that is not read), ``unsupported_rate``, ``unsupported_channels``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def decode(data: bytes, limits: RecordingLimits | None = None) -> Recording:
    """Decode a whole file in a worker thread; as many at once as there are cores, the others wait. Cancelling ends the work.

    A file that is PCM16, mono and 16 kHz inside WAV or FLAC comes out bit by bit as it went in. Stereo is mixed down to the mean
    of both channels. Size and length are held to while decoding: whatever a small file unpacks to, no more than
    ``limits.most_seconds`` of it are ever in memory.

    Raises:
        DecodingError: see there.
    """
    given_up = threading.Event()
    loop = asyncio.get_running_loop()
    try:
        return await loop.run_in_executor(_threads, _decode, data, limits or RecordingLimits(), given_up)
    except asyncio.CancelledError:
        given_up.set()
        raise


def format_of(data: bytes) -> str | None:
    """The format whose file begins like this, ``None`` when it is none of those that are read."""
    if data[:3] == b"ID3" and len(data) >= 10:  # tags before the sound; seven bits of each byte count
        size = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        return "flac" if data[size : size + 4] == b"fLaC" else "mp3"
    if data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"fLaC":
        return "flac"
    if data[:4] == b"OggS":
        return "ogg"
    if data[4:8] == b"ftyp":
        return "m4a"
    if data[:4] == b"\x1aE\xdf\xa3":
        return "webm"
    return _bare_frames(data)


def _bare_frames(data: bytes) -> str | None:
    """``mp3`` or ``aac`` when a frame starts here and, where there are more bytes than that, another one behind it."""
    for name, length_of in (("mp3", _mpeg_frame_bytes), ("aac", _adts_frame_bytes)):
        length = length_of(data[:7])
        if length and (len(data) < length + 7 or length_of(data[length : length + 7])):
            return name
    return None


_MPEG1_RATES = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MPEG2_RATES = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def _mpeg_frame_bytes(header: bytes) -> int:
    """Length of the MPEG layer III frame with this header, 0 when it is none (ISO 11172-3, 13818-3 and MPEG 2.5)."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, rate_index, frequency_index = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or rate_index in (0, 15) or frequency_index == 3:
        return 0
    first = version == 3
    kilobits = (_MPEG1_RATES if first else _MPEG2_RATES)[rate_index]
    frequency = (44_100, 48_000, 32_000)[frequency_index] >> {3: 0, 2: 1, 0: 2}[version]
    return (144_000 if first else 72_000) * kilobits // frequency + (header[2] >> 1 & 1)


def _adts_frame_bytes(header: bytes) -> int:
    """Length of the AAC frame with this ADTS header, 0 when it is none (ISO 13818-7)."""
    if len(header) < 7 or header[0] != 0xFF or header[1] & 0xF6 != 0xF0 or header[2] >> 2 & 15 > 12:
        return 0
    length = (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    return length if length > 7 else 0


# ---- in a worker thread


def _decode(data: bytes, limits: RecordingLimits, given_up: threading.Event) -> Recording:
    if not data:
        raise DecodingError("empty", "the file is empty")
    if limits.most_bytes is not None and len(data) > limits.most_bytes:
        raise DecodingError(
            "too_large", f"the file has {len(data)} bytes, at most {limits.most_bytes} are taken; send it in parts"
        )
    format = format_of(data)
    if format is None:
        raise DecodingError("not_audio", f"this is no audio file that can be read: {', '.join(_DEMUXERS)} can")
    try:
        with av.open(
            io.BytesIO(data),
            "r",
            format=_DEMUXERS[format],
            container_options={"codec_whitelist": ",".join(_DECODERS)},
            metadata_errors="replace",
            io_open=_refuse,
        ) as container:
            return _Decoding(container, format, limits, given_up).run()
    except av.FFmpegError as error:
        raise DecodingError("not_audio", f"the {format} file cannot be decoded: {error.strerror}") from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """A file cannot have others opened."""
    del flags, options
    raise OSError(f"{url!r:.100} is not opened")


class _Decoding:
    """One file on its way. FFmpeg's objects have no types here."""

    def __init__(self, container: Any, format: str, limits: RecordingLimits, given_up: threading.Event) -> None:
        self._container = container
        self._format = format
        self._limits = limits
        self._given_up = given_up
        self._pcm = bytearray()
        self._resampler: Any = None
        self._shape: Any = None  # rate, channel layout and sample type of the frames that the resampler takes
        self._first: tuple[int, int] | None = None  # rate and channels
        self._damaged = 0

    def run(self) -> Recording:
        for frame in self._frames():
            if self._given_up.is_set():
                raise DecodingError("empty", "nobody waits for this file any more")
            shape = (frame.sample_rate, frame.layout.name, frame.format.name)
            if shape != self._shape:  # the first frame; or a file that is several behind one another
                self._begin(frame, shape)
            self._take(frame)
        self._take(None)
        if not self._pcm or self._first is None:
            raise DecodingError("empty", f"there is no sound in the {self._format} file")
        rate, channels = self._first
        return Recording(bytes(self._pcm), seconds_of(len(self._pcm)), rate, channels, self._format, self._damaged)

    def _frames(self) -> Iterator[Any]:
        streams = self._container.streams.audio
        if not streams:
            raise DecodingError(
                "not_audio", f"there is no audio in the {self._format} file, or in a codec not read here"
            )
        stream = streams[0]
        decoder = stream.codec_context
        if decoder is None or decoder.name not in _DECODERS:
            raise DecodingError("not_audio", f"the {self._format} file's codec is not read here")
        decoder.thread_count = 1
        packets = iter(self._container.demux(stream))
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:  # cut off or broken from here on
                self._damaged += 1
                packet = None
            try:
                yield from decoder.decode(packet)
            except av.EOFError:
                return
            except av.FFmpegError:
                self._damaged += 1
            if packet is None or packet.size == 0:  # the last, by which the decoder was told to give what it holds
                break
        if self._damaged and self._shape is None:
            raise DecodingError("not_audio", f"nothing in the {self._format} file can be decoded")

    def _begin(self, frame: Any, shape: Any) -> None:
        limits, rate, channels = self._limits, frame.sample_rate, frame.layout.nb_channels
        if not limits.least_rate <= rate <= limits.most_rate:
            raise DecodingError(
                "unsupported_rate",
                f"the sample rate is {rate} Hz, {limits.least_rate} to {limits.most_rate} are taken; resample it",
            )
        if not 1 <= channels <= limits.most_channels:
            raise DecodingError(
                "unsupported_channels",
                f"the file has {channels} channels, at most {limits.most_channels} are taken; mix it down",
            )
        self._take(None)
        self._shape = shape
        self._first = self._first or (rate, channels)
        self._resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)

    def _take(self, frame: Any) -> None:
        if self._resampler is None:
            return
        for resampled in self._resampler.resample(frame):
            if resampled is not None:
                self._pcm += memoryview(resampled.planes[0])[: resampled.samples * BYTES_PER_SAMPLE]
        most = self._limits.most_seconds
        if most is not None and seconds_of(len(self._pcm)) > most:
            raise DecodingError("too_long", f"the audio is longer than the {most:g} s that are taken; send it in parts")
