"""A Dockerfile as stages of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stage:
    """``instructions`` are pairs of the upper-case word and the rest, lines joined."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, word: str) -> list[str]:
        return [rest for one, rest in self.instructions if one == word]


def stages(path: Path) -> dict[str, Stage]:
    """The stages by name; arguments before the first are put in."""
    text = re.sub(
        r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    )
    arguments: dict[str, str] = {}
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in filter(str.strip, text.splitlines()):
        word, _, rest = line.strip().partition(" ")
        rest = " ".join(rest.split())
        if word == "FROM":
            base, _, name = re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], rest).partition(" AS ")
            current = found[name] = Stage(name, base)
        elif current is None:
            assert word == "ARG", word
            name, _, default = rest.partition("=")
            arguments[name] = default
        else:
            current.instructions.append((word, rest))
    return found
