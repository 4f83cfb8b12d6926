"""Which cell is held against which, and what cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.gate.records import COORDINATES, IDENTITY, REMARKED, CellRecord
from harness.gate.tolerances import GateError

# Between any two runs these must agree all the same: without them there are no pairs, or their counts are of different things.
COMMON_GROUND = ("corpus_sha256", "normaliser", "normaliser_sha256", "counted")

Pair = tuple[CellRecord, CellRecord]


def like_with_like(baselines: Sequence[CellRecord], candidates: Sequence[CellRecord]) -> list[Pair]:
    """Each cell of the baseline with the candidate that was measured in the same way. Raises `GateError` where there is none."""
    if not baselines:
        raise GateError("the baseline holds no cell; make it again with `earmark gate --save`")
    pairs = []
    for old in baselines:
        same = [new for new in candidates if _agree(old, new, COORDINATES)]
        exact = [new for new in same if _agree(old, new, IDENTITY)]
        if not same:
            if len(candidates) == len(baselines) == 1:
                raise GateError(_fields_that_differ(old, candidates[0], COORDINATES + IDENTITY))
            there = "; ".join(cell.label for cell in candidates) or "nothing"
            raise GateError(f"no candidate for the baseline's cell ({old.label}); the candidates have: {there}")
        if not exact:
            raise GateError(_fields_that_differ(old, same[0], IDENTITY))
        if len(exact) > 1:
            raise GateError(
                f"several candidates for the baseline's cell ({old.label}): {', '.join(new.run for new in exact)}"
            )
        new = exact[0]
        if (
            None not in (old.delay_ms_in_force, new.delay_ms_in_force)
            and old.delay_ms_in_force != new.delay_ms_in_force
        ):
            raise GateError(_fields_that_differ(old, new, ("delay_ms_in_force",)))
        pairs.append((old, new))
    return pairs


def whatever_pairs(ones: Sequence[CellRecord], others: Sequence[CellRecord]) -> list[Pair]:
    """Each cell of one side with its counterpart on the other, over the same corpus, however the two were measured.

    What each side has only one value of is no coordinate: two benches over three delays, of different protocols, pair by delay.

    Raises:
        GateError: there is no counterpart, or more than one, or the two have no common ground.
    """
    if not ones or not others:
        raise GateError("each side needs at least one run")
    varied = [
        name
        for name in COORDINATES + IDENTITY
        if len({getattr(cell, name) for cell in ones}) > 1 or len({getattr(cell, name) for cell in others}) > 1
    ]
    pairs = []
    for one in ones:
        found = [other for other in others if _agree(one, other, varied)]
        if len(found) > 1:
            raise GateError(f"several counterparts of {one.label}: {', '.join(other.run for other in found)}")
        if not found:
            continue
        if not _agree(one, found[0], COMMON_GROUND):
            raise GateError(
                _fields_that_differ(one, found[0], COMMON_GROUND, advice="The same audio, scored alike, is needed")
            )
        pairs.append((one, found[0]))
    if not pairs:
        there = "; ".join(cell.label for cell in others)
        raise GateError(
            f"no run of the one side ({'; '.join(cell.label for cell in ones)}) pairs with one of the other ({there})"
        )
    return pairs


def _agree(one: CellRecord, other: CellRecord, fields: Sequence[str]) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in fields)


def _fields_that_differ(
    old: CellRecord,
    new: CellRecord,
    fields: Sequence[str],
    advice: str = "Compare like with like, or make a new baseline with `earmark gate --save`",
) -> str:
    differing = [
        f"{name} is {_short(getattr(old, name))} in the baseline and {_short(getattr(new, name))} in the candidate"
        for name in fields
        if getattr(old, name) != getattr(new, name)
    ]
    return "; ".join(differing) + f". {advice}"


def _short(value: object) -> str:
    match value:
        case "" | () | None:
            return "none"
        case str() if len(value) == 64:
            return f"{value[:12]}…"
        case tuple():
            return repr(" ".join(value))
        case _:
            return repr(value)


def differences(pairs: Sequence[Pair]) -> Iterator[str]:
    """What whoever reads the verdict should know: what differs between two sides, apart from their figures."""
    for old, new in pairs:
        alone = len(set(old.utterances) ^ set(new.utterances))
        if alone:
            yield f"{old.label}: {alone} utterances were scored in only one of the two runs and are left out"
    for name in (*COORDINATES, *IDENTITY, *REMARKED):
        changes: dict[tuple[str, str], list[str]] = {}
        for old, new in pairs:
            before, after = getattr(old, name), getattr(new, name)
            if before != after:
                told = (_short(before), _short(after))
                changes.setdefault(told, []).append(old.label)
        for (was, now), labels in changes.items():
            where = "" if len(labels) == len(pairs) else f"{', '.join(labels)}: "
            yield f"{where}{name} differs: {was} before, {now} now"
