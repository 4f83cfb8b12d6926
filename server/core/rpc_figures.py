"""What the gRPC system counts about its sessions, streams and decodes, for its operations plane."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["success", "timeout", "failure"]

_MOST_OUTCOMES = 10_000


@dataclass(slots=True)
class Spread:
    """Sum, number and largest of some values."""

    total: float = 0.0
    count: int = 0
    largest: float = 0.0

    def add(self, value: float) -> None:
        """One more."""
        self.total += value
        self.count += 1
        self.largest = max(self.largest, value)


@dataclass(frozen=True, slots=True)
class DecodeTiming:
    """Where the time of one result went, in seconds.

    ``buffer_wait``: from the arrival of the first audio that no result covered yet to that of the last audio this one covers.
    ``queue_wait``: for a place among the final decodes. ``inference``: the rest until the engine had said the text. ``audio`` is how much
    new audio the result covers.
    """

    buffer_wait: float = 0.0
    queue_wait: float = 0.0
    inference: float = 0.0
    audio: float = 0.0


class RpcFigures:
    """One per server process. Plain numbers, changed on the event loop's thread alone."""

    def __init__(self) -> None:
        self.sessions = 0
        self.sessions_by_api_key: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()  # by the gRPC status' name
        self.inference = Spread()
        self.buffer_wait = Spread()
        self.queue_wait = Spread()
        self.response_emit = Spread()
        self.real_time_factor = Spread()
        self.decodes_pending = 0  # utterances whose audio has ended and whose text has not come
        self.decodes_waiting = 0  # of streams that wait for a place among them
        self.decodes_cancelled = 0  # given up: the client has gone, or the time was over
        self.decodes_orphaned = 0  # results that were there and reached nobody
        self.partials_dropped = 0
        self.utterances_gated = 0  # dropped for being too quiet
        self.chunks_ignored = 0  # for naming another session
        self.buffer_waits = 0  # a stream was not read for a while because its own audio waited
        self.total_buffer_waits = 0  # the same, because all streams' audio together did
        self.sessions_expired = 0
        self.vad_triggers = 0
        self.vad_utterances = 0
        self.vad_slots = 0
        self._outcomes: deque[tuple[float, Outcome]] = deque(maxlen=_MOST_OUTCOMES)

    def session_opened(self, api_key: str) -> None:
        """A session was registered; the key is empty where none was sent."""
        self.sessions += 1
        if api_key:
            self.sessions_by_api_key[api_key] += 1

    def session_closed(self, api_key: str) -> None:
        """It is gone."""
        self.sessions -= 1
        if api_key:
            self.sessions_by_api_key[api_key] -= 1
            if not self.sessions_by_api_key[api_key]:
                del self.sessions_by_api_key[api_key]

    def error(self, status: str) -> None:
        """A client was told an error with that gRPC status."""
        self.errors[status] += 1

    def decoded(self, timing: DecodeTiming, emit_seconds: float) -> None:
        """A result was handed to the transport, which took so long."""
        self.inference.add(timing.inference)
        self.buffer_wait.add(timing.buffer_wait)
        self.queue_wait.add(timing.queue_wait)
        self.response_emit.add(emit_seconds)
        if timing.audio > 0:
            self.real_time_factor.add(timing.inference / timing.audio)

    def outcome(self, outcome: Outcome, now: float) -> None:
        """A final decode ended like this; see ``recent``."""
        self._outcomes.append((now, outcome))

    def recent(self, now: float, window_seconds: float) -> Counter[Outcome]:
        """How the final decodes of the last ``window_seconds`` ended, at most the newest 10 000."""
        return Counter(outcome for at, outcome in self._outcomes if at > now - window_seconds)

    def snapshot(self, *, by_api_key: bool = False) -> dict[str, object]:
        """The object of ``/metrics.json``; sessions by API key only where the operator wants that shown."""
        found: dict[str, object] = {"active_sessions": self.sessions}
        for name, spread in (
            ("decode_latency", self.inference),
            ("decode_buffer_wait", self.buffer_wait),
            ("decode_queue_wait", self.queue_wait),
            ("decode_response_emit", self.response_emit),
            ("rtf", self.real_time_factor),
        ):
            found |= {f"{name}_total": spread.total, f"{name}_count": spread.count, f"{name}_max": spread.largest}
        factor = self.real_time_factor
        found |= {
            "rtf_avg": factor.total / factor.count if factor.count else 0.0,
            "decode_cancelled": self.decodes_cancelled,
            "decode_orphaned": self.decodes_orphaned,
            "decode_queue_depth": self.decodes_pending + self.decodes_waiting,
            "partial_drop_count": self.partials_dropped,
            "utterances_gated": self.utterances_gated,
            "chunks_ignored": self.chunks_ignored,
            "buffer_waits": self.buffer_waits,
            "total_buffer_waits": self.total_buffer_waits,
            "sessions_expired": self.sessions_expired,
            "vad_triggers_total": self.vad_triggers,
            "vad_triggers": self.vad_triggers,
            "vad_slots": self.vad_slots,
            "active_vad_utterances": self.vad_utterances,
            "error_counts": dict(self.errors),
        }
        if by_api_key:
            found["active_sessions_by_api"] = dict(self.sessions_by_api_key)
        return found
