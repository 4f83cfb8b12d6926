"""Makes the clips of the dataset, sounds without a word in them, from a fixed seed, and writes manifest.jsonl.

python datasets/non-speech/make.py           # needs numpy and soundfile; overwrites flac/ and manifest.jsonl
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

HERE = Path(__file__).resolve().parent
RATE = 16_000
SEED = 4_211
FADE_SECONDS = 0.02
Samples = npt.NDArray[np.float64]


def shaped_noise(
    seconds: float, random: np.random.Generator, slope: float, low: float = 20.0, high: float = 8_000.0
) -> Samples:
    """Gaussian noise between ``low`` and ``high`` Hz whose power falls as 1/f**slope (0 white, 1 pink, 2 brown); RMS 1."""
    samples = round(seconds * RATE)
    frequencies = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum = random.normal(size=len(frequencies)) + 1j * random.normal(size=len(frequencies))
    spectrum *= np.maximum(frequencies, 1.0) ** (-slope / 2) * ((frequencies >= low) & (frequencies <= high))
    noise = np.fft.irfft(spectrum, samples)
    return np.asarray(noise / np.sqrt(np.mean(noise**2)))


def partials(seconds: float, pitch: float, strengths: list[float]) -> Samples:
    """A steady tone: the harmonics of ``pitch`` with the given strengths; peak 1."""
    time = np.arange(round(seconds * RATE)) / RATE
    tone = sum(strength * np.sin(2 * np.pi * pitch * number * time) for number, strength in enumerate(strengths, 1))
    return np.asarray(tone / np.abs(tone).max())


def melody(seconds: float, random: np.random.Generator, note_seconds: float, decay_seconds: float) -> Samples:
    """Notes of a pentatonic scale, plucked or bowed by how fast they decay; peak 1."""
    scale = 220.0 * 2.0 ** (np.array([0, 2, 4, 7, 9, 12, 14, 16]) / 12)
    music = np.zeros(round(seconds * RATE))
    for start in np.arange(0, seconds - note_seconds, note_seconds):
        note = partials(note_seconds * 2, float(random.choice(scale)), [1, 0.5, 0.25, 0.12])
        time = np.arange(len(note)) / RATE
        note *= np.minimum(time / 0.01, 1) * np.exp(-time / decay_seconds)
        at = round(start * RATE)
        music[at : at + len(note)] += note[: len(music) - at]
    return np.asarray(music / np.abs(music).max())


def clicks(seconds: float, random: np.random.Generator, each_seconds: float) -> Samples:
    """Short bursts of decaying noise at slightly uneven times, as keys or a ticking clock; peak 1."""
    sound = np.zeros(round(seconds * RATE))
    burst = np.exp(-np.arange(400) / 50)
    for start in np.arange(0.3, seconds - 0.1, each_seconds):
        at = round((start + random.uniform(0, each_seconds / 3)) * RATE)
        end = min(at + len(burst), len(sound))
        sound[at:end] += (burst * random.normal(size=len(burst)))[: end - at]
    return np.asarray(sound / np.abs(sound).max())


def clips(random: np.random.Generator) -> Iterator[tuple[str, Samples]]:
    """Kind and samples of each clip; levels are RMS or peak below full scale as written."""
    mains = [1.0, 0.5, 0.7, 0.2, 0.4, 0.1, 0.2]
    breeze = 1 + 0.4 * np.sin(2 * np.pi * 0.7 * np.arange(6 * RATE) / RATE)
    yield "digital-silence", np.zeros(4 * RATE)
    yield "room-silence", 0.0005 * shaped_noise(5, random, 1)
    yield "hum-50-hz", 0.05 * partials(5, 50.0, mains) + 0.001 * shaped_noise(5, random, 0)
    yield "hum-60-hz", 0.1 * partials(5, 60.0, mains) + 0.001 * shaped_noise(5, random, 0)
    yield "white-noise", 0.01 * shaped_noise(5, random, 0)
    yield "pink-noise", 0.05 * shaped_noise(6, random, 1)
    yield "brown-noise", 0.1 * shaped_noise(6, random, 2)
    yield "fan", 0.03 * shaped_noise(6, random, 1.5, high=2_000) * breeze + 0.01 * partials(6, 93.0, [1, 0.3, 0.1])
    yield "plucked-tones", 0.3 * melody(8, random, 0.4, 0.25)
    yield "bowed-tones", 0.2 * melody(8, random, 0.8, 2.0)
    yield "slow-clicks", 0.4 * clicks(6, random, 1.0) + 0.0005 * shaped_noise(6, random, 1)
    yield "fast-clicks", 0.3 * clicks(6, random, 0.16) + 0.0005 * shaped_noise(6, random, 1)


def main() -> None:
    """Writes the dataset beside this file."""
    (HERE / "flac").mkdir(exist_ok=True)
    rows = []
    for number, (kind, samples) in enumerate(clips(np.random.default_rng(SEED)), 1):
        fade = np.minimum(np.arange(len(samples)) / (FADE_SECONDS * RATE), 1)
        pcm = np.rint(samples * fade * fade[::-1] * 32_767).astype(np.int16)
        path = HERE / "flac" / f"non-speech-{number:02d}-{kind}.flac"
        soundfile.write(path, pcm, RATE, format="FLAC", subtype="PCM_16", compression_level=1.0)
        rows.append(
            {
                "id": path.stem,
                "audio": f"flac/{path.name}",
                "seconds": len(pcm) / RATE,
                "text": "",
                "speaker": kind,
                "language": "en",
                "tags": {"kind": "non-speech", "sound": kind},
                "words": [],
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
        )
    (HERE / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main()
