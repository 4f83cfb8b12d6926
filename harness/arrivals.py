"""Arrival processes: when streams begin, whatever the server does, or that each lane begins its next one when its last has ended."""

from __future__ import annotations

import csv
import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice, takewhile
from pathlib import Path

MOST_ARRIVALS = 1_000_000
MOST_PER_SECOND = 10_000.0
LONGEST_SCHEDULE_SECONDS = 7 * 86_400.0
SHAPES = "closed, poisson:PER_SECOND, fixed:PER_SECOND, ramp:FROM-TO:SECONDS or file:PATH"


class ArrivalError(ValueError):
    """An arrival process cannot be read as written; the message says what is expected."""


@dataclass(frozen=True, slots=True)
class Closed:
    """So many lanes, always busy: the load gives way to a slow server, so it finds the capacity and never an overload."""

    def __str__(self) -> str:
        return "closed"


@dataclass(frozen=True, slots=True)
class Poisson:
    """Streams of people who do not know of each other: exponential gaps, so many a second in the mean."""

    per_second: float

    def __str__(self) -> str:
        return f"poisson:{self.per_second:g}"


@dataclass(frozen=True, slots=True)
class Fixed:
    """One stream every ``1 / per_second`` seconds."""

    per_second: float

    def __str__(self) -> str:
        return f"fixed:{self.per_second:g}"


@dataclass(frozen=True, slots=True)
class Ramp:
    """A Poisson process whose rate goes from one value to another in a straight line, and stays there."""

    from_per_second: float
    to_per_second: float
    seconds: float

    def __str__(self) -> str:
        return f"ramp:{self.from_per_second:g}-{self.to_per_second:g}:{self.seconds:g}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """Streams at recorded times. Each start may name its utterance; ``None`` leaves the choice to the order of the run."""

    starts: tuple[tuple[float, str | None], ...]
    name: str = "schedule"

    @property
    def sha256(self) -> str:
        """Of times and names: two files that say the same are the same schedule."""
        told = "\n".join(f"{seconds:.6f},{utterance or ''}" for seconds, utterance in self.starts)
        return hashlib.sha256(told.encode()).hexdigest()

    def __str__(self) -> str:
        return f"file:{self.name}#{self.sha256[:12]}"


Open = Poisson | Fixed | Ramp | Recorded
Arrivals = Closed | Open


def parse(text: str) -> Arrivals:
    """The arrival process that a text names.

    Raises:
        ArrivalError: it names none, or its numbers make no sense.
    """
    kind, _, rest = text.strip().partition(":")
    match kind:
        case "closed" if not rest:
            return Closed()
        case "poisson":
            return Poisson(_rate(rest, text))
        case "fixed":
            return Fixed(_rate(rest, text))
        case "ramp":
            return _ramp(rest, text)
        case "file" if rest:
            return read(Path(rest))
    raise ArrivalError(f"arrival {text!r}: {SHAPES} is expected")


def _ramp(rest: str, text: str) -> Ramp:
    rates, _, seconds = rest.partition(":")
    first, dash, last = rates.partition("-")
    if not dash:
        raise ArrivalError(f"arrival {text!r}: two rates with a dash between them are expected, e.g. ramp:0.5-4:60")
    ramp = Ramp(_number(first, text), _rate(last, text), _number(seconds, text))
    if not 0 <= ramp.from_per_second <= MOST_PER_SECOND or not 0 < ramp.seconds <= LONGEST_SCHEDULE_SECONDS:
        raise ArrivalError(
            f"arrival {text!r}: rates from 0 to {MOST_PER_SECOND:g} per second and a positive time are expected"
        )
    return ramp


def _rate(part: str, text: str) -> float:
    rate = _number(part, text)
    if not 0 < rate <= MOST_PER_SECOND:
        raise ArrivalError(f"arrival {text!r}: a rate above 0 and up to {MOST_PER_SECOND:g} per second is expected")
    return rate


def _number(part: str, text: str) -> float:
    try:
        number = float(part)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ArrivalError(f"arrival {text!r}: {part!r} is no number; {SHAPES} is expected")
    return number


def read(path: Path) -> Recorded:
    """A recorded schedule: a CSV file with the columns ``start_seconds`` and, if wanted, ``utterance``; or one number on each line.

    Starts are counted from the first one that the file has, so a log of absolute times will do. They are sorted.

    Raises:
        ArrivalError: naming the file, the line and what is wrong with it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArrivalError(f"the schedule {path} cannot be read: {error}") from error
    rows = [
        (number, row)
        for number, row in zip(count(1), csv.reader(lines), strict=False)
        if any(cell.strip() for cell in row) and not row[0].lstrip().startswith("#")
    ]
    columns = {"start_seconds": 0, "utterance": 1}
    if rows and "start_seconds" in (names := [name.strip() for name in rows[0][1]]):
        columns = {name: at for at, name in enumerate(names)}
        rows = rows[1:]
    if not rows:
        raise ArrivalError(f"the schedule {path} has no start: a column start_seconds is expected")
    if len(rows) > MOST_ARRIVALS:
        raise ArrivalError(f"the schedule {path} has {len(rows)} starts, at most {MOST_ARRIVALS}")
    starts = sorted((_start(row, columns, f"{path}:{number}") for number, row in rows), key=lambda start: start[0])
    first = starts[0][0]
    if starts[-1][0] - first > LONGEST_SCHEDULE_SECONDS:
        raise ArrivalError(f"the schedule {path} is longer than a week: are its times in seconds?")
    return Recorded(tuple((seconds - first, utterance) for seconds, utterance in starts), path.stem)


def _start(row: Sequence[str], columns: dict[str, int], place: str) -> tuple[float, str | None]:
    at, named = columns["start_seconds"], columns.get("utterance")
    cell = row[at] if at < len(row) else ""
    try:
        seconds = float(cell)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise ArrivalError(f"{place}: start_seconds is {cell!r}, a number of seconds is expected")
    utterance = row[named].strip() if named is not None and named < len(row) else ""
    return seconds, utterance or None


def starts(arrivals: Open, seed: int) -> Iterator[tuple[float, str | None]]:
    """Start in seconds after the beginning and the utterance that it names, without end but for recorded schedules."""
    match arrivals:
        case Recorded(recorded):
            yield from recorded
        case Fixed(per_second):
            yield from ((number / per_second, None) for number in count())
        case Poisson(per_second):
            yield from ((units / per_second, None) for units in _unit_poisson(seed))
        case Ramp():
            yield from ((_reached(arrivals, units), None) for units in _unit_poisson(seed))


def _unit_poisson(seed: int) -> Iterator[float]:
    gaps, reached = random.Random(f"arrivals {seed}"), 0.0
    while True:
        reached += gaps.expovariate(1.0)
        yield reached


def _reached(ramp: Ramp, units: float) -> float:
    """The moment up to which a ramp expects ``units`` arrivals: the inverse of the integral of its rate."""
    first, last, seconds = ramp.from_per_second, ramp.to_per_second, ramp.seconds
    whole = (first + last) / 2 * seconds
    if units >= whole:
        return seconds + (units - whole) / last
    slope = (last - first) / seconds
    # first * t + slope / 2 * t^2 = units, in the form that also holds for a slope of 0
    return 2 * units / (first + math.sqrt(max(0.0, first * first + 2 * slope * units)))


def planned(arrivals: Open, seed: int, most: int, seconds: float | None = None) -> list[tuple[float, str | None]]:
    """The first ``most`` starts, those before ``seconds`` only."""
    first = islice(starts(arrivals, seed), most)
    return list(first if seconds is None else takewhile(lambda start: start[0] < seconds, first))
