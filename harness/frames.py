"""utterances.parquet as a data frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from harness import store

LIST_COLUMNS = frozenset({"word_end_seconds", "word_emission_latencies", "word_finality_latencies"})
TEXT_COLUMNS = frozenset({"utterance", "speaker", "language", "outcome", "error", "reference", "hypothesis"})


def read_utterances(folder: Path) -> pd.DataFrame:
    """utterances.parquet with numbers as floats (NaN where there is none), text as text and word lists as arrays."""
    frame = pd.DataFrame(store.read_rows(folder / "utterances.parquet"))
    for name in frame.columns:
        if name in LIST_COLUMNS:
            frame[name] = frame[name].map(lambda values: np.asarray([] if values is None else values, dtype=np.float64))
        elif name == "scored":
            frame[name] = frame[name].astype(bool)
        elif name not in TEXT_COLUMNS:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    return frame
