"""Settings of the REST surface and of uploads to the OpenAI-compatible one."""

from __future__ import annotations

from server.config.fields import Part


class Rest(Part):
    """the REST surface"""
