"""Scored run folders read back as cells of one bench, with what is drawn of them and what differs between them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from harness import latency, paired, score, statistics, store
from harness.frames import read_utterances
from harness.report import figures
from harness.report.figures import Curve, Floats, Line, Mark, Point
from harness.report.marking import Marked, delay_said, marked, numbered_mark, sided
from harness.score import Scores
from harness.statistics import Bootstrap, Difference, Estimate
from harness.store import Run, RunConfig
from harness.timeline import Outcome

# Word error rate of Voxtral Realtime on FLEURS, all languages, by delay in ms, as its model card publishes it.
PUBLISHED_VOXTRAL = ((160.0, 0.1260), (240.0, 0.1080), (480.0, 0.0872), (960.0, 0.0770), (2400.0, 0.0673))
WORDS_DRAWN = 150  # of one utterance; more cannot be told apart
KEEPS_UP = 0.01  # seconds by which a transcript may fall behind in every second of audio
PUBLISHED_LABEL = "Voxtral Realtime on FLEURS (model card)"


class NoRunsError(Exception):
    """There is nothing to show; the message says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One scored run folder, read."""

    folder: Path
    run: Run
    scores: Scores
    utterances: pd.DataFrame
    system: pd.DataFrame
    mark: Mark
    group: str = ""  # what tells it apart but for the delay: cells of one group are one line over the delays
    side: str = ""  # "A" or "B" where two sides are held against each other

    @property
    def label(self) -> str:
        """What it is called among its fellows."""
        return self.mark.label or delay_said(self.run.config)

    @property
    def rate(self) -> Estimate:
        """The error rate that counts in the languages of the corpus."""
        return self.scores.accuracy.cer if self.by_character else self.scores.accuracy.wer

    @property
    def by_character(self) -> bool:
        """Whether characters are counted and not words."""
        return self.scores.accuracy.headline == "cer"

    @property
    def keeps_up(self) -> bool | None:
        """Whether the median stream keeps up with its audio, by the interval of its drift; ``None`` where that cannot be told."""
        drift = self.scores.latency.get("drift")
        if drift is None or drift.p50.low is None or drift.p50.high is None:
            return None
        return True if drift.p50.high <= KEEPS_UP else False if drift.p50.low > KEEPS_UP else None

    @property
    def delay_seconds(self) -> float | None:
        """The delay in force: what the server said, else what was asked for."""
        said = self.utterances["delay_ms_in_force"].dropna()
        asked = self.run.config.delay_ms
        if len(said):
            return float(said.median()) / 1000
        return None if asked is None else asked / 1000

    @property
    def sound(self) -> bool:
        """Whether its figures may be quoted."""
        return self.scores.valid and self.scores.complete

    @property
    def other_work(self) -> float | None:
        """The median share of the machine's processors that neither the server nor the harness used; ``None`` where unknown.

        Behind a server that was not started by the run, or on another machine, nothing can be told apart.
        """
        cores = self.run.environment.get("cores")
        if self.system.empty or not isinstance(cores, int) or "server" not in set(self.system["source"]):
            return None
        busy = self.system.assign(second=self.system["t_seconds"].round()).pivot_table(
            index="second", columns="source", values="cpu_percent", aggfunc="mean"
        )
        if "machine" not in busy:
            return None
        own = busy[[name for name in ("server", "harness") if name in busy]].sum(axis=1)
        return float((busy["machine"] - own).median() / (100 * cores))

    @property
    def scored(self) -> pd.DataFrame:
        """The utterances that count: those of ramp-up and cool-down are recorded, not scored."""
        return self.utterances[self.utterances["scored"]]

    def bootstrap_blocks(self, names: Sequence[str], speakers: Sequence[str]) -> list[str]:
        """What is resampled: what the run's own intervals resampled."""
        return list(speakers if self.scores.block == "speaker" else names)


def load(folders: Sequence[Path]) -> list[Cell]:
    """Reads scored run folders, ordered by delay and concurrency. Raises `NoRunsError` when there is nothing to read."""
    if not folders:
        raise NoRunsError("no run folder given: pass at least one folder under reports/runs")
    read = sorted(map(_read, folders), key=_order)
    return [_cell(one, how) for one, how in zip(read, marked([run.config for _, run, _ in read]), strict=True)]


SIDES = ("A", "B")


def load_sides(one: Sequence[Path], other: Sequence[Path]) -> list[Cell]:
    """The runs of two sides, marked by side, those that belong together beside each other. Raises `NoRunsError` when a side has none."""
    if not one or not other:
        raise NoRunsError("each side needs at least one run folder")
    both = [sorted(map(_read, folders), key=_order) for folders in (one, other)]
    marks = sided([[run.config for _, run, _ in read] for read in both], SIDES)
    cells = [
        _cell(read, how, side)
        for side, reads, hows in zip(SIDES, both, marks, strict=True)
        for read, how in zip(reads, hows, strict=True)
    ]
    return sorted(cells, key=lambda cell: (cell.run.config.delay_ms or 0, cell.run.config.concurrency))


_Read = tuple[Path, Run, Scores]


def _read(folder: Path) -> _Read:
    return Path(folder), store.read_run(Path(folder)), read_scores(Path(folder))


def _order(read: _Read) -> tuple[int, int, str]:
    run = read[1]
    return run.config.delay_ms or 0, run.config.concurrency, run.id


def _cell(read: _Read, how: Marked, side: str = "") -> Cell:
    folder, run, scores = read
    system = pd.DataFrame(store.read_system(folder))
    return Cell(folder, run, scores, read_utterances(folder), system, how.mark, how.group, side)


def read_scores(folder: Path) -> Scores:
    """Raises `NoRunsError` for a folder that was never scored."""
    if not (folder / "scores.json").exists():
        raise NoRunsError(f"{folder} has no scores.json: run `earmark score {folder}` first")
    return score.read_scores(folder)


def chosen_folders(
    root: Path = Path("reports/runs"), whole_bench: bool = False, dataset: str | None = None
) -> list[Path]:
    """The run folders to read: those of `EARMARK_RUNS` (run folders or folders of them), else the newest under ``root``.

    ``whole_bench`` takes, for each delay and concurrency, the newest run that agrees with the newest of all in everything else.
    With ``dataset`` runs over others do not count. Raises `NoRunsError` with what to do when there is none.
    """
    named, places = _places(root)
    found = [folder for place in places for folder in _run_folders(place) if _is_over(dataset, folder)]
    if not found:
        where = f"EARMARK_RUNS={named}" if named else f"{root.resolve()}"
        wanted = f"scored run over {dataset}" if dataset else "scored run"
        raise NoRunsError(f"no {wanted} in {where}: make one with `nox -s bench`, or set EARMARK_RUNS to run folders")
    if named and all((place / "run.json").exists() for place in places):
        return found
    if whole_bench and (bench := _newest_bench(places, dataset)):
        return bench
    newest = sorted(
        ((store.read_run(folder), folder) for folder in found), key=lambda one: one[0].created, reverse=True
    )
    if not whole_bench:
        return [newest[0][1]]
    first = newest[0][0].config
    cells: dict[tuple[int | None, int], Path] = {}
    for run, folder in newest:
        if _but_for_cell(run.config) == _but_for_cell(first):
            cells.setdefault((run.config.delay_ms, run.config.concurrency), folder)
    return list(cells.values())


def every_folder(root: Path = Path("reports/runs")) -> list[Path]:
    """All scored runs in the places of `chosen_folders`; none where there are none."""
    return [folder for place in _places(root)[1] for folder in _run_folders(place)]


def _places(root: Path) -> tuple[str, list[Path]]:
    named = os.environ.get("EARMARK_RUNS", "")
    return named, [Path(place) for place in named.split(os.pathsep) if place] or [root]


def _run_folders(place: Path) -> list[Path]:
    if (place / "bench.json").exists() and not (place / "run.json").exists():
        place = place.parent
    candidates = [place] if (place / "run.json").exists() else sorted(place.glob("*/")) if place.is_dir() else []
    return [folder for folder in candidates if (folder / "scores.json").exists() and (folder / "run.json").exists()]


def _is_over(dataset: str | None, folder: Path) -> bool:
    return dataset is None or store.read_run(folder).config.dataset == dataset


def _newest_bench(places: Sequence[Path], dataset: str | None) -> list[Path]:
    """The runs that the newest bench.json lists, as far as they are scored; none when there is no such file."""
    listed = sorted(
        (path for place in places for path in (*place.glob("bench.json"), *place.glob("*/bench.json"))), key=_age
    )
    for path in reversed(listed):
        names = msgspec.json.decode(path.read_bytes(), type=_Bench).runs
        runs = [f for name in names for f in _run_folders(path.parent.parent / name) if _is_over(dataset, f)]
        if runs:
            return runs
    return []


def _age(path: Path) -> str:
    return path.parent.name  # begins with the UTC time at which it was made


class _Bench(msgspec.Struct):
    runs: list[str]


def _but_for_cell(config: RunConfig) -> RunConfig:
    return msgspec.structs.replace(config, delay_ms=None, concurrency=0, target="", label="")


def wer_change(before: Cell, after: Cell) -> Difference:
    """WER of ``after`` less that of ``before`` over the utterances both have, with a paired 95 % interval."""
    a, b = (paired.counts(cell.scored.to_dict("records")) for cell in (before, after))
    return paired.wer_change(a, b, before.scores.block, Bootstrap(before.run.config.seed))


def utterance_counts(scored: pd.DataFrame) -> pd.DataFrame:
    """Errors and reference words per utterance with speech; the mean of its repetitions where it was replayed several times."""
    speech = scored[scored["reference_words"] > 0]
    errors = _errors(speech)
    table = speech[["utterance", "speaker"]].assign(
        errors=errors, words=speech["reference_words"], speaker=speech["speaker"].fillna("")
    )
    return table.groupby("utterance").agg(
        errors=("errors", "mean"), words=("words", "mean"), speaker=("speaker", "first")
    )


def speaker_wer(cell: Cell, speaker: str) -> Estimate:
    """WER over the utterances of one speaker, resampled by recording."""
    counts = utterance_counts(cell.scored[cell.scored["speaker"] == speaker])
    errors, words = ([float(value) for value in counts[name]] for name in ("errors", "words"))
    return statistics.ratio_of_sums(errors, words, list(counts.index), Bootstrap(cell.run.config.seed))


def speaker_rates(
    cells: Sequence[Cell], names: Sequence[str] | None = None
) -> list[tuple[str, list[tuple[Mark, Estimate]]]]:
    """WER of each speaker, of all unless named, in each cell, for `figures.share_rows`."""
    if names is None:
        names = sorted({str(name) for cell in cells for name in cell.scored["speaker"].dropna() if name})
    return [(name, [(cell.mark, speaker_wer(cell, name)) for cell in cells]) for name in names]


Series = list[tuple[Mark, list[Point]]]


def wer_by_delay(cells: Sequence[Cell]) -> Series:
    """One series per group of cells for a plot over delays; empty unless there are at least two delays."""
    known = [cell for cell in cells if cell.delay_seconds is not None]
    if len({cell.delay_seconds for cell in known}) < 2:
        return []
    return _series(known, [cell.group for cell in known], lambda cell: 1000 * (cell.delay_seconds or 0.0))


def wer_by_load(cells: Sequence[Cell]) -> Series:
    """One series per delay for a plot over the streams at once; empty unless there are at least two numbers of them."""
    if len({cell.run.config.concurrency for cell in cells}) < 2:
        return []
    names = [", ".join(filter(None, (cell.side, delay_said(cell.run.config)))) for cell in cells]
    return _series(cells, names, lambda cell: cell.run.config.concurrency)


def _series(cells: Sequence[Cell], names: Sequence[str], at: Callable[[Cell], float]) -> Series:
    groups: dict[str, list[Cell]] = {}
    for cell, name in zip(cells, names, strict=True):
        groups.setdefault(name, []).append(cell)
    return [
        (_group_mark(name, place, group), sorted((Point(at(cell), cell.rate) for cell in group), key=lambda p: p.x))
        for place, (name, group) in enumerate(groups.items())
    ]


def _group_mark(name: str, place: int, group: Sequence[Cell]) -> Mark:
    """A side keeps its colour; else groups have colours of their own."""
    side = group[0].side
    return numbered_mark(name, SIDES.index(side) if side else place, place)


def curve(cell: Cell, name: str, nominal: bool = False) -> Curve:
    """One latency as a distribution: word latencies with a value per word, all others with one per stream."""
    measured = cell.scores.latency.get(name)
    pooled = [*cell.scored[PER_WORD[name]], np.empty(0)] if name in PER_WORD else [cell.scored[name].to_numpy(float)]
    values = np.concatenate(pooled)
    finite = values[np.isfinite(values)]
    beyond = len(values) - len(finite) if measured is None else measured.missing
    return Curve(cell.mark, finite, measured, cell.delay_seconds if nominal else None, beyond)


PER_WORD = {"word_emission_latency": "word_emission_latencies", "word_finality_latency": "word_finality_latencies"}


def lag_lines(cell: Cell, most: int = figures.LINES_DRAWN) -> list[Line]:
    """Transcript lag whenever new words came, over the time since the stream's start, for at most so many streams evenly picked.

    Where the audio ended with words still missing, the last point is the lag at that end.
    """
    ended = cell.scored[cell.scored["outcome"] == Outcome.OK.value]["stream"].to_numpy(int)
    places = np.linspace(0, len(ended) - 1, min(most, len(ended))).round().astype(int)
    wanted = {int(ended[place]) for place in places}
    lines = []
    for record in store.iter_records(cell.folder) if wanted else ():
        if record.stream not in wanted:
            continue
        points = [(lag.seconds, lag.before if lag.after is None else lag.after) for lag in latency.measure(record).lag]
        if points:
            x, y = np.array(points, dtype=np.float64).T
            lines.append(Line(x, y))
    return lines


def typical_stream(cell: Cell) -> Figure:
    """The stream whose median word latency is the median over streams, drawn as it happened."""
    known = cell.scored.dropna(subset=["word_emission_latency_p50"]).sort_values("word_emission_latency_p50")
    if known.empty:
        raise NoRunsError(f"{cell.run.id} has no stream with word latencies: its corpus has no word times")
    row = known.iloc[len(known) // 2]
    ends, latencies = row["word_end_seconds"][:WORDS_DRAWN], row["word_emission_latencies"][:WORDS_DRAWN]
    seen = np.isfinite(latencies)
    whole = len(ends) == len(row["word_end_seconds"])
    until = row["audio_seconds"] if whole else float(ends[-1])
    sent = Line(np.array([0.0, until]), np.array([0.0, until]))
    title = f"Utterance {row['utterance']}" + ("" if whole else f", its first {WORDS_DRAWN} words")
    return figures.one_stream(sent, Line(ends[seen] + latencies[seen], ends[seen]), ends[~seen], title)


def error_rates(cells: Sequence[Cell]) -> list[tuple[str, float, float, float]]:
    """Substitutions, deletions and insertions per reference word of each cell that has words."""
    return [
        (cell.mark.label, counted.substitutions / words, counted.deletions / words, counted.insertions / words)
        for cell in cells
        if (counted := cell.scores.accuracy) and (words := counted.reference_words)
    ]


def lengths_and_rates(cell: Cell) -> tuple[Floats, Floats]:
    """Seconds of audio and word error rate of each scored utterance with speech, for a scatter plot."""
    speech = cell.scored[cell.scored["reference_words"] > 0]
    return speech["audio_seconds"].to_numpy(float), speech["wer"].to_numpy(float)


def worst(cell: Cell, most: int) -> pd.DataFrame:
    """The scored utterances with most errors, worst first."""
    frame = cell.scored.assign(errors=_errors(cell.scored))
    ranked = frame[frame["errors"] > 0].sort_values(["errors", "wer", "utterance"], ascending=[False, False, True])
    columns = ["utterance", "speaker", "language", "audio_seconds", "errors", "reference_words", "wer", "outcome", "error",
               "reference", "hypothesis"]  # fmt: skip
    return ranked[columns].head(most)


def worst_together(cells: Sequence[Cell], most: int) -> list[str]:
    """The utterances with most errors over all cells, worst first."""
    together = _together(errors_by_utterance(cell) for cell in cells)
    return list(together[together > 0].sort_index().sort_values(ascending=False, kind="stable").head(most).index)


def most_changed(cells: Sequence[Cell], most: int) -> list[str]:
    """The utterances whose errors differ most between the two sides, most first, whichever side is the better."""
    one, other = (_together(errors_by_utterance(cell) for cell in cells if cell.side == side) for side in SIDES)
    change = (other - one).dropna().abs()
    return list(change[change > 0].sort_index().sort_values(ascending=False, kind="stable").head(most).index)


def _together(parts: Iterable[pd.Series[float]]) -> pd.Series[float]:
    """Series over utterances added up; an utterance that one lacks counts there as nothing."""
    total = pd.Series(dtype=float)
    for part in parts:
        total = total.add(part, fill_value=0)
    return total


def _errors(rows: pd.DataFrame) -> pd.Series[float]:
    return rows["substitutions"] + rows["deletions"] + rows["insertions"]


def errors_by_utterance(cell: Cell) -> pd.Series[float]:
    """All errors of each utterance; the mean of its repetitions."""
    return _errors(cell.scored).groupby(cell.scored["utterance"]).mean()


def wer_by_speaker(cells: Sequence[Cell]) -> pd.DataFrame:
    """A row per speaker and cell: WER with its interval, words."""
    rows = []
    for cell in cells:
        for speaker, spoken in cell.scored[cell.scored["reference_words"] > 0].groupby("speaker"):
            estimate = speaker_wer(cell, str(speaker))
            rows.append(
                (speaker, cell.mark.label, estimate.value, estimate.low, estimate.high, spoken["reference_words"].sum())
            )
    return pd.DataFrame(rows, columns=["speaker", "cell", "wer", "low", "high", "words"])


def delay_pairs(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with the next longer delay of its group."""
    for group in dict.fromkeys(cell.group for cell in cells):
        row = [cell for cell in cells if cell.group == group]
        yield from ((a, b) for a, b in pairwise(row) if a.delay_seconds != b.delay_seconds)


def load_pairs(cells: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """Each cell with the one that had the fewest streams at once and differs in nothing else."""
    idle: dict[bytes, Cell] = {}
    for cell in sorted(cells, key=lambda one: one.run.config.concurrency):
        same = msgspec.structs.replace(_but_for_cell(cell.run.config), delay_ms=cell.run.config.delay_ms, load={})
        first = idle.setdefault(cell.side.encode() + msgspec.json.encode(same), cell)
        if first.run.config.concurrency != cell.run.config.concurrency:
            yield first, cell


def delay_steps(cells: Sequence[Cell]) -> pd.DataFrame:
    """What each longer delay changes: WER in points, paired over utterances, with its 95 % interval and smallest visible change."""
    rows = []
    for before, after in delay_pairs(cells):
        change = wer_change(before, after)
        figures_ = {"points": change.value, "low": change.low, "high": change.high, "visible": change.detectable}
        rows.append(
            {
                "streams at once": before.run.config.concurrency,
                "from ms": before.run.config.delay_ms,
                "to ms": after.run.config.delay_ms,
            }
            | {name: None if value is None else round(100 * value, 2) for name, value in figures_.items()}
            | {"n": change.n}
        )
    return pd.DataFrame(rows)


def trade(
    cells: Sequence[Cell], name: str = "word_emission_latency"
) -> list[tuple[Mark, list[tuple[str, Estimate, Estimate]]]]:
    """Median latency and WER of each cell, one series per group of cells, for `figures.trade_off`."""
    series: dict[str, list[tuple[str, Estimate, Estimate]]] = {}
    for cell in cells:
        if name in cell.scores.latency:
            point = delay_said(cell.run.config), cell.scores.latency[name].p50, cell.scores.accuracy.wer
            series.setdefault(cell.group, []).append(point)
    return [(numbered_mark(group, i, i), points) for i, (group, points) in enumerate(series.items())]


def load_lines(cell: Cell, column: str, scale: float = 1.0) -> list[tuple[str, Line]]:
    """One line per sampled source (server, harness, machine) of a column of system.parquet."""
    if cell.system.empty or column not in cell.system:
        return []
    known = cell.system.dropna(subset=[column])
    return [
        (str(source), Line(rows["t_seconds"].to_numpy(float), rows[column].to_numpy(float) * scale))
        for source, rows in sorted(known.groupby("source"), key=lambda group: SOURCES.get(str(group[0]), len(SOURCES)))
    ]


SOURCES = {"server": 0, "harness": 1, "machine": 2}  # the order of lines and colours; accelerators follow


def published_for(cells: Sequence[Cell]) -> tuple[str, Sequence[tuple[float, float]]] | None:
    """The published curve of the model that ran, if there is one: laid over another model it would only mislead."""
    same = all("voxtral" in f"{cell.run.config.model} {cell.run.config.engine}".lower() for cell in cells)
    return (PUBLISHED_LABEL, PUBLISHED_VOXTRAL) if same else None
