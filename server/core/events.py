"""The vocabulary of a session: what goes in (commands, what the engine heard) and what comes out (events, effects).

All times are seconds. ``now`` never appears here: it is an argument of whoever handles these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from server.core.voice import EndpointerSettings
from wire.words import TimedWord

__all__ = [
    "AbortSegment",
    "Audio",
    "Cancel",
    "Cancelled",
    "CloseSegment",
    "Command",
    "Dropped",
    "Effect",
    "EngineEvent",
    "EngineFailed",
    "Event",
    "Failed",
    "Feed",
    "Final",
    "Finish",
    "Heard",
    "Mute",
    "OpenSegment",
    "Output",
    "SegmentDone",
    "Speech",
    "Start",
    "Started",
    "StreamOptions",
    "Tentative",
    "TimedWord",
    "Token",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """What one utterance asks of the engine.

    ``delay_seconds`` is the transcription delay; ``None`` takes the server's. With ``endpointing`` the server ends
    the utterance after speech followed by silence, and the next one begins with the audio after it; ``endpointer`` says
    what counts as either, ``None`` takes the surface's. ``model`` names one of the loaded models, ``None`` the default one.
    ``language`` is an ISO 639 code, ``None`` detects. ``task`` is ``transcribe`` or ``translate`` (into English), ``profile`` the name of
    a set of decoding options; engines that have no such thing take no notice of profile and temperature, and refuse a task they cannot do.
    """

    delay_seconds: float | None = None
    endpointing: bool = False
    language: str | None = None
    model: str | None = None
    endpointer: EndpointerSettings | None = None
    task: str = "transcribe"
    profile: str | None = None
    temperature: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the engine counts them; an engine without tokens counts 80 ms steps heard and words said."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)


# ---- commands: what the client wants ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Begin an utterance. While another one is under way this waits for its end; to cut it short send Cancel first."""

    utterance: str
    options: StreamOptions = StreamOptions()


@dataclass(frozen=True, slots=True)
class Audio:
    """The next PCM16 of the utterance started last."""

    pcm: bytes


@dataclass(frozen=True, slots=True)
class Finish:
    """No more audio comes for the utterance started last."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """Forget everything under way or waiting, whose text nobody wants any more."""

    reason: str


Command = Start | Audio | Finish | Cancel


# ---- what the engine says about a segment ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Heard:
    """Progress in one segment.

    ``committed`` is *new* text that will never change (append it, with its own spacing); ``tentative`` is the whole
    text behind the committed part as the engine sees it now, and may be replaced by the next one. ``words`` are the
    newly committed words, timed from the segment's first sample. ``audio_seconds`` is how much of the segment's
    audio has been consumed so far; an engine says so at least twice per second of audio, with or without text. An engine that
    can only say that it has handed its audio on tells in ``transcribed_seconds`` how far the text may reach; None: as far.
    """

    segment: int
    audio_seconds: float
    committed: str = ""
    tentative: str = ""
    words: tuple[TimedWord, ...] = ()
    transcribed_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SegmentDone:
    """All audio of a closed segment is transcribed; the last text came in a Heard before this."""

    segment: int
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The segment is lost. ``code`` is one of ``processing_error``, ``invalid_audio``, ``overloaded``."""

    segment: int
    code: str
    message: str


EngineEvent = Heard | SegmentDone | EngineFailed


# ---- events: what the client is told ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    """The utterance is under way, with the transcription delay that is in force for it."""

    utterance: str
    delay_seconds: float


@dataclass(frozen=True, slots=True)
class Token:
    """Text to append to what was shown. Never empty, never taken back."""

    utterance: str
    text: str
    words: tuple[TimedWord, ...] = ()


@dataclass(frozen=True, slots=True)
class Speech:
    """With endpointing: speech has begun, or ended, ``at_seconds`` into the utterance's audio. It is told once it is certain, a little
    later than that; an end is followed by the utterance's Final.
    """

    utterance: str
    speaking: bool
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Tentative:
    """Text that may stand behind what was shown, until the next Tentative or Token replaces it."""

    utterance: str
    text: str


@dataclass(frozen=True, slots=True)
class Final:
    """The end of the utterance. ``text`` equals the concatenation of its Tokens."""

    utterance: str
    text: str
    words: tuple[TimedWord, ...]
    usage: Usage
    delay_seconds: float
    audio_seconds: float
    ended_by: str  # "client", or "silence" when the server's endpointing ended it


@dataclass(frozen=True, slots=True)
class Dropped:
    """Audio that waited too long was thrown away, oldest first."""

    utterance: str
    seconds: float
    limit_seconds: float


@dataclass(frozen=True, slots=True)
class Mute:
    """The audio has speech and no text has come of it for so many seconds of audio; the engine is made to start afresh."""

    utterance: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Everything that was under way is gone. ``utterances`` names it, oldest first; empty when nothing was."""

    utterances: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The utterance ended without a Final."""

    utterance: str
    code: str
    message: str


Event = Started | Speech | Token | Tentative | Final | Dropped | Mute | Cancelled | Failed


# ---- effects: what the engine is to do -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """Begin an engine stream. ``offset_seconds`` is where its first sample lies in the utterance."""

    segment: int
    options: StreamOptions
    offset_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Feed:
    """Hand the next audio of the segment to the engine."""

    segment: int
    pcm: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class CloseSegment:
    """No more audio comes for the segment: transcribe the rest, then say SegmentDone."""

    segment: int


@dataclass(frozen=True, slots=True)
class AbortSegment:
    """Forget the segment; nothing more is heard of it."""

    segment: int


Effect = OpenSegment | Feed | CloseSegment | AbortSegment
Output = Event | Effect
