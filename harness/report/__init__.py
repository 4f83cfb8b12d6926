"""What people look at: the page, the table in the terminal, and what both are made of."""

from harness.report.measures import numbers
from harness.report.page import compare, render, report
from harness.report.sides import Change, Comparison
from harness.report.terminal import console_table
from harness.report.utterances import steps

__all__ = ["Change", "Comparison", "compare", "console_table", "numbers", "render", "report", "steps"]
