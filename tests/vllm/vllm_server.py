"""vLLM's own OpenAI-compatible server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil

START_SECONDS = 120.0
STOP_SECONDS = 5.0
MODEL = "mini"


class VllmServer:
    """It serves a checkpoint in float32 from when it is made; ``url`` waits until it does."""

    def __init__(self, checkpoint: Path, folder: Path, max_model_len: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        # it asks for its own version under the name vllm, which its CPU build does not have
        info = folder / "site" / "vllm-0.32.0+cpu.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        self._log = folder / "vllm-server.log"
        mistral = ["--tokenizer-mode=mistral", "--config-format=mistral", "--load-format=mistral"]
        limits = ["--dtype=float32", "--enforce-eager", f"--max-model-len={max_model_len}", "--max-num-seqs=4"]
        place = ["--host=127.0.0.1", f"--port={self._port}", f"--served-model-name={MODEL}"]
        environment = os.environ | {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(folder / "site"),
        }
        module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]
        with self._log.open("w") as sink:
            self._process = subprocess.Popen(
                [*module, *mistral, *limits, *place], stdout=sink, stderr=sink, env=environment
            )

    def url(self) -> str:
        """Where it is, once it answers."""
        url = f"http://127.0.0.1:{self._port}"
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2):
                    return url
            except OSError:
                time.sleep(0.1)  # between two looks at another process, which has no way to tell us
        raise AssertionError(f"vLLM's server does not answer:\n{self._log.read_text()[-3000:]}")

    def stop(self) -> None:
        """End it in any case, and the engine process that it has started."""
        engines = psutil.Process(self._process.pid).children() if self._process.poll() is None else []
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_SECONDS)
        for engine in engines:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.kill()
