"""Who may come in: keys of the server, and where each surface's clients carry theirs."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from starlette.requests import HTTPConnection


class Keys:
    """The keys that open this server. With none, everybody who needs a key is turned away."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.strip().encode() for key in keys if key.strip()]

    def __contains__(self, given: str) -> bool:
        """Compared in constant time per key."""
        return any(hmac.compare_digest(key, given.encode()) for key in self._keys)


def envelope_key(connection: HTTPConnection) -> str:
    """Query parameter ``api_key``, which wins when it is not blank, else header ``X-API-Key``."""
    query = connection.query_params.get("api_key", "").strip()
    return query or connection.headers.get("x-api-key", "").strip()


def bearer_key(connection: HTTPConnection) -> str:
    """The token of ``Authorization: Bearer TOKEN``."""
    scheme, _, token = connection.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


BROWSER_PROTOCOL = "realtime"
_BROWSER_KEY = "openai-insecure-api-key."


def browser_key(connection: HTTPConnection) -> str:
    """The key that OpenAI's clients in browsers, which can set no header, put among the subprotocols they offer beside ``realtime``."""
    offered: list[str] = connection.scope.get("subprotocols", [])
    return next((name.removeprefix(_BROWSER_KEY) for name in offered if name.startswith(_BROWSER_KEY)), "")


def openai_error(
    code: str, message: str, kind: str = "invalid_request_error", param: str | None = None
) -> dict[str, str | None]:
    """What OpenAI's API puts under ``error`` in a body."""
    return {"message": message, "type": kind, "param": param, "code": code}
