"""Commands of ``earmark``, one a file."""
