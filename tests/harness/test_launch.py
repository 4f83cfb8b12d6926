from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from harness.launch import KEY_VARIABLE, ServerError, start

PAUSE = threading.Event()  # never set
READY = 'print(\'{"event":"ready","host":"127.0.0.1","port":4711,"engine":"e","model":"m","caveat":"weak","new":1}\', flush=True)'
WAIT = "import signal; signal.pause()"


def python(*lines: str) -> Sequence[str]:
    return (sys.executable, "-c", "\n".join(lines))


def ends(process: psutil.Process) -> bool:
    """Whether it ends within five seconds; nobody may be there to reap it."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        PAUSE.wait(0.02)
    return False


def test_the_announcement_says_where_the_server_is(tmp_path: Path) -> None:
    with start([], tmp_path / "log", command=python("print('loading')", READY, WAIT)) as server:
        assert server.url == "ws://127.0.0.1:4711"
        assert (server.announcement.engine, server.announcement.model, server.announcement.caveat) == ("e", "m", "weak")
        assert psutil.pid_exists(server.pid)
        server.check()
    assert not psutil.pid_exists(server.pid)
    assert "loading" in (tmp_path / "log").read_text()


def test_options_are_passed_on_behind_ours(tmp_path: Path) -> None:
    say = "import sys; print(sys.argv[1:], file=sys.stderr, flush=True)"
    with start(["--engine", "x"], tmp_path / "log", command=python(say, READY, WAIT)):
        pass
    assert (
        "['--announce', '--host', '127.0.0.1', '--port', '0', '--ops-port', '0', '--engine', 'x']"
        in (tmp_path / "log").read_text()
    )


def test_the_server_gets_a_key_and_we_know_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    say = f"import os, sys; print(os.environ[{KEY_VARIABLE!r}], file=sys.stderr, flush=True)"
    with start([], tmp_path / "log", command=python(say, READY, WAIT)) as server:
        assert len(server.api_key) >= 16
        assert server.api_key in (tmp_path / "log").read_text()
    monkeypatch.setenv(KEY_VARIABLE, "given")
    with start([], tmp_path / "log", command=python(READY, WAIT)) as server:
        assert server.api_key == "given"


def test_a_server_that_dies_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    dies = python(
        "import sys", "[print('line', n, file=sys.stderr) for n in range(100)]", "sys.exit('no weights here')"
    )
    with pytest.raises(ServerError, match="ended before it was ready") as told:
        start([], tmp_path / "log", command=dies)
    assert "status 1" in str(told.value)
    assert "no weights here" in str(told.value)
    assert "line 99" in str(told.value)
    assert "line 10\n" not in str(told.value)


def test_a_server_that_is_never_ready_is_ended(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"not ready within 0\.5 s"):
        start(
            [], tmp_path / "log", command=python("import os; print(os.getpid(), flush=True)", WAIT), ready_seconds=0.5
        )
    assert not psutil.pid_exists(int((tmp_path / "log").read_text().split()[0]))


def test_a_death_while_it_is_measured_is_noticed(tmp_path: Path) -> None:
    with start([], tmp_path / "log", command=python(READY, WAIT)) as server:
        os.kill(server.pid, signal.SIGKILL)
        psutil.Process(server.pid).wait(5)
        with pytest.raises(ServerError, match="died while it was measured"):
            server.check()


def test_workers_of_a_server_end_with_it(tmp_path: Path) -> None:
    forks = "import os; child = os.fork()\nif child == 0:\n    import signal; signal.pause()\nprint(child, flush=True)"
    with start([], tmp_path / "log", command=python(forks, READY, WAIT)):
        worker = psutil.Process(int((tmp_path / "log").read_text().split()[0]))
    assert ends(worker)


def test_output_that_nobody_asked_for_does_not_stop_the_server(tmp_path: Path) -> None:
    chatty = python(READY, "for n in range(50_000): print('chatter', n)", "print('all said', flush=True)", WAIT)
    with start([], tmp_path / "log", command=chatty) as server:
        for _ in range(500):
            if "all said" in (tmp_path / "log").read_text():
                break
            with pytest.raises(psutil.TimeoutExpired):
                psutil.Process(server.pid).wait(0.02)
        assert "all said" in (tmp_path / "log").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_server_does_not_outlive_a_harness_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, signal; from pathlib import Path; from harness.launch import start\n"
        f"server = start([], Path({str(tmp_path / 'log')!r}), command=(sys.executable, '-c', {READY + chr(10) + WAIT!r}))\n"
        "print(server.pid, flush=True); signal.pause()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as harness:
        assert harness.stdout is not None
        server = psutil.Process(int(harness.stdout.readline()))
        harness.kill()
        harness.wait(5)
        assert ends(server)
