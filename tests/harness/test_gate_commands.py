"""``earmark gate``, ``compare`` and ``history`` on run folders: what they write and return."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from harness.commands.compare import compare
from harness.commands.gate import gate
from harness.commands.history import bars, history
from harness.gate import GateError, read_history, read_tolerances
from tests.harness.made_runs import make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one build under ``same``, a worse one beside them."""
    root = tmp_path_factory.mktemp("runs")
    for noise in (1, 2, 3):
        make(root / "same", noise_seed=noise)
    make(root / "worse", noise_seed=4, substituted=0.25)
    make(root / "slow", noise_seed=5, delay_ms=960)
    make(root / "other", corpus="d" * 64)
    return root


def only(folder: Path) -> Path:
    """The first run in a folder of runs."""
    return min(folder.glob("*/run.json")).parent


def test_a_regression_leaves_every_output_and_code_1(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {name: tmp_path / "deep" / name for name in ("markdown", "junit", "benchmark")}
    code = gate(
        [str(folder / "worse")],
        baseline=only(folder / "same"),
        github=True,
        as_json=True,
        markdown=paths["markdown"],
        junit=paths["junit"],
        benchmark=paths["benchmark"],
    )
    out, err = capsys.readouterr()
    assert code == 1
    assert json.loads(out)["verdict"] == "worse"  # with --json standard output is the object alone
    assert "REGRESSION" in err
    assert "::error title=Gate%3A regression::WER" in err
    assert "✗ worse" in paths["markdown"].read_text(encoding="utf-8")
    assert ElementTree.parse(paths["junit"]).find(".//failure") is not None
    assert any(entry["name"].endswith("WER") for entry in json.loads(paths["benchmark"].read_text(encoding="utf-8")))


def test_annotations_come_by_themselves_in_github_actions(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert gate([str(only(folder / "same"))], baseline=only(folder / "same")) == 0
    assert "::notice title=Gate::PASS" in capsys.readouterr().out
    assert gate([str(only(folder / "same"))], baseline=only(folder / "same"), github=False) == 0
    assert "::" not in capsys.readouterr().out


def test_calibration_on_runs_that_are_there_makes_a_file_that_the_gate_takes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tolerances" / "mine.toml"
    assert gate([str(folder / "same")], calibrate=3, save=path) == 0
    assert "3 runs of 1 cell" in capsys.readouterr().out
    found = read_tolerances(path)
    assert found.testbed.machine == "Example CPU 2.0 GHz"
    assert found.tolerances["wer"].absolute > 0
    assert gate([str(folder / "worse")], baseline=only(folder / "same"), tolerances=path) == 1
    foreign = tmp_path / "foreign.toml"
    foreign.write_text(path.read_text(encoding="utf-8").replace("Example CPU", "Another CPU"), encoding="utf-8")
    gate([str(folder / "worse")], baseline=only(folder / "same"), tolerances=foreign)
    assert "the tolerances were calibrated on 'Another CPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"runs": ["{same}"], "calibrate": 4}, "needs 4 runs of every cell; one has 3"),
        ({"runs": ["{worse}"], "calibrate": 3}, "1 runs of"),
        ({"runs": ["--limit", "3"]}, "--limit: options of the bench go with --calibrate"),
        ({"runs": ["--limit", "3"], "calibrate": 3, "candidate": [Path("x")]}, "not both"),
        ({"runs": ["--out=x"], "calibrate": 3}, "leave --out away"),
        ({"runs": ["x"], "tolerances": Path("/nowhere.toml")}, "/nowhere.toml cannot be read"),
    ],
)
def test_what_makes_no_sense_is_told(folder: Path, arguments: dict[str, object], told: str) -> None:
    runs = arguments.get("runs")
    assert isinstance(runs, list)
    named = [text.format(same=folder / "same", worse=folder / "worse") for text in runs]
    with pytest.raises(GateError, match=told):
        gate(**{**arguments, "runs": named})  # type: ignore[arg-type]


def test_compare_shows_two_delays_and_refuses_two_corpora(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "compare.md"
    assert compare(only(folder / "slow"), only(folder / "same"), markdown=report) == 0
    shown = capsys.readouterr().out
    assert "B is better" in shown
    assert "delay_ms differs: 960 before, 480 now" in shown
    assert "REGRESSION" not in shown
    assert report.read_text(encoding="utf-8").startswith("# Comparison")
    assert compare(only(folder / "same"), only(folder / "other")) == 2
    assert "CANNOT COMPARE" in capsys.readouterr().out
    assert compare(only(folder / "same"), tmp_path / "nothing") == 2


def test_compare_reads_a_baseline_file(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "baseline.json"
    assert gate([str(only(folder / "same"))], save=kept) == 0
    assert compare(kept, only(folder / "worse")) == 0
    assert "B is worse: WER" in capsys.readouterr().out


def test_runs_that_are_judged_go_into_the_history_and_those_that_cannot_do_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.parquet"
    assert gate([str(folder / "other")], baseline=only(folder / "same"), history=path) == 2
    assert not path.exists()
    assert gate([str(only(folder / "same"))], baseline=only(folder / "same"), history=path) == 0
    assert {row["commit"] for row in read_history(path)} == {"0123abc"}
    capsys.readouterr()
    assert history([folder / "slow"], file=path, metric=["wer"], as_json=True) == 0
    out, err = capsys.readouterr()
    series = json.loads(out)["series"]
    assert [(one["cell"], one["metric"], len(one["values"])) for one in series] == [
        ("realtime 480 ms ×8", "wer", 1),
        ("realtime 960 ms ×8", "wer", 1),
    ]
    assert "too few runs to tell" in err


def test_an_empty_history_and_an_unknown_metric_are_told(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="holds no run yet"):
        history(None, file=tmp_path / "none.parquet")
    with pytest.raises(GateError, match="no metric 'wre'"):
        history(None, file=tmp_path / "none.parquet", metric=["wre"])


def test_bars_go_from_the_least_to_the_largest() -> None:
    assert bars([1.0, 2.0, 3.0]) == "▁▅█"
    assert bars([5.0, 5.0]) == "▅▅"
