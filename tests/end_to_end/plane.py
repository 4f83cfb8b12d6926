"""A client of the operations plane that knows nothing but HTTP and JSON."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.end_to_end.running_server import RunningServer

ADMIN_TOKEN = "open-sesame"
ADMIN = {"STT_ADMIN_ENABLED": "true", "STT_ADMIN_TOKEN": ADMIN_TOKEN}
FREE = ("--ops-rate", "0")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    type: str
    body: bytes

    @property
    def told(self) -> dict[str, Any]:
        """The JSON object in it."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def refusal(self) -> tuple[int, str]:
        """Status and code of an error, which must have the shape of all errors."""
        assert {"code", "message"} <= set(self.told) <= {"code", "message", "detail"}, self.told
        assert isinstance(self.told["message"], str)
        assert self.told["message"]
        return self.status, self.told["code"]


def ask(server: RunningServer, path: str, body: object = None, *, method: str = "", **headers: str) -> Answer:
    """A request to the plane: GET, or POST of the body as JSON."""
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.ops_port}{path}",
        data=data,
        method=method or ("GET" if body is None else "POST"),
        headers={"Content-Type": "application/json"}
        | {name.replace("_", "-"): value for name, value in headers.items()},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return Answer(answer.status, answer.headers["content-type"], answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.headers["content-type"] or "", error.read())


def admin(server: RunningServer, path: str, body: object = None, *, method: str = "") -> Answer:
    """A request with the admin token."""
    return ask(server, f"/admin{path}", body, method=method, Authorization=f"Bearer {ADMIN_TOKEN}")


async def until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Return once the condition holds of another process, which has no way to tell us."""
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < end, f"after {seconds} s still not: {what}"
        await asyncio.sleep(0.02)


async def loaded(server: RunningServer, model_id: str, **fields: str) -> None:
    """Load a model and wait until it is there."""
    assert (await asyncio.to_thread(admin, server, "/load_model", {"model_id": model_id, **fields})).status == 200
    status = f"/load_model_status?model_id={model_id}"
    await until(lambda: admin(server, status).told["status"] in ("success", "failed"), f"{model_id} is loaded")
    job = admin(server, status).told
    assert job["status"] == "success", job
