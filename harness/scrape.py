"""What a server's ``/metrics`` says of the present, and two of its answers of the time between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from harness.server_side import Histogram, histograms

OTHERS = 4  # histograms that nobody here knows, told all the same
REMEMBERED = 120  # values of a sparkline
Name = tuple[str, str]  # of a sample, and the value of its `figure` label


@dataclass(frozen=True, slots=True)
class Scrape:
    """One answer. ``values`` are summed over labels, ``largest`` are not: parts of a whole do not add. Those with a label ``figure`` also
    stand alone. ``families`` are there, with samples or without.
    """

    at_seconds: float
    values: Mapping[Name, float]
    largest: Mapping[Name, float]
    histograms: Mapping[str, Histogram]
    counters: frozenset[Name]
    families: frozenset[str]
    reasons: Mapping[str, Mapping[str, float]]  # counters with a label ``reason``, by it

    def has(self, name: str) -> bool:
        """Whether the server knows of it, said or not."""
        return (name, "") in self.values or name.removesuffix("_total") in self.families


def parse(text: str, at_seconds: float) -> Scrape:
    """A Prometheus exposition.

    Raises:
        ValueError: the text is none, or has nothing in it.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(text))
    except (KeyError, IndexError) as error:  # as the parser fails on some texts that are none
        raise ValueError(f"no Prometheus exposition: {error!r}") from None
    if not any(family.samples for family in families):
        raise ValueError("no metric in it")
    values: dict[Name, float] = {}
    largest: dict[Name, float] = {}
    reasons: dict[str, dict[str, float]] = {}
    counters = set()
    for family in families:
        if family.type == "histogram":
            continue
        for sample in family.samples:
            if sample.name.endswith("_created") or not isfinite(sample.value):
                continue
            figure = sample.labels.get("figure", "")
            for name in {(sample.name, ""), (sample.name, figure)}:
                values[name] = values.get(name, 0.0) + sample.value
                largest[name] = max(largest.get(name, sample.value), sample.value)
                if family.type == "counter":
                    counters.add(name)
            if family.type == "counter" and "reason" in sample.labels:
                of = reasons.setdefault(sample.name, {})
                of[sample.labels["reason"]] = of.get(sample.labels["reason"], 0.0) + sample.value
    known = frozenset(family.name for family in families)
    return Scrape(at_seconds, values, largest, histograms(families), frozenset(counters), known, reasons)


def started_again(earlier: Scrape, later: Scrape) -> bool:
    """Whether something that only grows became smaller."""
    fallen = (later.values.get(name, 0.0) < earlier.values[name] for name in earlier.counters)
    gone = (
        name in later.histograms and later.histograms[name].less(histogram) is None
        for name, histogram in earlier.histograms.items()
    )
    return any(fallen) or any(gone)


# ---- what is looked for ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sought:
    """A figure and under which names servers tell it: ``NAME`` or ``NAME/figure``; the first that is there is taken.

    ``kind``: "now" (as it stands), "rate" (growth per second), "grown" (growth over the window). ``missed``: its absence is told.
    """

    label: str
    kind: str
    unit: str  # "", "s", "bytes", "share", "cores"
    names: tuple[str, ...]
    missed: bool = True
    bad: bool = False  # more than none is bad news


SOUGHT = (
    Sought("streams open", "now", "", ("earmark_connections_active", "vllm:num_requests_running")),
    Sought("audio s per s", "rate", "", ("earmark_audio_seconds_total",)),
    Sought("being heard", "now", "", ("earmark_engine/busy_slots",), missed=False),
    Sought("tokens per s", "rate", "", ("vllm:generation_tokens_total",), missed=False),
    Sought("waiting", "now", "", ("earmark_engine/waiting", "vllm:num_requests_waiting")),
    Sought(
        "KV cache", "now", "share", ("earmark_engine/kv_cache_usage", "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        missed=False,
    ),
    Sought("dropped audio", "grown", "s", ("earmark_dropped_audio_seconds_total",), bad=True),
    Sought("errors", "grown", "", ("earmark_errors_total",), bad=True),
    Sought("turned away", "grown", "", ("earmark_connections_rejected_total", "vllm:admission_rejections_total"), bad=True),
    Sought("preempted", "grown", "", ("vllm:num_preemptions_total",), missed=False, bad=True),
    Sought("ended", "grown", "", ("earmark_utterances_total", "vllm:request_success_total"), missed=False),
    Sought("memory", "now", "bytes", ("process_resident_memory_bytes",)),
    Sought("CPU", "rate", "cores", ("process_cpu_seconds_total",), missed=False),
)  # fmt: skip

LATENCIES: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("first token", ("earmark_first_token_seconds",), True),
    ("audio lag", ("earmark_audio_lag_seconds",), True),
    ("final", ("earmark_finalisation_seconds",), True),
    ("step", ("vllm:time_to_first_token_seconds",), False),
    ("token to token", ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"), False),
    ("whole request", ("vllm:e2e_request_latency_seconds",), False),
    ("frame to socket", ("earmark_frame_delay_seconds",), False),
    ("event loop late", ("earmark_event_loop_delay_seconds",), False),
)
"""Label, names, and whether absence is told. No server knows when a word was spoken: ``audio lag``, what it has received and not heard
when text leaves, is its part of the word latency, which a bench measures. vLLM takes every step of a stream for a first token."""

NOT_TOLD = frozenset({"earmark_connection_duration_seconds"})  # no latency


# ---- a frame -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of the moment. ``total``: what a counter stands at. ``past``: its last values, ``None`` where there was none."""

    label: str
    unit: str
    value: float | None
    total: float | None = None
    bad: bool = False
    past: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram over the window. ``past`` are means, which are exact."""

    label: str
    over: Histogram
    past: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True)
class Frame:
    """What can be said of a server now.

    ``window_seconds`` is what rates and latencies are over, 0 before there were two answers. ``quiet`` are latencies that
    nothing was observed of, ``missing`` figures that this server does not tell, ``reasons`` why errors and refusals came, with growth.
    """

    window_seconds: float = 0.0
    figures: tuple[Figure, ...] = ()
    latencies: tuple[Latency, ...] = ()
    quiet: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    reasons: tuple[tuple[str, float], ...] = ()
    foreign: bool = False  # nothing of what is sought was there
    down_since_seconds: float | None = None
    down_because: str = ""
    restarts: int = 0


def frame(earlier: Scrape, later: Scrape) -> Frame:
    """What two answers of one server say: the present, and the time between."""
    seconds = later.at_seconds - earlier.at_seconds
    figures, missing = [], []
    for sought in SOUGHT:
        name = _found(sought, later)
        if name is None:
            if sought.missed:
                missing.append(sought.label)
            continue
        figures.append(_figure(sought, name, earlier, later, seconds))
    latencies, quiet = [], []
    known = {name for _, names, _ in LATENCIES for name in names} | NOT_TOLD
    for label, names, missed in LATENCIES:
        there = next((name for name in names if name in later.histograms or later.has(name)), None)
        if there is None:
            missing += [label] if missed else []
        elif (over := _grown(there, earlier, later)) is None:
            quiet.append(label)
        else:
            latencies.append(Latency(label, over))
    others = {
        name: over
        for name in later.histograms.keys() - known
        if name.endswith("_seconds") and (over := _grown(name, earlier, later)) is not None
    }
    most = sorted(others, key=lambda name: (-others[name].count, name))[:OTHERS]
    latencies += [Latency(name.removesuffix("_seconds"), others[name]) for name in most]
    return Frame(
        window_seconds=seconds,
        figures=tuple(figures),
        latencies=tuple(latencies),
        quiet=tuple(quiet),
        missing=tuple(missing),
        reasons=_reasons(earlier, later),
        foreign=not any(name.startswith(("earmark_", "vllm:")) for name in later.families),
    )


def _found(sought: Sought, scrape: Scrape) -> Name | None:
    for name in sought.names:
        plain, _, figure = name.partition("/")
        if (plain, figure) in scrape.values or (not figure and scrape.has(plain)):
            return plain, figure
    return None


def _figure(sought: Sought, name: Name, earlier: Scrape, later: Scrape, seconds: float) -> Figure:
    now = (later.largest if sought.unit == "share" else later.values).get(name, 0.0)
    grown = max(0.0, now - earlier.values.get(name, 0.0))
    match sought.kind:
        case "now":
            return Figure(sought.label, sought.unit, now)
        case "rate":
            return Figure(sought.label, sought.unit, grown / seconds if seconds > 0 else None)
        case _:
            return Figure(sought.label, sought.unit, grown if seconds > 0 else None, now, bad=sought.bad)


def _grown(name: str, earlier: Scrape, later: Scrape) -> Histogram | None:
    """What was observed between the two; ``None`` for nothing."""
    now, then = later.histograms.get(name), earlier.histograms.get(name)
    if now is None or later is earlier:
        return None
    grown = now if then is None else now.less(then)
    return grown if grown is not None and grown.count > 0 else None


def _reasons(earlier: Scrape, later: Scrape) -> tuple[tuple[str, float], ...]:
    found = [
        (f"{name.removeprefix('earmark_').removesuffix('_total')}: {reason}", grown)
        for name, of in later.reasons.items()
        for reason, count in of.items()
        if (grown := count - earlier.reasons.get(name, {}).get(reason, 0.0)) > 0
    ]
    return tuple(sorted(found, key=lambda one: -one[1]))


@dataclass(slots=True)
class Watched:
    """A server over time: its answers of the last ``window_seconds``, and the past of each figure."""

    window_seconds: float
    restarts: int = 0
    _scrapes: deque[Scrape] = field(default_factory=deque)
    _past: dict[str, deque[float | None]] = field(default_factory=dict)
    _down: tuple[float, str] | None = None

    def answered(self, scrape: Scrape) -> None:
        """An answer came. Answers of a server that has started again since say nothing together."""
        self._down = None
        if self._scrapes and started_again(self._scrapes[-1], scrape):
            self.restarts += 1
            self._scrapes.clear()
        if self._scrapes:
            self._remember(frame(self._scrapes[-1], scrape))
        self._scrapes.append(scrape)
        while len(self._scrapes) > 2 and scrape.at_seconds - self._scrapes[1].at_seconds >= self.window_seconds:
            self._scrapes.popleft()

    def failed(self, at_seconds: float, why: str) -> None:
        """No answer came. Rates across the gap would be of another time than they say."""
        since = at_seconds if self._down is None else self._down[0]
        self._down = since, why
        self._scrapes.clear()
        for past in self._past.values():
            past.append(None)

    def _remember(self, last: Frame) -> None:
        now: dict[str, float | None] = {figure.label: figure.value for figure in last.figures}
        now |= {latency.label: latency.over.mean for latency in last.latencies}
        for label in {*now, *self._past}:
            self._past.setdefault(label, deque(maxlen=REMEMBERED)).append(now.get(label))

    def frame(self) -> Frame:
        """What can be said now."""
        if self._down is not None:
            return Frame(down_since_seconds=self._down[0], down_because=self._down[1], restarts=self.restarts)
        if not self._scrapes:
            return Frame(restarts=self.restarts)
        said = frame(self._scrapes[0], self._scrapes[-1])
        return replace(
            said,
            figures=tuple(replace(one, past=tuple(self._past.get(one.label, ()))) for one in said.figures),
            latencies=tuple(replace(one, past=tuple(self._past.get(one.label, ()))) for one in said.latencies),
            restarts=self.restarts,
        )
