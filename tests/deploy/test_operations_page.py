"""``docs/operations.md`` names commands, options and files that exist."""

from __future__ import annotations

import re

import pytest
import typer.main

from harness.cli import app
from tests.deploy.files import ROOT

PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OURS = ("serve", "status", "logs", "stop", "restart", "clean", "doctor", "certificate")


@pytest.mark.parametrize("name", OURS)
def test_the_command_is_there_and_on_the_page(name: str) -> None:
    assert name in COMMANDS
    assert re.search(rf"earmark {name}\b", PAGE)


def test_every_command_and_option_on_the_page_exists() -> None:
    for name, rest in re.findall(r"earmark ([a-z]+)((?: --?[a-z-]+| [A-Z]+| \d+)*)", PAGE):
        assert name in COMMANDS, name
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in known or name == "serve", f"earmark {name} {option}"


def test_every_file_on_the_page_exists() -> None:
    named = re.findall(r"deploy/[\w./-]+\w", PAGE) + [
        f"deploy/kubernetes/{n}" for n in re.findall(r"`(base/[\w.]+)`", PAGE)
    ]
    assert len(named) > 12
    for path in named:
        assert (ROOT / path).exists(), path


def test_exit_codes_on_the_page_are_those_of_the_help() -> None:
    for name in ("status", "stop"):
        help_text = " ".join((COMMANDS[name].help or "").split())
        assert re.findall(r"\b([0-3]) ", help_text.partition("Exit codes:")[2])
        [row] = re.findall(rf"^\| `{name}` \| (.*) \|$", PAGE, re.MULTILINE)
        told = re.findall(r"(?:^|; )([0-3]) ", row)
        assert told == re.findall(r"(?:: |, |; )([0-3]) ", ": " + help_text.partition("Exit codes: ")[2])
