"""Turns the tokens of one stream into text as they come."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TokenText:
    """``pieces`` are the bytes of every token, empty for those that are not text (padding, word marks, end).

    A character may be spread over several byte tokens: it is said when it is whole. Bytes that are no UTF-8 become U+FFFD.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def take(self, token: int) -> str:
        """The text that the token completes."""
        piece = self._pieces[token] if token < len(self._pieces) else b""
        return self._decoder.decode(piece) if piece else ""

    def end(self) -> str:
        """What is left of a character that never became whole."""
        return self._decoder.decode(b"", final=True)
