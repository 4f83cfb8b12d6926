"""How load is made: paced streams over real sockets, and what they leave behind."""

from harness.replay.processes import replay_by_processes
from harness.replay.replaying import Cell, Replayed, ReplayError, Watch, replay

__all__ = ["Cell", "ReplayError", "Replayed", "Watch", "replay", "replay_by_processes"]
