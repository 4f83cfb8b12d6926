"""How runs that are shown together are told apart: by a label, a colour, a line style and a symbol."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.report.figures import Mark
from harness.report.style import DASHES, MARKERS, SERIES
from harness.report.wording import counted, shortened, streams_said
from harness.store import RunConfig


@dataclass(frozen=True, slots=True)
class Marked:
    """``group`` is the label without the delay: cells of one group are one line over the delays."""

    mark: Mark
    group: str


def marked(configs: Sequence[RunConfig]) -> list[Marked]:
    """One mark per run. The delay picks the colour and the concurrency the line style; where something else differs, it too picks colours.

    What differs is named: delay, concurrency, engine and protocol always, other settings as far as they are needed, then a number.
    """
    delays = [delay_said(config) for config in configs]
    streams = [counted(config.concurrency, "stream") for config in configs]
    others = _others(configs)
    many_delays, many_streams = len(set(delays)) > 1, len(set(streams)) > 1
    hues = list(dict.fromkeys(zip(delays, others, strict=True)))
    dashes = list(dict.fromkeys(streams))
    made = []
    for config, delay, count, other in zip(configs, delays, streams, others, strict=True):
        shown_delay = many_delays or not (many_streams or other)
        label = ", ".join(
            text for text, shown in ((delay, shown_delay), (count, many_streams), (other, bool(other))) if shown
        )
        group = ", ".join(filter(None, (streams_said(config.concurrency), other)))
        hue, dash = hues.index((delay, other)), dashes.index(count)
        if len(hues) == 1:
            hue = dash
        made.append(Marked(numbered_mark(label, hue, dash if many_streams else hue), group))
    return made


def sided(sides: Sequence[Sequence[RunConfig]], names: Sequence[str]) -> list[list[Marked]]:
    """Marks for sides that are held against each other: the side picks the colour, the run the line style."""
    found = []
    for hue, (configs, name) in enumerate(zip(sides, names, strict=True)):
        own = marked(configs)
        alone = len(configs) == 1
        found.append([
            Marked(
                numbered_mark(name if alone else f"{name}, {one.mark.label}", hue, hue if alone else place),
                f"{name}, {one.group}",
            )
            for place, one in enumerate(own)
        ])  # fmt: skip
    return found


def numbered_mark(label: str, hue: int, dash: int) -> Mark:
    """The colour, and the line style with its symbol, of these numbers; beyond the last one they begin anew."""
    return Mark(label, SERIES[hue % len(SERIES)], DASHES[dash % len(DASHES)], MARKERS[dash % len(MARKERS)])


def delay_said(config: RunConfig) -> str:
    """The delay asked for."""
    return "server's delay" if config.delay_ms is None else f"{config.delay_ms} ms"


def _others(configs: Sequence[RunConfig]) -> list[str]:
    """What tells runs apart besides delay and concurrency; empty where nothing else differs."""
    columns = {
        "engine": [config.engine for config in configs],
        "protocol": [config.protocol for config in configs],
        "model": [config.model for config in configs],
        "dataset": [config.dataset for config in configs],
        "options": [" ".join((*c.server_options, *c.driver_options)) or "no options" for c in configs],
        "packets": [f"packets of {config.packet_ms} ms" for config in configs],
        "speed": ["unpaced" if math.isinf(config.speed) else f"{config.speed:g}×" for config in configs],
        "arrival": [config.arrival for config in configs],
        "load": [json.dumps(config.load, sort_keys=True) if config.load else "no load" for config in configs],
        "label": [config.label or "no label" for config in configs],
    }
    taken: list[list[str]] = []
    known = [(config.delay_ms, config.concurrency) for config in configs]
    for name, texts in columns.items():
        apart = len({(*key, *(t[i] for t in taken)) for i, key in enumerate(known)})
        further = len({(*key, *(t[i] for t in taken), texts[i]) for i, key in enumerate(known)})
        if further > apart or (name in ("engine", "protocol") and len(set(texts)) > 1):
            short = shortened(list(dict.fromkeys(texts)))
            taken.append([short[text] for text in texts])
    said = [", ".join(texts[i] for texts in taken) for i in range(len(configs))]
    seen: dict[tuple[object, ...], int] = {}
    whole = list(zip(known, said, strict=True))
    twice = {key for key in whole if whole.count(key) > 1}
    for place, key in enumerate(whole):
        if key in twice:
            seen[key] = seen.get(key, 0) + 1
            said[place] = ", ".join(filter(None, (said[place], f"run {seen[key]}")))
    return said
