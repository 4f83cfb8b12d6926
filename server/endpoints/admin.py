"""The admin part of the operations plane: which models are loaded, and loading and unloading them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from server.endpoints.guards import Switches
from server.engines.base import Engine
from server.engines.loading import Loader, TooManyJobsError
from server.engines.registry import InUseError, UnknownModelError
from wire.stt.errors import (
    ADMIN_MODEL_PATH_FORBIDDEN,
    ADMIN_MODEL_PROFILE_UNKNOWN,
    HTTP_RATE_LIMITED,
    MODEL_ALREADY_LOADED,
    MODEL_UNLOAD_FAILED,
    SttRefusedError,
)

_log = structlog.get_logger("earmark.models")

_ID = Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")


class LoadRequest(BaseModel):
    """What to load. ``profile_id`` alone decides where it is given; other fields, where any is sent, else; else the default profile."""

    model_config = ConfigDict(protected_namespaces=(), extra="ignore")

    model_id: Annotated[str, _ID]
    profile_id: str | None = None
    model_path: str | None = None
    model_size: str | None = None
    backend: str | None = None
    device: str | None = None
    compute_type: str | None = None
    language: str | None = None

    def wishes(self) -> dict[str, Any]:
        """The fields that say something about the model, as they were sent."""
        sent = self.model_dump(exclude_unset=True, exclude={"model_id", "profile_id"})
        return {key: value for key, value in sent.items() if value not in (None, "")}


class Plans:
    """What a request loads: ``profiles`` by name, and how wishes become an engine (not started) and those without effect on it."""

    def __init__(
        self,
        profiles: Mapping[str, Mapping[str, Any]],
        default: str,
        build: Callable[[Mapping[str, Any]], tuple[Callable[[], Engine], Collection[str]]],
    ) -> None:
        self._profiles, self._default, self._build = profiles, default, build

    def make(self, request: LoadRequest, switches: Switches) -> tuple[Callable[[], Engine], Collection[str]]:
        """How the engine is made, and the keys that mean nothing to it.

        Raises:
            SttRefusedError: the profile is not known, or the path not allowed.
        """
        wishes: Mapping[str, Any] = request.wishes()
        if request.profile_id or not wishes:
            name = request.profile_id or self._default
            if name not in self._profiles:
                known = ", ".join(sorted(self._profiles))
                raise SttRefusedError(ADMIN_MODEL_PROFILE_UNKNOWN, f"no profile {name!r:.200}; there are: {known}")
            return self._build(self._profiles[name])
        if request.model_path:
            _check_path(request.model_path, switches)
        return self._build(wishes)


def _check_path(text: str, switches: Switches) -> None:
    if not switches.on("STT_ADMIN_ALLOW_MODEL_PATH"):
        raise SttRefusedError(
            ADMIN_MODEL_PATH_FORBIDDEN, "model_path is not allowed here; STT_ADMIN_ALLOW_MODEL_PATH=true allows it"
        )
    prefixes = [part.strip() for part in switches.text("STT_ADMIN_MODEL_PATH_ALLOWLIST").split(",") if part.strip()]
    path = _real(text)
    if prefixes and not any(path.is_relative_to(_real(prefix)) for prefix in prefixes):
        raise SttRefusedError(ADMIN_MODEL_PATH_FORBIDDEN, f"{text!r:.200} lies in none of the allowed folders")


def _real(text: str) -> Path:
    """Where a path leads, links and dots followed: what is compared is what would be opened."""
    return Path(text).expanduser().resolve()


def admin_routes(loader: Loader, plans: Plans, switches: Switches) -> APIRouter:
    """``/admin/load_model``, ``/admin/load_model_status``, ``/admin/unload_model``, ``/admin/list_models``, behind a guard."""
    router = APIRouter(prefix="/admin")
    models = loader.models

    @router.post("/load_model")
    async def load_model(wanted: LoadRequest) -> dict[str, object]:
        job = loader.job(wanted.model_id)
        if job is not None and not job.over:
            return {"status": job.status, "message": f"{wanted.model_id} is being loaded", "job": job.told()}
        if wanted.model_id in models:
            raise SttRefusedError(MODEL_ALREADY_LOADED, f"a model with the id {wanted.model_id!r} is loaded already")
        make, ignored = plans.make(wanted, switches)
        try:
            job = loader.load(wanted.model_id, make)
        except TooManyJobsError as error:
            raise SttRefusedError(HTTP_RATE_LIMITED, str(error)) from None
        answer: dict[str, object] = {
            "status": "loading_started",
            "message": f"{wanted.model_id} is being loaded; ask /admin/load_model_status",
            "job": job.told(),
        }
        return answer | ({"ignored": list(ignored)} if ignored else {})

    @router.get("/load_model_status")
    async def load_model_status(model_id: str) -> dict[str, object]:
        job = loader.job(model_id)
        return {"status": "unknown", "model_id": model_id} if job is None else job.told()

    @router.post("/unload_model")
    async def unload_model(
        model_id: str, drain_timeout_sec: Annotated[float | None, Query(ge=0, le=86400, allow_inf_nan=False)] = None
    ) -> dict[str, object]:
        _log.info("unloading a model", model=model_id, drain_seconds=drain_timeout_sec)
        try:
            await models.unload(model_id, drain_timeout_sec)
        except (UnknownModelError, InUseError) as error:
            raise SttRefusedError(MODEL_UNLOAD_FAILED, str(error)) from None
        _log.info("a model was unloaded", model=model_id)
        return {"status": "unloaded", "model_id": model_id}

    @router.get("/list_models")
    async def list_models() -> dict[str, object]:
        return {"models": [model.id for model in models]}

    return router
