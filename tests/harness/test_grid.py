from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import grid
from harness.bench import Plan
from harness.grid import HARNESS_DEFAULTS, Cell, StudyError, parse

SHIPPED = sorted((Path(__file__).resolve().parents[2] / "studies").glob("*.toml"))
SERVER_HELP = grid.server_help()

names = st.from_regex(r"[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,4})?", fullmatch=True).filter(lambda name: name not in grid.OURS)
values = st.one_of(st.integers(0, 9999), st.booleans(), st.text("abcXYZ", min_size=1, max_size=5))
server_settings = st.dictionaries(names, st.lists(values, min_size=1, max_size=3, unique_by=grid.text), max_size=4)
concurrencies = st.lists(st.integers(1, 500), min_size=1, max_size=3, unique=True)
delays = st.lists(st.integers(0, 2400) | st.just("server"), min_size=1, max_size=3, unique=True)


def written(server: dict[str, list[Any]], harness: dict[str, list[Any]], design: str = "full") -> str:
    def value(one: Any) -> str:
        return grid.text(one) if not isinstance(one, str) else f"'{one}'"

    def table(settings: dict[str, list[Any]]) -> list[str]:
        return [f"{name} = [{', '.join(map(value, of))}]" for name, of in settings.items()]

    return "\n".join([f'design = "{design}"', "[server]", *table(server), "[harness]", *table(harness)])


@given(server_settings, concurrencies, delays)
def test_the_full_grid_is_every_combination_once_and_servers_stay_together(
    server: dict[str, list[Any]], concurrency: list[int], delay_ms: list[Any]
) -> None:
    study = parse(written(server, {"concurrency": concurrency, "delay-ms": delay_ms}), "s")
    cells = study.cells()
    combinations = math.prod(map(len, [*server.values(), concurrency, delay_ms]))
    assert len(cells) == len({cell.key("c") for cell in cells}) == combinations
    for name, of in server.items():
        for value in of:
            assert sum(grid.text(cell.server[name]) == grid.text(value) for cell in cells) == combinations / len(of)
    switches = sum(a.options != b.options for a, b in pairwise(cells))
    assert switches + 1 == len({cell.options for cell in cells}) == math.prod(map(len, server.values()))


@given(server_settings, concurrencies)
def test_one_at_a_time_changes_one_setting_of_the_first_server(
    server: dict[str, list[Any]], concurrency: list[int]
) -> None:
    study = parse(written(server, {"concurrency": concurrency}, "one-at-a-time"), "s")
    first, *others = study.servers()
    assert first == {name: of[0] for name, of in server.items()}
    assert len(others) == sum(len(of) - 1 for of in server.values())
    for other in others:
        assert sum(grid.text(other[name]) != grid.text(first[name]) for name in first) == 1
    assert len(study.cells()) == (1 + len(others)) * len(concurrency)


def test_a_cell_is_known_by_its_settings_however_they_are_written() -> None:
    short = parse(
        '[server]\nengine = "sphinx"\nvad = true\nsegment-seconds = 60\n[harness]\ndelay-ms = 480', "a"
    ).cells()[0]
    spelt = parse(
        '[harness]\npacket-ms = 80\nspeed = 1\ndelay-ms = [480]\n[server]\nsegment-seconds = 60.0\nvad = [true]\nengine = ["sphinx"]',
        "b",
    ).cells()[0]
    assert short.key("corpus") == spelt.key("corpus")
    assert short.options == ("--engine=sphinx", "--segment-seconds=60", "--vad")
    assert short.key("corpus") != short.key("another corpus")
    for change in ({"packet-ms": 40}, {"delay-ms": "server"}, {"seed": 1}):
        assert Cell(short.server, {**short.harness, **change}).key("corpus") != short.key("corpus")
    assert Cell({**short.server, "vad": False}, short.harness).options[-1] == "--no-vad"


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("[servers]\nengine = 'x'", "unknown key servers (is server meant?)"),
        ("[harness]\nconcurency = 8", "unknown key harness.concurency (is harness.concurrency meant?)"),
        ("[harness]\nconcurrency = 0", "harness.concurrency = 0"),
        ("[harness]\nconcurrency = '8'", "harness.concurrency = '8'"),
        ("[harness]\nconcurrency = []", "harness.concurrency = []"),
        ("[harness]\nconcurrency = [8, 8]", "harness.concurrency has 8 twice"),
        ("[harness]\ndelay-ms = 'mine'", "harness.delay-ms = 'mine'"),
        ("[harness]\ndelay-ms = true", "harness.delay-ms = True"),
        ("[harness]\nspeed = -1", "harness.speed = -1"),
        ("[harness]\nspeed = nan", "harness.speed = nan"),
        ("[harness]\nlimit = 2.5", "harness.limit = 2.5"),
        ("[harness]\ndataset = 3", "harness.dataset = 3"),
        ("[server]\nport = 80", "server.port is set by the harness"),
        ("[server]\n\"--engine\" = 'x'", "server.--engine"),
        ("[server]\nengine = {a = 1}", "server.engine"),
        ("[server]\nvad = [true, true]", "server.vad has true twice"),
        ("server = 3", "server is not a table"),
        ("design = 'half'", "design = 'half'"),
        ("name = '../x'", "name = '../x'"),
        ("question = 3", "question = 3"),
        ("ready-seconds = 0", "ready-seconds = 0"),
        ("[harness]\nseed = [" + ",".join(map(str, range(5001))) + "]", "5001 cells"),
        ("[harness", "not TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(toml: str, told: str) -> None:
    with pytest.raises(StudyError, match=re.escape(told)):
        parse(toml, "study")


def test_settings_are_replaced_from_the_command_line() -> None:
    study = parse("[server]\nengine = 'vllm'\n[harness]\nconcurrency = [1, 8]", "s")
    changed = study.with_settings(["harness.concurrency=[2, 4]", "server.model-dir=/models/tiny", "server.vad=false"])
    assert changed.harness["concurrency"] == (2, 4)
    assert changed.server == {"engine": ("vllm",), "model-dir": ("/models/tiny",), "vad": (False,)}
    for nonsense in ("concurrency=8", "harness.concurrency", "client.x=1", "harness.concurrency=many", "server.port=1"):
        with pytest.raises(StudyError, match=nonsense.partition("=")[0]):
            study.with_settings([nonsense])


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("sphinx-worker = 2", "no option sphinx-worker; is sphinx-workers meant?"),
        ("vad = 1", "server.vad = 1: true or false"),
        ("sphinx-workers = true", "server.sphinx-workers = true: a value"),
    ],
)
def test_options_that_the_server_has_not_are_refused(toml: str, told: str) -> None:
    with pytest.raises(StudyError, match=re.escape(told)):
        grid.check_options(parse(f"[server]\n{toml}", "s"), SERVER_HELP)


def test_options_that_the_server_has_are_taken() -> None:
    grid.check_options(
        parse("[server]\nvad = [true, false]\nsphinx-workers = [1, 2]\nengine = 'sphinx'", "s"), SERVER_HELP
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_studies_that_come_along_fit_the_server(path: Path) -> None:
    study = grid.read(path)
    assert study.question
    assert study.varied
    assert "A value is fixed" in path.read_text()
    if study.server["engine"] == ("vllm",) and "--max-num-seqs" not in SERVER_HELP:
        pytest.skip("this server has no vLLM engine")
    grid.check_options(study, SERVER_HELP)


def test_studies_come_along() -> None:
    assert {path.stem for path in SHIPPED} >= {"chunk-size", "concurrency", "delay", "gpu-tuning", "protocols"}


def test_the_defaults_of_a_study_are_those_of_a_bench_where_it_has_one_value() -> None:
    plan = Plan()
    assert (HARNESS_DEFAULTS["packet-ms"], HARNESS_DEFAULTS["speed"]) == (plan.packet_ms, plan.speed)
    assert (HARNESS_DEFAULTS["repeat"], HARNESS_DEFAULTS["seed"]) == (plan.repeat, plan.seed)
    assert (HARNESS_DEFAULTS["protocol"], (HARNESS_DEFAULTS["concurrency"],)) == (plan.protocol, plan.concurrencies)
