"""The search for the largest number of streams that holds: which rung is measured next, given all that have been measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

MOST_UNCLEAR = 3
"""A rung that the generator could not hold so many times is taken to be out of its reach."""


class Verdict(StrEnum):
    """What one measurement of a rung says."""

    HOLDS = "holds"
    FAILS = "fails"
    UNCLEAR = "unclear"  # the generator did not keep its own schedule: nothing is said about the server


class Purpose(StrEnum):
    """Why a rung is measured."""

    IDLE = "idle"  # one stream: the least that can be asked, and what accuracy is when nothing else is going on
    SEARCH = "search"
    CONFIRM = "confirm"
    SOAK = "soak"


@dataclass(frozen=True, slots=True)
class Trial:
    """One measurement: so many streams, and what it said."""

    streams: int
    verdict: Verdict
    soak: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured next."""

    streams: int
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class Answer:
    """``streams`` is the largest number that held, 0 when not even one did. ``above`` is the rung that bounds it, ``None`` when
    ``limited_by`` is ``most``. With ``limited_by`` ``generator`` or ``most`` the server may carry more.
    """

    streams: int
    above: int | None
    limited_by: str  # "slo", "generator" or "most"
    repeats: int  # measurements in which it held
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where and how closely is searched. ``start`` is the first rung after one stream; rungs end up ``step`` apart."""

    start: int = 2
    most: int = 512
    step: int = 1
    repeats: int = 3
    soak: bool = False

    def __post_init__(self) -> None:
        for name in ("start", "most", "step", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.start > self.most:
            raise ValueError(f"start is {self.start}, beyond most, {self.most}")


def next_step(trials: Sequence[Trial], bounds: Bounds) -> Wanted | Answer:
    """What to measure next, or the answer. Depends on what was measured alone, so a search goes on wherever it was left.

    One stream first; then doubled until a rung fails; then the gap between the highest that held and the lowest that failed is
    halved until they are a step apart; then the first is measured until it has held ``repeats`` times and the other once more. A
    rung that failed once has failed: then the search goes on below it.
    """
    rungs = _Rungs(trials, bounds)
    if not rungs.settled(1):
        return Wanted(1, Purpose.IDLE)
    if rungs.out_of_reach(1):
        return Answer(0, 1, "generator", 0, ("the generator could not keep the pace of a single stream",))
    bad = rungs.lowest_bad()
    good = rungs.highest_good(bad)
    wanted = _further(good, bad, bounds)
    if wanted is not None:
        return Wanted(wanted, Purpose.SEARCH)
    if good and rungs.wants_more(good):
        return Wanted(good, Purpose.CONFIRM)
    if bad is not None and rungs.fails(bad) == 1 and rungs.count(bad) < 2:
        return Wanted(bad, Purpose.CONFIRM)
    if good and bounds.soak and rungs.wants_soak(good):
        return Wanted(good, Purpose.SOAK)
    limited_by = "most" if bad is None else "generator" if not rungs.fails(bad) else "slo"
    return Answer(good, bad, limited_by, rungs.holds(good), tuple(rungs.notes(good, bad)))


def _further(good: int, bad: int | None, bounds: Bounds) -> int | None:
    """The next rung up or between; ``None`` when the two are a step apart, or ``good`` is the most that is asked for."""
    if bad is None:
        if good >= bounds.most:
            return None
        return min(bounds.most, max(2 * good, bounds.start))
    gap = bad - good
    return None if gap <= bounds.step else good + max(1, gap // 2 // bounds.step * bounds.step)


class _Rungs:
    """Trials, counted by rung."""

    def __init__(self, trials: Sequence[Trial], bounds: Bounds) -> None:
        self._trials, self._bounds = trials, bounds
        self._measured = sorted({trial.streams for trial in trials})

    def _of(self, streams: int, verdict: Verdict, *, soak: bool | None = None) -> int:
        return sum(
            trial.streams == streams and trial.verdict is verdict and soak in (None, trial.soak)
            for trial in self._trials
        )

    def holds(self, streams: int) -> int:
        return self._of(streams, Verdict.HOLDS)

    def fails(self, streams: int) -> int:
        return self._of(streams, Verdict.FAILS)

    def unclear(self, streams: int) -> int:
        return self._of(streams, Verdict.UNCLEAR)

    def count(self, streams: int) -> int:
        return sum(trial.streams == streams for trial in self._trials)

    def settled(self, streams: int) -> bool:
        return bool(self.holds(streams) or self.fails(streams)) or self.unclear(streams) >= MOST_UNCLEAR

    def out_of_reach(self, streams: int) -> bool:
        return self.settled(streams) and not self.holds(streams) and not self.fails(streams)

    def lowest_bad(self) -> int | None:
        return next((streams for streams in self._measured if self.fails(streams) or self.out_of_reach(streams)), None)

    def highest_good(self, bad: int | None) -> int:
        below = [streams for streams in self._measured if self.holds(streams) and (bad is None or streams < bad)]
        return max(below, default=0)

    def wants_more(self, streams: int) -> bool:
        return self.holds(streams) < self._bounds.repeats and self.unclear(streams) < MOST_UNCLEAR

    def wants_soak(self, streams: int) -> bool:
        tried = sum(trial.streams == streams and trial.soak for trial in self._trials)
        return not self._of(streams, Verdict.HOLDS, soak=True) and tried < MOST_UNCLEAR

    def notes(self, good: int, bad: int | None) -> list[str]:
        """What a reader of the answer has to know."""
        found = []
        if good and self.holds(good) < self._bounds.repeats:
            found.append(
                f"{good} streams held in {self.holds(good)} valid measurements, {self._bounds.repeats} were wanted: "
                "the generator could not keep its schedule in the others"
            )
        if bad is not None and self.fails(bad) and self.holds(bad):
            found.append(
                f"{bad} streams held in {self.holds(bad)} of {self.holds(bad) + self.fails(bad)} measurements: the edge is not sharp"
            )
        above = [streams for streams in self._measured if bad is not None and streams > bad and self.holds(streams)]
        if above:
            found.append(
                f"{above[-1]} streams held once although {bad} failed: other work may have disturbed the machine"
            )
        if (
            good
            and self._bounds.soak
            and self.wants_soak(good) is False
            and not self._of(good, Verdict.HOLDS, soak=True)
        ):
            found.append(f"no soak of {good} streams was valid: the generator could not keep its schedule for so long")
        return found
