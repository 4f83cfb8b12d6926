"""Tells MLflow or Weights & Biases of finished runs: what was asked for, the headline figures with their intervals, the report."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from harness import store, study
from harness.score import read_scores

EXPERIMENT = "earmark"
PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}  # by tracker: what is imported, and the extra of that name
RUN_TAG = "earmark.run"
FILES = ("report.html", "summary.md", "scores.json")
LONGEST_PARAMETER = 500  # what older MLflow servers take


class TrackingError(Exception):
    """A tracker cannot be told; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Told:
    """One run as trackers take it: one cell of a bench each."""

    name: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    files: Sequence[Path]


def told(folder: Path, report: Path | None = None) -> Told:
    """What there is to tell of a scored run. ``report`` is the page about it, if it is not in its folder.

    Raises:
        StoreError: the folder is no scored run.
    """
    run, scores = store.read_run(folder), read_scores(folder)
    found = study.measures(scores, folder)
    metrics = {name: float(value) for name, value in found.items() if _is_number(value)}
    pages = [report] if report is not None and report.exists() else []
    files = [*pages, *(folder / name for name in FILES[1 if pages else 0 :] if (folder / name).exists())]
    return Told(run.id, _parameters(run.config), metrics, _tags(run, found), files)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parameters(config: store.RunConfig) -> dict[str, str]:
    """What was asked for. Settings of load stand alone, so that runs can be sorted by one."""
    asked = msgspec.structs.asdict(config)
    load = asked.pop("load")
    for name in ("label", "caveat"):
        asked.pop(name)
    asked |= {f"load.{name}": value for name, value in load.items()}
    return {name: _text(value)[:LONGEST_PARAMETER] for name, value in asked.items()}


def _text(value: Any) -> str:
    match value:
        case None:
            return "server"
        case list():
            return " ".join(map(str, value))
        case _:
            return str(value)


def _tags(run: store.Run, found: Mapping[str, Any]) -> dict[str, str]:
    environment = run.environment
    git = environment.get("git") or {}
    tags = {
        RUN_TAG: run.id,
        "created": run.created,
        "valid": str(found["valid"]).lower(),
        "invalid_because": found["invalid_because"],
        "complete": str(run.complete).lower(),
        "caveat": run.config.caveat,
        "label": run.config.label,
        "mlflow.source.git.commit": git.get("commit"),
        "git.branch": git.get("branch"),
        "git.dirty": None if not git else str(bool(git.get("dirty"))).lower(),
        **{name: environment.get(name) for name in ("machine", "cpu", "cores", "memory_bytes", "gpu", "python")},
    }
    return {name: str(value) for name, value in tags.items() if value not in (None, "")}


# ---- trackers ----------------------------------------------------------------------------------------------------


def check(tracker: str) -> None:
    """Refuse a tracker that there is not, or whose package is not installed; nothing of it is imported.

    Raises:
        TrackingError: with what to do.
    """
    if tracker not in PACKAGES:
        raise TrackingError(f"there is no tracker {tracker!r}; there are {' and '.join(PACKAGES)}")
    if importlib.util.find_spec(PACKAGES[tracker]) is None:
        raise TrackingError(f"{tracker} is not installed: python -m pip install 'earmark[{tracker}]'")


def tell(tracker: str, runs: Sequence[Told], experiment: str = EXPERIMENT) -> list[str]:
    """Tell a tracker of runs, and say of each where it is. A run that it knows already is left as it is (MLflow) or told anew (W&B).

    Raises:
        TrackingError: the tracker is not installed, or refused; runs told before stay told.
    """
    check(tracker)
    module: Any = importlib.import_module(PACKAGES[tracker])
    with _refusals(tracker):
        return _to_mlflow(module, runs, experiment) if tracker == "mlflow" else _to_wandb(module, runs, experiment)


@contextlib.contextmanager
def _refusals(tracker: str) -> Iterator[None]:
    """Whatever a tracker's client raises, the run is not lost by it and the user is told in a sentence."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        raise TrackingError(f"{tracker} was not told: {type(error).__name__}: {error}") from error


def _to_mlflow(mlflow: Any, runs: Sequence[Told], experiment: str) -> list[str]:
    """To ``MLFLOW_TRACKING_URI``, without which MLflow keeps to a place of its own in the working directory."""
    client = mlflow.MlflowClient()
    known = client.get_experiment_by_name(experiment)
    number = client.create_experiment(experiment) if known is None else known.experiment_id
    where = []
    for run in runs:
        there = client.search_runs([number], f"tags.`{RUN_TAG}` = '{run.name}' and attributes.status = 'FINISHED'")
        if there:
            where.append(f"{run.name}: in MLflow already, as {there[0].info.run_id}")
            continue
        made = client.create_run(number, run_name=run.name, tags=dict(run.tags)).info.run_id
        try:
            _fill(client, made, run)
        except BaseException:
            client.set_terminated(made, "FAILED")  # so that it is not taken for the run the next time
            raise
        client.set_terminated(made, "FINISHED")
        where.append(f"{run.name}: MLflow run {made} in experiment {experiment}")
    return where


def _fill(client: Any, made: str, run: Told) -> None:
    from mlflow.entities import Metric, Param

    moment = int(_epoch_seconds(run) * 1000)
    client.log_batch(
        made,
        metrics=[Metric(name, value, moment, 0) for name, value in run.metrics.items()],
        params=[Param(name, value) for name, value in run.parameters.items()],
    )
    for file in run.files:
        client.log_artifact(made, str(file))


def _epoch_seconds(run: Told) -> float:
    from datetime import datetime

    return datetime.fromisoformat(run.tags["created"]).timestamp()


def _to_wandb(wandb: Any, runs: Sequence[Told], experiment: str) -> list[str]:
    """To the project of that name, or to a folder where ``WANDB_MODE=offline``."""
    where = []
    for run in runs:
        digest = hashlib.sha256(run.name.encode()).hexdigest()[:16]
        made = wandb.init(
            project=os.environ.get("WANDB_PROJECT", experiment) if experiment == EXPERIMENT else experiment,
            name=run.name,
            id=digest,
            resume="allow",
            config={**run.parameters, "environment": dict(run.tags)},
            notes=run.tags.get("caveat"),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        try:
            made.summary.update(dict(run.metrics))
            artifact = wandb.Artifact(f"run-{digest}", type="run", metadata={"run": run.name})
            for file in run.files:
                artifact.add_file(str(file))
            made.log_artifact(artifact)
        except BaseException:
            made.finish(exit_code=1)
            raise
        made.finish()
        where.append(f"{run.name}: W&B {f'offline in {made.dir}' if made.offline else f'run {made.url}'}")
    return where
