"""What a command writes to: consoles, progress, and the command as it may be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from harness.bench import Watcher

WIDTH_OF_FILES = 160
LINES_EVERY = 20
"""Seconds between lines of progress where there is no terminal to draw on."""


def console(*, stderr: bool) -> Console:
    """A console as wide as the terminal; where there is none, as wide as a log wants it."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, WIDTH_OF_FILES)  # a table in a log should not be cut to the terminal of nobody
    return made


class Terminal:
    """Progress goes to stderr, results to stdout."""

    def __init__(self, *, everything_to_stderr: bool = False) -> None:
        self.err = console(stderr=True)
        self.out = self.err if everything_to_stderr else console(stderr=False)
        self._bar: Any = None
        self._task: Any = None
        self._label = ""
        self._calls = 0

    def say(self, text: str) -> None:
        self.err.print(text, style="dim", soft_wrap=True)

    def watcher(self) -> Watcher:
        from harness.bench import Watcher

        return Watcher(self.say, self._begin, self._progress, self._end)

    def _begin(self, label: str, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._label = label
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[counts]}"),
        )
        # no thread of its own: it would take the interpreter from the replay whenever it likes
        self._bar = Progress(*columns, console=self.err, auto_refresh=False, transient=True)
        self._task = self._bar.add_task(label, total=total, counts="warming up")
        if self.err.is_terminal:
            self._bar.start()
            self._bar.refresh()

    def _progress(self, progress: Any) -> None:
        counts = (
            f"{progress.active} active, {progress.failed} failed, {progress.words} words, "
            f"packets at most {progress.worst_lateness_seconds * 1000:.1f} ms late"
        )
        self._calls += 1
        if self.err.is_terminal:
            self._bar.update(self._task, completed=progress.done + progress.failed, counts=counts)
            self._bar.refresh()
        elif self._calls % LINES_EVERY == 0:
            self.err.print(
                f"{self._label}: {progress.done + progress.failed}/{progress.total} done, {counts}", soft_wrap=True
            )

    def _end(self) -> None:
        if self._bar is not None and self.err.is_terminal:
            self._bar.stop()


SECRET_OPTIONS = ("--api-key", "--header")


def public_arguments(arguments: list[str]) -> list[str]:
    """The command as given, keys replaced."""
    shown: list[str] = []
    for previous, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, _ = argument.partition("=")
        hidden = name in SECRET_OPTIONS and equals
        shown.append(f"{name}=..." if hidden else "..." if previous in SECRET_OPTIONS else argument)
    return shown
