"""Samples summed up, and what the sampler asks of NVML."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.resources import Load, by_source
from harness.system import Sampler
from tests.harness.test_system import wait_for_rows

NVML = """
class NVMLError(Exception):
    pass
class _Figures:
    def __init__(self, **figures):
        self.__dict__.update(figures)
def nvmlInit():
    pass
def nvmlDeviceGetCount():
    return 2
def nvmlDeviceGetHandleByIndex(index):
    return index
def nvmlDeviceGetUtilizationRates(index):
    return _Figures(gpu=40 + index, memory=7)
def nvmlDeviceGetMemoryInfo(index):
    return _Figures(used=3_000_000_000)
def nvmlDeviceGetPowerUsage(index):
    if index:
        raise NVMLError("not supported")
    return 123_456
"""


def test_figures_by_source() -> None:
    found = by_source(
        [
            {"source": "server", "cpu_percent": 50.0, "rss_bytes": 100},
            {"source": "gpu0", "gpu_percent": 80, "gpu_memory_bytes": 7, "gpu_watts": 300.0},
            {"source": "server", "cpu_percent": 150.0, "rss_bytes": 90},
            {"source": "gpu0", "gpu_percent": 60, "gpu_memory_bytes": 9, "gpu_watts": None},
        ]
    )
    assert found == {
        "server": Load(2, cpu_percent_mean=100.0, cpu_percent_max=150.0, rss_bytes_max=100),
        "gpu0": Load(2, gpu_percent_mean=70.0, gpu_memory_bytes_max=9, gpu_watts_mean=300.0, gpu_watts_max=300.0),
    }
    assert by_source([]) == {}


def test_gpus_are_sampled_in_percent_bytes_and_watts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The vendor's library by its documented units (percent, bytes, milliwatts); the second GPU does not know its power.
    (tmp_path / "pynvml.py").write_text(NVML)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Sampler(server_pid=None, interval_seconds=0.1) as sampler:
        wait_for_rows(sampler, 8)
    found = by_source(sampler.rows(0))
    assert (found["gpu0"].gpu_percent_mean, found["gpu0"].gpu_memory_bytes_max) == (40, 3_000_000_000)
    assert found["gpu0"].gpu_watts_mean == pytest.approx(123.456)
    assert (found["gpu1"].gpu_percent_mean, found["gpu1"].gpu_watts_mean) == (41, None)


def test_without_the_vendors_library_there_is_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pynvml.py").write_text("raise ImportError('No module named pynvml')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Sampler(server_pid=None, interval_seconds=0.1) as sampler:
        wait_for_rows(sampler, 4)
    assert set(by_source(sampler.rows(0))) == {"harness", "machine"}
