"""``earmark log``: tell MLflow or Weights & Biases of finished runs, and the option that lets a bench do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

LogTo = Annotated[
    list[str] | None,
    typer.Option(help="Tell a tracker of the runs as well: mlflow or wandb; repeatable.", show_default="none"),
]
FAILED = 3


def log(
    runs: Annotated[list[Path], typer.Argument(help="Scored runs, or folders of a bench.", metavar="RUN...")],
    to: Annotated[list[str], typer.Option(help="mlflow or wandb; repeatable.")],
    experiment: Annotated[str, typer.Option(help="MLflow's experiment, W&B's project.")] = "earmark",
) -> int:
    """Tell a tracker of runs: settings, headline figures with their intervals, commit and machine, report. One run per cell."""
    from harness.commands.folders import expand
    from harness.commands.terminal import console

    check(to)
    out = console(stderr=False)
    folders = [(folder, _page(path)) for path in runs for folder in expand([path])]
    tell(to, folders, lambda text: out.print(text, soft_wrap=True, markup=False), experiment)
    return 0


def check(trackers: Sequence[str]) -> None:
    """Refuse what cannot be told before anything is measured. Raises TrackingError."""
    if trackers:
        from harness import tracking

        for tracker in trackers:
            tracking.check(tracker)


def tell(
    trackers: Sequence[str],
    folders: Sequence[tuple[Path, Path | None]],
    say: Callable[[str], None],
    experiment: str = "earmark",
) -> None:
    """Tell every tracker of runs, each with the page about it. Raises TrackingError."""
    from harness import tracking

    found = [tracking.told(folder, page) for folder, page in folders]
    for tracker in dict.fromkeys(trackers):
        for line in tracking.tell(tracker, found, experiment):
            say(line)


def tell_of_bench(
    trackers: Sequence[str], folders: Sequence[Path], page: Path | None, say: Callable[[str], None]
) -> bool:
    """As `tell`, at the end of a bench, whose runs no tracker's trouble may cost; whether all were told."""
    from harness import tracking

    try:
        tell(trackers, [(folder, page) for folder in folders], say)
    except tracking.TrackingError as error:
        again = " ".join([*map(str, folders), *(f"--to {tracker}" for tracker in trackers)])
        say(f"{error}\nthe runs are kept; once that is mended: earmark log {again}")
        return False
    return True


def _page(path: Path) -> Path | None:
    """The report in the folder of a bench, which is about all its runs."""
    return path / "report.html" if (path / "bench.json").exists() else None
