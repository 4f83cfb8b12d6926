"""The commands of ``earmark``, one per file; ``harness.cli`` puts them together."""
