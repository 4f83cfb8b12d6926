"""What is replayed: utterances with their reference text, word times and speakers, read from the formats people keep them in."""

from harness.corpus.catalogue import Dataset, available, datasets_folder, load
from harness.corpus.checking import Finding, Findings, check
from harness.corpus.formats import FORMATS, BadRow
from harness.corpus.utterance import Corpus, CorpusError, Utterance

__all__ = [
    "FORMATS",
    "BadRow",
    "Corpus",
    "CorpusError",
    "Dataset",
    "Finding",
    "Findings",
    "Utterance",
    "available",
    "check",
    "datasets_folder",
    "load",
]
