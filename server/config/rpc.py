"""Settings of the gRPC surface."""

from __future__ import annotations

from server.config.fields import Part


class Rpc(Part):
    """the gRPC surface"""
