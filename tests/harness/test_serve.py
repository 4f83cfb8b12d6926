"""``earmark serve --detach``, ``status``, ``logs``, ``stop`` and ``restart``, as processes against real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest

from harness.lifecycle import log
from harness.lifecycle.detached import without_keys
from harness.lifecycle.record import StateError, identity
from tests.end_to_end.clients import text_of, yap
from tests.end_to_end.running_server import KEY, RunningServer, clean_environment
from tests.end_to_end.speech import sentence
from tests.harness.lives import MAIN, SCRIPTED, Life, earmark

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the server runs on POSIX systems")


@pytest.fixture
def life(tmp_path: Path) -> Iterator[Life]:
    one = Life(tmp_path / "state")
    yield one
    one.end()


def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """Return once it holds; other processes have no way to tell us."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s"
        pause.wait(0.02)


def server(life: Life) -> RunningServer:
    """For clients, which ask for no more than an address."""
    return cast("RunningServer", life)


# ---- start and stop


def test_serve_returns_once_it_can_transcribe_and_stop_ends_it(life: Life) -> None:
    started = life.start()
    assert started.returncode == 0, started.stderr
    lines = dict(line.split(maxsplit=1) for line in started.stdout.splitlines())
    assert lines == {
        "url": life.url,
        "engine": "scripted, scripted",
        "key": "VOXTRAL_API_KEY",
        "log": str(life.state.log),
        "pid": str(life.pid),
    }
    assert json.loads(life.get("/healthz")) == {"status": "ok"}
    assert life.state.pid_file.read_text() == f"{life.pid}\n"
    pid, supervisor = life.pid, life.supervisor
    stopped = life.run("stop")
    assert stopped.returncode == 0
    assert re.fullmatch(rf"process {pid} has ended, [\d.]+ s after TERM\n", stopped.stdout)
    assert identity(pid) is None
    assert identity(supervisor) is None
    assert not life.state.pid_file.exists()


def test_surfaces_with_a_port_of_their_own_are_told(life: Life) -> None:
    started = life.start("--surface-ports", "realtime=0")
    ports = life.told()["ports"]
    assert list(ports) == ["realtime"]
    assert f"port    {ports['realtime']}, realtime alone\n" in started.stdout


def test_the_operations_port_is_told(life: Life) -> None:
    started = life.start("--ops", "--ops-port", "0")
    ports = life.told()["ports"]
    assert f"port    {ports['ops']}, operations\n" in started.stdout
    assert "stt_active_sessions" in httpx.get(f"http://127.0.0.1:{ports['ops']}/metrics").text


def test_a_surface_with_a_port_of_its_own_answers_there(life: Life) -> None:
    life.start("--surface-ports", "realtime=0")
    ports = life.told()["ports"]
    with socket.create_connection(("127.0.0.1", ports["realtime"]), 5):
        pass


def test_it_is_in_a_session_of_its_own_and_no_hangup_ends_it(life: Life) -> None:
    life.start()
    assert os.getsid(life.pid) == life.supervisor != os.getsid(0)
    for pid in (life.pid, life.supervisor):
        os.kill(pid, signal.SIGHUP)
    assert life.told()["health"] == "ok"


def test_status_tells_running_and_not_running(life: Life) -> None:
    assert life.run("status").returncode == 3
    life.start()
    running = life.run("status")
    assert running.returncode == 0
    assert re.search(r"^health +ok$", running.stdout, re.MULTILINE)
    told = life.told()
    assert (told["running"], told["pid"], told["url"], told["connections"]) == (True, life.pid, life.url, 0)
    assert told["options"] == list(SCRIPTED)
    life.run("stop")
    ended = life.run("status")
    assert ended.returncode == 3
    assert "with status 0" in ended.stdout


def test_status_of_a_server_that_does_not_answer_is_1(life: Life) -> None:
    life.start()
    os.kill(life.pid, signal.SIGSTOP)
    told = life.run("status")
    assert told.returncode == 1
    assert "no answer" in told.stdout


def test_a_second_one_is_refused(life: Life) -> None:
    life.start()
    pid = life.pid
    second = life.start()
    assert second.returncode == 3
    assert f"a server is running already: process {pid}, {life.url}" in second.stderr
    assert life.pid == pid


def test_two_starts_at_once_make_one_server(life: Life) -> None:
    found: list[subprocess.CompletedProcess[str]] = []
    starters = [threading.Thread(target=lambda: found.append(life.start())) for _ in range(2)]
    for thread in starters:
        thread.start()
    for thread in starters:
        thread.join()
    assert sorted(one.returncode for one in found) == [0, 3]
    assert psutil.pid_exists(life.pid)


def test_stop_without_a_server_is_no_failure(life: Life) -> None:
    stopped = life.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "no server is running\n")


async def test_stop_waits_for_the_utterance_under_way(life: Life) -> None:
    await asyncio.to_thread(life.start, "--script", '{"final_latency_ms": 500}')
    async with yap(server(life)) as client:
        await client.start()
        await client.append(sentence("last", "words"))
        await client.receive()  # under way
        stopping = asyncio.create_task(asyncio.to_thread(life.run, "stop"))
        await asyncio.to_thread(until, lambda: b"draining" in life.state.log.read_bytes())
        await client.finish()
        assert text_of(await client.receive_until("done")) == "last words"
    assert (await stopping).returncode == 0


async def test_the_wait_for_the_drain_is_bounded_by_the_drain_of_its_options(life: Life) -> None:
    await asyncio.to_thread(life.start, "--drain-seconds=0.2")
    record = life.state.record()
    assert record is not None
    assert record.drain_seconds == 0.2


def test_a_server_that_does_not_end_is_killed_and_that_is_said(life: Life) -> None:
    life.start()
    pid = life.pid
    os.kill(pid, signal.SIGSTOP)  # it cannot even notice TERM
    stopped = life.run("stop", "--wait", "0.3")
    assert stopped.returncode == 1
    assert f"process {pid} did not end within" in stopped.stdout
    assert "was killed" in stopped.stdout
    assert identity(pid) is None
    assert "SIGKILL" in life.run("status").stdout


# ---- what goes wrong


def test_a_bad_option_is_told_with_the_end_of_the_log_of_this_start_alone(life: Life) -> None:
    life.start()
    life.run("stop")
    bad = life.start("--delay-ms", "81")
    assert bad.returncode == 3
    assert "the server ended (status 2)" in bad.stderr
    assert "--delay-ms=81" in bad.stderr
    assert "draining" not in bad.stderr
    assert life.state.running() is None
    assert not life.state.pid_file.exists()


def test_a_taken_port_is_told(life: Life, tmp_path: Path) -> None:
    life.start()
    other = Life(tmp_path / "other")
    taken = other.start("--port", life.url.rpartition(":")[2])
    assert taken.returncode == 3
    assert "cannot listen on" in taken.stderr


def test_one_that_is_not_ready_in_time_is_ended(life: Life) -> None:
    late = life.start("--wait", "0")
    assert late.returncode == 3
    assert "not ready within 0 s and was ended" in late.stderr
    assert life.state.running() is None
    assert life.told()["running"] is False


NEVER_READY = ("--engine", "vllm-remote", "--backends", "ws://127.0.0.1:1", "--backend-start-seconds", "100")


@pytest.fixture
def starting(life: Life) -> Iterator[subprocess.Popen[str]]:
    """The command while the server is not ready yet: its back end does not answer."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", "--detach", "--state", str(life.state.folder), *SCRIPTED, *NEVER_READY],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"VOXTRAL_API_KEY": KEY}),
    )
    until(lambda: life.state.running() is not None)
    yield process
    process.kill()
    process.communicate(timeout=10)


def test_while_it_starts_that_is_its_state_and_no_other_command_comes_between(
    life: Life, starting: subprocess.Popen[str]
) -> None:
    assert starting.poll() is None
    told = life.run("status", "--json")
    assert (told.returncode, json.loads(told.stdout)["health"]) == (1, "starting")
    refused = life.run("stop")
    assert refused.returncode == 3
    assert "another command is starting or stopping the server" in refused.stderr


def test_an_interrupt_while_it_starts_ends_it(life: Life, starting: subprocess.Popen[str]) -> None:
    pid = life.pid
    starting.send_signal(signal.SIGINT)
    _, said = starting.communicate(timeout=90)  # it may take the kill behind the term, each with its patience
    assert starting.returncode == 130
    assert "Traceback" not in said
    assert identity(pid) is None
    assert not life.state.pid_file.exists()


def test_a_server_whose_starter_is_gone_can_be_stopped(life: Life, starting: subprocess.Popen[str]) -> None:
    starting.kill()
    starting.wait(10)
    assert life.run("stop").returncode == 0
    assert life.state.running() is None


def test_an_unusable_state_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = Life(tmp_path / "file" / "state").start()
    assert refused.returncode == 3
    assert "cannot use" in refused.stderr
    assert "--state" in refused.stderr


def test_a_stale_pid_file_is_noticed_and_removed(life: Life) -> None:
    life.start()
    pid = life.pid
    os.kill(life.supervisor, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    until(lambda: identity(pid) is None)
    assert life.state.pid_file.exists()
    told = life.run("status")
    assert told.returncode == 3
    assert f"removed the pid file of process {pid}, which is gone" in told.stderr
    assert not life.state.pid_file.exists()
    assert life.start().returncode == 0


def test_a_number_that_belongs_to_another_process_by_now_is_left_alone(life: Life) -> None:
    life.start()
    life.run("stop")
    bystander = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        old = json.loads(life.state.record_file.read_text())
        life.state.record_file.write_text(json.dumps(old | {"pid": bystander.pid, "ended": None}))
        life.state.pid_file.write_text(f"{bystander.pid}\n")
        stopped = life.run("stop")
        assert stopped.returncode == 0
        assert f"whose number, {bystander.pid}, belongs to another process by now" in stopped.stdout
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_server_whose_supervisor_is_killed_ends(life: Life) -> None:
    life.start()
    pid = life.pid
    os.kill(life.supervisor, signal.SIGKILL)
    until(lambda: identity(pid) is None)


def test_term_to_the_supervisor_is_term_to_the_server(life: Life) -> None:
    life.start()
    supervisor = life.supervisor
    os.kill(supervisor, signal.SIGTERM)
    until(lambda: identity(supervisor) is None)
    assert "with status 0" in life.told()["last"]


def test_options_of_detach_without_it_are_refused() -> None:
    refused = earmark("serve", "--wait", "5", *SCRIPTED)
    assert refused.returncode == 3
    assert "add --detach" in refused.stderr


# ---- the server itself


def test_without_detach_the_command_becomes_the_server() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", *SCRIPTED, "--announce", "--require-key", "--api-key=blue-heron"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment({"VOXTRAL_API_KEY": KEY}),
    )
    assert process.stdout is not None
    port = json.loads(process.stdout.readline())["port"]
    cmdline = psutil.Process(process.pid).cmdline()
    assert cmdline[1:] == ["-m", "server", *SCRIPTED, "--announce", "--require-key"]  # the key is not among them
    url = f"http://127.0.0.1:{port}/v1/models"
    assert httpx.get(url, headers={"Authorization": "Bearer blue-heron"}, trust_env=False).status_code == 200
    assert httpx.get(url, headers={"Authorization": f"Bearer {KEY}"}, trust_env=False).status_code == 401
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


# ---- keys


@pytest.mark.parametrize("form", [["--api-key", "blue-heron"], ["--api-key=blue-heron"]])
async def test_a_key_among_the_options_reaches_the_server_and_no_other_place(life: Life, form: list[str]) -> None:
    started = await asyncio.to_thread(life.start, *form, key=None)
    assert re.search(r"^key +VOXTRAL_API_KEY$", started.stdout, re.MULTILINE)
    for pid in (life.pid, life.supervisor):
        assert "blue-heron" not in " ".join(psutil.Process(pid).cmdline())
    for file in life.state.folder.iterdir():
        assert "blue-heron" not in file.read_text(errors="replace"), file
        assert file.name in (".gitignore", "lock") or file.stat().st_mode & 0o077 == 0
    async with yap(server(life), path="/api/asr-streaming?api_key=blue-heron") as client:
        assert text_of(await client.say(sentence("open", "sesame"))) == "open sesame"


def test_a_key_that_was_made_up_is_shown_once_and_kept_nowhere(life: Life) -> None:
    started = life.start(key=None)
    [made_up] = re.findall(r"^key +(\S+) \(made up", started.stdout, re.MULTILINE)
    assert len(made_up) >= 32
    for file in life.state.folder.iterdir():
        assert made_up not in file.read_text(errors="replace"), file
    assert made_up not in life.run("status").stdout


def test_every_option_that_takes_a_key_has_a_variable() -> None:
    public, moved = without_keys(
        [
            "--api-key=a",
            "--port",
            "1",
            "--api-keys",
            "b,c",
            "--require-key",
            "--backend-api-key=d",
            "--chat-api-key",
            "e",
        ]
    )
    assert public == ["--port", "1", "--require-key"]
    assert moved == {
        "VOXTRAL_API_KEY": "a",
        "EARMARK_API_KEYS": "b,c",
        "EARMARK_BACKEND_API_KEY": "d",
        "EARMARK_CHAT_API_KEY": "e",
    }


def test_an_option_for_a_key_without_one_is_refused() -> None:
    with pytest.raises(StateError, match="--api-key: a value is expected"):
        without_keys(["--api-key"])


# ---- restart


async def test_restart_keeps_options_key_and_bound_of_the_log(life: Life, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    options = ("--delay-ms", "960", "--log-bytes", "20000")
    await asyncio.to_thread(life.start, *options, key="red-kite", folder=folder)
    before = life.state.record()
    assert before is not None
    again = await asyncio.to_thread(life.run, "restart", key=None)
    assert again.returncode == 0, again.stderr
    after = life.state.record()
    assert after is not None
    assert after.pid != before.pid
    assert (after.options, after.folder, after.log_bytes) == (before.options, str(folder), 20_000)
    assert json.loads(life.get("/v1/models"))["data"][0]["delay_ms"] == 960
    async with yap(server(life), path="/api/asr-streaming?api_key=red-kite") as client:
        assert text_of(await client.say(sentence("same", "key"))) == "same key"


def test_restart_of_a_server_that_is_gone_asks_for_its_key(life: Life) -> None:
    life.start()
    life.run("stop")
    refused = life.run("restart", key=None)
    assert refused.returncode == 3
    assert "had its key from VOXTRAL_API_KEY, which is not set here" in refused.stderr
    assert life.run("restart").returncode == 0


def test_restart_of_nothing_is_refused(life: Life) -> None:
    refused = life.run("restart")
    assert refused.returncode == 3
    assert "nothing was started from" in refused.stderr


# ---- the log


def test_logs_shows_the_newest_lines(life: Life) -> None:
    life.start()
    everything = life.state.log.read_text().splitlines()
    assert life.run("logs", "--lines", "2").stdout.splitlines() == everything[-2:]
    assert life.run("logs").stdout.splitlines() == everything
    assert any("ready" in line for line in everything)


def test_logs_without_a_log_says_so(life: Life) -> None:
    told = life.run("logs")
    assert told.returncode == 3
    assert "there is no log in" in told.stderr


def test_follow_goes_on_until_the_server_has_said_its_last_word(life: Life) -> None:
    life.start()
    following = subprocess.Popen(
        [sys.executable, "-c", MAIN, "logs", "--follow", "--lines", "1000", "--state", str(life.state.folder)],
        stdout=subprocess.PIPE,
        text=True,
        env=clean_environment({}),
    )
    assert following.stdout is not None
    first = following.stdout.readline()
    life.run("stop")
    with following.stdout:
        rest = following.stdout.read()  # not communicate(), which passes by what readline has buffered
    assert following.wait(20) == 0
    assert first + rest == life.state.log.read_text()
    assert "draining" in rest


async def test_the_log_of_a_running_server_is_bounded(life: Life) -> None:
    await asyncio.to_thread(life.start, "--log-bytes", "10000")
    for _ in range(60):
        async with yap(server(life)) as client:
            await client.synchronise()
    until(lambda: len(log.files(life.state.log)) > 3)
    await asyncio.to_thread(life.run, "stop")
    kept = b"".join(file.read_bytes() for file in log.files(life.state.log))
    assert 8000 < len(kept) <= 10_000
    assert kept.endswith(b"\n")
    assert b"draining" in kept
    assert all(line.startswith(b"20") for line in kept.splitlines())  # whole lines, each with its date


async def test_a_full_disk_does_not_hold_up_the_server_and_lines_are_written_later(life: Life) -> None:
    await asyncio.to_thread(life.start)
    supervisor = psutil.Process(life.supervisor)
    unlimited = supervisor.rlimit(psutil.RLIMIT_FSIZE)
    supervisor.rlimit(psutil.RLIMIT_FSIZE, (life.state.log.stat().st_size + 7, unlimited[1]))
    for _ in range(5):
        async with yap(server(life)) as client:
            assert text_of(await client.say(sentence("still", "here"))) == "still here"
    assert b"accepted" not in life.state.log.read_bytes()
    supervisor.rlimit(psutil.RLIMIT_FSIZE, unlimited)
    await asyncio.to_thread(until, lambda: life.state.log.read_bytes().count(b"closed") == 5)
    assert life.state.log.read_bytes().count(b"accepted") == 5
