"""What a page is made of: sections of plots, tables, utterances and facts, as values that a template lays out or a notebook shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

# The mood of a value decides its colour; a sign in its text says the same to whoever does not see colours.
GOOD, BAD, UNSURE = "good", "bad", "unsure"


@dataclass(frozen=True, slots=True)
class Value:
    """A figure in a table: ``small`` is its interval or why there is none, ``why`` what is said on pointing at that."""

    text: str
    small: str = ""
    why: str = ""
    mood: str = ""


NOTHING = Value("–")


@dataclass(frozen=True, slots=True)
class Row:
    """One measure. A row without values is the heading of those that follow it."""

    name: str
    values: Sequence[Value] = ()
    term: str = ""
    key: bool = False
    hue: int | None = None
    dash: str = "solid"
    small: str = ""


@dataclass(frozen=True, slots=True)
class Head:
    """A column's heading, with the line by which plots draw the same cell."""

    label: str
    small: str = ""
    hue: int | None = None
    dash: str = "solid"
    trouble: str = ""
    term: str = ""
    left: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """``glance``: large figures, one line per cell, which a narrow screen shows as cards."""

    heads: Sequence[Head]
    rows: Sequence[Row]
    note: str = ""
    glance: bool = False

    def frame(self) -> pd.DataFrame:
        """The same as text: intervals behind their figures, what stands below a name in a last column. Headings of rows are left out."""
        first, *others = self.heads
        rows = [row for row in self.rows if row.values]
        said = [[f"{one.text} {one.small}".strip() for one in row.values] for row in rows]
        columns = [", ".join(filter(None, (head.label, head.small))) for head in others]
        made = pd.DataFrame(said, columns=columns, index=pd.Index([row.name for row in rows], name=first.label))
        return made.assign(remarks=[row.small for row in rows]) if any(row.small for row in rows) else made


@dataclass(frozen=True, slots=True)
class Plot:
    """``svg`` is inline, its colours are the page's. ``wide`` takes the whole row."""

    svg: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """Words said and words heard for them. ``kind`` is same, sub, del, ins, or gap for what is left out."""

    kind: str
    reference: str
    hypothesis: str


@dataclass(frozen=True, slots=True)
class Heard:
    """What one cell made of an utterance."""

    label: str
    errors: str
    hue: int
    steps: Sequence[Step]
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Strip:
    """Which reference words one cell recognised: ``spans`` are (start, width, recognised) in per cent of the audio."""

    label: str
    hue: int
    spans: Sequence[tuple[float, float, bool]]


@dataclass(frozen=True, slots=True)
class Sound:
    """``uri`` is the audio itself, ``wave`` the path of its outline in a box of ``columns`` by 100; ``ticks`` are seconds."""

    uri: str = ""
    wave: str = ""
    columns: int = 0
    strips: Sequence[Strip] = ()
    ticks: Sequence[tuple[float, str]] = ()
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance of the list at the end, as each cell heard it."""

    name: str
    about: str
    errors: str
    sound: Sound
    heard: Sequence[Heard]


@dataclass(frozen=True, slots=True)
class Section:
    """Whatever of a section is empty is not shown; one with nothing at all only where its ``lead`` says why (``always``)."""

    id: str
    title: str
    lead: str = ""
    caveats: Sequence[str] = ()
    sentences: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    small_plots: bool = False
    tables: Sequence[Table] = ()
    utterances: Sequence[Utterance] = ()
    errors: Sequence[tuple[str, int, str]] = ()
    commands: str = ""
    facts: Sequence[tuple[str, str]] = ()
    more_facts: Sequence[tuple[str, str]] = ()
    terms: Sequence[tuple[str, str]] = ()
    always: bool = False

    @property
    def empty(self) -> bool:
        """Whether there is anything to show."""
        parts = (self.sentences, self.plots, self.tables, self.utterances, self.errors, self.commands, self.facts)
        return not self.always and not any((*parts, self.terms))


@dataclass(frozen=True, slots=True)
class Banner:
    """What nobody may overlook."""

    title: str
    advice: str
    reasons: Sequence[str]


@dataclass(frozen=True, slots=True)
class Page:
    """The whole page."""

    title: str
    eyebrow: str
    headline: str
    deck: str
    sections: Sequence[Section]
    caveats: Sequence[str] = ()
    banners: Sequence[Banner] = ()
    made_from: Sequence[str] = ()

    @property
    def shown(self) -> list[Section]:
        """The sections that have something to show."""
        return [section for section in self.sections if not section.empty]
