"""What a server's operations plane tells at ``/metrics.json`` and ``/system``: of itself, its machine and its GPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import msgspec

T = TypeVar("T")
Number = float | None


class Metrics(msgspec.Struct, frozen=True):
    """Of ``/metrics.json`` what is shown; what a server does not tell is None."""

    active_sessions: Number = None
    decode_queue_depth: Number = None
    decode_latency_total: Number = None
    decode_latency_count: Number = None
    decode_latency_max: Number = None
    rtf_avg: Number = None
    rtf_max: Number = None
    rtf_total: Number = None
    rtf_count: Number = None
    vad_triggers: Number = None
    vad_triggers_total: Number = None
    decode_cancelled: Number = None
    error_counts: dict[str, float] = {}

    @property
    def mean_decode_seconds(self) -> float | None:
        """From the end of the audio to the text, on average."""
        return _mean(self.decode_latency_total, self.decode_latency_count)

    @property
    def mean_real_time_factor(self) -> float | None:
        """Seconds of work per second of audio, on average."""
        return self.rtf_avg if self.rtf_avg is not None else _mean(self.rtf_total, self.rtf_count)

    @property
    def triggers(self) -> float | None:
        """How often silence ended an utterance."""
        return self.vad_triggers if self.vad_triggers is not None else self.vad_triggers_total


class Process(msgspec.Struct, frozen=True):
    """The server's process."""

    pid: int | None = None
    cpu_percent: Number = None
    rss_bytes: Number = None
    threads: int | None = None


class Memory(msgspec.Struct, frozen=True):
    """The machine's."""

    memory_total_bytes: Number = None
    memory_available_bytes: Number = None
    memory_percent: Number = None


class Gpu(msgspec.Struct, frozen=True):
    """One GPU."""

    index: int
    name: str | None = None
    utilization_gpu: Number = None
    memory_total_mib: Number = None
    memory_used_mib: Number = None
    temperature_gpu: Number = None


class System(msgspec.Struct, frozen=True):
    """The object of ``/system``."""

    cpu_count: int | None = None
    load_avg: tuple[float, ...] | None = None
    process: Process = Process()
    system: Memory = Memory()
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Plane:
    """One look at it: an object, or the sentence why there is none."""

    url: str
    metrics: Metrics | str
    system: System | str


def read(body: bytes | str, kind: type[T]) -> T | str:
    """What a body says; a string is the reason why there is none, and is handed on."""
    if isinstance(body, str):
        return body
    try:
        return msgspec.json.decode(body, type=kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "what it answers is not what an operations plane answers"


def _mean(total: float | None, count: float | None) -> float | None:
    return None if total is None or not count else total / count
