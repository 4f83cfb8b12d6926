"""``python -m tests.conformance``: write docs/conformance.md, and say what is not proven."""

from __future__ import annotations

import sys

from tests.conformance.account import PAGE, Account


def main() -> int:
    """0, or 1 when a promise has no test or a test names no promise."""
    account = Account.read()
    PAGE.write_text(account.page(), encoding="utf-8")
    faults = [f"{name} has no test" for name in account.unproven]
    faults += [f"{proof.file}::{proof.test} names {proof.promise}, which no page has" for proof in account.unknown]
    faults += [f"{name} is promised more than once" for name in account.repeated]
    print(f"{PAGE.name}: {len(account.promises)} promises, {len(account.unproven)} of them unproven")
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
