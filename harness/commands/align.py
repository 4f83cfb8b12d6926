"""``earmark datasets align``: word times for a dataset that has none, made ahead of the first bench."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def align_dataset(
    name: Annotated[str, typer.Argument(help="Name or path, as 'earmark bench --dataset' takes it.", metavar="NAME")],
    limit: Annotated[int | None, typer.Option(help="Only so many utterances, spread over the speakers.", min=1)] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave broken rows out.")] = False,
) -> int:
    """Align a dataset's words with its audio (English, by PocketSphinx) and keep the times beside it; bench does so by itself."""
    from harness.alignment import with_word_times
    from harness.corpus import load

    found = with_word_times(load(name, limit=limit, skip_bad=skip_bad), lambda text: print(text, file=sys.stderr))
    timed = sum(one.words is not None for one in found.corpus.utterances)
    words = sum(len(one.words or ()) for one in found.corpus.utterances)
    print(
        f"{found.corpus.name}: {timed} of {len(found.corpus.utterances)} utterances have word times, {words} words; "
        f"from: {found.corpus.alignment or 'nowhere'}"
    )
    return 0
