"""Which utterance is replayed by which stream, and when it is to begin."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice

from harness.arrivals import Arrivals, Closed, Recorded, planned
from harness.corpus import Utterance
from harness.pacing import Order, order_of

MOST_STREAMS = 1_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """A stream to be. ``index`` is its number in the run; ``start_seconds`` after the beginning of the run, ``None`` as soon as a
    lane is free."""

    index: int
    utterance: Utterance
    start_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one of several generator processes takes of a run: every ``of``-th stream or lane from ``first`` on."""

    first: int = 0
    of: int = 1

    def lanes(self, concurrency: int) -> range:
        """The lanes of this share."""
        return range(self.first, concurrency, self.of)


def jobs(
    utterances: Sequence[Utterance],
    arrivals: Arrivals,
    *,
    repeat: int = 1,
    seconds: float | None = None,
    order: Order = Order.LONGEST_FIRST,
    seed: int = 0,
) -> Iterator[Job]:
    """The streams of a run in the order in which they begin; without end for closed arrivals with ``seconds``.

    Raises:
        ValueError: a recorded schedule names an utterance that there is not.
    """
    match arrivals:
        case Closed() if seconds is None:
            lengths = [utterance.seconds for utterance in utterances] * repeat
            for index in order_of(lengths, order, seed):
                yield Job(index, utterances[index % len(utterances)])
        case Closed():
            yield from (Job(index, utterance) for index, utterance in enumerate(_endless(utterances, order, seed)))
        case _:
            most = MOST_STREAMS
            if seconds is None and not isinstance(arrivals, Recorded):
                most = len(utterances) * repeat
            by_id = {utterance.id: utterance for utterance in utterances}
            endless = _endless(utterances, order, seed)
            for index, (start_seconds, name) in enumerate(planned(arrivals, seed, most, seconds)):
                if name is not None and name not in by_id:
                    raise ValueError(
                        f"the schedule {arrivals} wants utterance {name!r}, which the dataset does not have"
                    )
                yield Job(index, next(endless) if name is None else by_id[name], start_seconds)


def _endless(utterances: Sequence[Utterance], order: Order, seed: int) -> Iterator[Utterance]:
    """All of them again and again, shuffled anew each time unless they are to stay as listed."""
    turn = Order.AS_LISTED if order is Order.AS_LISTED else Order.SHUFFLED
    lengths = [utterance.seconds for utterance in utterances]
    for number in count():
        yield from (utterances[index] for index in order_of(lengths, turn, seed + 1_000_003 * number))


def share_of(all_jobs: Iterator[Job], share: Share) -> Iterator[Job]:
    """The part of the jobs that a generator process does."""
    return islice(all_jobs, share.first, None, share.of)


def think_seconds(seed: int, stream: int, audio_seconds: float, mean_seconds: float, duty_cycle: float | None) -> float:
    """How long a lane is silent after a stream: exponentially drawn, its mean given or such that speech is ``duty_cycle`` of the time."""
    mean = mean_seconds if duty_cycle is None else audio_seconds * (1 - duty_cycle) / duty_cycle
    return random.Random(f"think {seed} {stream}").expovariate(1 / mean) if mean > 0 else 0.0
