"""Pages composed from their parts: about runs, about two sides held against each other, about a study, about a capacity search."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from harness.report import ladders, measures, plots, sides, studies, surroundings, tables, utterances
from harness.report.blocks import Banner, Page, Plot, Section, Table
from harness.report.cells import Cell, load, load_sides, most_changed, worst_together
from harness.report.findings import deck, findings, headline, subject
from harness.report.sides import Comparison
from harness.report.terms import TERMS


def report(folders: Sequence[Path], out: Path) -> Path:
    """Writes one self-contained page to ``out`` and returns its path: about run folders, or about one study or capacity search.

    Raises:
        NoRunsError: a run is not scored, or there is none.
        StoreError: a folder cannot be read as what it looks like.
    """
    if len(folders) == 1 and (folders[0] / "capacity.json").exists():
        page = about_capacity(folders[0])
    elif len(folders) == 1 and (folders[0] / "study.parquet").exists():
        page = about_study(folders[0])
    else:
        page = about(load(folders))
    return write(page, out)


def compare(one: Sequence[Path], other: Sequence[Path], comparison: Comparison, out: Path) -> Path:
    """Writes the page about two sides, A and B, with what comparing them came to."""
    return write(about_sides(load_sides(one, other), comparison), out)


def write(page: Page, out: Path) -> Path:
    """Writes a page as one file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(html(page), encoding="utf-8")
    return out


def render(cells: Sequence[Cell]) -> str:
    """The page about cells as text."""
    return html(about(cells))


def html(page: Page) -> str:
    """A page as text."""
    templates = Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=select_autoescape(),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["tied"] = tied
    css = resources.files("harness.report").joinpath("templates/report.css").read_text(encoding="utf-8")
    return templates.get_template("page.html").render(css=css, page=page)


def tied(text: str) -> str:
    """Figures and their units stay on one line."""
    return re.sub(r"(?<=\d) (?=(%|s|ms|points|streams?|words|utterances)\b|%)", "\N{NO-BREAK SPACE}", text)


# --- runs ------------------------------------------------------------------------------------------------------------------


def about(cells: Sequence[Cell]) -> Page:
    """The page about cells that were measured."""
    names = worst_together(cells, utterances.SHOWN)
    worst = Section(
        "worst",
        "Worst utterances",
        lead=f"The {len(names)} with most errors over all cells, worst first."
        if names
        else "No utterance has an error.",
        utterances=utterances.utterances(cells, names),
        always=True,
    )
    return Page(
        title=f"{subject(cells)} · Earmark",
        eyebrow=_eyebrow(cells),
        headline=headline(cells),
        deck=deck(cells),
        caveats=_caveats(cells),
        banners=_banners(cells),
        sections=_sections(cells, worst),
        made_from=[cell.folder.name for cell in cells],
    )


def _sections(cells: Sequence[Cell], *utterances_: Section) -> list[Section]:
    """All that is told of cells, from the answer to the terms."""
    answer = _answer(cells)
    return [answer, *_figures(cells), *_further(cells, answer.plots), *utterances_, *_rest(cells)]


def _answer(cells: Sequence[Cell]) -> Section:
    return Section(
        "answer",
        "At a glance",
        tables=[measures.glance(cells)],
        plots=plots.answering(cells),
        sentences=findings(cells),
    )


def _figures(cells: Sequence[Cell]) -> list[Section]:
    lag = Section(
        "lag",
        "Does the transcript keep up?",
        lead="How far the transcript is behind the audio, whenever new words came.",
        plots=plots.lag(cells) if len(cells) > 1 else [],  # of one cell it is among the first plots
        small_plots=True,
    )
    told = Section(
        "numbers",
        "All figures",
        lead=f"In brackets the 95 % interval, from resampling {_blocks(cells)}. Where there is none its place says why: "
        "n 80 < 368 means 80 streams, of which 368 are needed.",
        tables=measures.tables(cells),
    )
    found = (
        tables.paired(cells),
        tables.against(cells),
        tables.sensitivity(cells),
        tables.by_speaker(cells),
        tables.by_language(cells),
        tables.alignment(cells),
        tables.server_side(cells),
        tables.resources(cells),
    )
    rests = Section(
        "behind",
        "Behind the figures",
        caveats=_caveats(cells),
        tables=[table for table in found if table is not None],
    )
    return [lag, told, rests]


def _blocks(cells: Sequence[Cell]) -> str:
    return " or ".join(dict.fromkeys(f"{cell.scores.block}s" for cell in cells))


def _further(cells: Sequence[Cell], shown: Sequence[Plot]) -> list[Section]:
    accuracy = [plot for plot in plots.error_split(cells) if plot.caption not in {one.caption for one in shown}]
    alone = plots.by_length(cells[0]) if len(cells) == 1 else []
    latency = plots.latency(cells, "first_token_from_onset", "time_to_final")
    drawn = [*latency, *plots.latency_rows(cells), *accuracy, *alone, *plots.typical(cells[0])]
    return [
        Section("further", "More about errors and latencies", plots=drawn, small_plots=True),
        Section("load", "Load on the machine", plots=plots.load(cells), small_plots=True),
    ]


def _rest(cells: Sequence[Cell]) -> list[Section]:
    return [
        Section("outcomes", "Outcomes and errors", tables=[tables.outcomes(cells)], errors=tables.errors(cells)),
        Section(
            "environment",
            "Environment, and how to do it again",
            commands="\n".join(dict.fromkeys(surroundings.command(cell.run) for cell in cells)),
            facts=surroundings.facts(cells),
            more_facts=list(surroundings.flat(cells[0].run.environment)),
        ),
        Section("terms", "Terms", terms=list(TERMS.items())),
    ]


def _eyebrow(cells: Sequence[Cell]) -> str:
    run = cells[0].run
    return f"Earmark report · {surroundings.when(run)} · {surroundings.machine(run.environment)}"


def _caveats(cells: Sequence[Cell]) -> list[str]:
    return list(dict.fromkeys(cell.run.config.caveat for cell in cells if cell.run.config.caveat))


def _banners(cells: Sequence[Cell]) -> list[Banner]:
    invalid = [cell for cell in cells if not cell.scores.valid]
    unfinished = [cell for cell in cells if not cell.scores.complete]
    banners = []
    if invalid:
        reasons = [
            f"{cell.label}: {why}" for cell in invalid for why in cell.scores.invalid_because or ["no reason recorded"]
        ]
        advice = "Do not quote these figures; a gate refuses them. Free the machine or lower the concurrency, then run again."
        banners.append(Banner("✗ Invalid run", advice, reasons))
    if unfinished:
        reasons = [f"{cell.label}: {cell.scores.streams} streams were scored before it stopped" for cell in unfinished]
        advice = "The run was interrupted. What is shown covers only the part of the corpus that was replayed."
        banners.append(Banner("✗ Incomplete run", advice, reasons))
    return banners


# --- two sides -------------------------------------------------------------------------------------------------------------


def about_sides(cells: Sequence[Cell], comparison: Comparison) -> Page:
    """The page about A and B."""
    names = most_changed(cells, utterances.SHOWN)
    changed = Section(
        "changed",
        "Utterances that changed most",
        lead="By how many errors more or fewer B makes in them than A, whichever way."
        if names
        else "No utterance has more or fewer errors on one side than on the other.",
        utterances=utterances.utterances(_a_pair(cells), names),
        always=True,
    )
    verdicts = Section(
        "verdicts",
        "What changed from A to B",
        lead=sides.LEAD,
        plots=sides.plots(comparison),
        tables=sides.tables(comparison),
        sentences=list(comparison.notes),
    )
    refused = [Banner("✗ A and B cannot be compared", "No verdict is given; both are shown.", comparison.refused)]
    return Page(
        title=f"A and B: {subject(cells)} · Earmark",
        eyebrow=_eyebrow(cells),
        headline=sides.headline(comparison),
        deck=sides.deck(cells),
        caveats=_caveats(cells),
        banners=[*(refused if comparison.refused else []), *_banners(cells)],
        sections=[verdicts, *_sections(cells, changed)],
        made_from=[cell.folder.name for cell in cells],
    )


def _a_pair(cells: Sequence[Cell]) -> list[Cell]:
    """Of each side the first few, so that both are there."""
    by_side = [[cell for cell in cells if cell.side == side] for side in dict.fromkeys(cell.side for cell in cells)]
    shown = {id(cell) for group in by_side for cell in utterances.some(group, utterances.HEARD_SHOWN // 2)}
    return [cell for cell in cells if id(cell) in shown]


# --- studies and capacity --------------------------------------------------------------------------------------------------


def about_capacity(folder: Path) -> Page:
    """The page about a capacity search: its answer and its ladder, then the idle run, the answer's and the first beyond it."""
    ladder = ladders.read(folder)
    cells = load(ladder.runs) if ladder.runs else []
    sections = [
        Section(
            "ladder", "The ladder", plots=ladders.plots(ladder), tables=[ladders.table(ladder)], sentences=ladder.notes
        )
    ]
    if cells:
        sections += _sections(cells)
    return Page(
        title=f"Capacity of {subject(cells) if cells else ladder.place} · Earmark",
        eyebrow=_eyebrow(cells) if cells else f"Earmark report · {ladder.place}",
        headline=ladders.headline(ladder),
        deck=ladder.sentence,
        caveats=_caveats(cells),
        banners=_banners(cells),
        sections=sections,
        made_from=[folder.name],
    )


def about_study(folder: Path) -> Page:
    """The page about a study: what each setting does, which to choose, every cell."""
    table = studies.read(folder)
    said = studies.conclude(table, studies.bound_seconds())
    found: list[Table] = [studies.page_table(table)]
    return Page(
        title=f"Study {table.name} · Earmark",
        eyebrow=f"Earmark study · {table.name}",
        headline=said[-1],
        deck=f"{len(table.frame)} cells, {len(table.sound)} of them valid; "
        f"varied: {', '.join(map(table.label, table.varied)) or 'nothing'}.",
        caveats=studies.caveats(table),
        sections=[
            Section("answer", "What the settings do", plots=studies.plots(table), sentences=said[:-1]),
            Section("effects", "What each step changes", tables=[studies.effects_table(table)]),
            Section("numbers", "All cells", tables=found),
            Section("terms", "Terms", terms=list(TERMS.items())),
        ],
        made_from=[folder.name],
    )
