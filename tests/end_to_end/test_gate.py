"""``earmark gate`` on real runs: what is unchanged passes, what was made worse fails, what differs is not compared.

Unpaced runs, so that a busy machine makes no run invalid; the time to final is compared on a paced one of a few short streams.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_SPEECH = ROOT.parent / "shared" / "speech" / "real" / "manifest.jsonl"


def earmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, cwd=ROOT, check=False)


def bench(out: Path, *arguments: str) -> Path:
    """The folder of the only run that this bench makes."""
    done = earmark("bench", "--out", str(out), "--json", "--no-report", "--protocol", "realtime", *arguments)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout.splitlines()[-1])["runs"]
    return Path(run["folder"])


UNPACED = ("--engine", "sphinx", "--limit", "16", "--delay-ms", "480", "--speed", "inf", "--concurrency", "4")
PACED = ("--engine", "scripted", "--limit", "24", "--delay-ms", "480", "--concurrency", "24")


@pytest.fixture(scope="module")
def accuracy_baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baseline")
    run = bench(folder, *UNPACED)
    saved = earmark("gate", str(run), "--save", str(folder / "baseline.json"))
    assert saved.returncode == 0, saved.stderr
    return folder / "baseline.json"


def test_the_same_recogniser_passes(accuracy_baseline: Path, tmp_path: Path) -> None:
    judged = earmark("gate", str(bench(tmp_path, *UNPACED)), "--baseline", str(accuracy_baseline))
    assert judged.returncode == 0, judged.stdout + judged.stderr
    assert "PASS" in judged.stdout


def test_a_recogniser_made_worse_fails(accuracy_baseline: Path, tmp_path: Path) -> None:
    """At 300 active models per frame instead of 3000 the right path is often lost."""
    run = bench(tmp_path, *UNPACED, "--server-option=--sphinx-maxhmmpf=300")
    judged = earmark("gate", str(run), "--baseline", str(accuracy_baseline))
    assert judged.returncode == 1, judged.stdout + judged.stderr
    (row,) = (line for line in judged.stdout.splitlines() if line.startswith("WER"))
    assert "worse" in row


def test_another_corpus_is_not_compared(accuracy_baseline: Path, tmp_path: Path) -> None:
    run = bench(tmp_path, *UNPACED, "--dataset", "non-speech")
    judged = earmark("gate", str(run), "--baseline", str(accuracy_baseline))
    assert judged.returncode == 2, judged.stdout + judged.stderr
    assert "dataset" in judged.stderr + judged.stdout


def test_finals_that_come_half_a_second_later_fail(tmp_path: Path) -> None:
    before = bench(tmp_path, *PACED)
    after = bench(tmp_path, *PACED, '--server-option=--script={"final_latency_ms":500}')
    judged = earmark("gate", str(after), "--baseline", str(before))
    if judged.returncode == 2 and "pacing" in judged.stdout + judged.stderr:
        pytest.skip("the machine was too busy to keep the schedule, and the gate refuses such runs")
    assert judged.returncode == 1, judged.stdout + judged.stderr
    (row,) = (line for line in judged.stdout.splitlines() if line.startswith("time to final"))
    assert "worse" in row


@pytest.mark.skipif(not REAL_SPEECH.exists(), reason="the recordings of real people are not part of the project")
def test_real_speech_is_replayed_and_scored(tmp_path: Path) -> None:
    """PocketSphinx was measured at 64 % WER over recordings of this kind: far from none, and far from all."""
    run = bench(
        tmp_path,
        "--engine",
        "sphinx",
        "--dataset",
        str(REAL_SPEECH),
        "--speed",
        "inf",
        "--limit",
        "20",
        "--delay-ms",
        "480",
    )
    scores = json.loads((run / "scores.json").read_text())
    assert scores["outcomes"] == {"ok": 20}
    assert 0 < scores["accuracy"]["wer"]["value"] < 0.9
