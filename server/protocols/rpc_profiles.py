"""Named sets of decoding options, which the operator writes and clients choose by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Options = Mapping[str, object]

KNOWN_OPTIONS = frozenset(
    {
        "append_punctuations",
        "beam_size",
        "best_of",
        "chunk_length",
        "clip_timestamps",
        "compression_ratio_threshold",
        "condition_on_previous_text",
        "hotwords",
        "initial_prompt",
        "language",
        "length_penalty",
        "log_prob_threshold",
        "max_initial_timestamp",
        "no_repeat_ngram_size",
        "no_speech_threshold",
        "patience",
        "prefix",
        "prepend_punctuations",
        "prompt_reset_on_temperature",
        "repetition_penalty",
        "suppress_blank",
        "suppress_tokens",
        "task",
        "temperature",
        "temperature_increment_on_fallback",
        "vad_filter",
        "vad_parameters",
        "without_timestamps",
        "word_timestamps",
    }
)
"""Any other option makes every session of its profile fail."""

APPLIED_OPTIONS = frozenset({"language", "task", "temperature"})
"""Those that mean something to engines of every kind; the rest is the engine's own affair."""

_SHARED = {
    "patience": 1,
    "temperature": 0,
    "length_penalty": 1,
    "without_timestamps": True,
    "compression_ratio_threshold": 2.4,
    "no_speech_threshold": 0.6,
    "log_prob_threshold": -1,
}

DEFAULT_PROFILES: Mapping[str, Options] = {
    "realtime": {"beam_size": 1, "best_of": 1, **_SHARED},
    "accurate": {"beam_size": 5, "best_of": 5, **_SHARED},
}

BY_NUMBER = {1: "realtime", 2: "accurate"}
"""The profiles that have a number in ``stt.proto``'s enum ``DecodeProfile``."""


@dataclass(frozen=True, slots=True)
class Profiles:
    """All of them, and the name of the one that clients get who name none, or one that does not exist."""

    options: Mapping[str, Options] = field(default_factory=lambda: DEFAULT_PROFILES)
    default: str = "realtime"

    def choose(self, number: int, attributes: Mapping[str, str]) -> str:
        """The name of the profile: the enum's wins over the attribute's."""
        wanted = next((name for known, name in BY_NUMBER.items() if known == number), "")
        wanted = wanted or attributes.get("decode_profiles", "").strip() or attributes.get("decode_profile", "").strip()
        return wanted if wanted in self.options else self.default

    def of(self, name: str) -> Options:
        """The options of a profile; none when it does not exist."""
        return self.options.get(name, {})

    def unknown(self, name: str) -> list[str]:
        """The profile's options that nobody knows, sorted."""
        return sorted(set(self.of(name)) - KNOWN_OPTIONS)

    def ignored(self, name: str) -> list[str]:
        """The profile's options that only some engines know, sorted."""
        return sorted((set(self.of(name)) & KNOWN_OPTIONS) - APPLIED_OPTIONS)

    def for_engine(self, name: str) -> str:
        """Which of the two profiles that engines know comes nearest: with more than one beam it is the accurate one."""
        if name in BY_NUMBER.values():
            return name
        beams = [value for option in ("beam_size", "best_of") if isinstance(value := self.of(name).get(option), int)]
        return "accurate" if max(beams, default=1) > 1 else "realtime"

    def temperature(self, name: str) -> float:
        """The first temperature of the profile, 0 where it has none."""
        value = self.of(name).get("temperature", 0.0)
        first = value[0] if isinstance(value, list | tuple) and value else value
        return float(first) if isinstance(first, int | float) and first >= 0 else 0.0
