"""Which recordings stay, and what a disk that is too slow costs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.events import Audio, Finish, Start
from server.metrics import Metrics
from server.observers.capture import AudioStore, Retention, file_name
from server.observers.writing import Writer

DAY = 86400.0
FILES = st.lists(st.tuples(st.floats(0, 10 * DAY), st.integers(0, 1000)), max_size=20).map(sorted)
LIMITS = st.builds(
    Retention,
    st.none() | st.floats(0.1, 10),
    st.none() | st.integers(1, 10),
    st.none() | st.integers(1, 5000),
)


@pytest.mark.spec("operations-45")
@given(FILES, LIMITS)
def test_what_stays_keeps_every_limit_and_one_more_would_not(found: list[tuple[float, int]], limits: Retention) -> None:
    now = 10 * DAY
    gone = limits.superfluous(found, now)

    def fits(files: Sequence[tuple[float, int]]) -> bool:
        return (
            (limits.age_days is None or all(at >= now - limits.age_days * DAY for at, _ in files))
            and (limits.files is None or len(files) <= limits.files)
            and (limits.total_bytes is None or sum(size for _, size in files) <= limits.total_bytes)
        )

    assert 0 <= gone <= len(found)
    assert fits(found[gone:])
    if gone:
        assert not fits(found[gone - 1 :])


@pytest.mark.spec("operations-44")
def test_a_full_lane_drops_its_oldest_and_leaves_other_lanes_alone() -> None:
    writing, go_on, over = threading.Event(), threading.Event(), threading.Event()
    told: dict[str, list[bytes]] = {"slow": [], "other": []}

    def slowly(pieces: Sequence[bytes]) -> None:
        writing.set()
        go_on.wait(20)
        told["slow"] += pieces

    writer = Writer("test", lambda error: pytest.fail(str(error)))
    slow, other = writer.lane(slowly, over.set, 3), writer.lane(told["other"].extend, lambda: None, 0)
    assert slow.put(b"first") == 0
    assert writing.wait(20)
    assert [slow.put(bytes([number])) for number in range(5)] == [0, 0, 0, 1, 1]
    assert [other.put(bytes([number])) for number in range(100)] == [0] * 100
    slow.end()
    go_on.set()
    assert over.wait(20)
    assert writer.stop()
    assert told == {"slow": [b"first", b"\2", b"\3", b"\4"], "other": [bytes([number]) for number in range(100)]}
    assert slow.put(b"late") == 1, "what comes after the end is lost, and that is told"


@pytest.mark.spec("operations-44")
def test_what_a_stream_loses_is_counted(tmp_path: Path) -> None:
    metrics = Metrics()
    store = AudioStore(tmp_path, 2, Retention(), metrics)
    stream = store.watch("yap", "127.0.0.1")
    assert stream is not None
    with store.writer.changed:  # the writer cannot take anything meanwhile
        stream.command(Start("one"), 0.0)
        for number in range(5):
            stream.command(Audio(bytes([number, 0])), 0.1)
        stream.command(Finish(), 0.2)
        stream.closed()
    store.stop()
    dropped = next(
        sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "earmark_capture_dropped_chunks_total"
    )
    assert dropped == 3
    [path] = tmp_path.glob("*.wav")
    assert path.read_bytes()[44:] == b"\3\0\4\0", "the newest are kept"


@pytest.mark.spec("operations-50")
def test_one_lane_that_cannot_be_written_does_not_end_the_others() -> None:
    failed: list[str] = []
    told: list[bytes] = []

    def full(_: Sequence[bytes]) -> None:
        raise OSError("no space left on device")

    writer = Writer("test", lambda error: failed.append(str(error)))
    broken, well = writer.lane(full, lambda: None, 0), writer.lane(told.extend, lambda: None, 0)
    broken.put(b"x")
    well.put(b"y")
    broken.end()
    assert writer.stop()
    assert failed == ["no space left on device"]
    assert told == [b"y"]
    assert broken.put(b"z") == 1


@pytest.mark.spec("operations-43")
@given(st.text(max_size=200), st.floats(0, 2**31))
def test_any_name_is_a_plain_file_name(stream: str, at: float) -> None:
    name = file_name(stream, at)
    stamp, _, rest = name.partition("_")
    assert len(stamp) == 15
    assert 1 <= len(rest) <= 80
    assert rest == rest.strip("_")
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in name)
