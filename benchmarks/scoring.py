"""Prints how long scoring takes, what it needs in memory and how large a run folder is, on generated runs."""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from pathlib import Path

from harness import store
from harness.score import score
from harness.store import Run, RunConfig
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.words import TimedWord

MS = 1_000_000
WORDS = (
    "the",
    "a",
    "river",
    "seven",
    "green",
    "carry",
    "was",
    "of",
    "stone",
    "window",
    "and",
    "to",
    "morning",
    "house",
)


def generated(
    stream: int, seconds: float, chance: random.Random, *, revised: bool, packet_ms: int = 80, delay: float = 0.5
) -> StreamRecord:
    """A stream with a word every 0.4 s, a tenth of them misheard, sent in packets and shown ``delay`` s after its end."""
    words = tuple(
        TimedWord(chance.choice(WORDS), 0.4 * i + 0.1, 0.4 * i + 0.4) for i in range(int((seconds - 0.5) / 0.4))
    )
    t0_ns = round(stream * 37.3 * MS)
    heard = [chance.choice(WORDS) if chance.random() < 0.1 else word.text for word in words]
    entries = [
        Entry(t0_ns - 9 * MS, Kind.CONNECTING),
        Entry(t0_ns - 5 * MS, Kind.CONNECTED),
        Entry(t0_ns - 2 * MS, Kind.READY),
    ]
    for number in range(1, int(seconds * 1000) // packet_ms + 1):
        due_ns = t0_ns + number * packet_ms * MS
        value = number * packet_ms / 1000
        entries.append(Entry(due_ns + round(chance.expovariate(1 / 300_000)), Kind.PACKET, due_ns, value))
    for number, (word, text) in enumerate(zip(words, heard, strict=True)):
        at_ns = t0_ns + round((word.end + delay + chance.expovariate(20)) * 1000) * MS + chance.randrange(MS)
        blank = " " if number else ""
        if revised:  # a guess first, half of the time a wrong one
            guess = text if chance.random() < 0.5 else chance.choice(WORDS)
            entries.append(Entry(at_ns - 120 * MS, Kind.TENTATIVE, text=blank + guess))
        entries.append(Entry(at_ns, Kind.APPENDED, text=blank + text))
    entries.sort(key=lambda entry: entry.t_ns)
    end_ns = t0_ns + round(seconds * 1000) * MS
    last_ns = max(end_ns, entries[-1].t_ns)
    text = " ".join(heard)
    entries += [
        Entry(end_ns, Kind.END_OF_AUDIO, end_ns),
        Entry(last_ns + 50 * MS, Kind.FINAL, text=text),
        Entry(last_ns + 51 * MS, Kind.CLOSED, text="1000 "),
    ]
    return StreamRecord(
        stream=stream,
        utterance=f"u{stream:05}",
        t0_ns=t0_ns,
        audio_seconds=seconds,
        reference=" ".join(word.text for word in words),
        words=words,
        delay_ms=480,
        outcome=Outcome.OK,
        hypothesis=text,
        entries=entries,
    )


def main() -> None:
    """One line for writing, one for scoring, one for size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of audio in each")
    parser.add_argument("--revised", action="store_true", help="with partials that are taken back")
    parser.add_argument("--keep", type=Path, help="write the run here and leave it")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="earmark-scoring-"))
    config = RunConfig(
        "generated", "", "yap", "generated", "generated", "", 500, 480, 80, 1.0, 1, "whisper-english-digitwise/1"
    )
    chance = random.Random(1)
    folder = store.create(root, config)
    records = [generated(n, options.seconds, chance, revised=options.revised) for n in range(options.utterances)]
    begun = time.perf_counter()
    store.write_records(folder, records)
    store.write_run(folder, Run(store.SCHEMA, folder.name, "2026-01-01T00:00:00Z", config, {}, complete=True))
    print(f"write   {time.perf_counter() - begun:8.2f} s  {sum(len(one.entries) for one in records)} entries")
    size = sum(path.stat().st_size for path in folder.iterdir())
    hours = options.utterances * options.seconds / 3600
    print(
        f"size    {size / 1e6:8.2f} MB  {size / 1e6 / hours:.3f} MB per hour of audio, x 500 streams {500 * size / 1e6 / hours:.0f} MB"
    )
    del records
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun, begun_cpu = time.perf_counter(), time.process_time()
    scores = score(folder)
    print(f"score   {time.perf_counter() - begun:8.2f} s wall, {time.process_time() - begun_cpu:.2f} s CPU")
    print(
        f"memory  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB peak, {before_mib:.0f} before scoring"
    )
    print(f"streams {scores.streams}, WER {scores.accuracy.wer.value}, valid {scores.valid}")
    if options.keep is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
