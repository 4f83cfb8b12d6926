"""How each surface is put together from the settings: its limits, its dialect, its routes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from fastapi import APIRouter, FastAPI

from server.config import Settings
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.service import Service
from server.surfaces import openai, realtime, rest, sessions, yap

Routes = Callable[[Settings, Service, Keys, Clients], APIRouter]

ROUTES: dict[str, Routes] = {
    "yap": yap.routes,
    "realtime": realtime.routes,
    "rest": rest.routes,
    "openai": openai.routes,
    "sessions": sessions.routes,
}
"""The surfaces that are spoken over HTTP and WebSockets."""


class Furnish(Protocol):
    """What a surface does to an application that it is on."""

    def __call__(self, app: FastAPI, *, alone: bool) -> None:
        """``alone``: it is a port of the surface's own."""


FURNISH: dict[str, Furnish] = {"rest": rest.furnish}
"""Surfaces that want more of the whole application than their routes."""

ROOT: dict[str, Mapping[str, object]] = {"rest": rest.ROOT}
"""What surfaces add to ``GET /``."""
