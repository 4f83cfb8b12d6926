"""Files of encoded audio, made by FFmpeg's encoders and the standard library, for tests to upload."""

from __future__ import annotations

import io
import wave
from typing import Any

import av
import numpy as np

_ENCODERS = {
    # format -> muxer, encoder, its rate (None: the audio's own), options
    "mp3": ("mp3", "libmp3lame", None, {}),
    "flac": ("flac", "flac", None, {}),
    "m4a": ("mp4", "aac", None, {"b": "64000"}),
    "ogg": ("ogg", "libopus", 48_000, {}),
    "vorbis": ("ogg", "vorbis", None, {"strict": "-2"}),
    "aac": ("adts", "aac", None, {"b": "64000"}),
    "webm": ("webm", "libopus", 48_000, {}),
}
FORMATS = ("wav", "mp3", "flac", "m4a", "ogg")


def wav_file(pcm: bytes, rate: int = 16_000, channels: int = 1) -> bytes:
    """A WAV file of 16-bit samples, channels interleaved."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(pcm)
    return file.getvalue()


def stereo(left: bytes, right: bytes) -> bytes:
    """Two channels of equal length, interleaved."""
    return np.stack([np.frombuffer(left, "<i2"), np.frombuffer(right, "<i2")], axis=1).tobytes()


def audio_file(pcm: bytes, format: str, rate: int = 16_000, channels: int = 1, fragmented: bool = False) -> bytes:
    """The audio (16-bit, channels interleaved) as a file of the format: one of FORMATS, ``vorbis``, ``aac`` or ``webm``."""
    if format == "wav":
        return wav_file(pcm, rate, channels)
    muxer, encoder, own_rate, options = _ENCODERS[format]
    file = io.BytesIO()
    layout = "stereo" if channels == 2 else "mono"
    movflags = {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if fragmented else {}
    container: Any
    with av.open(file, "w", format=muxer, options=movflags) as container:
        stream = container.add_stream(encoder, rate=own_rate or rate, layout=layout, options=options)
        frame = av.AudioFrame.from_ndarray(np.frombuffer(pcm, "<i2").reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()
