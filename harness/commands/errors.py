"""The error of commands that are asked for in a way that cannot be."""

from __future__ import annotations


class UsageError(Exception):
    """An argument that makes no sense; the message says which and why."""
