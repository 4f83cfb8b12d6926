"""From whole texts to what was appended and what is tentative, for protocols that send text in pieces or over and over."""

from __future__ import annotations

from collections.abc import Iterable

from harness.drivers.base import Appended, Said, Tentative


class Growing:
    """What a stream has shown. Text is appended where it only grows; what was appended cannot be taken back, so text that contradicts it
    shows in the final transcript alone.
    """

    def __init__(self) -> None:
        self._shown = self._tentative = ""

    def show(self, stands: str, whole: str) -> list[Said]:
        """``whole`` is all the text so far, ``stands`` its beginning that will not change."""
        said: list[Said] = []
        if len(stands) > len(self._shown) and stands.startswith(self._shown):
            said.append(Appended(stands[len(self._shown) :]))
            self._shown, self._tentative = stands, ""
        tentative = whole[len(self._shown) :] if whole.startswith(self._shown) else ""
        if tentative != self._tentative:
            self._tentative = tentative
            said.append(Tentative(tentative))
        return said


def joined(pieces: Iterable[str]) -> str:
    """The pieces in one text, a blank between two where neither brings one."""
    text = ""
    for piece in pieces:
        blank = " " if text and piece and not text[-1].isspace() and not piece[0].isspace() else ""
        text += blank + piece
    return text
