"""Draws what is known of a server, and of a run under way, on a terminal of any width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import isfinite

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from harness.plane import Gpu, Metrics, Plane, System
from harness.scrape import Figure, Frame, Latency
from harness.server_side import Between
from harness.store import RunConfig, Standing

BARS = "▁▂▃▄▅▆▇█"
TWO_COLUMNS = 76  # characters from which on figures stand beside each other
ALL_QUANTILES = 72  # and from which on all quantiles fit
TWO_QUANTILES = 56
NARROWEST_SPARK = 6
SILENT_SECONDS = 5.0  # a run that is told of every second has ended or hangs after this
LATE_SECONDS = 0.020  # packets later than this make a run doubtful


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as its folder tells it. ``standing`` while it is under way, with how long ago it was written; ``result`` once it is scored."""

    name: str
    config: RunConfig | None = None
    standing: Standing | None = None
    told_seconds_ago: float = 0.0
    elapsed_seconds: float | None = None
    complete: bool = False
    result: str = ""


def draw(
    frame: Frame, *, url: str, width: int, clock: datetime, now_seconds: float, interval_seconds: float, run: RunView | None,
    no_run: str = "", plane: Plane | None = None,
) -> RenderableType:  # fmt: skip
    """The whole picture. ``now_seconds`` is on the clock of the frame's scrapes, ``clock`` the same moment for people."""
    parts: list[RenderableType] = [_title(frame, url, clock, now_seconds, interval_seconds)]
    if frame.down_since_seconds is None:
        if frame.figures:
            parts += [Text(""), _figures(frame.figures, width)]
        if frame.latencies:
            parts += [_rule("latency, ms"), _latencies(frame.latencies, width)]
        parts += _remarks(frame)
    if plane is not None:
        parts += _plane(plane)
    parts += _run(run, no_run, width)
    return Group(*parts)


def _rule(title: str) -> Rule:
    return Rule(Text(title, style="bold"), align="left", style="dim")


def _title(frame: Frame, url: str, clock: datetime, now_seconds: float, interval_seconds: float) -> RenderableType:
    head = Text.assemble((url or "a service, which has no metrics", "bold"), (f"  {clock:%H:%M:%S}", "dim"))
    if not url:
        return head
    if frame.down_since_seconds is not None:
        seconds = now_seconds - frame.down_since_seconds
        since = f"{clock - timedelta(seconds=seconds):%H:%M:%S}"
        told = (
            f"no answer since {since} ({span(seconds)}): {frame.down_because}; asked again every {interval_seconds:g} s"
        )
        return Group(head, Text(told, style="bold red"))
    window = f"over {span(frame.window_seconds)}" if frame.window_seconds else "first answer"
    head.append(f"  {window}", style="dim")
    if not frame.restarts:
        return head
    times = "once" if frame.restarts == 1 else f"{frame.restarts} times"
    return Group(head, Text(f"started again {times} while watched", style="yellow"))


# ---- figures -----------------------------------------------------------------------------------------------------


def _figures(figures: Sequence[Figure], width: int) -> Table:
    columns = 2 if width >= TWO_COLUMNS else 1
    each = width // columns - 1
    spark = max(NARROWEST_SPARK, min(30, each - 14 - 12))
    table = Table.grid(padding=(0, 1), expand=False)
    for _ in range(columns):
        table.add_column(width=13, no_wrap=True)
        table.add_column(width=11, no_wrap=True, justify="right")
        table.add_column(width=spark, no_wrap=True)
    rows = -(-len(figures) // columns)
    for at in range(rows):
        cells: list[RenderableType] = []
        for one in figures[at::rows]:
            cells += [Text(one.label, style="dim"), _value(one), Text(sparkline(one.past, spark), style="cyan")]
        table.add_row(*cells)
    return table


def _value(figure: Figure) -> Text:
    if figure.value is None:
        return Text("…", style="dim")
    text = amount(figure.value, figure.unit)
    if figure.total is not None and figure.total != figure.value:
        text += f" of {amount(figure.total, figure.unit)}"
    return Text(text, style="bold red" if figure.bad and figure.value > 0 else "bold")


def amount(value: float, unit: str) -> str:
    """A figure in few characters."""
    match unit:
        case "bytes":
            return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
        case "share" | "cores":
            return f"{100 * value:.0f} %"
        case "s":
            return f"{short(value)} s"
        case _:
            return short(value)


def short(value: float) -> str:
    """Three digits that matter, thousands and more as k and M."""
    for least, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= least:
            return f"{value / (1e6 if letter == 'M' else 1e3):.3g}{letter}"
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The newest values as bars from nothing to the largest of them; a gap where there was none."""
    newest = values[-width:]
    most = max((value for value in newest if value is not None and isfinite(value)), default=0.0)
    return "".join(_bar(value, most) for value in newest)


def _bar(value: float | None, most: float) -> str:
    if value is None or not isfinite(value):
        return " "
    return BARS[0] if most <= 0 or value <= 0 else BARS[min(len(BARS) - 1, int(value / most * len(BARS)))]


# ---- latencies ---------------------------------------------------------------------------------------------------


def _latencies(latencies: Sequence[Latency], width: int) -> Table:
    shares = (0.5, 0.95, 0.99) if width >= ALL_QUANTILES else (0.5, 0.95) if width >= TWO_QUANTILES else (0.95,)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True, overflow="ellipsis", max_width=26 if width >= 100 else 16)
    for title in ("mean", *(f"p{100 * share:.0f}" for share in shares), "n"):
        table.add_column(title, justify="right", no_wrap=True, min_width=6 if title in ("mean", "n") else 9)
    room = width - 18 - 9 - 8 - len(shares) * 12
    spark = min(30, room)
    if spark >= NARROWEST_SPARK:
        table.add_column("", no_wrap=True, width=spark)
    for one in latencies:
        cells: list[RenderableType] = [
            Text(one.label, style="dim"),
            Text(milliseconds(one.over.mean), style="bold"),
            *(bounds(one.over.quantile(share)) for share in shares),
            short(one.over.count),
        ]
        if spark >= NARROWEST_SPARK:
            cells.append(Text(sparkline(one.past, spark), style="cyan"))
        table.add_row(*cells)
    return table


def milliseconds(seconds: float) -> str:
    """Milliseconds in few characters."""
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:.0f}"


def bounds(between: Between) -> str:
    """Between which bounds a quantile lies: a histogram knows no better."""
    low = milliseconds(between.low)
    return f"over {low}" if between.high is None else f"{low}–{milliseconds(between.high)}"


def _remarks(frame: Frame) -> list[RenderableType]:
    found: list[RenderableType] = []
    if frame.reasons:
        told = ", ".join(f"{reason} {short(count)}" for reason, count in frame.reasons[:4])
        found.append(Text(f"why: {told}", style="red"))
    if frame.foreign:
        found.append(Text("neither Earmark's metrics nor vLLM's: what has a common name is shown", style="yellow"))
    if frame.quiet and frame.window_seconds:
        found.append(Text(f"nothing observed of: {', '.join(frame.quiet)}", style="dim"))
    if frame.missing:
        found.append(Text(f"not told by this server: {', '.join(frame.missing)}", style="dim"))
    return found


# ---- the operations plane ----------------------------------------------------------------------------------------


def _plane(plane: Plane) -> list[RenderableType]:
    lines: list[RenderableType] = [_rule("operations"), Text(plane.url, style="bold", overflow="fold")]
    if isinstance(plane.system, str):
        lines.append(Text(f"system unavailable: {plane.system}", style="red"))
    else:
        lines += _machine(plane.system)
    if isinstance(plane.metrics, str):
        lines.append(Text(f"metrics unavailable: {plane.metrics}", style="red"))
    else:
        lines += _counts(plane.metrics)
    return lines


def _machine(system: System) -> list[RenderableType]:
    process, memory = system.process, system.system
    load = " ".join(f"{value:.2f}" for value in system.load_avg) if system.load_avg else "n/a"
    lines: list[RenderableType] = [
        Text(
            f"CPU {_told(process.cpu_percent, '', ' %')} of the process, load {load} on {_told(system.cpu_count)} cores"
        ),
        Text(
            f"memory {_told(process.rss_bytes, 'bytes')} of the process, {_told(process.threads)} threads; machine "
            f"{_told(memory.memory_percent, '', ' %')} of {_told(memory.memory_total_bytes, 'bytes')}"
        ),
    ]
    return [*lines, *(Text(_gpu(gpu)) for gpu in system.gpus)]


def _gpu(gpu: Gpu) -> str:
    return (
        f"GPU {gpu.index} {gpu.name or ''}: {_told(gpu.utilization_gpu, '', ' %')}, memory "
        f"{_told(gpu.memory_used_mib)} of {_told(gpu.memory_total_mib)} MiB, {_told(gpu.temperature_gpu, '', ' °C')}"
    )


def _counts(metrics: Metrics) -> list[RenderableType]:
    errors = ", ".join(f"{name} {short(count)}" for name, count in sorted(metrics.error_counts.items()))
    longest = _told(metrics.decode_latency_max, "s")
    return [
        Text(f"sessions {_told(metrics.active_sessions)}, decodes waiting {_told(metrics.decode_queue_depth)}, "
             f"cancelled {_told(metrics.decode_cancelled)}, VAD triggers {_told(metrics.triggers)}"),
        Text(f"decode {_told(metrics.mean_decode_seconds, 's')} on average, {longest} at most; "
             f"RTF {_told(metrics.mean_real_time_factor)} on average, {_told(metrics.rtf_max)} at most"),
        Text.assemble("errors ", (errors or "none", "bold red" if errors else "")),
    ]  # fmt: skip


def _told(value: float | None, unit: str = "", behind: str = "") -> str:
    return "n/a" if value is None else amount(value, unit) + behind


# ---- the run -----------------------------------------------------------------------------------------------------


def _run(run: RunView | None, no_run: str, width: int) -> list[RenderableType]:
    if run is None:
        return [_rule("run"), Text(no_run, style="dim")] if no_run else []
    lines: list[RenderableType] = [_rule("run"), Text(run.name, style="bold", overflow="fold")]
    if run.config is not None:
        lines.append(Text(_described(run.config), style="dim"))
    if run.standing is not None:
        lines += _standing(run.standing, run, width)
    elif run.result:
        lines.append(Text(run.result))
    else:
        ended = (
            "recorded, not scored yet"
            if run.complete
            else "no progress told: it is starting, being written, or was broken off"
        )
        lines.append(Text(ended, style="dim" if run.complete else "yellow"))
    return lines


def _described(config: RunConfig) -> str:
    delay = "the server's delay" if config.delay_ms is None else f"{config.delay_ms} ms"
    lanes = f"{config.concurrency} lanes" if config.arrival == "closed" else config.arrival
    load = [f"{name} {','.join(value) if isinstance(value, list) else value}" for name, value in config.load.items()]
    return ", ".join([lanes, config.protocol, delay, config.dataset, *load])


def _standing(standing: Standing, run: RunView, width: int) -> list[RenderableType]:
    ended = standing.done + standing.failed
    bar = max(10, min(40, width - 40))
    full = min(bar, bar * ended // standing.total) if standing.total else 0
    elapsed = "" if run.elapsed_seconds is None else f" in {span(run.elapsed_seconds)}"
    progress = Text.assemble(
        ("█" * full, "green"), ("░" * (bar - full), "dim"), f" {ended} of {standing.total}{elapsed}"
    )
    counts = Text.assemble(
        f"{standing.active} active, ",
        (f"{standing.failed} failed", "bold red" if standing.failed else ""),
        f", {standing.retries} retries, {standing.words} words; ",
        (f"packets at most {1000 * standing.worst_lateness_seconds:.1f} ms late",
         "yellow" if standing.worst_lateness_seconds > LATE_SECONDS else ""),
    )  # fmt: skip
    lines: list[RenderableType] = [progress, counts]
    if run.told_seconds_ago > SILENT_SECONDS:
        lines.append(
            Text(f"nothing told for {span(run.told_seconds_ago)}: it hangs, or was broken off", style="yellow")
        )
    return lines


def span(seconds: float) -> str:
    """A time in few characters."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 7200 else f"{whole // 3600} h {whole // 60 % 60:02d} min"
