"""Starting and ending a detached server."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic

import msgspec

from harness.launch import KEY_VARIABLE, TAIL_LINES
from harness.lifecycle import log
from harness.lifecycle.record import Record, State, StateError, identity, is_running

READY_SECONDS = 600.0
LOG_BYTES = 100 * 1024 * 1024
STOP_MARGIN_SECONDS = 10.0
DRAIN_SECONDS = 30.0
"""The server's own default; ``--drain-seconds`` and EARMARK_DRAIN_SECONDS say otherwise."""

DRAIN_VARIABLE = "EARMARK_DRAIN_SECONDS"
KEYS_VARIABLE = "EARMARK_API_KEYS"
_LAST_WORDS_SECONDS = 12.0
_LOOK_SECONDS = 0.05
_SECRET = re.compile(r"--(?!require-|no-)[a-z-]*(key|keys|token|tokens|password|secret)")


@dataclass(frozen=True, slots=True)
class Command:
    """A server's options without keys, its environment with them, the folder it runs in. ``made_up`` is a key that nobody gave."""

    options: list[str]
    environment: dict[str, str]
    key_source: str
    made_up: str | None = None
    folder: str = "."

    @property
    def drain_seconds(self) -> float:
        """For how long it lets utterances end before it ends itself."""
        told = _last_value(self.options, "--drain-seconds") or self.environment.get(DRAIN_VARIABLE)
        try:
            return float(told) if told else DRAIN_SECONDS
        except ValueError:
            return DRAIN_SECONDS  # the server says what is wrong with it


def command(options: Sequence[str], environment: Mapping[str, str]) -> Command:
    """The server as it is to be started: keys leave the options, which everybody on the machine can see, for the environment.

    Raises:
        StateError: an option for a key has no value, or the server does not say which variable stands for it.
    """
    public, moved = without_keys(options)
    variables = {**environment, **moved}
    if variables.get(KEY_VARIABLE, "").strip():
        return Command(public, variables, KEY_VARIABLE)
    if variables.get(KEYS_VARIABLE, "").strip():
        return Command(public, variables, KEYS_VARIABLE)
    made_up = secrets.token_urlsafe(24)
    return Command(public, {**variables, KEY_VARIABLE: made_up}, "made up at the start", made_up)


def _last_value(options: Sequence[str], name: str) -> str | None:
    found = None
    for option, following in zip(options, [*options[1:], ""], strict=True):
        if option == name:
            found = following
        elif option.startswith(f"{name}="):
            found = option.partition("=")[2]
    return found


def without_keys(options: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The options that hold no key, and those that do as environment variables."""
    public: list[str] = []
    moved: dict[str, str] = {}
    rest = iter(options)
    variables: Mapping[str, str] = {}
    for option in rest:
        name, equals, value = option.partition("=")
        if not _SECRET.fullmatch(name):
            public.append(option)
            continue
        if not equals:
            value = next(rest, "")
        variables = variables or server_variables()
        if not value or name not in variables:
            raise StateError(
                f"{name}: {'a value is expected' if not value else 'the server has no such option'} "
                "(python -m server --help lists all)"
            )
        moved[variables[name]] = value
    return public, moved


def server_variables() -> dict[str, str]:
    """The environment variable of each of the server's options, as it says itself.

    Raises:
        StateError: it does not.
    """
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "server", "--help"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={**os.environ, "COLUMNS": "400"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StateError(f"the server does not say which options it has: {error}") from error
    return {
        found[1]: found[2]
        for found in re.finditer(
            r"^ +(--[a-z0-9-]+)\b.*?\[([A-Z0-9_]+)[^\]]*\]", asked.stdout, re.MULTILINE | re.DOTALL
        )
    }


def start(state: State, server: Command, *, log_bytes: int = LOG_BYTES, ready_seconds: float = READY_SECONDS) -> Record:
    """Start the server in a session of its own and wait until it can transcribe.

    Raises:
        StateError: one is running already; or this one ended, or was not ready in time and was ended. The message has the end of its log.
    """
    with state.locked():
        running = state.running()
        if running is not None:
            raise StateError(
                f"a server is running already: process {running.pid}, {running.url or 'not ready yet'}; "
                "'earmark stop' ends it, 'earmark restart' starts it anew, --state DIR keeps another beside it"
            )
        state.remove_stale()
        return _start(state, server, log_bytes, ready_seconds)


def _start(state: State, server: Command, log_bytes: int, ready_seconds: float) -> Record:
    logged = _logged_bytes(state)
    supervisor = subprocess.Popen(
        [
            *(sys.executable, "-m", "harness.lifecycle.supervision", "--state", str(state.folder)),
            *("--log-bytes", str(log_bytes), "--drain-seconds", f"{server.drain_seconds:g}"),
            *("--key-source", server.key_source, "--", *server.options),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=server.environment,
        cwd=server.folder,
        start_new_session=True,
    )
    try:
        status = _await_ready(supervisor, ready_seconds)
    except BaseException:  # also an interrupt from the keyboard: what is not ready is of no use to anybody
        _end_unready(state, supervisor)
        raise
    record = state.record()
    if status == "ready" and record is not None:
        return record
    if status == "late":
        _end_unready(state, supervisor)
    why = f"was not ready within {ready_seconds:g} s and was ended" if status == "late" else f"ended ({status})"
    raise StateError(f"the server {why}. The end of {state.log}:\n{_epitaph(state, logged)}")


def _await_ready(supervisor: subprocess.Popen[bytes], seconds: float) -> str:
    """``ready``, ``late``, or how it ended."""
    deadline = monotonic() + seconds
    assert supervisor.stdout is not None
    buffer = b""
    with supervisor.stdout as output, selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - monotonic())):
                return "late"
            piece = os.read(output.fileno(), 65536)
            buffer += piece
            for line in buffer.splitlines():
                message = msgspec.json.decode(line) if line.endswith(b"}") else {}
                if message.get("event") == "ready":
                    return "ready"
                if message.get("event") == "ended":
                    return _told(message["status"])
            if not piece:
                return "its supervisor died"


def _end_unready(state: State, supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.terminate()
    if _ended_within(supervisor, STOP_MARGIN_SECONDS):
        return
    record = state.running()
    if record is not None:
        _kill(record)
    if not _ended_within(supervisor, _LAST_WORDS_SECONDS):
        supervisor.kill()
        supervisor.wait()


def _ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _told(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def how_it_ended(record: Record) -> str:
    """The end of a server that is not running."""
    if record.ended is None:
        return "its end was not seen: it was killed together with its supervisor, or the machine went down"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.ended.epoch_seconds))
    return f"ended at {stamp} with {_told(record.ended.status)}"


def _logged_bytes(state: State) -> int:
    return sum(file.stat().st_size for file in log.files(state.log))


def _epitaph(state: State, logged_before: int) -> str:
    """What this start has added to the log, its end at most."""
    added = max(0, _logged_bytes(state) - logged_before)
    lines, size = [], 0
    for line in reversed(log.tail(state.log, TAIL_LINES)):
        size += len(line) + 1
        if size > added:
            break
        lines.append(f"  {line.decode(errors='replace')}")
    return "\n".join(reversed(lines)) or "  (it wrote nothing)"


@dataclass(frozen=True, slots=True)
class Stopped:
    """What ``stop`` did. ``record`` is the server that was running; ``stale`` tells of a pid file that was removed."""

    record: Record | None
    killed: bool = False
    stale: str | None = None
    seconds: float = 0.0


def stop(state: State, wait_seconds: float | None = None) -> Stopped:
    """TERM, then wait for the drain, then KILL.

    Raises:
        StateError: another command is at it, or the process may not be ended by us.
    """
    with state.locked():
        return _stop(state, wait_seconds)


def _stop(state: State, wait_seconds: float | None) -> Stopped:
    record = state.running()
    if record is None:
        return Stopped(None, stale=state.remove_stale())
    began = monotonic()
    wait = record.drain_seconds + STOP_MARGIN_SECONDS if wait_seconds is None else wait_seconds
    try:
        os.kill(record.pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended by itself
    except PermissionError:
        raise StateError(f"the server, process {record.pid}, belongs to another user; stop it as that user") from None
    killed = not _until_gone(record.pid, record.identity, wait)
    if killed:
        _kill(record)
        _until_gone(record.pid, record.identity, STOP_MARGIN_SECONDS)
    seconds = monotonic() - began
    _until_gone(record.supervisor_pid, record.supervisor_identity, _LAST_WORDS_SECONDS)  # it has last words to write
    state.remove_stale()
    return Stopped(record, killed, seconds=seconds)


def _until_gone(pid: int, known: str, seconds: float) -> bool:
    deadline = monotonic() + seconds
    while identity(pid) == known:
        if monotonic() >= deadline:
            return False
        time.sleep(_LOOK_SECONDS)  # of a process that is nobody's child the system tells nothing
    return True


def _kill(record: Record) -> None:
    if is_running(record):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(record.pid, signal.SIGKILL)  # it leads a group, its workers are in it


def again(state: State, environment: Mapping[str, str]) -> tuple[Command, Record]:
    """The last start once more: its options and folder, and its environment, keys and all, as long as it is running.

    Raises:
        StateError: nothing was started from here, or its key is gone with it.
    """
    record = state.record()
    if record is None:
        raise StateError(f"nothing was started from {state.folder} yet; 'earmark serve --detach' starts a server")
    if is_running(record):
        variables = _environment_of(record) or dict(environment)
        return Command(record.options, variables, record.key_source, folder=record.folder), record
    server = command(record.options, environment)
    if server.made_up and record.key_source in (KEY_VARIABLE, KEYS_VARIABLE):
        raise StateError(
            f"the last server had its key from {record.key_source}, which is not set here, and keys are kept nowhere: "
            f"set {record.key_source}, or start it with 'earmark serve --detach'"
        )
    return replace(server, folder=record.folder), record


def _environment_of(record: Record) -> dict[str, str] | None:
    import psutil

    try:
        return psutil.Process(record.supervisor_pid).environ()
    except psutil.Error:
        return None
