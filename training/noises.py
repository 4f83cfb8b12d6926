"""Sounds without a word in them, each drawn anew: hum, wind, machines, music, clicks, coughs, babble and next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

RATE = 16_000
Sound = npt.NDArray[np.float64]
QUIETEST_DB, LOUDEST_DB = -55.0, -8.0  # peak of a noise clip, below full scale


def coloured(
    samples: int, random: np.random.Generator, slope: float, low: float = 20.0, high: float = 8_000.0
) -> Sound:
    """Gaussian noise between ``low`` and ``high`` Hz whose power falls as 1/f**slope: 0 is white, 1 pink, 2 brown."""
    spectrum = random.normal(size=samples // 2 + 1) + 1j * random.normal(size=samples // 2 + 1)
    frequencies = np.fft.rfftfreq(samples, 1 / RATE)
    spectrum *= np.maximum(frequencies, 1.0) ** (-slope / 2) * ((frequencies >= low) & (frequencies <= high))
    noise: Sound = np.fft.irfft(spectrum, samples)
    return noise


def wander(samples: int, random: np.random.Generator, hertz: float, depth: float) -> Sound:
    """A factor round 1 that drifts up and down about ``hertz`` times a second, by ``depth`` (natural logarithm)."""
    points = random.normal(size=max(2, round(samples / RATE * hertz * 2) + 2))
    drift = np.interp(np.linspace(0, len(points) - 1, samples), np.arange(len(points)), points)
    factors: Sound = np.exp(depth * drift)
    return factors


def tone(samples: int, hertz: float | Sound, strengths: npt.ArrayLike) -> Sound:
    """The harmonics of a pitch, steady or one value for each sample."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(hertz, samples)) / RATE
    highest = float(np.max(hertz))
    sound: Sound = np.sum(
        [s * np.sin(n * phase) for n, s in enumerate(np.atleast_1d(strengths), 1) if n * highest < RATE / 2]
        or [np.zeros(samples)],
        axis=0,
    )
    return sound


def _hum(samples: int, random: np.random.Generator) -> Sound:
    mains = float(random.choice([50.0, 60.0, 100.0, 120.0, random.uniform(30, 400)]))
    sound = tone(samples, mains, random.exponential(1, 12) / np.arange(1, 13) ** random.uniform(0.3, 1.5))
    return sound + random.uniform(0, 0.3) * float(sound.std()) * _unit(coloured(samples, random, random.uniform(0, 2)))


def _steady(samples: int, random: np.random.Generator) -> Sound:
    low = float(random.choice([20.0, 200.0, 800.0]))
    return coloured(samples, random, random.uniform(-0.5, 2.2), low, float(random.uniform(2 * low, 8_000)))


def _wind(samples: int, random: np.random.Generator) -> Sound:
    gusts = wander(samples, random, random.uniform(0.2, 4), random.uniform(0.3, 1.0))
    return coloured(samples, random, random.uniform(0.8, 2.5), 20, float(random.uniform(400, 4_000))) * gusts


def _machine(samples: int, random: np.random.Generator) -> Sound:
    turning = random.uniform(20, 150) * wander(samples, random, random.uniform(0.1, 1), 0.15)
    rattle = _unit(coloured(samples, random, random.uniform(0, 1.5), high=5_000))
    pulse = np.maximum(0, tone(samples, turning, [1.0])) ** random.integers(1, 6)
    return _unit(tone(samples, turning, random.exponential(1, 25))) + random.uniform(0, 2) * rattle * pulse


def _music(samples: int, random: np.random.Generator) -> Sound:
    sound = np.zeros(samples)
    scale = 2.0 ** (np.cumsum(random.choice([1, 2, 2, 3], 12)) / 12) * random.uniform(80, 400)
    beat = round(random.uniform(0.12, 0.7) * RATE)
    strengths = random.exponential(1, 8) / np.arange(1, 9)
    decay, attack = random.uniform(0.05, 1.5), random.uniform(0.002, 0.08)
    for at in range(0, samples, beat):
        time = np.arange(min(beat * 2, samples - at)) / RATE
        shape = np.minimum(1, time / attack) * np.exp(-time / decay)
        for pitch in random.choice(scale, random.integers(1, 4)):
            vibrato = pitch * (1 + random.uniform(0, 0.012) * np.sin(2 * np.pi * random.uniform(4, 7) * time))
            sound[at : at + len(time)] += shape * tone(len(time), vibrato, strengths)
        if random.random() < 0.5:
            drum = _unit(coloured(len(time), random, random.uniform(-1, 2))) * np.exp(-time / 0.03)
            sound[at : at + len(time)] += random.uniform(0, 3) * drum
    return sound


def _clicks(samples: int, random: np.random.Generator) -> Sound:
    sound = np.zeros(samples)
    ring, pitch = random.uniform(0.0005, 0.02), random.uniform(300, 6_000)
    at = 0
    while (at := at + round(random.exponential(random.uniform(0.05, 0.8)) * RATE) + 1) < samples:
        time = np.arange(min(round(8 * ring * RATE), samples - at)) / RATE
        knock = random.normal(size=len(time)) + random.uniform(0, 2) * np.sin(2 * np.pi * pitch * time)
        sound[at : at + len(time)] += random.uniform(0.2, 1) * knock * np.exp(-time / ring)
    return sound


def _coughs(samples: int, random: np.random.Generator) -> Sound:
    """Coughs and breaths: bursts of noise through the broad resonances of a mouth that forms no sound of speech."""
    sound = np.zeros(samples)
    at = round(random.uniform(0, 0.5) * RATE)
    while at < samples:
        length = min(round(random.uniform(0.08, 0.9) * RATE), samples - at)
        time, middle = np.arange(length) / RATE, random.uniform(400, 2_500)
        burst = coloured(length, random, 0.5, middle / 2, min(8_000, middle * random.uniform(1.5, 4)))
        throat = random.uniform(0, 0.5) * tone(length, random.uniform(60, 200) * np.exp(-2 * time), np.ones(10) / 10)
        shape = np.minimum(1, time / random.uniform(0.003, 0.2)) * np.exp(-time / random.uniform(0.04, 0.3))
        sound[at : at + length] += random.uniform(0.2, 1) * (_unit(burst) + throat) * shape
        at += length + round(random.exponential(0.6) * RATE)
    return sound


def _beeps(samples: int, random: np.random.Generator) -> Sound:
    sound = np.zeros(samples)
    at = 0
    while at < samples:
        length = min(round(random.uniform(0.03, 0.6) * RATE), samples - at)
        glide = random.uniform(300, 3_000) * np.exp(np.linspace(0, random.normal(0, 0.4), length))
        pair = tone(length, glide, [1.0]) + random.integers(2) * tone(length, random.uniform(300, 2_000), [1.0])
        sound[at : at + length] += pair * np.hanning(length) ** 0.2
        at += length + round(random.exponential(0.4) * RATE)
    return sound


def _nothing(samples: int, random: np.random.Generator) -> Sound:
    return coloured(samples, random, random.uniform(0, 2))


def babble(voices: list[Sound], samples: int, random: np.random.Generator) -> Sound:
    """Speech played backwards, several voices at once: it sounds like people, and no word can be heard."""
    sound = np.zeros(samples)
    for _ in range(int(random.integers(2, 7))):
        spoken = voices[int(random.integers(len(voices)))][::-1]
        at = int(random.integers(-len(spoken) + 1, samples))
        piece = spoken[max(0, -at) : samples - at]
        sound[max(0, at) : max(0, at) + len(piece)] += random.uniform(0.3, 1) * piece / max(1e-9, float(spoken.std()))
    return sound + 1e-3 * random.normal(size=samples)


def _unit(sound: Sound) -> Sound:
    return sound / max(1e-12, float(sound.std()))


NOISES: MappingProxyType[str, Callable[[int, np.random.Generator], Sound]] = MappingProxyType(
    {
        "hum": _hum,
        "steady": _steady,
        "wind": _wind,
        "machine": _machine,
        "music": _music,
        "clicks": _clicks,
        "coughs": _coughs,
        "beeps": _beeps,
        "nothing": _nothing,
    }
)


def at_some_level(sound: Sound, name: str, random: np.random.Generator) -> npt.NDArray[np.int16]:
    """As 16-bit samples, with a peak drawn between QUIETEST_DB and LOUDEST_DB, over a floor of less than a bit."""
    level = (
        random.uniform(QUIETEST_DB - 30, QUIETEST_DB) if name == "nothing" else random.uniform(QUIETEST_DB, LOUDEST_DB)
    )
    peak = max(1e-12, float(np.abs(sound).max(initial=0.0)))
    scaled = sound / peak * 10 ** (level / 20) * 32_767 + random.normal(0, 0.5, len(sound))
    return np.clip(np.rint(scaled), -32_768, 32_767).astype(np.int16)
