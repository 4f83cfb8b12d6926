"""What the pages of docs/protocols/ show works as it stands: their Python clients and their curl lines."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import wave
from pathlib import Path
from types import ModuleType

import pytest

from server.protocols import realtime, yap
from tests.end_to_end.conftest import Serve
from tests.end_to_end.running_server import KEY, ROOT, clean_environment, command
from tests.end_to_end.speech import sentence
from wire import sessions

PAGES = ROOT / "docs" / "protocols"
ADDRESS = "127.0.0.1:8000"
ENOUGH_SECONDS = 60


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert found, f"{page} shows no {language}"
    return found


@pytest.mark.parametrize(
    "page",
    [
        pytest.param("yap.md", marks=pytest.mark.spec("yap-01")),
        pytest.param("realtime.md", marks=pytest.mark.spec("realtime-01")),
        pytest.param("sessions.md", marks=pytest.mark.spec("sessions-01")),
    ],
)
def test_the_python_client_of_the_page_prints_what_was_said(serve: Serve, page: str, tmp_path: Path) -> None:
    server = serve()
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(sentence("as", "the", "page", "says"))
    [client] = blocks(page, "python")
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", client, str(tmp_path / "speech.wav")],
        env=clean_environment({"STT_URL": f"ws://127.0.0.1:{server.port}", "VOXTRAL_API_KEY": KEY}),
        capture_output=True,
        text=True,
        timeout=ENOUGH_SECONDS,
        check=False,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("as the page says\n", "", 0)


CURL = [line for page in ("http.md", "sessions.md") for line in "\n".join(blocks(page, "sh")).splitlines() if line]


@pytest.mark.spec("http-01")
@pytest.mark.parametrize("line", CURL)
def test_the_curl_lines_of_the_pages_work(serve: Serve, line: str) -> None:
    server = serve()
    program, *arguments = shlex.split(line.replace(ADDRESS, f"127.0.0.1:{server.port}"))
    assert program == "curl"
    assert any(f"127.0.0.1:{server.port}/" in argument for argument in arguments)
    ended = subprocess.run(
        [program, *arguments, "--write-out", "\n%{http_code}"],
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=ENOUGH_SECONDS,
        check=False,
    )
    assert (ended.stderr, ended.returncode) == ("", 0)
    assert ended.stdout.endswith("\n200")


NOT_READ = {
    "HF_TOKEN",  # the hub's library reads it
    "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB",
    *("WS_CLOSE_UNAUTHORIZED_CODE", "WS_CLOSE_BUSY_CODE"),
    *("TAIL_LOGS", "HEALTH_URL", "HEALTH_TIMEOUT_S", "TORCH_BACKEND", "PYTORCH_CUDA_INDEX_URL"),
}
"""Variables of which the pages say so."""

CODES = {name for name, value in vars(sessions).items() if name == value}
"""Codes of errors that look like variables."""


@pytest.mark.spec("yap-74")
@pytest.mark.parametrize("page", ["yap.md", "realtime.md", "http.md", "sessions.md", "operations.md"])
def test_every_variable_that_a_page_names_is_one_of_the_servers(page: str) -> None:
    told = subprocess.run(
        command("--help"), cwd=ROOT, env=clean_environment({}), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    named = set(re.findall(r"`([A-Z][A-Z0-9]*_[A-Z0-9_]+)", (PAGES / page).read_text(encoding="utf-8")))
    assert named
    assert named - NOT_READ - CODES - set(re.findall(r"[A-Z][A-Z0-9]*_[A-Z0-9_]+", told)) == set()


@pytest.mark.parametrize("dialect", [yap, realtime])
def test_every_error_that_a_dialect_has_is_on_its_page(dialect: ModuleType) -> None:
    page = (PAGES / f"{dialect.__name__.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    codes = set(dialect._CODES.values()) | (set(dialect._CODES) if dialect is yap else set())
    assert {code for code in codes if f"`{code}`" not in page} == set()


@pytest.mark.spec("sessions-39")
def test_every_error_code_of_sessions_is_on_their_page() -> None:
    page = (PAGES / "sessions.md").read_text(encoding="utf-8")
    assert len(CODES) == 6
    assert {code for code in CODES if f"| `{code}` |" not in page} == set()
