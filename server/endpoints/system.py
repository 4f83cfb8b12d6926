"""What the machine and this process are up to, as ``/system`` of the operations plane tells it."""

from __future__ import annotations

import os
import platform
import time
from typing import Any

import psutil
import structlog

from server.endpoints.machine import open_nvml

_log = structlog.get_logger("earmark.operations")


class System:
    """Processor time is told of the time since the last call."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()

    def told(self, *, gpus: bool) -> dict[str, object]:
        """The object of ``/system``; ``timestamp`` in seconds since 1970, ``gpus`` looked at only on demand."""
        memory = psutil.virtual_memory()
        with self._process.oneshot():
            own = self._process.memory_info()
            process = {
                "pid": self._process.pid,
                "cpu_percent": self._process.cpu_percent(),
                "rss_bytes": own.rss,
                "vms_bytes": own.vms,
                "threads": self._process.num_threads(),
            }
        return {
            "timestamp": time.time(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cpu_count": os.cpu_count(),
            "load_avg": _load(),
            "process": process,
            "system": {
                "memory_total_bytes": memory.total,
                "memory_available_bytes": memory.available,
                "memory_percent": memory.percent,
            },
            "gpus": self._gpus() if gpus else [],
        }

    def _gpus(self) -> list[dict[str, object]]:
        """NVIDIA's GPUs; none where there is no driver. What one does not tell is None."""
        nvml = open_nvml()
        if nvml is None:
            return []
        try:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            _log.warning("the GPUs cannot be read", error=str(error))
            return []
        return [_gpu(nvml, index, handle) for index, handle in enumerate(handles)]


def _load() -> list[float] | None:
    try:
        return list(os.getloadavg())
    except OSError:
        return None


def _gpu(nvml: Any, index: int, handle: Any) -> dict[str, object]:
    def ask(call: str, *arguments: Any) -> Any:
        try:
            return getattr(nvml, call)(handle, *arguments)
        except nvml.NVMLError:
            return None

    name, busy, memory = (
        ask("nvmlDeviceGetName"),
        ask("nvmlDeviceGetUtilizationRates"),
        ask("nvmlDeviceGetMemoryInfo"),
    )
    return {
        "index": index,
        "name": name.decode() if isinstance(name, bytes) else name,
        "utilization_gpu": None if busy is None else busy.gpu,
        "utilization_memory": None if busy is None else busy.memory,
        "memory_total_mib": None if memory is None else int(memory.total) >> 20,
        "memory_used_mib": None if memory is None else int(memory.used) >> 20,
        "temperature_gpu": ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
    }
