"""What is gated, and how much of a change never fails."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec


class GateError(Exception):
    """Two things cannot be compared, or a baseline cannot be made; the message says which field and what to do."""


class Metric(msgspec.Struct, frozen=True):
    """What a metric is called and how its figures are written. More of each of them is worse."""

    label: str
    unit: str  # of a change
    digits: int = 2
    percent: bool = False  # a share: shown in %, its change in points

    @property
    def scale(self) -> float:
        return 100.0 if self.percent else 1.0

    def figure(self, value: float | None) -> str:
        """A value with its unit, where the unit is not said elsewhere."""
        if value is None:
            return "-"
        return f"{value * self.scale:.{self.digits}f}{'%' if self.percent else ''}"

    def signed(self, value: float) -> str:
        return f"{value * self.scale:+.{self.digits}f}"

    def size(self, value: float) -> str:
        return f"{value * self.scale:.{self.digits}f}"


METRICS: dict[str, Metric] = {
    "wer": Metric("WER", "points", percent=True),
    "cer": Metric("CER", "points", percent=True),
    "hallucinated_words_per_minute": Metric("hallucinated words", "/min", 1),
    "errors": Metric("failed streams", "points", 1, percent=True),
    "first_token": Metric("first token", "s"),
    "word_p50": Metric("word latency p50", "s"),
    "word_p95": Metric("word latency p95", "s"),
    "word_tail": Metric("slowest streams' word latency p95", "s"),
    "time_to_final": Metric("time to final", "s"),
    "time_to_final_tail": Metric("p95 of time to final", "s"),
    "unstable_words": Metric("unstable partial words", "points", percent=True),
    "lost_tail_words": Metric("words lost at the end", "points", percent=True),
    "stalls_per_minute": Metric("stalls", "/min"),
    "dropped": Metric("audio dropped", "points", percent=True),
}
LATENCIES = {  # name -> column of utterances.parquet
    "first_token": "first_token_from_onset",
    "word_p50": "word_emission_latency_p50",
    "word_p95": "word_emission_latency_p95",
    "time_to_final": "time_to_final",
}
TAILS = {
    "word_p95": "word_tail",
    "time_to_final": "time_to_final_tail",
}  # of which latency -> name of its p95 over streams


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change up to ``absolute + relative * |baseline|`` never fails, however significant it is."""

    absolute: float
    relative: float = 0.0

    def around(self, baseline: float | None) -> float:
        return self.absolute + self.relative * abs(baseline or 0.0)


# On a machine of one's own: latencies of the same build repeat to a few ten milliseconds. A tail that grows by a fifth has to fail.
TOLERANCES: dict[str, Tolerance] = {
    "wer": Tolerance(0.015),
    "cer": Tolerance(0.015),
    "hallucinated_words_per_minute": Tolerance(1.0, 0.10),
    "errors": Tolerance(0.0),
    "first_token": Tolerance(0.03, 0.08),
    "word_p50": Tolerance(0.03, 0.08),
    "word_p95": Tolerance(0.03, 0.08),
    "word_tail": Tolerance(0.03, 0.08),
    "time_to_final": Tolerance(0.03, 0.08),
    "time_to_final_tail": Tolerance(0.03, 0.08),
    "unstable_words": Tolerance(0.01, 0.10),
    "lost_tail_words": Tolerance(0.005),
    "stalls_per_minute": Tolerance(0.05),
    "dropped": Tolerance(0.002),
}
# Where other jobs share the cores only gross breakage counts: 0.5 s on every final still fails as long as finals take under 1 s.
SHARED_MACHINE: dict[str, Tolerance] = TOLERANCES | {
    "first_token": Tolerance(0.25, 0.20),
    "word_p50": Tolerance(0.25, 0.20),
    "word_p95": Tolerance(0.30, 0.25),
    "word_tail": Tolerance(0.40, 0.50),
    "time_to_final": Tolerance(0.25, 0.20),
    "time_to_final_tail": Tolerance(0.40, 0.50),
    "stalls_per_minute": Tolerance(0.50),
    "dropped": Tolerance(0.02),
}
PROFILES: dict[str, dict[str, Tolerance]] = {"own-machine": TOLERANCES, "shared-machine": SHARED_MACHINE}


class Testbed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place whose scatter a tolerance file describes."""

    machine: str = ""
    made: str = ""
    runs: int = 0
    note: str = ""


class ToleranceFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tolerance file holds: what it says nothing of keeps its default."""

    testbed: Testbed = Testbed()
    tolerances: dict[str, Tolerance] = {}


def read_tolerances(path: Path) -> ToleranceFile:
    """A tolerance file. Raises `GateError` that names key and value of what cannot be."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), ToleranceFile, strict=True)
    except OSError as error:
        raise GateError(f"the tolerance file {path} cannot be read: {error}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise GateError(f"the tolerance file {path} is not one: {error}") from error
    checked(found.tolerances, str(path))
    return found


def checked(tolerances: Mapping[str, Tolerance], where: str) -> None:
    """Raises `GateError` for a metric that there is not, or a tolerance that is no amount."""
    for name, tolerance in tolerances.items():
        if name not in METRICS:
            raise GateError(f"{where}: there is no metric {name!r}; there are {', '.join(METRICS)}")
        for field in ("absolute", "relative"):
            value = getattr(tolerance, field)
            if not (math.isfinite(value) and value >= 0):
                raise GateError(f"{where}: {name}.{field} = {value} must be 0 or more")


def as_toml(file: ToleranceFile, remarks: Mapping[str, str] | None = None) -> str:
    """The file's text; ``remarks`` stand above the metric that they are about."""
    lines = ["[testbed]"]
    lines += [f"{name} = {_toml(value)}" for name, value in msgspec.structs.asdict(file.testbed).items() if value]
    for name, tolerance in file.tolerances.items():
        lines += ["", *([f"# {remarks[name]}"] if remarks and name in remarks else []), f"[tolerances.{name}]"]
        lines += [f"absolute = {tolerance.absolute!r}", f"relative = {tolerance.relative!r}"]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    # A JSON string is a TOML string too, but for DEL, which TOML wants escaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
