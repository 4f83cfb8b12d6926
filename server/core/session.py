"""The state machine of one connection's utterances: commands and what the engine heard go in, events and effects come out.

One utterance is under way at a time; commands for later ones wait their turn. Its audio goes to the engine in segments:
long utterances are *rolled* (the segment is closed, the next one begins with the newest audio heard again), an utterance
whose client falls silent on the wire is *parked* (the segment is closed, so that it holds no engine slot). Both happen without
anybody noticing: the transcript is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from server.core.events import (
    AbortSegment,
    Audio,
    Cancel,
    Cancelled,
    CloseSegment,
    Command,
    Dropped,
    EngineEvent,
    EngineFailed,
    Failed,
    Feed,
    Final,
    Finish,
    Heard,
    Mute,
    OpenSegment,
    Output,
    SegmentDone,
    Speech,
    Start,
    Started,
    StreamOptions,
    Tentative,
    Token,
    Usage,
)
from server.core.muteness import MuteSettings, MuteWatch
from server.core.transcript import Segment, Shown, Transcript
from server.core.voice import Endpointer, EndpointerSettings, SpeechEnded, SpeechStarted, VoiceDetector
from wire.pcm import bytes_of, seconds_of

CUT_SILENCE_SECONDS = 0.3
"""A roll is taken early at the first silence of this length."""

PIECE_BYTES = bytes_of(1.0)

LAST_SECONDS = 5.0
"""So much of a finished utterance may still go into a segment that is full; engines leave that margin."""


MOST_WAITING = 250_000
"""So many commands and pieces of audio may wait, however small: an hour and more of 20 ms packets."""


class SessionError(Exception):
    """The command makes sense, but not now. Nothing has changed. ``reason`` is a short code."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """The policies of a surface and the bounds of its engine, in seconds.

    ``segment_seconds`` None: segments never roll. ``max_backlog_seconds`` None: audio is never dropped. Audio is dropped, oldest first,
    when more than ``max_backlog_seconds`` of it is waiting *and* the oldest has waited that long: a burst that the engine works off in that
    time loses nothing. ``max_queued_seconds`` bounds what may wait at all; at the bound ``accepts_audio`` turns false and the shell
    stops reading. ``lookahead_seconds`` is how much may be fed to the engine and not yet heard.
    """

    default_delay_seconds: float
    timed_words: bool
    segment_seconds: float | None = 60.0
    overlap_seconds: float = 0.8
    seam_search_seconds: float = 10.0
    max_backlog_seconds: float | None = None
    max_queued_seconds: float = 3600.0
    lookahead_seconds: float = 2.0
    park_seconds: float = 30.0
    finish_seconds: float = 120.0
    endpointing: EndpointerSettings = EndpointerSettings()
    mute: MuteSettings | None = MuteSettings()


@dataclass(slots=True)
class _Utterance:
    id: str
    options: StreamOptions
    settings: SessionSettings
    transcript: Transcript
    pending: deque[tuple[bytes, float]] = field(default_factory=deque)  # audio not fed yet, with its time of arrival
    pending_bytes: int = 0
    position_bytes: int = 0  # where the next fed byte lies in the utterance's audio, dropped audio included
    silence_seconds: float = 0.0  # length of the silence that the fed audio ends with, where it was listened to
    segments: deque[Segment] = field(default_factory=deque)  # unfinished, in order
    open: Segment | None = None  # the one being fed, also in segments
    recent: bytearray = field(default_factory=bytearray)  # the newest fed audio, for the overlap
    replay: bytes = b""  # audio that the next segment hears again
    finishing: bool = False
    ended_by: str = "client"
    received_at: float = 0.0
    usage: Usage = Usage()
    tentative: str = ""
    detector: VoiceDetector | None = None
    listened_bytes: int = 0  # so much audio the detector was given
    endpointer: Endpointer | None = None
    watch: MuteWatch | None = None
    mute: bool = False  # the open segment is to be replaced by a fresh one


class Session:
    """See the module. Call ``handle`` with everything that happens, and ``expire`` when ``deadline`` has come."""

    def __init__(
        self,
        settings: SessionSettings,
        voice: Callable[[], VoiceDetector] | None = None,
        first_segment: int = 0,
        for_model: Callable[[str], SessionSettings] | None = None,
    ) -> None:
        """``for_model`` gives the settings of utterances that name a model; without it all have the same."""
        self._settings = settings
        self._voice = voice
        self._for_model = for_model
        self._utterance: _Utterance | None = None
        self._waiting: deque[Command] = deque()
        self._waiting_bytes = 0
        self._next_segment = first_segment

    # ---- what the shell asks

    @property
    def busy(self) -> bool:
        """Whether any utterance is under way or waiting."""
        return self._utterance is not None

    @property
    def queued_seconds(self) -> float:
        """Audio received and not yet fed to the engine."""
        pending = self._utterance.pending_bytes if self._utterance else 0
        return seconds_of(pending + self._waiting_bytes)

    @property
    def unheard_seconds(self) -> float:
        """Audio received of the utterance under way and not yet heard by the engine."""
        utterance = self._utterance
        return seconds_of(utterance.pending_bytes) + _unheard(utterance) if utterance else 0.0

    @property
    def accepts_audio(self) -> bool:
        """False while as much waits as may wait; the policy is to stop reading until it turns true."""
        pieces = len(self._waiting) + (len(self._utterance.pending) if self._utterance else 0)
        return self.queued_seconds < self._settings.max_queued_seconds and pieces < MOST_WAITING

    def deadline(self) -> float | None:
        """When ``expire`` has to be called next, on the clock of ``now``."""
        utterance = self._utterance
        if utterance is None:
            return None
        settings = utterance.settings
        candidates = [
            segment.closed_at + settings.finish_seconds
            for segment in utterance.segments
            if segment.closed_at is not None
        ]
        if settings.max_backlog_seconds is not None and self._over_backlog(utterance):
            candidates.append(utterance.pending[0][1] + settings.max_backlog_seconds)
        if utterance.open is not None and not utterance.pending:
            candidates.append(utterance.received_at + settings.park_seconds)
        return min(candidates, default=None)

    # ---- what happens

    def handle(self, happening: Command | EngineEvent, now: float) -> list[Output]:
        """Take in a command or an engine event.

        Raises:
            SessionError: ``no_active_utterance`` for Audio or Finish when none was started or its audio has ended;
                ``no_endpointing`` for a Start that asks for what this server lacks.
        """
        out: list[Output] = []
        match happening:
            case Audio(pcm):
                self._audio(pcm, now, out)
            case Heard():
                self._heard(happening, now, out)
            case SegmentDone(number, usage):
                self._segment_done(number, usage, now, out)
            case Start(_, options):
                if options.endpointing and self._voice is None:
                    raise SessionError("no_endpointing", "this server has no voice activity detection")
                if self._utterance is None:
                    self._start(happening, now, out)
                else:
                    self._waiting.append(happening)
            case Finish():
                self._finish(now, out)
            case Cancel(reason):
                self._cancel(reason, out)
            case EngineFailed(number, code, message):
                if self._find(number) is not None:
                    self._fail(code, message, now, out, lost_segment=number)
        return out

    def expire(self, now: float) -> list[Output]:
        """Do what is due at ``now``: drop late audio, park an idle utterance, give up on a stuck segment."""
        out: list[Output] = []
        utterance = self._utterance
        if utterance is None:
            return out
        settings = utterance.settings
        if any(_due(segment.closed_at, settings.finish_seconds, now) for segment in utterance.segments):
            message = f"the engine did not finish a segment within {settings.finish_seconds:g} s"
            self._fail("processing_error", message, now, out)
            return out
        self._drop_late(utterance, now, out)
        if utterance.open and not utterance.pending and _due(utterance.received_at, settings.park_seconds, now):
            self._close_segment(utterance, now, out, replay_seconds=settings.overlap_seconds)
        return out

    # ---- commands

    def _start(self, start: Start, now: float, out: list[Output]) -> None:
        options, settings = start.options, self._settings
        if options.model is not None and self._for_model is not None:
            settings = self._for_model(options.model)
        if options.endpointer is not None:
            settings = replace(settings, endpointing=options.endpointer)
        utterance = _Utterance(
            start.utterance, options, settings, Transcript(timed=settings.timed_words), received_at=now
        )
        if options.endpointing:
            utterance.endpointer = Endpointer(settings.endpointing)
        if self._voice is not None and settings.mute is not None:
            utterance.watch = MuteWatch(settings.mute)
        self._utterance = utterance
        out.append(Started(start.utterance, _delay(utterance)))

    def _audio(self, pcm: bytes, now: float, out: list[Output]) -> None:
        if self._waiting:
            if isinstance(self._waiting[-1], Finish):
                raise SessionError("no_active_utterance", "the utterance's audio has ended; start the next one first")
            self._waiting.append(Audio(pcm))
            self._waiting_bytes += len(pcm)
            return
        self._take_audio(self._started(), pcm, now, out)

    def _finish(self, now: float, out: list[Output]) -> None:
        if self._waiting:
            if isinstance(self._waiting[-1], Finish):
                raise SessionError("no_active_utterance", "the utterance's audio has ended already")
            self._waiting.append(Finish())
            return
        self._take_finish(self._started(), now, out)

    def _started(self) -> _Utterance:
        if self._utterance is None or self._utterance.finishing:
            raise SessionError("no_active_utterance", "no utterance has been started")
        return self._utterance

    def _take_audio(self, utterance: _Utterance, pcm: bytes, now: float, out: list[Output]) -> None:
        utterance.received_at = now
        utterance.pending.extend((piece, now) for piece in _pieces(pcm))
        utterance.pending_bytes += len(pcm)
        self._pump(utterance, now, out)
        self._drop_late(utterance, now, out)

    def _take_finish(self, utterance: _Utterance, now: float, out: list[Output]) -> None:
        utterance.finishing = True
        self._pump(utterance, now, out)

    def _cancel(self, reason: str, out: list[Output]) -> None:
        ids = [] if self._utterance is None else [self._utterance.id]
        ids += [command.utterance for command in self._waiting if isinstance(command, Start)]
        if self._utterance is not None:
            out.extend(AbortSegment(segment.number) for segment in self._utterance.segments)
        self._utterance = None
        self._waiting.clear()
        self._waiting_bytes = 0
        out.append(Cancelled(tuple(dict.fromkeys(ids)), reason))

    def _next(self, now: float, out: list[Output]) -> None:
        """The utterance is over: let the commands that waited for that have their turn."""
        while self._waiting:
            if self._utterance is not None and isinstance(self._waiting[0], Start):
                return  # the one just started has to end first
            match self._waiting.popleft():
                case Start() as start:
                    self._start(start, now, out)
                case Audio(pcm):
                    self._waiting_bytes -= len(pcm)
                    if self._utterance is not None:  # it may have failed in between
                        self._take_audio(self._utterance, pcm, now, out)
                case Finish():
                    if self._utterance is not None:
                        self._take_finish(self._utterance, now, out)

    # ---- feeding

    def _pump(self, utterance: _Utterance, now: float, out: list[Output]) -> None:
        """Feed what may be fed, rolling where needed, and close the last segment once everything is fed."""
        settings = utterance.settings
        while utterance.pending:
            room = bytes_of(settings.lookahead_seconds - _unheard(utterance))
            if room <= 0:
                return
            if utterance.open is not None:
                replay_seconds = self._roll_now(utterance, utterance.open)
                if replay_seconds is not None:
                    self._close_segment(utterance, now, out, replay_seconds=replay_seconds)
            segment = utterance.open or self._open_segment(utterance, out)
            speech_ended = self._feed(utterance, segment, min(room, self._bytes_left(utterance, segment)), out)
            if speech_ended:
                self._end_at_silence(utterance)
        if utterance.finishing:
            if utterance.open is not None:
                self._close_segment(utterance, now, out, replay_seconds=0.0)
            self._end_if_done(utterance, now, out)

    def _feed(self, utterance: _Utterance, segment: Segment, at_most: int, out: list[Output]) -> bool:
        """Feed the next audio; True when the endpointer hears speech end in it."""
        pcm, arrived_at = utterance.pending.popleft()
        if len(pcm) > at_most:
            utterance.pending.appendleft((pcm[at_most:], arrived_at))
            pcm = pcm[:at_most]
        speech_seconds, end_bytes = self._listen(utterance, segment, pcm, out)
        if end_bytes is not None and end_bytes < len(pcm):
            utterance.pending.appendleft((pcm[end_bytes:], arrived_at))
            pcm = pcm[:end_bytes]
        utterance.pending_bytes -= len(pcm)
        utterance.position_bytes += len(pcm)
        segment.fed_bytes += len(pcm)
        utterance.recent += pcm
        keep = bytes_of(utterance.settings.overlap_seconds)
        if len(utterance.recent) > 4 * keep:  # now and then: cutting a little off each time would copy it all
            del utterance.recent[: len(utterance.recent) - keep]
        out.append(Feed(segment.number, pcm))
        if utterance.watch is not None and utterance.watch.audio(seconds_of(len(pcm)), speech_seconds):
            out.append(Mute(utterance.id, utterance.watch.seconds_without_text))
            utterance.watch.text()  # a fresh segment gets as much time
            utterance.mute = True
        return end_bytes is not None

    def _listen(
        self, utterance: _Utterance, segment: Segment, pcm: bytes, out: list[Output]
    ) -> tuple[float | None, int | None]:
        """Look for speech where somebody wants to know: for endpointing, near the end of a segment for the cut, and in streams without
        text. How many seconds of speech there were (None: nobody looked), and where in ``pcm`` the endpointer knew that speech had
        ended: an utterance ends at that very frame, whatever pieces its audio came in.
        """
        if self._voice is None:
            return None, None
        limit, settings = _limit_bytes(utterance), utterance.settings
        near_end = limit is not None and segment.fed_bytes > limit - bytes_of(settings.seam_search_seconds)
        suspicious = utterance.watch is not None and utterance.watch.listening
        if utterance.endpointer is None and not near_end and not suspicious:
            return None, None
        if utterance.detector is None:
            utterance.detector = self._voice()
        frame_seconds = utterance.detector.frame_seconds
        listened_bytes = utterance.listened_bytes
        utterance.listened_bytes += len(pcm)
        speech_seconds = 0.0
        for probability in utterance.detector.feed(pcm):
            silent = probability < settings.endpointing.release
            utterance.silence_seconds = utterance.silence_seconds + frame_seconds if silent else 0.0
            speech_seconds += frame_seconds * (probability >= settings.endpointing.threshold)
            if utterance.endpointer is None:
                continue
            match utterance.endpointer.feed(probability, frame_seconds):
                case SpeechStarted(at_seconds):
                    out.append(Speech(utterance.id, speaking=True, at_seconds=at_seconds))
                case SpeechEnded(at_seconds):
                    out.append(Speech(utterance.id, speaking=False, at_seconds=at_seconds))
                    end_bytes = bytes_of(utterance.endpointer.heard_seconds) - listened_bytes
                    return speech_seconds if suspicious else None, end_bytes
        return speech_seconds if suspicious else None, None

    def _bytes_left(self, utterance: _Utterance, segment: Segment) -> int:
        """What the segment may still take. The last few seconds of a finished utterance need no segment of their own."""
        limit = _limit_bytes(utterance)
        if limit is None or (utterance.finishing and utterance.pending_bytes <= bytes_of(LAST_SECONDS)):
            return utterance.pending_bytes
        return limit - segment.fed_bytes

    def _roll_now(self, utterance: _Utterance, segment: Segment) -> float | None:
        """How much to replay if the segment has to end here; None while it has not. There is audio to go on with."""
        limit, settings = _limit_bytes(utterance), utterance.settings
        if utterance.mute:
            return settings.overlap_seconds
        if limit is None:
            return None
        if self._bytes_left(utterance, segment) <= 0:
            return settings.overlap_seconds
        searching = segment.fed_bytes > max(limit - bytes_of(settings.seam_search_seconds), limit // 2)
        if searching and utterance.silence_seconds >= CUT_SILENCE_SECONDS:
            # Timed words can be heard twice safely, also those that the detector took for silence; text alone cannot.
            return (
                settings.overlap_seconds
                if settings.timed_words
                else min(settings.overlap_seconds, utterance.silence_seconds)
            )
        return None

    def _open_segment(self, utterance: _Utterance, out: list[Output]) -> Segment:
        replay = utterance.replay
        offset = seconds_of(utterance.position_bytes - len(replay))
        segment = Segment(self._next_segment, offset, overlap_seconds=seconds_of(len(replay)))
        self._next_segment += 1
        utterance.segments.append(segment)
        utterance.open, utterance.replay, utterance.mute = segment, b"", False
        out.append(OpenSegment(segment.number, utterance.options, offset))
        if replay:
            segment.fed_bytes = len(replay)
            out.append(Feed(segment.number, replay))
        return segment

    def _close_segment(self, utterance: _Utterance, now: float, out: list[Output], *, replay_seconds: float) -> None:
        segment = utterance.open
        assert segment is not None
        utterance.open = None
        segment.closed_at = now
        keep = min(bytes_of(replay_seconds), len(utterance.recent), segment.fed_bytes)
        utterance.replay = bytes(utterance.recent[len(utterance.recent) - keep :])
        if utterance.pending:  # rolled: the next segment follows at once and answers for half the overlap
            segment.rolled_end_seconds = seconds_of(utterance.position_bytes)
            segment.rolled_overlap_seconds = seconds_of(keep)
        utterance.silence_seconds = 0.0
        out.append(CloseSegment(segment.number))

    def _end_at_silence(self, utterance: _Utterance) -> None:
        """The speaker has ended the utterance; what follows is the next one, under the same name and options."""
        following: list[Command] = [Start(utterance.id, utterance.options)]
        following += [Audio(pcm) for pcm, _ in utterance.pending]
        if utterance.finishing:
            following.append(Finish())
        self._waiting.extendleft(reversed(following))
        self._waiting_bytes += utterance.pending_bytes
        utterance.pending.clear()
        utterance.pending_bytes = 0
        utterance.finishing = True
        utterance.ended_by = "silence"

    # ---- dropping

    def _over_backlog(self, utterance: _Utterance) -> bool:
        limit = utterance.settings.max_backlog_seconds
        return limit is not None and utterance.pending_bytes > bytes_of(limit)

    def _drop_late(self, utterance: _Utterance, now: float, out: list[Output]) -> None:
        limit = utterance.settings.max_backlog_seconds
        if limit is None or not self._over_backlog(utterance) or not _due(utterance.pending[0][1], limit, now):
            return
        excess = utterance.pending_bytes - bytes_of(limit)
        dropped = 0
        while dropped < excess:
            pcm, arrived_at = utterance.pending.popleft()
            if len(pcm) > excess - dropped:
                utterance.pending.appendleft((pcm[excess - dropped :], arrived_at))
                dropped = excess
            else:
                dropped += len(pcm)
        utterance.pending_bytes -= dropped
        utterance.position_bytes += dropped
        utterance.recent.clear()  # a replay must be contiguous
        utterance.replay = b""
        if utterance.open is not None:
            utterance.open.gaps.append((seconds_of(utterance.open.fed_bytes), seconds_of(dropped)))
        out.append(Dropped(utterance.id, seconds_of(dropped), limit))

    # ---- hearing

    def _find(self, number: int) -> tuple[_Utterance, Segment] | None:
        utterance = self._utterance
        if utterance is not None:
            for segment in utterance.segments:
                if segment.number == number:
                    return utterance, segment
        return None  # of an utterance that was cancelled or failed: nobody wants to know

    def _heard(self, heard: Heard, now: float, out: list[Output]) -> None:
        found = self._find(heard.segment)
        if found is None:
            return
        utterance, segment = found
        segment.heard_seconds = max(segment.heard_seconds, heard.audio_seconds)
        if segment is utterance.segments[0]:
            self._show(utterance, utterance.transcript.hear(segment, heard), out)
        else:
            segment.held.append(heard)
        if utterance.pending:
            self._pump(utterance, now, out)

    def _segment_done(self, number: int, usage: Usage, now: float, out: list[Output]) -> None:
        found = self._find(number)
        if found is None:
            return
        utterance, segment = found
        segment.done = True
        utterance.usage = utterance.usage + usage
        if utterance.open is segment:
            utterance.open = None  # the engine ended it by itself; what follows gets a segment of its own
        while utterance.segments and utterance.segments[0].done:
            finished = utterance.segments.popleft()
            self._show(utterance, utterance.transcript.finish(finished), out)
            if utterance.segments:
                current = utterance.segments[0]
                for held in current.held:
                    self._show(utterance, utterance.transcript.hear(current, held), out)
                current.held.clear()
        self._pump(utterance, now, out)

    def _show(self, utterance: _Utterance, shown: Shown, out: list[Output]) -> None:
        if utterance.watch is not None and (shown.text or shown.tentative):
            utterance.watch.text()
        if shown.text:
            out.append(Token(utterance.id, shown.text, tuple(shown.words)))
        if shown.tentative is not None and (shown.tentative != utterance.tentative or shown.text):
            if shown.tentative or not shown.text:
                out.append(Tentative(utterance.id, shown.tentative))
            utterance.tentative = shown.tentative

    def _end_if_done(self, utterance: _Utterance, now: float, out: list[Output]) -> None:
        if utterance.segments or utterance is not self._utterance:
            return
        self._utterance = None
        transcript = utterance.transcript
        out.append(
            Final(
                utterance.id,
                transcript.text,
                tuple(transcript.words),
                utterance.usage,
                _delay(utterance),
                seconds_of(utterance.position_bytes),
                utterance.ended_by,
            )
        )
        self._next(now, out)

    def _fail(self, code: str, message: str, now: float, out: list[Output], lost_segment: int | None = None) -> None:
        utterance = self._utterance
        assert utterance is not None
        out.extend(AbortSegment(segment.number) for segment in utterance.segments if segment.number != lost_segment)
        self._utterance = None
        out.append(Failed(utterance.id, code, message))
        self._next(now, out)


def _limit_bytes(utterance: _Utterance) -> int | None:
    seconds = utterance.settings.segment_seconds
    return None if seconds is None else bytes_of(seconds)


def _delay(utterance: _Utterance) -> float:
    own = utterance.options.delay_seconds
    return utterance.settings.default_delay_seconds if own is None else own


def _pieces(pcm: bytes) -> Iterable[bytes]:
    """Audio in pieces that can be cut again without copying much: a client may send an hour at once."""
    return (pcm,) if len(pcm) <= PIECE_BYTES else (pcm[at : at + PIECE_BYTES] for at in range(0, len(pcm), PIECE_BYTES))


def _unheard(utterance: _Utterance) -> float:
    return sum(seconds_of(segment.fed_bytes) - segment.heard_seconds for segment in utterance.segments)


def _due(since: float | None, seconds: float, now: float) -> bool:
    return since is not None and now >= since + seconds
