"""A whole recording in one request: what is sent, and what a refusal says."""

from __future__ import annotations

import struct

import msgspec

from harness.drivers.base import Answer, Fault
from wire.pcm import BYTES_PER_SAMPLE

BUSY = (429, 503)


def wav(pcm: bytes, rate: int) -> bytes:
    """PCM16 mono as a WAV file: RIFF with a ``fmt `` chunk of format 1 (PCM) and a ``data`` chunk."""
    described = struct.pack("<HHIIHH", 1, 1, rate, rate * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    chunks = b"fmt " + struct.pack("<I", len(described)) + described + b"data" + struct.pack("<I", len(pcm)) + pcm
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def refusal(answer: Answer, key_variable: str) -> Fault:
    """What an answer that is no success says: ``{"error": {"code", "message"}}``, ``{"detail"}``, or its beginning."""
    code, text = f"HTTP {answer.status}", answer.body[:300].decode(errors="replace").strip()
    try:
        told = msgspec.json.decode(answer.body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        told = None
    match told:
        case {"error": {"message": str(message), **rest}}:
            code_of = rest.get("code") or rest.get("type")
            text = f"{code_of}: {message}" if isinstance(code_of, str) else message
        case {"error": str(message)} | {"detail": str(message)} | {"message": str(message)}:
            text = message
    if answer.status in (401, 403):
        text += f" (is the key right? it comes from --api-key or {key_variable})"
    return Fault(code, text, refused=answer.status in BUSY)
