"""A search that was made, read back with its runs: where latency begins to rise, and what can be said of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness import statistics
from harness.report import ladders
from harness.report.cells import Cell, load
from harness.report.ladders import Ladder
from harness.report.wording import percent_with_interval
from harness.statistics import Difference

SEARCHES = Path("reports/capacity")
ALLOWANCE_SECONDS = 0.1  # a rise that nobody minds
RISING = {  # the first of them that the runs have
    "word_emission_latency_p95": "p95 of a stream's word latency",
    "time_to_final": "time to final",
    "first_token_from_start": "first token",
}


@dataclass(frozen=True, slots=True)
class Found:
    """A search and the runs of those of its rungs that left one, by streams."""

    ladder: Ladder
    cells: list[Cell]

    @property
    def rising(self) -> str:
        """The measure that shows where latency begins to rise."""
        return next(name for name in RISING if any(cell.scored[name].notna().any() for cell in self.cells))


def newest(root: Path = SEARCHES) -> Path | None:
    """The search that ``EARMARK_CAPACITY`` names, else the one that was written last under ``root``."""
    if named := os.environ.get("EARMARK_CAPACITY"):
        return Path(named)
    found = sorted(root.glob("*/capacity.json"), key=lambda path: path.stat().st_mtime)
    return found[-1].parent if found else None


def read(folder: Path) -> Found:
    """The search in ``folder``.

    Raises:
        StoreError: there is none, or it is of a later version.
    """
    ladder = ladders.read(folder)
    return Found(ladder, load([folder / "runs" / one["run"] for one in ladder.rungs if one["run"]]))


def rises(found: Found) -> list[tuple[int, Difference]]:
    """For each number of streams, by how much the latency lies above that of one stream, in seconds, paired over utterances."""
    by_streams: dict[int, list[Cell]] = {}
    for cell in found.cells:
        by_streams.setdefault(cell.run.config.concurrency, []).append(cell)
    if 1 not in by_streams:
        return []
    idle = _by_utterance(by_streams[1], found.rising)
    made = []
    for streams, cells in sorted(by_streams.items()):
        if streams == 1:
            continue
        loaded = _by_utterance(cells, found.rising)
        both = idle.merge(loaded, left_index=True, right_index=True, suffixes=("_idle", "_loaded"))
        blocks = by_streams[1][0].bootstrap_blocks(list(both.index), list(both["speaker_idle"]))
        shift = statistics.paired_shift(both["seconds_idle"].to_numpy(), both["seconds_loaded"].to_numpy(), blocks)
        made.append((streams, shift))
    return made


def _by_utterance(cells: Sequence[Cell], column: str) -> pd.DataFrame:
    rows = pd.concat([cell.scored for cell in cells]).dropna(subset=[column])
    return rows.groupby("utterance").agg(seconds=(column, "mean"), speaker=("speaker", "first"))


def knee(
    points: Sequence[tuple[int, Difference]], allowance: float = ALLOWANCE_SECONDS
) -> tuple[int | None, int | None]:
    """The knee lies above the first number of streams and at most at the second; ``None`` where that cannot be told.

    The first is the most streams at which the rise is surely within the allowance, with nothing below it that surely is not; the second
    the fewest from which on every rise surely exceeds it.
    """
    beyond: int | None = None
    for streams, change in reversed(points):
        if change.low is None or change.low <= allowance:
            break
        beyond = streams
    within: int | None = None
    for streams, change in points:
        if change.low is not None and change.low > allowance:
            break
        if change.high is not None and change.high <= allowance:
            within = streams
    return within, beyond


def conclude(found: Found, allowance: float = ALLOWANCE_SECONDS) -> list[str]:
    """The answer, the knee and the accuracy under load, each with what bounds it."""
    ladder, points = found.ladder, rises(found)
    said = [ladder.sentence, *ladder.notes]
    if ladder.streams:
        until = f"and fewer than {ladder.above}" if ladder.limited_by == "slo" else "(nothing bounds it above)"
        said.append(f"So the capacity within these limits is at least {ladder.streams} {until}, to the search's step.")
    what, much = RISING[found.rising], f"{allowance * 1000:g} ms"
    within, beyond = knee(points, allowance)
    rise: dict[int | None, str] = {streams: _milliseconds(change) for streams, change in points}
    match within, beyond:
        case None, None:
            at = "; ".join(f"{streams}: {text}" for streams, text in rise.items())
            said.append(f"Cannot tell where the {what} begins to rise by more than {much}{f' ({at})' if at else ''}.")
        case None, int():
            said.append(
                f"The {what} rises by more than {much} from {beyond} streams on ({rise[beyond]}); below, cannot tell."
            )
        case int(), None:
            said.append(
                f"Up to {within} streams the {what} rises by less than {much} ({rise[within]}); beyond, cannot tell."
            )
        case _:
            said.append(
                f"The knee, where the {what} rises by more than {much} over one stream's, lies above {within} and at most at {beyond} "
                f"streams ({rise[within]} at {within}, {rise[beyond]} at {beyond})."
            )
    return [*said, *_accuracy(found)]


def _milliseconds(change: Difference) -> str:
    interval = (
        "" if change.low is None or change.high is None else f" [{1000 * change.low:+.0f}, {1000 * change.high:+.0f}]"
    )
    return "unknown" if change.value is None else f"{1000 * change.value:+.0f}{interval} ms"


def _accuracy(found: Found) -> list[str]:
    idle = next((cell for cell in found.cells if cell.run.config.concurrency == 1), None)
    held = [
        one
        for one in found.ladder.rungs
        if one["verdict"] == "holds" and one["streams"] > 1 and one.get("wer_rise") is not None
    ]
    if idle is None or not held:
        return []
    most = max(held, key=lambda one: one["streams"])
    low, high = most.get("wer_rise_low"), most.get("wer_rise_high")
    alone = f"WER of one stream {percent_with_interval(idle.scores.accuracy.wer)}"
    if low is None or high is None:
        return [f"{alone}; whether load changes it: cannot tell, too few recordings."]
    verdict = "cannot tell it from no change" if low <= 0 <= high else "a change"
    change = f"{100 * most['wer_rise']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points"
    return [f"{alone}; with {most['streams']} it changes by {change}: {verdict}."]
