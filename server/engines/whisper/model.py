"""The model: found or fetched, loaded, and asked what is said in a window; every call blocks and belongs in a thread."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from server.engines.base import EngineError
from server.engines.recordings import most_text_tokens
from server.engines.whisper.languages import LANGUAGES
from server.engines.whisper.settings import DecodeProfile, Task, WhisperSettings
from wire.pcm import bytes_of
from wire.words import TimedWord

__all__ = ["Decoded", "Model", "Wanted", "check_task"]

MOST_NEW_TOKENS = 220
"""Whisper has room for 448 tokens, of which the text before the window may take half."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a window is to be decoded; ``language`` None: find out."""

    profile: DecodeProfile
    task: Task
    language: str | None


@dataclass(frozen=True, slots=True)
class Decoded:
    """Words with their own spacing, timed in seconds from the window's start; ``seconds`` is how long it took."""

    words: tuple[TimedWord, ...]
    language: str
    language_probability: float
    seconds: float


class Model:
    """A loaded model. Several threads may decode at the same time, as many as it has workers."""

    def __init__(self, model: Any, settings: WhisperSettings) -> None:
        self.languages: tuple[str, ...] = LANGUAGES if model.model.is_multilingual else ("en",)
        self.translates = bool(model.model.is_multilingual)
        self._model = model
        self._vad_filter = settings.vad_filter

    @classmethod
    def load(cls, settings: WhisperSettings) -> Model:
        """Find or fetch the model, load it, and decode once, so that the first stream does not wait for what is set up lazily.

        Raises:
            EngineError: it cannot be had; the sentence says what to do.
        """
        try:
            import ctranslate2
            import faster_whisper
        except ImportError as error:
            raise EngineError(f"whisper does not start: {error}; pip install 'earmark[whisper]'") from error
        logger = logging.getLogger("faster_whisper")
        logger.setLevel(max(logger.level, logging.WARNING))  # it tells of every window
        device = settings.device
        if device == "auto":
            device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
        compute_type = settings.compute_type
        if compute_type == "auto":
            compute_type = "float16" if device == "cuda" else "int8"
        path = _fetched(settings)
        try:
            loaded = faster_whisper.WhisperModel(
                str(path),
                device=device,
                compute_type=compute_type,
                cpu_threads=settings.cpu_threads,
                num_workers=settings.workers,
                local_files_only=True,
            )
            model = cls(loaded, settings)
            check_task(settings.task, translates=model.translates)
            profile = DecodeProfile()
            model.decode(bytes(bytes_of(1.0)), "", Wanted(profile, settings.task, "en"))
        except (OSError, RuntimeError, ValueError) as error:
            raise EngineError(
                f"whisper does not start: the model in {path} cannot be used on {device} as {compute_type}: {error}; "
                "it has to be one converted for CTranslate2 (ct2-transformers-converter), "
                "--whisper-compute-type and --whisper-device have to fit this machine"
            ) from error
        return model

    def decode(self, pcm: bytes, prompt: str, wanted: Wanted) -> Decoded:
        """What is said in PCM16 of at most 30 s, which ``prompt`` came before.

        Raises:
            RuntimeError: the decoder failed, for lack of memory for one.
        """
        began = time.perf_counter()
        samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
        profile = wanted.profile
        segments, info = self._model.transcribe(
            samples,
            language=wanted.language,
            task=wanted.task,
            beam_size=profile.beam_size,
            best_of=profile.best_of,
            patience=profile.patience,
            temperature=profile.temperature,
            length_penalty=profile.length_penalty,
            compression_ratio_threshold=profile.compression_ratio_threshold,
            no_speech_threshold=profile.no_speech_threshold,
            log_prob_threshold=profile.log_prob_threshold,
            condition_on_previous_text=False,
            initial_prompt=prompt or None,
            without_timestamps=True,
            word_timestamps=True,
            vad_filter=self._vad_filter,
            max_new_tokens=min(MOST_NEW_TOKENS, most_text_tokens(pcm)),
        )
        # Without timestamp tokens the first segment is all of the window. The library would go on behind its last word,
        # with another pass of the encoder over silence.
        first = next(segments, None)
        segments.close()
        words = () if first is None or first.words is None else tuple(_word(word) for word in first.words)
        seconds = time.perf_counter() - began
        return Decoded(words, str(info.language), float(info.language_probability), seconds)


def check_task(task: str, *, translates: bool) -> Task:
    """The task, if the model can do it.

    Raises:
        EngineError: it cannot, or nobody can.
    """
    match task:
        case "transcribe":
            return "transcribe"
        case "translate":
            if translates:
                return "translate"
            raise EngineError(
                "this Whisper model hears English only and cannot translate; load one whose name does not end in .en"
            )
        case _:
            raise EngineError(f"task must be one of transcribe, translate, got {task!r}")


def _word(word: Any) -> TimedWord:
    start, end = float(word.start), float(word.end)
    return TimedWord(word.word, start if math.isfinite(start) else 0.0, end if math.isfinite(end) else 0.0)


def _fetched(settings: WhisperSettings) -> Path:
    """The folder of the model, fetched if need be.

    Raises:
        EngineError: it is not there and cannot be fetched.
    """
    name = settings.model.strip()
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model.bin").is_file():
            raise EngineError(
                f"whisper does not start: there is no model.bin in {folder}; EARMARK_WHISPER_MODEL (--whisper-model) has to name "
                "the folder of a model converted for CTranslate2"
            )
        return folder
    import faster_whisper

    sizes = faster_whisper.available_models()
    if name not in sizes and (name.count("/") != 1 or folder.is_absolute() or name.startswith(".")):
        raise EngineError(
            f"whisper does not start: EARMARK_WHISPER_MODEL (--whisper-model) is {name!r}, which is neither a folder here nor "
            f"one of {', '.join(sizes)}, nor a repository of the hub (owner/name)"
        )
    try:
        return Path(
            faster_whisper.download_model(
                name, cache_dir=settings.model_dir or None, local_files_only=not settings.download
            )
        )
    except (OSError, ValueError, RuntimeError) as error:  # whatever the hub's client makes of a missing network
        raise EngineError(
            f"whisper does not start: the model {name!r} is not on this machine and "
            f"{'could not be fetched' if settings.download else 'fetching is switched off'} ({str(error).partition(chr(10))[0]}); "
            f'where there is a network, run: python -c "from faster_whisper import download_model; '
            f"download_model('{name}', 'models/whisper')\", bring the folder models/whisper here and start with "
            "--whisper-model models/whisper (EARMARK_WHISPER_MODEL)"
        ) from error
