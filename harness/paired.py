"""What changed in accuracy from one run to another, over the utterances that both replayed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from harness.statistics import Bootstrap, Difference, mapsswe, paired_wer_difference
from harness.store import RunConfig

LOAD_IDLE = "load - idle"
STREAM_OFFLINE = "stream - offline"
OTHER = "run - run"
OFFLINE_PROTOCOLS = frozenset({"transcriptions", "offline", "rest"})


class Against(msgspec.Struct, frozen=True):
    """This run less another one, over the utterances with speech that both scored; positive is worse.

    ``wer`` and ``cer`` are fractions. ``mapsswe`` is a second test of the same: errors per utterance. ``differs`` names the settings
    in which the two runs differ, among them those that make a comparison doubtful.
    """

    run: str
    relation: str  # LOAD_IDLE, STREAM_OFFLINE or OTHER
    differs: list[str]
    utterances: int
    only_here: int
    only_there: int
    wer: Difference
    mapsswe: Difference
    cer: Difference


@dataclass(frozen=True, slots=True)
class Counts:
    """Errors and units of one utterance; the mean of its repetitions where it was replayed several times."""

    speaker: str
    errors: float
    words: float
    character_errors: float
    characters: float


def counts(rows: Iterable[Mapping[Any, Any]]) -> dict[str, Counts]:
    """By utterance, from rows of utterances.parquet: scored ones with at least one reference word."""
    groups: dict[str, list[Mapping[Any, Any]]] = {}
    for row in rows:
        if row["scored"] and row["reference_words"] > 0:
            groups.setdefault(row["utterance"], []).append(row)
    return {name: _mean(group) for name, group in groups.items()}


def _mean(group: list[Mapping[Any, Any]]) -> Counts:
    def mean(*names: str) -> float:
        return float(sum(row[name] for row in group for name in names)) / len(group)

    return Counts(
        group[0]["speaker"] or "",
        mean("substitutions", "deletions", "insertions"),
        mean("reference_words"),
        mean("character_errors"),
        mean("reference_characters"),
    )


def wer_change(
    before: Mapping[str, Counts], after: Mapping[str, Counts], block: str, bootstrap: Bootstrap
) -> Difference:
    """WER of ``after`` less that of ``before`` with a paired 95 % interval; ``block`` is "speaker" or "recording"."""
    both = _pairs(before, after)
    return paired_wer_difference(
        [one.errors for _, one, _ in both],
        [other.errors for _, _, other in both],
        [one.words for _, one, _ in both],
        _blocks(both, block),
        bootstrap,
    )


_Pair = tuple[str, Counts, Counts]


def _pairs(before: Mapping[str, Counts], after: Mapping[str, Counts]) -> list[_Pair]:
    return [(name, before[name], after[name]) for name in sorted(before.keys() & after.keys())]


def _blocks(both: list[_Pair], block: str) -> list[str]:
    return [one.speaker if block == "speaker" else name for name, one, _ in both]


def compare(
    here: RunConfig,
    here_rows: Iterable[Mapping[str, Any]],
    there: RunConfig,
    there_rows: Iterable[Mapping[str, Any]],
    *,
    run: str,
    block: str,
    bootstrap: Bootstrap,
) -> Against:
    """This run against another, called ``run``."""
    after, before = counts(here_rows), counts(there_rows)
    both = _pairs(before, after)
    return Against(
        run=run,
        relation=relation(here, there),
        differs=differences(here, there),
        utterances=len(both),
        only_here=len(after) - len(both),
        only_there=len(before) - len(both),
        wer=wer_change(before, after, block, bootstrap),
        mapsswe=mapsswe([one.errors for _, one, _ in both], [other.errors for _, _, other in both]),
        cer=paired_wer_difference(
            [one.character_errors for _, one, _ in both],
            [other.character_errors for _, _, other in both],
            [one.characters for _, one, _ in both],
            _blocks(both, block),
            bootstrap,
        ),
    )


_NAMES_ONLY = frozenset({"label", "target", "caveat", "seed"})


def differences(here: RunConfig, there: RunConfig) -> list[str]:
    """The names of the settings that differ, but for those that are mere names."""
    one, other = msgspec.structs.asdict(here), msgspec.structs.asdict(there)
    return [name for name in one if one[name] != other[name] and name not in _NAMES_ONLY]


def relation(here: RunConfig, there: RunConfig) -> str:
    """What a comparison of the two says: what load does, what streaming costs, or simply what differs.

    Offline is what was sent unpaced or by a protocol that takes whole files.
    """
    if differences(here, there) == ["concurrency"] and here.concurrency > there.concurrency:
        return LOAD_IDLE
    if not _offline(here) and _offline(there):
        return STREAM_OFFLINE
    return OTHER


def _offline(config: RunConfig) -> bool:
    return config.protocol in OFFLINE_PROTOCOLS or math.isinf(config.speed)
