"""What the engine and its recogniser processes say to each other over a stream socket."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum

import msgspec

from wire.words import TimedWord

__all__ = [
    "Failure",
    "Frames",
    "Kind",
    "Opening",
    "Progress",
    "decode_failure",
    "decode_opening",
    "decode_progress",
    "frame",
]

HEADER = struct.Struct("<IIB")  # bytes of payload, number of the stream, kind
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024


class Kind(IntEnum):
    """What a frame's payload is."""

    # to the recogniser
    OPEN = 1  # Opening
    AUDIO = 2  # PCM16
    FINISH = 3  # nothing
    ABORT = 4  # nothing
    # from the recogniser
    READY = 16  # nothing; the first frame of a process
    PROGRESS = 17  # Progress
    DONE = 18  # nothing
    FAILED = 19  # Failure


class Opening(msgspec.Struct, frozen=True, array_like=True):
    """The delay behind which words are committed, in steps of 80 ms."""

    delay_steps: int


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """The fields of ``server.core.events.Heard`` without the segment."""

    audio_seconds: float
    committed: str
    tentative: str
    words: tuple[TimedWord, ...]


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why the stream is lost."""

    message: str


_encoder = msgspec.msgpack.Encoder()
decode_opening = msgspec.msgpack.Decoder(Opening).decode
decode_progress = msgspec.msgpack.Decoder(Progress).decode
decode_failure = msgspec.msgpack.Decoder(Failure).decode


def frame(kind: Kind, stream: int, payload: bytes | Opening | Progress | Failure = b"") -> bytes:
    """One frame as bytes."""
    body = payload if isinstance(payload, bytes) else _encoder.encode(payload)
    return HEADER.pack(len(body), stream, kind) + body


class Frames:
    """Cuts what arrives from a socket into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def receive(self, data: bytes) -> Iterator[tuple[Kind, int, bytes]]:
        """The frames that ``data`` completes: kind, stream, payload.

        Raises:
            ValueError: when the peer speaks something else.
        """
        self._pending += data
        start = 0
        try:
            while len(self._pending) - start >= HEADER.size:
                length, stream, kind = HEADER.unpack_from(self._pending, start)
                if length > MAX_PAYLOAD_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                end = start + HEADER.size + length
                if len(self._pending) < end:
                    return
                payload = bytes(self._pending[start + HEADER.size : end])
                start = end
                yield Kind(kind), stream, payload
        finally:
            del self._pending[:start]
