"""The server's own measurements, for Prometheus. Latencies are seconds; every one that has a surface is labelled with it."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENCY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_LOOP = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_LIFE = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class Metrics:
    """One set per server process, on a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        by_surface = {"labelnames": ["surface"], "registry": self.registry}
        self.connections_active = Gauge("earmark_connections_active", "Open connections", **by_surface)
        self.connections = Counter("earmark_connections", "Connections accepted", **by_surface)
        self.connections_rejected = Counter(
            "earmark_connections_rejected",
            "Connections turned away, by reason",
            labelnames=["surface", "reason"],
            registry=self.registry,
        )
        self.connection_seconds = Histogram(
            "earmark_connection_duration_seconds", "How long connections lived", buckets=_LIFE, **by_surface
        )
        self.utterances = Counter(
            "earmark_utterances",
            "Utterances ended, by outcome (final, cancelled, failed)",
            labelnames=["surface", "outcome"],
            registry=self.registry,
        )
        self.audio_seconds = Counter("earmark_audio_seconds", "Audio received", **by_surface)
        self.dropped_seconds = Counter("earmark_dropped_audio_seconds", "Audio dropped", **by_surface)
        self.errors = Counter(
            "earmark_errors",
            "Error frames sent, by reason",
            labelnames=["surface", "reason"],
            registry=self.registry,
        )
        self.first_token = Histogram(
            "earmark_first_token_seconds", "First audio received to first text sent", buckets=_LATENCY, **by_surface
        )
        self.finalisation = Histogram(
            "earmark_finalisation_seconds", "End of audio received to final sent", buckets=_LATENCY, **by_surface
        )
        self.audio_lag = Histogram(
            "earmark_audio_lag_seconds",
            "Audio received and not yet heard by the engine, sampled when text is sent",
            buckets=_LATENCY,
            **by_surface,
        )
        self.segments = Counter("earmark_segments", "Engine segments opened", **by_surface)
        self.loop_delay = Histogram(
            "earmark_event_loop_delay_seconds",
            "How much later than asked the event loop woke up",
            buckets=_LOOP,
            registry=self.registry,
        )
        self.engine = Gauge("earmark_engine", "Figures of the engine", labelnames=["figure"], registry=self.registry)
