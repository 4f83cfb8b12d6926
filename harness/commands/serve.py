"""``earmark serve``, ``status``, ``logs``, ``stop`` and ``restart``: the server's life."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.commands.errors import UsageError

if TYPE_CHECKING:
    from harness.lifecycle.detached import Command
    from harness.lifecycle.record import Record, State

OK, NOT_WELL, NOT_RUNNING, KILLED = 0, 1, 3, 1
"""Exit codes of their own: ``status`` 1 when it runs but is not well, 3 when it does not run; ``stop`` 1 when it had to kill."""

HEALTH_SECONDS = 3.0
STATE_VARIABLE = "EARMARK_STATE"
STATE_FOLDER = Path(".earmark")

StateOption = Annotated[
    Path | None,
    typer.Option(
        "--state",
        help="Folder of the detached server's state and log.",
        show_default=f"{STATE_VARIABLE}, else .earmark",
    ),
]
StopWait = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for the drain before killing.", show_default="its --drain-seconds and 10 more", min=0
    ),
]
SERVER_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}


def serve(
    context: typer.Context,
    detach: Annotated[
        bool, typer.Option("--detach", help="Go on when the terminal is closed; return once it can transcribe.")
    ] = False,
    state: StateOption = None,
    wait: Annotated[
        float | None, typer.Option(help="With --detach: seconds until it must be ready.", show_default="600", min=0)
    ] = None,
    log_bytes: Annotated[
        int | None,
        typer.Option(
            help="With --detach: the newest so many bytes of log are kept.", show_default="104857600", min=10_000
        ),
    ] = None,
) -> int:
    """Start the server. All other options are the server's own: 'python -m server --help' lists them.

    With --detach it runs on by itself and writes its log into the state folder; 'earmark status', 'logs', 'stop' and 'restart' are for it.
    Exit codes: 0 it can transcribe, 3 it cannot start or one is running already; without --detach the server's own.
    """
    from harness.lifecycle import detached

    _only_where_processes_are_posix()
    options = [*context.args]
    if not detach:
        for name, given in (("--wait", wait), ("--log-bytes", log_bytes), ("--state", state)):
            if given is not None:
                raise UsageError(f"{name} is for a server that runs on by itself: add --detach, or leave {name} out")
        _become_server(options)
    server = detached.command(options, os.environ)
    _start(
        folder(state),
        server,
        wait=detached.READY_SECONDS if wait is None else wait,
        log_bytes=detached.LOG_BYTES if log_bytes is None else log_bytes,
    )
    return OK


def _become_server(options: list[str]) -> None:
    """This process is the server from here on: signals and exit status are its own. Keys leave the options all the same."""
    from harness.lifecycle.detached import without_keys

    public, keys = without_keys(options)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, "-m", "server", *public], {**os.environ, **keys})


_PORTS = {"ops": "operations", "grpc": "gRPC"}
"""What a further port is for, where that is not a surface alone."""


def _start(state: State, server: Command, *, wait: float, log_bytes: int) -> None:
    from harness.lifecycle import detached

    record = detached.start(state, server, log_bytes=log_bytes, ready_seconds=wait)
    assert record.announcement is not None
    print(f"url     {record.url}")
    for name, port in _other_ports(record).items():
        print(f"port    {port}, {_PORTS.get(name, f'{name} alone')}")
    print(f"engine  {record.announcement.engine}{_model(record)}")
    if server.made_up:
        print(f"key     {server.made_up} (made up, shown this once; set VOXTRAL_API_KEY to choose one)")
    else:
        print(f"key     {record.key_source}")
    print(f"log     {state.log}")
    print(f"pid     {record.pid}")


def _other_ports(record: Record) -> dict[str, int]:
    """The listeners beside the public one."""
    assert record.announcement is not None
    return {name: port for name, port in record.announcement.ports.items() if name != "public"}


def _model(record: Record) -> str:
    assert record.announcement is not None
    return f", {record.announcement.model}" if record.announcement.model else ""


def folder(named: Path | None) -> State:
    """The state folder that is asked for."""
    from harness.lifecycle.record import State

    return State(named or Path(os.environ.get(STATE_VARIABLE) or STATE_FOLDER))


def _only_where_processes_are_posix() -> None:
    if sys.platform == "win32":
        raise UsageError("the server runs on Linux and macOS")


# ---- what is running


def status(
    state: StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Tell of the detached server. Exit codes: 0 running and healthy, 1 running but not healthy, 3 not running."""
    place = folder(state)
    stale = place.remove_stale()
    if stale:
        print(stale, file=sys.stderr)
    told = standing(place)
    if as_json:
        print(json.dumps(told))
    else:
        for name, value in told.items():
            if value not in (None, "", [], {}):
                print(f"{name.replace('_', ' '):<12}{_plain(name, value)}")
    if not told["running"]:
        return NOT_RUNNING
    return OK if told["health"] == "ok" else NOT_WELL


def standing(place: State) -> dict[str, Any]:
    """The detached server as it stands: what its record says, and what itself answers."""
    from harness.lifecycle import detached, log

    record = place.record()
    if record is None:
        return {"running": False, "state": str(place.folder), "last": "nothing was started from here yet"}
    told: dict[str, Any] = {
        "running": place.running() is not None,
        "state": str(place.folder),
        "options": record.options,
        "key_source": record.key_source,
        "log": str(place.log),
        "log_bytes": sum(file.stat().st_size for file in log.files(place.log)),
    }
    if not told["running"]:
        return {**told, "last": detached.how_it_ended(record)}
    up = round(time.time() - record.started_epoch_seconds)
    told |= {"pid": record.pid, "up_seconds": up, "url": record.url}
    if record.announcement is None:
        return {**told, "health": "starting"}
    health, connections = asked(str(record.url))
    engine = f"{record.announcement.engine}{_model(record)}"
    ports = _other_ports(record)
    return {**told, "ports": ports, "engine": engine, "health": health, "connections": connections}


def _plain(name: str, value: Any) -> str:
    match name:
        case "running":
            return "yes" if value else "no"
        case "options":
            import shlex

            return shlex.join(value)
        case "log_bytes":
            return f"{value / 2**20:.1f} MiB" if value >= 2**20 else f"{value / 1024:.1f} KiB"
        case "ports":
            return ", ".join(f"{port} ({listener})" for listener, port in value.items())
        case "up_seconds":
            return f"{value // 3600} h {value % 3600 // 60} min {value % 60} s"
        case _:
            return str(value)


def asked(url: str) -> tuple[str, int | None]:
    """What a server says of its health, and how many connections it has."""
    import httpx

    try:
        with httpx.Client(base_url=url, timeout=HEALTH_SECONDS, trust_env=False) as client:
            health = client.get("/healthz").json()["status"]
            return str(health), client.get("/health").json().get("connections")
    except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
        return "no answer", None


# ---- its log


def logs(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the server ends; an interrupt ends only this.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="The newest so many lines.", min=0)] = 100,
    state: StateOption = None,
) -> int:
    """Print the log of the detached server, the running or the last one. Exit code 3 when there is none."""
    from harness.lifecycle import log

    place = folder(state)
    if not log.files(place.log) and place.running() is None:
        raise UsageError(f"there is no log in {place.folder}; 'earmark serve --detach' starts a server that writes one")
    out = sys.stdout.buffer
    try:
        if not follow:
            out.writelines(line + b"\n" for line in log.tail(place.log, lines))
        else:
            for piece in log.follow(place.log, lambda: _all_is_said(place), lines):
                out.write(piece)
                out.flush()
        out.flush()
    except KeyboardInterrupt:
        return OK
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OK


def _all_is_said(place: State) -> bool:
    """Whether nobody writes the log any more: its writer outlives the server by its last words."""
    from harness.lifecycle.record import identity

    record = place.record()
    return record is None or identity(record.supervisor_pid) != record.supervisor_identity


# ---- its end


def stop(wait: StopWait = None, state: StateOption = None) -> int:
    """End the detached server: TERM, wait until utterances have ended, then KILL.

    Exit codes: 0 it has ended, or none was running; 1 it had to be killed; 3 it cannot be ended.
    """
    return _stop(folder(state), wait)


def _stop(place: State, wait: float | None) -> int:
    from harness.lifecycle import detached

    done = detached.stop(place, wait)
    if done.stale:
        print(done.stale)
    if done.record is None:
        print("no server is running")
        return OK
    if done.killed:
        print(f"process {done.record.pid} did not end within {done.seconds:.1f} s of TERM and was killed")
        return KILLED
    print(f"process {done.record.pid} has ended, {done.seconds:.1f} s after TERM")
    return OK


def restart(
    wait: Annotated[
        float | None, typer.Option(help="Seconds until it must be ready.", show_default="600", min=0)
    ] = None,
    stop_wait: StopWait = None,
    state: StateOption = None,
) -> int:
    """Stop the detached server and start it with the options, the folder and the environment of its last start.

    Keys are kept nowhere: they are read from the running server. One that is not running takes the environment of this command.
    Exit codes: 0 it can transcribe, 3 it cannot start.
    """
    from harness.lifecycle import detached

    _only_where_processes_are_posix()
    place = folder(state)
    server, record = detached.again(place, os.environ)
    _stop(place, stop_wait)
    _start(place, server, wait=detached.READY_SECONDS if wait is None else wait, log_bytes=record.log_bytes)
    return OK
