"""What runs were made with and how to make them again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from harness.report.cells import Cell
from harness.report.wording import plain
from harness.store import Run


def when(run: Run) -> str:
    """The moment at which a run was made, to the minute."""
    try:
        moment = datetime.fromisoformat(run.created)
    except ValueError:
        return run.created
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def machine(environment: Mapping[str, Any]) -> str:
    """Where it was made."""
    known = [environment.get(name) for name in ("machine", "cpu", "gpu")]
    said = [str(value) for value in known if value and not isinstance(value, Mapping)]
    return ", ".join(dict.fromkeys(said)) or "machine not recorded"


def command(run: Run) -> str:
    """What makes the run again."""
    recorded = run.environment.get("command")
    if recorded:
        return recorded if isinstance(recorded, str) else " ".join(str(word) for word in recorded)
    config = run.config
    words = [
        "earmark bench",
        f"--dataset {config.dataset}",
        f"--protocol {config.protocol}",
        f"--concurrency {config.concurrency}",
    ]
    words += [f"--delay-ms {config.delay_ms}"] if config.delay_ms is not None else []
    words += [f"--packet-ms {config.packet_ms}", f"--seed {config.seed}"]
    words += [f"--target {config.target}"] if config.target != "started" else []
    return " ".join(words)


def facts(cells: Sequence[Cell]) -> list[tuple[str, str]]:
    """What was run, in a few lines; where cells differ, all that they had."""

    def values(read: Callable[[Cell], object]) -> str:
        return "; ".join(dict.fromkeys(str(read(cell)) for cell in cells))

    return [
        ("runs", ", ".join(cell.run.id for cell in cells)),
        ("engine, model", values(lambda cell: f"{cell.run.config.engine}, {cell.run.config.model}")),
        ("protocol, target", values(lambda cell: f"{cell.run.config.protocol}, {cell.run.config.target}")),
        ("server options", values(lambda cell: " ".join(cell.run.config.server_options) or "none")),
        ("packets, speed, arrival", values(_schedule)),
        ("delay in force", values(_delay)),
        ("seed", values(lambda cell: cell.run.config.seed)),
        ("corpus", values(lambda cell: f"{cell.run.config.dataset}, sha256 {cell.run.config.corpus_sha256}")),
        ("normaliser", values(lambda cell: cell.run.config.normaliser)),
        ("intervals", values(lambda cell: f"over blocks of one {cell.scores.block}")),
        ("wall time", values(lambda cell: f"{cell.run.wall_seconds:.0f} s")),
        ("notes", values(lambda cell: " ".join(cell.run.notes) or "none")),
    ]


def _delay(cell: Cell) -> str:
    said = f"{plain((cell.delay_seconds or 0) * 1000)} ms" if cell.delay_seconds else "not said"
    return f"{cell.label}: {said}"


def _schedule(cell: Cell) -> str:
    config = cell.run.config
    load = "".join(f", {name} {value}" for name, value in config.load.items())
    return f"{config.packet_ms} ms, {config.speed:g}×, {config.arrival}{load}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """A tree of names and values as lines."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            text = ", ".join(str(one) for one in value) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{name}", text
