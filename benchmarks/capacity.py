"""Whether ``earmark capacity`` finds what a ladder of every rung finds, and in how many runs: both on the same server settings.

    python benchmarks/capacity.py [--engine sphinx] [--seconds 30] [--repeats 2] [--most 24] [--out FOLDER]
    python benchmarks/capacity.py --engine scripted --carries 5          # a server that carries a known number of streams
    python benchmarks/capacity.py --forecast                             # how long it would take, and nothing else

The ladder measures 1, 2, 3... streams ``repeats`` times each, up to the first rung that fails. The machine must be free: the figures
are of whatever else runs on it as well. Both searches are kept under ``--out`` and taken up again where they were left.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import example
from harness.bench import Plan, Watcher
from harness.capacity import answer as answers
from harness.capacity.limits import parse
from harness.capacity.measuring import Result, Search, measure
from harness.capacity.search import MOST_UNCLEAR, Answer, Bounds, Purpose, Trial, Verdict, Wanted
from harness.corpus import Corpus, load


def every_rung(trials: Sequence[Trial], bounds: Bounds) -> Wanted | Answer:
    """The ladder as a way to decide: every number of streams so often, until one fails."""
    for streams in range(1, bounds.most + 1):
        verdicts = [trial.verdict for trial in trials if trial.streams == streams]
        if Verdict.FAILS in verdicts:
            return Answer(streams - 1, streams, "slo", bounds.repeats)
        if verdicts.count(Verdict.UNCLEAR) >= MOST_UNCLEAR:
            return Answer(streams - 1, streams, "generator", bounds.repeats)
        if verdicts.count(Verdict.HOLDS) < (1 if streams == 1 else bounds.repeats):
            return Wanted(streams, Purpose.IDLE if streams == 1 else Purpose.SEARCH)
    return Answer(bounds.most, None, "most", bounds.repeats)


def forecast_seconds(corpus: Corpus, seconds: float, repeats: int, about: int) -> float:
    """How long both take when the answer is about so many streams."""
    longest = max(utterance.seconds for utterance in corpus.utterances)
    rungs = repeats * about + 1 + 2 * about.bit_length() + repeats + 2
    return 2 * corpus.seconds + rungs * (seconds + longest)


def told(name: str, result: Result) -> dict[str, object]:
    """One search in figures."""
    print(f"\n{name}: {len(result.rungs)} runs, {sum(one.rung.seconds for one in result.rungs):.0f} s")
    for one in result.rungs:
        reasons = "; ".join(one.judgement.reasons)
        print(f"  {one.rung.streams:4d}  {one.judgement.verdict}{': ' if reasons else ''}{reasons}")
    print(f"  {answers.sentence(result)}")
    return {
        "streams": None if result.answer is None else result.answer.streams,
        "runs": len(result.rungs),
        "seconds": round(sum(one.rung.seconds for one in result.rungs)),
        "unclear": sum(one.judgement.verdict is Verdict.UNCLEAR for one in result.rungs),
    }


def main() -> int:
    """0 when the two agree to a step and the search took at most half the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="sphinx")
    parser.add_argument("--carries", type=int, default=5, help="streams that the scripted engine carries")
    parser.add_argument("--dataset", default="spoken-en")
    parser.add_argument("--limit", type=int, default=12, help="utterances; one stream replays them all once")
    parser.add_argument("--protocol", default="realtime")
    parser.add_argument("--delay-ms", type=int, default=480)
    parser.add_argument("--slo", action="append", default=[])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--most", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("reports/capacity/benchmark"))
    parser.add_argument("--forecast", action="store_true")
    asked = parser.parse_args()

    options: list[str] = []
    dataset = asked.dataset
    if asked.engine == "scripted":
        options = ["--script", json.dumps({"capacity_streams": asked.carries + 0.5})]
        dataset = asked.out / "spoken"
        if not dataset.exists():
            example.dataset(dataset, words_each=30)
    corpus = load(dataset, limit=asked.limit)
    about = asked.carries if asked.engine == "scripted" else 12
    print(
        f"{len(corpus.utterances)} utterances, {corpus.seconds:.0f} s; "
        f"about {forecast_seconds(corpus, asked.seconds, asked.repeats, about) / 60:.0f} minutes for about {about} streams"
    )
    if asked.forecast:
        return 0
    plan = Plan(
        concurrencies=[1],
        delays_ms=[asked.delay_ms],
        protocol=asked.protocol,
        engine=asked.engine,
        server_options=options,
    )
    limits, bounds = parse(asked.slo, asked.delay_ms), Bounds(repeats=asked.repeats, most=asked.most)
    search = Search(plan, limits, bounds, asked.seconds)
    watcher = Watcher(lambda text: print(text, file=sys.stderr, flush=True))
    searched = measure(search, corpus, asked.out / "search", watcher)
    ladder = measure(search, corpus, asked.out / "ladder", watcher, decide=every_rung)
    answers.write(searched)
    answers.write(ladder)
    found = {"search": told("search", searched), "ladder": told("ladder", ladder)}
    if searched.answer is None or ladder.answer is None:
        return 130
    apart = abs(searched.answer.streams - ladder.answer.streams)
    share = len(searched.rungs) / len(ladder.rungs)
    agrees, saves = apart <= bounds.step, share <= 0.5
    print(f"\n{apart} streams apart ({'within' if agrees else 'more than'} one step), {share:.2f} of the ladder's runs")
    print(json.dumps({**found, "apart": apart, "share_of_runs": round(share, 3)}))
    return 0 if agrees and saves else 1


if __name__ == "__main__":
    sys.exit(main())
