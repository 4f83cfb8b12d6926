"""A verdict for whoever reads it: a person at a terminal, a reviewer, a build server, a chart of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree as ET

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.gate.tolerances import METRICS
from harness.gate.verdicts import GateResult, Judged, Verdict

EXPLANATION = (
    "A metric fails only when its change is significant (5 % over all tests, Holm) and larger than what is allowed. `sees` is the "
    "smallest true change that fails this gate four times out of five. Above 0 is worse."
)
HEAD = ("cell", "metric", "before", "now", "change [95 %]", "allowed", "sees", "n", "verdict", "why")
SYMBOLS = {Verdict.WORSE: "✗", Verdict.BETTER: "✓", Verdict.CANNOT_TELL: "·"}
STYLES = {Verdict.WORSE: "bold red", Verdict.BETTER: "green", Verdict.CANNOT_TELL: "dim"}


def row(judged: Judged) -> list[str]:
    """One line of the table, as `HEAD` names its columns."""
    test, metric = judged.test, METRICS[judged.test.metric]
    unit = f" ({metric.unit})" if not metric.percent else ""
    change = "-" if test.change.value is None else f"{metric.signed(test.change.value)}{judged.interval()}"
    return [
        test.cell,
        f"{metric.label}{unit}",
        metric.figure(test.baseline),
        metric.figure(test.candidate),
        change,
        metric.size(test.tolerance),
        "-" if judged.seen is None else f"+{metric.size(judged.seen)}",
        str(test.n),
        f"{SYMBOLS[judged.verdict]} {judged.verdict}",
        judged.remark if test.paired else f"{judged.remark} (unpaired)".strip(),
    ]


def frame(result: GateResult) -> pd.DataFrame:
    """The same table for a notebook."""
    return pd.DataFrame([row(judged) for judged in result.judged], columns=list(HEAD))


# --- terminal --------------------------------------------------------------------------------------------------------------


def table(result: GateResult, *, gating: bool = True) -> RenderableType:
    """For the terminal; not ``gating``, it compares A and B and passes no sentence."""
    names = ("before", "now") if gating else ("A", "B")
    if result.refused:
        return Group(
            Text("CANNOT COMPARE", style="bold yellow"),
            *(Text(f"  {reason}", overflow="fold") for reason in result.refused),
        )
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for name in HEAD[1:]:
        title = dict(zip(("before", "now"), names, strict=True)).get(name, name)
        left = name in ("metric", "verdict", "why")
        shown.add_column(title, justify="left" if left else "right", no_wrap=name not in ("why", "metric"))
    for number, cell in enumerate(dict.fromkeys(judged.test.cell for judged in result.judged)):
        if number:
            shown.add_row()
        shown.add_row(Text(cell, style="bold underline"))
        for judged in result.judged:
            if judged.test.cell == cell:
                shown.add_row(*_cells(judged))
    does = "fail" if gating else "be called worse"
    notes = [f"sees: the smallest true change that would {does} here four times out of five; above 0 is worse"]
    told = [Text(f"  {note}", style="dim") for note in (*notes, *result.notes, *result.caveats)]
    return Group(_headline(result, gating=gating), Text(""), shown, Text(""), *told)


def _cells(judged: Judged) -> Iterator[Text]:
    style = STYLES[judged.verdict]
    for name, figure in zip(HEAD[1:], row(judged)[1:], strict=True):
        if name in ("change [95 %]", "verdict"):
            yield Text(figure, style=style)
        elif name in ("allowed", "sees", "n", "why"):
            yield Text(figure, style="dim")
        else:
            yield Text(figure)


def _headline(result: GateResult, *, gating: bool) -> Text:
    style = {Verdict.WORSE: "bold red", Verdict.BETTER: "bold green", Verdict.CANNOT_TELL: "bold"}[result.verdict]
    return Text(result.sentence() if gating else result.changes(), style=style)


# --- Markdown ---------------------------------------------------------------------------------------------------------------


def markdown(result: GateResult, *, gating: bool = True) -> str:
    """For gate.md and for a comment on a change: what decides in sight, the rest folded away."""
    sentence = result.sentence() if gating else result.changes()
    lines = ["# Gate" if gating else "# Comparison of A (before) and B (now)", "", f"**{_escaped(sentence)}**", ""]
    telling = [judged for judged in result.judged if judged.verdict is not Verdict.CANNOT_TELL]
    rest = [judged for judged in result.judged if judged.verdict is Verdict.CANNOT_TELL]
    if telling:
        lines += [*_markdown_table(telling), ""]
    if rest:
        summary = (
            f"{len(rest)} of {len(result.judged)} metrics did not change by more than is allowed, as far as can be told"
        )
        lines += ["<details>", f"<summary>{summary}</summary>", "", *_markdown_table(rest), "", "</details>", ""]
    if result.judged:
        lines += [EXPLANATION, ""]
    lines += [f"- {_escaped(note)}" for note in (*result.notes, *result.caveats)]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_table(judged: list[Judged]) -> list[str]:
    aligned = "|".join("---" if name in ("cell", "metric", "verdict", "why") else "---:" for name in HEAD)
    lines = [f"| {' | '.join(HEAD)} |", f"|{aligned}|"]
    return lines + ["| " + " | ".join(_escaped(cell) for cell in row(one)) + " |" for one in judged]


def _escaped(text: str) -> str:
    for character in "\\|<*`[":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


# --- build servers ----------------------------------------------------------------------------------------------------------


def junit(result: GateResult) -> str:
    """JUnit XML: a suite per cell, a case per metric. What is worse failed; what could not see anything was skipped."""
    suites = ET.Element("testsuites", name="earmark gate")
    if result.refused:
        suite = ET.SubElement(suites, "testsuite", name="comparison", tests="1", failures="0", errors="1", skipped="0")
        case = ET.SubElement(suite, "testcase", classname="earmark.gate", name="comparable")
        ET.SubElement(case, "error", message=_printable("; ".join(result.refused)), type="cannot compare")
    for cell in dict.fromkeys(judged.test.cell for judged in result.judged):
        judged = [one for one in result.judged if one.test.cell == cell]
        failures, skipped = sum(one.verdict is Verdict.WORSE for one in judged), sum(one.seen is None for one in judged)
        suite = ET.SubElement(
            suites, "testsuite", name=_printable(cell), tests=str(len(judged)), failures=str(failures), errors="0", skipped=str(skipped)
        )  # fmt: skip
        for one in judged:
            case = ET.SubElement(suite, "testcase", classname=_printable(f"earmark.gate.{cell}"), name=one.test.metric)
            if one.verdict is Verdict.WORSE:
                ET.SubElement(case, "failure", message=_printable(one.told()), type="regression").text = _printable(
                    _details(one)
                )
            elif one.seen is None:
                ET.SubElement(case, "skipped", message=_printable(one.remark))
            ET.SubElement(case, "system-out").text = _printable(f"{one.verdict}: {_details(one)}")
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _details(judged: Judged) -> str:
    return ", ".join(f"{name} {text}" for name, text in zip(HEAD, row(judged), strict=True) if text)


def _printable(text: str) -> str:
    """Without the characters that XML 1.0 has no way to write."""
    return "".join(
        character if character in "\t\n" or character >= " " else "?"
        for character in text
        if character < "\ud800" or character > "\udfff"
    )


def github(result: GateResult) -> str:
    """Workflow commands that GitHub shows on a change: an error per regression, a notice for the rest."""
    lines = [_command("error", "Gate: cannot compare", reason) for reason in result.refused]
    lines += [_command("error", "Gate: regression", one.told()) for one in result.of(Verdict.WORSE)]
    lines += [_command("notice", "Gate: better", one.told()) for one in result.of(Verdict.BETTER)]
    blind = [one for one in result.judged if one.seen is None and one.verdict is Verdict.CANNOT_TELL]
    if blind:
        metrics = ", ".join(dict.fromkeys(METRICS[one.test.metric].label for one in blind))
        lines.append(_command("warning", "Gate: too few utterances", f"nothing could have been seen in: {metrics}"))
    if not lines:
        lines.append(_command("notice", "Gate", result.sentence()))
    return "\n".join(lines) + "\n"


def _command(kind: str, title: str, text: str) -> str:
    def data(value: str) -> str:
        return value.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return f"::{kind} title={data(title).replace(':', '%3A').replace(',', '%2C')}::{data(text)}"


# --- figures for programs ---------------------------------------------------------------------------------------------------


def benchmark(result: GateResult) -> str:
    """``customSmallerIsBetter`` of github-action-benchmark: the candidate's figures with half the interval of the change."""
    entries: list[dict[str, Any]] = []
    for one in result.judged:
        metric, change = METRICS[one.test.metric], one.test.change
        if one.test.candidate is None:
            continue
        unit = "%" if metric.percent else metric.unit
        entry: dict[str, Any] = {"name": f"{one.test.cell}: {metric.label}", "unit": unit}
        entry["value"] = round(one.test.candidate * metric.scale, 6)
        if change.low is not None and change.high is not None:
            entry["range"] = f"± {(change.high - change.low) / 2 * metric.scale:.{metric.digits + 1}f}"
        entry["extra"] = f"{one.verdict} (n {one.test.n}, baseline {metric.figure(one.test.baseline)})"
        entries.append(entry)
    return json.dumps(entries, indent=2, ensure_ascii=False) + "\n"


def summary(result: GateResult) -> dict[str, Any]:
    """Everything, in fractions and seconds, for ``--json``."""
    return {
        "exit": result.exit_code,
        "verdict": str(result.verdict) if not result.refused else "cannot compare",
        "sentence": result.sentence(),
        "refused": list(result.refused),
        "notes": [*result.notes, *result.caveats],
        "metrics": [_as_json(one) for one in result.judged],
    }


def _as_json(one: Judged) -> dict[str, Any]:
    test = one.test
    figures = {
        "baseline": test.baseline,
        "candidate": test.candidate,
        "change": test.change.value,
        "low": test.change.low,
        "high": test.change.high,
        "p": test.p,
        "adjusted_p": one.adjusted_p,
        "tolerance": test.tolerance,
        "could_have_seen": one.seen,
    }
    return {
        "cell": test.cell,
        "metric": test.metric,
        "n": test.n,
        "test": test.change.test,
        "verdict": str(one.verdict),
        "why": one.remark,
        **{name: value if value is None or math.isfinite(value) else None for name, value in figures.items()},
    }
