"""The utterances worth a look: how they sound, which words were recognised, and what was made of the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, zip_longest
from typing import Any

import numpy as np

from harness import accuracy, store
from harness.normalise import Normaliser, normaliser
from harness.report import sound
from harness.report.blocks import Heard, Sound, Step, Strip, Utterance
from harness.report.cells import Cell
from harness.report.measures import line_of
from harness.report.wording import counted

SHOWN = 12
HEARD_SHOWN = 4  # cells of which the transcript is shown; of more, some from first to last
AROUND = 6  # words shown on either side of an error, in utterances too long to be shown whole
LONGEST_WHOLE = 150  # words
MOST_STEPS = 160
MOST_SPANS = 400
AUDIO_BUDGET = 1_100_000  # characters of audio in a page


def utterances(cells: Sequence[Cell], names: Sequence[str]) -> list[Utterance]:
    """These utterances as each of a few cells heard them."""
    shown = some(cells, HEARD_SHOWN)
    rows = [_first_rows(cell, names) for cell in shown]
    words = _word_times(shown)
    here: dict[str, dict[str, Any]] = {}
    for found in rows:
        here = found | here
    dataset = shown[0].run.config.dataset
    named = {row["speaker"] for row in here.values()} if "+" not in dataset else set()
    recordings = sound.recordings(
        dataset,
        {name: (row["reference"], row["audio_seconds"]) for name, row in here.items()},
        named if all(named) else (),
    )
    made, left = [], AUDIO_BUDGET
    for name in names:
        heard_in = [(cell, found[name]) for cell, found in zip(shown, rows, strict=True) if name in found]
        if not heard_in:
            continue
        row = heard_in[0][1]
        strips = [_strip(cell, one, words.get(name, ())) for cell, one in heard_in]
        one, used = _sound(recordings.get(name), row["audio_seconds"], [s for s in strips if s is not None], left)
        left -= used
        about = " · ".join(filter(None, (row["speaker"], f"{row['audio_seconds']:.1f} s")))
        heard = [_heard(cell, row) for cell, row in heard_in]
        made.append(Utterance(name, about, counted(int(row["reference_words"]), "word"), one, heard))
    return made


def some(cells: Sequence[Cell], most: int) -> list[Cell]:
    """All of them, or so many evenly picked from first to last."""
    if len(cells) <= most:
        return list(cells)
    return [cells[place] for place in np.unique(np.linspace(0, len(cells) - 1, most).round().astype(int))]


def _first_rows(cell: Cell, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Where an utterance was replayed several times, the time it went worst."""
    rows = cell.scored[cell.scored["utterance"].isin(names)]
    errors = rows["substitutions"] + rows["deletions"] + rows["insertions"]
    ordered = rows.assign(errors=errors).sort_values("errors", ascending=False, kind="stable")
    return {row["utterance"]: row for row in ordered.drop_duplicates("utterance").to_dict("records")}  # type: ignore[misc]


def _word_times(cells: Sequence[Cell]) -> Mapping[str, Sequence[Any]]:
    found: dict[str, Sequence[Any]] = {}
    for cell in cells:
        found = {name: one["words"] or () for name, one in store.read_references(cell.folder).items()} | found
    return found


def _strip(cell: Cell, row: Mapping[str, Any], words: Sequence[Any]) -> Strip | None:
    latencies, seconds = row["word_emission_latencies"], float(row["audio_seconds"])
    if not len(words) or len(latencies) != len(words) or len(words) > MOST_SPANS or not seconds > 0:
        return None
    spans = [
        (round(100 * word.start / seconds, 2), round(100 * (word.end - word.start) / seconds, 2), bool(np.isfinite(late)))
        for word, late in zip(words, latencies, strict=True)
    ]  # fmt: skip
    return Strip(cell.label, line_of(cell)[0], spans)


def _sound(recording: Any, seconds: float, strips: Sequence[Strip], left: int) -> tuple[Sound, int]:
    """With the player as long as the page has room for it; what it takes of that room."""
    ticks = sound.ticks(seconds)
    samples = None if recording is None else sound.pcm(recording)
    if samples is None:
        return Sound(strips=strips, ticks=ticks, missing="its audio is not on this machine"), 0
    wave, columns = sound.outline(samples), min(sound.COLUMNS, len(samples) // 2)
    if sound.encoded_size(seconds) > left:
        return Sound("", wave, columns, strips, ticks, "no player: the page would grow too large"), 0
    uri = sound.data_uri(samples)
    return Sound(uri, wave, columns, strips, ticks, "" if uri else "no player: MP3 cannot be made here"), len(uri)


def _heard(cell: Cell, row: Mapping[str, Any]) -> Heard:
    errors, failed = int(row["errors"]), row["outcome"] != "ok"
    # What a failed stream had shown is not scored, so it is not shown as recognised either.
    said = steps(
        row["reference"],
        "" if failed else row["hypothesis"],
        normaliser(cell.run.config.normaliser).of(row["language"]),
    )
    trouble = " ".join(filter(None, (row["outcome"], row["error"] and f": {row['error']}"))) if failed else ""
    return Heard(cell.label, counted(errors, "error"), line_of(cell)[0], shortened(said), trouble.replace(" :", ":"))


def steps(reference: str, hypothesis: str, rules: Normaliser) -> list[Step]:
    """The aligned words for the page, one entry per pair: ``kind`` is same, sub, del or ins."""
    made = []
    for kind, left, right in accuracy.diff(reference, hypothesis, rules):
        for said, heard in zip_longest(left, right, fillvalue=""):
            name = "same" if kind == "equal" else "sub" if said and heard else "del" if said else "ins"
            made.append(Step(name, said, heard))
    return made


def shortened(whole: Sequence[Step]) -> list[Step]:
    """Words between errors as one step. In a long utterance they give way to how many they are, and its end to how much there is."""
    long = len(whole) > LONGEST_WHOLE
    made = list(_runs(whole, cut=long))
    if len(made) <= MOST_STEPS:
        return made
    rest = sum(step.kind not in ("same", "gap") for step in made[MOST_STEPS:])
    return [*made[:MOST_STEPS], Step("gap", f"… and {counted(rest, 'more error')}", "")]


def _runs(whole: Sequence[Step], *, cut: bool) -> Iterator[Step]:
    for same, group in groupby(whole, key=lambda step: step.kind == "same"):
        run = list(group)
        if not same:
            yield from run
            continue
        words = [step.reference for step in run]
        if cut and len(words) > 2 * AROUND + 3:
            yield Step("same", " ".join(words[:AROUND]), "")
            yield Step("gap", f"… {len(words) - 2 * AROUND} words …", "")
            words = words[-AROUND:]
        yield Step("same", " ".join(words), "")
