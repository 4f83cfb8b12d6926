"""What a rung is judged by, when a hopeless one is given up, and what is made of rungs that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import environment, store
from harness.bench import Plan
from harness.capacity import answer as answers
from harness.capacity import limits, measuring
from harness.capacity.limits import Judgement, LimitError, judge, parse
from harness.capacity.saturation import Saturation, Seen
from harness.capacity.search import Bounds, Verdict
from harness.commands.capacity import duration_seconds
from harness.corpus import Corpus, Utterance
from harness.score import read_scores
from harness.timeline import Outcome
from tests.harness.made_runs import make
from wire.words import TimedWord

S = 1_000_000_000


# ---- limits


def test_limits_are_the_defaults_with_what_is_asked_for() -> None:
    assert parse([], 480).latencies == {"word_p95": 0.88, "final_p95": 1.0}
    assert parse([], None).latencies == {"word_p95": 1.0, "final_p95": 1.0}
    found = parse(["word_p95=0.8,final_p95=off", "first_p50=0.6", "errors=0", "wer=off"], 480)
    assert found.latencies == {"word_p95": 0.8, "first_p50": 0.6}
    assert (found.errors, found.drift, found.wer) == (0.0, 0.01, None)
    assert found.sentence() == (
        "p95 word latency <= 0.8 s, p50 first token <= 0.6 s, errors <= 0 %, drift not above 0.01 s/s"
    )


@pytest.mark.parametrize("wrong", ["word", "word_p95", "word_p95=", "word_p95=-1", "word_p97=1", "pace=1", "wer=nan"])
def test_limits_that_make_no_sense_are_refused_with_what_is_expected(wrong: str) -> None:
    with pytest.raises(LimitError, match="NAME_QUANTILE=SECONDS"):
        parse([wrong], 480)


def judged(folder: Path, idle: Path | None, *slo: str, saturated: str = "") -> Judgement:
    def rows(of: Path) -> list[dict[str, Any]]:
        return store.read_rows(of / "utterances.parquet")

    asked = parse(slo, 480)
    return judge(read_scores(folder), rows(folder), None if idle is None else rows(idle), asked, saturated=saturated)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("idle"), concurrency=1, utterances=60)


def test_a_run_within_all_limits_holds(tmp_path: Path, idle: Path) -> None:
    found = judged(make(tmp_path, utterances=60, concurrency=4), idle)
    assert found.verdict is Verdict.HOLDS
    assert found.reasons == ()
    assert found.measures["wer_rise"] == 0  # the same noise: the same words


@pytest.mark.parametrize(
    ("changes", "slo", "reason"),
    [
        ({"overhead": 0.6}, (), "word latency"),
        ({"late_final": 2.0}, (), "time to final"),
        ({"failing": 3}, ("wer=off",), "3 of 60 streams failed"),
        ({"substituted": 0.4}, (), "WER"),
    ],
)
def test_each_limit_fails_by_itself(
    tmp_path: Path, idle: Path, changes: dict[str, Any], slo: tuple[str, ...], reason: str
) -> None:
    found = judged(make(tmp_path, utterances=60, **changes), idle, *slo)
    assert found.verdict is Verdict.FAILS
    assert len(found.reasons) == 1
    assert reason in found.reasons[0]


def test_a_rise_of_the_error_rate_that_is_allowed_is_no_failure(tmp_path: Path, idle: Path) -> None:
    assert judged(make(tmp_path, utterances=60, substituted=0.4), idle, "wer=0.5").verdict is Verdict.HOLDS


def test_a_late_generator_makes_a_rung_unclear_unless_its_lateness_cannot_explain_the_failure(
    tmp_path: Path, idle: Path
) -> None:
    late = judged(make(tmp_path / "late", utterances=60, pacing_late=0.02), idle)
    assert late.verdict is Verdict.UNCLEAR
    assert "pacing" in late.reasons[0]
    assert (
        judged(make(tmp_path / "slow", utterances=60, pacing_late=0.02, late_final=5.0), idle).verdict is Verdict.FAILS
    )


def test_a_rung_that_was_given_up_fails_with_the_reason(tmp_path: Path, idle: Path) -> None:
    found = judged(make(tmp_path, utterances=60), idle, saturated="saturated: it was hopeless")
    assert (found.verdict, found.reasons[0]) == (Verdict.FAILS, "saturated: it was hopeless")


def test_the_rise_of_the_error_rate_is_that_of_the_utterances_both_have() -> None:
    def row(utterance: str, errors: int, outcome: str = "ok") -> dict[str, Any]:
        return {
            "utterance": utterance, "speaker": "", "scored": True, "outcome": outcome, "reference_words": 10,
            "substitutions": errors, "deletions": 0, "insertions": 0, "character_errors": 0, "reference_characters": 0,
        }  # fmt: skip

    before = [row(f"u{n}", 1) for n in range(20)]
    after = [row(f"u{n}", 2 + n % 2) for n in range(10)] + [row("u0", 4), row("other", 9), row("u19", 7, "abandoned")]
    # of u0..u9: u0 has (2 + 4) / 2 errors, the others 2 or 3: 3 + 5 * 3 + 4 * 2 = 26 errors, 10 before, in 100 words
    rise, low, high = limits.wer_rise(before, after)
    assert rise == pytest.approx(0.16)
    assert low is not None
    assert high is not None
    assert 0.1 <= low <= 0.16 <= high <= 0.2


# ---- giving up


WORDS = tuple(TimedWord(f"w{n}", n * 0.5, n * 0.5 + 0.4) for n in range(10))  # the last one ends at 4.9 s


def seen(start: float, final: float | None, *, outcome: Outcome | None = None, shown: int = 0) -> Seen:
    """A stream of 5 s that was planned to begin at ``start``; its final came so many seconds after the last word."""
    final_ns = None if final is None else round((start + 4.9 + final) * S)
    ended = Outcome.OK if final is not None else outcome
    return Seen(WORDS, 5.0, 1.0, round(start * S) or 1, final_ns, shown, ended)


def saturation(finals: list[float], streams: float = 40.0) -> Saturation:
    watch = Saturation(1.0, 0.01, streams).begun()
    for number, final in enumerate(finals):
        watch.note(seen(float(number), final))
    return watch


def test_finals_that_come_later_and_later_are_hopeless() -> None:
    reason = saturation([0.5, 0.5, 0.9, 1.2, 1.4, 1.8, 2.2, 2.9, 3.5]).decide([], 0)
    assert reason is not None
    assert "6 finals came more than 1 s" in reason


def test_finals_that_recover_are_not() -> None:
    assert saturation([4.0, 4.0, 3.0, 3.0, 2.0, 2.0, 1.5, 0.5, 0.5, 0.5]).decide([], 0) is None


@given(st.lists(st.floats(0.0, 0.99), max_size=60), st.lists(st.floats(0.0, 0.99), max_size=30))
def test_finals_in_time_are_never_hopeless(ended: list[float], waiting: list[float]) -> None:
    active = [seen(100.0 - 4.9 - since, None, shown=10) for since in waiting]
    assert saturation(ended).decide(active, 100 * S) is None


def test_a_few_late_finals_in_a_long_rung_are_not_hopeless() -> None:
    late = [0.5] * 30 + [2.0] * 8
    assert saturation(late, streams=200).decide([], 0) is None  # 8 of 200 may still be within p95
    assert saturation(late, streams=60).decide([], 0) is not None


def test_finals_that_are_missing_count_as_late() -> None:
    active = [seen(0.0, None, shown=10) for _ in range(8)]
    assert saturation([0.5]).decide(active, round(5.5 * S)) is None
    assert saturation([0.5]).decide(active, round(7.0 * S)) is not None


def test_failures_are_hopeless_when_there_are_many() -> None:
    watch = Saturation(1.0, 0.05, 100)
    for number in range(11):
        assert watch.decide([], 0) is None
        watch.note(seen(float(number), None, outcome=Outcome.REJECTED))
    assert "11 streams failed" in (watch.decide([], 0) or "")


def test_long_streams_are_judged_by_their_words() -> None:
    words = tuple(TimedWord(f"w{n}", n * 0.5, n * 0.5 + 0.4) for n in range(1000))

    def going(shown: int, *, streams: bool = True) -> Seen:
        return Seen(words, 500.0, 1.0, 1, None, shown, None, streams)

    watch = Saturation(1.0, 0.01, 4)
    assert watch.decide([going(118), going(100), going(95)], 60 * S) is None
    assert "2 of 3 transcripts" in (watch.decide([going(118), going(80), going(85)], 60 * S) or "")
    # a recogniser that leaves out a tenth of the words is not behind, however long it goes on
    assert watch.decide([going(720)] * 3, 400 * S) is None
    # a recording that goes up whole has no words before its end
    assert watch.decide([going(0)] * 3, 400 * S) is not None
    assert watch.decide([going(0, streams=False)] * 3, 400 * S) is None


def test_recordings_that_go_up_whole_have_no_limit_on_their_words_unless_asked() -> None:
    assert parse([], None, whole=True).latencies == {"final_p95": 1.0}
    assert parse(["word_p95=20"], None, whole=True).latencies == {"final_p95": 1.0, "word_p95": 20.0}


# ---- rungs that are kept


def corpus() -> Corpus:
    return Corpus("spoken-en", "en", (Utterance("u0000", "text", 5.0),), sha256="c" * 64)


def search(*slo: str, bounds: Bounds | None = None) -> measuring.Search:
    plan = Plan(concurrencies=[1], delays_ms=[480], engine="nobody", protocol="realtime")
    return measuring.Search(plan, parse(slo, 480), bounds or Bounds(repeats=1), 60.0)


def keep(folder: Path, asked: measuring.Search, *rungs: measuring.Rung) -> None:
    """As if these had been measured, here and now."""
    commit = environment.describe().get("git", {}).get("commit", "")
    ledger = measuring.Ledger(asked.identity(corpus()), commit=commit, rungs=list(rungs))
    store.write_json(folder / "rungs.json", ledger)


def rung(folder: Path, streams: int, purpose: str = "search", stopped: str = "", **changes: Any) -> measuring.Rung:
    run = make(folder / "runs", concurrency=streams, utterances=16, **changes)
    under = search().limits.described() if stopped else {}
    return measuring.Rung(streams, purpose, run.name, "2030-01-02", 60.0, stopped_because=stopped, stopped_under=under)


def full_ladder(folder: Path) -> list[measuring.Rung]:
    return [
        rung(folder, 1, "idle"),
        rung(folder, 2),
        rung(folder, 4, late_final=3.0),
        rung(folder, 3),
        rung(folder, 4, "confirm", late_final=3.0),
    ]


def test_what_was_measured_is_answered_without_a_server(tmp_path: Path) -> None:
    folder = tmp_path
    keep(folder, search(), *full_ladder(folder))
    result = measuring.measure(search(), corpus(), folder)  # there is no engine of that name: a start would fail
    assert result.answer is not None
    assert (result.answer.streams, result.answer.above, result.measured) == (3, 4, 0)

    paths = answers.write(result)
    told = json.loads(paths[0].read_text())
    assert told["sentence"].startswith("3 streams at delay 480 ms on ")
    assert "with 4: p95 time to final" in told["sentence"]
    assert [one["streams"] for one in told["ladder"]] == [1, 2, 4, 3, 4]
    assert [one["verdict"] for one in told["ladder"]] == ["holds", "holds", "fails", "holds", "fails"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in paths[2].read_text()
    assert answers.table(result).row_count == 5


def test_other_limits_judge_the_same_runs_anew(tmp_path: Path) -> None:
    folder = tmp_path
    keep(folder, search(), *full_ladder(folder))
    loose = search("final_p95=off", bounds=Bounds(most=4, repeats=1))
    result = measuring.measure(loose, corpus(), folder)
    assert result.answer is not None
    assert (result.answer.streams, result.answer.limited_by) == (4, "most")
    assert answers.sentence(result).startswith("At least 4 streams")


def test_a_rung_that_was_given_up_under_other_limits_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path
    ladder = [rung(folder, 1, "idle"), rung(folder, 2, stopped="saturated: too late")]
    keep(folder, search(), *ladder)
    ledger = measuring.read_ledger(folder, search().identity(corpus()))
    same = measuring.judged(ledger, folder, search().limits)
    assert [one.judgement.verdict for one in same] == [Verdict.HOLDS, Verdict.FAILS]
    assert len(measuring.judged(ledger, folder, search("final_p95=9").limits)) == 1


def test_a_folder_with_another_search_is_refused_and_says_what_differs(tmp_path: Path) -> None:
    folder = tmp_path
    keep(folder, search())
    other = measuring.Search(
        Plan(concurrencies=[1], delays_ms=[160], engine="nobody", protocol="realtime"), parse([], 160)
    )
    with pytest.raises(measuring.CapacityError, match=r"delay_ms was 480 and is 160.*--out"):
        measuring.measure(other, corpus(), folder)


def test_rungs_that_are_too_short_for_the_dataset_are_refused(tmp_path: Path) -> None:
    long = Corpus("long", "en", (Utterance("u", "text", 900.0),), sha256="d" * 64)
    with pytest.raises(measuring.CapacityError, match="--seconds 1800"):
        measuring.measure(search(), long, tmp_path)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert duration_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "m", "10 minutes", "0", "-1s", "2d", "25h"])
def test_times_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(measuring.CapacityError, match="10m"):
        duration_seconds(text)
