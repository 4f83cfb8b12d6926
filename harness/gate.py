"""The decision whether a candidate run is worse than a baseline, from their per-utterance counts and latencies alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text
from scipy.stats import norm

from harness import statistics, store
from harness.frames import read_utterances
from harness.score import Scores, read_scores
from harness.statistics import RESAMPLES, Bootstrap, Difference
from harness.store import Run

SCHEMA = 1
SIGNIFICANCE = 0.05  # over all tests of one gate, after Holm's correction
POWER = 0.8
SEED = 0  # of the bootstrap: the same two files always get the same verdict
FEWEST_PAIRS = 6  # below, not even the most extreme outcome of a signed-rank test is significant

# A cell of the baseline is compared with the candidate that has the same coordinates ...
COORDINATES = ("protocol", "concurrency", "delay_ms", "packet_ms", "speed", "arrival")
# ... and these must agree as well: figures of another corpus, normaliser or engine say nothing about a change.
IDENTITY = ("engine", "dataset", "corpus_sha256", "normaliser", "normaliser_sha256")
# These may differ, since a change is what a gate is for, but whoever reads the verdict should know.
REMARKED = ("model", "server_options", "seed", "machine")


class Verdict(StrEnum):
    """What a comparison came to."""

    BETTER = "better"
    WORSE = "worse"
    CANNOT_TELL = "cannot tell"


class Tolerance(msgspec.Struct, frozen=True):
    """A change up to ``absolute + relative * |baseline|`` never fails, however significant it is."""

    absolute: float
    relative: float = 0.0

    def around(self, baseline: float | None) -> float:
        return self.absolute + self.relative * abs(baseline or 0.0)


# On a machine of one's own: latencies of the same build repeat to a few ten milliseconds.
TOLERANCES: dict[str, Tolerance] = {
    "wer": Tolerance(0.015),
    "cer": Tolerance(0.015),
    "hallucinated_words_per_minute": Tolerance(1.0, 0.10),
    "first_token": Tolerance(0.05, 0.10),
    "word_p50": Tolerance(0.05, 0.10),
    "word_p95": Tolerance(0.08, 0.15),
    "time_to_final": Tolerance(0.05, 0.15),
    "time_to_final_tail": Tolerance(0.10, 0.25),
    "errors": Tolerance(0.0),
}
# Where other jobs share the cores only gross breakage counts: 0.5 s on every final still fails as long as finals take under 1 s.
SHARED_MACHINE: dict[str, Tolerance] = TOLERANCES | {
    "first_token": Tolerance(0.25, 0.20),
    "word_p50": Tolerance(0.25, 0.20),
    "word_p95": Tolerance(0.30, 0.25),
    "time_to_final": Tolerance(0.25, 0.20),
    "time_to_final_tail": Tolerance(0.40, 0.50),
}
PROFILES: dict[str, dict[str, Tolerance]] = {"own-machine": TOLERANCES, "shared-machine": SHARED_MACHINE}

METRICS: dict[str, tuple[str, str]] = {  # name -> what to call it, its unit
    "wer": ("WER", "points"),
    "cer": ("CER", "points"),
    "hallucinated_words_per_minute": ("hallucinated words", "/min"),
    "errors": ("failed streams", "points"),
    "first_token": ("first token", "s"),
    "word_p50": ("word latency p50", "s"),
    "word_p95": ("word latency p95", "s"),
    "time_to_final": ("time to final", "s"),
    "time_to_final_tail": ("p95 of time to final", "s"),
}
LATENCIES = {  # name -> column of utterances.parquet
    "first_token": "first_token_from_onset",
    "word_p50": "word_emission_latency_p50",
    "word_p95": "word_emission_latency_p95",
    "time_to_final": "time_to_final",
}


class GateError(Exception):
    """Two things cannot be compared, or a baseline cannot be made; the message says which field and what to do."""


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

    @property
    def label(self) -> str:
        delay = "server's delay" if self.delay_ms is None else f"{self.delay_ms} ms"
        return f"{self.protocol} {delay} ×{self.concurrency}"

    def frame(self) -> pd.DataFrame:
        """The columns as a frame over utterances."""
        columns = {
            "speaker": self.speakers,
            "minutes": np.array(self.audio_seconds, dtype=float) / 60,
            "reference": self.reference,
            "errors": np.array(self.substitutions) + np.array(self.deletions) + np.array(self.insertions),
            "hallucinated": self.hallucinated,
        } | {name: np.array(values, dtype=float) for name, values in self.latencies.items()}
        return pd.DataFrame(columns, index=pd.Index(self.utterances, name="utterance"))


class Baseline(msgspec.Struct, frozen=True):
    """What a committed baseline file holds."""

    schema: int
    kind: str
    tolerances: dict[str, Tolerance]
    cells: list[CellRecord]


@dataclass(frozen=True, slots=True)
class Test:
    """One metric of one cell. ``change`` is candidate less baseline, so above 0 is worse; ``p`` is before Holm's correction."""

    cell: str
    metric: str
    n: int
    baseline: float | None
    candidate: float | None
    change: Difference
    p: float
    tolerance: float
    paired: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """A test with its verdict. ``seen`` is the smallest true change that would have failed the gate with power 0.8."""

    test: Test
    adjusted_p: float
    verdict: Verdict
    seen: float | None
    remark: str


@dataclass(frozen=True, slots=True)
class GateResult:
    """What the gate came to: judged metrics, or the reasons why nothing could be compared."""

    judged: Sequence[Judged] = ()
    refused: Sequence[str] = ()
    notes: Sequence[str] = ()
    caveats: Sequence[str] = field(default_factory=tuple)

    @property
    def verdict(self) -> Verdict:
        verdicts = {judged.verdict for judged in self.judged}
        if Verdict.WORSE in verdicts:
            return Verdict.WORSE
        return Verdict.BETTER if Verdict.BETTER in verdicts else Verdict.CANNOT_TELL

    @property
    def exit_code(self) -> int:
        """0: no regression, 1: a regression, 2: the two cannot be compared."""
        if self.refused:
            return 2
        return 1 if self.verdict is Verdict.WORSE else 0

    def sentence(self) -> str:
        """The result in one sentence."""
        if self.refused:
            return f"CANNOT COMPARE: {'; '.join(self.refused)}"
        if self.verdict is Verdict.WORSE:
            worse = [_told(judged) for judged in self.judged if judged.verdict is Verdict.WORSE]
            return f"REGRESSION: {'; '.join(worse)}"
        if self.verdict is Verdict.BETTER:
            better = [_told(judged) for judged in self.judged if judged.verdict is Verdict.BETTER]
            return f"PASS, and better: {'; '.join(better)}"
        blind = sum(1 for judged in self.judged if judged.seen is None)
        unable = f" ({blind} of them on too few utterances to see anything)" if blind else ""
        return f"PASS: nothing got worse by more than its tolerance in {len(self.judged)} tests{unable}"

    def table(self) -> Table:
        """For the terminal."""
        title = "CANNOT COMPARE" if self.refused else self.sentence()
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        if self.refused:
            table.add_column("why nothing was compared")
            for reason in self.refused:
                table.add_row(Text(reason))
            return table
        for name in HEAD[1:]:
            left = name in ("metric", "verdict", "remark")
            table.add_column(name, justify="left" if left else "right", no_wrap=name != "remark")
        colours = {Verdict.WORSE: "bold red", Verdict.BETTER: "green", Verdict.CANNOT_TELL: ""}
        for cell in dict.fromkeys(judged.test.cell for judged in self.judged):
            table.add_row(Text(cell, style="bold"))
            for judged in self.judged:
                if judged.test.cell == cell:
                    _, *figures, verdict, remark = _row(judged)
                    table.add_row(
                        *(Text(figure) for figure in figures),
                        Text(verdict, style=colours[judged.verdict]),
                        Text(remark),
                    )
        explanation = "sees: the smallest true change that would fail here four times out of five; above 0 is worse"
        table.caption = "\n".join([explanation, *self.notes, *self.caveats])
        table.caption_justify = "left"
        return table

    def markdown(self) -> str:
        """For gate.md and for a comment on a change."""
        lines = ["# Gate", "", f"**{self.sentence()}**", ""]
        if self.judged:
            lines += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
            lines += [
                "| " + " | ".join(cell.replace("|", "\\|") for cell in _row(judged)) + " |" for judged in self.judged
            ]
            lines += ["", EXPLANATION, ""]
        lines += [f"- {note}" for note in (*self.notes, *self.caveats)]
        return "\n".join(lines).rstrip() + "\n"


PERCENT = ("wer", "cer", "errors")
HEAD = ("cell", "metric", "before", "now", "change [95 %]", "allowed", "n", "sees", "verdict", "remark")
EXPLANATION = (
    "A metric fails only when its change is significant (5 % over all tests, Holm) and larger than what is allowed. `sees` is the "
    "smallest true change that fails this gate four times out of five. Above 0 is worse."
)


def save(folders: Sequence[Path], tolerances: Mapping[str, Tolerance] | None = None) -> dict[str, Any]:
    """A baseline from scored run folders, ready for JSON. Raises `GateError` for runs that are invalid or incomplete."""
    cells, refused = _read(folders, "run")
    if refused:
        raise GateError("no baseline made: " + "; ".join(refused))
    if not cells:
        raise GateError("no baseline made: no run folder given")
    baseline = Baseline(SCHEMA, "earmark-baseline", dict(TOLERANCES | dict(tolerances or {})), cells)
    made: dict[str, Any] = msgspec.to_builtins(baseline)
    return made


def compare(
    baseline: Mapping[str, Any], folders: Sequence[Path], tolerances: Mapping[str, Tolerance] | None = None
) -> GateResult:
    """Judges the run folders against a baseline made by `save`. ``tolerances`` go before those in the baseline.

    Never raises for what cannot be compared: the result then says why, and its exit code is 2.
    """
    try:
        kept = msgspec.convert(dict(baseline), Baseline)
    except msgspec.ValidationError as error:
        return GateResult(refused=[f"the baseline cannot be read ({error}); make it again with `earmark gate --save`"])
    if kept.schema != SCHEMA:
        return GateResult(refused=[f"the baseline has schema {kept.schema}, this gate reads {SCHEMA}; make it again"])
    candidates, refused = _read(folders, "candidate")
    if refused:
        return GateResult(refused=refused)
    return judge(kept.cells, candidates, TOLERANCES | kept.tolerances | dict(tolerances or {}))


def judge(
    baselines: Sequence[CellRecord],
    candidates: Sequence[CellRecord],
    tolerances: Mapping[str, Tolerance] | None = None,
    resamples: int = RESAMPLES,
) -> GateResult:
    """The decision alone, from records already read."""
    try:
        pairs = _matched(baselines, candidates)
        allowed, bootstrap = TOLERANCES | dict(tolerances or {}), Bootstrap(SEED, resamples)
        tests = [test for old, new in pairs for test in _tests(old, new, allowed, bootstrap)]
    except GateError as error:
        return GateResult(refused=[str(error)])
    # Failures are counted, not tested: they take no part in the correction.
    tested = iter(statistics.holm([test.p for test in tests if test.metric != "errors"]))
    adjusted = [test.p if test.metric == "errors" else next(tested) for test in tests]
    count = sum(test.metric != "errors" for test in tests)
    notes = dict.fromkeys(note for old, new in pairs for note in _differences(old, new))
    extra = len(candidates) - len({id(new) for _, new in pairs})
    return GateResult(
        judged=[_judged(test, p, count) for test, p in zip(tests, adjusted, strict=True)],
        notes=[*notes, *([f"{extra} candidate cells are not in the baseline and were left out"] if extra > 0 else [])],
        caveats=list(dict.fromkeys(cell.caveat for _, cell in pairs if cell.caveat)),
    )


# --- reading runs ----------------------------------------------------------------------------------------------------------


def record(run: Run, scores: Scores, utterances: pd.DataFrame) -> CellRecord:
    """What a baseline keeps of one run."""
    config, scored = run.config, utterances[utterances["scored"]]
    non_speech = scored["reference_words"] == 0
    # What is heard in silence counts as words per minute, not in a rate that has no word to divide it by.
    kept = scored.assign(hallucinated=scored["insertions"].where(non_speech, 0.0), reference=scored["reference_words"])
    kept.loc[non_speech, "insertions"] = 0.0
    by_character = scores.accuracy.headline == "cer"
    if by_character:
        kept = kept.assign(
            reference=kept["reference_characters"],
            substitutions=kept["character_errors"],
            deletions=0.0,
            insertions=0.0,
        )
        kept.loc[non_speech, "substitutions"] = 0.0
    numbers = [*COUNTS, *LATENCIES.values()]
    means = kept.groupby("utterance", sort=True)[numbers].mean()
    speakers = kept.groupby("utterance", sort=True)["speaker"].first().fillna("")
    in_force = utterances["delay_ms_in_force"].dropna()
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
    )


COUNTS = ("audio_seconds", "reference", "substitutions", "deletions", "insertions", "hallucinated")


def _rounded(column: pd.Series[float]) -> list[float]:
    return [round(float(value), 4) for value in column]


def _kept(column: pd.Series[float]) -> list[float | None]:
    return [round(float(value), 4) if math.isfinite(value) else None for value in column]


def _read(folders: Sequence[Path], what: str) -> tuple[list[CellRecord], list[str]]:
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
    return pooled(cells), refused


def pooled(cells: Sequence[CellRecord]) -> list[CellRecord]:
    """Repetitions of one cell become one record with the mean of each utterance."""
    groups: dict[tuple[Any, ...], list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault(tuple(getattr(cell, name) for name in (*COORDINATES, *IDENTITY)), []).append(cell)
    return [group[0] if len(group) == 1 else _mean(group) for group in groups.values()]


def _mean(group: Sequence[CellRecord]) -> CellRecord:
    table = pd.concat(
        pd.DataFrame(
            {name: getattr(cell, name) for name in ("speakers", *COUNTS)}
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
        **{name: [float(value) for value in means[name]] for name in COUNTS},
    )


# --- matching cells --------------------------------------------------------------------------------------------------------


def _matched(baselines: Sequence[CellRecord], candidates: Sequence[CellRecord]) -> list[tuple[CellRecord, CellRecord]]:
    if not baselines:
        raise GateError("the baseline holds no cell; make it again with `earmark gate --save`")
    pairs = []
    for old in baselines:
        same = [new for new in candidates if all(getattr(old, name) == getattr(new, name) for name in COORDINATES)]
        exact = [new for new in same if all(getattr(old, name) == getattr(new, name) for name in IDENTITY)]
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


def _fields_that_differ(old: CellRecord, new: CellRecord, fields: Sequence[str]) -> str:
    differing = [
        f"{name} is {_short(getattr(old, name))} in the baseline and {_short(getattr(new, name))} in the candidate"
        for name in fields
        if getattr(old, name) != getattr(new, name)
    ]
    return "; ".join(differing) + ". Compare like with like, or make a new baseline with `earmark gate --save`"


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


def _differences(old: CellRecord, new: CellRecord) -> Iterator[str]:
    alone = len(set(old.utterances) ^ set(new.utterances))
    if alone:
        yield f"{old.label}: {alone} utterances were scored in only one of the two runs and are left out"
    for name in REMARKED:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{old.label}: {name} differs: {before or 'none'!r} in the baseline, {after or 'none'!r} in the candidate"


# --- tests -----------------------------------------------------------------------------------------------------------------

Floats = NDArray[np.float64]


def _tests(
    old: CellRecord, new: CellRecord, tolerances: Mapping[str, Tolerance], bootstrap: Bootstrap
) -> Iterator[Test]:
    before, after = old.frame(), new.frame()
    both = before.merge(after, left_index=True, right_index=True, suffixes=("_a", "_b"))
    if both.empty:
        raise GateError(
            f"the candidate has none of the baseline's utterances scored ({old.label}); was it a complete run?"
        )
    yield from _accuracy_tests(old, both, tolerances, bootstrap)
    yield _error_test(old, new, tolerances["errors"])
    for name in LATENCIES:
        a, b = before[name].dropna().to_numpy(float), after[name].dropna().to_numpy(float)
        if not len(a):
            continue
        if not len(b):
            raise GateError(
                f"{METRICS[name][0]} was measured on {len(a)} utterances of the baseline and on none of the candidate ({new.label})"
            )
        yield _latency_tests(old, name, both, a, b, tolerances[name], bootstrap)
        tail = _tail_test(old, both, tolerances["time_to_final_tail"], bootstrap) if name == "time_to_final" else None
        if tail is not None:
            yield tail


def _accuracy_tests(
    old: CellRecord, both: pd.DataFrame, tolerances: Mapping[str, Tolerance], bootstrap: Bootstrap
) -> Iterator[Test]:
    speech, silence = both[both["reference_a"] > 0], both[both["reference_a"] == 0]
    rate = "cer" if old.counted == "characters" else "wer"
    rates = (
        (rate, speech, "errors", "reference_a"),
        ("hallucinated_words_per_minute", silence, "hallucinated", "minutes_a"),
    )
    for metric, frame, count, per in rates:
        size = frame[per].to_numpy(float)
        if not size.sum():
            continue
        a, b = frame[f"{count}_a"].to_numpy(float), frame[f"{count}_b"].to_numpy(float)
        change = statistics.paired_wer_difference(list(a), list(b), list(size), _blocks(old, frame), bootstrap)
        p = _p(change)
        if metric == rate:
            # The cross-check: where the two tests disagree the larger p counts, so nothing fails on one of them alone.
            p = max(p, _p(statistics.mapsswe(list(a), list(b))))
        base = float(a.sum() / size.sum())
        yield Test(
            old.label, metric, len(frame), base, float(b.sum() / size.sum()), change, p, tolerances[metric].around(base)
        )


def _blocks(old: CellRecord, frame: pd.DataFrame) -> list[str]:
    """What is resampled: what the run's own intervals resampled."""
    speakers = frame["speaker_a"] if "speaker_a" in frame else frame["speaker"]
    return [str(name) for name in (speakers if old.block == "speaker" else frame.index)]


def _p(change: Difference) -> float:
    return 1.0 if change.p_value is None else change.p_value


def _error_test(old: CellRecord, new: CellRecord, tolerance: Tolerance) -> Test:
    """New errors are faults, not noise: any beyond the tolerance fail, so the p stands for certainty and not for a test."""
    before, after = old.failed_streams / max(1, old.streams), new.failed_streams / max(1, new.streams)
    allowed = tolerance.around(before)
    certain = 0.0 if abs(after - before) > allowed else 1.0
    change = Difference(after - before, None, None, certain, new.streams, None, "counted")
    return Test(old.label, "errors", new.streams, before, after, change, certain, allowed)


def _latency_tests(
    old: CellRecord, name: str, both: pd.DataFrame, a: Floats, b: Floats, tolerance: Tolerance, bootstrap: Bootstrap
) -> Test:
    """A shift of the middle: of the differences per utterance where most of them pair, else between the two samples."""
    pair = both.dropna(subset=[f"{name}_a", f"{name}_b"])
    paired = len(pair) >= FEWEST_PAIRS and len(pair) >= min(len(a), len(b)) / 2
    if not paired:
        change = statistics.rank_shift(list(a), list(b))
        base = float(np.median(a))
        return Test(
            old.label, name, change.n, base, float(np.median(b)), change, _p(change), tolerance.around(base), False
        )
    before, after = pair[f"{name}_a"].to_numpy(float), pair[f"{name}_b"].to_numpy(float)
    change = statistics.paired_latency_difference(list(before), list(after), _blocks(old, pair), bootstrap)
    base = float(np.median(before))
    return Test(old.label, name, len(pair), base, float(np.median(after)), change, _p(change), tolerance.around(base))


def _tail_test(old: CellRecord, both: pd.DataFrame, tolerance: Tolerance, bootstrap: Bootstrap) -> Test | None:
    """The p95 over utterances: what a shift of the middle does not show, such as one final in ten coming seconds late."""
    pair = both.dropna(subset=["time_to_final_a", "time_to_final_b"])
    if pair.empty:
        return None
    before, after = pair["time_to_final_a"].to_numpy(float), pair["time_to_final_b"].to_numpy(float)
    change = statistics.paired_quantile_difference(list(before), list(after), _blocks(old, pair), bootstrap, 0.95)
    base, now = float(np.quantile(before, 0.95)), float(np.quantile(after, 0.95))
    return Test(old.label, "time_to_final_tail", len(pair), base, now, change, _p(change), tolerance.around(base))


# --- verdicts --------------------------------------------------------------------------------------------------------------


def _judged(test: Test, adjusted: float, tests: int) -> Judged:
    change, seen = test.change.value, could_have_seen(test, tests)
    significant = adjusted <= SIGNIFICANCE
    if change is None:
        return Judged(test, adjusted, Verdict.CANNOT_TELL, seen, test.change.note or "too little data")
    if significant and abs(change) > test.tolerance:
        return Judged(test, adjusted, Verdict.WORSE if change > 0 else Verdict.BETTER, seen, "")
    return Judged(test, adjusted, Verdict.CANNOT_TELL, seen, _why_not(test, significant, seen))


def _why_not(test: Test, significant: bool, seen: float | None) -> str:
    low, high = test.change.low, test.change.high
    if test.metric == "errors":
        return "no new failures" if not test.change.value else "within allowed"
    if seen is None or low is None or high is None:
        return "too few utterances"
    if significant:
        return "real, but allowed"
    if -test.tolerance <= low and high <= test.tolerance:
        return "within allowed"
    return "not significant"


def could_have_seen(test: Test, tests: int) -> float | None:
    """The smallest true worsening that this gate fails with power 0.8, or ``None`` when the sample gives no interval.

    The standard error is read off the 95 % interval. A failure needs an estimate beyond the tolerance and beyond the significance
    bound at the strictest step of Holm's procedure; the estimate exceeds the larger of the two in 80 % of cases when the true
    change lies 0.84 standard errors above it.
    """
    low, high = test.change.low, test.change.high
    if test.metric == "errors":
        return (math.floor(test.tolerance * test.n) + 1) / test.n if test.n else None
    if low is None or high is None:
        return None
    standard_error = (high - low) / (2 * norm.ppf(0.975))
    bound = max(test.tolerance, norm.ppf(1 - SIGNIFICANCE / (2 * max(1, tests))) * standard_error)
    return float(bound + norm.ppf(POWER) * standard_error)


# --- words and numbers -----------------------------------------------------------------------------------------------------


def _told(judged: Judged) -> str:
    test = judged.test
    name, unit = METRICS[test.metric]
    return (
        f"{name} {_figure(test.baseline, test.metric)} → {_figure(test.candidate, test.metric)} "
        f"({_change(test)} {unit}, {test.cell})"
    )


def _row(judged: Judged) -> list[str]:
    test = judged.test
    name, unit = METRICS[test.metric]
    scale = 100.0 if test.metric in PERCENT else 1.0
    unit = "%" if test.metric == "errors" else unit
    symbol = {Verdict.WORSE: "✗", Verdict.BETTER: "✓", Verdict.CANNOT_TELL: "·"}[judged.verdict]
    seen = "-" if judged.seen is None else f"+{judged.seen * scale:.{_digits(test.metric)}f}"
    return [
        test.cell,
        f"{name} ({unit})" if test.metric not in ("wer", "cer") else name,
        _figure(test.baseline, test.metric),
        _figure(test.candidate, test.metric),
        _change(test),
        f"{test.tolerance * scale:.{_digits(test.metric)}f}",
        str(test.n),
        seen,
        f"{symbol} {judged.verdict}",
        judged.remark if test.paired else f"{judged.remark} (unpaired)".strip(),
    ]


def _digits(metric: str) -> int:
    return 1 if metric in ("errors", "hallucinated_words_per_minute") else 2


def _figure(value: float | None, metric: str) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.2%}"
        if metric in ("wer", "cer")
        else f"{value:.1%}"
        if metric == "errors"
        else f"{value:.{_digits(metric)}f}"
    )


def _change(test: Test) -> str:
    scale, digits = (100.0 if test.metric in PERCENT else 1.0), _digits(test.metric)
    if test.change.value is None:
        return "-"
    value = f"{test.change.value * scale:+.{digits}f}"
    if test.change.low is None or test.change.high is None:
        return value
    return f"{value} [{test.change.low * scale:+.{digits}f}, {test.change.high * scale:+.{digits}f}]"
