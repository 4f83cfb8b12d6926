"""Sees while a rung is measured that it cannot hold any more, so that a hopeless one ends early."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from harness.pacing import NS
from harness.replay.stream import Stream
from harness.timeline import Outcome
from wire.words import TimedWord

LEAST_LATE = 6
LATE_SHARE = 0.1
"""Of all the streams that a rung will have: twice what a limit on p95 lets pass."""
LEAST_ERRORS = 5
BEHIND_SECONDS, BEHIND_SHARE = 10.0, 0.25
"""So far behind the audio is no slip of the recogniser: seconds, and share of the audio that a stream has sent."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A stream as far as it has come. Times are ``perf_counter_ns``."""

    words: Sequence[TimedWord]
    audio_seconds: float
    speed: float
    t0_ns: int  # 0: no audio is planned yet
    final_ns: int | None
    words_shown: int
    outcome: Outcome | None
    streams: bool = True  # whether text can come before the audio has ended

    def past_final_seconds(self, now_ns: int) -> float | None:
        """Time to final, or how long that has taken already; ``None`` where it cannot be told."""
        if not self.t0_ns or not self.words or self.outcome not in (None, Outcome.OK):
            return None
        until_ns = now_ns if self.final_ns is None else self.final_ns
        return (until_ns - self.t0_ns) / NS - self.words[-1].end / self.speed

    def is_behind(self, now_ns: int) -> bool:
        """Whether the text is far behind the audio, by the number of words shown."""
        if not self.streams or not self.t0_ns or not self.words or self.outcome is not None:
            return False
        sent = min((now_ns - self.t0_ns) / NS * self.speed, self.audio_seconds)
        shown = min(self.words_shown, len(self.words))
        reached = self.words[shown - 1].end if shown else 0.0
        due = [word for word in self.words[shown:] if word.end <= sent]
        return bool(due) and sent - reached > max(BEHIND_SECONDS, BEHIND_SHARE * sent)


@dataclass(slots=True)
class Saturation:
    """A `harness.replay.Watch`. ``final_seconds`` is the limit on the time to final, ``errors`` that on the share of failures;
    ``streams`` is how many the rung is going to have about. With several generator processes each sees its own part of them.

    A rung is given up when (1) so many finals are later than the limit that no rest of it can make up for them, and they do not get
    earlier; or (2) so many streams failed; or (3) most of the streams under way are far behind their audio, by words.
    """

    final_seconds: float | None
    errors: float | None
    streams: float
    finals: list[tuple[int, float]] = field(default_factory=list)
    failed: int = 0

    def begun(self) -> Saturation:
        """One that has seen nothing."""
        return replace(self, finals=[], failed=0)

    def ended(self, stream: Stream) -> None:
        """Take note of a stream that has ended."""
        self.note(_seen(stream))

    def look(self, active: Collection[Stream], now_ns: int) -> str | None:
        """Why the rung is hopeless, if it is."""
        return self.decide([_seen(stream) for stream in active], now_ns)

    def note(self, seen: Seen) -> None:
        """As `ended`, from what was seen."""
        if seen.outcome in (Outcome.FAILED, Outcome.REJECTED):
            self.failed += 1
        elif seen.final_ns is not None and (took := seen.past_final_seconds(seen.final_ns)) is not None:
            self.finals.append((seen.final_ns, took))

    def decide(self, active: Iterable[Seen], now_ns: int) -> str | None:
        """As `look`, from what was seen."""
        active = list(active)
        if self.errors is not None and self.failed >= LEAST_ERRORS and self.failed > 2 * self.errors * self.streams:
            return f"saturated: {self.failed} streams failed or were refused"
        return self._late(active, now_ns) or self._behind(active, now_ns)

    def _late(self, active: Sequence[Seen], now_ns: int) -> str | None:
        limit = self.final_seconds
        if limit is None:
            return None
        waiting = [seen.past_final_seconds(now_ns) for seen in active if seen.final_ns is None]
        overdue = [took for took in waiting if took is not None and took > limit]
        ended = [took for _, took in sorted(self.finals)]
        late = [took for took in ended if took > limit]
        if len(late) + len(overdue) < max(LEAST_LATE, math.ceil(LATE_SHARE * self.streams)):
            return None
        row = [*ended, *overdue]
        third = max(1, len(row) // 3)
        first, last = statistics.median(row[:third]), statistics.median(row[-third:])
        if last <= limit or last < first:
            return None  # it came late for a while, and recovers
        return (
            f"saturated: {len(late) + len(overdue)} finals came more than {limit:g} s after the last word "
            f"or are still missing, the latest third {last:.1f} s in the median"
        )

    def _behind(self, active: Sequence[Seen], now_ns: int) -> str | None:
        going = [seen for seen in active if seen.t0_ns and seen.words]
        behind = sum(seen.is_behind(now_ns) for seen in going)
        if not going or behind <= len(going) / 2:
            return None
        return f"saturated: {behind} of {len(going)} transcripts are more than {BEHIND_SECONDS:g} s behind their audio"


def _seen(stream: Stream) -> Seen:
    utterance = stream.prepared.utterance
    return Seen(
        utterance.words or (),
        stream.prepared.seconds,
        stream.prepared.speed,
        stream.t0_ns,
        stream.final_ns,
        stream.words_shown,
        stream.outcome,
        stream.streams,
    )
