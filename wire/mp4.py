"""MP4 files as far as it takes to hand them to a decoder safely: their boxes, and how many pieces their indexes claim (ISO 14496-12)."""

from __future__ import annotations

from collections.abc import Iterator

_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_MOST_BOXES = 1_000_000
_LEAST_PIECE_BYTES = 4
"""On the average over a file, of anything that is encoded; AAC needs 6 for a frame of silence."""
_SPARE_PIECES = 10_000


def without_half_index(file: bytes) -> bytes:
    """A fragmented file without the index of a fragment (``moof``) in which it was cut off; decoders refuse such a file as a whole."""
    for name, start, end in _boxes(file, 0, len(file)):
        if name == b"moof" and end > len(file):
            return file[:start]
    return file


def claims_too_much(file: bytes) -> bool:
    """Whether the indexes name far more pieces of sound than the file has bytes for.

    Decoders set memory aside for every piece that is named, and a few bytes can name two thousand million.
    """
    most = len(file) // _LEAST_PIECE_BYTES + _SPARE_PIECES
    seen = 0
    waiting = [(0, len(file))]
    while waiting:
        for name, start, end in _boxes(file, *waiting.pop()):
            seen += 1
            if seen > _MOST_BOXES:
                return True
            if name in _CONTAINERS:
                waiting.append((start + 8, min(end, len(file))))
            elif name == b"trun":  # version and flags, number of pieces
                most -= _number(file, start + 12)
            elif name == b"stsz" and _number(
                file, start + 12
            ):  # version and flags, size of all, number; 0: sizes follow
                most -= _number(file, start + 16)
        if most < 0:
            return True
    return False


def _boxes(file: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of the boxes that stand there one behind the other; the last one may claim to be longer than that."""
    while start + 8 <= end:
        size = _number(file, start)
        if size == 1:  # the length of 8 bytes stands behind the name
            size = int.from_bytes(file[start + 8 : start + 16], "big")
        elif size == 0:  # to the end
            size = end - start
        if size < 8:
            return
        yield file[start + 4 : start + 8], start, start + size
        start += size


def _number(file: bytes, at: int) -> int:
    return int.from_bytes(file[at : at + 4], "big")
