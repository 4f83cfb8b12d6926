"""The console that a command writes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_FILES = 160


def console(*, stderr: bool) -> Console:
    """A console as wide as the terminal; where there is none, as wide as a log wants it."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, WIDTH_OF_FILES)  # a table in a log should not be cut to the terminal of nobody
    return made
