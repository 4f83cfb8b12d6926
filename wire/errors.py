"""The errors of a peer's bytes."""

from __future__ import annotations

import msgspec

NOT_JSON = (msgspec.DecodeError, UnicodeEncodeError, RecursionError)
"""What decoding raises for text that is no JSON: also for lone surrogates, and for brackets nested too deep to follow."""


class WireError(ValueError):
    """The peer's bytes make no sense under the protocol.

    ``reason`` is the protocol's own short code for the fault (``invalid_json``, ``missing_audio`` and so on), the
    message is for people.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
