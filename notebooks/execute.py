"""Runs every notebook headless on a folder of runs, keeps its paired .ipynb in step, and fails on the first error of each."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

import jupytext
import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CELL_SECONDS = 120


def sources() -> list[Path]:
    """The notebooks, in order."""
    return sorted(HERE.glob("[0-9][0-9]-*.py"))


def pair(source: Path, check: bool = False) -> bool:
    """Writes the .ipynb beside its percent source, without outputs. Returns whether it was already up to date."""
    notebook = jupytext.read(source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # a random id would change the file each time
    text = nbformat.writes(notebook) + "\n"
    target = source.with_suffix(".ipynb")
    same = target.exists() and target.read_text(encoding="utf-8") == text
    if not same and not check:
        target.write_text(text, encoding="utf-8")
    return same


def execute(
    source: Path,
    runs: Sequence[Path] = (),
    out: Path | None = None,
    cell_seconds: int = CELL_SECONDS,
    kernel: KernelManager | None = None,
) -> str | None:
    """Executes one notebook; returns what went wrong, or ``None``. ``out`` gets the executed copy with its outputs.

    A ``kernel`` that is given begins with no names and stays alive: what is imported once need not be again.
    """
    notebook = jupytext.read(source)
    _prepare(runs)
    if kernel is not None:
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f", id="reset"))
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=cell_seconds,
        startup_timeout=90,
        kernel_name="python3",
        resources={"metadata": {"path": str(HERE)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        return str(error)
    finally:
        if kernel is not None:
            notebook.cells.pop(0)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, out / f"{source.stem}.ipynb")
    return None


def _prepare(runs: Sequence[Path]) -> None:
    if runs:
        os.environ["EARMARK_RUNS"] = os.pathsep.join(str(run.resolve()) for run in runs)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def execute_all(
    chosen: Sequence[Path], runs: Sequence[Path], out: Path | None, cell_seconds: int
) -> Iterator[tuple[Path, str | None, float]]:
    """Each notebook with what went wrong and the seconds that it took, one after the other in one kernel; a new one after a failure."""
    kernel: KernelManager | None = None
    _prepare(runs)
    try:
        for source in chosen:
            began = monotonic()
            if kernel is None:
                kernel = KernelManager(kernel_name="python3")
                kernel.start_kernel(cwd=str(HERE))
            error = execute(source, runs, out, cell_seconds, kernel)
            if error:
                kernel.shutdown_kernel(now=True)
                kernel = None
            yield source, error, monotonic() - began
    finally:
        if kernel is not None:
            kernel.shutdown_kernel(now=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="run folders, or folders of run folders; default: the newest runs"
    )
    parser.add_argument("--out", type=Path, help="where executed copies with outputs go")
    parser.add_argument("--pair", action="store_true", help="only write the .ipynb files beside the sources")
    parser.add_argument("--check", action="store_true", help="only say whether the .ipynb files are up to date")
    parser.add_argument("--only", default="", help="numbers of notebooks, e.g. 01,08; default: all")
    parser.add_argument("--cell-seconds", type=int, default=CELL_SECONDS, help="bound on each cell")
    asked = parser.parse_args(arguments)
    if asked.pair or asked.check:
        stale = [source.name for source in sources() if not pair(source, check=asked.check)]
        if stale:
            print(f"{'out of step' if asked.check else 'written'}: {', '.join(stale)}")
        return 1 if stale and asked.check else 0
    failed = 0
    chosen = [source for source in sources() if not asked.only or source.name[:2] in asked.only.split(",")]
    for source, error, seconds in execute_all(chosen, asked.runs, asked.out, asked.cell_seconds):
        print(f"{source.name}: {'FAILED' if error else 'ok'}, {seconds:.0f} s", flush=True)
        if error:
            failed += 1
            print(error, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.platform == "win32":
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="jupyter_client|zmq|nbclient")
    raise SystemExit(main())
