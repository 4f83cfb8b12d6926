"""Whether runs are worse than others: verdicts, what they allow, how they are shown, and since when."""

from harness.gate.calibration import Calibration, Proposal, propose
from harness.gate.history import Level, Series, appended, as_rows, read_history, since_when
from harness.gate.matching import COMMON_GROUND
from harness.gate.outputs import HEAD, benchmark, github, junit, markdown, row, summary, table
from harness.gate.records import Baseline, CellRecord, opened, pooled, read, save
from harness.gate.testing import Test
from harness.gate.tolerances import (
    METRICS,
    PROFILES,
    TOLERANCES,
    GateError,
    Testbed,
    Tolerance,
    ToleranceFile,
    as_toml,
    read_tolerances,
)
from harness.gate.verdicts import GateResult, Judged, Verdict, compare, compare_runs, could_have_seen, decide, judge

__all__ = [
    "COMMON_GROUND",
    "HEAD",
    "METRICS",
    "PROFILES",
    "TOLERANCES",
    "Baseline",
    "Calibration",
    "CellRecord",
    "GateError",
    "GateResult",
    "Judged",
    "Level",
    "Proposal",
    "Series",
    "Test",
    "Testbed",
    "Tolerance",
    "ToleranceFile",
    "Verdict",
    "appended",
    "as_rows",
    "as_toml",
    "benchmark",
    "compare",
    "compare_runs",
    "could_have_seen",
    "decide",
    "github",
    "judge",
    "junit",
    "markdown",
    "opened",
    "pooled",
    "propose",
    "read",
    "read_history",
    "read_tolerances",
    "row",
    "save",
    "since_when",
    "summary",
    "table",
]
