"""Voxtral Mini 3B on vLLM: whole recordings transcribed, questions about them answered, all requests in one batch."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Sequence

from server.core.events import Usage
from server.engines.base import (
    Answer,
    ChatInfo,
    EngineError,
    Sampling,
    TooLongError,
    Transcription,
    UnsupportedError,
)
from server.engines.calls import STOPPED, Calls
from server.engines.recordings import check_question, check_samples, most_text_tokens, seconds_of, wav_of
from server.engines.vllm import internals, snapshot
from server.engines.vllm.internals import PIECE_SECONDS, PIECE_TOKENS, Prompt, Said, WholeFiles
from server.engines.vllm.settings import ChatSettings

__all__ = ["VllmChatEngine"]

log = logging.getLogger(__name__)

LANGUAGES = ("de", "en", "es", "fr", "hi", "it", "nl", "pt")
"""Those that the model's card names."""

MOST_AUDIOS = 5
"""vLLM lets a prompt of this model have no more."""

_LEAST_TEXT_PER_SECOND = 5
"""Tokens of the model that a second of audio must leave for its text: of 32768, half an hour does."""

_FRAMING_TOKENS = 32
"""What a transcription's prompt has beside its audio, at most."""

_LONGEST_TOKEN = 64
"""Characters. A question longer than this many times the model's length need not be tokenized to be too long."""


class VllmChatEngine:
    """See the module. ``settings.max_num_seqs`` requests are worked on at once, ``settings.waiting`` more may wait."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self._model = snapshot.model_name(settings.model_dir, settings.model_id)
        self._core: WholeFiles | None = None
        self._calls = Calls(settings.max_num_seqs + settings.waiting)

    @property
    def info(self) -> ChatInfo:
        return ChatInfo(
            name="vllm",
            model=self._model,
            languages=LANGUAGES,
            slots=self._settings.max_num_seqs,
            most_audios=MOST_AUDIOS,
            max_audio_seconds=longest_seconds(self._settings.max_model_len),
        )

    def metrics(self) -> dict[str, float]:
        core = self._core
        return {
            "requests": len(self._calls),
            "refused": self._calls.refused,
            "failed": float(core is not None and core.failed),
            "core_unfinished": core.unfinished if core else 0,
            "core_unread_tokens": core.unread_tokens if core else 0,
        }

    # ---- start and stop

    async def start(self) -> None:
        """Fetch the model if need be and load it. The loop stands still while vLLM loads: nobody is served yet.

        Raises:
            EngineError: with a sentence that tells the operator what to do.
        """
        settings = self._settings
        internals.check_installation(plugin=False)
        token = os.environ.get("HF_TOKEN")
        await asyncio.to_thread(snapshot.fetch, settings.model_dir, settings.model_id, token, "EARMARK_CHAT_MODEL_DIR")
        snapshot.check_whole_files(settings.model_dir)
        internals.prepare_environment(settings)
        internals.import_vllm()
        self._core = WholeFiles.start(settings)
        self._calls.open()
        try:
            await self.transcribe(bytes(3200))  # so that the first client does not wait for what is made on first use
        except EngineError as error:
            await self.stop()
            raise EngineError(f"vLLM cannot transcribe a tenth of a second of silence: {error}") from error
        log.info("%s is ready to answer, in %d tokens at most", self._model, self._core.max_model_len)

    async def stop(self) -> None:
        """End the engine process; calls under way fail."""
        core, self._core = self._core, None
        if core is None:
            return
        await self._calls.close()
        await core.stop()

    # ---- what it is asked

    async def transcribe(self, pcm: bytes, language: str | None = None, temperature: float = 0.0) -> Transcription:
        """See ``ChatEngine``."""
        seconds = seconds_of(pcm)
        sampling = Sampling(temperature, 1.0, most_text_tokens(pcm))
        language = _check_language(language)
        check_samples(pcm)
        if not pcm:
            return Transcription("", Usage(), language)

        def prompt(core: WholeFiles) -> Prompt:
            return core.transcription(wav_of(pcm), language)

        said, usage = await self._ask(prompt, [pcm], sampling, math.ceil(_LEAST_TEXT_PER_SECOND * seconds))
        return Transcription(said.text.strip(), usage, language, said.cut)

    async def answer(self, question: str, audios: Sequence[bytes], sampling: Sampling) -> Answer:
        """See ``ChatEngine``."""
        check_question(question, audios, MOST_AUDIOS)
        if len(question) > self._settings.max_model_len * _LONGEST_TOKEN:
            raise TooLongError(f"the question has {len(question)} characters, more than the model can take")

        def prompt(core: WholeFiles) -> Prompt:
            return core.question(question, [wav_of(pcm) for pcm in audios])

        said, usage = await self._ask(prompt, audios, sampling, sampling.max_tokens)
        return Answer(said.text.strip(), usage, said.cut)

    async def _ask(
        self, make: Callable[[WholeFiles], Prompt], audios: Sequence[bytes], sampling: Sampling, least_tokens: int
    ) -> tuple[Said, Usage]:
        """What is said to a prompt that leaves room for ``least_tokens`` of text."""
        core = self._core
        if core is None:
            raise EngineError(STOPPED)
        _check_room(core, sum(map(_tokens_of, audios)), audios, least_tokens)  # before anything is done with the audio

        async def said() -> tuple[Said, Usage]:
            prompt = await asyncio.to_thread(make, core)
            room = _check_room(core, len(prompt.tokens), audios, least_tokens)
            said = await core.say(prompt, sampling.temperature, sampling.top_p, min(sampling.max_tokens, room))
            return said, Usage(len(prompt.tokens), said.tokens)

        try:
            return await self._calls.run(said)
        except internals.CoreDiedError as error:
            raise EngineError(f"vLLM's engine process died: {error}") from error


def longest_seconds(max_model_len: int) -> float:
    """The longest recording whose transcription fits a model: its pieces of 30 s and the least room for its text."""
    room = max_model_len - _FRAMING_TOKENS
    most_pieces = room // PIECE_TOKENS
    return max(
        min(pieces * PIECE_SECONDS, (room - pieces * PIECE_TOKENS) // _LEAST_TEXT_PER_SECOND)
        for pieces in range(most_pieces + 1)
    )


def _tokens_of(pcm: bytes) -> int:
    return math.ceil(seconds_of(pcm) / PIECE_SECONDS) * PIECE_TOKENS


def _check_room(core: WholeFiles, tokens: int, audios: Sequence[bytes], least_tokens: int) -> int:
    """The tokens left for text behind a prompt of so many.

    Raises:
        TooLongError: they are too few.
    """
    room = core.max_model_len - tokens
    if room < least_tokens:
        seconds = sum(map(seconds_of, audios))
        raise TooLongError(
            f"{seconds:.1f} s of audio make a request of {tokens} tokens and need {least_tokens} for the text; "
            f"the model has {core.max_model_len} in all"
        )
    return room


def _check_language(language: str | None) -> str | None:
    """The language's two letters."""
    if language is None:
        return None
    short = language.lower().split("-")[0]
    if short not in LANGUAGES:
        raise UnsupportedError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")
    return short
