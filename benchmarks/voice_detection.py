"""What voice detection costs per frame and per stream: printed, never a timed test.

Run from the root of the repository: ``python -m benchmarks.voice_detection`` (a few seconds).
"""

from __future__ import annotations

import time

import numpy as np
import psutil

from server.engines.silero import SileroDetector
from wire.pcm import bytes_of

STREAMS = 50


def main() -> None:
    """Cost of a frame, and memory of a stream."""
    started = time.perf_counter()
    detector = SileroDetector()
    print(f"first detector (with import): {1000 * (time.perf_counter() - started):.0f} ms")
    rng = np.random.default_rng(1)
    frame = bytes_of(detector.frame_seconds)
    frames = [(rng.standard_normal(frame // 2) * 2000).astype(np.int16).tobytes() for _ in range(1000)]
    detector.feed(frames[0])
    wall = []
    cpu = time.process_time()
    for pcm in frames:
        started = time.perf_counter()
        detector.feed(pcm)
        wall.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    p50, p99 = np.quantile(wall, [0.5, 0.99])
    print(f"frame of {1000 * detector.frame_seconds:.0f} ms: p50 {1e6 * p50:.0f} us, p99 {1e6 * p99:.0f} us, ", end="")
    print(
        f"CPU {1e6 * cpu / len(frames):.0f} us in all threads ({100 * cpu / len(frames) / detector.frame_seconds:.2f} %)"
    )
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    more = [SileroDetector() for _ in range(STREAMS)]
    took = time.perf_counter() - started
    for one in more:
        one.feed(frames[0])
    memory = psutil.Process().memory_info().rss - before
    print(f"another stream: {1000 * took / STREAMS:.1f} ms to make, {memory / STREAMS / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
