"""Runs as the gate sees them: counts and latencies of each utterance, and what makes a run comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from harness import store
from harness.frames import read_utterances
from harness.gate.tolerances import LATENCIES, TOLERANCES, GateError, Tolerance, checked
from harness.score import Scores, read_scores
from harness.store import Run

SCHEMA = 1

# A cell of the baseline is compared with the candidate that has the same coordinates ...
COORDINATES = ("protocol", "concurrency", "delay_ms", "packet_ms", "speed", "arrival", "load")
# ... and these must agree as well: figures of another corpus, normaliser, engine or way of asking a service say nothing about a change.
IDENTITY = ("engine", "dataset", "corpus_sha256", "normaliser", "normaliser_sha256", "driver_options")
# These may differ, since a change is what a gate is for, but whoever reads the verdict should know.
REMARKED = ("model", "server_options", "seed", "machine")

COUNTS = ("audio_seconds", "reference", "substitutions", "deletions", "insertions", "hallucinated")
EVENTS = ("stalls", "lost_tail_words", "dropped_seconds", "unstable_words")


class CellRecord(msgspec.Struct, frozen=True):
    """One cell (one concurrency and delay) as a baseline keeps it. The lists are columns: one entry per utterance.

    An utterance replayed several times has the mean of its repetitions. Latencies in seconds, ``None`` where there is none.
    """

    run: str
    protocol: str
    concurrency: int
    delay_ms: int | None
    delay_ms_in_force: float | None
    packet_ms: int
    speed: float | str
    arrival: str
    engine: str
    model: str
    dataset: str
    corpus_sha256: str
    normaliser: str
    normaliser_sha256: str
    counted: str  # "words", or "characters" in languages whose headline is the character error rate
    server_options: list[str]
    seed: int
    machine: str
    caveat: str
    block: str
    streams: int
    failed_streams: int
    scores: dict[str, float | None]
    utterances: list[str]
    speakers: list[str]
    audio_seconds: list[float]
    reference: list[float]  # how many of what is counted
    substitutions: list[float]  # all errors, where characters are counted
    deletions: list[float]
    insertions: list[float]
    hallucinated: list[float]
    latencies: dict[str, list[float | None]]
    events: dict[str, list[float]] = {}  # those of `EVENTS`; empty in baselines made before they were kept
    commit: str = ""
    created: str = ""  # ISO 8601 UTC
    load: str = ""  # what makes the load another than the plain one
    driver_options: tuple[str, ...] = ()  # sorted

    @property
    def key(self) -> tuple[Any, ...]:
        """What records of the same cell agree in."""
        return tuple(getattr(self, name) for name in (*COORDINATES, *IDENTITY))

    @property
    def label(self) -> str:
        delay = "server's delay" if self.delay_ms is None else f"{self.delay_ms} ms"
        return f"{self.protocol} {delay} ×{self.concurrency}{f' {self.load}' if self.load else ''}"

    def frame(self) -> pd.DataFrame:
        """The columns as a frame over utterances."""
        columns = {
            "speaker": self.speakers,
            "minutes": np.array(self.audio_seconds, dtype=float) / 60,
            "seconds": self.audio_seconds,
            "reference": self.reference,
            "errors": np.array(self.substitutions) + np.array(self.deletions) + np.array(self.insertions),
            "hallucinated": self.hallucinated,
        } | {name: np.array(values, dtype=float) for name, values in (self.latencies | self.events).items()}
        return pd.DataFrame(columns, index=pd.Index(self.utterances, name="utterance"))


class Baseline(msgspec.Struct, frozen=True):
    """What a committed baseline file holds."""

    schema: int
    kind: str
    tolerances: dict[str, Tolerance]
    cells: list[CellRecord]


def save(folders: Sequence[Path], tolerances: Mapping[str, Tolerance] | None = None) -> dict[str, Any]:
    """A baseline from scored run folders, ready for JSON. Raises `GateError` for runs that are invalid or incomplete."""
    cells, refused = read(folders, "run")
    if refused:
        raise GateError("no baseline made: " + "; ".join(refused))
    baseline = Baseline(SCHEMA, "earmark-baseline", dict(TOLERANCES | dict(tolerances or {})), pooled(cells))
    made: dict[str, Any] = msgspec.to_builtins(baseline)
    return made


def opened(baseline: Mapping[str, Any]) -> Baseline:
    """A baseline that `save` made, read back. Raises `GateError` for anything else."""
    try:
        kept = msgspec.convert(dict(baseline), Baseline)
    except msgspec.ValidationError as error:
        raise GateError(f"the baseline cannot be read ({error}); make it again with `earmark gate --save`") from error
    if kept.schema != SCHEMA:
        raise GateError(f"the baseline has schema {kept.schema}, this gate reads {SCHEMA}; make it again")
    checked(kept.tolerances, "the baseline")
    if "time_to_final_tail" in kept.tolerances:  # older ones know but one tail; what it may do the other may too
        kept.tolerances.setdefault("word_tail", kept.tolerances["time_to_final_tail"])
    return kept


def read(folders: Sequence[Path], what: str) -> tuple[list[CellRecord], list[str]]:
    """The records of run folders, one each, and why those that cannot be judged cannot."""
    cells, refused = [], []
    for folder in folders:
        try:
            run, scores, utterances = store.read_run(folder), read_scores(folder), read_utterances(folder)
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            refused.append(f"{what} {folder} cannot be read: {error}")
            continue
        if not (scores.complete and run.complete):
            refused.append(f"{what} {run.id} is incomplete; run it again to its end")
        elif not scores.valid:
            refused.append(f"{what} {run.id} is invalid: {', '.join(scores.invalid_because) or 'no reason recorded'}")
        else:
            cells.append(record(run, scores, utterances))
    if not folders:
        refused.append(f"no {what} folder given")
    return cells, refused


def record(run: Run, scores: Scores, utterances: pd.DataFrame) -> CellRecord:
    """What a baseline keeps of one run."""
    config = run.config
    by_character = scores.accuracy.headline == "cer"
    kept = _counted(utterances[utterances["scored"]], by_character=by_character)
    means = kept.groupby("utterance", sort=True)[[*COUNTS, *EVENTS, *LATENCIES.values()]].mean()
    speakers = kept.groupby("utterance", sort=True)["speaker"].first().fillna("")
    in_force = utterances["delay_ms_in_force"].dropna()
    git = run.environment.get("git")
    return CellRecord(
        run=run.id,
        **{name: getattr(config, name) for name in ("protocol", "concurrency", "delay_ms", "packet_ms", "arrival")},
        delay_ms_in_force=float(in_force.median()) if len(in_force) else None,
        speed=config.speed if math.isfinite(config.speed) else "inf",
        **{
            name: getattr(config, name)
            for name in ("engine", "model", "dataset", "corpus_sha256", "normaliser", "seed", "caveat")
        },
        server_options=list(config.server_options),
        driver_options=tuple(sorted(config.driver_options)),
        load=_load(config.load),
        machine=str(run.environment.get("cpu") or run.environment.get("machine") or ""),
        counted="characters" if by_character else "words",
        normaliser_sha256=scores.accuracy.normaliser_sha256,
        block=scores.block,
        streams=len(utterances),
        failed_streams=int((utterances["outcome"] != "ok").sum()),
        scores={"wer": scores.accuracy.wer.value}
        | {
            f"{name}_{q}": getattr(latency, q).value for name, latency in scores.latency.items() for q in ("p50", "p95")
        },
        utterances=[str(name) for name in means.index],
        speakers=[str(name) for name in speakers],
        latencies={name: _kept(means[column]) for name, column in LATENCIES.items()},
        audio_seconds=_rounded(means["audio_seconds"]),
        reference=_rounded(means["reference"]),
        substitutions=_rounded(means["substitutions"]),
        deletions=_rounded(means["deletions"]),
        insertions=_rounded(means["insertions"]),
        hallucinated=_rounded(means["hallucinated"]),
        events={name: _rounded(means[name]) for name in EVENTS},
        commit=_revision(git) if isinstance(git, dict) else "",
        created=run.created,
    )


def _load(load: Mapping[str, Any]) -> str:
    """The number of processes is part of it: several read sooner what the server wrote than one that reads for all."""
    told = {name: ",".join(map(str, value)) if isinstance(value, list) else value for name, value in load.items()}
    return " ".join(f"{name}={value}" for name, value in sorted(told.items()))


def _counted(scored: pd.DataFrame, *, by_character: bool) -> pd.DataFrame:
    """What is heard in silence counts as words per minute, not in a rate that has no word to divide it by."""
    non_speech = scored["reference_words"] == 0
    counted = scored.assign(
        hallucinated=scored["insertions"].where(non_speech, 0.0),
        reference=scored["reference_words"],
    )
    final_words = scored["hypothesis"].map(lambda text: float(len(str(text or "").split())))
    counted["unstable_words"] = scored["unstable_partial_word_ratio"] * final_words.where(~non_speech, 0)
    counted[list(EVENTS)] = counted[list(EVENTS)].fillna(0.0)
    counted.loc[non_speech, "insertions"] = 0.0
    if by_character:
        counted = counted.assign(
            reference=counted["reference_characters"],
            substitutions=counted["character_errors"].where(~non_speech, 0.0),
            deletions=0.0,
            insertions=0.0,
        )
    return counted


def _revision(git: Mapping[str, Any]) -> str:
    commit = str(git.get("commit") or "")
    return f"{commit}+" if commit and git.get("dirty") else commit  # with a plus: and changes that were not committed


def _rounded(column: pd.Series[float]) -> list[float]:
    return [round(float(value), 4) for value in column]


def _kept(column: pd.Series[float]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in column]


def pooled(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """Repetitions of one cell become one record with the mean of each utterance."""
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault(cell.key, []).append(cell)
    return [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]


def _mean(group: Sequence[CellRecord]) -> CellRecord:
    events = [name for name in EVENTS if all(name in cell.events for cell in group)]
    table = pd.concat(
        pd.DataFrame(
            {name: getattr(cell, name) for name in ("speakers", *COUNTS)}
            | {name: cell.events[name] for name in events}
            | {k: np.array(v, float) for k, v in cell.latencies.items()},
            index=pd.Index(cell.utterances),
        )
        for cell in group
    )
    means = table.drop(columns="speakers").groupby(level=0, sort=True).mean()
    return msgspec.structs.replace(
        group[0],
        run=" + ".join(cell.run for cell in group),
        streams=sum(cell.streams for cell in group),
        failed_streams=sum(cell.failed_streams for cell in group),
        utterances=list(means.index),
        speakers=list(table["speakers"].groupby(level=0, sort=True).first()),
        latencies={name: _kept(means[name]) for name in group[0].latencies},
        events={name: [float(value) for value in means[name]] for name in events},
        **{name: [float(value) for value in means[name]] for name in COUNTS},
    )
