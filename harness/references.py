"""References with more than one right answer: ``{a|b}`` is either, ``{a|}`` may be missing, ``<*>`` is anything or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_CHOICE = re.compile(r"\{([^{}]*\|[^{}]*)\}|<\*>")
_ERROR = 1 << 32  # in a cost, errors go before the number of words that were right


@dataclass(frozen=True, slots=True)
class Choice:
    """A place of a reference: one of the alternatives is said there, or, where there are none, anything at all."""

    alternatives: tuple[str, ...]


def has_choices(reference: str) -> bool:
    """True where the text leaves open what is said. A brace without ``|`` is a brace."""
    return _CHOICE.search(reference) is not None


def parse(reference: str) -> list[Choice]:
    """The places of a reference in order; plain text is a place with one alternative."""
    places: list[Choice] = []
    end = 0
    for match in _CHOICE.finditer(reference):
        if before := reference[end : match.start()].strip():
            places.append(Choice((before,)))
        options = match.group(1)
        places.append(Choice(() if options is None else tuple(option.strip() for option in options.split("|"))))
        end = match.end()
    if rest := reference[end:].strip():
        places.append(Choice((rest,)))
    return places


def problem(reference: str) -> str | None:
    """What is wrong with how alternatives are written, or ``None``."""
    rest = _CHOICE.sub(" ", reference)
    if ("{" in rest and "|" in rest) or rest.count("{") != rest.count("}"):
        return f"braces that hold no alternatives in {reference!r}: write {{a|b}}, not nested, and close what is opened"
    return None


def plain(reference: str) -> str:
    """The text with the first of all alternatives, and nothing where anything goes."""
    if not has_choices(reference):
        return reference
    return " ".join(place.alternatives[0] for place in parse(reference) if place.alternatives and place.alternatives[0])


@dataclass(frozen=True, slots=True)
class _Cell:
    """The cheapest way to a place: its cost, and what was chosen on it, latest last."""

    cost: int
    path: _Path | None


@dataclass(frozen=True, slots=True)
class _Path:
    before: _Path | None
    words: Sequence[str]
    absorbed: tuple[int, int] | None  # where anything goes: the words of the hypothesis that stand there


Stretch = tuple[list[str], list[str]]
"""Words of a reference, alternatives chosen, and the words of the hypothesis that they are to be compared with."""


def resolve(reference: str, hypothesis: Sequence[str], words: Callable[[str], list[str]]) -> list[Stretch]:
    """The stretches between the places where anything goes, in order; the words that stand in such places are left out.

    Chosen is what leaves the fewest errors; then what makes most words right; then what is listed first. ``words`` takes a text apart,
    and does so for every alternative and for the text between two choices by itself.
    """
    if not has_choices(reference):
        return [(words(reference), list(hypothesis))]
    row = [_Cell(place * _ERROR, None) for place in range(len(hypothesis) + 1)]
    for place in parse(reference):
        if not place.alternatives:
            row = _anything(row)
            continue
        ends = [_spoken(row, words(text), hypothesis) for text in place.alternatives]
        row = [min(cells, key=lambda cell: cell.cost) for cells in zip(*ends, strict=True)]  # the first of equals
    stretches: list[Stretch] = []
    said: list[Sequence[str]] = []
    path, end = row[-1].path, len(hypothesis)
    while True:
        if path is None or path.absorbed is not None:
            begin = 0 if path is None or path.absorbed is None else path.absorbed[1]
            stretches.append(([word for words in reversed(said) for word in words], list(hypothesis[begin:end])))
            said = []
        if path is None:
            return stretches[::-1]
        if path.absorbed is not None:
            end = path.absorbed[0]
        said.append(path.words)
        path = path.before


def _anything(row: list[_Cell]) -> list[_Cell]:
    """What the words up to each place cost when those from any earlier place on are free."""
    best, since = row[0], 0
    found = []
    for place, cell in enumerate(row):
        if cell.cost <= best.cost:  # of equals the one that takes the fewest words for anything
            best, since = cell, place
        found.append(_Cell(best.cost, _Path(best.path, (), (since, place))))
    return found


def _spoken(row: list[_Cell], said: Sequence[str], hypothesis: Sequence[str]) -> list[_Cell]:
    """Levenshtein's rows for the words of one alternative, from the row at which it begins to the one at which it ends."""
    costs = [cell.cost for cell in row]
    origins = list(range(len(row)))  # the cell of the first row from which each cell was reached
    for word in said:
        new_costs, new_origins = [costs[0] + _ERROR], [origins[0]]
        for place, heard in enumerate(hypothesis):
            ways = (
                (costs[place] + (-1 if word == heard else _ERROR), origins[place]),
                (costs[place + 1] + _ERROR, origins[place + 1]),
                (new_costs[place] + _ERROR, new_origins[place]),
            )
            cost, origin = min(ways, key=lambda way: way[0])
            new_costs.append(cost)
            new_origins.append(origin)
        costs, origins = new_costs, new_origins
    return [_Cell(cost, _Path(row[origin].path, said, None)) for cost, origin in zip(costs, origins, strict=True)]
