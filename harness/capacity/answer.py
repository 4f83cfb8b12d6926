"""What a search has found, for people and for programs: one sentence, the ladder behind it, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.capacity.measuring import Judged, Result
from harness.capacity.search import Purpose, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table


def sentence(result: Result) -> str:
    """The answer in one sentence; what is missing when there is none yet."""
    answer, search = result.answer, result.search
    if answer is None:
        return "interrupted: no answer yet, the same command goes on from here"
    delay = "the server's own delay" if search.delay_ms is None else f"delay {search.delay_ms} ms"
    limits = search.limits.sentence()
    if not answer.streams:
        if answer.limited_by == "generator":
            return f"No answer: the generator on {result.place} could not keep the pace of a single stream."
        return f"Not one stream at {delay} on {result.place} keeps to {limits}: {_why(result, 1)}."
    many = f"{answer.streams} stream{'s' if answer.streams != 1 else ''}"
    held = f"held in {answer.repeats} of {answer.repeats} measurements"
    if search.soak_seconds and any(
        one.rung.purpose == Purpose.SOAK and one.judgement.verdict is Verdict.HOLDS
        for one in _of(result, answer.streams)
    ):
        held += f", one of them {search.soak_seconds / 60:g} minutes long"
    text = f"{many} at {delay} on {result.place} with {limits} ({held})"
    match answer.limited_by:
        case "slo":
            return f"{text}; with {answer.above}: {_why(result, answer.above or 0)}."
        case "generator":
            return f"At least {text}; with {answer.above} the generator itself could not keep its schedule."
        case _:
            return f"At least {text}; more than {search.bounds.most} were not asked for."


def _of(result: Result, streams: int) -> list[Judged]:
    return [one for one in result.rungs if one.rung.streams == streams]


def _why(result: Result, streams: int) -> str:
    reasons = [
        "; ".join(one.judgement.reasons) for one in _of(result, streams) if one.judgement.verdict is Verdict.FAILS
    ]
    return reasons[0] if reasons else "no valid measurement"


def as_json(result: Result) -> dict[str, Any]:
    """Answer, limits, and every rung in the order in which it was measured. Latencies in seconds, rates as fractions."""
    from harness.report.ladders import SCHEMA

    answer = result.answer
    return {
        "schema": SCHEMA,
        "complete": answer is not None,
        "sentence": sentence(result),
        "streams": None if answer is None else answer.streams,
        "above": None if answer is None else answer.above,
        "limited_by": None if answer is None else answer.limited_by,
        "repeats": None if answer is None else answer.repeats,
        "notes": [*result.notes, *([] if answer is None else answer.notes)],
        "place": result.place,
        "limits": result.search.limits.described(),
        "delay_ms": result.search.delay_ms,
        "ladder": [
            {
                "streams": one.rung.streams,
                "purpose": one.rung.purpose,
                "verdict": one.judgement.verdict.value,
                "reasons": list(one.judgement.reasons),
                "seconds": one.rung.seconds,
                "run": one.rung.run,
                "ended_early": one.rung.stopped_because,
                **one.judgement.measures,
            }
            for one in result.rungs
        ],
    }


def table(result: Result) -> Table:
    """The ladder for the terminal, by streams."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(result.search.limits.latencies)
    made = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for head in ("streams", "what for", *(f"{name.replace('_', ' ')} s" for name in names), "errors %", "drift s/s"):
        made.add_column(head, justify="left" if head == "what for" else "right", no_wrap=True)
    for head in ("WER %", "pace ms", "s"):
        made.add_column(head, justify="right", no_wrap=True)
    made.add_column("verdict")
    colours = {Verdict.HOLDS: "green", Verdict.FAILS: "red", Verdict.UNCLEAR: "dim"}
    for one in sorted(result.rungs, key=lambda one: one.rung.streams):
        found, verdict = one.judgement.measures, one.judgement.verdict
        made.add_row(
            str(one.rung.streams),
            one.rung.purpose,
            *(_figure(found.get(name), 1, 2) for name in names),
            _figure(found.get("errors"), 100, 1),
            _figure(found.get("drift"), 1, 3),
            _figure(found.get("wer"), 100, 1),
            _figure(found.get("pacing_p99"), 1000, 1),
            f"{one.rung.seconds:.0f}",
            Text(
                f"{verdict}{': ' if one.judgement.reasons else ''}{'; '.join(one.judgement.reasons)}", colours[verdict]
            ),
        )
    return made


def _figure(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"


def ladder_figure(result: Result) -> Figure:
    """The ladder as a picture: the first limited latency over the number of streams."""
    from harness.report import ladders

    return ladders.figure(ladders.from_json(as_json(result), result.folder))


def write(result: Result) -> list[Path]:
    """Write ``capacity.json``, ``ladder.png`` and ``ladder.svg`` into the search's folder; their paths."""
    import json

    from harness.report.style import PAPER

    paths = [result.folder / name for name in ("capacity.json", "ladder.png", "ladder.svg")]
    store.write_bytes(paths[0], (json.dumps(as_json(result), indent=1) + "\n").encode())
    figure = ladder_figure(result)
    for path in paths[1:]:
        figure.savefig(path, dpi=160, facecolor=PAPER)
    return paths
