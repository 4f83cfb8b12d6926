"""Which carrier a driver's transport has; that of gRPC is imported when it is wanted."""

from __future__ import annotations

from harness.drivers.base import Transport
from harness.replay.carrying import Carrier
from harness.replay.http import Http
from harness.replay.websocket import WebSockets


def carrier(transport: Transport) -> Carrier:
    """Of that transport."""
    match transport:
        case Transport.WEBSOCKET:
            return WebSockets()
        case Transport.HTTP:
            return Http()
        case Transport.GRPC:
            from harness.replay.rpc import Rpc

            return Rpc()
