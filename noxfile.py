"""The commands of the project: ``nox -s NAME [-- OPTIONS]``.

All sessions share one virtual environment, ``.nox/earmark``: what one has installed the next one need not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".nox" / "earmark"
PROGRAMS = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin")
TO_BENCH = "server,sphinx,harness"


def install(session: nox.Session, extras: str) -> None:
    """Install the project as it stands in this tree, its dependencies in the versions that CI uses.

    ``EARMARK_UNCONSTRAINED=1`` takes the newest versions that pyproject.toml allows instead.
    """
    if not (PROGRAMS / "python").exists() and not (PROGRAMS / "python.exe").exists():
        session.log(f"creating {ENVIRONMENT.relative_to(HERE)}")
        venv.create(ENVIRONMENT, with_pip=True)
    session.env["PATH"] = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])
    session.env["VIRTUAL_ENV"] = str(ENVIRONMENT)
    constraints = [] if os.environ.get("EARMARK_UNCONSTRAINED") else ["-c", "constraints.txt"]
    run(session, "python", "-m", "pip", "install", "--quiet", *constraints, "-e", f".[{extras}]")


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program of the shared environment."""
    session.run(str(PROGRAMS / program), *arguments, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that a CPU machine can run."""
    install(session, f"{TO_BENCH},notebooks,dev")
    run(session, "python", "-m", "pytest", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style, types and the direction of imports."""
    install(session, f"{TO_BENCH},notebooks,dev")
    run(session, "ruff", "format", "--check", ".")
    run(session, "ruff", "check", ".")
    run(session, "mypy")
    run(session, "lint-imports")


@nox.session
def serve(session: nox.Session) -> None:
    """Start the server; options are those of ``python -m server --help``."""
    install(session, "server,sphinx")
    run(session, "python", "-m", "server", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Start a server, replay a dataset against it, score it, report it; options are those of ``earmark bench``."""
    install(session, TO_BENCH)
    run(session, "earmark", "bench", *session.posargs)


@nox.session(default=False)
def study(session: nox.Session) -> None:
    """Measure a grid of server and harness settings, e.g. studies/delay.toml; done cells are skipped."""
    install(session, TO_BENCH)
    code = subprocess.call([str(PROGRAMS / "earmark"), "study", *(session.posargs or ["studies/delay.toml"])])
    if code:
        sys.exit(code)  # 3 where a cell failed, 130 when interrupted


@nox.session
def gate(session: nox.Session) -> None:
    """Hold runs against a baseline: 0 pass, 1 regression, 2 cannot compare."""
    install(session, TO_BENCH)
    code = subprocess.call([str(PROGRAMS / "earmark"), "gate", *session.posargs])
    if code:
        sys.exit(code)  # nox itself knows only 0 and 1


@nox.session
def notebooks(session: nox.Session) -> None:
    """Run every notebook on the newest runs."""
    install(session, f"{TO_BENCH},notebooks")
    run(session, "python", "notebooks/execute.py", *session.posargs)


@nox.session(default=False)
def lab(session: nox.Session) -> None:
    """Open JupyterLab on the notebooks."""
    install(session, f"{TO_BENCH},notebooks")
    run(session, "jupyter", "lab", "notebooks", *session.posargs)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Write constraints.txt anew: the newest versions that pyproject.toml allows, as a fresh environment gets them."""
    fresh = Path(session.create_tmp()) / "venv"
    venv.create(fresh, with_pip=True, clear=True)
    python = str(fresh / PROGRAMS.name / "python")
    extras = f"{TO_BENCH},notebooks,dev"
    session.run(python, "-m", "pip", "install", "--quiet", "-e", f".[{extras}]", external=True)
    frozen = session.run(python, "-m", "pip", "freeze", "--exclude-editable", silent=True, external=True)
    (HERE / "constraints.txt").write_text(str(frozen))
