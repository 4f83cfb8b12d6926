"""Settings of the operations plane: its listener, its tokens, what is kept of streams."""

from __future__ import annotations

from server.config.fields import Part


class Operations(Part):
    """the operations plane"""
