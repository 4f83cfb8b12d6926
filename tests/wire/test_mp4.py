"""Boxes of MP4 files, written by hand."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.mp4 import claims_too_much, without_half_index


def box(name: bytes, content: bytes = b"", size: int | None = None) -> bytes:
    return struct.pack(">I4s", len(content) + 8 if size is None else size, name) + content


FTYP = box(b"ftyp", b"M4A \x00\x00\x00\x00")


def trun(count: int) -> bytes:
    return box(b"trun", struct.pack(">II", 1, count))


def stsz(size: int, count: int) -> bytes:
    return box(b"stsz", struct.pack(">III", 0, size, count))


def moov(table: bytes) -> bytes:
    return box(b"moov", box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", table)))))


def test_a_fragment_that_is_cut_in_its_index_goes() -> None:
    whole = FTYP + box(b"moov") + box(b"moof", bytes(20)) + box(b"mdat", bytes(100))
    assert without_half_index(whole) == whole
    assert without_half_index(whole[:-50]) == whole[:-50], "sound may be cut anywhere"
    assert without_half_index(whole + box(b"moof", bytes(20))[:-1]) == whole
    assert without_half_index(whole + box(b"moof")[:5]) == whole + box(b"moof")[:5], "no box yet"


@pytest.mark.parametrize("table", [stsz(0, 0xFFFFFFFF), stsz(0, 5), stsz(8, 10_000), b""])
def test_tables_that_are_believed(table: bytes) -> None:
    assert not claims_too_much(FTYP + moov(table))


@pytest.mark.parametrize("count", [10_100, 1 << 24, 0xFFFFFFFF])
def test_tables_that_are_not(count: int) -> None:
    assert claims_too_much(FTYP + moov(stsz(1, count)))
    assert claims_too_much(FTYP + box(b"moof", box(b"traf", trun(count))))


def test_many_fragments_are_counted_together() -> None:
    fragment = box(b"moof", box(b"traf", trun(3000)))
    assert not claims_too_much(FTYP + fragment * 3)
    assert claims_too_much(FTYP + fragment * 4)


def test_lengths_of_eight_bytes_and_to_the_end() -> None:
    large = struct.pack(">I4sQ", 1, b"mdat", 16 + 4) + bytes(4)
    assert without_half_index(FTYP + large + box(b"moof", b"", 9)) == FTYP + large
    assert claims_too_much(FTYP + struct.pack(">I4s", 0, b"moof") + box(b"traf", trun(99_999)))


def test_more_boxes_than_any_file_has_are_not_followed() -> None:
    assert claims_too_much(box(b"free") * 1_000_001)


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at_without_an_error(data: bytes) -> None:
    assert without_half_index(data) in (data, data[: len(without_half_index(data))])
    assert claims_too_much(data) in (True, False)
