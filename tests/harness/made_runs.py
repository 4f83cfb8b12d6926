"""Run folders made from invented streams, written and scored by the real store and score."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from harness import score, store
from harness.corpus import Utterance
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.words import TimedWord

NORMALISER = "whisper-english-digitwise/1"
CAVEAT = "A weak recogniser: its WER says how it compares with itself, not what speech recognition can do."
LEXICON = (  # noqa: SIM905 - sentences read easier than a list
    "the quiet river turned north before the old mill and nobody on the bridge could say how long the water had been rising "
    "please remind me to call the dentist at half past nine on thursday morning because the office closes early in november "
    "seventeen boats left harbour during the storm yet only twelve returned with their nets and lanterns still in one piece "
    "would you rather take the train to lisbon or drive along the coast and stop wherever the bread smells good"
).split()
SOUNDS_LIKE = {
    "river": "liver",
    "mill": "mail",
    "bridge": "rich",
    "train": "rain",
    "boats": "votes",
    "call": "tall",
    "bread": "red",
}
SPEAKERS = ("slt", "rms", "awb", "kal16")
PACKET_SECONDS = 0.08


@dataclass(frozen=True, slots=True)
class Recipe:
    """What the invented server does. Rates are per word, times in seconds."""

    delay_ms: int | None = 480
    concurrency: int = 8
    utterances: int = 80
    seed: int = 1
    noise_seed: int = 1
    substituted: float = 0.12
    deleted: float = 0.04
    inserted: float = 0.03
    overhead: float = 0.08
    jitter: float = 0.05
    late_final: float = 0.0
    pacing_late: float = 0.0005
    failing: int = 0
    complete: bool = True
    corpus: str = "c" * 64
    engine: str = "sphinx"
    model: str = "pocketsphinx 5.1.1 en-us"
    protocol: str = "realtime"
    non_speech: int = 0
    caveat: str = CAVEAT
    machine_cpu: float = 85.0  # per cent of one core
    load: tuple[tuple[str, Any], ...] = ()
    slower: float = 0.0  # by how many seconds words come later with every second of audio
    spoken: tuple[Utterance, ...] = ()  # recordings that there are, in place of invented ones
    arrival: str = "closed"
    driver_options: tuple[str, ...] = ()
    speed: float = 1.0  # inf only marks the records as unpaced: their times stay those of a paced replay


def records(recipe: Recipe) -> list[StreamRecord]:
    """Utterances and word times depend on ``seed`` alone, so that runs pair; what the server does on ``noise_seed`` too."""
    said, heard = np.random.default_rng(recipe.seed), np.random.default_rng((recipe.seed, recipe.noise_seed))
    lanes = [0.0] * recipe.concurrency
    made = []
    spoken = recipe.spoken or [_invented(said, n, recipe) for n in range(recipe.utterances + recipe.non_speech)]
    for number, utterance in enumerate(spoken):
        lane = int(np.argmin(lanes))
        record = StreamRecord(
            stream=number,
            utterance=utterance.id,
            t0_ns=round((lanes[lane] + 0.2) * 1e9),
            audio_seconds=utterance.seconds,
            reference=utterance.text,
            speaker=utterance.speaker,
            words=utterance.words,
            lane=lane,
            delay_ms=recipe.delay_ms,
            delay_ms_in_force=recipe.delay_ms,
            speed=recipe.speed,
        )
        _replay(record, recipe, heard, fails=number < recipe.failing)
        lanes[lane] = record.entries[-1].t_ns / 1e9
        made.append(record)
    return made


def _invented(rng: np.random.Generator, number: int, recipe: Recipe) -> Utterance:
    words = _words(rng) if number < recipe.utterances else ()
    seconds = (words[-1].end if words else 4.0) + 0.35
    text = " ".join(word.text for word in words).capitalize() + ("." if words else "")
    return Utterance(f"u{number:04d}", text, seconds, SPEAKERS[number % len(SPEAKERS)], words=words)


def _words(rng: np.random.Generator) -> tuple[TimedWord, ...]:
    at, made = 0.25, []
    begin = int(rng.integers(0, len(LEXICON) - 30))
    for text in LEXICON[begin : begin + int(rng.integers(6, 30))]:
        end = at + 0.12 + 0.045 * len(text) * float(rng.uniform(0.8, 1.2))
        made.append(TimedWord(text, round(at, 3), round(end, 3)))
        at = end + float(rng.exponential(0.04))
    return tuple(made)


def _replay(record: StreamRecord, recipe: Recipe, rng: np.random.Generator, fails: bool) -> None:
    t0 = record.t0_ns / 1e9
    events: list[tuple[float, Kind, float | None, float | None, str | None]] = [
        (t0 - 0.03, Kind.CONNECTING, None, None, None),
        (t0 - 0.02, Kind.CONNECTED, None, None, None),
        (t0 - 0.01, Kind.READY, None, None, None if recipe.delay_ms is None else str(recipe.delay_ms)),
    ]
    for packet in range(math.ceil(record.audio_seconds / PACKET_SECONDS)):
        sent = min(record.audio_seconds, (packet + 1) * PACKET_SECONDS)
        events.append((t0 + sent + float(rng.exponential(recipe.pacing_late)), Kind.PACKET, t0 + sent, sent, None))
    done = t0 + record.audio_seconds
    events.append((done + 0.001, Kind.END_OF_AUDIO, done, None, None))
    if fails:
        events += [
            (done + 0.05, Kind.ERROR, None, None, "1011: the recogniser stopped"),
            (done + 0.06, Kind.CLOSED, None, None, "1011"),
        ]
        record.error = "1011: the recogniser stopped"
    else:
        events += _transcript(record, recipe, rng, t0, done)
        record.outcome = Outcome.OK
    events.sort(key=lambda event: event[0])
    record.entries = [
        Entry(round(t * 1e9), kind, None if due is None else round(due * 1e9), value, text)
        for t, kind, due, value, text in events
    ]


def _transcript(
    record: StreamRecord, recipe: Recipe, rng: np.random.Generator, t0: float, done: float
) -> list[tuple[float, Kind, float | None, float | None, str | None]]:
    delay = (recipe.delay_ms or 480) / 1000
    flushed = done + 0.03 + float(rng.gamma(2, recipe.jitter / 2))
    events: list[tuple[float, Kind, float | None, float | None, str | None]] = []
    text, last = "", t0
    for word in record.words or ():
        behind = recipe.overhead + recipe.slower * word.end
        shown = min(flushed, t0 + word.end + delay + behind + float(rng.gamma(2, recipe.jitter)))
        last = max(last, shown)
        draw = float(rng.random())
        if draw < recipe.deleted:
            continue
        heard = SOUNDS_LIKE.get(word.text, word.text[::-1]) if draw < recipe.deleted + recipe.substituted else word.text
        if float(rng.random()) < recipe.inserted:
            heard += " and"
        events.append((last, Kind.APPENDED, None, None, f" {heard}" if text else heard))
        text += f" {heard}" if text else heard
    final = max(last, flushed) + 0.01 + recipe.late_final
    record.hypothesis = text
    return [*events, (final, Kind.FINAL, None, None, text), (final + 0.005, Kind.CLOSED, None, None, "1000")]


def config(recipe: Recipe) -> store.RunConfig:
    return store.RunConfig(
        dataset="spoken-en", corpus_sha256=recipe.corpus, protocol=recipe.protocol, target="started", engine=recipe.engine,
        model=recipe.model, concurrency=recipe.concurrency, delay_ms=recipe.delay_ms, packet_ms=80, speed=recipe.speed, seed=recipe.seed,
        normaliser=NORMALISER, caveat=recipe.caveat, load=dict(recipe.load), arrival=recipe.arrival,
        driver_options=list(recipe.driver_options),
    )  # fmt: skip


def make(root: Path, recipe: Recipe | None = None, **changes: object) -> Path:
    """A scored run folder under ``root``."""
    recipe = replace(recipe or Recipe(), **changes)  # type: ignore[arg-type]
    asked, streams = config(recipe), records(recipe)
    folder = store.create(root, asked, datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    seconds = max(record.entries[-1].t_ns for record in streams) / 1e9
    environment = {
        "machine": "x86_64", "cpu": "Example CPU 2.0 GHz", "cores": 2, "python": "3.11.9",
        "git": {"commit": "0123abc", "dirty": False}, "packages": {"numpy": "2.3.0", "pandas": "2.3.3"},
    }  # fmt: skip
    store.write_run(
        folder,
        store.Run(store.SCHEMA, folder.name, "2030-01-02T03:04:05Z", asked, environment, recipe.complete, seconds),
    )
    store.write_records(folder, streams)
    store.write_system(folder, list(_samples(seconds, recipe)))
    score.score(folder)
    return folder


def _samples(seconds: float, recipe: Recipe) -> Iterator[dict[str, object]]:
    rng = np.random.default_rng(recipe.noise_seed)
    for second in range(int(seconds) + 1):
        for source, cpu, mib in (("server", 70.0, 180), ("harness", 6.0, 110), ("machine", recipe.machine_cpu, 2200)):
            noisy = cpu * float(rng.uniform(0.8, 1.2))
            yield {
                "t_seconds": float(second),
                "source": source,
                "cpu_percent": noisy,
                "rss_bytes": (mib + second * 0.1) * 2**20,
            }
