"""Mixes of datasets: what a server hears in real life is seldom one kind of speech."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.corpus.catalogue import load
from harness.corpus.utterance import Corpus, CorpusError, corpus_sha256

LARGEST_SHARE = 1000


def load_mix(names: str, **options: Any) -> Corpus:
    """One dataset, or several joined by ``+``, each with how often its utterances come: ``spoken-en*3+non-speech``.

    ``options`` are those of `load`, for each part. A path that exists is taken as it stands.

    Raises:
        CorpusError: a share that is no number from 1 to 1000, or what `load` raises for a part.
    """
    parts = [part.strip() for part in names.split("+")]
    if Path(names).exists() or (len(parts) == 1 and "*" not in names):
        return load(names, **options)
    found = []
    for part in parts:
        name, star, share = part.partition("*")
        if not name or (star and not re.fullmatch(r"\d{1,4}", share)) or not 1 <= int(share or 1) <= LARGEST_SHARE:
            raise CorpusError(f"dataset {names!r}: NAME*SHARE+NAME*SHARE is expected, shares from 1 to {LARGEST_SHARE}")
        found.append((load(name, **options), int(share or 1)))
    return mix(found)


def mix(parts: Sequence[tuple[Corpus, int]]) -> Corpus:
    """All utterances of each part so often, their ids led by the part's name, so that none are taken for each other."""
    utterances = tuple(
        replace(utterance, id=f"{corpus.name}/{utterance.id}")
        for corpus, share in parts
        for utterance in corpus.utterances * share
    )
    languages = {corpus.language for corpus, _ in parts}
    return Corpus(
        name="+".join(corpus.name + (f"x{share}" if share > 1 else "") for corpus, share in parts),
        language=languages.pop() if len(languages) == 1 else "mul",
        utterances=utterances,
        sha256=corpus_sha256(utterances),
        licence="; ".join(dict.fromkeys(corpus.licence for corpus, _ in parts if corpus.licence)),
        alignment="; ".join(dict.fromkeys(corpus.alignment for corpus, _ in parts if corpus.alignment)),
        notes="\n".join(corpus.notes for corpus, _ in parts if corpus.notes),
    )
