"""Writes the manifests of the joined datasets: which utterances of another follow each other, after how much silence.

python datasets/make_long_form.py            # from the repository root; the seed is fixed, so it gives the same again
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 1_503
RECORDINGS = {  # of which utterances, how many recordings, and how many seconds each at most
    "long-form-3m": ("spoken-en", 2, 180.0),
    "long-form-15m": ("spoken-en", 1, 900.0),
    "spoken-numbers-30m": ("spoken-numbers", 1, 1_800.0),
}


def pauses(dice: random.Random) -> float:
    """Mostly short breaths, sometimes a pause after which an endpointer has cut; whole hundredths, so whole samples."""
    return round(dice.uniform(2.0, 3.5) if dice.random() < 0.15 else dice.uniform(0.1, 1.2), 2)


def shuffled_without_end(names: list[str], dice: random.Random) -> Iterator[str]:
    """All names in random order, then all again in another, so that none comes again before the rest have been."""
    while True:
        yield from dice.sample(names, len(names))


def main() -> None:
    """Writes the manifests."""
    for name, (source, count, limit_seconds) in RECORDINGS.items():
        rows = [json.loads(line) for line in (HERE / source / "manifest.jsonl").read_text("utf-8").splitlines()]
        seconds = {row["id"]: row["seconds"] for row in rows}
        dice = random.Random(f"{SEED}/{name}")
        order = shuffled_without_end(list(seconds), dice)
        lines = []
        for number in range(1, count + 1):
            parts, total, gap = [], 0.0, 0.5
            while total + gap + seconds[piece := next(order)] <= limit_seconds:
                parts.append({"from": source, "id": piece, "gap": gap})
                total += gap + seconds[piece]
                gap = pauses(dice)
            lines.append(json.dumps({"id": f"{name}-{number}", "tags": {"kind": "long-form"}, "parts": parts}))
        (HERE / name / "manifest.jsonl").write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
