"""Keys in log lines, wherever they come from."""

from __future__ import annotations

import logging

import pytest

from server.logs import Masking

SECRETS = ["correct-horse", "correct-horse-battery", "abc", ""]


def line(text: str, *arguments: object) -> str:
    masking = Masking(logging.Formatter("%(message)s"), SECRETS)
    return masking.format(logging.LogRecord("x", logging.INFO, __file__, 1, text, arguments, None))


@pytest.mark.spec("operations-49")
@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key correct-horse given", "key *** given"),
        ("correct-horse-battery", "***"),
        ("ws://host/path?api_key=s3cret&x=1", "ws://host/path?api_key=***&x=1"),
        ("GET /x?api-key=s3cret HTTP/1.1", "GET /x?api-key=*** HTTP/1.1"),
        ("/x?token=s3cret'", "/x?token=***'"),
        ("Authorization: Bearer s3cret.x-y", "Authorization: Bearer ***"),
        ("abc stays, so does nothing", "abc stays, so does nothing"),
        ("first_token=0.3 tokens=7", "first_token=0.3 tokens=7"),
        ("a bearer of news", "a bearer of news"),
    ],
)
def test_keys_are_masked_wherever_they_stand(text: str, masked: str) -> None:
    assert line(text) == masked
    assert line("%s", text) == masked


@pytest.mark.spec("operations-49")
def test_keys_in_a_traceback_are_masked_too() -> None:
    masking = Masking(logging.Formatter("%(message)s"), SECRETS)
    try:
        raise ValueError("correct-horse")
    except ValueError as error:
        record = logging.LogRecord("x", logging.INFO, __file__, 1, "oh", (), (type(error), error, error.__traceback__))
    told = masking.format(record)
    assert "ValueError: ***" in told
    assert "correct" not in told.replace('raise ValueError("***")', "")
