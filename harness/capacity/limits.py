"""What a rung has to keep to, and whether it did."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import paired
from harness.capacity.search import Verdict
from harness.score import LATENCIES, Scores
from harness.statistics import Bootstrap, resampling_block
from harness.timeline import Outcome

QUANTILES = ("p50", "p90", "p95", "p99")
WORD_ALLOWANCE_SECONDS = 0.4
"""Beyond the transcription delay, where no other limit is given."""
NAMES = (
    f"NAME_QUANTILE=SECONDS with {', '.join(LATENCIES)} and {', '.join(QUANTILES)}, errors=RATE, drift=RATE or wer=RATE"
)


class LimitError(ValueError):
    """A limit cannot be read as written, or cannot be judged; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The service level. ``latencies`` are seconds by ``name_quantile``; ``errors`` is the share of streams that may fail or be refused;
    ``drift`` in seconds per second; ``wer`` by how much the word error rate may rise over that of one stream before a significant
    rise counts. ``None``: not limited.
    """

    latencies: Mapping[str, float]
    errors: float | None = 0.01
    drift: float | None = 0.01
    wer: float | None = 0.0

    def described(self) -> dict[str, float | None]:
        """As the record of a search keeps it."""
        return {**self.latencies, "errors": self.errors, "drift": self.drift, "wer": self.wer}

    def sentence(self) -> str:
        """The limits in words, latencies first."""
        parts = []
        for name, seconds in self.latencies.items():
            kind, _, quantile = name.rpartition("_")
            parts.append(f"{quantile} {LATENCIES[kind][1]} <= {seconds:g} s")
        if self.errors is not None:
            parts.append(f"errors <= {100 * self.errors:g} %")
        if self.drift is not None:
            parts.append(f"drift not above {self.drift:g} s/s")
        if self.wer is not None:
            parts.append(
                "WER not significantly worse than idle"
                if not self.wer
                else f"WER not significantly worse than idle by more than {100 * self.wer:g} points"
            )
        return ", ".join(parts)


def default_latencies(delay_ms: int | None, *, whole: bool = False) -> dict[str, float]:
    """Words within 0.4 s beyond the transcription delay (1 s where that is the server's secret), finals within 1 s.

    ``whole``: of recordings that go up whole, whose words cannot come before they have ended, finals alone.
    """
    if whole:
        return {"final_p95": 1.0}
    word = 1.0 if delay_ms is None else round(delay_ms / 1000 + WORD_ALLOWANCE_SECONDS, 3)
    return {"word_p95": word, "final_p95": 1.0}


def parse(settings: Iterable[str], delay_ms: int | None, *, whole: bool = False) -> Limits:
    """The limits that ``--slo`` options name, each ``name=value`` or several with commas; ``off`` lifts one. The rest are the defaults.

    Raises:
        LimitError: a name that there is not, or a value that is no positive number.
    """
    latencies: dict[str, float] = default_latencies(delay_ms, whole=whole)
    others: dict[str, float | None] = {}
    for setting in (part.strip() for text in settings for part in text.split(",") if part.strip()):
        name, _, value = setting.partition("=")
        name = name.strip()
        kind, _, quantile = name.rpartition("_")
        known = kind in LATENCIES and quantile in QUANTILES
        if not known and name not in ("errors", "drift", "wer"):
            raise LimitError(f"--slo {setting}: {NAMES} is expected, or =off")
        number = _number(value.strip(), setting)
        if not known:
            others[name] = number
        elif number is None:
            latencies.pop(name, None)
        else:
            latencies[name] = number
    return Limits(latencies, **others)


def _number(value: str, setting: str) -> float | None:
    if value == "off":
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise LimitError(f"--slo {setting}: a number of seconds or a rate is expected, or off; {NAMES}")
    return number


@dataclass(frozen=True, slots=True)
class Judgement:
    """``reasons`` why a rung fails or says nothing. ``measures`` are the figures that were held against the limits, and their intervals."""

    verdict: Verdict
    reasons: tuple[str, ...]
    measures: Mapping[str, float | None]


Row = Mapping[str, Any]
"""A row of utterances.parquet."""


def judge(
    scores: Scores, rows: Sequence[Row], idle: Sequence[Row] | None, limits: Limits, *, saturated: str = ""
) -> Judgement:
    """Hold one run against the limits. ``idle`` are the rows of the run with one stream, ``saturated`` why the run was ended early.

    A run in which the generator did not keep its own schedule says nothing, unless a limit is passed by more than the generator's
    lateness can explain.

    Raises:
        LimitError: a latency cannot be had, because the dataset has no word times.
    """
    measures: dict[str, float | None] = {"pacing_p99": scores.pacing.p99.value, "scored_streams": scores.streams}
    late = scores.pacing.max or 0.0
    reasons: list[str] = []
    certain = bool(saturated)
    if saturated:
        reasons.append(saturated)
    for name, limit in limits.latencies.items():
        kind, _, quantile = name.rpartition("_")
        found = scores.latency[LATENCIES[kind][0]]
        estimate = getattr(found, quantile)
        measures |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        if estimate.value is None:
            if scores.outcomes.get("ok", 0) and not saturated:
                raise LimitError(
                    f"{name} cannot be judged: nothing of it was measured. Word times are needed in the dataset, "
                    f"or lift the limit with --slo {name}=off"
                )
        elif estimate.value > limit:
            reasons.append(f"{quantile} {LATENCIES[kind][1]} {estimate.value:.2f} s, over {limit:g} s")
            certain = certain or estimate.value - late > limit
    ended = {name: count for name, count in scores.outcomes.items() if name != Outcome.ABANDONED}
    failed = sum(count for name, count in ended.items() if name != Outcome.OK)
    share = failed / sum(ended.values()) if ended else 0.0
    measures["errors"] = share
    if limits.errors is not None and share > limits.errors:
        reasons.append(f"{failed} of {sum(ended.values())} streams failed or were refused")
    drift = scores.latency["drift"].p50
    measures |= {"drift": drift.value, "drift_low": drift.low, "drift_high": drift.high}
    if limits.drift is not None and drift.low is not None and drift.low > limits.drift:
        reasons.append(f"transcripts fall behind by {drift.value:.3f} s per second [{drift.low:.3f}, {drift.high:.3f}]")
        certain = True
    measures["wer"] = scores.accuracy.wer.value
    if idle is not None and limits.wer is not None:
        rise, low, high = wer_rise(idle, rows)
        measures |= {"wer_rise": rise, "wer_rise_low": low, "wer_rise_high": high}
        if low is not None and low > limits.wer:
            reasons.append(f"WER {100 * (rise or 0):.1f} points above idle [{100 * low:.1f}, {100 * (high or 0):.1f}]")
    if not scores.valid and not certain:
        return Judgement(Verdict.UNCLEAR, (*scores.invalid_because,), measures)
    return Judgement(Verdict.FAILS if reasons else Verdict.HOLDS, tuple(reasons), measures)


def wer_rise(idle: Sequence[Row], loaded: Sequence[Row]) -> tuple[float | None, float | None, float | None]:
    """WER under load less WER of one stream over the utterances that both have, with its 95 % interval where there is one.

    An utterance that was replayed more than once enters with its mean, once.
    """
    ours, theirs = (
        paired.counts(row for row in rows if row["outcome"] != Outcome.ABANDONED) for rows in (idle, loaded)
    )
    block, _ = resampling_block([one.speaker for name, one in ours.items() if name in theirs])
    change = paired.wer_change(ours, theirs, block, Bootstrap(0))
    return change.value, change.low, change.high
