"""What is done for the REST surface's requests: files decoded, heard or asked about, in time and within the engine's slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pybase64
import structlog

from server.core.events import StreamOptions
from server.core.session import SessionSettings
from server.engines.base import (
    Answer,
    EngineError,
    OverloadedError,
    Sampling,
    TooLongError,
    UnsupportedError,
)
from server.engines.registry import Model
from server.hearing import RecordingError, hear_recording
from server.protocols.base import public_message
from server.protocols.rest import bad_audio, not_base64, not_heard, plain, timed_out, unavailable
from server.recordings import DecodingError, Recording, RecordingLimits, decode
from server.service import Service

SURFACE = "rest"

_log = structlog.get_logger("earmark.rest")


@dataclass(frozen=True, slots=True)
class Bounds:
    """``None`` is no bound. ``question_seconds`` is how long a recording to ask about may be."""

    transcription: RecordingLimits
    question_seconds: float | None
    processing_seconds: float | None


@dataclass(frozen=True, slots=True)
class Wish:
    """How a recording is to be heard, and for whom."""

    language: str | None
    temperature: float
    client: str


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said in a recording of ``seconds``; ``language`` is None when it is not known."""

    text: str
    seconds: float
    language: str | None


class Work:
    """See the module. As many recordings are heard at once as the default engine has slots; the others wait their turn."""

    def __init__(self, service: Service, policy: SessionSettings, bounds: Bounds) -> None:
        self._service = service
        self._policy = policy
        self.bounds = bounds
        self._slots: tuple[Model, asyncio.Semaphore] | None = None

    async def transcribe(self, encoded: str, place: Sequence[str | int], wish: Wish) -> Transcript:
        """The text of one file in base64, which stands at ``place`` in the body.

        Raises:
            Refusal: there is none.
        """
        async with self._in_time(), self._turn():
            return await self._heard(encoded, place, wish)

    async def transcribe_in_turn(self, encoded: str, place: Sequence[str | int], wish: Wish) -> Transcript:
        """The same, but its time begins with its turn: one of several files.

        Raises:
            Refusal: there is none.
        """
        async with self._turn(), self._in_time():
            return await self._heard(encoded, place, wish)

    async def _heard(self, encoded: str, place: Sequence[str | int], wish: Wish) -> Transcript:
        return await self.hear(await self._recording(encoded, place, self.bounds.transcription), wish)

    async def transcribe_pcm(self, recording: Recording, wish: Wish) -> Transcript:
        """The text of what is decoded already.

        Raises:
            Refusal: there is none.
        """
        async with self._in_time(), self._turn():
            return await self.hear(recording, wish)

    async def hear(self, recording: Recording, wish: Wish) -> Transcript:
        """The text of a recording, at once."""
        service = self._service
        if service.models.default.engine.metrics().get("failed"):
            raise unavailable("the model has failed")
        known = wish.language if wish.language in service.models.default.engine.info.languages else None
        options = StreamOptions(language=known, temperature=wish.temperature)
        try:
            final = await hear_recording(
                recording.pcm, options, SURFACE, self._policy, service.resources, client=wish.client
            )
        except RecordingError as error:
            raise not_heard(error.code, public_message(error.message)) from error
        return Transcript(final.text.strip(), recording.seconds, known)

    async def answer(self, encoded: Sequence[str], question: str, sampling: Sampling) -> Answer:
        """What is said to a question about files.

        Raises:
            Refusal: nothing.
        """
        chat = self._service.chat
        if chat is None:
            raise unavailable("this server has no model that answers questions (--chat-engine)", None)
        limits = replace(self.bounds.transcription, most_seconds=self.bounds.question_seconds)
        async with self._in_time():
            recordings = []
            for number, file in enumerate(encoded):
                recordings.append(await self._recording(file, ("audio_files", number, "data"), limits))
            try:
                return await chat.answer(question, [recording.pcm for recording in recordings], sampling)
            except OverloadedError as error:
                raise unavailable(public_message(str(error))) from error
            except TooLongError as error:
                raise bad_audio(str(error)) from error
            except UnsupportedError as error:
                raise plain(400, str(error)) from error
            except EngineError as error:
                raise unavailable(public_message(str(error))) from error

    async def _recording(self, encoded: str, place: Sequence[str | int], limits: RecordingLimits) -> Recording:
        if limits.most_bytes is not None and len(encoded) // 4 * 3 > limits.most_bytes + 2:
            raise bad_audio(f"the file has more than {limits.most_bytes} bytes; send it in parts")
        try:
            data = await asyncio.to_thread(pybase64.b64decode, encoded, validate=True)
        except ValueError:
            raise not_base64(*place) from None
        return await decoded(data, limits)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        seconds = self.bounds.processing_seconds
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
        except TimeoutError:
            if limit.expired():
                raise timed_out(seconds or 0) from None
            raise

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        model = self._service.models.default
        if (
            self._slots is None or self._slots[0] is not model
        ):  # remote engines know how many only once they are started
            self._slots = model, asyncio.Semaphore(max(1, model.engine.info.slots))
        async with self._slots[1]:
            yield


async def decoded(data: bytes, limits: RecordingLimits) -> Recording:
    """The file's audio.

    Raises:
        Refusal: it is not taken.
    """
    try:
        recording = await decode(data, limits)
    except DecodingError as error:
        raise bad_audio(error.message) from error
    if recording.damaged_packets:
        _log.warning("file damaged", surface=SURFACE, format=recording.format, packets=recording.damaged_packets)
    return recording
