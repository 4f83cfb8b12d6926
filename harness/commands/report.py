"""``earmark report``: the page about runs, a study or a capacity search."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.commands.folders import expand
from harness.commands.terminal import Terminal

FOR_THEMSELVES = ("capacity.json", "study.parquet")  # a folder with one of these has a page of its own kind


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, folders of a bench, a study or a capacity search.", metavar="RUN..."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file to write.", show_default="report.html in the first folder")
    ] = None,
) -> int:
    """Write one HTML page about scored runs, or about a study or a capacity search."""
    from harness import report as reports

    page = out or runs[0] / "report.html"
    if len(runs) == 1 and any((runs[0] / name).exists() for name in FOR_THEMSELVES):
        reports.report(runs, page)
        Terminal().out.print(f"report: {page}", soft_wrap=True)
        return 0
    folders = [folder for path in runs for folder in expand([path / "runs" if _keeps_runs(path) else path])]
    show(folders, page, Terminal())
    return 0


def _keeps_runs(path: Path) -> bool:
    """Beside other folders a study or a search stands for its runs."""
    return any((path / name).exists() for name in FOR_THEMSELVES)


def show(folders: list[Path], page: Path | None, terminal: Terminal) -> Path | None:
    """The table of the runs on the terminal and, if wanted, the page."""
    from harness import report as reports
    from harness.report.cells import read_scores
    from harness.store import read_run

    if page is not None:
        terminal.say("writing the report")
        reports.report(folders, page)
    caveats = dict.fromkeys(read_run(folder).config.caveat for folder in folders)
    terminal.out.print(
        reports.console_table([read_scores(folder) for folder in folders], [text for text in caveats if text])
    )
    if page is not None:
        terminal.out.print(f"report: {page}", soft_wrap=True, highlight=False)
    else:
        for folder in folders:
            terminal.out.print(f"run: {folder}", soft_wrap=True, highlight=False)
    return page
