"""``earmark capacity`` on a real server that carries a known number of streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from harness import example, store

ROOT = Path(__file__).resolve().parents[2]
CARRIES = 2
SCRIPT = json.dumps({"capacity_streams": CARRIES + 0.5})


def earmark(*arguments: str) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "harness.cli", "capacity", "--json", *arguments]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT, check=False)
    assert asked.returncode == 0, asked.stderr
    found: dict[str, Any] = json.loads(asked.stdout.splitlines()[-1])
    return found, asked.stderr


def test_the_capacity_of_a_server_is_found_and_a_second_search_uses_what_the_first_measured(tmp_path: Path) -> None:
    spoken = example.dataset(tmp_path / "spoken", words_each=30)  # 6.2 s each
    options = ["--engine", "scripted", f"--server-option=--script={SCRIPT}", "--dataset", str(spoken)]
    options += ["--delay-ms", "160", "--slo", "word_p95=0.6", "--seconds", "8", "--idle-seconds", "13"]
    options += ["--out", str(tmp_path / "search")]

    first, _ = earmark(*options, "--repeats", "1", "--most", "3")
    ladder = {streams: [one for one in first["ladder"] if one["streams"] == streams] for streams in (1, 2, 3)}
    # three streams share the hearing of two and a half: they fall behind by 0.17 s per second whatever else happens
    assert not any(one["verdict"] == "holds" for one in ladder[CARRIES + 1])
    disturbed = any(one["verdict"] != "holds" for streams in (1, 2) for one in ladder[streams])
    assert first["streams"] == CARRIES or disturbed, first
    assert first["complete"]
    for one in first["ladder"]:
        run = store.read_run(tmp_path / "search" / "runs" / one["run"])
        assert run.config.concurrency == one["streams"]
        assert run.config.load.get("seconds") == (None if one["purpose"] == "idle" else 8.0)

    again, told = earmark(*options, "--repeats", "1", "--most", "3")
    assert again["ladder"] == first["ladder"]
    assert "starting the server" not in told
    assert (tmp_path / "search" / "ladder.png").exists()


def test_a_server_that_is_overloaded_at_once_ends_its_rung_early(tmp_path: Path) -> None:
    spoken = example.dataset(tmp_path / "spoken", words_each=30)
    found, _ = earmark(
        *["--engine", "scripted", '--server-option=--script={"capacity_streams": 1.5}', "--dataset", str(spoken)],
        *["--slo", "final_p95=1", "--seconds", "40", "--idle-seconds", "7", "--start", "16", "--most", "16"],
        *["--repeats", "1", "--step", "16", "--out", str(tmp_path / "search")],
    )
    rungs = [one for one in found["ladder"] if one["streams"] == 16]
    assert rungs[0]["ended_early"].startswith("saturated")
    assert rungs[0]["verdict"] == "fails"
    run = store.read_run(tmp_path / "search" / "runs" / rungs[0]["run"])
    assert run.wall_seconds < 40
    assert run.generator["stopped_because"] == rungs[0]["ended_early"]
