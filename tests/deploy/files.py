"""The deployment files as data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def read(name: str) -> Any:
    """The one document of a YAML file."""
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads((DEPLOY / "grafana/dashboards/earmark.json").read_text(encoding="utf-8"))
    return board


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Panel title and expression."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


def alerts() -> list[dict[str, Any]]:
    return [rule for group in read("prometheus/alerts.yml")["groups"] for rule in group["rules"]]


def selectors(expression: str) -> list[tuple[str, dict[str, str]]]:
    """The series that a PromQL expression names, with the labels that it selects and groups them by (for those the value is empty)."""
    texts: list[str] = []

    def put_aside(found: re.Match[str]) -> str:
        texts.append(found[0][1:-1])
        return f"@{len(texts) - 1}@"

    plain = re.sub(r'"[^"]*"', put_aside, expression)
    grouped = [
        label.strip() for group in re.findall(r"\bby \(([^)]*)\)", plain) for label in group.split(",") if label.strip()
    ]
    plain = re.sub(r"\bby \([^)]*\)|\[[^\]]*\]", " ", plain)
    found = []
    for name, labels in re.findall(r"\b([a-zA-Z_:][a-zA-Z0-9_:]*)\s*(\{[^}]*\})?(?!\w|\s*\()", plain):
        if name in ("and", "or", "unless", "bool", "on", "ignoring"):
            continue
        chosen = {label: texts[int(at)] for label, at in re.findall(r"(\w+)\s*[=!~]+\s*@(\d+)@", labels)}
        found.append((name, {**dict.fromkeys(grouped, ""), **chosen}))
    return found
