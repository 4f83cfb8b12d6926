"""The bounded log: what it keeps, how it is read while it is written, and the supervisor that writes it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.lifecycle import log
from harness.lifecycle.log import BoundedLog
from harness.lifecycle.record import State
from harness.lifecycle.supervision import Waiting
from tests.end_to_end.running_server import clean_environment


def numbered(first: int, last: int, width: int = 20) -> list[bytes]:
    return [f"{number:0{width - 1}d}\n".encode() for number in range(first, last)]


def kept(path: Path) -> list[bytes]:
    return b"".join(file.read_bytes() for file in log.files(path)).splitlines(keepends=True)


@given(batches=st.lists(st.integers(0, 700), max_size=12))
def test_what_is_kept_is_the_newest_whole_lines_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "server.log"
    bounded = BoundedLog(path, 20_000)
    written = numbered(0, sum(batches))
    start = 0
    for size in batches:
        bounded.write(written[start : start + size])
        start += size
        assert sum(file.stat().st_size for file in log.files(path)) <= 20_000
    bounded.close()
    lines = kept(path)
    assert lines == written[len(written) - len(lines) :]
    assert len(lines) * 20 >= min(len(written) * 20, 16_000)


def test_a_log_goes_on_where_the_last_server_left_it(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    for start in range(0, 3000, 300):
        bounded = BoundedLog(path, 20_000)
        bounded.write(numbered(start, start + 300))
        bounded.close()
    lines = kept(path)
    assert lines == numbered(3000 - len(lines), 3000)
    assert sum(len(line) for line in lines) <= 20_000


def test_a_smaller_limit_than_last_time_trims_at_once(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    bounded = BoundedLog(path, 100_000)
    bounded.write(numbered(0, 5000))
    bounded.close()
    BoundedLog(path, 20_000).close()
    assert sum(file.stat().st_size for file in log.files(path)) <= 20_000


def test_other_files_beside_the_log_are_left_alone(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("server.log.old", "server.log.1.gz", "server.pid")]
    for file in others:
        file.write_bytes(bytes(30_000))
    bounded = BoundedLog(tmp_path / "server.log", 10_000)
    bounded.write(numbered(0, 5000))
    bounded.close()
    assert all(file.stat().st_size == 30_000 for file in others)


@pytest.mark.parametrize("lines", [0, 1, 10, 400, 5000])
def test_tail_goes_back_over_cuts(tmp_path: Path, lines: int) -> None:
    path = tmp_path / "server.log"
    bounded = BoundedLog(path, 100_000)
    bounded.write(numbered(0, 2000))
    bounded.close()
    assert log.tail(path, lines) == [line.rstrip() for line in numbered(max(0, 2000 - lines), 2000)]


def test_follow_tells_every_line_although_the_log_is_cut_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    bounded = BoundedLog(path, 20_000)
    bounded.write(numbered(0, 150))
    read, over = threading.Semaphore(0), threading.Event()

    def write() -> None:
        for start in range(150, 6000, 130):  # more than a file holds, less than the log does
            assert read.acquire(timeout=10)
            bounded.write(numbered(start, min(start + 130, 6000)))
        bounded.close()
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    heard = b""
    told = 20
    for piece in log.follow(path, over.is_set, 20):
        heard += piece
        while told < 6000 and heard.count(b"\n") >= told:
            read.release()
            told += 130
    writer.join()
    assert heard.splitlines(keepends=True) == numbered(130, 6000)


def test_follow_of_a_log_that_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    looked = iter([False, False, True])

    def ended() -> bool:
        if not path.exists():
            bounded = BoundedLog(path, 20_000)
            bounded.write(numbered(0, 3))
            bounded.close()
        return next(looked)

    assert b"".join(log.follow(path, ended, 10)).splitlines(keepends=True) == numbered(0, 3)


def test_lines_that_nobody_writes_are_bounded_and_counted() -> None:
    waiting = Waiting(most_bytes=100)
    for line in numbered(0, 8):
        waiting.put(line)
    assert waiting.take() == [*numbered(0, 5), b"earmark: 3 lines are lost here: the disk did not take them in time\n"]
    waiting.put(b"more\n")
    assert waiting.take() == [b"more\n"]
    waiting.close()
    assert waiting.take() is None


def test_a_server_that_says_much_at_once_is_written_down_in_order_and_trimmed(tmp_path: Path) -> None:
    """100 000 lines of 50 bytes through a limit of a megabyte: all of the newest are there."""
    says = "import sys\nfor n in range(100_000): print(f'{n:049d}', file=sys.stderr)\nprint('last word', flush=True)"
    code = (
        "import sys; from pathlib import Path; from harness.lifecycle.record import State\n"
        "from harness.lifecycle.supervision import supervise\n"
        f"sys.exit(supervise(State(Path({str(tmp_path)!r})), [], log_bytes=1_000_000, drain_seconds=1, key_source='', "
        f"command=(sys.executable, '-c', {says!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], timeout=120, capture_output=True, check=False, env=clean_environment({})
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == b'{"event":"ended","status":0}\n'
    lines = [line for line in kept(tmp_path / "server.log") if line != b"last word\n"]
    numbers = [int(line) for line in lines]
    assert 16_000 <= len(numbers) <= 20_000
    assert numbers == list(range(100_000 - len(numbers), 100_000))
    record = State(tmp_path).record()
    assert record is not None
    assert record.ended is not None
    assert record.ended.status == 0
