"""Whose window is decoded next."""

from __future__ import annotations

import pytest

from server.engines.whisper.turns import Turns


def order(turns: Turns[str]) -> str:
    return "".join(turns.next() for _ in range(len(turns)))


def test_who_came_first_is_served_first() -> None:
    turns: Turns[str] = Turns()
    for name in "abc":
        turns.ask(name, last=False)
    assert order(turns) == "abc"


def test_who_only_waits_for_the_end_comes_before_all_others() -> None:
    turns: Turns[str] = Turns()
    for name, last in (("a", False), ("b", True), ("c", False), ("d", True)):
        turns.ask(name, last=last)
    assert order(turns) == "bdac"


def test_asking_again_keeps_the_place_and_makes_no_second_one() -> None:
    turns: Turns[str] = Turns()
    for name in "aba":
        turns.ask(name, last=False)
    assert order(turns) == "ab"


def test_whose_audio_ends_while_waiting_moves_to_the_front() -> None:
    turns: Turns[str] = Turns()
    for name in "abc":
        turns.ask(name, last=False)
    turns.ask("c", last=True)
    turns.ask("c", last=False)
    assert order(turns) == "cab"


def test_who_leaves_is_not_called() -> None:
    turns: Turns[str] = Turns()
    for name in "abc":
        turns.ask(name, last=name == "a")
    turns.leave("a")
    turns.leave("b")
    turns.leave("x")
    assert order(turns) == "c"


def test_when_nobody_waits_nobody_is_called() -> None:
    with pytest.raises(LookupError, match="nobody waits"):
        Turns[str]().next()
