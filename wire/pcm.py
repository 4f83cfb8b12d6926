"""PCM16 audio as it travels: mono, little-endian, 16 000 samples a second, raw or in base64."""

from __future__ import annotations

import pybase64

from wire.errors import WireError

SAMPLE_RATE = 16_000
BYTES_PER_SAMPLE = 2
BYTES_PER_SECOND = SAMPLE_RATE * BYTES_PER_SAMPLE


def seconds_of(byte_count: int) -> float:
    """Duration in seconds of ``byte_count`` bytes of PCM16."""
    return byte_count / BYTES_PER_SECOND


def bytes_of(seconds: float) -> int:
    """The whole number of samples nearest to ``seconds``, in bytes (always even)."""
    return round(seconds * SAMPLE_RATE) * BYTES_PER_SAMPLE


def encode_base64(pcm: bytes) -> str:
    """PCM as the base64 text that JSON protocols carry."""
    return pybase64.b64encode_as_string(pcm)


def decode_base64(text: str) -> bytes:
    """The PCM in ``text``.

    Raises:
        WireError: reason ``invalid_audio`` when the text is not base64, or holds no whole number of samples, or none.
    """
    try:
        pcm = pybase64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one, and so is the complaint about non-ASCII text
        raise WireError("invalid_audio", "audio is not valid base64") from error
    check_samples(pcm)
    return pcm


def check_samples(pcm: bytes) -> None:
    """Refuse PCM that is not a positive whole number of samples.

    Raises:
        WireError: reason ``invalid_audio``.
    """
    if not pcm:
        raise WireError("invalid_audio", "audio holds no samples")
    if len(pcm) % BYTES_PER_SAMPLE:
        raise WireError("invalid_audio", f"audio is PCM16 and needs an even number of bytes, got {len(pcm)}")
