"""The processes that recognise: one loads the model and forks, the forks decode one segment at a time."""

from __future__ import annotations

import gc
import json
import os
import re
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import msgspec

from server.engines.sphinx.commitment import Commitment, Hypothesis, PlacedWord
from server.engines.sphinx.messages import Failure, Frames, Kind, Progress, decode_opening, frame
from server.engines.sphinx.settings import SphinxSettings
from wire.pcm import SAMPLE_RATE, bytes_of, seconds_of
from wire.words import TimedWord

STEP_BYTES = bytes_of(0.08)
FRAMES_PER_SECOND = 100
FRAMES_PER_STEP = 8
LONGEST_SILENCE_STEPS = 5  # a stream says how far it is at least every 0.4 s of audio
LAST_WORDS_SECONDS = 5.0

CEPSTRAL_MEAN = "51.31,1.54,-1.93,9.43,-5.85,1.05,-7.33,-5.57,-2.03,-1.77,-0.52,-1.81,1.38"
"""Where mean normalisation starts in every utterance: the mean over a set of clean recordings."""

FAST: Mapping[str, Any] = {"fwdflat": False, "bestpath": False, "maxhmmpf": 3000, "maxwpf": 10}
ALTERNATIVE = re.compile(r"\(\d+\)$")  # "the(2)" is the second pronunciation of "the"


def load_decoder(settings: SphinxSettings) -> Any:
    """A decoder with the English model of the wheel. pocketsphinx has no types, hence ``Any``."""
    from pocketsphinx import Decoder

    options = dict(FAST) if settings.profile == "fast" else {}
    if settings.maxhmmpf is not None:
        options["maxhmmpf"] = settings.maxhmmpf
    return Decoder(samprate=SAMPLE_RATE, cmninit=CEPSTRAL_MEAN, loglevel="FATAL", **options)


def hypothesis_of(decoder: Any, since: int) -> Hypothesis:
    """What the decoder believes now, without silence, noise and words that end by frame ``since``."""
    if decoder.hyp() is None:
        return Hypothesis()
    words = []
    edge = 0
    for piece in decoder.seg():  # always from the start of the segment, so the older part is passed over quickly
        edge = piece.end_frame + 1
        if edge > since and not piece.word.startswith(("<", "[", "++")):
            words.append(PlacedWord(ALTERNATIVE.sub("", piece.word), piece.start_frame, edge))
    return Hypothesis(words, edge)


class Hearing:
    """One segment on its way through the decoder."""

    def __init__(self, decoder: Any, stream: int, delay_steps: int) -> None:
        self.stream = stream
        self.finishing = False
        self._decoder = decoder
        self._commitment = Commitment(delay_steps * FRAMES_PER_STEP)
        self._audio = bytearray()
        self._heard_bytes = 0
        self._silent_steps = 0
        self._committed_any = False
        self._tentative = ""
        decoder.set_cmn(CEPSTRAL_MEAN)  # else the result would depend on the utterance before
        decoder.start_utt()

    def add(self, pcm: bytes) -> None:
        """More audio."""
        self._audio += pcm

    @property
    def has_step(self) -> bool:
        """Whether a whole step of audio waits."""
        return len(self._audio) >= STEP_BYTES

    def step(self) -> Progress | None:
        """Decode the next 80 ms, however the audio came in; what there is to tell, if anything."""
        self._decode(STEP_BYTES)
        committed, rest = self._commitment.advance(
            hypothesis_of(self._decoder, self._commitment.settled), seconds_of(self._heard_bytes) * FRAMES_PER_SECOND
        )
        text = self._text(committed)
        tentative = "".join(f" {word.text}" for word in rest)
        if not self._committed_any:
            tentative = tentative[1:]
        self._silent_steps += 1
        if not text and tentative == self._tentative and self._silent_steps < LONGEST_SILENCE_STEPS:
            return None
        return self._progress(text, tentative, committed)

    def finish(self) -> Progress:
        """Decode what is left, less than a step, and commit everything."""
        if self._audio:
            self._decode(STEP_BYTES)
        self._decoder.end_utt()
        committed = self._commitment.finish(hypothesis_of(self._decoder, self._commitment.settled))
        return self._progress(self._text(committed), "", committed)

    def abandon(self) -> None:
        """Make the decoder free for another segment."""
        self._decoder.end_utt()

    def _decode(self, byte_count: int) -> None:
        pcm = bytes(self._audio[:byte_count])
        del self._audio[:byte_count]
        self._decoder.process_raw(pcm)
        self._heard_bytes += len(pcm)

    def _text(self, words: Sequence[PlacedWord]) -> str:
        pieces = []
        for word in words:
            pieces.append(f" {word.text}" if self._committed_any else word.text)
            self._committed_any = True
        return "".join(pieces)

    def _progress(self, text: str, tentative: str, words: Sequence[PlacedWord]) -> Progress:
        self._silent_steps = 0
        self._tentative = tentative
        timed = tuple(TimedWord(w.text, w.start / FRAMES_PER_SECOND, w.end / FRAMES_PER_SECOND) for w in words)
        return Progress(seconds_of(self._heard_bytes), text, tentative, timed)


class Recogniser:
    """One process: hears one segment after the other until the engine hangs up."""

    def __init__(self, engine: socket.socket, decoder: Any) -> None:
        self._engine = engine
        self._decoder = decoder
        self._frames = Frames()
        self._hearing: Hearing | None = None

    def run(self) -> None:
        """Work until the engine is gone."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self._say(Kind.READY, 0)
            while self._receive():
                try:
                    self._work()
                except RuntimeError as error:  # the decoder's only exception; its state is unknown after it
                    if self._hearing is not None:
                        self._say(Kind.FAILED, self._hearing.stream, Failure(str(error)))
                    return

    def _receive(self) -> bool:
        """Take what the engine has sent, waiting for it when there is nothing to do; False at its end."""
        idle = self._hearing is None or not (self._hearing.has_step or self._hearing.finishing)
        try:
            data = self._engine.recv(1 << 16, 0 if idle else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        for kind, stream, payload in self._frames.receive(data):
            self._take(kind, stream, payload)
        return bool(data)

    def _take(self, kind: Kind, stream: int, payload: bytes) -> None:
        if kind is Kind.OPEN:
            self._hearing = Hearing(self._decoder, stream, decode_opening(payload).delay_steps)
            return
        hearing = self._hearing
        if hearing is None or hearing.stream != stream:
            return  # sent before the engine knew that the stream had ended
        match kind:
            case Kind.AUDIO:
                hearing.add(payload)
            case Kind.FINISH:
                hearing.finishing = True
            case Kind.ABORT:
                hearing.abandon()
                self._hearing = None
            case _:
                raise ValueError(f"{kind!r} is not for a recogniser")

    def _work(self) -> None:
        """One step, so that an abort is seen soon however much audio waits."""
        hearing = self._hearing
        if hearing is None:
            return
        if hearing.has_step:
            progress = hearing.step()
            if progress is not None:
                self._say(Kind.PROGRESS, hearing.stream, progress)
        elif hearing.finishing:
            self._say(Kind.PROGRESS, hearing.stream, hearing.finish())
            self._say(Kind.DONE, hearing.stream)
            self._hearing = None

    def _say(self, kind: Kind, stream: int, payload: bytes | Progress | Failure = b"") -> None:
        self._engine.sendall(frame(kind, stream, payload))


def reap(_signal: int, _frame: FrameType | None) -> None:
    """Collect every child that has ended, so that none stays as a zombie."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def end_children(children: set[int]) -> None:
    """Wait until every child has gone; they go by themselves because the engine has hung up on them too."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    for pid in children:
        with suppress(ChildProcessError):
            while os.waitpid(pid, os.WNOHANG)[0] == 0:
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    break
                select.select([], [], [], 0.005)


def fork_recognisers(control: socket.socket) -> socket.socket | None:
    """Fork a process for every socket that comes through ``control``.

    Returns in each of them with its socket, and at last, when the engine has hung up, in the parent with ``None``.
    """
    children: set[int] = set()
    signal.signal(signal.SIGCHLD, reap)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not data:
            end_children(children)
            return None
        for descriptor in descriptors:
            try:
                pid = os.fork()
            except OSError as error:  # no memory or no process left: the engine sees its socket close
                print(f"sphinx: cannot fork a recogniser: {error}", file=sys.stderr, flush=True)
            else:
                if pid == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    control.close()
                    return socket.socket(fileno=descriptor)
                children.add(pid)
            os.close(descriptor)


def main(control_descriptor: int, settings: SphinxSettings) -> int:
    """Load the model, tell the engine, and fork on demand."""
    # Ctrl+C and an init system's stop signal reach the whole group, but the server still drains its streams then. These
    # processes end when the server hangs up, which its death does too.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(settings.nice)
    control = socket.socket(fileno=control_descriptor)
    try:
        decoder = load_decoder(settings)
    except (ImportError, RuntimeError, ValueError) as error:
        control.sendall(json.dumps({"failed": str(error)}).encode() + b"\n")
        return 1
    # Run once through everything that is allocated lazily, so that the forked processes share it.
    warm_up = Hearing(decoder, 0, 1)
    warm_up.add(bytes(2 * STEP_BYTES))
    warm_up.step()
    warm_up.finish()
    gc.collect()
    gc.freeze()
    control.sendall(b'{"ready": true}\n')
    mine = fork_recognisers(control)
    if mine is not None:
        Recogniser(mine, decoder).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=SphinxSettings)))
