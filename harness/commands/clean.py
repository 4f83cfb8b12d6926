"""``earmark clean``: what may be fetched, computed or recorded again, shown with its size and deleted when told to."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import serve
from harness.commands.errors import UsageError
from harness.commands.terminal import Terminal

if TYPE_CHECKING:
    from harness.lifecycle.record import State

MODELS = ("models/voxtral", "models/voxtral-mini-3b")
CACHES = ("datasets/.cache", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache")
RUNS = ("reports/runs", "reports/studies", "reports/capacity")
UNDER_WAY_SECONDS = 60.0
OK, FAILED = 0, 3


@dataclass(frozen=True, slots=True)
class Doomed:
    """Something to delete, or why it stays."""

    path: Path
    size_bytes: int
    kept_because: str = ""


def clean(
    models: Annotated[bool, typer.Option("--models", help=f"Fetched weights: {', '.join(MODELS)}.")] = False,
    caches: Annotated[bool, typer.Option("--caches", help="Fetched datasets and what tools remember.")] = False,
    runs: Annotated[bool, typer.Option("--runs", help="Runs, studies and searches below reports/.")] = False,
    logs: Annotated[bool, typer.Option("--logs", help="The detached server's log, when it is not running.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is touched.")] = False,
    state: serve.StateOption = None,
) -> int:
    """Show what takes room and can be had again, and delete it with --yes.

    Only folders of the project below the working directory, and the state folder's log, are looked at; links are never followed.
    Exit codes: 0 done or shown, 3 something could not be deleted.
    """
    groups = [(models, MODELS), (caches, CACHES), (runs, RUNS)]
    if not any((models, caches, runs, logs)):
        raise UsageError("say what: --models, --caches, --runs, --logs, or several; nothing is deleted without --yes")
    here = Path.cwd()
    found = [one for wanted, paths in groups if wanted for path in paths for one in candidates(here, path)]
    if logs:
        found += log_files(serve.folder(state))
    return _delete(found, yes=yes)


def _delete(found: list[Doomed], *, yes: bool) -> int:
    terminal = Terminal()
    doomed = [one for one in found if not one.kept_because]
    failed = 0
    for one in found:
        told = one.kept_because and f"stays: {one.kept_because}"
        if yes and not told:
            try:
                _remove(one.path)
                told = "deleted"
            except OSError as error:
                failed += 1
                told = f"cannot be deleted: {error.strerror or error}"
        terminal.out.print(
            f"{size(one.size_bytes):>10}  {_shown(one.path)}{f'  ({told})' if told else ''}",
            soft_wrap=True,
            markup=False,
        )
    total = size(sum(one.size_bytes for one in doomed))
    if not doomed:
        terminal.out.print("there is nothing to delete")
    elif not yes:
        terminal.out.print(f"{total:>10}  in all; --yes deletes it", soft_wrap=True)
    return FAILED if failed else OK


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def candidates(root: Path, place: str) -> Iterator[Doomed]:
    """A folder of the project, if it is there; for runs each one by itself."""
    path = root
    for part in Path(place).parts:
        path /= part
        if path.is_symlink():
            yield Doomed(path, 0, f"it is a link, to {path.readlink()}")
            return
    if not path.is_dir():
        return
    if place not in RUNS:
        yield Doomed(path, bytes_of(path))
        return
    for entry in sorted(path.iterdir()):
        if entry.is_symlink():
            yield Doomed(entry, 0, f"it is a link, to {entry.readlink()}")
        else:
            yield Doomed(entry, bytes_of(entry), "it is being written" if under_way(entry) else "")


def under_way(run: Path) -> bool:
    """Whether a bench writes there at this moment: it tells how it stands every second."""
    newest = max((file.stat().st_mtime for file in run.rglob("progress.json")), default=0.0)
    return time.time() - newest < UNDER_WAY_SECONDS


def log_files(state: State) -> list[Doomed]:
    """The files of the server's log; they stay while it writes them."""
    from harness.lifecycle import log

    running = state.running()
    why = f"the server, process {running.pid}, is writing it" if running else ""
    return [
        Doomed(file, file.lstat().st_size, "it is a link" if file.is_symlink() else why)
        for file in log.files(state.log)
    ]


def bytes_of(path: Path) -> int:
    """What the files below take; links count as themselves."""
    if not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, names in os.walk(path, followlinks=False):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:
                continue  # it has gone meanwhile
    return total


def size(count: int) -> str:
    """Bytes for people."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = next((power for power in range(4) if count < 1024 ** (power + 1)), 4)
    return f"{count / 1024**power:.{1 if power else 0}f} {units[power]}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # it does not follow links, also not such as are put there meanwhile
    else:
        path.unlink()
