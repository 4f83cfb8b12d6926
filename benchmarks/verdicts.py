"""Prints how often the intervals cover the truth, the gate cries wolf, and regressions of known size are found, on simulated runs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from harness import gate
from harness.gate import CellRecord, GateResult, Tolerance, Verdict
from harness.statistics import (
    Bootstrap,
    Difference,
    Estimate,
    change_points,
    distribution,
    paired_quantile_difference,
    paired_shift,
    paired_wer_difference,
    rank_shift,
    ratio_of_sums,
)

Floats = NDArray[np.float64]
RESAMPLES = 500  # by twenty below what a gate draws: with so many simulated runs the draws' own chance averages out
BOOTSTRAP = Bootstrap(0, RESAMPLES)
COVERED, ALARMS, FOUND = (0.93, 0.97), 0.05, 0.90
NOTHING_ALLOWED = {name: Tolerance(0.0) for name in gate.METRICS}


@dataclass(frozen=True, slots=True)
class Corpus:
    """Utterances of speakers: what both runs of a pair have in common. One entry per utterance."""

    speaker: NDArray[np.int64]
    words: NDArray[np.int64]
    hardness: Floats  # the chance that a word is misheard
    pace: Floats  # what makes all latencies of an utterance longer or shorter, about 1


def corpus(random: np.random.Generator, speakers: int, each: int, rate: float = 0.2) -> Corpus:
    """Speakers differ in rate and pace, and so do the utterances of one speaker; about ``each`` utterances of each."""
    counts = random.integers(max(1, each // 2), 3 * each // 2 + 1, speakers) if each > 1 else np.ones(speakers, int)
    speaker = np.repeat(np.arange(speakers), counts)
    n = speaker.size
    of_speaker = random.beta(15 * rate, 15 * (1 - rate), speakers)[speaker]
    hardness = random.beta(10 * of_speaker + 1e-9, 10 * (1 - of_speaker) + 1e-9)
    pace = np.exp(random.normal(0, 0.08, speakers)[speaker] + random.normal(0, 0.12, n))
    return Corpus(speaker, random.integers(4, 30, n), hardness, pace)


def errors(random: np.random.Generator, said: Corpus, more: float = 0.0) -> tuple[Floats, Floats]:
    """Errors per utterance of two runs, of which the second has ``more`` per word. Two in three are the same words in both."""
    shared = random.binomial(said.words, said.hardness * 2 / 3)
    own = said.hardness / 3 / (1 - said.hardness * 2 / 3)
    extra = more / (1 - said.hardness * 2 / 3)
    left = said.words - shared
    one = shared + random.binomial(left, own)
    other = shared + random.binomial(left, np.clip(own + extra, 0, 1))
    return one.astype(float), other.astype(float)


def latencies(random: np.random.Generator, said: Corpus, level: float) -> Floats:
    """One latency per utterance, about ``level`` seconds. One in thirty streams meets a busy moment and is up to twice as late."""
    noise = np.exp(random.normal(0, 0.08, said.pace.size))
    busy = np.where(random.random(said.pace.size) < 1 / 30, random.uniform(1, 2, said.pace.size), 1.0)
    return level * said.pace * noise * busy


def word_latencies(random: np.random.Generator, said: Corpus) -> list[Floats]:
    """Latencies of all words of each utterance: those of one stream are alike, and those of one speaker."""
    drawn = 0.5 * np.repeat(said.pace, said.words) + random.gamma(1.5, 0.04, int(said.words.sum()))
    return np.split(drawn, np.cumsum(said.words)[:-1])


# --- intervals --------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Coverage:
    """How many intervals held the truth, and on which side the others missed it. Where n is too small none is made, and none counted."""

    name: str
    held: int = 0
    below: int = 0  # the whole interval lies below the truth
    made: int = 0

    def add(self, interval: Estimate | Difference, truth: float) -> None:
        if interval.low is None or interval.high is None:
            return
        self.made += 1
        self.below += interval.high < truth
        self.held += interval.low <= truth <= interval.high

    def line(self) -> str:
        share = self.held / self.made
        above = self.made - self.held - self.below
        mark = "" if COVERED[0] <= share <= COVERED[1] else "   <- outside 93..97 %"
        return (
            f"  {self.name:<58}{100 * share:5.1f} %   too low {100 * self.below / self.made:4.1f} %  "
            f"too high {100 * above / self.made:4.1f} %   intervals {self.made}{mark}"
        )


def rates(runs: int) -> Iterator[Coverage]:
    """Error rates over speakers or recordings."""
    for speakers, each, rate in ((20, 5, 0.10), (40, 5, 0.05), (60, 1, 0.20), (200, 1, 0.02)):
        random = np.random.default_rng([1, speakers])
        found = Coverage(f"WER {rate:.0%}, {speakers} blocks of {each} utterances")
        for _ in range(runs):
            said = corpus(random, speakers, each, rate)
            counted = random.binomial(said.words, said.hardness)
            found.add(ratio_of_sums(list(counted), list(said.words), list(said.speaker), BOOTSTRAP), rate)
        yield found


def quantiles(runs: int) -> Iterator[Coverage]:
    """Latencies: one per stream, and words within streams within speakers."""
    for speakers, each in ((100, 1), (200, 1), (40, 5)):
        random = np.random.default_rng([2, speakers, each])
        large = corpus(random, 20_000, each)
        truths = np.quantile(latencies(random, large, 0.5), [0.5, 0.95])
        found = [Coverage(f"p{share} of streams, {speakers} blocks of {each}") for share in (50, 95)]
        for _ in range(runs):
            said = corpus(random, speakers, each)
            spread = distribution(list(latencies(random, said, 0.5)[:, None]), list(said.speaker))
            for one, estimate, truth in zip(found, (spread.p50, spread.p95), truths, strict=True):
                one.add(estimate, float(truth))
        yield from found
    for speakers, each in ((80, 1), (40, 5), (200, 1)):
        random = np.random.default_rng([3, speakers, each])
        large = corpus(random, 20_000, each)
        truths = np.quantile(np.concatenate(word_latencies(random, large)), [0.5, 0.95])
        found = [Coverage(f"p{share} of words in streams, {speakers} blocks of {each}") for share in (50, 95)]
        for _ in range(runs):
            said = corpus(random, speakers, each)
            spread = distribution(word_latencies(random, said), list(said.speaker))
            for one, estimate, truth in zip(found, (spread.p50, spread.p95), truths, strict=True):
                one.add(estimate, float(truth))
        yield from found


def changes(runs: int) -> Iterator[Coverage]:
    """Differences of two runs over the same utterances, and of samples that share none."""
    random = np.random.default_rng(4)
    large = corpus(random, 40_000, 5)
    slow, fast = 1.2 * latencies(random, large, 0.5), latencies(random, large, 0.5)
    tail = float(np.quantile(slow, 0.95) - np.quantile(fast, 0.95))
    wer, few = Coverage("WER change of 2 points, 40 speakers"), Coverage("WER change of 1 point, 88 recordings")
    shift, quantile = Coverage("shift of 30 ms, 40 speakers"), Coverage("p95 change of 20 %, 40 speakers")
    apart = Coverage("shift of 30 ms, not paired")
    for _ in range(runs):
        said = corpus(random, 40, 5)
        blocks = list(said.speaker)
        one, other = errors(random, said, 0.02)
        wer.add(paired_wer_difference(list(one), list(other), list(said.words), blocks, BOOTSTRAP), 0.02)
        a, b = latencies(random, said, 0.5), latencies(random, said, 0.5)
        shift.add(paired_shift(a, b + 0.03, blocks), 0.03)
        quantile.add(paired_quantile_difference(list(a), list(1.2 * b), blocks, BOOTSTRAP, 0.95), tail)
        alone = corpus(random, 88, 1)
        one, other = errors(random, alone, 0.01)
        few.add(paired_wer_difference(list(one), list(other), list(alone.words), list(alone.speaker), BOOTSTRAP), 0.01)
        again = corpus(random, 80, 1)
        apart.add(rank_shift(latencies(random, alone, 0.5), latencies(random, again, 0.5) + 0.03), 0.03)
    yield from (wer, few, shift, quantile, apart)


# --- the gate ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Regression:
    """What is wrong with the second run of a pair, and in which metrics that has to show."""

    name: str
    shows_in: tuple[str, ...] = ()
    more_errors: float = 0.0
    scale: float = 1.0  # of all latencies
    late_words: float = 1.0  # of the slow words of each stream
    late_streams: float = (
        1.0  # the p95 of time to final over streams, by stretching what lies beyond their 80th per cent
    )
    lost_tails: float = 0.0  # share of streams that lose three words at their end
    failing: int = 0


LEVELS = {
    "first_token": 0.72,
    "word_p50": 0.52,
    "word_p95": 0.58,
    "time_to_final": 0.47,
}  # as PocketSphinx has them at 480 ms
TAIL_20 = Regression("p95 of time to final +20 %, in the slow streams alone", ("time_to_final_tail",), late_streams=1.2)
REGRESSIONS = (
    Regression("all latencies +20 %", ("word_p95", "time_to_final", "time_to_final_tail"), scale=1.2),
    Regression("word latency p95 +20 %, in the slow words alone", ("word_p95",), late_words=1.2),
    TAIL_20,
    Regression("WER +2 points of 20 %", ("wer",), more_errors=0.02),
    Regression("WER +4 points of 20 %", ("wer",), more_errors=0.04),
    Regression("three last words lost in 5 % of streams", ("lost_tail_words",), lost_tails=0.05),
    Regression("one stream in 200 fails", ("errors",), failing=1),
)


def pair(
    random: np.random.Generator, n: int, regression: Regression, speakers: int = 40
) -> tuple[CellRecord, CellRecord]:
    """Two runs over n utterances of the same corpus, the second one with the regression."""
    said = corpus(random, speakers, 2 * n // speakers)
    chosen = random.permutation(said.words.size)[:n]
    said = Corpus(said.speaker[chosen], said.words[chosen], said.hardness[chosen], said.pace[chosen])
    before, after = errors(random, said, regression.more_errors)
    good, bad = ({name: latencies(random, said, level) for name, level in LEVELS.items()} for _ in range(2))
    for name in bad:
        bad[name] = bad[name] * regression.scale
    bad["word_p95"] = bad["word_p95"] * regression.late_words
    bad["time_to_final"] = stretched(bad["time_to_final"], regression.late_streams)
    lost = np.where(random.random(said.words.size) < regression.lost_tails, 3.0, 0.0)
    return (
        cell("before", said, before, good, np.zeros(said.words.size), 0),
        cell("after", said, before if regression.failing else after, bad, lost, regression.failing),
    )


def stretched(values: Floats, by: float) -> Floats:
    """With a 95th percentile ``by`` times as long, and what lies below the 80th as it was."""
    start, end = np.quantile(values, [0.8, 0.95])
    return np.where(values > start, start + (values - start) * (by * end - start) / (end - start), values)


def cell(name: str, said: Corpus, wrong: Floats, late: dict[str, Floats], lost: Floats, failing: int) -> CellRecord:
    """A run as the gate sees it."""
    n = said.words.size
    nothing = [0.0] * n
    return CellRecord(
        run=name, protocol="yap", concurrency=8, delay_ms=480, delay_ms_in_force=480.0, packet_ms=80, speed=1.0, arrival="closed",
        engine="simulated", model="", dataset="simulated", corpus_sha256="0" * 64, normaliser="none", normaliser_sha256="",
        counted="words", server_options=[], seed=0, machine="", caveat="", block="speaker", streams=n, failed_streams=failing,
        scores={}, utterances=[f"u{i:04d}" for i in range(n)], speakers=[f"s{s}" for s in said.speaker],
        audio_seconds=[float(w) * 0.4 for w in said.words], reference=[float(w) for w in said.words],
        substitutions=wrong.tolist(), deletions=nothing, insertions=nothing, hallucinated=nothing,
        latencies={metric: values.tolist() for metric, values in late.items()},
        events={"lost_tail_words": lost.tolist(), "stalls": nothing, "dropped_seconds": nothing, "unstable_words": nothing},
    )  # fmt: skip


def judged(old: CellRecord, new: CellRecord, tolerances: dict[str, Tolerance] | None = None) -> GateResult:
    """The gate's word on a pair."""
    return gate.judge([old], [new], tolerances, RESAMPLES)


def with_defaults(strict: GateResult) -> GateResult:
    """The gate's word on the same tests, with the default tolerances."""
    made = [
        replace(one.test, tolerance=gate.TOLERANCES[one.test.metric].around(one.test.baseline)) for one in strict.judged
    ]
    return replace(strict, judged=gate.decide(made))


def false_alarms(runs: int, n: int) -> None:
    """Prints how often something is called changed that is not."""
    random = np.random.default_rng(6)
    nothing = Regression("nothing")
    alarms = tolerated = drifting = 0
    for _ in range(runs):
        strict = judged(*pair(random, n, nothing), NOTHING_ALLOWED)
        alarms += _differs(strict)
        tolerated += _differs(with_defaults(strict))
        drifting += _differs(judged(*pair(random, n, replace(nothing, scale=1 + 0.03 * float(random.normal())))))
    for name, count in (
        ("nothing changed, nothing allowed", alarms),
        ("nothing changed, default tolerances", tolerated),
        ("runs 3 % slower or faster as a whole, default tolerances", drifting),
    ):
        mark = "" if count / runs <= ALARMS else "   <- above 5 %"
        print(f"  {name:<58}{100 * count / runs:5.1f} %   of {runs} pairs{mark}")


def _differs(result: GateResult) -> bool:
    """Whether any metric was called better or worse: both are alarms where nothing changed."""
    return any(one.verdict is not Verdict.CANNOT_TELL for one in result.judged)


def detections(runs: int, n: int) -> None:
    """Prints how often each regression is found, by the gate as a whole and in the metrics that it shows in."""
    print(f"  {'':<58}{'nothing allowed':>22}{'default tolerances':>22}")
    for number, regression in enumerate(REGRESSIONS):
        found: dict[str, list[int]] = {name: [0, 0] for name in ("the gate fails", *regression.shows_in)}
        for index in range(runs):
            strict = judged(*pair(np.random.default_rng([7, number, index]), n, regression), NOTHING_ALLOWED)
            for place, result in enumerate((strict, with_defaults(strict))):
                worse = {one.test.metric for one in result.of(Verdict.WORSE)}
                found["the gate fails"][place] += bool(worse)
                for metric in regression.shows_in:
                    found[metric][place] += metric in worse
        print(f"  {regression.name}")
        for name, counts in found.items():
            print(f"    {name:<56}" + "".join(f"{100 * count / runs:20.1f} %" for count in counts), flush=True)


def claims(runs: int, n: int) -> None:
    """Whether what the gate says it would see, it does see in four cases out of five."""

    def worse(metric: str, by: float) -> Regression:
        return Regression("", more_errors=by) if metric == "wer" else Regression("", scale=1 + by / LEVELS[metric])

    for metric in ("wer", "time_to_final"):
        seen: list[float] = []
        for index in range(40):
            result = judged(*pair(np.random.default_rng([8, index]), n, Regression("")))
            seen += [one.seen for one in result.judged if one.test.metric == metric and one.seen is not None]
        size = float(np.median(seen))
        drawn = [np.random.default_rng([9, index]) for index in range(runs)]
        results = [judged(*pair(random, n, worse(metric, size))) for random in drawn]
        hits = sum(metric in {one.test.metric for one in result.of(Verdict.WORSE)} for result in results)
        label = gate.METRICS[metric]
        print(
            f"  {label.label} worse by the {label.size(size)} {label.unit} it says it sees".ljust(60)
            + f"{100 * hits / runs:5.1f} %"
        )


def histories(runs: int) -> None:
    """Prints how often a change of level is told where there is one, and where there is none."""
    random = np.random.default_rng(10)
    for name, count, jump in (
        ("30 runs, nothing changed", 0, 0.0),
        ("20 runs, then 10 that are 10 % slower", 10, 0.10),
    ):
        found = near = 0
        for index in range(runs):
            level = 0.5 * np.where(np.arange(30) >= 30 - count, 1 + jump, 1.0)
            values = level * np.exp(random.normal(0, 0.03, 30))
            values[int(random.integers(30))] *= 1.5  # one run of each history met a busy machine
            points = change_points(values.tolist(), significance=0.01, seed=index)
            found += bool(points)
            near += any(abs(point.at - 20) <= 1 for point in points)
        where = f", within a run of the place {100 * near / runs:.1f} %" if count else ""
        print(f"  {name:<58}{100 * found / runs:5.1f} %   of {runs} histories{where}")


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="simulated pairs of runs per scenario")
    parser.add_argument("--intervals", type=int, default=1000, help="simulated corpora per interval")
    parser.add_argument("--utterances", type=int, default=200, help="utterances per run")
    asked = parser.parse_args()
    begin, worked = time.perf_counter(), time.process_time()
    print(f"95 % intervals that hold the truth (aim {100 * COVERED[0]:.0f}..{100 * COVERED[1]:.0f} %):")
    for part in (rates, quantiles, changes):
        for one in part(asked.intervals):
            print(one.line(), flush=True)
    parts: tuple[tuple[str, Callable[[], None]], ...] = (
        (f"Metrics called better or worse though nothing changed (aim: at most {100 * ALARMS:.0f} %), by pair:",
         lambda: false_alarms(asked.runs, asked.utterances)),
        (f"Regressions found at n = {asked.utterances} (aim: a p95 shift of 20 % in at least {100 * FOUND:.0f} %):",
         lambda: detections(asked.runs, asked.utterances)),
        ("Claims of power kept (aim 80 %):", lambda: claims(asked.runs // 2, asked.utterances)),
        ("Changes of level told in a history:", lambda: histories(asked.runs)),
    )  # fmt: skip
    for title, part_of in parts:
        print(f"\n{title}", flush=True)
        part_of()
    print(f"\n{time.perf_counter() - begin:.0f} s, {time.process_time() - worked:.0f} s of one processor")


if __name__ == "__main__":
    main()
