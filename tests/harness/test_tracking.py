"""What MLflow and Weights & Biases are told of a run, read back from their own stores. ``nox -s trackers`` installs them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import tracking
from harness.score import read_scores
from harness.tracking import Told, TrackingError, told
from tests.harness.made_runs import make

STALLED = (("jitter_ms", 20.0), ("stalls", ["2@10"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make(tmp_path_factory.mktemp("runs"), utterances=8, load=STALLED, speed=float("inf"), delay_ms=None)
    (folder / "report.html").write_text("<p>about it")
    return folder


def test_a_run_is_told_with_its_settings_its_figures_and_where_they_come_from(run: Path) -> None:
    one, scores = told(run), read_scores(run)
    assert one.name == run.name
    assert (one.parameters["protocol"], one.parameters["concurrency"]) == ("realtime", "8")
    assert (one.parameters["delay_ms"], one.parameters["speed"]) == ("server", "inf")
    assert (one.parameters["load.jitter_ms"], one.parameters["load.stalls"]) == ("20.0", "2@10")
    wer = scores.accuracy.wer
    assert (one.metrics["wer"], one.metrics["wer_low"], one.metrics["wer_high"]) == (wer.value, wer.low, wer.high)
    assert one.metrics["flush_latency_p50"] == scores.latency["flush_latency"].p50.value
    assert "word_latency_p99_low" not in one.metrics  # 8 streams give no interval of a p99
    assert one.tags["mlflow.source.git.commit"] == "0123abc"
    assert (one.tags["git.dirty"], one.tags["cpu"], one.tags["cores"]) == ("false", "Example CPU 2.0 GHz", "2")
    assert [file.name for file in one.files] == ["report.html", "summary.md", "scores.json"]


def test_the_page_of_a_bench_stands_for_that_of_the_run(run: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>about all")
    assert told(run, tmp_path / "report.html").files[0] == tmp_path / "report.html"
    assert [file.name for file in told(run, tmp_path / "none.html").files] == [
        "report.html",
        "summary.md",
        "scores.json",
    ]


def test_a_tracker_that_is_not_there_is_refused_with_what_to_do() -> None:
    with pytest.raises(TrackingError, match="no tracker 'comet'; there are mlflow and wandb"):
        tracking.check("comet")
    for name in tracking.PACKAGES:
        if importlib.util.find_spec(name) is None:
            with pytest.raises(
                TrackingError, match=rf"{name} is not installed: python -m pip install 'earmark\[{name}\]'"
            ):
                tracking.tell(name, [])


def test_trackers_are_imported_only_when_they_are_told() -> None:
    asked = "import sys, harness.cli, harness.tracking; print(sorted({'mlflow', 'wandb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_keeps_a_run_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="nox -s trackers installs it", exc_type=ImportError)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # no tables to make
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    from mlflow import MlflowClient

    one = told(run)
    (said,) = tracking.tell("mlflow", [one])
    client = MlflowClient()
    experiment = client.get_experiment_by_name("earmark")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.run_id in said
    assert (kept.info.run_name, kept.info.status) == (run.name, "FINISHED")
    assert kept.data.params == dict(one.parameters)
    assert kept.data.metrics == pytest.approx(dict(one.metrics))
    assert dict(one.tags).items() <= kept.data.tags.items()
    assert {file.path for file in client.list_artifacts(kept.info.run_id)} == {
        "report.html",
        "summary.md",
        "scores.json",
    }
    (again,) = tracking.tell("mlflow", [one])
    assert "already" in again
    assert len(client.search_runs([experiment.experiment_id])) == 1

    gone = Told("broken", {}, {}, {"created": one.tags["created"], tracking.RUN_TAG: "broken"}, [tmp_path / "no-file"])
    with pytest.raises(TrackingError, match="mlflow was not told"):
        tracking.tell("mlflow", [gone])
    (mended,) = tracking.tell("mlflow", [Told("broken", {}, {}, gone.tags, [])])
    assert "already" not in mended


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_wandb_keeps_a_run_offline(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="nox -s trackers installs it", exc_type=ImportError)
    for name, value in (
        ("MODE", "offline"),
        ("DIR", tmp_path),
        ("CACHE_DIR", tmp_path),
        ("DATA_DIR", tmp_path),
        ("CONFIG_DIR", tmp_path),
    ):
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    one = told(run)
    (said,) = tracking.tell("wandb", [one])
    assert "offline in" in said
    (kept,) = tmp_path.rglob("*.wandb")
    config, summary, files = _recorded(kept)
    assert config["protocol"] == "realtime"
    assert config["environment"]["cpu"] == "Example CPU 2.0 GHz"
    assert {name: summary[name] for name in one.metrics} == pytest.approx(dict(one.metrics))
    assert files == {"report.html", "summary.md", "scores.json"}


def _recorded(path: Path) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """Configuration, summary and files of artifacts in W&B's own log of a run."""
    from wandb.proto.wandb_internal_pb2 import Record

    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    files: set[str] = set()
    for data in _log_entries(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        config |= {one.key: json.loads(one.value_json) for one in record.run.config.update if one.key}
        summary |= {one.key or one.nested_key[0]: json.loads(one.value_json) for one in record.summary.update}
        for artifact in (record.artifact, record.request.log_artifact.artifact):
            files |= {entry.path for entry in artifact.manifest.contents}
    return config, summary, files


def _log_entries(log: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log: blocks of 32 KiB, in them parts with checksum (4 bytes), length (2) and kind (1: whole entry, 2 to 4:
    first, middle, last part). W&B's begins with 7 bytes of its own.
    """
    block, header, at, entry = 32_768, 7, 7, b""
    while at + header <= len(log):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(log[at + 4 : at + 6], "little"), log[at + 6]
        part = log[at + header : at + header + length]
        at += header + length
        entry = part if kind in (1, 2) else entry + part
        if kind in (1, 4):
            yield entry
