"""Prints how long scoring takes, what it needs in memory and how large a run folder is, on generated runs."""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from harness import store
from harness.score import score
from harness.store import Run, RunConfig
from harness.timeline import Entry, Kind, Outcome, StreamRecord
from wire.words import TimedWord

MS = 1_000_000
VOCABULARY = [a + b + c for a in ("ka", "lo", "mi", "nu", "pe", "ra", "so", "ti", "vu", "ze", "") for b in "aeiouylr" for c in
              ("", "s", "n", "ter", "ling", "st", "d", "ing", "ed", "mo", "gra", "to", "ph", "ck", "l", "ion", "al")]  # fmt: skip
SHARES = list(accumulate(1 / rank for rank in range(1, len(VOCABULARY) + 1)))  # Zipf's law, as words are
LATENESS_P50_NS, LATENESS_SIGMA = 600_000, 0.472  # log-normal with p50 0.6 and p99 1.8 ms, as 500 streams were measured


def spoken_word(chance: random.Random) -> str:
    """A made-up word, some far more often than others."""
    return chance.choices(VOCABULARY, cum_weights=SHARES)[0]


def reference(seconds: float, chance: random.Random) -> tuple[TimedWord, ...]:
    """A word every 0.4 s on average, on a grid of a millisecond as corpora have it."""
    words, at = [], 0.25
    while at < seconds - 0.8:
        length = round(chance.uniform(0.15, 0.5), 3)
        words.append(TimedWord(spoken_word(chance), round(at, 3), round(at + length, 3)))
        at += length + chance.choice((0.0, 0.0, 0.225))
    return tuple(words)


def generated(
    stream: int,
    utterance: int,
    words: tuple[TimedWord, ...],
    seconds: float,
    chance: random.Random,
    *,
    revised: bool,
    word_times: bool = False,
    packet_ms: int = 80,
    delay: float = 0.5,
) -> StreamRecord:
    """A stream in which a tenth of the words are misheard, sent in packets and shown ``delay`` s after their ends."""
    t0_ns = round(stream * 37.3 * MS) + chance.randrange(MS)
    heard = [spoken_word(chance) if chance.random() < 0.1 else word.text for word in words]
    entries = [
        Entry(t0_ns - 9 * MS - chance.randrange(MS), Kind.CONNECTING),
        Entry(t0_ns - 5 * MS - chance.randrange(MS), Kind.CONNECTED),
        Entry(t0_ns - 2 * MS - chance.randrange(MS), Kind.READY),
    ]
    for number in range(1, int(seconds * 1000) // packet_ms + 1):
        due_ns = t0_ns + number * packet_ms * MS
        value = number * packet_ms / 1000
        late_ns = round(LATENESS_P50_NS * chance.lognormvariate(0, LATENESS_SIGMA))
        entries.append(Entry(due_ns + late_ns, Kind.PACKET, due_ns, value))
    for number, (word, text) in enumerate(zip(words, heard, strict=True)):
        at_ns = t0_ns + round((word.end + delay + chance.expovariate(20)) * 1000) * MS + chance.randrange(MS)
        blank = " " if number else ""
        if revised:  # a guess first, half of the time a wrong one
            guess = text if chance.random() < 0.5 else spoken_word(chance)
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
        utterance=f"u{utterance:05}",
        t0_ns=t0_ns,
        audio_seconds=seconds,
        reference=" ".join(word.text for word in words),
        words=words,
        delay_ms=480,
        outcome=Outcome.OK,
        hypothesis=text,
        hypothesis_words=tuple(
            TimedWord(said, round(word.start, 2), round(word.end + chance.choice((-0.02, -0.01, 0.0, 0.01, 0.02)), 2))
            for word, said in zip(words, heard, strict=True)
        )
        if word_times
        else (),
        entries=entries,
    )


def _print_sizes(folder: Path, hours: float) -> None:
    """Files that grow with the streams, by the hour; references.parquet grows with the corpus alone."""
    recorded = computed = 0.0
    for path in sorted(folder.glob("*.parquet")):
        megabytes = path.stat().st_size / 1e6
        if path.name == "references.parquet":
            print(f"  {path.name:22}{megabytes:8.2f} MB, once")
            recorded += megabytes
            continue
        scaled = megabytes * 500 / hours
        print(f"  {path.name:22}{scaled:8.2f} MB")
        if path.name == "utterances.parquet":
            computed += scaled
        else:
            recorded += scaled
    print(f"  recorded {recorded:.1f} MB, with what scoring adds {recorded + computed:.1f} MB")


def main() -> None:
    """How long writing and scoring take, and what they leave behind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--utterances", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=6.0, help="of audio in each")
    parser.add_argument("--corpus", type=int, default=2_000, help="utterances of the corpus, replayed in turn")
    parser.add_argument("--revised", action="store_true", help="with partials that are taken back")
    parser.add_argument("--word-times", action="store_true", help="the server says when each word was said")
    parser.add_argument("--keep", type=Path, help="write the run here and leave it")
    options = parser.parse_args()
    root = options.keep or Path(tempfile.mkdtemp(prefix="earmark-scoring-"))
    config = RunConfig(
        "generated", "", "yap", "generated", "generated", "", 500, 480, 80, 1.0, 1, "whisper-english-digitwise/1"
    )
    chance = random.Random(1)
    folder = store.create(root, config)
    corpus = [reference(options.seconds, chance) for _ in range(options.corpus)]
    records = []
    for number in range(options.utterances):
        which = number % options.corpus
        form = {"revised": options.revised, "word_times": options.word_times}
        records.append(generated(number, which, corpus[which], options.seconds, chance, **form))
    begun = time.perf_counter()
    store.write_records(folder, records)
    store.write_run(folder, Run(store.SCHEMA, folder.name, "2026-01-01T00:00:00Z", config, {}, complete=True))
    print(f"write   {time.perf_counter() - begun:8.2f} s  {sum(len(one.entries) for one in records)} entries")
    del records
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun, begun_cpu = time.perf_counter(), time.process_time()
    scores = score(folder)
    print(f"score   {time.perf_counter() - begun:8.2f} s wall, {time.process_time() - begun_cpu:.2f} s CPU")
    print(
        f"memory  {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB peak, {before_mib:.0f} before scoring"
    )
    hours = options.utterances * options.seconds / 3600
    print(f"Parquet of 500 streams by the hour, from {hours:.1f} hours of one stream:")
    _print_sizes(folder, hours)
    print(f"streams {scores.streams}, WER {scores.accuracy.wer.value}, valid {scores.valid}")
    if options.keep is None:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
