"""Driver of Deepgram's live transcription, ``/v1/listen``, as its API reference describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from harness.drivers.base import (
    Appended,
    Done,
    Driver,
    Fault,
    Final,
    Frame,
    Listener,
    Request,
    Said,
    Tentative,
    decode,
)
from wire.errors import WireError
from wire.words import TimedWord

FINALIZE, CLOSE = '{"type":"Finalize"}', '{"type":"CloseStream"}'


class DeepgramDriver(Driver):
    """What is asked for travels in the URL, audio in binary frames. The service shows text early, and how early is not for the client.

    At the end of the audio the buffer is finalised, which gives the last text its own mark, and the stream closed.
    """

    name = "deepgram"
    path = "/v1/listen"
    title = "Deepgram's live transcription"
    home = "wss://api.deepgram.com"
    key_variable = "DEEPGRAM_API_KEY"
    default_model = "nova-3"
    settable_delay = False
    announces_ready = False
    describes_itself = False
    options: ClassVar[Mapping[str, str]] = {
        "interim_results": "true (default) or false: text before it is final",
        "language": "of the audio; the dataset's unless given, 'multi' for several",
        "endpointing": "milliseconds of silence that end a piece of speech, or false",
        "utterance_end_ms": "milliseconds without words after which an utterance ends",
        "vad_events": "true: tell when speech starts",
        "punctuate": "true: punctuation and capitals",
        "smart_format": "true: numbers, dates and the like as they are written",
        "numerals": "true: numbers as digits",
        "dictation": "true: spoken punctuation commands",
        "profanity_filter": "true: leave profanity out",
        "keyterm": "a term to listen for",
        "keywords": "a word to listen for, for older models",
        "replace": "FROM:TO",
        "redact": "what to leave out, e.g. pii",
        "language_hint": "a language to expect with language=multi",
        "version": "of the model",
        "tag": "a label for the usage report",
        "mip_opt_out": "true: keep the audio out of the improvement programme",
        "extra": "KEY:VALUE to be repeated in the answer",
    }

    def credentials(self, api_key: str) -> tuple[Mapping[str, str], Mapping[str, str]]:
        return {}, {"Authorization": f"Token {api_key}"}

    def query(self, request: Request) -> Mapping[str, str]:
        spoken = {} if request.language is None else {"language": request.language}
        return {
            "model": request.model or self.default_model,
            "encoding": "linear16",
            "sample_rate": str(self.sample_rate),
            "channels": "1",
            "interim_results": "true",
            **spoken,
            **request.options,
        }

    def audio(self, utterance: str, pcm: bytes) -> Frame:  # noqa: ARG002 - frames carry no ids
        return pcm

    def end(self, utterance: str) -> Sequence[Frame]:  # noqa: ARG002
        return [FINALIZE, CLOSE]

    def listen(self, request: Request) -> Listener:  # noqa: ARG002
        return _Stream().heard


class _Word(msgspec.Struct):
    word: str
    start: float
    end: float
    punctuated_word: str | None = None


class _Alternative(msgspec.Struct):
    transcript: str
    words: list[_Word] = []


class _Channel(msgspec.Struct):
    alternatives: list[_Alternative] = []


class _Results(msgspec.Struct):
    channel: _Channel
    is_final: bool | None = None
    from_finalize: bool | None = None


class _Metadata(msgspec.Struct):
    """The summary, the last frame before the service closes."""


class _Error(msgspec.Struct):
    description: str = "no reason given"
    variant: str | None = None
    code: str | None = None


_KINDS: Mapping[str, type[_Results | _Metadata | _Error]] = {
    "Results": _Results,
    "Metadata": _Metadata,
    "Error": _Error,
}


class _Stream:
    """An interim result replaces the one before it, a final one stands; the transcript is all final ones joined by blanks."""

    def __init__(self) -> None:
        self._text = ""
        self._words: list[TimedWord] = []
        self._tentative = ""
        self._told: str | None = None  # the transcript that was said to be the final one

    def heard(self, frame: Frame) -> Sequence[Said]:
        try:
            event = decode(frame, _KINDS)
        except WireError as error:
            return [Fault("unreadable_frame", error.message)]
        match event:
            case _Results(_Channel([best, *_]), is_final, from_finalize):
                said = self._finalised(best) if is_final else self._interim(best)
                return [*said, *(self._final() if from_finalize else ())]
            case _Metadata():
                return [*(self._final() if self._told != self._text else ()), Done()]
            case _Error(description, variant, code):
                return [Fault(variant or code or "error", description)]
            case _:
                return []

    def _interim(self, best: _Alternative) -> Sequence[Said]:
        return self._stands_behind(self._joint + best.transcript if best.transcript else "")

    def _finalised(self, best: _Alternative) -> Sequence[Said]:
        if not best.transcript:
            return self._stands_behind("")
        added = self._joint + best.transcript
        self._text += added
        self._tentative = ""
        self._words += [TimedWord(one.punctuated_word or one.word, one.start, one.end) for one in best.words]
        return [Appended(added)]

    def _stands_behind(self, text: str) -> Sequence[Said]:
        if text == self._tentative:
            return []
        self._tentative = text
        return [Tentative(text)]

    def _final(self) -> Sequence[Said]:
        self._told = self._text
        return [Final(self._text, tuple(self._words))]

    @property
    def _joint(self) -> str:
        return " " if self._text else ""
