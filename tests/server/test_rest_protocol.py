"""The memory of a chunk stream: what a chunk may continue, to the byte."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from server.protocols.rest import Attempt, Continuation
from tests.audio_files import wav_file

MOST = 1000


def raw(pcm: bytes, channels: int = 1) -> bytes:
    return wav_file(pcm, channels=channels)


def test_a_first_chunk_is_only_itself() -> None:
    assert Continuation(MOST).attempts(b"abc", "mp3") == [Attempt(b"abc")]


def test_a_later_chunk_may_continue_the_bytes_before_it() -> None:
    before = Continuation(MOST)
    before.took(Attempt(b"one"), "mp3", 320)
    alone, joined = before.attempts(b"two", "mp3")
    assert (alone, joined) == (Attempt(b"two"), Attempt(b"onetwo", 320, continues=True))
    before.took(joined, "mp3", 500)
    assert before.attempts(b"three", "mp3")[1] == Attempt(b"onetwothree", 500, continues=True)
    before.took(Attempt(b"anew"), "mp3", 10)
    assert before.attempts(b"!", "mp3")[1] == Attempt(b"anew!", 10, continues=True)


def test_another_format_continues_nothing() -> None:
    before = Continuation(MOST)
    before.took(Attempt(b"one"), "mp3", 320)
    assert before.attempts(b"two", "ogg") == [Attempt(b"two")]
    assert before.hint(b"two", "ogg") == ""


def test_a_continued_file_is_bounded() -> None:
    before = Continuation(MOST)
    before.took(Attempt(bytes(900)), "flac", 320)
    assert len(before.attempts(bytes(100), "flac")) == 2
    assert before.hint(bytes(100), "flac") == ""
    assert before.attempts(bytes(101), "flac") == [Attempt(bytes(101))]
    assert "begin a new file" in before.hint(bytes(101), "flac")
    unbounded = Continuation(None)
    unbounded.took(Attempt(bytes(900)), "flac", 320)
    assert len(unbounded.attempts(bytes(10_000), "flac")) == 2


@given(
    st.binary(min_size=8, max_size=400).map(lambda pcm: pcm[: len(pcm) // 8 * 8]),
    st.lists(st.integers(1, 60), max_size=20),
    st.sampled_from([1, 2, 4]),
)
def test_a_wav_cut_anywhere_behind_its_header_loses_and_doubles_no_byte(
    pcm: bytes, cuts: list[int], channels: int
) -> None:
    file = raw(pcm, channels)
    frame = 2 * channels
    before = Continuation(10)  # which a WAV's continuation does not need
    first = file[: 44 + (cuts[0] if cuts else len(pcm))]
    [attempt] = before.attempts(first, "wav")
    heard = whole(attempt.data[44:], frame)
    before.took(attempt, "wav", len(heard))
    at = len(first)
    for cut in [*cuts[1:], len(file)]:
        piece = file[at : at + cut]
        at += len(piece)
        if not piece:
            break
        attempt = before.attempts(piece, "wav")[-1]
        assert attempt.data[:4] == b"RIFF"
        assert struct.unpack_from("<I", attempt.data, 40)[0] == 0xFFFFFFFF
        assert attempt.known_bytes == 0
        heard += whole(attempt.data[44:], frame)
        before.took(attempt, "wav", len(heard))
    assert heard == pcm[: len(pcm) // frame * frame]


def whole(samples: bytes, frame: int) -> bytes:
    return samples[: len(samples) // frame * frame]


def test_a_wav_header_is_kept_with_what_stands_before_its_samples() -> None:
    plain = raw(bytes(4))
    listed = plain[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\x00" + plain[36:]
    before = Continuation(MOST)
    before.took(Attempt(listed), "wav", 4)
    [_, joined] = before.attempts(b"\x01\x02", "wav")
    assert joined.data[:4] == b"RIFF"
    assert joined.data[-2:] == b"\x01\x02"
    assert joined.data.count(b"LIST") == 1
    assert len(joined.data) == len(listed) - 4 + 2


def test_a_new_wav_file_that_is_broken_is_not_taken_for_samples() -> None:
    before = Continuation(MOST)
    before.took(Attempt(raw(bytes(4))), "wav", 4)
    assert before.attempts(raw(b"")[:44], "wav") == [Attempt(raw(b"")[:44])]


def test_a_file_that_is_no_wav_under_that_name_is_continued_as_what_it_is() -> None:
    before = Continuation(MOST)
    before.took(Attempt(b"OggS..."), "wav", 64)
    assert before.attempts(b"more", "wav")[1] == Attempt(b"OggS...more", 64, continues=True)
