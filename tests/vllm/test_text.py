"""Text comes out of tokens whole: characters over several tokens, bytes that are none, tokens that are silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engines.vllm.text import TokenText

BYTES = [bytes([value]) for value in range(256)]
PAD, WORD, HELLO = 256, 257, 258
PIECES = [*BYTES, b"", b"", b" hello"]


@given(st.text())
def test_text_spelled_in_bytes_comes_out_as_it_is_and_only_in_whole_characters(text: str) -> None:
    tokens = TokenText(PIECES)
    said = [tokens.take(byte) for byte in text.encode()]
    assert "".join(said) == text
    assert [len(piece) for piece in said] == [
        count for character in text for count in [0] * (len(character.encode()) - 1) + [1]
    ]
    assert tokens.end() == ""


@given(st.lists(st.integers(0, len(PIECES) + 5)))
def test_any_tokens_say_what_their_bytes_say_together(sequence: list[int]) -> None:
    tokens = TokenText(PIECES)
    said = "".join(tokens.take(token) for token in sequence) + tokens.end()
    joined = b"".join(PIECES[token] for token in sequence if token < len(PIECES))
    assert said == joined.decode("utf-8", "replace")


def test_padding_and_word_marks_are_silent_and_do_not_part_a_character() -> None:
    tokens = TokenText(PIECES)
    assert [tokens.take(token) for token in (HELLO, PAD, 0xC3, WORD, PAD, 0xA9)] == [" hello", "", "", "", "", "é"]


def test_a_character_that_stays_incomplete_ends_as_a_replacement() -> None:
    tokens = TokenText(PIECES)
    assert tokens.take(0xE2) == ""
    assert tokens.end() == "\ufffd"
