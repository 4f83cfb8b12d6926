"""The voices of flite 2, through its library: the command line does not tell when a word is said. Debian: apt-get install flite."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from training.speaking import Manner, Spoken, SpokenOtherwiseError, SynthesiserMissingError, replayed, written


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
    """One voice."""

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
            samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / np.float32(32_768)
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
        Flite(
            "rms", 98.0, 24.0
        ),  # a man, American; his pitch follows his formants alone: the voice has a melody model of its own
        Flite("kal16", 95.0, 11.0, stretch=1.1),  # a man, American, diphones
        Flite("awb", 132.0, 25.0),  # a man, Scottish: for tests alone
    )
}
