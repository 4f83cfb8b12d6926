"""What a corpus must know of an audio file without playing it: how long it is, and the hash of its bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import av
import av.error
import soundfile


class UnreadableAudioError(Exception):
    """The file is not audio that we can decode; the message names it."""


def stated_seconds(path: Path) -> float:
    """Length by the header where the container states samples, else by decoding (AAC, WebM: their headers are off by the padding)."""
    try:
        header = soundfile.info(path)
    except soundfile.LibsndfileError:
        return decoded_seconds(path)
    if header.frames <= 0:
        raise UnreadableAudioError(f"{path}: no samples in it")
    return float(header.frames / header.samplerate)


def decoded_seconds(path: Path) -> float:
    """Length by decoding the whole file."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise UnreadableAudioError(f"{path}: no sound in it")
            seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    except av.error.FFmpegError as error:
        raise UnreadableAudioError(f"{path}: not audio that can be decoded ({error.strerror})") from error
    if seconds <= 0:
        raise UnreadableAudioError(f"{path}: no samples in it")
    return float(seconds)


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
