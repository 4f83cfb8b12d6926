"""The surfaces that the server has, the driver of each, and a server that has them all without limits."""

from __future__ import annotations

from harness.drivers import DRIVERS
from harness.drivers.base import Transport
from server.config import listening
from tests.end_to_end.running_server import RunningServer

SURFACES = {
    "yap": "yap",
    "realtime": "realtime",
    "openai-realtime": "openai",
    "openai-files": "openai",
    "sessions": "sessions",
    "rest": "rest",
    "rest-stream": "rest",
    "grpc": "grpc",
}
"""The surface of the server that each driver speaks to."""
NAMES = tuple(name for name, surface in SURFACES.items() if surface in listening.SURFACES)
WHOLE = tuple(name for name in NAMES if DRIVERS[name].whole)
OPTIONS = ("--unlimited", f"--surfaces={','.join(listening.SURFACES)}", *("--grpc-port=0",) * ("grpc" in NAMES))


def target(name: str, server: RunningServer) -> str:
    """Where the server speaks the driver's protocol."""
    over_grpc = DRIVERS[name].transport is Transport.GRPC
    return f"grpc://127.0.0.1:{server.ports['grpc']}" if over_grpc else server.ws("")
