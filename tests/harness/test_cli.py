from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli
from harness.bench import BenchError, Plan
from harness.commands import terminal
from harness.commands.folders import expand

ROOT = Path(__file__).resolve().parents[2]


def earmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def test_help_names_every_command_and_exit_code() -> None:
    asked = earmark("--help")
    assert asked.returncode == 0
    for word in ("bench", "study", "score", "report", "gate", "datasets", "0 fine", "1 regression", "2 cannot compare"):
        assert word in asked.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("bench", "--concurrency", "x"), "--concurrency x"),
        (("bench", "--concurrency", "0"), "concurrency 0"),
        (("bench", "--delay-ms", "-5"), "delay -5 ms"),
        (("bench", "--protocol", "morse"), "'morse'"),
        (("bench", "--target", "ftp://h"), "ftp://h"),
        (("bench", "--speed", "0"), "speed"),
        (("bench", "--header", "nonsense"), "nonsense"),
        (("bench", "--dataset", "nowhere"), "nowhere"),
        (("bench", "--normaliser", "nobody/1"), "nobody/1"),
        (("bench", "--target", "h:1", "--server-option=--x"), "--server-option"),
        (("bench", "--no-such-option"), "--no-such-option"),
        (("score", "/nowhere"), "/nowhere"),
        (("report", "/nowhere"), "/nowhere"),
        (("gate", "--profile", "laboratory"), "'laboratory'"),
        (("gate", "/nowhere", "--baseline", "x", "--save", "y"), "either --baseline"),
        (("study", "/nowhere.toml"), "/nowhere.toml"),
        (("study", "studies/delay.toml", "--set", "concurrency=1"), "--set concurrency=1"),
        (("study", "studies/delay.toml", "--set", "harness.dataset=nowhere"), "nowhere"),
        (("study", "studies/delay.toml", "--set", "harness.protocol=morse"), "'morse'"),
        (("datasets", "check", "nowhere"), "nowhere"),
        (("datasets", "fetch", "fleurs-xx"), "xx"),
    ],
)
def test_bad_usage_is_one_sentence_and_code_3(arguments: tuple[str, ...], told: str) -> None:
    asked = earmark(*arguments)
    assert asked.returncode == 3, asked.stderr
    assert told in asked.stderr
    assert "Traceback" not in asked.stderr


def test_a_target_that_is_not_there_is_told_without_a_traceback(tmp_path: Path) -> None:
    asked = earmark(
        "bench", "--target", "ws://127.0.0.1:9", "--limit", "1", "--api-key", "secret", "--out", str(tmp_path)
    )
    assert asked.returncode == 3
    assert "cannot connect" in asked.stderr
    assert "secret" not in asked.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_cannot_start_is_told_with_its_own_words(tmp_path: Path) -> None:
    asked = earmark("bench", "--engine", "nobody", "--limit", "1", "--out", str(tmp_path))
    assert asked.returncode == 3
    assert "--engine=nobody" in asked.stderr
    assert "Traceback" not in asked.stderr


@pytest.mark.parametrize("content", [None, "not json", "[]"])
def test_a_baseline_that_cannot_be_read_is_code_2(tmp_path: Path, content: str | None) -> None:
    baseline = tmp_path / "baseline.json"
    if content is not None:
        baseline.write_text(content)
    asked = earmark("gate", "--baseline", str(baseline), str(tmp_path / "run"))
    assert asked.returncode == 2
    assert "baseline" in asked.stderr


def test_folders_of_benches_and_of_runs_stand_for_their_runs(tmp_path: Path) -> None:
    for name in ("a-run", "b-run", "c-run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").touch()
    bench = tmp_path / "x-bench"
    bench.mkdir()
    (bench / "bench.json").write_text(json.dumps({"runs": ["b-run", "a-run"]}))
    assert expand([bench]) == [tmp_path / "b-run", tmp_path / "a-run"]
    assert expand([tmp_path]) == [tmp_path / "a-run", tmp_path / "b-run", tmp_path / "c-run"]
    assert expand([tmp_path / "c-run", bench, tmp_path / "b-run"]) == [
        tmp_path / name for name in ("c-run", "b-run", "a-run")
    ]


def test_keys_are_not_kept_with_the_command() -> None:
    given = [
        "bench",
        "--api-key",
        "s3cret",
        "--header",
        "X-Key: s3cret",
        "--api-key=s3cret",
        "--header=X: s3cret",
        "--limit",
        "3",
    ]
    shown = terminal.public_arguments(given)
    assert "s3cret" not in " ".join(shown)
    assert shown[-2:] == ["--limit", "3"]


def test_the_datasets_that_come_along_are_listed() -> None:
    asked = earmark("datasets", "list")
    assert asked.returncode == 0, asked.stderr
    for name in ("spoken-en", "non-speech", "librispeech-test-clean"):
        assert name in asked.stdout
    shown = earmark("datasets", "show", "spoken-en", "--limit", "3")
    assert len(shown.stdout.strip().splitlines()) == 4


def test_delays_can_be_left_to_the_server() -> None:
    assert cli._delays("server") == [None]
    assert cli._delays("160,480,160") == [160, 480]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--arrival", "poisson"], "poisson:PER_SECOND"),
        (["--arrival", "fixed:2", "--concurrency", "4"], "--concurrency"),
        (["--stall", "5"], "2@10"),
        (["--speed", "inf", "--jitter-ms", "5"], "infinite speed"),
        (["--duty-cycle", "2"], "duty_cycle"),
        (["--generators", "999"], "64"),
    ],
)
def test_loads_that_make_no_sense_are_refused_before_a_server_is_started(
    tmp_path: Path, options: list[str], said: str
) -> None:
    asked = earmark("bench", *options, "--limit", "1", "--out", str(tmp_path))
    assert asked.returncode == 3
    assert said in asked.stderr
    assert "Traceback" not in asked.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("empty", [{"concurrencies": []}, {"delays_ms": []}])
def test_a_plan_without_cells_is_refused(empty: dict[str, list[int]]) -> None:
    with pytest.raises(BenchError, match="at least one"):
        Plan(**empty)  # type: ignore[arg-type]


def test_the_package_is_light_to_import() -> None:
    code = "import sys; import wire.yap, harness.cli, harness.replay; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    heavy = {"pandas", "matplotlib", "scipy", "pyarrow", "jiwer", "pocketsphinx", "fastapi"}
    assert heavy & set(loaded.stdout.split()) == set()
