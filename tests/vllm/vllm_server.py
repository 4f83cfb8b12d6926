"""vLLM itself in processes of its own: their environment, and its OpenAI-compatible server."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

START_SECONDS = 120.0
STOP_SECONDS = 5.0
MODEL = "mini"


def environment(**more: str) -> dict[str, str]:
    """Of a process that runs vLLM on a CPU that others use too: one thread, no network, a small cache."""
    return (
        os.environ
        | {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_LOGGING_LEVEL": "INFO",  # an engine of ours in this process may have turned it down
            "OMP_NUM_THREADS": "1",
        }
        | more
    )


class VllmServer:
    """It serves a checkpoint in float32 under the name ``MODEL`` from when it is made; ``url`` waits until it does."""

    def __init__(self, checkpoint: Path, folder: Path, max_model_len: int, max_num_seqs: int = 4) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # it asks for its own version under the name vllm, which its CPU build does not have
        info = folder / "site" / "vllm-0.32.0+cpu.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        self._log = folder / "vllm-server.log"
        mistral = ["--tokenizer-mode=mistral", "--config-format=mistral", "--load-format=mistral"]
        limits = [f"--max-model-len={max_model_len}", f"--max-num-seqs={max_num_seqs}"]
        place = ["--host=127.0.0.1", f"--port={self.port}", f"--served-model-name={MODEL}"]
        module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
        with self._log.open("w") as sink:
            self._process = subprocess.Popen(
                [*module, *mistral, "--dtype=float32", "--enforce-eager", *limits, *place],
                stdout=sink,
                stderr=sink,
                env=environment(PYTHONPATH=str(folder / "site")),
                start_new_session=True,  # its engine is a process of its own, ended with the group
            )

    def url(self) -> str:
        """Where it is, once it answers."""
        url = f"http://127.0.0.1:{self.port}"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2):
                    return url
            except OSError:
                time.sleep(0.1)  # between two looks at another process, which has no way to tell us
        raise AssertionError(f"vLLM's server does not answer:\n{self.log()[-3000:]}")

    def log(self) -> str:
        """All that it has written so far."""
        return self._log.read_text()

    def stop(self) -> None:
        """Ask it to end, and end it in any case."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End it and the engine process that it has started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
