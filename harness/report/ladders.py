"""A capacity search as its folder tells it: the answer, and the ladder behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from matplotlib.figure import Figure

from harness.report.blocks import BAD, GOOD, NOTHING, UNSURE, Head, Plot, Row, Table, Value
from harness.report.figures import Rung, capacity_ladder
from harness.report.plots import plot
from harness.report.wording import percent, seconds
from harness.score import LATENCIES
from harness.statistics import Estimate
from harness.store import StoreError

SCHEMA = 1
LOOKS = {"holds": (GOOD, "✓ "), "fails": (BAD, "✗ ")}
HOLDS = {"holds": True, "fails": False}  # anything else: the generator was at fault, so nobody knows


@dataclass(frozen=True, slots=True)
class Ladder:
    """What capacity.json holds. ``rungs`` are in the order in which they were measured."""

    folder: Path
    sentence: str
    streams: int | None
    above: int | None
    limited_by: str | None
    delay_ms: int | None
    place: str
    limits: Mapping[str, float]
    notes: list[str]
    rungs: list[dict[str, Any]]

    @property
    def runs(self) -> list[Path]:
        """The run folders of the idle rung, of the answer and of the first number beyond it, where there are such."""
        wanted = dict.fromkeys((self._fewest, self.streams, self.above))
        found = [next((r["run"] for r in reversed(self.rungs) if r["streams"] == n and r["run"]), None) for n in wanted]
        folders = [self.folder / "runs" / name for name in found if name]
        return [folder for folder in folders if (folder / "scores.json").exists()]

    @property
    def _fewest(self) -> int | None:
        return min((rung["streams"] for rung in self.rungs), default=None)


def read(folder: Path) -> Ladder:
    """Raises `StoreError` where the folder has no readable capacity.json."""
    path = folder / "capacity.json"
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        if told["schema"] != SCHEMA:
            raise StoreError(f"{path} has schema {told['schema']}, this Earmark knows {SCHEMA}: update Earmark")
        return from_json(told, folder)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; `earmark capacity --out {folder}` makes it") from None
    except (msgspec.DecodeError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not the JSON it should be: {error}") from error


def from_json(told: Mapping[str, Any], folder: Path) -> Ladder:
    """The ladder in what `harness.capacity.answer.as_json` tells."""
    return Ladder(
        folder=folder,
        sentence=told["sentence"],
        streams=told["streams"],
        above=told["above"],
        limited_by=told["limited_by"],
        delay_ms=told["delay_ms"],
        place=told["place"],
        limits=told["limits"],
        notes=list(told["notes"]),
        rungs=list(told["ladder"]),
    )


def headline(ladder: Ladder) -> str:
    """The answer alone; the whole sentence has the limits with it."""
    delay = "the server's own delay" if ladder.delay_ms is None else f"a delay of {ladder.delay_ms} ms"
    if ladder.streams is None:
        return "How many streams it sustains is not known yet: the search was interrupted."
    if not ladder.streams:
        return f"Not even one stream keeps to the limits at {delay}, on {ladder.place}."
    many = f"{ladder.streams} stream{'s' if ladder.streams != 1 else ''}"
    least = "" if ladder.above is not None and ladder.limited_by == "slo" else "At least "
    return (
        f"{least}{many} at once keep{'s' if ladder.streams == 1 else ''} to the limits at {delay}, on {ladder.place}."
    )


def limited_latencies(ladder: Ladder) -> list[str]:
    """The latencies that a limit is set for, as ``word_p95``."""
    return [name for name in ladder.limits if name.partition("_")[0] in LATENCIES]


def called(name: str) -> str:
    """``word_p95`` in words."""
    kind, _, quantile = name.rpartition("_")
    return f"{LATENCIES[kind][1]} {quantile}"


def figure(ladder: Ladder, name: str | None = None, title: str = "") -> Figure:
    """A limited latency, the first unless named, over the number of streams, with its limit and the answer."""
    names = limited_latencies(ladder)
    name = name or (names[0] if names else "word_p95")
    rungs = [Rung(one["streams"], _estimate(one, name), HOLDS.get(one["verdict"])) for one in ladder.rungs]
    delay = "" if ladder.delay_ms is None else f" at delay {ladder.delay_ms} ms"
    many = f"{ladder.streams} stream{'s' if ladder.streams != 1 else ''}"
    title = title or (f"{many} within the limits{delay}" if ladder.streams is not None else "No answer yet")
    return capacity_ladder(rungs, ladder.limits.get(name), ladder.streams or 0, title, f"{called(name)} (s)")


def plots(ladder: Ladder) -> list[Plot]:
    """One plot per limited latency."""
    caption = (
        "One mark per measurement, the bar its 95 % interval. The dashed line is the limit, the dotted one the answer."
    )
    return [
        plot(figure(ladder, name, _title(name)), f"ladder{place}", _title(name), caption)
        for place, name in enumerate(limited_latencies(ladder) or ["word_p95"])
    ]


def _title(name: str) -> str:
    return f"{called(name).capitalize()} by streams at once"


def table(ladder: Ladder) -> Table:
    """Every rung by its number of streams."""
    names = limited_latencies(ladder)
    heads = [Head("streams", left=True), Head("verdict"), *(Head(called(name)) for name in names), Head("errors"),
             Head("drift"), Head("WER"), Head("pacing p99")]  # fmt: skip
    rows = []
    for one in sorted(ladder.rungs, key=lambda rung: rung["streams"]):
        mood, sign = LOOKS.get(one["verdict"], (UNSURE, ""))
        values = [Value(f"{sign}{one['verdict']}", mood=mood), *(_latency(one, name) for name in names)]
        values += [
            NOTHING if one.get("errors") is None else Value(percent(one["errors"])),
            NOTHING if one.get("drift") is None else Value(f"{1000 * one['drift']:+.0f} ms/s"),
            NOTHING if one.get("wer") is None else Value(percent(one["wer"])),
            NOTHING if one.get("pacing_p99") is None else Value(f"{1000 * one['pacing_p99']:.1f} ms"),
        ]
        small = "; ".join([one["purpose"], *one["reasons"], *([one["ended_early"]] if one.get("ended_early") else [])])
        rows.append(Row(str(one["streams"]), values, key=one["streams"] == ladder.streams, small=small))
    return Table(heads, rows)


def _latency(rung: Mapping[str, Any], name: str) -> Value:
    found = _estimate(rung, name)
    if found.value is None:
        return NOTHING
    interval = "" if found.low is None or found.high is None else f"[{found.low:.2f}, {found.high:.2f}]"
    return Value(seconds(found.value), interval)


def _estimate(rung: Mapping[str, Any], name: str) -> Estimate:
    return Estimate(rung.get(name), rung.get(f"{name}_low"), rung.get(f"{name}_high"))
