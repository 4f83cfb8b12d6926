"""Sessions that clients create by name, join with sockets and leave; time is an argument."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Protocol

from server.core.limits import FixedWindows, TokenBuckets


class Joined(Protocol):
    """A socket that has joined a session."""

    def close(self, code: int, reason: str) -> None:
        """The session is over."""


@dataclass(slots=True, eq=False)
class Conversation:
    """One session, with what its clients have set. ``version`` counts the changes; ``temperature`` None: nobody has set one."""

    id: str
    vad_sensitivity: int
    max_length: int
    temperature: float | None = None
    version: int = 0
    sockets: set[Joined] = field(default_factory=set)
    inside: int = 0
    left_at: float = 0.0
    deleted: bool = False

    def set(self, vad_sensitivity: int | None, temperature: float | None, max_length: int | None) -> None:
        """Set what is given."""
        if vad_sensitivity is not None:
            self.vad_sensitivity = vad_sensitivity
        if temperature is not None:
            self.temperature = temperature
        if max_length is not None:
            self.max_length = max_length
        self.version += 1


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """``expiry_seconds`` without a socket end a session, ``most`` may exist. ``None`` switches a limit off."""

    expiry_seconds: float | None = 1800.0
    most: int | None = 10_000
    audio_bytes_per_second: int | None = 1_000_000
    texts_per_minute: int | None = 60


class Conversations:
    """All sessions of a server, and what each of them may still send."""

    def __init__(self, limits: SessionLimits, vad_sensitivity: int, max_length: int) -> None:
        self.audio = TokenBuckets(limits.audio_bytes_per_second or 0)
        self.texts = FixedWindows(limits.texts_per_minute)
        self._limits = limits
        self._vad_sensitivity = vad_sensitivity
        self._max_length = max_length
        self._all: dict[str, Conversation] = {}

    def create(self, now: float) -> Conversation | None:
        """A new one; None when there may be no more."""
        if self._limits.most is not None and self.active(now) >= self._limits.most:
            return None
        conversation = Conversation(str(uuid.uuid4()), self._vad_sensitivity, self._max_length, left_at=now)
        self._all[conversation.id] = conversation
        return conversation

    def find(self, name: str, now: float) -> Conversation | None:
        """The session of that id, unless it was deleted or has expired."""
        conversation = self._all.get(name)
        if conversation is None or not self._expired(conversation, now):
            return conversation
        del self._all[name]
        return None

    def delete(self, name: str, now: float) -> bool:
        """Forget it and close its sockets; False when there is none."""
        conversation = self.find(name, now)
        if conversation is None:
            return False
        del self._all[name]
        conversation.deleted = True
        for socket in list(conversation.sockets):
            socket.close(1000, "session deleted")
        return True

    def active(self, now: float) -> int:
        """How many there are."""
        for name in [name for name, conversation in self._all.items() if self._expired(conversation, now)]:
            del self._all[name]
        return len(self._all)

    def enter(self, conversation: Conversation) -> None:
        """A socket comes in: the session does not expire while there is one."""
        conversation.inside += 1

    def leave(self, conversation: Conversation, now: float) -> None:
        """A socket is gone."""
        conversation.inside -= 1
        conversation.left_at = now

    def _expired(self, conversation: Conversation, now: float) -> bool:
        limit = self._limits.expiry_seconds
        return limit is not None and conversation.inside == 0 and now >= conversation.left_at + limit
