"""What a window costs the Whisper engine on this machine, and how many live streams that carries.

Run from the root of the repository:

    python -m benchmarks.whisper_windows MODEL [--device cuda] [--compute-type int8] [--threads 4] [--recording FILE.flac]

Without a recording the window is noise, which a model may take for anything: the figures are then those of the encoder and little else.
"""

from __future__ import annotations

import argparse
import statistics

import numpy as np
import soundfile

from server.engines.whisper.model import Model, Wanted
from server.engines.whisper.settings import PROFILES, WhisperSettings
from wire.pcm import SAMPLE_RATE, bytes_of

SECONDS = (1, 4, 12, 28)
ROUNDS = 5


def audio_of(path: str | None) -> bytes:
    """28 s of PCM16: the recording over and over again, or noise."""
    if path is None:
        samples = np.random.default_rng(0).normal(0, 1000, SAMPLE_RATE * 28).astype("<i2")
    else:
        heard, rate = soundfile.read(path, dtype="int16")
        if rate != SAMPLE_RATE or heard.ndim != 1:
            raise SystemExit(f"{path}: {SAMPLE_RATE} Hz and one channel are needed")
        samples = np.resize(heard, SAMPLE_RATE * 28)
    return samples.tobytes()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--compute-type", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--recording")
    given = parser.parse_args()
    settings = WhisperSettings(
        model=given.model,
        device=given.device,
        compute_type=given.compute_type,
        cpu_threads=given.threads,
        vad_filter=False,
    )
    model, pcm = Model.load(settings), audio_of(given.recording)
    print(f"{'profile':>9} {'window s':>9} {'decoded in s':>13} {'words':>6} {'streams':>8}")
    for name, profile in PROFILES.items():
        for seconds in SECONDS:
            window = pcm[: bytes_of(seconds)]
            took = [model.decode(window, "", Wanted(profile, "transcribe", "en")) for _ in range(ROUNDS)]
            middle = statistics.median(decoded.seconds for decoded in took)
            streams = settings.partial_interval_seconds / middle
            print(f"{name:>9} {seconds:>9} {middle:>13.3f} {len(took[0].words):>6} {streams:>8.1f}")
    print(
        f"streams: of one worker, each decoded every {settings.partial_interval_seconds:g} s; median of {ROUNDS} rounds"
    )


if __name__ == "__main__":
    main()
