"""How load is made: paced streams over real sockets, and what they leave behind."""

from harness.replay.replaying import Cell, Replayed, ReplayError, replay

__all__ = ["Cell", "ReplayError", "Replayed", "replay"]
