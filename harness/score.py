"""From a timeline to scores.json: which measures a run gets and how they are summed up."""

from __future__ import annotations

import msgspec

from harness.statistics import Distribution, Estimate


class Accuracy(msgspec.Struct, frozen=True):
    """Counts add, rates do not: ``wer`` = (substitutions + deletions + insertions) / reference_words over the corpus."""

    normaliser: str
    reference_words: int
    substitutions: int
    deletions: int
    insertions: int
    wer: Estimate  # a fraction; None for an empty reference
    raw_wer: Estimate  # before normalisation
    cer: Estimate


class Scores(msgspec.Struct, frozen=True):
    """What scores.json holds. Latencies in seconds, rates as fractions."""

    schema: int
    run: str
    valid: bool
    invalid_because: list[str]
    complete: bool
    streams: int
    outcomes: dict[str, int]
    accuracy: Accuracy
    hallucinated_words_per_minute: Estimate  # on non-speech clips; value None when there are none
    latency: dict[str, Distribution]  # first_token_from_start, first_token_from_onset, word_emission_latency, ...
    stability: dict[str, Estimate]  # unstable_partial_word_ratio, normalized_erasure, edit_overhead
    counts: dict[str, float]  # stalls, lost_tail_words, dropped_seconds, unmatched_words, errors, ...
    pacing: Distribution  # lateness of packets
    block: str  # what the bootstrap resampled: "speaker" or "recording"
