"""How late a stream was: every time measure of one stream, from the planned time of its audio.

Times are seconds of the wall clock; audio time x is due at ``t0 + x / speed``. Nothing is clamped: a word shown before its end has a
negative latency. In an unpaced replay (``speed`` = inf) the audio has no schedule, so only the measures that need none exist.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import stdtrit

from harness.partials import Step, light_words, steps
from harness.references import plain
from harness.timeline import Entry, Kind, Outcome, StreamRecord

STALL_SECONDS = 2.0
STALL_WORDS = 3
_NS = 1e9


@dataclass(frozen=True, slots=True)
class Lag:
    """The transcript's lag around the moment at which the newest transcribed word changed.

    ``seconds`` since T0 on the wall clock; ``before`` and ``after`` are audio sent (planned) less the end of the newest
    transcribed word, in seconds of audio, just before and after the words came. ``after`` is ``None`` where audio ended with
    words still missing.
    """

    seconds: float
    before: float
    after: float | None


@dataclass(frozen=True, slots=True)
class Slope:
    """Seconds per second, with the 95 % interval of a straight line's slope; ``None`` when two points leave nothing to judge it by."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class StreamLatency:
    """The measures of one stream by the names of MEASURES.md. Seconds; ``None`` where the stream does not have the measure.

    The three tuples have one value per timed reference word, ``None`` for a word never recognised. ``unmatched_words`` counts those,
    but not words without a letter or digit, which nothing could match.
    """

    connect_seconds: float | None
    ready_seconds: float | None
    first_token_from_start: float | None
    first_token_from_onset: float | None
    word_end_seconds: tuple[float, ...]
    word_emission_latencies: tuple[float | None, ...]
    word_finality_latencies: tuple[float | None, ...]
    word_emission_latency_p50: float | None
    word_emission_latency_p95: float | None
    word_finality_latency_p50: float | None
    excess_latency: float | None
    time_to_final: float | None
    flush_latency: float | None
    lag: tuple[Lag, ...]
    drift: Slope | None
    max_lag: float | None
    stalls: int | None
    unmatched_words: int | None
    lost_tail_words: int | None
    dropped_seconds: float
    real_time_factor: float | None


def measure(record: StreamRecord) -> StreamLatency:
    """Every latency of one stream. Cost grows with the text shown, not with its square."""
    paced = math.isfinite(record.speed)
    states = _Alignment(record)
    timed = record.words or ()
    emissions = _from_word_ends(record, states.emitted_ns) if paced and timed else (None,) * len(timed)
    finalities = _from_word_ends(record, states.final_ns) if paced and timed else (None,) * len(timed)
    seen = sorted(value for value in emissions if value is not None)
    standing = sorted(value for value in finalities if value is not None)
    median = quantile(seen, 0.5)
    delay = delay_seconds(record)
    final, end_of_audio = record.first(Kind.FINAL), record.first(Kind.END_OF_AUDIO)
    connecting = record.first(Kind.CONNECTING)
    shown_ns = next((t_ns for t_ns, stable, tentative in record.shown() if stable.strip() or tentative.strip()), None)
    lag = _lag(record, states.emitted_ns) if paced else ()
    return StreamLatency(
        connect_seconds=_between(connecting, record.first(Kind.CONNECTED)),
        ready_seconds=_between(connecting, record.first(Kind.READY)),
        first_token_from_start=None if shown_ns is None else (shown_ns - record.t0_ns) / _NS,
        first_token_from_onset=None
        if shown_ns is None or not timed or not paced
        else since(record, timed[0].start, shown_ns),
        word_end_seconds=tuple(word.end for word in timed),
        word_emission_latencies=emissions,
        word_finality_latencies=finalities,
        word_emission_latency_p50=median,
        word_emission_latency_p95=quantile(seen, 0.95),
        word_finality_latency_p50=quantile(standing, 0.5),
        excess_latency=None if median is None or delay is None else median - delay / record.speed,
        time_to_final=None if final is None or not timed or not paced else since(record, timed[-1].end, final.t_ns),
        flush_latency=_between(end_of_audio, final),
        lag=lag,
        drift=_drift(record, lag),
        max_lag=max((point.before for point in lag), default=None),
        stalls=_stalls(record, states.changes_ns, delay or 0.0) if paced and record.words is not None else None,
        unmatched_words=None if record.words is None else states.unmatched,
        lost_tail_words=states.lost_tail if record.outcome is Outcome.OK else None,
        dropped_seconds=sum((entry.value or 0.0 for entry in record.of(Kind.DROPPED)), start=0.0),
        real_time_factor=None
        if paced or final is None or not record.audio_seconds
        else (final.t_ns - record.t0_ns) / _NS / record.audio_seconds,
    )


def since(record: StreamRecord, audio_seconds: float, t_ns: int) -> float:
    """Wall seconds from the planned time of a place in the audio to ``t_ns``; negative when that came first."""
    return (t_ns - record.t0_ns) / _NS - audio_seconds / record.speed


def delay_seconds(record: StreamRecord) -> float | None:
    """The configured transcription delay in audio seconds: what the server said is in force, else what was asked for."""
    delay_ms = record.delay_ms if record.delay_ms_in_force is None else record.delay_ms_in_force
    return None if delay_ms is None else delay_ms / 1000


def lateness(record: StreamRecord) -> list[float]:
    """Pacing lateness of every scheduled message of the stream: seconds from due to sent, less those it was held on purpose."""
    sent = [entry for entry in record.entries if entry.kind is Kind.PACKET or entry.kind is Kind.END_OF_AUDIO]
    held_ns = record.held_ns
    return [
        (entry.t_ns - entry.due_ns - (held_ns[min(place, len(held_ns) - 1)] if held_ns else 0)) / _NS
        for place, entry in enumerate(sent)
        if entry.due_ns is not None
    ]


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Quantile of sorted values, linear between neighbours as numpy does; ``None`` for no values."""
    if not ordered:
        return None
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _between(first: Entry | None, second: Entry | None) -> float | None:
    return None if first is None or second is None else (second.t_ns - first.t_ns) / _NS


def _from_word_ends(record: StreamRecord, times_ns: Sequence[int | None]) -> tuple[float | None, ...]:
    return tuple(
        None if t_ns is None else since(record, word.end, t_ns)
        for word, t_ns in zip(record.words or (), times_ns, strict=True)
    )


class _Alignment:
    """When each reference word was first shown right, since when it stood, and what was never recognised.

    The states of the transcript between two changes that took words back only grow, so the last of them tells of all: it is aligned, and
    each word in it counts from the moment it was complete. An append-only transcript is thus aligned once, when it is whole.
    A state that is not the final transcript covers only the beginning of the reference; see `PrefixAligner`.
    """

    def __init__(self, record: StreamRecord) -> None:
        texts = [word.text for word in record.words] if record.words is not None else plain(record.reference).split()
        pieces = [light_words(text, record.language) for text in texts]
        self._bounds = [0]
        for piece in pieces:
            self._bounds.append(self._bounds[-1] + len(piece))
        self._aligner = PrefixAligner([token for piece in pieces for token in piece])
        tokens = self._bounds[-1]
        self._emitted: list[int | None] = [None] * tokens
        self.changes_ns: list[int] = []
        last: Step | None = None
        for step in steps(record):
            if step.former is not None:
                words, since_ns = step.former
                self._note(self._aligner.align(words), since_ns)
            if step.new_text:
                self.changes_ns.append(step.t_ns)
            last = step
        standing: list[int | None] = [None] * tokens
        matched_to = 0
        if last is not None:
            pairs = self._aligner.align(last.words, whole=last.final, again=True)
            self._note(pairs, last.since)
            for token, shown in pairs:
                standing[token] = last.since[shown]
                matched_to = max(matched_to, token + 1)
        self.emitted_ns = self._by_word(self._emitted)
        self.final_ns = self._by_word(standing)
        self.unmatched = sum(1 for piece, t_ns in zip(pieces, self.emitted_ns, strict=True) if piece and t_ns is None)
        self.lost_tail = sum(
            1 for piece, begin in zip(pieces, self._bounds, strict=False) if piece and begin >= matched_to
        )

    def _note(self, pairs: list[tuple[int, int]], since_ns: list[int]) -> None:
        for token, shown in pairs:
            earlier = self._emitted[token]
            if earlier is None or since_ns[shown] < earlier:
                self._emitted[token] = since_ns[shown]

    def _by_word(self, times_ns: list[int | None]) -> list[int | None]:
        """A word of several tokens is there when the last of them is."""
        by_word: list[int | None] = []
        for begin, end in pairwise(self._bounds):
            known = [t_ns for t_ns in times_ns[begin:end] if t_ns is not None]
            by_word.append(max(known) if known and len(known) == end - begin else None)
        return by_word


class PrefixAligner:
    """Aligns growing and changing word lists with the beginning of one reference that they cover, by fewest errors.

    A partial transcript has not reached the end of the reference, so the reference words it has not reached are free: of all
    beginnings of the reference the one with the fewest errors is taken, the longest where several are equal (so that a word after a
    deletion counts as recognised). Aligning it with the whole reference would match a misheard word with any equal word
    far ahead and call it recognised seconds before it was said. Among equally short alignments the earliest reference words are
    matched, which never flatters a latency.

    Columns of the distance matrix are kept as bit vectors (Myers 1999, Hyyro 2003) and kept for the words that a list shares with the
    one before, so a list costs as much as its new words.
    """

    def __init__(self, reference: Sequence[str]) -> None:
        self._reference = list(reference)
        self._all = (1 << len(reference)) - 1
        self._masks: dict[str, int] = {}
        for place, word in enumerate(reference):
            self._masks[word] = self._masks.get(word, 0) | 1 << place
        self._words: list[str] = []
        self._rises = [self._all]  # bit i of column j: the distance rises by one from reference place i to i + 1
        self._falls = [0]
        self._path = [0]  # reference place at which the last alignment passed each column; -1 where it did not

    def align(self, words: list[str], *, whole: bool = False, again: bool = False) -> list[tuple[int, int]]:
        """Pairs (reference place, place in ``words``) of equal words, in falling order.

        Pairs that this method already gave for an earlier list with the same beginning are left out, unless ``again``.
        ``whole``: the words cover the whole reference.
        """
        kept = self._extend(words)
        place = len(self._reference) if whole else self._covered()
        column = len(words)
        pairs: list[tuple[int, int]] = []
        del self._path[kept + 1 :]
        fresh = [0] * (column - kept)
        while column:
            if column <= kept:
                if self._path[column] == place and not again:
                    break
                self._path[column] = place
            else:
                fresh[column - kept - 1] = place
            while place and self._rises[column] >> (place - 1) & 1:
                place -= 1  # reference word not in the words
            if not place or self._falls[column - 1] >> (place - 1) & 1:
                column -= 1  # word not in the reference
                continue
            place, column = place - 1, column - 1
            if self._reference[place] == words[column]:
                pairs.append((place, column))
        self._path.extend(fresh)
        return pairs

    def _extend(self, words: list[str]) -> int:
        """Makes the columns for ``words``; returns how many of its first words had them."""
        kept = _common(self._words, words)
        del self._words[kept:], self._rises[kept + 1 :], self._falls[kept + 1 :]
        rises, falls, everything = self._rises[kept], self._falls[kept], self._all
        for word in words[kept:]:
            equal = self._masks.get(word, 0)
            diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
            right_rises = falls | ~(diagonal | rises)
            right_falls = diagonal & rises
            right_rises = right_rises << 1 | 1
            right_falls <<= 1
            rises = (right_falls | ~(diagonal | right_rises)) & everything
            falls = right_rises & diagonal & everything
            self._words.append(word)
            self._rises.append(rises)
            self._falls.append(falls)
        return kept

    def _covered(self) -> int:
        """The longest of the beginnings of the reference with the fewest errors against the words last extended to."""
        rises, falls = self._rises[-1], self._falls[-1]
        if len(self._reference) > 256:
            return self._covered_by_array(rises, falls)
        distance = least = place = covered = 0
        while falls >> place or (place < len(self._reference) and not rises >> place & 1):
            # beyond the last fall the distance can only rise or stay
            if rises >> place & 1:
                distance += 1
            elif falls >> place & 1:
                distance -= 1
            place += 1
            if distance <= least:
                least, covered = distance, place
        return covered

    def _covered_by_array(self, rises: int, falls: int) -> int:
        size = len(self._reference)
        up, down = (
            np.unpackbits(
                np.frombuffer(bits.to_bytes(size // 8 + 1, "little"), np.uint8), count=size, bitorder="little"
            )
            for bits in (rises, falls)
        )
        distance = np.concatenate([[0], np.cumsum(up.astype(np.int32) - down)])
        return size - int(np.argmin(distance[::-1]))


def _common(one: list[str], other: list[str]) -> int:
    """The length of the common beginning; compares slices, halving, since the lists mostly differ at their ends."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _lag(record: StreamRecord, emitted_ns: Sequence[int | None]) -> tuple[Lag, ...]:
    """The lag at each moment the newest transcribed word changed, while audio was being sent.

    Afterwards the planned audio stands still and the lag would fall by itself. Before the first word the newest transcribed word ends at
    0. Pauses in the speech count: the lag grows in them until the next word.
    """
    times = sorted(
        (t_ns, word.end) for word, t_ns in zip(record.words or (), emitted_ns, strict=False) if t_ns is not None
    )
    points: list[Lag] = []
    newest = 0.0
    for t_ns, end in times:
        seconds = (t_ns - record.t0_ns) / _NS
        sent = seconds * record.speed
        if sent > record.audio_seconds:
            break
        if end <= newest:
            continue
        if points and points[-1].seconds == seconds:
            points[-1] = Lag(seconds, points[-1].before, sent - end)
        else:
            points.append(Lag(seconds, sent - newest, sent - end))
        newest = end
    if record.words and newest < record.words[-1].end:
        points.append(Lag(record.audio_seconds / record.speed, record.audio_seconds - newest, None))
    return tuple(points)


def _drift(record: StreamRecord, lag: Sequence[Lag]) -> Slope | None:
    """Least-squares slope of the lag just after new words, per second of audio.

    Points follow each other, so they are less independent than the interval supposes: read it as the narrowest it could be.
    """
    points = [(point.seconds * record.speed, point.after) for point in lag if point.after is not None]
    if len(points) < 2:
        return None
    x, y = np.array(points).T
    x, y = x - x.mean(), y - y.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    free = len(points) - 2
    if not free:
        return Slope(slope, None, None)
    rest = y - slope * x
    margin = float(stdtrit(free, 0.975)) * math.sqrt(float(rest @ rest) / free / spread)
    return Slope(slope, slope - margin, slope + margin)


def _stalls(record: StreamRecord, changes_ns: Sequence[int], delay: float) -> int:
    """Gaps without new text longer than 2 s + delay in which 3 or more reference words lie whole.

    Gaps are in audio time and reach from T0 over every change that showed words to the final transcript, or to the end
    of the record where none came. Taking words back shows nothing new.
    """
    if not record.entries:
        return 0
    final = record.first(Kind.FINAL)
    end_ns = final.t_ns if final is not None else record.entries[-1].t_ns
    marks = [record.t0_ns, *(t_ns for t_ns in changes_ns if record.t0_ns < t_ns < end_ns), end_ns]
    stalls = 0
    for begin_ns, until_ns in pairwise(marks):
        begin, until = ((t_ns - record.t0_ns) / _NS * record.speed for t_ns in (begin_ns, until_ns))
        if until - begin > STALL_SECONDS + delay:
            words = sum(1 for word in record.words or () if word.start >= begin and word.end <= until)
            stalls += words >= STALL_WORDS
    return stalls
