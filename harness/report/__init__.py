"""What people look at: the page, the table in the terminal, and what both are made of."""

from harness.report.page import console_table, numbers, render, report, steps

__all__ = ["console_table", "numbers", "render", "report", "steps"]
