"""How each surface is put together from the settings: its limits, its dialect, its routes."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter

from server.config import Settings
from server.endpoints.access import Clients
from server.endpoints.auth import Keys
from server.service import Service
from server.surfaces import openai, realtime, yap

Routes = Callable[[Settings, Service, Keys, Clients], APIRouter]

ROUTES: dict[str, Routes] = {"yap": yap.routes, "realtime": realtime.routes, "openai": openai.routes}
"""The surfaces that are spoken over HTTP and WebSockets."""
