"""Every time measure against records whose right answers are worked out beside them."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.latency import PrefixAligner, StreamLatency, delay_seconds, lateness, measure, quantile
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from tests.harness.streams import T0_NS, appended, at, final, per_second, record, said, tentative


def close(values: tuple[float | None, ...]) -> object:
    return pytest.approx(values, abs=1e-9)


def test_a_word_counts_from_its_planned_end_to_the_entry_that_completes_it() -> None:
    # Words end at 1, 2, 3 s; they come at 1.5, 2.25 and, the last, with the final at 4.
    found = measure(
        record(per_second("one two three"), appended(1.5, "One"), appended(2.25, " two,"), final(4, "One two, three"))
    )
    assert found.word_emission_latencies == close((0.5, 0.25, 1.0))
    assert found.word_finality_latencies == close((0.5, 0.25, 1.0))
    assert found.word_end_seconds == (1, 2, 3)
    assert found.word_emission_latency_p50 == pytest.approx(0.5)
    assert found.unmatched_words == 0


def test_a_word_shown_before_its_end_has_a_negative_latency() -> None:
    found = measure(record(per_second("one two"), appended(0.7, "one"), appended(1.9, " two"), final(3, "one two")))
    assert found.word_emission_latencies == close((-0.3, -0.1))


def test_letters_glued_on_later_make_another_word() -> None:
    # "seven" at 1.2 is the beginning of "seventeen", which is complete at 2.1 and ended at 2.
    words = said(("seventeen", 1.0, 2.0), ("trees", 2.0, 3.0))
    found = measure(
        record(
            words, appended(1.2, "seven"), appended(2.1, "teen"), appended(3.3, " trees"), final(4, "seventeen trees")
        )
    )
    assert found.word_emission_latencies == close((0.1, 0.3))
    assert found.word_finality_latencies == close((0.1, 0.3))


def test_a_beginning_that_was_glued_over_is_no_emission_of_the_shorter_word() -> None:
    found = measure(
        record(said(("seven", 0.5, 1.0)), appended(1.2, "seven"), appended(1.4, "teen"), final(2, "seventeen"))
    )
    assert found.word_emission_latencies == (None,)
    assert found.unmatched_words == 1


def test_punctuation_glued_on_later_does_not_delay_the_word() -> None:
    found = measure(record(per_second("yes"), appended(1.1, " Yes"), appended(1.6, "."), final(2, "Yes.")))
    assert found.word_emission_latencies == close((0.1,))
    assert found.word_finality_latencies == close((0.1,))


def test_subword_pieces_count_when_the_word_is_whole() -> None:
    found = measure(
        record(
            per_second("morning light"),
            appended(0.9, "mor"),
            appended(1.3, "ning li"),
            appended(2.4, "ght"),
            final(3, "morning light"),
        )
    )
    assert found.word_emission_latencies == close((0.3, 0.4))


def test_a_flickering_word_is_emitted_when_first_right_and_final_when_it_stays() -> None:
    # "two" is right at 2.1, taken back at 2.4, right again at 2.8 and stays.
    found = measure(
        record(
            per_second("one two"),
            tentative(1.1, "one"),
            tentative(2.1, "one two"),
            tentative(2.4, "one too"),
            tentative(2.8, "one two"),
            final(3.5, "one two"),
        )
    )
    assert found.word_emission_latencies == close((0.1, 0.1))
    assert found.word_finality_latencies == close((0.1, 0.8))


def test_a_change_before_a_word_does_not_make_it_less_final() -> None:
    # "won" becomes "one" at 2.6; "two" stood since 2.2 on its own account.
    found = measure(
        record(
            per_second("one two"),
            tentative(1.3, "won"),
            tentative(2.2, "won two"),
            tentative(2.6, "one two"),
            final(3, "one two"),
        )
    )
    assert found.word_emission_latencies == close((1.6, 0.2))
    assert found.word_finality_latencies == close((1.6, 0.2))


def test_words_pushed_back_by_a_late_insertion_stand_since_they_were_shown() -> None:
    # The final puts "well then" before four words that stood all along.
    found = measure(record(per_second("well then a b c d"), appended(6.5, "a b c d"), final(8, "well then a b c d")))
    assert found.word_finality_latencies == close((7, 6, 3.5, 2.5, 1.5, 0.5))


def test_a_word_right_only_for_a_while_is_emitted_but_never_final() -> None:
    found = measure(
        record(
            per_second("one two"),
            tentative(1.2, "one"),
            tentative(2.2, "one two"),
            tentative(2.5, "one"),
            final(3, "one"),
        )
    )
    assert found.word_emission_latencies == close((0.2, 0.2))
    assert found.word_finality_latencies[1] is None
    assert found.unmatched_words == 0
    assert found.lost_tail_words == 1


def test_a_misheard_word_is_not_an_emission_of_the_same_word_far_ahead() -> None:
    # At 2.1 the second word is misheard as "end", which is said only at 6. Matching it there would be 3.9 s early.
    found = measure(
        record(
            per_second("we can see it the end"),
            tentative(1.1, "we"),
            tentative(2.1, "we end"),
            tentative(6.3, "we can see it the end"),
            final(7, "we can see it the end"),
        )
    )
    assert found.word_emission_latencies == close((0.1, 4.3, 3.3, 2.3, 1.3, 0.3))


def test_words_after_lost_ones_count_from_when_they_were_shown() -> None:
    # "b c" are never heard. That "d" stands for the fourth word is known only by what follows it; it was shown at 4.2 all the same.
    found = measure(
        record(
            per_second("a b c d e f"),
            tentative(1.2, "a"),
            tentative(4.2, "a d"),
            tentative(5.2, "a d e"),
            tentative(6.2, "a d e f"),
            final(7, "a d e f"),
        )
    )
    assert found.word_emission_latencies == pytest.approx((0.2, None, None, 0.2, 0.2, 0.2), abs=1e-9)
    assert found.unmatched_words == 2
    assert found.lost_tail_words == 0


def test_planned_times_follow_the_speed() -> None:
    # At speed 2 the end of the first word, 1 s of audio, is due 0.5 s after T0.
    found = measure(
        record(
            per_second("one two"),
            appended(0.75, "one"),
            appended(1.5, " two"),
            final(2, "one two"),
            speed=2.0,
            delay_ms=400,
        )
    )
    assert found.word_emission_latencies == close((0.25, 0.5))
    assert found.time_to_final == pytest.approx(1.0)  # last word ends at 2 s of audio, due at 1
    assert found.first_token_from_onset == pytest.approx(0.5)  # onset 0.5 s of audio, due at 0.25
    assert found.excess_latency == pytest.approx(0.375 - 0.2)  # 400 ms of audio pass in 200 ms


def test_an_unpaced_replay_has_a_real_time_factor_and_no_latency_against_the_audio() -> None:
    entries = (appended(0.4, "one"), Entry(at(0.5), Kind.END_OF_AUDIO), final(1.0, "one two"))
    found = measure(record(per_second("one two"), *entries, speed=math.inf, audio_seconds=4.0))
    assert found.real_time_factor == pytest.approx(0.25)
    assert found.flush_latency == pytest.approx(0.5)
    assert found.word_emission_latencies == (None, None)
    assert (found.time_to_final, found.first_token_from_onset, found.stalls, found.drift) == (None,) * 4
    assert found.unmatched_words == 0  # both were recognised, only the time of their audio is undefined


def test_a_paced_replay_has_no_real_time_factor() -> None:
    assert measure(record(per_second("one"), final(2, "one"))).real_time_factor is None


def test_opening_first_token_and_final() -> None:
    found = measure(
        record(
            said(("hello", 0.4, 0.9)),
            Entry(at(-0.50), Kind.CONNECTING),
            Entry(at(-0.47), Kind.CONNECTED),
            Entry(at(-0.40), Kind.READY),
            appended(0.8, " "),  # blank text is no token
            tentative(1.0, "hel"),
            Entry(at(1.9), Kind.END_OF_AUDIO, due_ns=at(1.88)),
            final(2.1, "hello"),
        )
    )
    assert found.connect_seconds == pytest.approx(0.03)
    assert found.ready_seconds == pytest.approx(0.10)
    assert found.first_token_from_start == pytest.approx(1.0)
    assert found.first_token_from_onset == pytest.approx(0.6)
    assert found.time_to_final == pytest.approx(1.2)
    assert found.flush_latency == pytest.approx(0.2)
    assert found.word_emission_latencies == close((1.2,))


def test_the_delay_in_force_goes_before_the_delay_asked_for() -> None:
    heard = (appended(1.7, "one"), final(3, "one"))
    assert measure(record(per_second("one"), *heard, delay_ms=480)).excess_latency == pytest.approx(0.22)
    assert measure(
        record(per_second("one"), *heard, delay_ms=480, delay_ms_in_force=640)
    ).excess_latency == pytest.approx(0.06)
    assert measure(record(per_second("one"), *heard)).excess_latency is None
    assert delay_seconds(record(None, delay_ms=480, delay_ms_in_force=0)) == 0.0


def test_a_stream_that_never_began_has_no_times_and_misses_every_word() -> None:
    found = measure(record(per_second("one two"), outcome=Outcome.REJECTED))
    assert found.word_emission_latencies == (None, None)
    assert found.unmatched_words == 2
    assert found.lost_tail_words is None  # the stream failed: that is counted as a failure, not as a lost tail
    assert found.first_token_from_start is None
    assert found.flush_latency is None
    assert found.stalls == 0


def test_what_a_failed_stream_showed_counts_and_its_partial_end_is_not_stretched() -> None:
    # It broke off after "a x"; "x" must not be taken for the last word of the reference.
    found = measure(
        record(
            per_second("a b c x"), appended(1.4, "a"), appended(2.2, " x"), Entry(at(2.3), Kind.ERROR, text="500: gone")
        )
    )
    assert found.word_emission_latencies == pytest.approx((0.4, None, None, None), abs=1e-9)


def test_without_an_alignment_only_measures_that_need_none_exist() -> None:
    found = measure(record(None, appended(1.0, "one"), final(3, "one two"), reference="one two three"))
    assert found.first_token_from_start == pytest.approx(1.0)
    assert found.lost_tail_words == 1
    assert (found.first_token_from_onset, found.time_to_final, found.unmatched_words, found.stalls) == (None,) * 4
    assert found.word_end_seconds == found.word_emission_latencies == ()


def test_lost_tail_counts_the_words_after_the_last_right_one() -> None:
    found = measure(record(per_second("a b c d e"), appended(3.2, "a x c y"), final(6, "a x c y")))
    assert found.lost_tail_words == 2
    assert found.unmatched_words == 3


def test_dropped_seconds_add_up() -> None:
    drops = (Entry(at(1), Kind.DROPPED, value=0.25), Entry(at(2), Kind.DROPPED, value=1.5))
    assert measure(record(per_second("one"), *drops, final(3, "one"))).dropped_seconds == 1.75


def test_drift_is_the_slope_of_the_lag() -> None:
    # Word k ends at k and comes at 1.1 k: lag 0.1 k at time 1.1 k, exactly 1/11 s per s.
    words = per_second("a b c d e f g h")
    found = measure(
        record(
            words,
            *(appended(1.1 * k, f" {word.text}") for k, word in enumerate(words, 1)),
            final(12, "a b c d e f g h"),
            audio_seconds=11.0,
        )
    )
    assert found.drift is not None
    assert found.drift.value == pytest.approx(1 / 11)
    assert found.drift.low == pytest.approx(1 / 11)
    # Before word k comes the newest ends at k - 1: 1.1 k - (k - 1), greatest for k = 8.
    assert found.max_lag == pytest.approx(1.8)


def test_drift_interval_agrees_with_the_textbook() -> None:
    # Lags 0.2, 0.4, 0.3 at 1.2, 2.4, 3.3: slope and standard error by the usual formulas, t(1) = 12.706.
    words = per_second("a b c")
    found = measure(record(words, appended(1.2, "a"), appended(2.4, " b"), appended(3.3, " c"), final(4, "a b c")))
    x, y = (1.2, 2.4, 3.3), (0.2, 0.4, 0.3)
    mean_x, mean_y = sum(x) / 3, sum(y) / 3
    spread = sum((value - mean_x) ** 2 for value in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    assert found.drift is not None
    assert found.drift.low is not None
    assert found.drift.value == pytest.approx(slope)
    assert found.drift.value - found.drift.low == pytest.approx(12.7062 * math.sqrt(rest / spread), rel=1e-4)


def test_words_that_come_after_the_audio_say_nothing_of_drift() -> None:
    words = per_second("a b c d")
    found = measure(
        record(
            words, appended(1.2, "a"), appended(2.2, " b"), appended(9, " c"), final(10, "a b c d"), audio_seconds=4.5
        )
    )
    assert [point.after for point in found.lag] == [pytest.approx(0.2), pytest.approx(0.2), None]
    assert found.lag[-1].before == pytest.approx(2.5)  # audio ended at 4.5 with "b", which ends at 2, the newest word
    assert found.drift is not None
    assert found.drift.value == pytest.approx(0.0)
    assert found.drift.low is None


def test_a_burst_is_one_point_of_the_lag_series() -> None:
    found = measure(record(per_second("a b c"), appended(3.5, "a b c"), final(4, "a b c")))
    assert [(point.seconds, point.before, point.after) for point in found.lag] == [pytest.approx((3.5, 3.5, 0.5))]


def test_an_older_word_put_right_later_does_not_set_the_lag_back() -> None:
    # "a" is put right at 2.6, when "b", which ends at 2, was already there.
    found = measure(
        record(per_second("a b"), tentative(1.3, "x"), tentative(2.2, "x b"), tentative(2.6, "a b"), final(4, "a b"))
    )
    assert [(point.seconds, point.before, point.after) for point in found.lag] == [pytest.approx((2.2, 2.2, 0.2))]


def test_a_stall_is_a_long_gap_with_three_words_in_it() -> None:
    words = per_second("a b c d e f")
    # From 1.5 to 5.0 nothing new: 3.5 s over the limit of 2 + 0.48; b (1.5..2), c, d and e (4.5..5) lie in it.
    stalled = (appended(1.5, "a"), appended(5.0, " b c d"), appended(6.2, " e f"), final(6.5, "a b c d e f"))
    assert measure(record(words, *stalled, delay_ms=480)).stalls == 1
    # Under a delay of 1.6 s the same gap is shorter than 3.6 s.
    assert measure(record(words, *stalled, delay_ms=1600)).stalls == 0
    # Two words in the gap are a pause, not a stall.
    pause = said(("a", 0.5, 1.0), ("b", 2.0, 2.5), ("c", 3.0, 3.5), ("d", 5.5, 6.0))
    assert (
        measure(
            record(pause, appended(1.5, "a"), appended(5.0, " b c"), appended(6.5, " d"), final(7, "a b c d"))
        ).stalls
        == 0
    )


def test_a_server_that_says_nothing_to_the_end_has_stalled_and_repeating_itself_is_silence() -> None:
    words = per_second("a b c d e f")
    assert measure(record(words, appended(1.2, "a"), final(7, "a"))).stalls == 1
    repeats = [tentative(1.2 + 0.5 * k, "a") for k in range(11)]
    assert measure(record(words, *repeats, final(7, "a"))).stalls == 1
    assert measure(record(words, *repeats)).stalls == 1  # 1.2 to 6.2 in a stream that never ended


def test_where_no_blanks_are_written_a_word_is_its_characters() -> None:
    words = said(("你好", 0.5, 1.0), ("世界", 1.0, 2.0))
    found = measure(
        record(
            words,
            appended(1.1, "你"),
            appended(1.4, "好世"),
            appended(2.3, "界。"),
            final(3, "你好世界。"),
            language="zh",
        )
    )
    assert found.word_emission_latencies == close((0.4, 0.3))


def test_a_reference_word_without_letters_is_not_called_unmatched() -> None:
    found = measure(
        record(said(("yes", 0.5, 1.0), ("-", 1.0, 1.1), ("no", 1.2, 2.0)), appended(1.5, "yes"), final(2.5, "yes no"))
    )
    assert found.unmatched_words == 0
    assert found.word_emission_latencies == pytest.approx((0.5, None, 0.5), abs=1e-9)


def test_lateness_is_taken_from_scheduled_messages_only() -> None:
    entries = (
        Entry(at(0.081), Kind.PACKET, due_ns=at(0.080), value=0.08),
        Entry(at(0.159), Kind.PACKET, due_ns=at(0.160), value=0.16),
        appended(0.2, "x"),
        Entry(at(0.165), Kind.END_OF_AUDIO, due_ns=at(0.160)),
        Entry(at(0.3), Kind.PACKET, value=0.3),
    )
    assert lateness(record(None, *entries)) == pytest.approx([0.001, -0.001, 0.005])


def test_quantiles_are_linear_between_neighbours() -> None:
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert quantile([7.0], 0.95) == 7.0
    assert quantile([], 0.5) is None


# Properties

WORDS = st.lists(st.sampled_from(["a", "b", "c", "the", "seven", "seventeen"]), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> StreamRecord:
    """Any mixture of appended, tentative and final text over a reference of the same few words."""
    words = per_second(" ".join(draw(WORDS)))
    entries = []
    for number in range(draw(st.integers(0, 15))):
        kind = draw(st.sampled_from([Kind.APPENDED, Kind.TENTATIVE, Kind.TENTATIVE]))
        entries.append(Entry(at(0.3 * number), kind, text=" ".join(draw(WORDS)) + draw(st.sampled_from(["", " "]))))
    if draw(st.booleans()):
        entries += [Entry(at(9), Kind.END_OF_AUDIO), final(10, " ".join(draw(WORDS)))]
    return record(words, *entries, audio_seconds=20.0)


def shifted(stream: StreamRecord, by_ns: int) -> list[Entry]:
    return [dataclasses.replace(entry, t_ns=entry.t_ns + by_ns) for entry in stream.entries]


@given(streams(), st.integers(-5_000_000_000, 5_000_000_000))
def test_delaying_every_entry_delays_every_latency_by_as_much(stream: StreamRecord, by_ns: int) -> None:
    before, after = measure(stream), measure(dataclasses.replace(stream, entries=shifted(stream, by_ns)))
    by = by_ns / 1e9
    for name in ("first_token_from_start", "first_token_from_onset", "time_to_final", "word_emission_latency_p50"):
        one, other = getattr(before, name), getattr(after, name)
        assert other == (None if one is None else pytest.approx(one + by, abs=1e-6))
    for name in ("word_emission_latencies", "word_finality_latencies"):
        for one, other in zip(getattr(before, name), getattr(after, name), strict=True):
            assert other == (None if one is None else pytest.approx(one + by, abs=1e-6))
    assert before.flush_latency == after.flush_latency
    assert (before.unmatched_words, before.lost_tail_words) == (after.unmatched_words, after.lost_tail_words)


@given(streams(), st.integers(-T0_NS, 10**15))
def test_nothing_depends_on_where_the_clock_began(stream: StreamRecord, by_ns: int) -> None:
    moved = dataclasses.replace(stream, t0_ns=stream.t0_ns + by_ns, entries=shifted(stream, by_ns))
    assert measure(moved) == measure(stream)


@given(streams())
def test_no_word_is_final_before_it_was_shown(stream: StreamRecord) -> None:
    found: StreamLatency = measure(stream)
    assert len(found.word_emission_latencies) == len(found.word_finality_latencies) == len(stream.words or ())
    assert found.unmatched_words == found.word_emission_latencies.count(None)
    for shown, stands in zip(found.word_emission_latencies, found.word_finality_latencies, strict=True):
        assert stands is None or (shown is not None and shown <= stands)


@given(WORDS, st.lists(st.tuples(st.integers(0, 12), WORDS), max_size=5), st.booleans())
def test_the_aligner_finds_shortest_alignments_of_the_beginning_that_is_covered(
    reference: list[str], edits: list[tuple[int, list[str]]], whole: bool
) -> None:
    aligner = PrefixAligner(reference)
    known: set[tuple[int, int]] = set()
    words: list[str] = []
    for keep, new in edits:
        changed = words[:keep] + new
        same = next((k for k, (one, other) in enumerate(zip(words, changed, strict=False)) if one != other), len(words))
        known = {(place, shown) for place, shown in known if shown < same}
        words = changed
        distances = _distances(reference, words)
        beginning = max(place for place, distance in enumerate(distances) if distance == min(distances))
        if whole:
            beginning = len(reference)
        fresh = aligner.align(words, whole=whole)
        pairs = aligner.align(words, whole=whole, again=True)
        assert set(fresh) <= set(pairs)
        assert set(pairs) <= known | set(fresh)  # what was left out had been given before
        known |= set(pairs)
        assert all(reference[place] == words[shown] for place, shown in pairs)
        # Between two pairs the longer of the two gaps is what must be changed, added or removed.
        cost, place_before, shown_before = 0, 0, 0
        for place, shown in [*reversed(pairs), (beginning, len(words))]:
            cost += max(place - place_before, shown - shown_before)
            place_before, shown_before = place + 1, shown + 1
        assert cost == distances[beginning]


def _distances(reference: list[str], words: list[str]) -> list[int]:
    """Edit distance of ``words`` to each beginning of the reference, by the textbook recurrence."""
    column = list(range(len(reference) + 1))
    for word in words:
        diagonal, column[0] = column[0], column[0] + 1
        for place, other in enumerate(reference, start=1):
            diagonal, column[place] = (
                column[place],
                min(column[place] + 1, column[place - 1] + 1, diagonal + (word != other)),
            )
    return column


def test_a_long_reference_is_covered_as_a_short_one_is() -> None:
    chance = random.Random(3)
    reference = [chance.choice("abcdefgh") for _ in range(700)]
    words = [word for word in reference[:400] if chance.random() > 0.1]
    distances = _distances(reference, words)
    aligner = PrefixAligner(reference)
    pairs = aligner.align(words)
    beginning = max(place for place, distance in enumerate(distances) if distance == min(distances))
    cost, place_before, shown_before = 0, 0, 0
    for place, shown in [*reversed(pairs), (beginning, len(words))]:
        cost += max(place - place_before, shown - shown_before)
        place_before, shown_before = place + 1, shown + 1
    assert cost == distances[beginning]
