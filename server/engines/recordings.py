"""Whole recordings as engines take them: PCM16 of one channel at 16 kHz, and the WAV file around it."""

from __future__ import annotations

import io
import math
import wave
from collections.abc import Sequence

from server.engines.base import UnsupportedError

SAMPLE_RATE = 16000
SAMPLE_BYTES = 2

_MOST_TEXT = 64
_MOST_TEXT_PER_SECOND = 25


def seconds_of(pcm: bytes) -> float:
    """How long it lasts."""
    return len(pcm) / (SAMPLE_RATE * SAMPLE_BYTES)


def most_text_tokens(pcm: bytes) -> int:
    """More tokens of text than this are not what was said in a recording, but a model that runs in circles."""
    return _MOST_TEXT + math.ceil(_MOST_TEXT_PER_SECOND * seconds_of(pcm))


def check_samples(pcm: bytes) -> None:
    """Raises UnsupportedError for half a sample."""
    if len(pcm) % SAMPLE_BYTES:
        raise UnsupportedError(f"{len(pcm)} bytes are no whole number of 16-bit samples")


def check_question(question: str, audios: Sequence[bytes], most_audios: int) -> None:
    """Raises UnsupportedError for a question without words, for too many recordings, for empty ones or half samples in one."""
    if not question.strip():
        raise UnsupportedError("the question is empty")
    if len(audios) > most_audios:
        raise UnsupportedError(f"at most {most_audios} recordings go with a question, got {len(audios)}")
    for number, pcm in enumerate(audios, 1):
        if not pcm:
            raise UnsupportedError(f"recording {number} of {len(audios)} is empty")
        check_samples(pcm)


def wav_of(pcm: bytes) -> bytes:
    """The recording as a file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(SAMPLE_BYTES)
        writer.setframerate(SAMPLE_RATE)
        writer.writeframes(pcm)
    return file.getvalue()
