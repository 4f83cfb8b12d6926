"""Writes the manifests of long-form-3m and long-form-15m: which utterances of spoken-en follow each other, after how much silence.

python datasets/make_long_form.py            # from the repository root; the seed is fixed, so it gives the same again
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 1_503
RECORDINGS = {"long-form-3m": (2, 180.0), "long-form-15m": (1, 900.0)}  # how many, and how many seconds each at most


def pauses(dice: random.Random) -> float:
    """Mostly short breaths, sometimes a pause after which an endpointer has cut; whole hundredths, so whole samples."""
    return round(dice.uniform(2.0, 3.5) if dice.random() < 0.15 else dice.uniform(0.1, 1.2), 2)


def shuffled_without_end(names: list[str], dice: random.Random) -> Iterator[str]:
    """All names in random order, then all again in another, so that none comes again before the rest have been."""
    while True:
        yield from dice.sample(names, len(names))


def main() -> None:
    """Writes both manifests."""
    rows = [json.loads(line) for line in (HERE / "spoken-en" / "manifest.jsonl").read_text("utf-8").splitlines()]
    seconds = {row["id"]: row["seconds"] for row in rows}
    for name, (count, limit_seconds) in RECORDINGS.items():
        dice = random.Random(f"{SEED}/{name}")
        order = shuffled_without_end(list(seconds), dice)
        lines = []
        for number in range(1, count + 1):
            parts, total, gap = [], 0.0, 0.5
            while total + gap + seconds[piece := next(order)] <= limit_seconds:
                parts.append({"from": "spoken-en", "id": piece, "gap": gap})
                total += gap + seconds[piece]
                gap = pauses(dice)
            lines.append(json.dumps({"id": f"{name}-{number}", "tags": {"kind": "long-form"}, "parts": parts}))
        (HERE / name / "manifest.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
