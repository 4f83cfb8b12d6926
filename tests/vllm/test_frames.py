"""Frames hold every sample once beside the overlaps that were asked for, however the audio is cut."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.engines.vllm.frames import Frames, FrameShape, Samples
from server.engines.vllm.mark import MARK_SCALE, mark

SHAPE = FrameShape(first_tokens=5, left_padding=3 * 1280, right_padding=4 * 1280)


def pcm(samples: int) -> bytes:
    """Samples that tell where they lie."""
    return (np.arange(samples) % 30000 + 1).astype("<i2").tobytes()


def all_frames(shape: FrameShape, audio: bytes, cuts: list[int]) -> list[Samples]:
    frames, taken = Frames(shape), []
    position = 0
    for cut in [*cuts, len(audio)]:
        frames.append(audio[position : 2 * (cut // 2)])
        position = max(position, 2 * (cut // 2))
        while (frame := frames.next()) is not None:
            taken.append(frame)
    frames.finish()
    while (frame := frames.next()) is not None:
        taken.append(frame)
    assert frames.exhausted
    return taken


@given(
    st.integers(0, 20000),
    st.lists(st.integers(0, 40000), max_size=20).map(sorted),
    st.integers(1, 8),
    st.integers(0, 4),
)
def test_each_frame_is_the_slice_of_the_padded_audio_that_its_step_asks_for(
    samples: int, cuts: list[int], first_tokens: int, left_tokens: int
) -> None:
    shape = FrameShape(first_tokens, left_tokens * 1280, 12 * 1280)
    audio = pcm(samples)
    padded = np.concatenate(
        [
            np.zeros(shape.left_padding, np.float32),
            np.frombuffer(audio, "<i2").astype(np.float32) / 32768,
            np.zeros(shape.right_padding, np.float32),
        ]
    )
    ends = range(first_tokens * 1280, len(padded) - 40 + 1, 1280)
    starts = [0, *ends][: len(ends)]
    taken = all_frames(shape, audio, [min(cut, len(audio)) for cut in cuts])
    assert len(taken) == len(ends)
    for frame, start, end in zip(taken, starts, ends, strict=True):
        assert np.array_equal(frame, padded[max(start - 840, 0) : end + 40])


def test_a_mark_stands_behind_every_frame() -> None:
    frames = Frames(SHAPE, mark(12))
    frames.append(pcm(3 * 1280 + 40))
    first, second = frames.next(), frames.next()
    assert first is not None
    assert second is not None
    assert len(first) == 5 * 1280 + 40 + 1
    assert len(second) == 840 + 1280 + 40 + 1
    assert first[-1] * MARK_SCALE == second[-1] * MARK_SCALE == 12


@given(st.integers(0, 30))
def test_marks_survive_half_precision(delay: int) -> None:
    assert round(float(np.float16(mark(delay))) * MARK_SCALE) == delay
    bits = np.float32(mark(delay)).view(np.uint32)
    assert bits & 0xFFFF == 0, "exact in bfloat16, which keeps the upper half"


def test_taken_audio_grows_with_what_is_kept_for_the_first_step_then_with_the_steps() -> None:
    frames = Frames(SHAPE)
    frames.append(pcm(1000))
    assert frames.taken_seconds == 1000 / 16000
    frames.append(pcm(2 * 1280 + 40 - 1000))
    assert frames.taken_seconds == 0.16
    assert frames.next() is not None
    assert frames.taken_seconds == 0.16
    assert frames.next() is None
    frames.append(pcm(1280))
    assert frames.next() is not None
    assert frames.taken_seconds == 0.24
    assert frames.fed_seconds == (3 * 1280 + 40) / 16000


def test_padding_is_no_audio() -> None:
    frames = Frames(SHAPE)
    frames.append(pcm(100))
    frames.finish()
    while frames.next() is not None:
        pass
    assert frames.taken_seconds == frames.fed_seconds == 100 / 16000
