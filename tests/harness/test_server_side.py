from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from harness import server_side, store
from harness.server_side import AFTER, BEFORE, Between
from harness.timeline import Entry, Kind, Outcome, StreamRecord

BOUNDS = (0.01, 0.02, 0.05, 0.1, 0.5)
NS = 1_000_000_000


class Server:
    """What a server keeps of what it observes, by surface."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("first_token", "finalisation", "event_loop_delay")
        self.histograms = {
            name: Histogram(f"earmark_{name}_seconds", name, ["surface"], buckets=BOUNDS, registry=self.registry)
            for name in names
        }
        Counter("earmark_utterances", "another kind", registry=self.registry).inc()

    def observe(self, name: str, *seconds: float, surface: str = "yap") -> None:
        for value in seconds:
            self.histograms[name].labels(surface).observe(value)

    def told(self) -> str:
        return generate_latest(self.registry).decode()


_seconds = st.lists(st.floats(0.0001, 2.0), min_size=1, max_size=40)


@settings(deadline=None)
@given(before=st.lists(st.floats(0.0001, 2.0), max_size=20), during=_seconds, share=st.sampled_from([0.5, 0.95, 0.99]))
def test_the_difference_of_two_scrapes_is_what_was_observed_between_them(
    before: list[float], during: list[float], share: float
) -> None:
    server = Server()
    server.observe("first_token", *before)
    earlier = server_side.read(server.told())
    server.observe("first_token", *during[::2])
    server.observe("first_token", *during[1::2], surface="realtime")
    now = server_side.read(server.told())["earmark_first_token_seconds"]
    grown = now.less(earlier["earmark_first_token_seconds"]) if before else now
    assert grown is not None
    assert grown.count == len(during)
    assert grown.mean == pytest.approx(sum(during) / len(during), abs=1e-9)
    truth = sorted(during)[math.ceil(share * len(during)) - 1]
    found = grown.quantile(share)
    assert found.low <= truth <= (math.inf if found.high is None else found.high)
    assert found.high is None or found.high in BOUNDS


def test_a_server_that_started_again_in_between_has_no_difference() -> None:
    old, new = Server(), Server()
    old.observe("first_token", 0.1, 0.1, 0.1)
    new.observe("first_token", 0.1)
    name = "earmark_first_token_seconds"
    assert server_side.read(new.told())[name].less(server_side.read(old.told())[name]) is None


def stream(number: int, first_text: float, final: float) -> StreamRecord:
    """Planned to start at 1 s; its first packet leaves 80 ms later, 1 ms late; its audio ends at 3 s."""
    t0_ns = NS
    record = StreamRecord(number, f"u{number}", t0_ns, 2.0, "a", outcome=Outcome.OK, hypothesis="a")
    record.entries = [
        Entry(t0_ns + 81_000_000, Kind.PACKET, t0_ns + 80_000_000, 0.08),
        Entry(t0_ns + 160_000_000, Kind.PACKET, t0_ns + 160_000_000, 0.16),
        Entry(t0_ns + round(first_text * NS), Kind.APPENDED, text="a"),
        Entry(t0_ns + 2 * NS, Kind.END_OF_AUDIO, t0_ns + 2 * NS),
        Entry(t0_ns + round((2 + final) * NS), Kind.FINAL, text="a"),
    ]
    return record


def run_folder(folder: Path, before: str, after: str, streams: list[StreamRecord]) -> list[dict[str, Any]]:
    (folder / BEFORE).write_text(before)
    (folder / AFTER).write_text(after)
    store.write_records(folder, streams)
    return [
        {
            "stream": record.stream,
            "first_token_from_start": (record.entries[2].t_ns - record.t0_ns) / NS,
            "flush_latency": (record.entries[4].t_ns - record.entries[3].t_ns) / NS,
        }
        for record in streams
    ]


def test_client_and_server_stand_beside_each_other(tmp_path: Path) -> None:
    server = Server()
    server.observe("first_token", 0.4)  # the warm-up
    before = server.told()
    server.observe("first_token", 0.019, 0.029)
    server.observe("finalisation", 0.03, 0.05)
    server.observe("event_loop_delay", 0.001)
    rows = run_folder(tmp_path, before, server.told(), [stream(0, 0.102, 0.032), stream(7, 0.112, 0.054)])
    first, flush, loop = server_side.beside(tmp_path, rows)

    assert (first.name, first.count, first.client_count) == ("first_token", 2, 2)
    assert first.client_mean == pytest.approx(
        (0.021 + 0.031) / 2
    )  # from the packet's leaving, not from when it was due
    assert first.difference == pytest.approx(0.002)
    assert first.p50 == Between(0.01, 0.02)
    assert first.p95 == Between(0.02, 0.05)

    assert flush.name == "flush_latency"
    assert flush.mean == pytest.approx(0.04)
    assert flush.difference == pytest.approx(0.003)

    assert (loop.name, loop.count) == ("earmark_event_loop_delay_seconds", 1)
    assert (loop.client_count, loop.difference) == (None, None)

    table = "\n".join(server_side.as_markdown([first, flush, loop]))
    assert (
        "| first_token (first audio received to first text ready) | 24.00 | 10..20 | 20..50 | 2 | 26.00 | 2.00 |"
        in table
    )


def test_streams_of_others_on_the_same_server_spoil_the_comparison_and_that_is_said(tmp_path: Path) -> None:
    server = Server()
    before = server.told()
    server.observe("first_token", 0.02, 0.02, 0.3)
    rows = run_folder(tmp_path, before, server.told(), [stream(0, 0.102, 0.03), stream(1, 0.112, 0.05)])
    (first,) = server_side.beside(tmp_path, rows)
    assert first.difference is None
    assert first.note == "the server counted 3, the client 2: not the same streams"


@pytest.mark.parametrize("after", [None, "not { metrics", ""])
def test_a_run_without_readable_metrics_has_no_figures(tmp_path: Path, after: str | None) -> None:
    rows = run_folder(tmp_path, Server().told(), after or "", [stream(0, 0.1, 0.03)])
    if after is None:
        (tmp_path / AFTER).unlink()
    assert server_side.beside(tmp_path, rows) == []
    assert server_side.as_markdown([]) == []


def test_histograms_of_vllm_are_read_too() -> None:
    registry = CollectorRegistry()
    steps = Histogram("vllm:time_to_first_token_seconds", "m", ["model_name"], buckets=(0.3, 0.5), registry=registry)
    steps.labels("voxtral").observe(0.4)
    found = server_side.read(generate_latest(registry).decode())
    assert found["vllm:time_to_first_token_seconds"].quantile(0.5) == Between(0.3, 0.5)
