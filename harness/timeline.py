"""What happened: every packet sent and every event received, on one monotonic clock.

Nothing here is a measure. Drivers and the replay write it, `store` keeps it, and every number is computed from it afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from wire.words import TimedWord


class Kind(StrEnum):
    """What a timeline entry is. ``text`` and ``value`` of an entry mean what is said here."""

    CONNECTING = "connecting"  # the TCP connection is being opened
    CONNECTED = "connected"  # the socket is open (after the WebSocket handshake)
    READY = "ready"  # the server accepted the session; text: the delay it says is in force, in ms, if it says one
    PACKET = (
        "packet"  # audio written to the socket; due_ns: when it should have been; value: audio seconds sent up to here
    )
    END_OF_AUDIO = "end_of_audio"  # the end-of-audio message written to the socket; due_ns likewise
    APPENDED = "appended"  # text: appended to what was shown, never taken back
    TENTATIVE = "tentative"  # text: stands behind the appended text until the next entry with text replaces it
    FINAL = "final"  # text: the whole transcript
    DROPPED = "dropped"  # value: seconds of audio that the server says it dropped
    ERROR = "error"  # text: "code: message"
    RETRY = (
        "retry"  # the attempt before failed, another one follows; text: why it failed; value: seconds waited in between
    )
    CLOSED = "closed"  # the socket is closed; text: "code reason"


@dataclass(frozen=True, slots=True)
class Entry:
    """``t_ns`` and ``due_ns`` are ``time.perf_counter_ns`` less the run's origin."""

    t_ns: int
    kind: Kind
    due_ns: int | None = None
    value: float | None = None
    text: str | None = None


class Outcome(StrEnum):
    """How a stream ended."""

    OK = "ok"  # a final transcript came
    FAILED = "failed"  # the server said error, or the connection broke, or no final came in time
    REJECTED = "rejected"  # the server refused the session for want of capacity
    ABANDONED = "abandoned"  # the run was interrupted while it was in flight


@dataclass(slots=True)
class StreamRecord:
    """One utterance replayed once.

    ``t0_ns`` is the *planned* start: the sample at audio time x was due at ``t0_ns + x / speed``. ``scored`` is false for streams in
    ramp-up and cool-down. ``reference`` and ``words`` travel with the record so that a run folder is complete in itself.
    ``delay_ms`` is the transcription delay asked for, ``delay_ms_in_force`` what the server said (``None``: it said nothing).
    ``hypothesis_words`` are the server's own word times, if it gave any. ``arrival_ns`` is when an open arrival process wanted the
    stream to begin connecting (``None``: closed arrivals, which follow the server). ``held_ns`` is how long a simulated network held
    each packet beyond its due time, on purpose (empty: there was none); the end of audio is held with the last packet. Due times stay
    the planned ones, so latencies contain the impairment, and the generator's own lateness does not.
    """

    stream: int
    utterance: str
    t0_ns: int
    audio_seconds: float
    reference: str
    speaker: str = ""
    language: str = "en"
    words: tuple[TimedWord, ...] | None = None
    tags: dict[str, str] = field(default_factory=dict)
    lane: int = 0  # which of the N concurrent lanes carried it
    speed: float = 1.0
    scored: bool = True
    delay_ms: int | None = None
    delay_ms_in_force: int | None = None
    outcome: Outcome = Outcome.FAILED
    error: str | None = None
    hypothesis: str = ""
    hypothesis_words: tuple[TimedWord, ...] = ()
    usage: dict[str, int] = field(default_factory=dict)
    arrival_ns: int | None = None
    held_ns: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)

    def of(self, kind: Kind) -> Iterator[Entry]:
        """The entries of one kind, in order."""
        return (entry for entry in self.entries if entry.kind is kind)

    def first(self, kind: Kind) -> Entry | None:
        return next(self.of(kind), None)

    def shown(self) -> Iterator[tuple[int, str, str]]:
        """Every state of the transcript: ``(t_ns, stable text, tentative text)`` after each entry that changed it."""
        stable, tentative = "", ""
        for entry in self.entries:
            changed = shown_after(entry, stable)
            if changed is not None:
                stable, tentative = changed
                yield entry.t_ns, stable, tentative


def shown_after(entry: Entry, stable: str) -> tuple[str, str] | None:
    """The stable and the tentative text after an entry that comes behind ``stable``; ``None`` where it changes neither."""
    match entry.kind:
        case Kind.APPENDED:
            return stable + (entry.text or ""), ""
        case Kind.TENTATIVE:
            return stable, entry.text or ""
        case Kind.FINAL:
            return entry.text or "", ""
        case _:
            return None
