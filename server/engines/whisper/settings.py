"""What can be set about the Whisper engine, checked when it is set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from server.engines.base import EngineError
from server.engines.sphinx.settings import check_delay
from server.engines.whisper.languages import LANGUAGES, check_language

__all__ = ["PROFILES", "DecodeProfile", "Device", "Task", "WhisperSettings"]

Task = Literal["transcribe", "translate"]
Device = Literal["auto", "cpu", "cuda"]

SLOTS_PER_WORKER = 8
LONGEST_WINDOW_SECONDS = 29.0
"""Whisper's encoder takes 30 s; a longer window would cost two passes."""


@dataclass(frozen=True, slots=True)
class DecodeProfile:
    """How one window is decoded; the names are those of faster-whisper's ``transcribe``.

    ``best_of`` counts where the temperature is above 0. The thresholds tell silence and text that runs in circles from speech.
    """

    beam_size: int = 1
    best_of: int = 1
    patience: float = 1.0
    temperature: float = 0.0
    length_penalty: float = 1.0
    compression_ratio_threshold: float = 2.4
    no_speech_threshold: float = 0.6
    log_prob_threshold: float = -1.0


PROFILES: Mapping[str, DecodeProfile] = {
    "realtime": DecodeProfile(),
    "accurate": DecodeProfile(beam_size=5, best_of=5),
}


@dataclass(frozen=True, slots=True)
class WhisperSettings:
    """Settings of the Whisper engine. Times are seconds of audio.

    ``model`` is the folder of a model converted for CTranslate2, a size that faster-whisper knows ("small") or a repository of the
    hub; the last two are fetched to ``model_dir`` (empty: the hub's cache) unless ``download`` is off. ``compute_type`` auto is int8 on
    a CPU and float16 on CUDA. ``cpu_threads`` belong to each of the ``workers``, which decode at the same time; 0 leaves their number to
    CTranslate2. ``slots`` streams are heard at once, as many more wait; 0 takes 8 per worker. ``profiles`` are what streams may choose
    from, by name; ``profile`` is for those that do not choose. With the ``task`` translate, all are translated into English.

    A stream is decoded every ``partial_interval_seconds`` of audio, over a window that is cut once it is longer than ``window_seconds``,
    behind words that are shown, and by force at ``longest_window_seconds``. ``prompt_characters`` of the text before the window go with
    it. ``language`` is that of streams that name none; if it is empty, it is detected until there is text in ``detect_seconds`` of
    audio. ``vad_filter`` leaves out what Silero's detector takes for silence, where Whisper likes to make things up.
    ``backlog_seconds`` bounds the audio that waits. Where more than a second of it waits, ``ahead_seconds`` count as heard before they
    are decoded, so that bursts and late streams are caught up in few large windows.
    """

    model: str = "small"
    model_dir: str = ""
    download: bool = True
    device: Device = "auto"
    compute_type: str = "auto"
    cpu_threads: int = 0
    workers: int = 1
    slots: int = 0
    profile: str = "realtime"
    profiles: Mapping[str, DecodeProfile] = field(default_factory=lambda: PROFILES)
    task: Task = "transcribe"
    language: str = ""
    default_delay_seconds: float = 0.48
    partial_interval_seconds: float = 0.48
    window_seconds: float = 12.0
    longest_window_seconds: float = 28.0
    prompt_characters: int = 200
    detect_seconds: float = 3.0
    vad_filter: bool = True
    backlog_seconds: float = 60.0
    ahead_seconds: float = 20.0

    def __post_init__(self) -> None:
        """Refuse what cannot work, naming the setting.

        Raises:
            EngineError: with the setting's name, its value and what it may be.
        """
        if not self.model.strip():
            raise EngineError(
                "whisper model must be a folder, a size such as small, or a repository of the hub, got nothing"
            )
        for name, value, choices in (
            ("profile", self.profile, tuple(self.profiles)),
            ("task", self.task, get_args(Task)),
            ("device", self.device, get_args(Device)),
        ):
            if value not in choices:
                raise EngineError(f"whisper {name} must be one of {', '.join(choices)}, got {value!r}")
        for name, number, least, most in (
            ("cpu_threads", self.cpu_threads, 0, 1024),
            ("workers", self.workers, 1, 256),
            ("slots", self.slots, 0, 100_000),
            ("partial_interval_seconds", self.partial_interval_seconds, 0.08, 5.0),
            ("window_seconds", self.window_seconds, 1.0, LONGEST_WINDOW_SECONDS),
            ("longest_window_seconds", self.longest_window_seconds, self.window_seconds, LONGEST_WINDOW_SECONDS),
            ("prompt_characters", self.prompt_characters, 0, 1000),
            ("detect_seconds", self.detect_seconds, 0.0, LONGEST_WINDOW_SECONDS),
            ("backlog_seconds", self.backlog_seconds, 1.0, 3600.0),
            ("ahead_seconds", self.ahead_seconds, 0.0, 0.5 * self.backlog_seconds),
        ):
            if not least <= number <= most:
                raise EngineError(f"whisper {name} must be from {least:g} to {most:g}, got {number!r}")
        if 2 * self.partial_interval_seconds > self.longest_window_seconds:
            raise EngineError(
                f"whisper partial_interval_seconds must be at most half of longest_window_seconds, "
                f"got {self.partial_interval_seconds!r} and {self.longest_window_seconds!r}"
            )
        if self.partial_interval_seconds > 1 and self.ahead_seconds < 2 * self.partial_interval_seconds:
            raise EngineError(  # a session feeds only so much that does not count as heard: no window would ever be full
                f"whisper ahead_seconds must be at least twice partial_interval_seconds where that is above 1, "
                f"got {self.ahead_seconds!r} and {self.partial_interval_seconds!r}"
            )
        check_delay(self.default_delay_seconds)
        check_language(self.language, LANGUAGES)

    @property
    def slot_count(self) -> int:
        """How many streams are heard at once."""
        return self.slots or SLOTS_PER_WORKER * self.workers
