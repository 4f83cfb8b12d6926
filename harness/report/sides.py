"""Two sides held against each other: verdicts with paired differences and their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.report import figures
from harness.report.blocks import BAD, GOOD, UNSURE, Head, Plot, Row, Table, Value
from harness.report.cells import SIDES, Cell
from harness.report.figures import Shift
from harness.report.findings import at_delay, errors_said, soundness
from harness.report.plots import MOST_PANELS, plot

LEAD = (
    "A change counts only when it is significant (5 % over all tests, Holm's correction) and larger than what is allowed; "
    "else nobody can tell, or it does not matter. Above 0 is worse."
)
MOODS = {"worse": BAD, "better": GOOD, "cannot tell": UNSURE}
SIGNS = {"worse": "✗ ", "better": "✓ "}


@dataclass(frozen=True, slots=True)
class Change:
    """One measure of one pair of cells, judged: texts as people read them, ``shift`` for the plot where there is a scale for it."""

    cell: str
    measure: str
    label: str  # the measure without its unit
    before: str
    now: str
    change: str
    interval: str
    allowed: str
    sees: str
    n: int
    verdict: str
    why: str
    shift: Shift | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing two sides came to; where ``refused``, why it could not be done."""

    sentence: str
    changes: Sequence[Change] = ()
    refused: Sequence[str] = ()
    notes: Sequence[str] = ()


def headline(comparison: Comparison) -> str:
    """One sentence: in what B is better or worse, and in what nobody can tell."""
    if comparison.refused:
        return "A and B cannot be compared."
    parts = [
        f"{verdict} than A in {_told(comparison, verdict)}"
        for verdict in ("worse", "better")
        if _of(comparison, verdict)
    ]
    if not parts:
        return f"Whether B is better or worse than A these runs cannot tell, in any of {len(comparison.changes)} tests."
    rates = [one for one in comparison.changes if one.label in RATES]
    unsure = rates and all(one.verdict == "cannot tell" for one in rates)
    rest = f"; whether its {rates[0].label} differs these runs cannot tell" if unsure else ""
    return f"B is {' and '.join(parts)}{rest}."


RATES = ("WER", "CER")
NAMED = 5


def _of(comparison: Comparison, verdict: str) -> list[Change]:
    return [one for one in comparison.changes if one.verdict == verdict]


def _told(comparison: Comparison, verdict: str) -> str:
    """The measures, error rates first; how many cells each is of, or its figures where there is one cell."""
    found = _of(comparison, verdict)
    share = {one.label: sum(each.label == one.label for each in found) for one in found}
    labels = sorted(share, key=lambda label: (label not in RATES, -share[label]))
    several = len(_cells(comparison)) > 1
    said = []
    for label in labels[:NAMED]:
        own = [one for one in found if one.label == label]
        count = sum(one.label == label for one in comparison.changes)
        if not several:
            unit = own[0].measure.removeprefix(label).strip(" ()")
            said.append(
                f"{label} ({own[0].before} → {own[0].now}{f' {unit}' if unit else ''})"
                if len(labels) < NAMED
                else label
            )
        else:
            said.append(label if len(own) == count else f"{label} (in {len(own)} of {count} cells)")
    said += [f"{len(labels) - NAMED} more"] if len(labels) > NAMED else []
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


def deck(cells: Sequence[Cell]) -> str:
    """What A and B are."""
    parts = []
    for side in SIDES:
        own = [cell for cell in cells if cell.side == side]
        names = ", ".join(dict.fromkeys(_described(cell, several=len(own) > 1) for cell in own))
        parts.append(f"{side}: {names}; {errors_said(own)}")
    return f"{'. '.join(parts)}. {soundness(cells).capitalize()}."


def _described(cell: Cell, *, several: bool) -> str:
    config = cell.run.config
    options = " ".join(config.server_options)
    said = f"{config.engine} on {config.dataset}{f' ({options})' if options else ''}{f', {config.label}' if config.label else ''}"
    return said if several else f"{said} {at_delay(cell)}"


def plots(comparison: Comparison) -> list[Plot]:
    """How far each measure moved, a plot per pair of cells."""
    made = []
    for place, cell in enumerate(_cells(comparison)[:MOST_PANELS]):
        rows = [one.shift for one in comparison.changes if one.cell == cell and one.shift is not None]
        if rows:
            title = f"B less A, {cell}"
            caption = "Bars are 95 % intervals of the paired difference; in the shaded band lies what is allowed."
            made.append(plot(figures.shifts(rows, title), f"shifts{place}", title, caption))
    return made


def tables(comparison: Comparison) -> list[Table]:
    """Every test that was made, by pair of cells."""
    heads = [Head("measure", left=True), Head("A"), Head("B"), Head("change"), Head("allowed"),
             Head("sees", term="The smallest true change that would be called worse here four times out of five."), Head("n"),
             Head("verdict", left=True)]  # fmt: skip
    rows = []
    for cell in _cells(comparison):
        rows.append(Row(cell))
        rows += [
            Row(
                one.measure,
                [
                    Value(one.before),
                    Value(one.now),
                    Value(one.change, one.interval),
                    Value(one.allowed),
                    Value(one.sees),
                    Value(str(one.n)),
                    Value(f"{SIGNS.get(one.verdict, '')}{one.verdict}", one.why, mood=MOODS[one.verdict]),
                ],
                key=one.verdict != "cannot tell",
            )
            for one in comparison.changes
            if one.cell == cell
        ]
    return [Table(heads, rows)] if rows else []


def _cells(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(one.cell for one in comparison.changes))
