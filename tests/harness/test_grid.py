from __future__ import annotations

import hashlib
import json
import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import grid, study
from harness.arrivals import Poisson
from harness.bench import Load, Plan
from harness.grid import HARNESS_DEFAULTS, Cell, StudyError, parse
from harness.impairment import Impairment, Stall

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


@settings(deadline=None)
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


@settings(deadline=None)
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


def test_a_cell_measured_before_there_were_settings_of_load_is_known_still() -> None:
    """The key is the hash of options, the ten first settings and the corpus; a load that is not plain is another cell."""
    plain = parse("[server]\nengine = 'sphinx'", "s").cells()[0]
    first_ten = {
        "concurrency": "8", "dataset": "spoken-en", "delay-ms": "server", "limit": "all", "normaliser": "by language",
        "packet-ms": "80", "protocol": "yap", "repeat": "1", "seed": "0", "speed": "1",
    }  # fmt: skip
    known = json.dumps([["--engine=sphinx"], first_ten, "corpus"])
    assert plain.key("corpus") == hashlib.sha256(known.encode()).hexdigest()[:16]
    spelt = parse("[server]\nengine = 'sphinx'\n[harness]\njitter-ms = 0\nstall = 'none'\nretries = 0", "s").cells()[0]
    assert spelt.key("corpus") == plain.key("corpus")
    keys = {plain.key("corpus")}
    for change in ("jitter-ms = 1", "burst = 2", "stall = '2@1'", "seconds = 9", "generators = 2", "arrival = 'fixed:1'",
                   "per-connection = 0", "retries = 1", "think-seconds = 1", "duty-cycle = 0.5", "driver-options = 'a=b'"):  # fmt: skip
        keys.add(parse(f"[server]\nengine = 'sphinx'\n[harness]\n{change}", "s").cells()[0].key("corpus"))
    assert len(keys) == 12


def test_what_means_the_same_is_spelt_the_same() -> None:
    (cell,) = parse(
        "[harness]\narrival = 'ramp:1.0-4:60.0'\nstall = '2.0@10, 2/30'\ndriver-options = \"z=1 a='two words'\"", "s"
    ).cells()
    assert cell.harness["arrival"] == "ramp:1-4:60"
    assert cell.harness["stall"] == "2@10,2/30"
    assert cell.harness["driver-options"] == "'a=two words' z=1"


def test_a_schedule_is_known_by_what_it_says(tmp_path: Path) -> None:
    def key(name: str, starts: str) -> str:
        (tmp_path / "a" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "a" / name).write_text(starts)
        return parse(f"[harness]\narrival = 'file:{tmp_path / 'a' / name}'", "s").cells()[0].key("corpus")

    assert key("one.csv", "0\n1\n") != key("one.csv", "0\n2\n")


def test_open_arrivals_are_one_cell_whatever_the_concurrencies() -> None:
    asked = parse("[harness]\narrival = ['closed', 'poisson:2', 'fixed:1']\nconcurrency = [4, 8]", "s")
    told = [(cell.harness["arrival"], cell.harness["concurrency"]) for cell in asked.cells()]
    assert told == [("closed", 4), ("poisson:2", 1), ("fixed:1", 1), ("closed", 8)]


LOADED = """
[server]
engine = "scripted"
[harness]
dataset = "spoken-en*2+non-speech"
limit = 4
protocol = "realtime"
concurrency = 3
packet-ms = 40
arrival = "closed"
seconds = 30
duty-cycle = 0.5
jitter-ms = 20
burst = 2
stall = "1@2,1/9"
per-connection = 0
retries = 3
generators = 2
"""


def test_every_setting_of_load_reaches_the_bench_and_the_forecast(tmp_path: Path) -> None:
    (one,) = study.prepare(parse(LOADED, "loaded"), tmp_path)
    assert one.plan.load == Load(
        seconds=30, duty_cycle=0.5, impairment=Impairment(20, 2, (Stall(1, at=2), Stall(1, every=9))),
        per_connection=0, retries=3, generators=2,
    )  # fmt: skip
    assert one.corpus.name == "spoken-enx2+non-speech"
    longest = max(utterance.seconds for utterance in one.corpus.utterances)
    assert one.seconds > 30 + longest  # and the warm-up
    (thinking,) = study.prepare(parse("[harness]\nthink-seconds = 2\nconcurrency = 1\nlimit = 4", "s"), tmp_path)
    lengths = [utterance.seconds for utterance in thinking.corpus.utterances]
    assert thinking.seconds == pytest.approx(sum(lengths) + 4 * 2 + min(lengths))
    (polled,) = study.prepare(parse("[harness]\narrival = 'poisson:0.5'", "s"), tmp_path)
    assert (polled.plan.load.arrivals, polled.plan.concurrencies) == (Poisson(0.5), [1])


@pytest.mark.parametrize(
    ("toml", "told"),
    [
        ("think-seconds = 1\nduty-cycle = 0.5", "give one of them"),
        ("arrival = 'poisson:1'\nper-connection = 5", "per_connection is of closed arrivals"),
        ("jitter-ms = 5\nspeed = 'inf'", "need a schedule"),
        ("generators = 999", "999 generator processes"),
        ("duty-cycle = 2", "duty_cycle is 2.0"),
        ("protocol = 'deepgram'", "is a service"),
        ("protocol = 'realtime'\ndriver-options = 'mood=calm'", "realtime has no option 'mood'"),
    ],
)
def test_a_load_that_cannot_be_is_refused_before_anything_is_started(tmp_path: Path, toml: str, told: str) -> None:
    with pytest.raises(StudyError, match=re.escape(told)):
        study.prepare(parse(f"[harness]\n{toml}", "s"), tmp_path)


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
        ("[harness]\narrival = 'often'", "harness.arrival = 'often': arrival 'often': closed, poisson:PER_SECOND"),
        ("[harness]\narrival = 'file:/nowhere.csv'", "the schedule /nowhere.csv cannot be read"),
        ("[harness]\narrival = ['poisson:2', 'poisson:2.0']", "harness.arrival has poisson:2 twice"),
        ("[harness]\nstall = '2'", "SECONDS@AT"),
        ("[harness]\nstall = ''", "harness.stall = '': a text is expected"),
        ("[harness]\njitter-ms = -1", "harness.jitter-ms = -1: a number, 0 or more, is expected"),
        ("[harness]\nthink-seconds = inf", "harness.think-seconds = inf"),
        ("[harness]\nseconds = 0", "harness.seconds = 0: a positive number or 'all' is expected"),
        ("[harness]\nduty-cycle = 'on'", "harness.duty-cycle = 'on'"),
        ("[harness]\nretries = -1", "harness.retries = -1: a whole number from 0 on"),
        ("[harness]\nburst = 0", "harness.burst = 0: a whole number from 1 on"),
        ("[harness]\ndriver-options = 'fast'", "harness.driver-options = 'fast': NAME=VALUE is expected"),
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
    assert study.prepare(parse("", "s"), Path("unused"))[0].plan.load == plan.load
    assert (HARNESS_DEFAULTS["protocol"], (HARNESS_DEFAULTS["concurrency"],)) == (plan.protocol, plan.concurrencies)
