"""The errors of a peer's bytes."""

from __future__ import annotations


class WireError(ValueError):
    """The peer's bytes make no sense under the protocol.

    ``reason`` is the protocol's own short code for the fault (``invalid_json``, ``missing_audio`` and so on), the
    message is for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
