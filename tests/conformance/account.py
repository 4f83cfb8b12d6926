"""Promises held against tests: what is proven, what is not, and the page that says so."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.conformance.promises import Promise, promises
from tests.conformance.proofs import Proof, proofs

HERE = Path(__file__).parents[2]
PAGE = HERE / "docs" / "conformance.md"
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")

_HEAD = """\
# Conformance

What the pages in [protocols/](protocols/) promise to those who write clients, and the tests that prove it. A promise is a line of
a page that begins with its name, a proof is a test that is marked with that name: `@pytest.mark.spec("yap-07")`. A promise without a
test fails the tests. Written by `nox -s docs`; do not edit.
"""


@dataclass(frozen=True)
class Account:
    """All promises and all proofs."""

    promises: list[Promise]
    proofs: list[Proof]

    @classmethod
    def read(cls, root: Path = HERE) -> Account:
        """Of the project in this folder; raises ``PageError`` and ``MarkError``."""
        return cls(promises(root / "docs" / "protocols"), proofs(root / "tests"))

    @cached_property
    def proven_by(self) -> dict[str, list[Proof]]:
        """Each promise's tests, by name."""
        tests: dict[str, list[Proof]] = {promise.name: [] for promise in self.promises}
        for proof in self.proofs:
            if proof.promise in tests:
                tests[proof.promise].append(proof)
        return tests

    @property
    def unproven(self) -> list[str]:
        """Promises that no test proves."""
        return [name for name, tests in self.proven_by.items() if not tests]

    @property
    def unknown(self) -> list[Proof]:
        """Tests that name what nobody promises."""
        return [proof for proof in self.proofs if proof.promise not in self.proven_by]

    @property
    def repeated(self) -> list[str]:
        """Names that more than one promise has."""
        return [name for name, count in Counter(promise.name for promise in self.promises).items() if count > 1]

    def page(self) -> str:
        """docs/conformance.md."""
        surfaces = list(dict.fromkeys(promise.surface for promise in self.promises))
        lines = [_HEAD, "| surface | promises | proven | tests |", "|---|---|---|---|"]
        lines += [f"| [{surface}](#{surface}) | {self._counts(surface)} |" for surface in surfaces]
        lines.append(f"| all | {self._counts(*surfaces)} |")
        for surface in surfaces:
            lines += ["", f"## {surface}", "", f"[The page](protocols/{surface}.md).", ""]
            lines += ["| | promise | tests |", "|---|---|---|"]
            lines += [self._row(promise) for promise in self.promises if promise.surface == surface]
        return "\n".join(lines) + "\n"

    def _counts(self, *surfaces: str) -> str:
        """Promises, promises with a test, and tests; one that proves things of several surfaces counts once."""
        names = [promise.name for promise in self.promises if promise.surface in surfaces]
        proven = [self.proven_by[name] for name in names if self.proven_by[name]]
        return f"{len(names)} | {len(proven)} | {len({(test.file, test.test) for tests in proven for test in tests})}"

    def _row(self, promise: Promise) -> str:
        tests = self.proven_by[promise.name]
        links = "<br>".join(f"[{test.file}::{test.test}](../tests/{test.file})" for test in tests) or "**none**"
        text = _LINK.sub(r"\1", promise.text).replace("|", "\\|")
        return f"| {promise.name} | {text} | {links} |"
