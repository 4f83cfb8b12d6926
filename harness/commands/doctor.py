"""``earmark doctor``: what keeps a server or a bench from doing well here, line by line, and what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.commands import serve
from harness.commands.errors import UsageError
from harness.commands.watch import metrics_address

if TYPE_CHECKING:
    from rich.console import RenderableType

    from harness.doctor import Finding

OK, PROBLEM = 0, 1
WIDTH = 80
MARKS = {"ok": ("ok", "green"), "warning": ("warning", "yellow"), "problem": ("problem", "bold red")}


def doctor(
    target: Annotated[
        str | None, typer.Option(help="Look at this server (host:port or URL) and at what a bench against it needs.")
    ] = None,
    closed: Annotated[
        bool,
        typer.Option(
            "--closed", help="Of --target: whoever has no token must get 401 or 403 from what is for operators."
        ),
    ] = False,
    health_open: Annotated[
        bool, typer.Option("--health-open", help="With --closed: /health must be open, 200 or 503.")
    ] = False,
    state: serve.StateOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Check this machine, or a server elsewhere: each line is ok, a warning or a problem, with what to do.

    Exit codes: 0 no problem (there may be warnings), 1 a problem.
    """
    from harness import doctor as checks

    here = Path.cwd()
    if (closed and target is None) or (health_open and not closed):
        raise UsageError("--closed goes with --target URL, --health-open with --closed")
    if target is not None and closed:
        findings = list(checks.examine_operations(_base(target), health_open=health_open))
    elif target is None:
        findings = list(checks.examine(os.environ, here, serve.folder(state)))
    else:
        findings = list(checks.examine_target(_base(target), os.environ, here))
    problems = sum(one.verdict == "problem" for one in findings)
    if as_json:
        print(json.dumps({"ok": not problems, "findings": [dataclasses.asdict(one) for one in findings]}))
    else:
        _print(findings)
    return PROBLEM if problems else OK


def _base(target: str) -> str:
    return metrics_address(target).removesuffix("/metrics")


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    console.print(picture(findings))


def picture(findings: Sequence[Finding]) -> RenderableType:
    """A table without lines; what to do stands below what is the matter."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    for width in (7, 13, None):
        table.add_column(width=width, overflow="fold")
    for one in findings:
        mark, style = MARKS[one.verdict]
        said = Text(one.said)
        if one.todo and one.verdict != "ok":
            said.append(f"\n→ {one.todo}", style="italic")
        table.add_row(Text(mark, style=style), one.check, said)
    counts = {verdict: sum(one.verdict == verdict for one in findings) for verdict in MARKS}
    told = [
        f"{counts[name]} {name}{'s' if counts[name] != 1 else ''}" for name in ("problem", "warning") if counts[name]
    ]
    return Group(table, Text(f"\n{', '.join(told) if told else 'all is well'}", style="bold"))
