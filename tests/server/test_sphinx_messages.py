"""Frames between the engine and its processes survive being cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engines.sphinx.messages import Frames, Kind, Progress, decode_progress, frame
from wire.words import TimedWord

# On a machine with other work a single example may take any time.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
FRAMES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**32 - 1), st.binary(max_size=40)), max_size=8)


@patient
@given(FRAMES, st.lists(st.integers(0, 400), max_size=20))
def test_what_is_framed_arrives_whole_however_the_stream_is_cut(
    sent: list[tuple[Kind, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(frame(*one) for one in sent)
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    frames = Frames()
    received = [one for start, end in pairwise(borders) for one in frames.receive(stream[start:end])]
    assert received == sent


def test_progress_keeps_words_and_times() -> None:
    progress = Progress(1.5, " zwölf", "uhr", (TimedWord("zwölf", 0.25, 1.01),))
    ((kind, stream, payload),) = Frames().receive(frame(Kind.PROGRESS, 7, progress))
    assert (kind, stream, decode_progress(payload)) == (Kind.PROGRESS, 7, progress)


def test_a_peer_that_speaks_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of"):
        list(Frames().receive(b"GET / HTTP/1.1\r\n"))
