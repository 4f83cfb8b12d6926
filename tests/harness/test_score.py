"""Whole runs of a few hand-made streams whose scores are worked out beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from harness import store
from harness.frames import read_utterances
from harness.score import SCHEMA, UTTERANCES, Scores, read_scores, score, score_records, summary
from harness.store import Run, RunConfig, StoreError
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from tests.harness.streams import appended, at, final, per_second, record, tentative

CONFIG = RunConfig("set", "", "yap", "started", "scripted", "", 2, 480, 80, 1.0, 7, "basic/1")


def stream(number: int, reference: str, hypothesis: str, latency: float = 0.5, **fields: Any) -> StreamRecord:
    """Words end at 1, 2, 3 .. s; word k of the hypothesis comes ``latency`` after word k of the reference ended."""
    words = per_second(reference)
    entries = [appended(k + latency, f" {word}") for k, word in enumerate(hypothesis.split(), start=1)]
    entries += [
        Entry(at(len(words) + 1), Kind.END_OF_AUDIO, due_ns=at(len(words) + 1)),
        final(len(words) + 1.25, hypothesis),
    ]
    return record(words, *entries, **{"stream": number, "utterance": f"u{number}", "delay_ms": 480, **fields})


def scored(records: Iterable[StreamRecord], **config: Any) -> Scores:
    return score_records(list(records), msgspec.structs.replace(CONFIG, **config))[0]


def test_counts_add_over_streams() -> None:
    # 4 words with 1 substitution; 1 word deleted and 2 inserted make 1 sub + 1 ins on "yes"; 5 words lost with the stream.
    found = scored(
        [
            stream(0, "one two three four", "one two tree four"),
            stream(1, "yes", "oh no"),
            stream(2, "never heard of it again", "never", outcome=Outcome.FAILED),
        ]
    ).accuracy
    assert (found.reference_words, found.substitutions, found.deletions, found.insertions) == (10, 2, 5, 1)
    assert found.wer.value == 0.8
    assert found.wer.low is None  # three recordings are too few
    assert found.normaliser == "basic/1"
    assert len(found.normaliser_sha256) == 64


def test_wer_before_and_after_normalisation() -> None:
    found = scored([stream(0, "Yes, I do", "yes i do")]).accuracy
    assert found.wer.value == 0.0
    assert found.raw_wer.value == pytest.approx(2 / 3)


def test_latency_pools_words_and_sums_up_streams() -> None:
    # Nine words 0.5 s late and one stream of one word 2 s late.
    found = scored([stream(0, "a b c d e f g h i", "a b c d e f g h i"), stream(1, "late", "late", 2.0)]).latency
    pooled, by_stream = found["word_emission_latency"], found["word_emission_latency_per_stream"]
    assert (pooled.streams, pooled.values, pooled.missing) == (2, 10, 0)
    assert pooled.p50.value == pytest.approx(0.5)
    assert pooled.max == pytest.approx(2.0)
    assert by_stream.values == 2
    assert by_stream.p50.value == pytest.approx(1.25)
    assert found["excess_latency"].p50.value == pytest.approx(1.25 - 0.48)
    assert found["time_to_final"].p50.value == pytest.approx(1.25)
    assert found["flush_latency"].p50.value == pytest.approx(0.25)
    assert found["first_token_from_onset"].max == pytest.approx(2.5)
    assert found["first_token_from_start"].max == pytest.approx(3.0)
    assert found["drift"].unit == "s/s"


def test_words_never_recognised_are_missing_and_counted() -> None:
    found = scored(
        [stream(0, "one two three four", "one two tree four"), stream(1, "lost", "", outcome=Outcome.REJECTED)]
    )
    assert found.latency["word_emission_latency"].missing == 2
    assert found.latency["word_emission_latency_per_stream"].missing == 1
    assert found.counts["unmatched_words"] == 2
    assert found.counts["timed_words"] == 5
    assert (found.counts["rejected"], found.counts["errors"]) == (1, 0)


def test_ramp_up_streams_are_listed_and_not_scored() -> None:
    scores, rows = score_records(
        [stream(0, "one two", "x y", scored=False), stream(1, "three four", "three four")], CONFIG
    )
    assert scores.streams == 1
    assert scores.accuracy.wer.value == 0.0
    assert scores.latency["word_emission_latency"].values == 2
    assert scores.counts["not_scored"] == 1
    assert [row["scored"] for row in rows] == [False, True]
    assert rows[0]["wer"] == 1.0


def test_streams_that_the_run_broke_off_make_it_incomplete_and_are_not_held_against_the_server() -> None:
    scores, rows = score_records(
        [stream(0, "one two", "one", outcome=Outcome.ABANDONED), stream(1, "a b", "a b")], CONFIG
    )
    assert scores.complete is False
    assert scores.accuracy.wer.value == 0.0
    assert scores.outcomes == {"abandoned": 1, "ok": 1}
    assert [row["scored"] for row in rows] == [False, True]


def silence(number: int, hypothesis: str, seconds: float = 30.0, outcome: Outcome = Outcome.OK) -> StreamRecord:
    return record(
        (), final(seconds, hypothesis), stream=number, utterance=f"s{number}", audio_seconds=seconds, outcome=outcome
    )


def test_hallucinations_stand_apart_from_the_wer() -> None:
    # 3 words in 1 minute of silence; the clip whose stream failed is not counted as quiet.
    found = scored(
        [
            stream(0, "one two", "one two"),
            silence(1, "thank you so"),
            silence(2, ""),
            silence(3, "", outcome=Outcome.FAILED),
        ]
    )
    assert found.hallucinated_words_per_minute.value == pytest.approx(3.0)
    assert found.accuracy.wer.value == 0.0
    assert found.accuracy.insertions == 0
    assert (found.counts["hallucinated_words"], found.counts["non_speech_streams"]) == (3, 3)
    assert found.latency["first_token_from_start"].streams == 1  # there is no first word to wait for in silence
    assert found.latency["first_token_from_start"].missing == 0


def test_no_silence_no_hallucination_rate() -> None:
    assert scored([stream(0, "one", "one")]).hallucinated_words_per_minute.value is None


def test_an_empty_transcript_of_speech_is_counted_apart() -> None:
    found = scored([stream(0, "one two", ""), stream(1, "three", "three")])
    assert found.counts["empty"] == 1
    assert found.accuracy.deletions == 2


def test_stability_adds_counts() -> None:
    flicker = record(per_second("a b"), tentative(1, "a x"), tentative(2, "a b"), final(3, "a b"), utterance="f")
    found = scored([flicker, stream(1, "c d e", "c d e")]).stability
    # one word of five taken back; edits 2 + (1 + 1) + 3, of which five needed
    assert found["unstable_partial_word_ratio"].value == pytest.approx(1 / 5)
    assert found["normalized_erasure"].value == pytest.approx(1 / 5)
    assert found["edit_overhead"].value == pytest.approx(2 / 7)


def paced(number: int, late: float, packets: int = 100) -> StreamRecord:
    entries = [
        Entry(at(0.08 * k + late), Kind.PACKET, due_ns=at(0.08 * k), value=0.08 * k) for k in range(1, packets + 1)
    ]
    return record(per_second("one"), *entries, final(9, "one"), stream=number, utterance=f"u{number}")


def test_pacing_within_the_limit_is_valid() -> None:
    found = scored([paced(0, 0.019)])
    assert (found.valid, found.invalid_because) == (True, [])
    assert found.pacing.p99.value == pytest.approx(0.019)


def test_pacing_over_20_ms_makes_a_run_invalid() -> None:
    found = scored([paced(0, 0.021)])
    assert found.valid is False
    assert "21.0 ms, over the limit of 20 ms" in found.invalid_because[0]


def test_short_packets_have_half_a_packet() -> None:
    assert scored([paced(0, 0.011)], packet_ms=20).valid is False
    assert scored([paced(0, 0.009)], packet_ms=20).valid is True


def test_pacing_of_unpaced_runs_and_of_ramp_up_is_not_judged() -> None:
    assert scored([paced(0, 5.0)], speed=math.inf).valid is True
    late = paced(1, 5.0)
    late.scored = False
    assert scored([paced(0, 0.001), late]).valid is True


def test_a_run_without_scored_streams_is_invalid() -> None:
    found = scored([])
    assert found.invalid_because == ["no stream was scored"]
    assert found.accuracy.wer.value is None


def test_another_delay_in_force_is_counted() -> None:
    found = scored([stream(0, "a", "a", delay_ms_in_force=960), stream(1, "b", "b", delay_ms_in_force=480)])
    assert found.counts["streams_with_other_delay"] == 1


def test_the_block_is_named_with_its_reason() -> None:
    speakers = scored(stream(k, "a b", "a b", speaker=f"s{k % 20}") for k in range(40))
    assert (speakers.block, speakers.block_because) == ("speaker", "20 speakers, at least 20")
    few = scored(stream(k, "a b", "a b", speaker=f"s{k % 4}") for k in range(40))
    assert few.block == "recording"


def test_characters_are_the_headline_where_words_are_a_matter_of_taste() -> None:
    assert scored([stream(0, "你好 世界", "你好 世界", language="zh")]).accuracy.headline == "cer"
    assert scored([stream(0, "a", "a")]).accuracy.headline == "wer"


def test_the_wer_under_every_normaliser_says_how_much_of_it_is_spelling() -> None:
    # "It's one zero zero": raw 4 words; basic "it s one zero zero" 5; whisper "it is 100" 3; digit by digit "it is 1 0 0" 5.
    found = scored([stream(0, "It's one zero zero", "it is 100")], normaliser="basic/1").accuracy
    table = {one.normaliser: (one.errors, one.reference_words) for one in found.sensitivity}
    assert table == {
        "none": (4, 4),  # It's->it, one->is, zero->100, zero
        "basic/1": (4, 5),  # it; s->is, one->100, zero, zero
        "whisper-english/1": (0, 3),
        "whisper-english-digitwise/1": (0, 5),
    }
    own = next(one for one in found.sensitivity if one.normaliser == found.normaliser)
    assert (own.wer, own.normaliser_sha256) == (found.wer, found.normaliser_sha256)
    assert next(one.wer for one in found.sensitivity if one.normaliser == "none") == found.raw_wer


def test_english_rules_are_for_english_and_each_language_has_its_own() -> None:
    german = scored([stream(0, "Die Straße", "die strasse", language="de")]).accuracy
    assert [one.normaliser for one in german.sensitivity] == ["none", "basic/1"]
    both = scored(
        [
            stream(0, "at ten thirty", "at 10:30", language="en-US"),
            stream(1, "你好世界", "你好世间", language="zh"),
        ],
        normaliser="by-language/1",
    ).accuracy
    assert [one.normaliser for one in both.sensitivity] == ["none", "basic/1", "by-language/1"]
    assert both.by_language["en"].wer.value == 0.0  # by the digitwise rules
    assert (both.by_language["zh"].headline, both.by_language["zh"].cer.value) == ("cer", 0.25)
    assert both.headline == "wer"
    assert sum(one.reference_words for one in both.by_language.values()) == both.reference_words


def test_words_without_times_are_counted() -> None:
    timed = stream(0, "one two three", "one two three")
    plain = record(None, final(2, "four five"), stream=1, utterance="u1", reference="four {five|5} <*>")
    found = scored([timed, plain, silence(2, "")], alignment="flite 2.2").alignment
    assert (found.source, found.timed_words) == ("flite 2.2", 3)
    assert (found.untimed_words, found.untimed_streams) == (2, 1)


def test_an_unknown_normaliser_is_refused() -> None:
    with pytest.raises(ValueError, match="no normaliser is called 'mine/3'"):
        scored([stream(0, "a", "a")], normaliser="mine/3")


def test_scores_do_not_depend_on_the_order_of_streams() -> None:
    streams = [stream(k, "a b c d", "a x c d" if k % 3 else "a b", 0.1 * (k % 5)) for k in range(30)]
    one, other = scored(streams), scored(reversed(streams))
    assert one.accuracy.wer.value == other.accuracy.wer.value
    assert one.latency["word_emission_latency"].p95.value == pytest.approx(
        other.latency["word_emission_latency"].p95.value
    )
    assert one.latency["time_to_final"] == other.latency["time_to_final"]
    assert one.counts == other.counts


# The folder


def written(folder: Path, records: list[StreamRecord], *, complete: bool = True) -> Path:
    store.write_records(folder, records)
    store.write_run(folder, Run(store.SCHEMA, "the-run", "2026-11-20T10:00:00Z", CONFIG, {}, complete=complete))
    return folder


def test_scoring_a_folder_writes_scores_rows_and_a_summary(tmp_path: Path) -> None:
    records = [
        stream(0, "one two three", "one too three"),
        silence(1, "hm"),
        stream(2, "x", "", outcome=Outcome.FAILED),
    ]
    found = score(written(tmp_path, records))
    assert found.run == "the-run"
    assert read_scores(tmp_path) == found
    assert found == score_records(records, CONFIG, run="the-run")[0]
    table = pq.read_table(tmp_path / "utterances.parquet")
    assert table.column_names == UTTERANCES.names
    first, quiet, lost = table.to_pylist()
    assert (first["hits"], first["substitutions"], first["wer"], first["outcome"]) == (2, 1, pytest.approx(1 / 3), "ok")
    assert first["word_emission_latencies"] == [pytest.approx(0.5), None, pytest.approx(0.5)]
    assert first["word_finality_latencies"] is None  # they are the emission latencies
    assert (first["unmatched_words"], first["excess_latency"]) == (1, pytest.approx(0.02, abs=0.5 / 1024))
    assert (quiet["wer"], quiet["insertions"], quiet["word_emission_latencies"]) == (None, 1, [])
    frame = read_utterances(tmp_path)
    assert list(frame["word_end_seconds"][0]) == [1.0, 2.0, 3.0]
    assert list(frame["word_finality_latencies"][0]) == pytest.approx([0.5, math.nan, 0.5], nan_ok=True)
    assert list(frame["word_end_seconds"][1]) == []
    assert (lost["deletions"], lost["lost_tail_words"], lost["time_to_final"]) == (1, None, pytest.approx(1.25))


def test_scoring_again_changes_nothing(tmp_path: Path) -> None:
    score(written(tmp_path, [stream(k, "a b c", "a b x", 0.1 * k) for k in range(10)]))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    score(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_run_marked_incomplete_stays_so(tmp_path: Path) -> None:
    assert score(written(tmp_path, [stream(0, "a", "a")], complete=False)).complete is False


def test_scores_of_a_later_schema_ask_for_an_update(tmp_path: Path) -> None:
    found = score(written(tmp_path, [stream(0, "a", "a")]))
    store.write_json(tmp_path / "scores.json", msgspec.structs.replace(found, schema=SCHEMA + 1))
    with pytest.raises(StoreError, match="update Earmark"):
        read_scores(tmp_path)


def test_a_folder_without_a_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="does not exist"):
        score(tmp_path)


def test_the_summary_shows_figures_and_warnings() -> None:
    config = msgspec.structs.replace(CONFIG, caveat="A weak recogniser.")
    scores, _ = score_records(
        [stream(k, "one two six", "one too six") for k in range(16)], config, run="r", complete=False
    )
    page = summary(msgspec.structs.replace(scores, invalid_because=["too late"]), config)
    assert page.startswith("# r\n")
    for expected in (
        "**Invalid:** too late.",
        "**Incomplete:**",
        "*A weak recogniser.*",
        "| WER (basic/1) | 33.33 | 33.33 .. 33.33 |",
        "16 substitutions, 0 deletions and 0 insertions in 48 words.",
        "| Word emission | 500 [500, 500] | 500 | 500 | 32 words, 16 streams | 16 |",
        "| Time to final | 1250 [1250, 1250] | 1250 | 1250 | 16 | 0 |",
    ):
        assert expected in page
