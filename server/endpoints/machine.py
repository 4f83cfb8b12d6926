"""What the machine is up to: processor, memory, disk, GPUs."""

from __future__ import annotations

import functools
from typing import Any

import psutil

psutil.cpu_percent()  # it tells of the time since it was asked last


def system() -> dict[str, float]:
    """Percents: of all processors since the last call, of memory, and of the file system at ``/``."""
    return {
        "cpu_percent": float(psutil.cpu_percent()),
        "memory_percent": float(psutil.virtual_memory().percent),
        "disk_usage": float(psutil.disk_usage("/").percent),
    }


def gpus() -> dict[str, int]:
    """NVIDIA GPUs, all together, in bytes; nothing where there is none.

    ``gpu_memory`` is what they have, ``gpu_memory_cached`` what all programs hold of it, ``gpu_memory_allocated`` what this server's
    own processes hold; where the driver does not tell of processes (as in many containers) the latter two are the same.
    """
    nvml = open_nvml()
    if nvml is None:
        return {}
    total = used = own = 0
    told = False
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
        if not handles:
            return {}
        family = {process.pid for process in (psutil.Process(), *psutil.Process().children(recursive=True))}
        for handle in handles:
            memory = nvml.nvmlDeviceGetMemoryInfo(handle)
            total, used = total + int(memory.total), used + int(memory.used)
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                told = told or process.usedGpuMemory is not None
                own += int(process.usedGpuMemory or 0) if process.pid in family else 0
    except (nvml.NVMLError, psutil.Error):
        return {}
    allocated = own if told else used
    return {
        "gpu_count": len(handles),
        "gpu_memory": total,
        "gpu_memory_allocated": allocated,
        "gpu_memory_cached": used,
    }


@functools.cache
def open_nvml() -> Any:
    """NVIDIA's library, started; None where there is no driver."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
