"""The page and the terminal table: true to the scores, whole in themselves, and not to be broken by what was recognised."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness import report, score, store
from harness.normalise import normaliser
from harness.report import cells, figures, findings, marking
from harness.report.blocks import Step
from harness.report.utterances import shortened
from harness.timeline import Outcome
from tests.harness.made_runs import CAVEAT, NORMALISER, SPEAKERS, Recipe, config, make, records

Page = Callable[..., str]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three delays of one bench, one failed stream among them."""
    root = tmp_path_factory.mktemp("runs")
    wanted = ((160, 0.22, 0), (480, 0.15, 1), (2400, 0.08, 0))
    return [make(root, delay_ms=d, substituted=s, failing=f, noise_seed=d) for d, s, f in wanted]


@pytest.fixture(scope="module")
def page(study: list[Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    return report.report(study, tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


class Elements(HTMLParser):
    """Every start tag with its attributes, and a check that what is opened is closed."""

    VOID = frozenset({"meta", "br", "path", "use", "rect", "circle", "line", "img"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def text_of(page: str) -> str:
    """What a reader sees, blanks squeezed."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    elements = Elements(page)
    tags = Counter(tag for tag, _ in elements.found)
    assert not tags.keys() & {"script", "link", "img", "iframe", "object", "embed"}
    targets = [
        value for _, attrs in elements.found for name, value in attrs.items() if name in ("src", "href", "xlink:href")
    ]
    assert targets
    assert all(target and target.startswith(("#", "data:")) for target in targets)
    assert "@import" not in page
    assert set(re.findall(r"url\(([^)]*)", page)) == set(re.findall(r"url\((#[^)]*)", page))


def test_ids_are_unique_links_lead_somewhere_and_tags_close(page: str) -> None:
    elements = Elements(page)
    assert elements.open == []
    ids = Counter(attrs["id"] for _, attrs in elements.found if "id" in attrs)
    assert not [name for name, count in ids.items() if count > 1]
    links = {value[1:] for _, attrs in elements.found for name, value in attrs.items() if "href" in name and value}
    links |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert links <= set(ids)


def test_every_plot_is_well_formed_themed_and_labelled(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) >= 10
    for plot in plots:
        root = ElementTree.fromstring(plot)
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert not set(re.findall(r"#[0-9a-f]{6}", plot)), "a fixed colour would vanish in the dark"
    variables = set(re.findall(r"var\((--[a-z0-9]+)\)", page))
    assert variables <= set(re.findall(r"(--[a-z0-9-]+):", page))


def luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2's ratio."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def themes(page: str) -> dict[str, dict[str, str]]:
    """The colours of the page in the light, in the dark and on paper."""
    roots = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)
    light, dark, paper = (dict(re.findall(r"(--[a-z0-9-]+): (#[0-9a-f]{3,6})", root)) for root in roots)
    return {"light": light, "dark": light | dark, "paper": light | paper}


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_every_text_can_be_read_on_its_ground(page: str, theme: str) -> None:
    colours = themes(page)[theme]
    pairs = [
        (ink, ground) for ink in ("--ink", "--muted", "--accent", "--bad", "--good") for ground in ("--paper", "--page")
    ]
    pairs += [(f"--{name}", f"--{name}-paper") for name in ("bad", "warn", "sub", "del", "ins")]
    assert [(a, b) for a, b in pairs if contrast(colours[a], colours[b]) < 4.5] == []
    assert [i for i in range(6) if contrast(colours[f"--s{i}"], colours["--paper"]) < 2.5] == []


def test_neighbouring_series_differ_in_the_grey_of_a_print_or_in_their_line() -> None:
    marks = marking.marked([config(Recipe(delay_ms=delay)) for delay in (80, 160, 240, 480, 960, 2400)])
    looks = {(round(luminance(one.mark.colour), 1), str(one.mark.dash)) for one in marks}
    assert len(looks) == 6


def test_three_cells_of_eighty_utterances_stay_below_three_megabytes(page: str) -> None:
    assert len(page.encode()) < 3_000_000


def test_the_numbers_are_those_of_the_scores(page: str, study: list[Path]) -> None:
    seen = text_of(page)
    for folder in study:
        found = score.read_scores(folder).accuracy
        assert found.wer.low is not None
        assert found.wer.high is not None
        errors = found.substitutions + found.deletions + found.insertions
        rate = 100 * errors / found.reference_words
        assert f"{rate:.1f} % [{100 * found.wer.low:.1f}, {100 * found.wer.high:.1f}]" in seen
        assert f"{found.substitutions} / {found.deletions} / {found.insertions}" in seen


def test_the_headline_says_what_came_out_and_the_deck_what_it_rests_on(study: list[Path]) -> None:
    said = findings.headline(cells.load(study))
    rates = [100 * (score.read_scores(folder).accuracy.wer.value or 0) for folder in (study[0], study[-1])]
    assert f"gets {rates[0]:.1f} % of words wrong at 160 ms and {rates[1]:.1f} % at 2400 ms" in said
    assert "cannot tell" not in said
    words = sum(score.read_scores(folder).accuracy.reference_words for folder in study)
    rests_on = findings.deck(cells.load(study))
    assert rests_on == f"240 utterances, 1 of them failed; {words:,} words; 8 streams at once; all 3 cells valid."


def test_a_difference_that_may_be_none_is_not_called_one(tmp_path: Path) -> None:
    two = [make(tmp_path, delay_ms=d, utterances=10, noise_seed=d) for d in (160, 480)]
    assert "a difference these runs cannot tell from none" in findings.headline(cells.load(two))


def test_where_there_is_no_interval_the_headline_cannot_tell(tmp_path: Path) -> None:
    assert "it cannot tell" in findings.headline(cells.load([make(tmp_path, utterances=1)]))
    told = findings.headline(cells.load([make(tmp_path, utterances=80)]))
    assert "cannot tell" not in told
    assert re.search(r"gets \d+\.\d % of words wrong \[\d+\.\d, \d+\.\d\] at 480 ms", told)


def test_a_stream_that_falls_behind_is_in_the_headline(tmp_path: Path) -> None:
    behind = cells.load([make(tmp_path, utterances=40, slower=0.2)])[0]
    assert behind.keeps_up is False
    assert findings.headline([behind]).endswith("; it does not keep up with the audio.")
    level = cells.load([make(tmp_path, utterances=40)])[0]
    assert "keep up" not in findings.headline([level])


def test_the_caveat_stands_before_the_numbers_and_by_the_accuracy(page: str) -> None:
    assert page.index(CAVEAT) < page.index('id="numbers"')
    assert CAVEAT in page[page.index('id="behind"') : page.index('id="further"')]


def test_differences_are_compared_on_the_same_utterances(page: str, study: list[Path]) -> None:
    seen = text_of(page[page.index('id="behind"') : page.index('id="further"')])
    one, two, _ = cells.load(study)
    change = cells.wer_change(one, two)
    assert change.value is not None
    assert change.low is not None
    assert change.high is not None
    assert (
        f"160 ms → 480 ms, 8 streams at once {100 * change.value:+.1f} [{100 * change.low:.1f}, {100 * change.high:.1f}] yes"
        in seen
    )
    errors = [(c.scored["substitutions"] + c.scored["deletions"] + c.scored["insertions"]).sum() for c in (one, two)]
    words = one.scored["reference_words"].sum()
    assert change.value == pytest.approx((errors[1] - errors[0]) / words)


def test_every_speaker_has_a_wer(page: str) -> None:
    seen = text_of(page[page.index('id="behind"') : page.index('id="further"')])
    for speaker in SPEAKERS:
        assert f"{speaker} (20 utterances)" in seen


def test_a_machine_busy_with_other_work_is_told(study: list[Path], tmp_path: Path) -> None:
    quiet = cells.load(study)[0].other_work
    assert quiet == pytest.approx((85 - 70 - 6) / 200, abs=0.05)
    assert not [said for said in findings.findings(cells.load(study)) if "Other work" in said]
    crowded = cells.load([make(tmp_path, utterances=20, machine_cpu=190.0)])
    share = crowded[0].other_work
    assert share == pytest.approx((190 - 70 - 6) / 200, abs=0.1)
    assert f"Other work took {100 * (share or 0):.0f} % of the machine's processors" in " ".join(
        findings.findings(crowded)
    )


def test_a_sound_run_has_no_banner(page: str) -> None:
    assert 'class="banner"' not in page


def test_an_invalid_and_incomplete_run_is_marked_loudly(tmp_path: Path) -> None:
    folder = make(tmp_path, utterances=12, pacing_late=0.01, complete=False)
    made = report.render(cells.load([folder]))
    banners = re.findall(r'<div class="banner" role="alert">.*?</div>', made, flags=re.DOTALL)
    assert [re.findall(r"<strong>(.*?)</strong>", banner)[0] for banner in banners] == [
        "✗ Invalid run",
        "✗ Incomplete run",
    ]
    assert "pacing lateness p99 is" in banners[0]
    assert re.findall(r'<p class="deck">.*INVALID\.</p>', made)
    assert "✗ no" in made


def test_a_missing_interval_says_why(tmp_path: Path) -> None:
    seen = text_of(report.render(cells.load([make(tmp_path, utterances=12)])))
    assert "n 12 &lt; 72" in seen
    assert "n 12 &lt; 368" in seen


def test_errors_and_outcomes_are_listed(page: str) -> None:
    outcomes = page[page.index('id="outcomes"') : page.index('id="environment"')]
    assert "1 × <code>1011: the recogniser stopped</code>" in outcomes


def test_text_from_outside_cannot_become_markup(tmp_path: Path) -> None:
    recipe = Recipe(utterances=8)
    streams = records(recipe)
    evil = "<script>alert(1)</script> <b onclick=x>"
    for record in streams[:3]:
        record.utterance, record.speaker, record.hypothesis = f"{evil}{record.utterance}", evil, evil
    streams[4].outcome, streams[4].error = Outcome.FAILED, f"4000: {evil}"
    folder = store.create(tmp_path, config(recipe))
    environment = {"cpu": evil, "note": evil}
    store.write_run(folder, store.Run(store.SCHEMA, folder.name, evil, config(recipe), environment, True, 1.0, [evil]))
    store.write_records(folder, streams)
    score.score(folder)
    made = report.render(cells.load([folder]))
    assert "<script" not in made
    assert "<b onclick" not in made
    assert "&lt;script&gt;alert(1)" in made


@pytest.mark.parametrize(
    "changes",
    [
        {"utterances": 1},
        {"utterances": 3, "failing": 3},
        {"utterances": 0, "non_speech": 4},
        {"utterances": 6, "delay_ms": None},
        {"utterances": 6, "deleted": 1.0},
        {"utterances": 6, "speed": float("inf")},
        {"utterances": 6, "substituted": 0.0, "deleted": 0.0, "inserted": 0.0},
    ],
    ids=["one stream", "all failed", "non-speech only", "own delay", "nothing heard", "unpaced", "no error"],
)
def test_every_kind_of_run_makes_a_page_and_a_table(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = make(tmp_path, **changes)
    made = report.render(cells.load([folder]))
    assert Elements(made).open == []
    assert not re.search(r"\b(nan|None)\b", text_of(made))
    ids = Counter(attrs["id"] for _, attrs in Elements(made).found if "id" in attrs)
    assert not [name for name, count in ids.items() if count > 1]
    errors = score.read_scores(folder).accuracy
    wrong = errors.substitutions + errors.deletions + errors.insertions
    assert ("No utterance has an error." in made) is (wrong == 0)
    assert "nan" not in shown(report.console_table([score.read_scores(folder)]))


def test_an_unscored_folder_is_refused_with_what_to_do(tmp_path: Path, study: list[Path]) -> None:
    with pytest.raises(cells.NoRunsError, match="no run folder given"):
        report.report([], tmp_path / "x.html")
    (tmp_path / "run.json").write_bytes((study[0] / "run.json").read_bytes())
    with pytest.raises(cells.NoRunsError, match="earmark score"):
        report.report([tmp_path], tmp_path / "x.html")


def test_published_figures_are_drawn_for_voxtral_alone(page: str, tmp_path: Path) -> None:
    assert "Voxtral" not in page
    voxtral = Recipe(engine="vllm", model="mistralai/Voxtral-Mini-4B-Realtime", caveat="", utterances=6)
    runs = [make(tmp_path, voxtral, delay_ms=d) for d in (160, 480)]
    assert cells.PUBLISHED_LABEL in report.render(cells.load(runs))


def test_the_delay_chosen_is_not_surely_worse_than_the_best(study: list[Path]) -> None:
    said = findings.choose_delay(cells.load(study))
    assert "So the shortest delay that is not surely worse is the one at 2400 ms" in said
    assert CAVEAT in said


def shown(table: Any, width: int = 110) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_terminal_table_fits_and_marks_what_is_not_sound(study: list[Path], tmp_path: Path) -> None:
    late = make(tmp_path, utterances=12, pacing_late=0.01)
    half = make(tmp_path, utterances=12, complete=False)
    printed = shown(report.console_table([score.read_scores(folder) for folder in [*study, late, half]], [CAVEAT]))
    assert "…" not in printed
    rows = [line for line in printed.splitlines() if re.match(r" *\d", line)]
    assert [row.split()[0] for row in rows] == ["160", "480", "480", "480", "2400"]
    assert [row.rstrip().split()[-1] for row in rows] == ["valid", "valid", "INVALID", "PARTIAL", "valid"]
    assert CAVEAT.split(":")[0] in printed


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12),
    st.lists(st.sampled_from(["a", "b", "c", "e"]), max_size=12),
)
def test_the_diff_loses_and_invents_no_word(said: list[str], heard: list[str]) -> None:
    steps = report.steps(" ".join(said), " ".join(heard), normaliser("none"))
    assert [step.reference for step in steps if step.reference] == said
    assert [step.hypothesis for step in steps if step.hypothesis] == heard
    for step in steps:
        assert (step.kind == "same") is (step.reference == step.hypothesis)


@given(
    st.lists(
        st.tuples(st.sampled_from([None, 80, 160, 480, 960, 2400]), st.integers(1, 4)),
        min_size=1,
        max_size=12,
        unique=True,
    )
)
def test_cells_are_told_apart_by_label(pairs: list[tuple[int | None, int]]) -> None:
    marks = marking.marked([config(Recipe(delay_ms=delay, concurrency=streams)) for delay, streams in pairs])
    assert len({one.mark.label for one in marks}) == len(pairs)


def test_runs_alike_in_everything_are_told_apart_by_number() -> None:
    marks = [one.mark for one in marking.marked([config(Recipe())] * 3)]
    assert [mark.label for mark in marks] == ["run 1", "run 2", "run 3"]
    assert len({mark.colour for mark in marks}) == 3


def test_what_differs_besides_delay_and_concurrency_is_named() -> None:
    runs = [
        config(Recipe(engine=engine, protocol=protocol))
        for engine, protocol in (("sphinx", "yap"), ("vllm", "realtime"))
    ]
    assert [one.mark.label for one in marking.marked(runs)] == ["sphinx, yap", "vllm, realtime"]
    assert len({one.mark.colour for one in marking.marked(runs)}) == 2


@given(st.lists(st.sampled_from(["same", "sub", "del", "ins"]), max_size=400))
def test_a_shortened_diff_keeps_every_error_that_it_shows_whole(kinds: list[str]) -> None:
    whole = [
        Step(kind, "" if kind == "ins" else f"w{i}", "" if kind == "del" else f"w{i}" if kind == "same" else f"h{i}")
        for i, kind in enumerate(kinds)
    ]
    shown = shortened(whole)
    errors = [step for step in shown if step.kind in ("sub", "del", "ins")]
    assert errors == [step for step in whole if step.kind != "same"][: len(errors)]
    left = len(whole) - sum(step.kind == "same" for step in whole) - len(errors)
    assert left == 0 or shown[-1].reference.startswith(f"… and {left} more error")
    if len(whole) <= 150:
        words = " ".join(step.reference for step in shown if step.kind in ("same", "sub", "del"))
        assert words.split() == [step.reference for step in whole if step.reference]


def test_coordinates_are_rounded_and_labels_are_not() -> None:
    line = figures.Line(np.array([0.0, 1.0]), np.array([0.123456, 0.2]))
    drawn = figures.svg(figures.load_over_time([("server 0.12345", line)], "title", "unit"), "x", "label")
    assert "server 0.12345" in drawn
    assert not [tag for tag in re.findall(r"<[^>]+>", drawn) if re.search(r"\d\.\d{3,}", tag)]


def test_the_curve_of_word_latencies_ends_at_the_share_recognised(study: list[Path]) -> None:
    cell = cells.load(study)[0]
    curve = cells.curve(cell, "word_emission_latency")
    words = int(sum(len(ends) for ends in cell.scored["word_end_seconds"]))
    assert len(curve.values) + curve.beyond == words


def test_runs_are_found_by_environment_then_by_age(
    study: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EARMARK_RUNS", raising=False)
    with pytest.raises(cells.NoRunsError, match="nox -s bench"):
        cells.chosen_folders(tmp_path)
    assert len(cells.chosen_folders(study[0].parent)) == 1
    assert {folder.name for folder in cells.chosen_folders(study[0].parent, whole_bench=True)} == {
        f.name for f in study
    }
    monkeypatch.setenv("EARMARK_RUNS", f"{study[2]}:{study[0]}")
    assert cells.chosen_folders(tmp_path) == [study[2], study[0]]


def test_a_bench_names_its_own_cells(study: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder in study:
        (tmp_path / folder.name).symlink_to(folder)
    bench = tmp_path / "20300102T030405Z-bench-spoken-en"
    bench.mkdir()
    (bench / "bench.json").write_text(f'{{"runs": ["{study[0].name}", "{study[1].name}"], "complete": true}}')
    monkeypatch.setenv("EARMARK_RUNS", str(bench))
    assert [folder.name for folder in cells.chosen_folders(whole_bench=True)] == [study[0].name, study[1].name]


def test_notebooks_and_their_sources_are_in_step() -> None:
    pytest.importorskip("jupytext")
    from notebooks import execute

    assert execute.sources()
    assert [source.name for source in execute.sources() if not execute.pair(source, check=True)] == []


def test_the_normaliser_of_the_invented_runs_exists() -> None:
    assert normaliser(NORMALISER).words("One hundred, please!") == ["1", "0", "0", "please"]
