"""The timetable of a replay: where audio is cut, when each packet is due, which utterance goes next.

Everything is planned against an absolute start ``T0``: the packet that carries audio up to second x is due at
``T0 + x / speed``, whenever the one before really left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from itertools import accumulate

from wire.pcm import BYTES_PER_SAMPLE, BYTES_PER_SECOND, SAMPLE_RATE

NS = 1_000_000_000
SMALLEST_PACKET_MS, LARGEST_PACKET_MS = 5, 10_000


class Order(StrEnum):
    """In which order utterances are started."""

    LONGEST_FIRST = "longest-first"  # the lanes run dry together, so the tail of a closed run is short
    SHUFFLED = "shuffled"  # seeded
    AS_LISTED = "as-listed"


def packet_ends(pcm_bytes: int, packet_ms: int) -> tuple[int, ...]:
    """The byte after each packet, in order. All packets but the last carry ``packet_ms`` of audio.

    Raises:
        ValueError: a packet length outside 5..10000 ms, or audio that is empty or not whole samples.
    """
    if not SMALLEST_PACKET_MS <= packet_ms <= LARGEST_PACKET_MS:
        raise ValueError(f"packets of {packet_ms} ms: choose {SMALLEST_PACKET_MS} to {LARGEST_PACKET_MS} ms")
    if pcm_bytes <= 0 or pcm_bytes % BYTES_PER_SAMPLE:
        raise ValueError(f"audio of {pcm_bytes} bytes is not a positive number of 16-bit samples")
    step = packet_ms * SAMPLE_RATE // 1000 * BYTES_PER_SAMPLE
    return (*range(step, pcm_bytes, step), pcm_bytes)


def due_offsets_ns(ends: Sequence[int], speed: float) -> tuple[int, ...]:
    """When each packet is due, in nanoseconds after T0. ``speed`` is audio seconds per second; infinite means at once.

    Raises:
        ValueError: a speed that is not positive.
    """
    if not speed > 0:
        raise ValueError(f"speed {speed} must be positive (1 is real time, inf as fast as possible)")
    return tuple(round(end * NS / BYTES_PER_SECOND / speed) for end in ends)


def order_of(seconds: Sequence[float], order: Order, seed: int) -> list[int]:
    """Indices in the order in which to start. Utterances of equal length are shuffled among themselves."""
    indices = list(range(len(seconds)))
    if order is Order.AS_LISTED:
        return indices
    random.Random(f"order {seed}").shuffle(indices)
    if order is Order.LONGEST_FIRST:
        indices.sort(key=lambda index: -seconds[index])
    return indices


def start_jitter_ns(seed: int, stream: int, packet_ms: int, speed: float) -> int:
    """A delay of up to one packet before T0 of ``stream``, so that the ticks of concurrent streams do not align."""
    return round(random.Random(f"start {seed} {stream}").random() * packet_ms * 1_000_000 / speed)


def lane_delays_seconds(lanes: int, ramp_seconds: float) -> list[float]:
    """When each of the concurrent lanes opens its first connection: evenly over the ramp."""
    return [lane * ramp_seconds / lanes for lane in range(lanes)]


def poisson_starts_seconds(count: int, per_second: float, seed: int) -> list[float]:
    """Starts of an open arrival process: ``count`` of them at the mean rate given, exponential gaps.

    Raises:
        ValueError: a rate that is not positive.
    """
    if not per_second > 0:
        raise ValueError(f"an arrival rate of {per_second} per second must be positive")
    gaps = random.Random(f"arrivals {seed}")
    return list(accumulate(gaps.expovariate(per_second) for _ in range(count)))
