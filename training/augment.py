"""Variation of sound while training: rooms, noises, microphones, lines and throats, in batches, on whichever device.

    augment = Augment(seed=1, device="cuda")
    heard = augment.waveform(waveform)              # [batch, samples] at 16 kHz, float32 within -1..1
    filters = augment.filterbanks(filters, batch)   # [frequencies, mels] -> [batch, frequencies, mels]
    mel = augment.mask(mel)                         # [batch, mels, frames]

Nothing here moves a word by more than the travel of sound in a room, so word times stay right. All that is drawn comes from one
generator: the same seed, device and sequence of calls give the same sound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RATE = 16_000

BABBLE_SNR_DB = (12.0, 35.0)
ROOM_SECONDS = (0.1, 0.7)  # until the tail has lost 60 dB
DIRECT_TO_REVERBERANT_DB = (-2.0, 18.0)
ECHOES = 6
LONGEST_ROOM = round(0.5 * RATE)
EQUALISER_DB, EQUALISER_KNOTS = 9.0, 8
TELEPHONE_HERTZ = (3_200.0, 4_000.0)
RUMBLE_HERTZ = (80.0, 350.0)
WARP_FACTOR = (0.84, 1.2)
WARP_WOBBLE, WARP_KNOTS = 0.035, 6  # a throat is no string: its resonances do not all move alike
NOISE_SLOPES = (0.0, 0.5, 1.0, 1.5, 2.0)  # of power against frequency: white, pink, brown and between
NOISE_SAMPLES = 60 * RATE
MASKED_MELS, MASKED_FRAMES = 16, 8  # at most, in one mask


@dataclass(frozen=True, slots=True)
class Chances:
    """How probable each kind of variation is for an example by itself; levels are drawn evenly between two ends."""

    room: float = 0.4
    noise: float = 0.8
    hum: float = 0.1
    babble: float = 0.2
    equaliser: float = 0.6
    telephone: float = 0.35
    rumble_cut: float = 0.25
    clipping: float = 0.1
    mu_law: float = 0.1
    warp: float = 0.8
    frequency_masks: float = 0.5
    time_masks: float = 0.4
    snr_db: tuple[float, float] = (5.0, 45.0)
    gain_db: tuple[float, float] = (-24.0, 4.0)


USUAL = Chances()
NONE = Chances(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, gain_db=(0.0, 0.0))


class Augment:
    """Draws a room, noises, a microphone, a line and a throat for every example."""

    def __init__(self, seed: int, device: torch.device | str = "cpu", chances: Chances = USUAL) -> None:
        self.chances = chances
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._noises = self._make_noises()

    # ---- waveforms -------------------------------------------------------------------------------------------------------

    def waveform(self, sound: Tensor) -> Tensor:
        """The same speech somewhere else: [batch, samples] in and out.

        Raises:
            ValueError: it is as long as the noises that were made at the start, NOISE_SAMPLES.
        """
        batch, samples = sound.shape
        if samples >= NOISE_SAMPLES:
            raise ValueError(f"{samples} samples: at most {NOISE_SAMPLES - 1} can be varied at once")
        length = _fast_length(samples + LONGEST_ROOM)
        level = _speech_level(sound)
        sound = sound + level * (self._noise(batch, samples) + self._hum(batch, samples)) + self._babble(sound, level)
        spectrum = torch.fft.rfft(sound, length)
        rooms = self._chosen(self.chances.room, batch).nonzero().squeeze(1)
        if len(rooms):  # no FFT takes an empty batch
            spectrum[rooms] *= torch.fft.rfft(self._rooms(len(rooms)), length)
        spectrum *= self._response(batch, length)
        heard = torch.fft.irfft(spectrum, length)[:, :samples]
        return self._line(heard)

    def _noise(self, batch: int, samples: int) -> Tensor:
        """Steady noise below a speech level of 1: a stretch of the noises that were made at the start, from anywhere."""
        which = torch.randint(len(NOISE_SLOPES), (batch,), generator=self.generator, device=self.device)
        first = torch.randint(NOISE_SAMPLES - samples, (batch,), generator=self.generator, device=self.device)
        amplitude = _amplitude(-self._uniform(*self.chances.snr_db, batch)) * self._chosen(self.chances.noise, batch)
        return self._noises.unfold(1, samples, 1)[which, first] * amplitude[:, None]

    def _babble(self, sound: Tensor, level: Tensor) -> Tensor:
        """Two other speakers of the batch, backwards, so that none of their words is said."""
        babble = torch.zeros_like(sound)
        chosen = self._chosen(self.chances.babble, len(sound)).nonzero().squeeze(1)
        amplitude = _amplitude(-self._uniform(*BABBLE_SNR_DB, len(chosen)))[:, None] * level[chosen]
        for _ in range(2):
            others = torch.randint(len(sound), (len(chosen),), generator=self.generator, device=self.device)
            babble[chosen] += (sound[others] / level[others]).flip(1) * amplitude
        return babble

    def _hum(self, batch: int, samples: int) -> Tensor:
        """Mains and their harmonics, for the few examples that have them."""
        hum = torch.zeros(batch, samples, device=self.device)
        chosen = self._chosen(self.chances.hum, batch).nonzero().squeeze(1)
        if len(chosen):
            mains = 50.0 + 10.0 * self._chosen(0.5, len(chosen))
            phase = 2 * math.pi / RATE * mains[:, None] * torch.arange(samples, device=self.device)
            strengths = self._uniform(0, 1, len(chosen), 4)
            partials = (strengths[:, number - 1, None] * torch.sin(number * phase) for number in range(1, 5))
            hum[chosen] = (
                sum(partials, torch.zeros_like(phase))
                * _amplitude(-self._uniform(*self.chances.snr_db, len(chosen)))[:, None]
            )
        return hum

    def _rooms(self, count: int) -> Tensor:
        """Impulse responses [count, LONGEST_ROOM]: the direct sound, a few early echoes, and a tail that dies away."""
        time = torch.arange(LONGEST_ROOM, device=self.device) / RATE
        decay = 6.9 / self._uniform(*ROOM_SECONDS, count)[:, None]  # 60 dB are a factor of exp(6.9) in amplitude
        first_echo = self._uniform(0.002, 0.02, count)[:, None]
        tail = torch.randn(count, LONGEST_ROOM, generator=self.generator, device=self.device)
        tail *= torch.exp(-decay * time) * (time > first_echo)
        echoes = (self._uniform(0.001, 0.04, count, ECHOES) * RATE).long()
        strengths = self._uniform(-1, 1, count, ECHOES) * torch.exp(-decay * echoes / RATE) * 3
        tail.scatter_add_(1, echoes, strengths)
        tail *= _amplitude(-self._uniform(*DIRECT_TO_REVERBERANT_DB, count))[:, None] / tail.norm(dim=1, keepdim=True)
        tail[:, 0] = 1.0
        return tail / tail.norm(dim=1, keepdim=True)

    def _response(self, batch: int, length: int) -> Tensor:
        """Amplitude over frequency [batch, length // 2 + 1]: the microphone's colour, a telephone's band, a cut of the rumble."""
        points = 513  # drawn coarsely, then stretched: what is drawn has no detail finer than that
        hertz = torch.linspace(0, RATE / 2, points, device=self.device)
        knots = (
            self._uniform(-EQUALISER_DB, EQUALISER_DB, batch, EQUALISER_KNOTS)
            * self._chosen(self.chances.equaliser, batch)[:, None]
        )
        octaves = torch.log2(1 + hertz / 250) / math.log2(1 + RATE / 2 / 250) * (EQUALISER_KNOTS - 1)
        gain_db = _between(knots, octaves.expand(batch, -1))
        edge = self._uniform(*TELEPHONE_HERTZ, batch)[:, None]
        slope_db = self._uniform(25, 90, batch)[:, None] / self._uniform(40, 400, batch)[:, None]
        depth_db = torch.clamp((hertz - edge) * slope_db, 0, 90)
        gain_db -= depth_db * self._chosen(self.chances.telephone, batch)[:, None]
        edge = self._uniform(*RUMBLE_HERTZ, batch)[:, None]
        cut_db = torch.clamp((edge - hertz) / edge, 0) * self._uniform(10, 50, batch)[:, None]
        gain_db -= cut_db * self._chosen(self.chances.rumble_cut, batch)[:, None]
        return torch.nn.functional.interpolate(
            _amplitude(gain_db)[:, None], length // 2 + 1, mode="linear", align_corners=True
        )[:, 0]

    def _line(self, sound: Tensor) -> Tensor:
        """Level, overload and a coarse codec, as a digital line has them."""
        batch = len(sound)
        sound = sound * _amplitude(self._uniform(*self.chances.gain_db, batch))[:, None]
        peak = sound.abs().amax(1, keepdim=True).clamp(min=1e-6)
        ceiling = (
            torch.where(self._chosen(self.chances.clipping, batch), self._uniform(0.2, 0.9, batch), 1.0)[:, None] * peak
        )
        sound = torch.minimum(torch.maximum(sound, -ceiling), ceiling).clamp(-1, 1)
        coded = self._chosen(self.chances.mu_law, batch).nonzero().squeeze(1)
        sound[coded] = _mu_law(sound[coded])
        return sound

    # ---- spectra ---------------------------------------------------------------------------------------------------------

    def filterbanks(self, filters: Tensor, batch: int) -> Tensor:
        """A mel filterbank for each example, as if its speaker's throat were longer or shorter: [batch, frequencies, mels]."""
        count = filters.shape[0]
        low, high = (math.log(factor) for factor in WARP_FACTOR)
        factors = torch.exp(self._uniform(low, high, batch, 1) + WARP_WOBBLE * self._normal(batch, WARP_KNOTS))
        factors = torch.where(self._chosen(self.chances.warp, batch)[:, None], factors, 1.0)
        places = torch.linspace(0, WARP_KNOTS - 1, count, device=self.device)
        read = torch.cumsum(_between(factors, places.expand(batch, -1)), 1)
        read = read - read[:, :1]  # where each frequency is found in the unwarped filters
        inside = (read <= count - 1)[:, :, None]
        return torch.where(inside, _rows_between(filters, read.clamp(max=count - 1)), 0.0)

    def mask(self, mel: Tensor) -> Tensor:
        """SpecAugment on a log-mel spectrogram [batch, mels, frames]: bands and moments give way to the example's mean."""
        batch, mels, frames = mel.shape
        hidden = torch.zeros(batch, mels, frames, dtype=torch.bool, device=self.device)
        for _ in range(2):
            hidden |= self._stretch(batch, mels, MASKED_MELS, self.chances.frequency_masks)[:, :, None]
            hidden |= self._stretch(batch, frames, MASKED_FRAMES, self.chances.time_masks)[:, None, :]
        return torch.where(hidden, mel.mean((1, 2), keepdim=True), mel)

    def _stretch(self, batch: int, length: int, longest: int, probability: float) -> Tensor:
        """One stretch of [batch, length] is true, or none."""
        size = self._uniform(1, longest + 1, batch).floor() * self._chosen(probability, batch)
        first = (self._uniform(0, 1, batch) * (length - size)).floor()
        place = torch.arange(length, device=self.device)
        return (place >= first[:, None]) & (place < (first + size)[:, None])

    # ---- chance ----------------------------------------------------------------------------------------------------------

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.generator, device=self.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def _chosen(self, probability: float, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator, device=self.device) < probability

    def _make_noises(self) -> Tensor:
        """One long stretch [slopes, NOISE_SAMPLES] of each colour, its RMS 1."""
        frequencies = torch.fft.rfftfreq(NOISE_SAMPLES, 1 / RATE, device=self.device).clamp(min=30.0)
        white = torch.fft.rfft(self._normal(len(NOISE_SLOPES), NOISE_SAMPLES))
        slopes = torch.tensor(NOISE_SLOPES, device=self.device)[:, None]
        noises = torch.fft.irfft(white * frequencies ** (-slopes / 2), NOISE_SAMPLES)
        return noises / noises.std(1, keepdim=True)


def _amplitude(decibels: Tensor) -> Tensor:
    return torch.pow(10.0, decibels / 20)


def _speech_level(sound: Tensor) -> Tensor:
    """RMS [batch, 1] of what is louder than a fiftieth of the peak, so that silence round the words does not count."""
    loud = sound.abs() > 0.02 * sound.abs().amax(1, keepdim=True)
    level = ((sound**2 * loud).sum(1, keepdim=True) / loud.sum(1, keepdim=True).clamp(min=1)).sqrt()
    return torch.where(level > 1e-5, level, 0.05)  # where all is silent, noise has some level all the same


def _between(values: Tensor, places: Tensor) -> Tensor:
    """Linear interpolation of [batch, knots] at fractional places [batch, points]."""
    below = places.floor().clamp(0, values.shape[1] - 2).long()
    share = places - below
    return values.gather(1, below) * (1 - share) + values.gather(1, below + 1) * share


def _rows_between(rows: Tensor, places: Tensor) -> Tensor:
    """Linear interpolation between the rows of [count, width] at fractional places [batch, points]: [batch, points, width]."""
    below = places.floor().clamp(0, len(rows) - 2).long()
    share = (places - below)[:, :, None]
    return rows[below] * (1 - share) + rows[below + 1] * share


def _mu_law(sound: Tensor) -> Tensor:
    """Eight bits on a logarithmic scale and back, as G.711 does it."""
    compressed = torch.sign(sound) * torch.log1p(255 * sound.abs()) / math.log(256)
    coarse = torch.round(compressed * 127) / 127
    return torch.sign(coarse) * torch.expm1(coarse.abs() * math.log(256)) / 255


def _fast_length(samples: int) -> int:
    """The next length that an FFT is quick at: a small odd number times a power of two."""
    return min(odd << max(0, math.ceil(math.log2(samples / odd))) for odd in (1, 3, 5, 9, 15))
