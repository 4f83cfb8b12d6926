"""What may wait in a session is bounded also for clients that send sample by sample, or nothing but commands."""

from __future__ import annotations

from server.core.events import Audio, Cancel, Finish, Start
from server.core.session import MOST_WAITING, Session, SessionSettings


def busy_session() -> Session:
    """Its engine has been fed all it may be fed ahead, and says nothing."""
    session = Session(SessionSettings(default_delay_seconds=0.48, timed_words=True))
    session.handle(Start("u"), 0.0)
    session.handle(Audio(bytes(3 * 32_000)), 0.0)
    return session


def test_audio_sample_by_sample() -> None:
    session = busy_session()
    pieces = 0
    while session.accepts_audio:
        session.handle(Audio(b"\0\0"), 0.0)
        pieces += 1
    assert MOST_WAITING - 1 <= pieces <= MOST_WAITING
    session.handle(Cancel("enough"), 0.0)
    assert session.accepts_audio


def test_utterances_without_audio() -> None:
    session = busy_session()
    session.handle(Finish(), 0.0)
    commands = 0
    while session.accepts_audio:
        session.handle(Start("u"), 0.0)
        session.handle(Finish(), 0.0)
        commands += 2
    assert MOST_WAITING - 2 <= commands <= MOST_WAITING
