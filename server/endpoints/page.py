"""The live page: what a browser gets at ``/``, and its static files below ``/page/``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

_FILES = Path(__file__).resolve().parents[1] / "page"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # 'self' covers the WebSocket of the same host and port too
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # kept, but asked for again: an ETag answers that
}


def page_routes() -> list[BaseRoute]:
    """Routes to put before the one that answers ``GET /`` with JSON, which everybody gets who does not ask for HTML.

    The files are read now, once.
    """
    routes: list[BaseRoute] = []
    for file in sorted(_FILES.iterdir()):
        if file.suffix in _TYPES:
            static = _Static(file)
            if file.name == "index.html":
                routes.append(_ForBrowsers("/", static.answer))
            else:
                routes.append(Route(f"/page/{file.name}", static.answer))
    return routes


def wants_html(accept: str) -> bool:
    """Whether an ``Accept`` header names HTML, and prefers JSON in no way. Browsers name it; programs say ``*/*`` or nothing."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        weight = next((piece[2:] for piece in parameters if piece.startswith("q=")), "1")
        try:
            weights[kind] = float(weight)
        except ValueError:
            weights[kind] = 0.0
    html = weights.get("text/html", 0.0)
    return html > 0 and html >= weights.get("application/json", 0.0)


class _ForBrowsers(Route):
    """Matches only who asks for HTML, so that the path's next route answers all others."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and not wants_html(Headers(scope=scope).get("accept", "")):
            return Match.NONE, {}
        return super().matches(scope)


class _Static:
    """One file in memory."""

    def __init__(self, file: Path) -> None:
        self._content = file.read_bytes()
        self._type = _TYPES[file.suffix]
        self._headers = {**_HEADERS, "ETag": f'"{hashlib.sha256(self._content).hexdigest()[:20]}"'}
        if file.name == "index.html":
            self._headers["Vary"] = "Accept"

    async def answer(self, request: Request) -> Response:
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if self._headers["ETag"] in known or "*" in known:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers, media_type=self._type)
