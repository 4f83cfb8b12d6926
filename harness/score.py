"""From a timeline to scores.json: which measures a run gets and how they are summed up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from harness import accuracy, latency, paired, server_side, stability, store
from harness.accuracy import UtteranceAccuracy
from harness.latency import StreamLatency
from harness.normalise import BY_LANGUAGE, Normaliser, comparable_names, is_character_language, normaliser
from harness.paired import Against
from harness.references import plain
from harness.resources import Load, by_source
from harness.server_side import ServerFigure
from harness.stability import StreamStability
from harness.statistics import (
    Bootstrap,
    Distribution,
    Estimate,
    distribution,
    ratio_of_sums,
    resampling_block,
)
from harness.store import RunConfig, StoreError
from harness.timeline import Outcome, StreamRecord

SCHEMA = 1
LATENESS_LIMIT_SECONDS = 0.020
LATENCIES: Mapping[str, tuple[str, str]] = {
    "word": ("word_emission_latency", "word latency"),
    "finality": ("word_finality_latency", "word finality latency"),
    "final": ("time_to_final", "time to final"),
    "first": ("first_token_from_onset", "first token"),
    "flush": ("flush_latency", "flush latency"),
}
"""What may be limited in a search for capacity: the measure behind each name, and what people call it."""


class Sensitivity(msgspec.Struct, frozen=True):
    """The WER of the same transcripts under another normaliser: how much of it is spelling."""

    normaliser: str
    normaliser_sha256: str
    reference_words: int
    errors: int
    wer: Estimate


class LanguageAccuracy(msgspec.Struct, frozen=True):
    """The accuracy on the streams in one language of several."""

    streams: int
    reference_words: int
    headline: str
    wer: Estimate
    cer: Estimate


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
    normaliser_sha256: str = ""
    headline: str = "wer"  # "cer" where the corpus is in languages in which a word is a matter of taste
    sensitivity: list[
        Sensitivity
    ] = []  # under every normaliser that makes sense for the languages, the run's own among them
    by_language: dict[str, LanguageAccuracy] = {}  # where there are several


class Alignment(msgspec.Struct, frozen=True):
    """Where the times of the reference words come from; only words that have one can have a latency."""

    source: str = ""
    timed_words: int = 0
    untimed_words: int = 0  # in scored streams on speech
    untimed_streams: int = 0


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
    block_because: str = ""
    server_side: list[ServerFigure] = []  # the server's own histograms, the client's measures beside them
    alignment: Alignment = Alignment()
    system: dict[str, Load] = {}  # by source: "server", "harness", "machine", "gpu0" ...
    against: list[Against] = []  # changes from other runs over the same utterances


_NUMBERS = pa.list_(pa.float64())
UTTERANCES = pa.schema(
    [
        ("stream", pa.int32()),
        *((name, pa.string()) for name in ("utterance", "speaker", "language")),
        ("lane", pa.int32()),
        ("scored", pa.bool_()),
        ("outcome", pa.string()),
        ("error", pa.string()),
        ("delay_ms", pa.int32()),
        ("delay_ms_in_force", pa.int32()),
        ("audio_seconds", pa.float64()),
        ("reference", pa.string()),
        ("hypothesis", pa.string()),
        *((name, pa.int32()) for name in ("reference_words", "hits", "substitutions", "deletions", "insertions")),
        ("wer", pa.float64()),
        *(
            (name, pa.int32())
            for name in ("raw_reference_words", "raw_errors", "reference_characters", "character_errors")
        ),
        *(
            (name, pa.float64())
            for name in (
                "connect_seconds",
                "ready_seconds",
                "first_token_from_start",
                "first_token_from_onset",
                "word_emission_latency_p50",
                "word_emission_latency_p95",
                "word_finality_latency_p50",
                "excess_latency",
                "time_to_final",
                "flush_latency",
                "drift",
                "drift_low",
                "drift_high",
                "max_lag",
            )
        ),
        ("stalls", pa.int32()),
        *((name, pa.float64()) for name in ("unstable_partial_word_ratio", "normalized_erasure", "edit_overhead")),
        ("lost_tail_words", pa.int32()),
        ("dropped_seconds", pa.float64()),
        ("unmatched_words", pa.int32()),
        ("real_time_factor", pa.float64()),
        *((name, _NUMBERS) for name in ("word_emission_latencies", "word_finality_latencies")),
    ]
)
"""A row per stream. The finality latencies of a stream are null where they are its emission latencies, as in every transcript that only
grew; when its words ended stands in references.parquet. `harness.frames.read_utterances` puts both back in their places."""

_STEPS_BY_SECOND = 1024
"""Times in utterances.parquet are rounded to 1/1024 s, which takes a third of the file away. Scores are computed before."""
_ROUNDED = ("connect_seconds", "ready_seconds", "first_token_from_start", "first_token_from_onset", "word_emission_latency_p50",
            "word_emission_latency_p95", "word_finality_latency_p50", "excess_latency", "time_to_final", "flush_latency", "max_lag",
            "drift", "drift_low", "drift_high")  # fmt: skip
_ENCODINGS = dict.fromkeys(
    (*_ROUNDED, *(f"{name}.list.element" for name in ("word_emission_latencies", "word_finality_latencies"))),
    "BYTE_STREAM_SPLIT",
) | {"hypothesis": "PLAIN", "stream": "DELTA_BINARY_PACKED"}


@dataclass(slots=True)
class _Measured:
    """One stream taken apart, without its entries: what is kept of it until all are summed up."""

    record: StreamRecord
    accuracy: UtteranceAccuracy
    latency: StreamLatency
    stability: StreamStability
    lateness: NDArray[np.float64]
    first_ns: int
    last_ns: int
    scored: bool = field(init=False)

    def __post_init__(self) -> None:
        # A stream that the run itself broke off says nothing of the server: it is listed, and the run marked incomplete.
        self.scored = self.record.scored and self.record.outcome is not Outcome.ABANDONED

    @property
    def speech(self) -> bool:
        return not self.accuracy.non_speech


def score(folder: Path, against: Sequence[Path] = ()) -> Scores:
    """Scores a run from its recorded files alone; writes scores.json, utterances.parquet and summary.md into its folder.

    ``against`` are scored runs of the same utterances from which the change in accuracy is told as well. Those of an earlier
    scoring are told again as long as they stand beside the run.

    Raises:
        StoreError: a folder cannot be read as a run, or one of ``against`` is not scored.
        ValueError: the run asks for a normaliser that there is not.
    """
    run = store.read_run(folder)
    scores, rows = score_records(store.iter_records(folder), run.config, run=run.id, complete=run.complete)
    store.write_rows(folder / "utterances.parquet", [_compact(row) for row in rows], UTTERANCES, _ENCODINGS)
    others = {other.resolve().name: other for other in (*_compared_before(folder), *against)}
    bootstrap = Bootstrap(run.config.seed)
    scores = msgspec.structs.replace(
        scores,
        server_side=server_side.beside(folder, rows),
        system=by_source(store.read_system(folder)),
        against=[
            paired.compare(
                run.config,
                rows,
                store.read_run(other).config,
                store.read_rows(other / "utterances.parquet"),
                run=name,
                block=scores.block,
                bootstrap=bootstrap,
            )
            for name, other in others.items()
        ],
    )
    store.write_bytes(folder / "summary.md", summary(scores, run.config).encode())
    write_scores(folder, scores)
    return scores


def _compared_before(folder: Path) -> list[Path]:
    try:
        names = [one.run for one in read_scores(folder).against]
    except StoreError:
        return []
    return [other for name in names if ((other := folder.resolve().parent / name) / "utterances.parquet").exists()]


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    emissions, finalities = row["word_emission_latencies"], row["word_finality_latencies"]
    return {
        **row,
        **{name: _rounded(row[name]) for name in _ROUNDED if not name.startswith("drift")},
        **{name: _rounded(row[name], 32 * _STEPS_BY_SECOND) for name in _ROUNDED if name.startswith("drift")},
        "word_emission_latencies": [_rounded(value) for value in emissions],
        "word_finality_latencies": None if finalities == emissions else [_rounded(value) for value in finalities],
    }


def _rounded(value: float | None, steps: int = _STEPS_BY_SECOND) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value * steps) / steps


def write_scores(folder: Path, scores: Scores) -> None:
    """Writes scores.json, whole or not at all."""
    store.write_json(folder / "scores.json", scores)


def read_scores(folder: Path) -> Scores:
    """Raises StoreError when the run has no readable scores.json or a later version wrote it."""
    return store.read_json(folder / "scores.json", Scores, SCHEMA)


def score_records(
    records: Iterable[StreamRecord], config: RunConfig, *, run: str = "", complete: bool = True
) -> tuple[Scores, list[dict[str, Any]]]:
    """Scores, and a row per stream with the columns of `UTTERANCES`.

    Latencies are those of scored streams on speech: what a failed one showed before it failed counts, what it never showed is
    ``missing``. Opening times and flush latency exist on non-speech clips too. ``word_emission_latency`` pools words;
    ``word_emission_latency_per_stream`` is the distribution over streams of each stream's median.
    """
    rules = normaliser(config.normaliser)
    measured = [_measure(record, rules) for record in records]
    scored = [one for one in measured if one.scored]
    bootstrap = Bootstrap(config.seed)
    block, block_because = resampling_block([one.record.speaker for one in scored])
    pacing = distribution([one.lateness for one in scored], _blocks(scored, block), bootstrap)
    invalid = _invalid_because(scored, config, pacing)
    scores = Scores(
        schema=SCHEMA,
        run=run,
        valid=not invalid,
        invalid_because=invalid,
        complete=complete and all(one.record.outcome is not Outcome.ABANDONED for one in measured),
        streams=len(scored),
        outcomes={outcome.value: count for outcome, count in Counter(one.record.outcome for one in measured).items()},
        accuracy=_accuracy(scored, block, bootstrap, rules),
        hallucinated_words_per_minute=_hallucination(scored, block, bootstrap),
        latency=_latency(scored, block, bootstrap),
        stability=_stability(scored, block, bootstrap),
        counts=_counts(measured, scored),
        pacing=pacing,
        block=block,
        block_because=block_because,
        alignment=_alignment(scored, config.alignment),
    )
    return scores, [_row(one) for one in measured]


def _measure(record: StreamRecord, rules: Normaliser) -> _Measured:
    entries = record.entries
    one = _Measured(
        record=record,
        accuracy=accuracy.measure(record, rules, _others(record.language)),
        latency=latency.measure(record),
        stability=stability.measure(record),
        lateness=np.array(latency.lateness(record)),
        first_ns=record.t0_ns,
        last_ns=max((entry.t_ns for entry in entries), default=record.t0_ns),
    )
    one.record = _without_entries(record)
    return one


@cache
def _others(language: str) -> tuple[Normaliser, ...]:
    return tuple(map(normaliser, (*comparable_names([language]), BY_LANGUAGE)))


def _without_entries(record: StreamRecord) -> StreamRecord:
    kept = {name: getattr(record, name) for name in StreamRecord.__slots__ if name != "entries"}
    return StreamRecord(**kept)


def _blocks(streams: Sequence[_Measured], block: str) -> list[str]:
    """The block of each stream: its speaker, or the recording it replayed, which may have been replayed more than once."""
    return [one.record.speaker if block == "speaker" else one.record.utterance for one in streams]


def _invalid_because(scored: Sequence[_Measured], config: RunConfig, pacing: Distribution) -> list[str]:
    reasons = []
    if not scored:
        reasons.append("no stream was scored")
    limit = min(LATENESS_LIMIT_SECONDS, config.packet_ms / 2000)
    if math.isfinite(config.speed) and pacing.p99.value is not None and pacing.p99.value > limit:
        reasons.append(
            f"pacing lateness p99 is {1000 * pacing.p99.value:.1f} ms, over the limit of {1000 * limit:g} ms: "
            "the load generator could not keep its own schedule; lower the concurrency or give it more CPU"
        )
    return reasons


def _accuracy(scored: Sequence[_Measured], block: str, bootstrap: Bootstrap, rules: Normaliser) -> Accuracy:
    speech = [one for one in scored if one.speech]
    blocks = _blocks(speech, block)
    words = [one.accuracy.words for one in speech]
    raw = [one.accuracy.raw for one in speech]
    languages = {one.record.language.split("-")[0].lower() for one in speech}
    return Accuracy(
        normaliser=rules.name,
        reference_words=sum(one.reference_words for one in words),
        substitutions=sum(one.substitutions for one in words),
        deletions=sum(one.deletions for one in words),
        insertions=sum(one.insertions for one in words),
        wer=_wer(speech, block, bootstrap),
        raw_wer=ratio_of_sums([one.errors for one in raw], [one.reference_words for one in raw], blocks, bootstrap),
        cer=_cer(speech, block, bootstrap),
        normaliser_sha256=rules.sha256,
        headline=_headline(languages),
        sensitivity=_sensitivity(speech, languages, blocks, bootstrap, rules),
        by_language=_by_language(speech, block, bootstrap) if len(languages) > 1 else {},
    )


def _headline(languages: Collection[str]) -> str:
    return "cer" if languages and all(map(is_character_language, languages)) else "wer"


def _sensitivity(
    speech: Sequence[_Measured], languages: Collection[str], blocks: list[str], bootstrap: Bootstrap, rules: Normaliser
) -> list[Sensitivity]:
    found = []
    for name in dict.fromkeys((*comparable_names(languages), rules.name)):
        counts = [one.accuracy.by_normaliser[name] for one in speech if name in one.accuracy.by_normaliser]
        if len(counts) < len(speech) or not counts:
            continue
        errors, words = [one.errors for one in counts], [one.reference_words for one in counts]
        wer = ratio_of_sums(errors, words, blocks, bootstrap)
        found.append(Sensitivity(name, normaliser(name).sha256, sum(words), sum(errors), wer))
    return found


def _by_language(speech: Sequence[_Measured], block: str, bootstrap: Bootstrap) -> dict[str, LanguageAccuracy]:
    groups: dict[str, list[_Measured]] = {}
    for one in speech:
        groups.setdefault(one.record.language.split("-")[0].lower(), []).append(one)
    return {
        language: LanguageAccuracy(
            streams=len(group),
            reference_words=sum(one.accuracy.words.reference_words for one in group),
            headline=_headline([language]),
            wer=_wer(group, block, bootstrap),
            cer=_cer(group, block, bootstrap),
        )
        for language, group in sorted(groups.items())
    }


def _wer(group: Sequence[_Measured], block: str, bootstrap: Bootstrap) -> Estimate:
    words = [one.accuracy.words for one in group]
    return ratio_of_sums(
        [one.errors for one in words], [one.reference_words for one in words], _blocks(group, block), bootstrap
    )


def _cer(group: Sequence[_Measured], block: str, bootstrap: Bootstrap) -> Estimate:
    errors, characters = (
        [getattr(one.accuracy, name) for one in group] for name in ("character_errors", "reference_characters")
    )
    return ratio_of_sums(errors, characters, _blocks(group, block), bootstrap)


def _hallucination(scored: Sequence[_Measured], block: str, bootstrap: Bootstrap) -> Estimate:
    """Words per minute of non-speech that was heard to its end: a stream that failed would only dilute the figure."""
    silent = [one for one in scored if not one.speech and one.record.outcome is Outcome.OK]
    words = [one.accuracy.hallucinated_words for one in silent]
    minutes = [one.record.audio_seconds / 60 for one in silent]
    return ratio_of_sums(words, minutes, _blocks(silent, block), bootstrap)


def _latency(scored: Sequence[_Measured], block: str, bootstrap: Bootstrap) -> dict[str, Distribution]:
    speech = [one for one in scored if one.speech]

    def by_stream(
        streams: Sequence[_Measured], of: Callable[[StreamLatency], float | None], unit: str = "s"
    ) -> Distribution:
        values = [of(one.latency) for one in streams]
        groups = [[] if value is None else [value] for value in values]
        return distribution(groups, _blocks(streams, block), bootstrap, unit=unit, missing=values.count(None))

    def by_word(of: Callable[[StreamLatency], Sequence[float | None]]) -> Distribution:
        groups = [[value for value in of(one.latency) if value is not None] for one in speech]
        missing = sum(len(of(one.latency)) - len(group) for one, group in zip(speech, groups, strict=True))
        return distribution(groups, _blocks(speech, block), bootstrap, missing=missing)

    emissions = by_word(lambda one: one.word_emission_latencies)
    grown = all(one.latency.word_finality_latencies == one.latency.word_emission_latencies for one in speech)
    result = {
        "connect_seconds": by_stream(scored, lambda one: one.connect_seconds),
        "ready_seconds": by_stream(scored, lambda one: one.ready_seconds),
        "first_token_from_start": by_stream(speech, lambda one: one.first_token_from_start),
        "first_token_from_onset": by_stream(speech, lambda one: one.first_token_from_onset),
        "word_emission_latency": emissions,
        "word_emission_latency_per_stream": by_stream(speech, lambda one: one.word_emission_latency_p50),
        "word_finality_latency": emissions if grown else by_word(lambda one: one.word_finality_latencies),
        "word_finality_latency_per_stream": by_stream(speech, lambda one: one.word_finality_latency_p50),
        "excess_latency": by_stream(speech, lambda one: one.excess_latency),
        "time_to_final": by_stream(speech, lambda one: one.time_to_final),
        "flush_latency": by_stream(scored, lambda one: one.flush_latency),
        "max_lag": by_stream(speech, lambda one: one.max_lag),
        "drift": by_stream(speech, lambda one: None if one.drift is None else one.drift.value, unit="s/s"),
    }
    if any(one.latency.real_time_factor is not None for one in scored):
        result["real_time_factor"] = by_stream(scored, lambda one: one.real_time_factor, unit="1")
    return result


def _stability(scored: Sequence[_Measured], block: str, bootstrap: Bootstrap) -> dict[str, Estimate]:
    speech = [one for one in scored if one.speech]
    counted = [one.stability for one in speech]
    blocks = _blocks(speech, block)
    final = [one.final_words for one in counted]
    made = [one.edits_made for one in counted]
    over = [one.edits_made - one.final_words for one in counted]
    return {
        "unstable_partial_word_ratio": ratio_of_sums([one.unstable_words for one in counted], final, blocks, bootstrap),
        "normalized_erasure": ratio_of_sums([one.erased_words for one in counted], final, blocks, bootstrap),
        "edit_overhead": ratio_of_sums(over, made, blocks, bootstrap),
    }


def _alignment(scored: Sequence[_Measured], source: str) -> Alignment:
    speech = [one for one in scored if one.speech]
    without = [one.record for one in speech if one.record.words is None]
    timed = sum(len(one.record.words or ()) for one in speech)
    words = sum(len(plain(record.reference).split()) for record in without)
    return Alignment(source, timed, words, len(without))


def _counts(measured: Sequence[_Measured], scored: Sequence[_Measured]) -> dict[str, float]:
    speech = [one for one in scored if one.speech]
    outcomes = Counter(one.record.outcome for one in scored)
    wall = (max(one.last_ns for one in measured) - min(one.first_ns for one in measured)) / 1e9 if measured else 0.0
    audio = sum(one.record.audio_seconds for one in measured)
    return {
        "errors": outcomes[Outcome.FAILED],
        "rejected": outcomes[Outcome.REJECTED],
        "abandoned": sum(one.record.outcome is Outcome.ABANDONED for one in measured),
        "not_scored": len(measured) - len(scored),
        "empty": sum(
            one.record.outcome is Outcome.OK and not one.record.hypothesis.strip() for one in speech
        ),  # ended well, with nothing heard where something was said
        "stalls": sum(one.latency.stalls or 0 for one in speech),
        "lost_tail_words": sum(one.latency.lost_tail_words or 0 for one in speech),
        "dropped_seconds": sum(one.latency.dropped_seconds for one in scored),
        "timed_words": sum(len(one.latency.word_end_seconds) for one in speech),
        "unmatched_words": sum(one.latency.unmatched_words or 0 for one in speech),
        "streams_without_alignment": sum(one.record.words is None for one in speech),
        "streams_falling_behind": sum(
            one.latency.drift is not None and one.latency.drift.low is not None and one.latency.drift.low > 0
            for one in speech
        ),
        "streams_with_other_delay": sum(
            one.record.delay_ms is not None
            and one.record.delay_ms_in_force is not None
            and one.record.delay_ms != one.record.delay_ms_in_force
            for one in scored
        ),
        "hallucinated_words": sum(one.accuracy.hallucinated_words for one in scored),
        "non_speech_streams": len(scored) - len(speech),
        "audio_seconds": audio,
        "wall_seconds": wall,
        "audio_seconds_per_second": audio / wall if wall else 0.0,
    }


def _row(one: _Measured) -> dict[str, Any]:
    record, words, times, steady = one.record, one.accuracy.words, one.latency, one.stability
    copied = {
        name: getattr(times, name) for name in UTTERANCES.names if name in StreamLatency.__slots__ and name != "drift"
    }
    return {
        **{name: getattr(record, name) for name in UTTERANCES.names if name in StreamRecord.__slots__},
        **copied,
        "outcome": record.outcome.value,
        "scored": one.scored,
        "reference_words": words.reference_words,
        "hits": words.hits,
        "substitutions": words.substitutions,
        "deletions": words.deletions,
        "insertions": words.insertions,
        "wer": words.wer,
        "raw_reference_words": one.accuracy.raw.reference_words,
        "raw_errors": one.accuracy.raw.errors,
        "reference_characters": one.accuracy.reference_characters,
        "character_errors": one.accuracy.character_errors,
        "drift": None if times.drift is None else times.drift.value,
        "drift_low": None if times.drift is None else times.drift.low,
        "drift_high": None if times.drift is None else times.drift.high,
        "unstable_partial_word_ratio": steady.unstable_partial_word_ratio,
        "normalized_erasure": steady.normalized_erasure,
        "edit_overhead": steady.edit_overhead,
    }


_SUMMARY_LATENCIES = {
    "first_token_from_onset": "First token from onset",
    "word_emission_latency": "Word emission",
    "word_finality_latency": "Word finality",
    "time_to_final": "Time to final",
    "flush_latency": "Flush",
}


def summary(scores: Scores, config: RunConfig) -> str:
    """The scores as a page of Markdown for a person. Latencies in milliseconds, intervals in brackets."""
    delay = "the server's own delay" if config.delay_ms is None else f"delay {config.delay_ms} ms"
    lines = [
        f"# {scores.run or config.label or config.dataset}",
        "",
        f"{config.engine} on {config.dataset} over {config.protocol}: {scores.streams} scored streams, "
        f"concurrency {config.concurrency}, {delay}.",
        "",
    ]
    lines += [f"**Invalid:** {reason}.\n" for reason in scores.invalid_because]
    if not scores.complete:
        lines += ["**Incomplete:** the run was broken off; figures are those of the streams that ended.", ""]
    if config.caveat:
        lines += [f"*{config.caveat}*", ""]
    found = scores.accuracy
    lines += [
        "| accuracy | % | 95 % interval |",
        "|---|---:|---|",
        _rate_line(f"WER ({found.normaliser})", found.wer),
        _rate_line("WER, raw text", found.raw_wer),
        _rate_line("CER", found.cer),
        "",
        f"{found.substitutions} substitutions, {found.deletions} deletions and {found.insertions} insertions "
        f"in {found.reference_words} words.",
        "",
        *_alignment_lines(scores.alignment),
        *_sensitivity_lines(found),
        *_against_lines(scores.against),
        "| latency, ms | p50 | p95 | p99 | n | missing |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for key, title in _SUMMARY_LATENCIES.items():
        spread = scores.latency[key]
        cells = [_milliseconds(estimate) for estimate in (spread.p50, spread.p95, spread.p99)]
        count = (
            str(spread.streams)
            if spread.values == spread.streams
            else f"{spread.values} words, {spread.streams} streams"
        )
        lines.append(f"| {title} | {' | '.join(cells)} | {count} | {spread.missing} |")
    counts = scores.counts
    lines += [
        "",
        f"Errors {counts['errors']:g}, rejected {counts['rejected']:g}, empty {counts['empty']:g}, "
        f"stalls {counts['stalls']:g}, words lost at the end {counts['lost_tail_words']:g}, "
        f"seconds dropped {counts['dropped_seconds']:g}.",
        "",
        f"Unstable partial words {_percent(scores.stability['unstable_partial_word_ratio'].value)} of final words. "
        f"Pacing lateness p99 {_milliseconds(scores.pacing.p99, interval=False)} ms.",
        "",
        *server_side.as_markdown(scores.server_side),
        f"Intervals are 95 %, over blocks: {scores.block} ({scores.block_because}). Where one is missing n is too small for it.",
        "",
    ]
    return "\n".join(lines)


def _alignment_lines(found: Alignment) -> list[str]:
    if not found.timed_words and not found.untimed_words:
        return []
    lacking = (
        f"; {found.untimed_words} words in {found.untimed_streams} streams have none" if found.untimed_words else ""
    )
    return [f"Word times: {found.source or 'of unknown origin' if found.timed_words else 'none'}{lacking}.", ""]


def _sensitivity_lines(found: Accuracy) -> list[str]:
    if len(found.sensitivity) < 2:
        return []
    told = ", ".join(f"{one.normaliser} {_percent(one.wer.value)}" for one in found.sensitivity)
    return [f"WER by normaliser: {told}.", ""]


def _against_lines(against: Sequence[Against]) -> list[str]:
    lines = []
    for one in against:
        change = one.wer
        if change.value is None:
            continue
        bounds = (
            "" if change.low is None or change.high is None else f" [{100 * change.low:+.2f}, {100 * change.high:+.2f}]"
        )
        lines.append(
            f"WER, {one.relation} ({one.run}): {100 * change.value:+.2f}{bounds} points over {one.utterances} utterances."
        )
    return [*lines, ""] if lines else []


def _rate_line(title: str, estimate: Estimate) -> str:
    bounds = (
        ""
        if estimate.low is None or estimate.high is None
        else f"{100 * estimate.low:.2f} .. {100 * estimate.high:.2f}"
    )
    return f"| {title} | {_percent(estimate.value, sign='')} | {bounds or estimate.note} |"


def _percent(value: float | None, sign: str = " %") -> str:
    return "-" if value is None else f"{100 * value:.2f}{sign}"


def _milliseconds(estimate: Estimate, *, interval: bool = True) -> str:
    if estimate.value is None:
        return "-"
    text = f"{1000 * estimate.value:.0f}" if abs(estimate.value) >= 0.01 else f"{1000 * estimate.value:.1f}"
    if not interval or estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{1000 * estimate.low:.0f}, {1000 * estimate.high:.0f}]"
