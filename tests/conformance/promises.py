"""The promises of the pages in docs/protocols/: lines that begin ``- **SURFACE-nn** ``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROMISE = re.compile(r"- \*\*(?P<surface>[a-z][a-z0-9]*)-(?P<number>[0-9]{2,3})\*\* (?P<text>\S.*)")
_LIKE_A_PROMISE = re.compile(r"\s*[-*+]\s*\*\*\s*[A-Za-z][A-Za-z0-9]*-[0-9]+")
_FENCE = re.compile(r"\s*(```|~~~)")


class PageError(ValueError):
    """A page has a line that is nearly a promise; says where, and what the line should be."""


@dataclass(frozen=True, slots=True)
class Promise:
    """One thing that clients of a surface may rely on.

    ``name`` is its id, such as ``yap-07``; ``surface`` the part before the number, which is the page's name; ``text`` one line.
    """

    name: str
    surface: str
    text: str
    page: Path
    line: int


def promises(pages: Path) -> list[Promise]:
    """All promises of the pages in this folder, by page and in its order; raises ``PageError``."""
    return [promise for page in sorted(pages.glob("*.md")) for promise in _of_page(page)]


def _of_page(page: Path) -> Iterator[Promise]:
    """A promise goes on over the indented lines that follow it."""
    lines = page.read_text(encoding="utf-8").splitlines()
    fenced = False
    for at, line in enumerate(lines):
        if _FENCE.match(line):
            fenced = not fenced
        if fenced or not _LIKE_A_PROMISE.match(line):
            continue
        found = _PROMISE.fullmatch(line.rstrip())
        if found is None:
            raise PageError(f"{page}:{at + 1}: write a promise as '- **{page.stem}-07** text', not {line.strip()!r}")
        surface = found["surface"]
        if surface != page.stem:
            raise PageError(
                f"{page}:{at + 1}: promises of {surface} belong to {surface}.md; here they are {page.stem}-nn"
            )
        text = [found["text"]]
        for more in lines[at + 1 :]:
            if not more.strip() or not more.startswith("  ") or _LIKE_A_PROMISE.match(more):
                break
            text.append(more.strip())
        yield Promise(f"{surface}-{found['number']}", surface, " ".join(text), page, at + 1)
