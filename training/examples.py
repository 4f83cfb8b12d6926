"""From clips to batches: streams put together from clips, heard as the server hears them, and what the model should say at each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from training.augment import Augment
from training.grammar import WORDS
from training.model import (
    BOS,
    DELAY_TOKENS,
    EOS,
    FIRST_WORD,
    MEL_BINS,
    MEL_PER_TOKEN,
    PAD,
    POOL,
    WORD,
)
from training.sounds import spans

SAMPLE_RATE = 16000
STEP = 1280  # samples of a token
LEFT = 32  # tokens of silence before every stream
RIGHT = 11  # tokens of silence behind every stream, beside the delay
FRONT = 8  # of LEFT, what is really computed in training: before, all frames of silence are alike
END_AFTER = 9
"""The stream is over when it has been silent for this many tokens and the delay: two of the padding are left to notice it."""
END_UNSURE = 4  # tokens before that in which either is right
LOOK_AHEAD = 40  # samples: vLLM's spectrogram of a stream is that of audio 2.5 ms later
FLOOR = (1.5 - 8.0 + 4.0) / 4.0  # of the spectrogram: what digital silence is
IGNORED = -100
WINDOW, HOP = 400, 160

Samples = npt.NDArray[np.float32]
INDEX = {word: index for index, word in enumerate(WORDS)}


class SpokenWord(Protocol):
    """What is needed of a word of a clip."""

    @property
    def text(self) -> str: ...
    @property
    def start_s(self) -> float: ...
    @property
    def end_s(self) -> float: ...


class Clip(Protocol):
    """What is needed of a clip: PCM at 16 kHz and its words in order."""

    @property
    def samples(self) -> npt.NDArray[np.int16]: ...
    @property
    def words(self) -> tuple[SpokenWord, ...]: ...
    @property
    def voice(self) -> str: ...
    @property
    def kind(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Heard:
    """A word in a stream, by its place in WORDS; ``start`` and ``end`` in samples from the start of the audio."""

    word: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Audio of one example in -1..1; ``end`` is where the recording is over and silence follows, if it is within."""

    samples: Samples
    words: tuple[Heard, ...]
    end: int | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What the model hears (mel [B, 128, 8 (FRONT + T)]) and what it is given and should say at each delay [K, B, LEFT + T].

    ``sounds`` [B, 4 (FRONT + T)] and ``ended`` [B, FRONT + T] are what its two extra heads should say; ``present`` is as for ``Nano.hear``.
    """

    mel: Tensor
    present: Tensor
    given: Tensor
    targets: Tensor
    delays: Tensor
    sounds: Tensor
    ended: Tensor

    @property
    def seconds(self) -> float:
        """Of audio, padding left out."""
        tokens = self.mel.shape[2] // MEL_PER_TOKEN - FRONT
        return float(self.mel.shape[0] * tokens * STEP / SAMPLE_RATE)


# ---- streams


class Pool:
    """Clips by kind and voice, and streams drawn from them."""

    def __init__(self, kinds: Sequence[str], voices: Sequence[str], clips: ClipSource) -> None:
        self._clips = clips
        self._by_kind = {kind: np.flatnonzero(np.array(kinds) == kind) for kind in ("sentence", "word", "noise")}
        names = np.array(voices)
        self._by_voice = {
            voice: np.flatnonzero((names == voice) & (np.array(kinds) == "sentence")) for voice in sorted(set(voices))
        }
        self._voice_of = names
        if not len(self._by_kind["sentence"]):
            raise ValueError("there are no clips of kind 'sentence': make the corpus first (python -m training.corpus)")

    def stream(self, random: np.random.Generator, tokens: int) -> Stream:
        """One example of that many tokens of audio."""
        samples = np.zeros(tokens * STEP, np.float32)
        if random.random() < 0.1:
            return self._wordless(random, samples)
        words: list[Heard] = []
        ends = random.random() < 0.35
        limit = len(samples)
        if ends:
            limit = round(len(samples) * random.uniform(0.1, 0.75))
        at = _seconds(random, 0.0, 0.7) if random.random() < 0.85 else _seconds(random, 0.7, 3.5)
        voice = None
        if random.random() < 0.7:
            voice = self._voice_of[_one_of(random, self._by_kind["sentence"])]
        many_words = random.random() < 0.12
        first = True
        while at < limit:
            clip = self._pick(random, voice, many_words)
            skipped, skipped_words = _cut_in(random, clip) if first and random.random() < 0.1 else (0, 0)
            first = False
            piece = clip.samples[skipped : skipped + len(samples) - at].astype(np.float32) / 32768
            piece *= 10 ** random.uniform(-0.2, 0.1)
            samples[at : at + len(piece)] += piece
            for word in clip.words[skipped_words:]:
                start, end = (at - skipped + round(time * SAMPLE_RATE) for time in (word.start_s, word.end_s))
                if end <= len(samples):
                    words.append(Heard(INDEX[word.text], max(start, 0), end))
            at += len(clip.samples) - skipped + self._gap(random, many_words)
        over = math.ceil(min(at, len(samples)) / STEP) * STEP if ends else None
        return Stream(samples, tuple(words), over)

    def _gap(self, random: np.random.Generator, many_words: bool) -> int:
        if random.random() < 0.08:
            return _seconds(random, 1.0, 4.0)
        return _seconds(random, 0.0, 0.5) if many_words else _seconds(random, 0.0, 0.8)

    def _pick(self, random: np.random.Generator, voice: str | None, many_words: bool) -> Clip:
        if len(self._by_kind["word"]) and random.random() < (0.9 if many_words else 0.05):
            return self._clips[_one_of(random, self._by_kind["word"])]
        return self._clips[_one_of(random, self._by_kind["sentence"] if voice is None else self._by_voice[voice])]

    def _wordless(self, random: np.random.Generator, samples: Samples) -> Stream:
        """Noise, or nothing at all, to the end or not."""
        noises = self._by_kind["noise"]
        if len(noises) and random.random() < 0.75:
            at = 0
            while at < len(samples):
                noise = self._clips[_one_of(random, noises)].samples[: len(samples) - at].astype(np.float32) / 32768
                samples[at : at + len(noise)] = noise * 10 ** random.uniform(-1.0, 0.0)
                at += len(noise) + _seconds(random, 0.0, 0.5)
        end = None
        if random.random() < 0.5:
            end = round(len(samples) / STEP * random.uniform(0.2, 0.8)) * STEP
        return Stream(samples, (), end)


class ClipSource(Protocol):
    """Clips by number."""

    def __getitem__(self, index: int) -> Clip: ...


def _one_of(random: np.random.Generator, indices: npt.NDArray[np.intp]) -> int:
    return int(indices[int(random.integers(len(indices)))])


def _seconds(random: np.random.Generator, low: float, high: float) -> int:
    return round(random.uniform(low, high) * SAMPLE_RATE)


def _cut_in(random: np.random.Generator, clip: Clip) -> tuple[int, int]:
    """Where to enter a clip between two words (samples), and how many words lie before."""
    if len(clip.words) < 2:
        return 0, 0
    number = int(random.integers(1, len(clip.words)))
    border = (clip.words[number - 1].end_s + clip.words[number].start_s) / 2
    return round(border * SAMPLE_RATE), number


# ---- what is heard


class Ears:
    """Log-mel spectrograms of streams as the server's model hears them."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from mistral_common.audio import mel_filter_bank

        bank = mel_filter_bank(
            num_frequency_bins=WINDOW // 2 + 1,
            num_mel_bins=MEL_BINS,
            min_frequency=0.0,
            max_frequency=8000.0,
            sampling_rate=SAMPLE_RATE,
        )
        self.filters = torch.tensor(np.asarray(bank), dtype=torch.float32, device=device)  # [201, 128]
        self._window = torch.hann_window(WINDOW, device=device)

    def power(self, waveforms: Tensor) -> Tensor:
        """Spectra [B, 201, n / 160] of waveforms [B, n]; frame k is centred on sample 160 k."""
        padded = functional.pad(waveforms, (WINDOW // 2, WINDOW // 2))
        spectra = torch.stft(padded, WINDOW, HOP, window=self._window, center=False, return_complex=True)
        spectra = spectra[..., : waveforms.shape[1] // HOP]
        return spectra.real.square() + spectra.imag.square()

    def mel(self, power: Tensor, filters: Tensor | None = None) -> Tensor:
        """[B, 128, frames], with filters of one's own [201, 128] or [B, 201, 128] if given."""
        bank = self.filters if filters is None else filters
        mel = (bank.transpose(-1, -2) @ power).clamp(min=1e-10).log10()
        return (mel.clamp(min=1.5 - 8.0) + 4.0) / 4.0


def silent_for(mel: Tensor) -> Tensor:
    """For every token, how many up to it were digital silence [B, T]; 0 as long as nothing else was ever heard."""
    batch, bins, frames = mel.shape
    loud = (mel > FLOOR + 1e-4).view(batch, bins, frames // MEL_PER_TOKEN, MEL_PER_TOKEN).any(3).any(1)
    index = torch.arange(loud.shape[1], device=mel.device)[None]
    last = torch.where(loud, index, -1).cummax(1).values
    return torch.where(last >= 0, index - last, 0)


# ---- what should be said


def place(words: tuple[Heard, ...], delay: int, row: npt.NDArray[np.int64]) -> None:
    """Write the words into a row of PAD over all tokens of a stream, its left padding included.

    A word is said when the token that holds its end is ``delay`` tokens old: first WORD, then the word, so that words that
    end close to each other wait for one another.
    """
    free = 0
    for word in sorted(words, key=lambda word: word.end):
        at = max(LEFT + max(math.ceil(word.end / STEP) - 1, 0) + delay, free)
        if at + 1 >= len(row):
            return
        row[at], row[at + 1] = WORD, FIRST_WORD + word.word
        free = at + 2


def end_of_stream(row: npt.NDArray[np.int64], silent: npt.NDArray[np.int64], delay: int) -> None:
    """Write EOS over PAD where the stream has been silent long enough, and IGNORED shortly before."""
    over = (row == PAD) & (silent >= delay + END_AFTER - END_UNSURE)
    row[over] = np.where(silent[over] >= delay + END_AFTER, EOS, IGNORED)


def corrupt(random: np.random.Generator, said: npt.NDArray[np.int64]) -> None:
    """Put some wrong words into what the model is told it has said, so that it learns to go on after its own mistakes."""
    for at in np.flatnonzero(said >= FIRST_WORD):
        fate = random.random()
        if fate < 0.05:
            said[at] = FIRST_WORD + int(random.integers(len(WORDS)))
        elif fate < 0.07:
            said[at - 1 : at + 1] = PAD


DELAY_WEIGHTS = np.array([2.0 if delay in (1, 30) else 1.0 for delay in DELAY_TOKENS])
DELAY_WEIGHTS /= DELAY_WEIGHTS.sum()


class Examples:
    """Batches by step and rank: the same ones whenever they are asked for, as long as the corpus is the same."""

    def __init__(
        self,
        pool: Pool,
        augmentation: Augment | None,
        *,
        seed: int,
        tokens: int,
        size: int,
        delays: int,
        device: str = "cpu",
    ) -> None:
        self._pool = pool
        self._augmentation = augmentation
        self._seed = seed
        self._tokens = tokens
        self._size = size
        self._delays = delays
        self._device = torch.device(device)
        self._ears = Ears(self._device)

    def batch(self, step: int, rank: int = 0) -> Batch:
        random = np.random.default_rng([self._seed, rank, step])
        streams = [self._pool.stream(random, self._tokens) for _ in range(self._size)]
        waveforms = torch.from_numpy(np.stack([stream.samples for stream in streams])).to(self._device)
        ends = torch.tensor([self._tokens * STEP if s.end is None else s.end for s in streams], device=self._device)
        filters = None
        if self._augmentation is not None:
            self._augmentation.generator.manual_seed(int(random.integers(2**62)))
            waveforms = self._augmentation.waveform(waveforms)
            filters = self._augmentation.filterbanks(self._ears.filters, self._size)
        inside = torch.arange(waveforms.shape[1], device=self._device)[None] < ends[:, None]
        waveforms = functional.pad(waveforms * inside, (FRONT * STEP + LOOK_AHEAD, 0))[:, :-LOOK_AHEAD]
        power = self._ears.power(waveforms)
        mel = self._ears.mel(power, filters)
        silent = silent_for(mel).cpu().numpy()
        if self._augmentation is not None:
            mel = self._augmentation.mask(mel)
        delays = random.choice(DELAY_TOKENS, size=(self._delays, self._size), p=DELAY_WEIGHTS)
        present = self._present(streams, delays)
        given, targets = self._tokens_of(random, streams, silent, present, delays)
        sounds, ended = self._taught(streams)
        arrays = (present, given, targets, delays, sounds, ended)
        return Batch(mel, *(torch.from_numpy(array).to(self._device) for array in arrays))

    def _present(self, streams: list[Stream], delays: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which tokens of each stream there are at all: none behind the padding at its end, that of the longest delay."""
        present = np.ones((self._size, FRONT + self._tokens), bool)
        for number, stream in enumerate(streams):
            if stream.end is not None:
                present[number, FRONT + stream.end // STEP + RIGHT + int(delays[:, number].max()) :] = False
        return present

    def _tokens_of(
        self,
        random: np.random.Generator,
        streams: list[Stream],
        silent: npt.NDArray[np.int64],
        present: npt.NDArray[np.bool_],
        delays: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        shape = (*delays.shape, LEFT + self._tokens)
        targets = np.full(shape, PAD)
        given = np.full(shape, PAD)
        for which, number in np.ndindex(delays.shape):
            delay, row = int(delays[which, number]), targets[which, number]
            place(streams[number].words, delay, row)
            end_of_stream(row[LEFT:], silent[number, FRONT:], delay)
            row[LEFT:][~present[number, FRONT:]] = EOS
            said = np.where(row == IGNORED, random.choice((PAD, EOS)), row)
            corrupt(random, said)
            given[which, number, 0] = BOS
            given[which, number, 1:] = said[:-1]
            given[which, number, 1 : LEFT + delay + 1] = PAD  # the prompt
            row[: LEFT + delay] = IGNORED
        return given, targets

    def _taught(self, streams: list[Stream]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        sounds = np.zeros((self._size, POOL * (FRONT + self._tokens)), np.int64)
        ended = np.zeros((self._size, FRONT + self._tokens), np.int64)
        frame = STEP // POOL
        late = POOL * FRONT + 2  # what is heard is known a little later
        for number, stream in enumerate(streams):
            for word in stream.words:
                for sound, start, end in spans(WORDS[word.word], word.start, word.end):
                    sounds[number, late + round(start / frame) : late + round(end / frame)] = 1 + sound
                token = FRONT + max(math.ceil(word.end / STEP) - 1, 0)
                ended[number, token : token + 3] = 1 + word.word
        return sounds, ended
