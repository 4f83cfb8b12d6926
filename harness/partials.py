"""What was on the screen, word by word: each state of a transcript, which words stand since when, what a change took back."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rapidfuzz.distance import Levenshtein

from harness.normalise import UNSPACED_LANGUAGES
from harness.timeline import Kind, StreamRecord

_WORD = re.compile(r"\S+")


@lru_cache(maxsize=65536)
def light(token: str) -> str:
    """The form in which shown words are compared: NFKC, casefolded, letters, marks and digits only.

    One token stays one token, so that a place in the words is a place in the text. It is not the normaliser of the word error
    rate, which may join words.
    """
    folded = unicodedata.normalize("NFKC", token).casefold()
    return "".join(char for char in folded if unicodedata.category(char)[0] in "LMN")


def light_words(text: str, language: str) -> list[str]:
    """The words of ``text`` in light form, without those that are punctuation only; characters where no blanks are written."""
    found = [word for token in text.split() if (word := light(token))]
    return [char for word in found for char in word] if is_unspaced(language) else found


def is_unspaced(language: str) -> bool:
    """True for languages written without blanks between words; ``language`` may carry a region."""
    return language.split("-")[0].lower() in UNSPACED_LANGUAGES


@dataclass(slots=True)
class Step:
    """The transcript after an entry that changed its words.

    ``words`` stand since ``since`` (ns, the time at which each got its present form and kept it). Both lists may grow with
    the next step, so take a copy to keep them. ``former`` is the state before, when some of its words were taken back.
    """

    t_ns: int
    final: bool
    words: list[str]
    since: list[int]
    former: tuple[list[str], list[int]] | None
    unstable: int  # words of the state before that were changed or removed, by the shortest alignment of the two
    erased: int  # words of the state before behind the common beginning: what a reader sees deleted
    added: int  # words behind the common beginning now
    new_text: bool  # words were added, changed or finished, not only taken back


class _Reader:
    """Light words with the place in the raw text at which each begins, re-read only from where the text may have changed."""

    def __init__(self, language: str) -> None:
        self.by_character = is_unspaced(language)
        self.starts: list[int] = []
        self.ends: list[int] = []

    def read(self, text: str, same: int) -> tuple[int, list[str]]:
        """``(words kept, words behind them)`` of a text whose first ``same`` characters are those of the text before."""
        kept = len(self.ends)
        while kept and self.ends[kept - 1] >= same:  # a word that touches the border may have grown
            kept -= 1
        begin = self.ends[kept - 1] if kept else 0
        del self.starts[kept:], self.ends[kept:]
        tail: list[str] = []
        for match in _WORD.finditer(text, begin):
            word = light(match.group())
            for piece in word if self.by_character else (word,) if word else ():
                tail.append(piece)
                self.starts.append(match.start())
                self.ends.append(match.end())
        return kept, tail


def steps(record: StreamRecord) -> Iterator[Step]:
    """Every state that differs in words from the one before.

    Letters glued to the last word of *appended* text ("seven", then "teen") finish that word: nothing was taken back, and the
    word stands since its last letter came. A *tentative* word that grows was shown as a word of its own: it was changed.
    """
    reader = _Reader(record.language)
    words: list[str] = []
    since: list[int] = []
    stable, tentative = "", ""
    for entry in record.entries:
        text_before, stable_before, tentative_before = stable + tentative, stable, tentative
        match entry.kind:
            case Kind.APPENDED:
                stable, tentative = stable + (entry.text or ""), ""
            case Kind.TENTATIVE:
                tentative = entry.text or ""
            case Kind.FINAL:
                stable, tentative = entry.text or "", ""
            case _:
                continue
        final = entry.kind is Kind.FINAL
        text = stable + tentative
        if text == text_before:
            if final:
                yield Step(entry.t_ns, True, words, since, None, 0, 0, 0, False)
            continue
        same = len(stable_before) if text.startswith(stable_before) else 0
        kept, tail = reader.read(text, same)
        old = words[kept:]
        common = 0
        while common < len(old) and common < len(tail) and old[common] == tail[common]:
            common += 1
        kept += common
        old, tail = old[common:], tail[common:]
        glued = len(old) == 1 and bool(tail) and not tentative_before and text.startswith(text_before)
        if not old or glued:
            del words[kept:], since[kept:]
            words.extend(tail)
            since.extend([entry.t_ns] * len(tail))
            if tail or final:
                yield Step(entry.t_ns, final, words, since, None, 0, 0, len(tail) - len(old), bool(tail))
            continue
        former = (words, since)
        times = [entry.t_ns] * len(tail)
        unstable = shift = 0
        for op in Levenshtein.opcodes(old, tail):
            if op.tag != "equal":
                unstable += op.src_end - op.src_start
            elif op.dest_start - op.src_start <= shift + 1 or op.src_end - op.src_start > 1:
                # A single word pushed back by more than one is hardly the same word, but a misheard one that is equal to
                # a word said later; it stands since now.
                shift = op.dest_start - op.src_start
                times[op.dest_start : op.dest_end] = since[kept + op.src_start : kept + op.src_end]
        words, since = words[:kept] + tail, since[:kept] + times
        yield Step(entry.t_ns, final, words, since, former, unstable, len(old), len(tail), bool(tail))
