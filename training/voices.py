"""Synthetic voices, from Debian's flite, festival and espeak-ng, that say a sentence and tell when each word is said.

    apt-get install flite festival festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts espeak-ng

A voice is varied in four independent ways (`Manner`): how fast and how high it speaks, how far its melody swings, and how long its
vocal tract is, by playing it slower or faster than it was made. awb, flite's Scottish speaker, is kept for tests: `TRAINED_ON`
has no synthesis of his.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soxr

RATE = 16_000
Samples = npt.NDArray[np.float32]


class SynthesiserMissingError(Exception):
    """A program or library that speaks is not installed; the message says which package has it."""


class SpokenOtherwiseError(Exception):
    """The synthesiser split the text into other words than it was given, so their times are not known."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a sentence is said; factors are relative to the voice as its makers left it."""

    duration: float = 1.0  # of every sound
    pitch: float = 1.0
    melody: float = 1.0  # how far the pitch swings
    formants: float = 1.0  # above 1: a shorter vocal tract
    pauses: tuple[bool, ...] = ()  # after which words there is a short one; missing ones are without
    careful: bool = False  # "to" and "for" in full, as "two" and "four"


PLAIN = Manner()


@dataclass(frozen=True, slots=True)
class Spoken:
    """16 kHz samples within -1..1, and start and end in seconds of each word that was asked for."""

    samples: Samples
    times: tuple[tuple[float, float], ...]


class Voice(Protocol):
    """One speaker of one synthesiser."""

    @property
    def name(self) -> str:
        """As clips are labelled."""

    def speak(self, words: Sequence[str], manner: Manner) -> Spoken:
        """Says the words.

        Raises:
            SynthesiserMissingError: it is not installed.
            SpokenOtherwiseError: the words came out as others.
        """


IN_FULL = {"to": "two", "for": "four"}


def written(words: Sequence[str], manner: Manner) -> str:
    """The text that a synthesiser reads: commas make pauses."""
    said = [IN_FULL.get(word, word) if manner.careful else word for word in words]
    pauses = manner.pauses + (False,) * len(said)
    return " ".join(word + "," * pause for word, pause in zip(said[:-1], pauses, strict=False)) + f" {said[-1]}"


def replayed(samples: Samples, rate: float, times: Sequence[tuple[float, float]], formants: float) -> Spoken:
    """The speech played ``formants`` times as fast as it was recorded, at 16 kHz, where all resonances lie higher by as much."""
    if rate * formants != RATE:
        samples = soxr.resample(samples, rate * formants, RATE).astype(np.float32)
    return Spoken(samples, tuple((start / formants, end / formants) for start, end in times))


# ---- flite ---------------------------------------------------------------------------------------------------------------


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


class _VoiceHead(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("features", ctypes.c_void_p))


def _library(name: str, package: str) -> ctypes.CDLL:
    path = ctypes.util.find_library(name)
    if path is None:
        raise SynthesiserMissingError(f"lib{name} is not installed; on Debian and Ubuntu: apt-get install {package}")
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


@cache
def _flite() -> ctypes.CDLL:
    flite = _library("flite", "flite")
    _library("flite_usenglish", "flite")
    _library("flite_cmulex", "flite")
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_float
    for name, result, arguments in (
        ("flite_init", ctypes.c_int, []),
        ("flite_synth_text", pointer, [text, pointer]),
        ("flite_feat_set_float", None, [pointer, text, number]),
        ("utt_relation", pointer, [pointer, text]),
        ("relation_head", pointer, [pointer]),
        ("item_next", pointer, [pointer]),
        ("utt_wave", pointer, [pointer]),
        ("ffeature_float", number, [pointer, text]),
        ("ffeature_string", text, [pointer, text]),
        ("delete_utterance", None, [pointer]),
    ):
        function = getattr(flite, name)
        function.restype, function.argtypes = result, arguments
    flite.flite_init()
    return flite


@dataclass(frozen=True, slots=True)
class Flite:
    """A voice of flite 2, through its library: the command line does not tell when a word is said."""

    speaker: str
    pitch_hertz: float  # as its makers set it: mean and standard deviation
    swing_hertz: float
    stretch: float = 1.0

    @property
    def name(self) -> str:
        """As clips are labelled."""
        return self.speaker

    def speak(self, words: Sequence[str], manner: Manner) -> Spoken:
        """Says the words."""
        flite, voice = _flite(), _flite_voice(self.speaker)
        features = ctypes.cast(voice, ctypes.POINTER(_VoiceHead)).contents.features
        for feature, value in (
            (b"duration_stretch", self.stretch * manner.duration * manner.formants),
            (b"int_f0_target_mean", self.pitch_hertz * manner.pitch / manner.formants),
            (b"int_f0_target_stddev", self.swing_hertz * manner.pitch * manner.melody / manner.formants),
        ):
            flite.flite_feat_set_float(features, feature, value)
        text = written(words, manner)
        utterance = flite.flite_synth_text(text.encode(), voice)
        try:
            wave = ctypes.cast(flite.utt_wave(utterance), ctypes.POINTER(_Wave)).contents
            samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / 32_768
            said, times = [], []
            for word in _items(flite, utterance, b"Word"):
                said.append(flite.ffeature_string(word, b"name").decode())
                start = flite.ffeature_float(word, b"R:SylStructure.daughter1.daughter1.R:Segment.p.end")
                end = flite.ffeature_float(word, b"R:SylStructure.daughtern.daughtern.R:Segment.end")
                times.append((float(start), float(end)))
            rate = wave.sample_rate
        finally:
            flite.delete_utterance(utterance)
        if said != text.replace(",", "").split():
            raise SpokenOtherwiseError(f"{self.name} said {said}, not {text!r}")
        return replayed(samples, rate, times, manner.formants)


def _items(flite: ctypes.CDLL, utterance: int, relation: bytes) -> Iterator[int]:
    item = flite.relation_head(flite.utt_relation(utterance, relation))
    while item:
        yield item
        item = flite.item_next(item)


@cache
def _flite_voice(speaker: str) -> Any:
    register = getattr(_library(f"flite_cmu_us_{speaker}", "flite"), f"register_cmu_us_{speaker}")
    register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    return register(None)


FLITE = {
    voice.name: voice
    for voice in (
        Flite("slt", 172.0, 27.0),  # a woman, American
        Flite("rms", 98.0, 24.0),  # a man, American; his pitch follows his formants alone: the voice has a melody model of its own
        Flite("kal16", 95.0, 11.0, stretch=1.1),  # a man, American, diphones
        Flite("awb", 132.0, 25.0),  # a man, Scottish: for tests alone
    )
}

TRAINED_ON = {"slt": 1.0, "rms": 1.0, "kal16": 1.0}


def voice_named(name: str) -> Voice:
    """The voice of that name."""
    return FLITE[name]
