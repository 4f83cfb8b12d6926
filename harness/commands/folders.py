"""Which run folders a command line means."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


def expand(paths: Sequence[Path]) -> list[Path]:
    """Run folders; in the place of a bench's folder its runs, in the place of a folder of runs all of them."""
    folders: list[Path] = []
    for path in paths:
        listed = path / "bench.json"
        if listed.exists():
            folders += [path.parent / name for name in json.loads(listed.read_text(encoding="utf-8"))["runs"]]
        elif path.is_dir() and not (path / "run.json").exists():
            folders += sorted(found.parent for found in path.glob("*/run.json"))
        else:
            folders.append(path)
    return list(dict.fromkeys(folders))


def newest_bench(root: Path) -> Path | None:
    """The folder of the newest bench in ``root``."""
    benches = sorted(root.glob("*-bench-*"))  # names begin with the time
    return benches[-1] if benches else None
