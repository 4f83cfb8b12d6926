"""The server's own measurements, for Prometheus. Latencies are seconds; every one that has a surface is labelled with it."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.registry import Collector

# Fine enough that a quantile is known to about a third of its value: harness and dashboards subtract them from what clients see.
_LATENCY = (
    *(0.0005, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(
        0.1,
        0.125,
        0.15,
        0.2,
        0.25,
        0.3,
        0.4,
        0.5,
        0.6,
        0.75,
        1.0,
        1.25,
        1.5,
        2.0,
        2.5,
        3.0,
        4.0,
        5.0,
        7.5,
        10.0,
        15.0,
        30.0,
    ),
)
_FRAME = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LOOP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LIFE = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """One set per server process, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory and CPU of this process, without an engine's workers

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"earmark_{name}", meaning, labels, registry=self.registry)

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"earmark_{name}", meaning, labels, registry=self.registry)

        def histogram(name: str, meaning: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"earmark_{name}", meaning, labels, registry=self.registry, buckets=buckets)

        self.connections_active = gauge("connections_active", "Open connections", "surface")
        self.connections = counter("connections", "Connections accepted", "surface")
        self.connections_rejected = counter("connections_rejected", "Connections turned away", "surface", "reason")
        self.connection_seconds = histogram(
            "connection_duration_seconds", "How long connections lived", _LIFE, "surface"
        )
        self.registry.register(_VllmNames(self))
        self.utterances = counter("utterances", "Utterances ended: final, cancelled, failed", "surface", "outcome")
        self.segments = counter("segments", "Engine segments opened", "surface")
        self.audio_seconds = counter("audio_seconds", "Audio received", "surface")
        self.dropped_seconds = counter("dropped_audio_seconds", "Audio dropped", "surface")
        self.mute = counter(
            "speech_without_text", "Streams with speech and without text, made to start afresh", "surface"
        )
        self.errors = counter("errors", "Error frames sent", "surface", "reason")
        self.first_token = histogram(
            "first_token_seconds", "First audio received to first text sent", _LATENCY, "surface"
        )
        self.finalisation = histogram(
            "finalisation_seconds", "End of audio received to final sent", _LATENCY, "surface"
        )
        self.audio_lag = histogram(
            "audio_lag_seconds", "Audio received, not yet heard by the engine, when text is sent", _LATENCY, "surface"
        )
        self.frame_delay = histogram(
            "frame_delay_seconds", "Frame ready to frame handed to the socket", _FRAME, "surface"
        )
        self.loop_delay = histogram(
            "event_loop_delay_seconds", "How much later than asked the event loop woke up", _LOOP
        )
        self.tasks = gauge("tasks", "Tasks of the event loop: a few for the server, three per open connection")
        self.engine = gauge("engine", "Figures of the engine at the moment", "figure")
        self.chat = gauge("chat", "Figures of the chat engine at the moment", "figure")


class _VllmNames(Collector):
    """The connections of ``/v1/realtime`` once more, under the names that vLLM gives its own."""

    def __init__(self, metrics: Metrics) -> None:
        self._named = {
            "vllm:websocket_connections_active": metrics.connections_active,
            "vllm:websocket_connections": metrics.connections,
            "vllm:websocket_connection_duration_seconds": metrics.connection_seconds,
        }

    def collect(self) -> Iterator[Metric]:
        for name, ours in self._named.items():
            for family in ours.labels("realtime").collect():
                theirs = Metric(name, family.documentation, family.type)
                theirs.samples = [
                    sample._replace(name=name + sample.name.removeprefix(family.name)) for sample in family.samples
                ]
                yield theirs
