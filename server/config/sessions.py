"""Settings of the session-based conversational surface."""

from __future__ import annotations

from server.config.fields import Part


class Sessions(Part):
    """the sessions surface"""
