"""The run folder: what is in it, and how it is written and read."""

from __future__ import annotations

from typing import Any

import msgspec

SCHEMA = 1


class RunConfig(msgspec.Struct, frozen=True):
    """What was asked for. Two runs are comparable when everything but ``target`` and ``label`` agrees."""

    dataset: str
    corpus_sha256: str
    protocol: str  # "yap", "realtime"
    target: str  # ws:// URL; "started" when the run started the server itself
    engine: str  # name of the engine, as the server says; "unknown" when it does not
    model: str
    concurrency: int
    delay_ms: int | None  # None: the server's own
    packet_ms: int
    speed: float  # 1.0 is real time, inf unpaced
    seed: int
    normaliser: str  # name/version
    arrival: str = "closed"
    caveat: str = ""  # a sentence that must stand beside the accuracy, e.g. that the recogniser is a weak one
    server_options: list[str] = []
    label: str = ""


class Run(msgspec.Struct):
    """What run.json holds. The folder beside it: timeline.parquet and streams.parquet (recorded), system.parquet (sampled),
    utterances.parquet, scores.json, report.html and summary.md (computed, can be made again from the recorded ones).
    """

    schema: int
    id: str  # the folder's name: <UTC>-<engine>-<dataset>-c<N>-d<ms>
    created: str  # ISO 8601 UTC, the only wall-clock time in a run
    config: RunConfig
    environment: dict[str, Any]  # git state, packages, python, machine, cpu count, gpu
    complete: bool = False
    wall_seconds: float = 0.0
    notes: list[str] = []
