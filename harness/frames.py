"""utterances.parquet as a data frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from harness import store

LIST_COLUMNS = frozenset({"word_end_seconds", "word_emission_latencies", "word_finality_latencies"})
TEXT_COLUMNS = frozenset({"utterance", "speaker", "language", "outcome", "error", "reference", "hypothesis"})


def read_utterances(folder: Path) -> pd.DataFrame:
    """utterances.parquet with numbers as floats (NaN where there is none), text as text and word lists as arrays.

    What the file leaves out because it follows from something else is put in: ``word_end_seconds`` and, where a transcript
    only grew, the finality latencies.
    """
    frame = pd.DataFrame(store.read_rows(folder / "utterances.parquet"))
    if "word_end_seconds" not in frame.columns and not frame.empty:
        said = {name: one["words"] or () for name, one in store.read_references(folder).items()}
        frame["word_end_seconds"] = [[word.end for word in said[name]] for name in frame["utterance"]]
        grown = frame["word_finality_latencies"].isna()
        frame["word_finality_latencies"] = frame["word_finality_latencies"].where(
            ~grown, frame["word_emission_latencies"]
        )
    for name in frame.columns:
        if name in LIST_COLUMNS:
            frame[name] = frame[name].map(lambda values: np.asarray([] if values is None else values, dtype=np.float64))
        elif name == "scored":
            frame[name] = frame[name].astype(bool)
        elif name not in TEXT_COLUMNS:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype(float)
    return frame
