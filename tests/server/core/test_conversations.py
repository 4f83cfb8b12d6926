"""Sessions that are created, joined, left, forgotten."""

from __future__ import annotations

import uuid

from server.core.conversations import Conversations, SessionLimits


class Socket:
    def __init__(self) -> None:
        self.closed: list[tuple[int, str]] = []

    def close(self, code: int, reason: str) -> None:
        self.closed.append((code, reason))


def conversations(expiry_seconds: float | None = 60.0, most: int | None = None) -> Conversations:
    return Conversations(SessionLimits(expiry_seconds, most), vad_sensitivity=2, max_length=512)


def test_a_session_is_found_by_its_random_id() -> None:
    them = conversations()
    one, other = them.create(0.0), them.create(0.0)
    assert one is not None
    assert other is not None
    assert uuid.UUID(one.id).version == 4
    assert one.id != other.id
    assert them.find(one.id, 1.0) is one
    assert them.find("nobody", 1.0) is None


def test_a_session_without_a_socket_expires() -> None:
    them = conversations(expiry_seconds=60.0)
    one = them.create(100.0)
    assert one is not None
    assert them.active(159.9) == 1
    assert them.find(one.id, 159.9) is one
    assert them.find(one.id, 160.0) is None
    assert them.active(100.0) == 0, "what has expired does not come back"


def test_expired_sessions_are_not_counted_even_if_nobody_asks_for_them() -> None:
    them = conversations(expiry_seconds=60.0)
    them.create(100.0)
    them.create(130.0)
    assert [them.active(now) for now in (159.0, 161.0, 191.0)] == [2, 1, 0]


def test_a_session_with_a_socket_does_not_expire_and_its_time_begins_when_the_last_one_leaves() -> None:
    them = conversations(expiry_seconds=60.0)
    one = them.create(0.0)
    assert one is not None
    them.enter(one)
    them.enter(one)
    assert them.find(one.id, 1e6) is one
    them.leave(one, 1e6)
    assert them.find(one.id, 2e6) is one
    them.leave(one, 2e6)
    assert them.find(one.id, 2e6 + 59) is one
    assert them.find(one.id, 2e6 + 60) is None


def test_without_the_limit_nothing_expires() -> None:
    them = conversations(expiry_seconds=None)
    one = them.create(0.0)
    assert one is not None
    assert them.find(one.id, 1e9) is one


def test_deleting_closes_the_sockets_and_forgets_the_session() -> None:
    them = conversations()
    one = them.create(0.0)
    assert one is not None
    sockets = [Socket(), Socket()]
    one.sockets.update(sockets)
    assert them.delete(one.id, 1.0)
    assert [socket.closed for socket in sockets] == [[(1000, "session deleted")]] * 2
    assert one.deleted
    assert them.find(one.id, 1.0) is None
    assert not them.delete(one.id, 1.0)


def test_there_may_be_only_so_many_and_an_expired_one_makes_room() -> None:
    them = conversations(expiry_seconds=60.0, most=2)
    assert them.create(0.0) is not None
    assert them.create(30.0) is not None
    assert them.create(59.0) is None
    assert them.create(60.0) is not None
