"""The store of clips that nano is trained on: made by the synthesisers in shards, read back through memory maps.

    python -m training.corpus --hours 8 --seed 1 --out .nano/corpus

A shard is NAME.i16, samples as raw little-endian 16-bit integers at 16 kHz, beside NAME.parquet, one row for each clip: first sample,
number of samples, voice, kind and words. A shard is complete when its parquet file is there, so an interrupted run goes on where it
stopped, and two runs with one seed say the same sentences in the same manners.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from training.festival import HABITS
from training.grammar import WORDS, Part, sentence_of
from training.noises import NOISES, at_some_level, babble
from training.speaking import PLAIN, RATE, Manner, SpokenOtherwiseError, Voice
from training.voices import SPEAKERS_FOR_TESTS, TRAINED_ON, voice_named

Kind = Literal["sentence", "word", "noise"]

SHARES = {**TRAINED_ON, "noise": 0.5}  # of the sound
MARGIN_SECONDS = 0.1  # of sound that is kept before the first word and after the last
LOUDEST = 0.5  # of full scale, in every clip
CLIPS_OF_SHARD = 400
LAST_FAILURE = 20
DEVELOPMENT_VOICES = ("slt", "rms", "kal16")
DEVELOPMENT_CLIPS = 150  # of these voices, and as many of strangers
DEVELOPMENT_NOISES = 24  # about three minutes
WORD_SHARE = 0.12  # of the clips: one word alone
SECONDS_OF_CLIP = 1.9  # on average; only used to tell how many shards are needed
NOISE_SECONDS = (2.0, 12.0)


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word of the vocabulary, and when it is said, in seconds from the start of its clip."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece of sound at 16 kHz and what is said in it: a sentence, one word alone, or nothing."""

    samples: npt.NDArray[np.int16]
    words: tuple[SpokenWord, ...]
    voice: str
    kind: Kind


class CorpusError(Exception):
    """A corpus cannot be read or made; the message says what is wrong and what to do."""


# ---- reading -------------------------------------------------------------------------------------------------------------

SCHEMA = pa.schema(
    {
        "first_sample": pa.int64(),
        "samples": pa.int64(),
        "voice": pa.string(),
        "kind": pa.string(),
        "words": pa.list_(pa.struct({"text": pa.string(), "start_s": pa.float64(), "end_s": pa.float64()})),
    }
)


class Clips(Sequence[Clip]):
    """All clips of a folder of shards, in the order of their names; samples stay on disk until they are used."""

    def __init__(self, folder: Path) -> None:
        """Opens the folder.

        Raises:
            CorpusError: there is no complete shard in it, or one is shorter than its table says.
        """
        tables = sorted(Path(folder).glob("*.parquet"))
        if not tables:
            raise CorpusError(f"{folder}: no clips here; make them with python -m training.corpus --out {folder}")
        self._shards: list[npt.NDArray[np.int16]] = []
        self._rows: list[tuple[int, int, int]] = []  # shard, first sample, end
        self._words: list[tuple[SpokenWord, ...]] = []
        self.voices: list[str] = []
        self.kinds: list[Kind] = []
        for table in tables:
            rows = pq.read_table(table, schema=SCHEMA).to_pylist()
            sound = table.with_suffix(".i16")
            size = sound.stat().st_size // 2 if sound.exists() else 0
            if rows[-1]["first_sample"] + rows[-1]["samples"] != size:
                raise CorpusError(
                    f"{table}: its sound has {size} samples, which are not all; remove it and make it again"
                )
            samples: npt.NDArray[np.int16] = np.memmap(sound, "<i2", "r")
            for row in rows:
                self._rows.append((len(self._shards), row["first_sample"], row["first_sample"] + row["samples"]))
                self._words.append(tuple(SpokenWord(**word) for word in row["words"]))
                self.voices.append(row["voice"])
                self.kinds.append(row["kind"])
            self._shards.append(samples)

    def __len__(self) -> int:
        """How many clips there are."""
        return len(self._rows)

    def __getitem__(self, index: int) -> Clip:  # type: ignore[override]  # no slices: they would read everything
        """One clip."""
        shard, first, end = self._rows[index]
        return Clip(self._shards[shard][first:end], self._words[index], self.voices[index], self.kinds[index])

    def words(self, index: int) -> tuple[SpokenWord, ...]:
        """What is said in a clip, without its sound."""
        return self._words[index]

    def lengths_seconds(self) -> npt.NDArray[np.float64]:
        """The length of each clip."""
        return np.array([end - first for _, first, end in self._rows]) / RATE

    @property
    def seconds(self) -> float:
        """The length of all."""
        return float(self.lengths_seconds().sum())


def write_shard(folder: Path, name: str, clips: Sequence[Clip]) -> None:
    """Writes a shard of one clip or more; its table comes last, and by a renaming, so that a table is never without its sound."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([len(clip.samples) for clip in clips])
    rows = [
        {
            "first_sample": int(end) - len(clip.samples),
            "samples": len(clip.samples),
            "voice": clip.voice,
            "kind": clip.kind,
            "words": [{"text": word.text, "start_s": word.start_s, "end_s": word.end_s} for word in clip.words],
        }
        for clip, end in zip(clips, ends, strict=True)
    ]
    sound = np.concatenate([clip.samples for clip in clips])
    sound.astype("<i2").tofile(folder / f"{name}.i16")
    unfinished = folder / f"{name}.parquet.part"
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), unfinished)
    unfinished.rename(folder / f"{name}.parquet")


# ---- making --------------------------------------------------------------------------------------------------------------


def manner(random: np.random.Generator, words: int) -> Manner:
    """Strangers are many: tempo, pitch, melody and vocal tract are drawn wide and independently of each other."""

    def factor(low: float, high: float) -> float:
        return float(np.exp(random.uniform(np.log(low), np.log(high))))

    halting = random.choice([0.0, 0.15, 0.6], p=[0.5, 0.35, 0.15])
    strangeness = random.choice([0.0, 0.05, 0.12], p=[0.4, 0.3, 0.3])
    return Manner(
        duration=factor(0.72, 1.45),
        pitch=factor(0.7, 1.5),
        melody=factor(0.4, 2.0),
        formants=factor(0.82, 1.24),
        pauses=tuple(bool(pause) for pause in random.random(words - 1) < halting),
        speaker=int(random.integers(2**31)),
        accent=tuple(habit for habit in HABITS if random.random() < strangeness),
        careful=bool(random.random() < 0.4),
    )


def clip_of(voice: Voice, words: Sequence[str], kind: Kind, how: Manner) -> Clip:
    """What the voice says, cut MARGIN_SECONDS from its words, as loud as every other clip."""
    spoken = voice.speak(words, how)
    begin = max(0, round((spoken.times[0][0] - MARGIN_SECONDS) * RATE))
    end = min(len(spoken.samples), round((spoken.times[-1][1] + MARGIN_SECONDS) * RATE))
    samples = spoken.samples[begin:end]
    loudest = max(float(np.abs(samples).max(initial=0.0)), 1e-4)
    timed = (
        SpokenWord(
            word, max(0.0, round(start - begin / RATE, 4)), min(len(samples) / RATE, round(stop - begin / RATE, 4))
        )
        for word, (start, stop) in zip(words, spoken.times, strict=True)
    )
    return Clip(np.rint(samples * (LOUDEST / loudest * 32_767)).astype(np.int16), tuple(timed), voice.name, kind)


def speech(voice: Voice, part: Part, random: np.random.Generator, *, varied: bool) -> Iterator[Clip]:
    """Clips of one voice without end; what a synthesiser would not say as it stands is left out.

    Raises:
        CorpusError: it has failed LAST_FAILURE times running.
    """
    failures = 0
    while failures < LAST_FAILURE:
        alone = part == "train" and random.random() < WORD_SHARE
        words = [WORDS[int(random.integers(len(WORDS)))]] if alone else sentence_of(part, random)
        how = manner(random, len(words)) if varied else PLAIN
        try:
            clip = clip_of(voice, words, "word" if alone else "sentence", how)
        except SpokenOtherwiseError as error:
            failures, reason = failures + 1, error
            continue
        failures = 0
        yield clip
    raise CorpusError(
        f"voice {voice.name}: {LAST_FAILURE} sentences running could not be said; the last: {reason}"
    ) from reason


def non_speech(random: np.random.Generator) -> Iterator[Clip]:
    """Clips in which nothing is said, without end; babble is made of the fastest voice."""
    voices = [
        clip_of(voice_named("kal16"), sentence_of("train", random), "sentence", manner(random, 14)) for _ in range(12)
    ]
    spoken = [clip.samples.astype(np.float64) for clip in voices]
    names = [*NOISES, "music", "music", "babble", "babble"]  # more of what is most like a voice
    while True:
        name = str(random.choice(names))
        samples = round(random.uniform(*NOISE_SECONDS) * RATE)
        sound = babble(spoken, samples, random) if name == "babble" else NOISES[name](samples, random)
        yield Clip(at_some_level(sound, name, random), (), f"noise-{name}", "noise")


@dataclass(frozen=True, slots=True)
class Shard:
    """What one shard holds: so many clips of one voice, or of noise where ``voice`` is NOISE."""

    voice: str
    number: int
    clips: int
    part: Part
    varied: bool

    @property
    def name(self) -> str:
        """Of its files, without suffix."""
        return f"{self.voice}-{self.number:04d}"


NOISE = "noise"


def make_shard(shard: Shard, seed: int, folder: Path) -> float:
    """Makes one shard; how many seconds of sound it holds."""
    random = np.random.default_rng([seed, shard.number, *shard.voice.encode()])
    voice = shard.voice
    source = (
        non_speech(random) if voice == NOISE else speech(voice_named(voice), shard.part, random, varied=shard.varied)
    )
    clips = [next(source) for _ in range(shard.clips)]
    write_shard(folder, shard.name, clips)
    return sum(len(clip.samples) for clip in clips) / RATE


def plan(hours: float, shares: Mapping[str, float]) -> list[Shard]:
    """The shards of a training corpus, the voices mixed so that what an interrupted run has is balanced too."""
    clips = hours * 3_600 / SECONDS_OF_CLIP
    total = sum(shares.values())
    shards = []
    for voice, share in shares.items():
        length = SECONDS_OF_CLIP / 7 if voice == NOISE else 1.0  # noise clips last 7 s on average
        wanted = max(1, round(clips * share / total * length))
        count = max(1, round(wanted / CLIPS_OF_SHARD))
        shards += [Shard(voice, number, max(1, wanted // count), "train", varied=True) for number in range(count)]
    totals = {voice: sum(shard.voice == voice for shard in shards) for voice in shares}
    return sorted(shards, key=lambda shard: (shard.number + 0.5) / totals[shard.voice])


def development_plan() -> list[Shard]:
    """For choosing settings: new sentences, voices as their makers left them, half of them by a speaker who is not trained on."""
    clips = dict.fromkeys(DEVELOPMENT_VOICES, DEVELOPMENT_CLIPS // len(DEVELOPMENT_VOICES))
    clips |= dict.fromkeys(SPEAKERS_FOR_TESTS, DEVELOPMENT_CLIPS // len(SPEAKERS_FOR_TESTS))
    clips[NOISE] = DEVELOPMENT_NOISES
    return [Shard(voice, 0, count, "development", varied=False) for voice, count in clips.items()]


def make(shards: Sequence[Shard], seed: int, folder: Path, processes: int) -> None:
    """Makes those shards that are not there yet, and says on one line how far it is."""
    waiting = [shard for shard in shards if not (folder / f"{shard.name}.parquet").exists()]
    done, seconds, started = len(shards) - len(waiting), 0.0, time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        running = [pool.submit(make_shard, shard, seed, folder) for shard in waiting]
        for made in as_completed(running):
            if made.exception() is not None:
                pool.shutdown(cancel_futures=True)
            seconds += made.result()
            done += 1
            took = time.monotonic() - started
            left = took / (done - len(shards) + len(waiting)) * (len(shards) - done)
            line = f"{done}/{len(shards)} shards, {seconds / 3_600:.2f} h of sound in {took / 60:.1f} min, {left / 60:.1f} min left"
            print(f"\r{line:<79}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def main() -> None:
    """Makes a corpus."""
    parser = argparse.ArgumentParser(
        prog="python -m training.corpus", description="Makes the clips that nano is trained on."
    )
    parser.add_argument("--hours", type=float, default=8.0, help="of sound, in all (default 8)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="folder; shards that are there already are kept")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--voices", help=f"comma-separated, of {', '.join(SHARES)}; all by default")
    parser.add_argument("--development", action="store_true", help="instead: a few hundred clips to choose settings by")
    options = parser.parse_args()
    chosen = options.voices.split(",") if options.voices else list(SHARES)
    if unknown := set(chosen) - set(SHARES):
        parser.error(f"--voices: {', '.join(sorted(unknown))} unknown; there are {', '.join(SHARES)}")
    shards = (
        development_plan() if options.development else plan(options.hours, {voice: SHARES[voice] for voice in chosen})
    )
    make(shards, options.seed, options.out, options.processes)
    clips = Clips(options.out)
    print(f"{len(clips)} clips, {clips.seconds / 3_600:.2f} h in {options.out}")
    lengths = clips.lengths_seconds()
    for voice in sorted(set(clips.voices)):
        own = np.array([name == voice for name in clips.voices])
        print(f"  {voice:<16} {lengths[own].sum() / 3_600:6.2f} h {own.sum():7d} clips")


if __name__ == "__main__":
    main()
