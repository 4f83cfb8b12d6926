"""Speaks sentences.tsv with four flite voices into flac/ and writes manifest.jsonl; needs Debian's `flite`, numpy and soundfile.

    python datasets/spoken-en/make.py            # from the repository root; overwrites flac/ and manifest.jsonl

Three of the four voices do not repeat themselves to the bit, so a new run gives other hashes: the committed audio is the dataset.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile

HERE = Path(__file__).resolve().parent
VOICES = ("slt", "rms", "awb", "kal16")
RATE = 16_000
LEAD_SECONDS = 0.25  # at least so much before the first word
TAIL_SECONDS = 0.4  # at least so much after the last word
DITHER_SEED = 20_2611
DITHER_SAMPLES = 1.5  # standard deviation of the noise floor, in steps of 16-bit PCM (about -87 dBFS)


class _Wave(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    )


Spoken = tuple[npt.NDArray[np.float64], list[tuple[float, float]]]


class Flite:
    """flite 2 through ctypes, because its command line does not tell when each word is said."""

    def __init__(self) -> None:
        self._flite = _library("flite")
        _library("flite_usenglish")
        _library("flite_cmulex")
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        for name, result, arguments in (
            ("flite_init", ctypes.c_int, []),
            ("flite_synth_text", pointer, [text, pointer]),
            ("utt_relation", pointer, [pointer, text]),
            ("relation_head", pointer, [pointer]),
            ("item_next", pointer, [pointer]),
            ("item_daughter", pointer, [pointer]),
            ("utt_wave", pointer, [pointer]),
            ("ffeature_float", ctypes.c_float, [pointer, text]),
            ("delete_utterance", None, [pointer]),
        ):
            function = getattr(self._flite, name)
            function.restype, function.argtypes = result, arguments
        self._flite.flite_init()
        self._voices: dict[str, Any] = {}

    def speak(self, voice: str, text: str) -> Spoken:
        """Samples (-1..1, 16 kHz) and the start and end in seconds of each whitespace-separated token of ``text``."""
        spoken = self._flite.flite_synth_text(text.encode(), self._voice(voice))
        wave = ctypes.cast(self._flite.utt_wave(spoken), ctypes.POINTER(_Wave)).contents
        if (wave.sample_rate, wave.num_channels) != (RATE, 1):
            raise SystemExit(
                f"{voice} speaks at {wave.sample_rate} Hz with {wave.num_channels} channels; expected {RATE} Hz mono"
            )
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float64) / 32_768
        times = []
        for token in self._chain(self._flite.relation_head(self._flite.utt_relation(spoken, b"Token"))):
            # One token can be several of flite's words ("it's" -> "it" + "'s"): it lasts from the first to the last of them.
            words = list(self._chain(self._flite.item_daughter(token)))
            start = self._flite.ffeature_float(words[0], b"R:SylStructure.daughter1.daughter1.R:Segment.p.end")
            end = self._flite.ffeature_float(words[-1], b"R:SylStructure.daughtern.daughtern.R:Segment.end")
            times.append((float(start), float(end)))
        self._flite.delete_utterance(spoken)
        return samples, times

    def _chain(self, item: int | None) -> Iterator[int]:
        while item:
            yield item
            item = self._flite.item_next(item)

    def _voice(self, name: str) -> Any:
        if name not in self._voices:
            register = getattr(_library(f"flite_cmu_us_{name}"), f"register_cmu_us_{name}")
            register.restype, register.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
            self._voices[name] = register(None)
        return self._voices[name]


def _library(name: str) -> ctypes.CDLL:
    path = ctypes.util.find_library(name)
    if path is None:
        raise SystemExit(f"lib{name} is not installed; on Debian and Ubuntu: apt-get install flite")
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def with_room(spoken: Spoken, noise: np.random.Generator) -> Spoken:
    """The same speech with enough silence at both ends, over a noise floor without which silence would be digital zero."""
    samples, times = spoken
    lead = max(0, round((LEAD_SECONDS - times[0][0]) * RATE))
    tail = max(0, round(TAIL_SECONDS * RATE) - (len(samples) - round(times[-1][1] * RATE)))
    padded = np.pad(samples, (lead, tail))
    padded += noise.normal(0, DITHER_SAMPLES / 32_768, len(padded))
    return padded, [(start + lead / RATE, end + lead / RATE) for start, end in times]


def main() -> None:
    """Writes the dataset beside this file."""
    sentences = [line.split("\t") for line in (HERE / "sentences.tsv").read_text("utf-8").splitlines() if line]
    flite, noise = Flite(), np.random.default_rng(DITHER_SEED)
    (HERE / "flac").mkdir(exist_ok=True)
    rows = []
    for number, (kind, text) in enumerate(sentences):
        voice = VOICES[number % len(VOICES)]
        samples, times = with_room(flite.speak(voice, text), noise)
        tokens = [token.strip(string.punctuation) for token in text.split()]
        if len(tokens) != len(times):
            raise SystemExit(f"{voice} heard {len(times)} words in {len(tokens)}: {text}")
        path = HERE / "flac" / f"en-{number + 1:03d}-{voice}.flac"
        pcm = np.clip(np.rint(samples * 32_768), -32_768, 32_767).astype(np.int16)
        soundfile.write(path, pcm, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
        rows.append(
            {
                "id": path.stem,
                "audio": f"flac/{path.name}",
                "seconds": round(len(pcm) / RATE, 7),
                "text": text,
                "speaker": voice,
                "language": "en",
                "tags": {"kind": kind, "voice": f"cmu_us_{voice}"},
                "words": [
                    {"text": token, "start": round(start, 3), "end": round(end, 3)}
                    for token, (start, end) in zip(tokens, times, strict=True)
                ],
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (HERE / "manifest.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{len(rows)} utterances in {HERE}", file=sys.stderr)


if __name__ == "__main__":
    main()
