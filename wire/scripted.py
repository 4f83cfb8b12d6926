"""Audio that carries its own transcript, for the scripted engine: exact words at exact places, in ordinary PCM16.

A spoken word of n hundredths of a second is n frames of 160 samples (10 ms). Each frame starts with a 16-byte header and the
word itself, the rest is a quiet tone. A listener finds headers by their magic bytes, wherever chunks were cut, so audio
that was dropped or cut is a word not heard, as with a real recogniser.

Header, little-endian: magic (8 bytes), word index (u16), frame number in the word (u16), frames in the word (u16),
UTF-8 length of the word (u16); then the text, at most 304 bytes.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from wire.pcm import SAMPLE_RATE
from wire.words import TimedWord

FRAME_SAMPLES = 160
FRAME_BYTES = 2 * FRAME_SAMPLES
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
_HEADER = struct.Struct("<8sHHHH")
_MAGIC = b"\x01\x80EARMK\x00"
_TEXT_LIMIT = FRAME_BYTES - _HEADER.size
_TONE = array("h", (round(300 * math.sin(2 * math.pi * 400 * n / SAMPLE_RATE)) for n in range(FRAME_SAMPLES))).tobytes()


@dataclass(frozen=True, slots=True)
class WordFrame:
    """One 10 ms frame of a word. ``position`` is the byte in the searched buffer at which it starts."""

    position: int
    index: int
    frame: int
    frames: int
    text: str


def speak(words: Iterable[TimedWord], seconds: float) -> bytes:
    """PCM16 of ``seconds`` length in which every word fills its time, rounded to 10 ms frames; silence elsewhere.

    Raises:
        ValueError: a word that lies outside the audio, overlaps the one before, is shorter than one frame or has a text
            of more than 304 bytes.
    """
    pcm = bytearray(round(seconds * SAMPLE_RATE) * 2)
    free_from = 0
    for index, word in enumerate(words):
        first, last = round(word.start / FRAME_SECONDS), round(word.end / FRAME_SECONDS)
        text = word.text.encode()
        if len(text) > _TEXT_LIMIT:
            raise ValueError(f"word {index} has {len(text)} bytes of text, at most {_TEXT_LIMIT} fit a frame")
        if first < free_from or last <= first or last * FRAME_BYTES > len(pcm):
            raise ValueError(
                f"word {index} ({word.text!r}, {word.start}..{word.end} s) overlaps, is empty or lies outside"
            )
        for frame in range(last - first):
            body = _HEADER.pack(_MAGIC, index & 0xFFFF, frame, last - first, len(text)) + text
            at = (first + frame) * FRAME_BYTES
            pcm[at : at + FRAME_BYTES] = body + _TONE[len(body) :]
        free_from = last
    return bytes(pcm)


def frames(pcm: bytes | bytearray, start: int = 0) -> Iterator[WordFrame]:
    """The word frames in ``pcm`` from byte ``start`` on whose header and text are complete."""
    at = pcm.find(_MAGIC, start)
    while at != -1 and at + _HEADER.size <= len(pcm):
        _, index, frame, frame_count, length = _HEADER.unpack_from(pcm, at)
        text_at = at + _HEADER.size
        if length > _TEXT_LIMIT or text_at + length > len(pcm):
            return
        yield WordFrame(at, index, frame, frame_count, pcm[text_at : text_at + length].decode(errors="replace"))
        at = pcm.find(_MAGIC, at + FRAME_BYTES)
