"""The voices of eSpeak NG, eight accents in sixty timbres, through its library. Debian: apt-get install espeak-ng.

It makes speech from formants, not from recordings. It tells where words begin, but not for those that it runs into the word before
("on the"), nor where they end: the former share the time by their letters, the latter are found by the sound's fading.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from training.speaking import (
    Manner,
    Samples,
    Spoken,
    SpokenOtherwiseError,
    SynthesiserMissingError,
    Times,
    replayed,
    written,
)

ACCENTS = ("en-us", "gmw/en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
TIMBRES = (
    "",
    *"m1 m2 m3 m4 m5 m6 m7 m8 f1 f2 f3 f4 f5 klatt klatt2 klatt3 klatt4 klatt5 klatt6 Alex Alicia Andrea Andy Denis Diogo Gene".split(),  # noqa: SIM905
    *"Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen adam anika antonio aunty belinda benjamin boris caleb david".split(),  # noqa: SIM905
    *"ed edward john kaukovalta linda max michel miguel norbert pablo paul pedro quincy rob robert sandro steph travis victor zac".split(),  # noqa: SIM905
)
_SYNCHRONOUS, _UTF8 = 2, 1
_BY_CHARACTER = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_WORD = 1
_SILENT = 0.02  # of the loudest
_FRAME_SECONDS = 0.005


class _Id(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


class _Library:
    """The library, which can be started once in a process."""

    def __init__(self) -> None:
        path = ctypes.util.find_library("espeak-ng")
        if path is None:
            raise SynthesiserMissingError(
                "libespeak-ng is not installed; on Debian and Ubuntu: apt-get install espeak-ng"
            )
        self._espeak = ctypes.CDLL(path)
        self.rate = self._espeak.espeak_Initialize(_SYNCHRONOUS, 0, None, 0)
        if self.rate <= 0:
            raise SynthesiserMissingError(
                "espeak-ng finds no voices; on Debian and Ubuntu: apt-get install espeak-ng-data"
            )
        self._pieces: list[np.ndarray[tuple[int], np.dtype[np.int16]]] = []
        self._starts: list[tuple[int, int]] = []
        self._callback = _Callback(self._receive)  # kept: the library has only its address
        self._espeak.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: ctypes._Pointer[ctypes.c_short], count: int, events: ctypes._Pointer[_Event]) -> int:
        if count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while (event := events[at]).type:
            if event.type == _WORD:
                self._starts.append((event.text_position - 1, event.sample))
            at += 1
        return 0

    def synthesise(
        self, text: str, voice: str, rate: int, pitch: int, swing: int
    ) -> tuple[Samples, list[tuple[int, int]]]:
        """Samples, and for each word that it tells of where it is in the text and its first sample."""
        if self._espeak.espeak_SetVoiceByName(voice.encode()) != 0:
            raise SpokenOtherwiseError(f"espeak-ng has no voice {voice!r}")
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, swing)):
            self._espeak.espeak_SetParameter(parameter, value, 0)
        self._pieces, self._starts = [], []
        data = text.encode() + b"\0"
        self._espeak.espeak_Synth(data, len(data), 0, _BY_CHARACTER, 0, _UTF8, None, None)
        return np.concatenate(self._pieces or [np.zeros(0, np.int16)]).astype(np.float32) / np.float32(
            32_768
        ), self._starts


@cache
def _library() -> _Library:
    return _Library()


@dataclass(frozen=True, slots=True)
class Espeak:
    """All of them under one name; ``Manner.speaker`` says which."""

    name: str = "espeak"

    def speak(self, words: Sequence[str], manner: Manner) -> Spoken:
        """Says the words."""
        library, text = _library(), written(words, manner)
        accent, timbre = ACCENTS[manner.speaker % len(ACCENTS)], TIMBRES[manner.speaker // len(ACCENTS) % len(TIMBRES)]
        samples, starts = library.synthesise(
            text,
            f"{accent}+{timbre}" if timbre else accent,
            rate=round(np.clip(170 / (manner.duration * manner.formants), 80, 400)),
            pitch=round(np.clip(50 + 50 * np.log2(manner.pitch / manner.formants), 0, 99)),
            swing=round(np.clip(50 * manner.melody, 0, 99)),
        )
        times = word_times(text, starts, samples, library.rate)
        if len(times) != len(words):
            raise SpokenOtherwiseError(f"espeak-ng told of {len(starts)} words in {text!r}")
        return replayed(samples, library.rate, times, manner.formants)


def word_times(text: str, starts: Sequence[tuple[int, int]], samples: Samples, rate: float) -> Times:
    """Start and end in seconds of each word of ``text``, from where some are known to start: (character, sample)."""
    characters = [0] + [at + 1 for at, character in enumerate(text) if character == " "]
    told = {character: sample for character, sample in starts if character in characters}
    if 0 not in told or not samples.any():
        return ()
    known = [*sorted(told.items()), (len(text) + 1, len(samples))]
    frame = round(_FRAME_SECONDS * rate)
    loud = np.abs(samples[: len(samples) // frame * frame]).reshape(-1, frame).max(1) > _SILENT * np.abs(samples).max()
    times: list[tuple[float, float]] = []
    for (first, begin), (after, end) in itertools.pairwise(known):
        sounding = np.flatnonzero(loud[begin // frame : end // frame])
        if not len(sounding):
            return ()
        begin, end = (begin // frame + sounding[0]) * frame, (begin // frame + sounding[-1] + 1) * frame
        inside = [character for character in characters if first <= character < after]
        shares = np.diff([*inside, after])
        edges = (begin + np.cumsum([0, *shares]) / (after - first) * (end - begin)) / rate
        times += zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    return tuple(times)
