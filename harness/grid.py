"""A study's file: which settings are fixed, which are varied, and every cell of the grid that they span."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from harness.arrivals import ArrivalError, Recorded
from harness.arrivals import parse as parse_arrivals
from harness.impairment import ImpairmentError, parse_stalls

Setting = str | int | float | bool
Values = Mapping[str, tuple[Setting, ...]]

HARNESS_DEFAULTS: Mapping[str, Setting] = {
    "dataset": "spoken-en",
    "limit": "all",
    "concurrency": 8,
    "delay-ms": "server",
    "packet-ms": 80,
    "protocol": "yap",
    "speed": 1.0,
    "repeat": 1,
    "seed": 0,
    "normaliser": "by language",
    "driver-options": "none",
    "arrival": "closed",
    "seconds": "all",
    "think-seconds": 0.0,
    "duty-cycle": "off",
    "jitter-ms": 0.0,
    "burst": 1,
    "stall": "none",
    "per-connection": 1,
    "retries": 0,
    "generators": 1,
}
"""Every harness setting, as `earmark bench` calls it, and what it is where a study does not name it. ``all``, ``server``, ``none``,
``off``, ``by language`` and ``protocol`` ask for no value of ours."""

LATER = frozenset(list(HARNESS_DEFAULTS)[list(HARNESS_DEFAULTS).index("driver-options") :])
"""Settings that there were not from the beginning: they are in a cell's key only where they are not the default, so that cells measured
before stay known."""

TEXTS = frozenset({"dataset", "protocol", "normaliser", "driver-options", "arrival", "stall"})
WORDS = {  # the one word that each of these takes beside its values
    "limit": "all", "delay-ms": "server", "speed": "inf", "seconds": "all", "duty-cycle": "off", "stall": "none",
    "driver-options": "none", "packet-ms": "protocol",
}  # fmt: skip
LEAST = {
    "limit": 1, "concurrency": 1, "delay-ms": 0, "packet-ms": 5, "repeat": 1, "seed": 0, "burst": 1, "per-connection": 0,
    "retries": 0, "generators": 1,
}  # fmt: skip
ABOVE = {"speed": 0.0, "seconds": 0.0, "duty-cycle": 0.0}  # numbers that need not be whole; these are larger than that
FROM = {"think-seconds": 0.0, "jitter-ms": 0.0}  # and these no smaller
OURS = frozenset({"host", "port", "announce", "api-key", "api-keys", "help"})
DESIGNS = ("full", "one-at-a-time")
TOP = ("name", "question", "design", "ready-seconds", "server", "harness")
MOST_CELLS = 5000


class StudyError(ValueError):
    """A study cannot be carried out as written; the message names the key and says what is expected."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the grid: options of the server, and how the harness uses it."""

    server: Mapping[str, Setting]
    harness: Mapping[str, Setting]

    @property
    def options(self) -> tuple[str, ...]:
        """What the server is started with, in an order of its own, so that equal settings are equal options."""
        return tuple(_option(name, value) for name, value in sorted(self.server.items()))

    def key(self, corpus_sha256: str) -> str:
        """The cell's name in a folder: settings and corpus, hashed. What is spelt out and what is left to its default hash alike."""
        told = {
            name: value for name, value in self.harness.items() if name not in LATER or value != HARNESS_DEFAULTS[name]
        }
        if "arrival" in told:  # a schedule is known by what it says, not by its file's name
            told["arrival"] = str(parse_arrivals(str(told["arrival"])))
        harness = {name: text(value) for name, value in sorted(told.items())}
        known = json.dumps([self.options, harness, corpus_sha256], ensure_ascii=False)
        return hashlib.sha256(known.encode()).hexdigest()[:16]


def _option(name: str, value: Setting) -> str:
    match value:
        case bool():
            return f"--{name}" if value else f"--no-{name}"
        case _:
            return f"--{name}={text(value)}"


def text(value: Setting) -> str:
    """As the command line spells it: 1 and 1.0 are the same number."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True, slots=True)
class Study:
    """What a file says. ``server`` and ``harness`` hold the values of each setting in the file's order: one when it is fixed.

    Harness settings are always crossed with each other and with every server, but that open arrivals decide themselves how many streams
    there are: they have one cell whatever the concurrencies. Servers are crossed in the ``full`` design; in ``one-at-a-time`` each
    differs from the first (the first value of every setting) in one setting.
    """

    name: str
    server: Values
    harness: Values
    question: str = ""
    design: str = "full"
    ready_seconds: float = 180.0
    source: str = field(default="", repr=False)

    @property
    def varied(self) -> list[str]:
        """The settings with more than one value, as ``server.NAME`` and ``harness.NAME``."""
        parts = (("server", self.server), ("harness", self.harness))
        return [f"{part}.{name}" for part, values in parts for name, of in values.items() if len(of) > 1]

    def servers(self) -> list[dict[str, Setting]]:
        """The settings of each server, no two alike."""
        if self.design == "full":
            return _crossed(self.server)
        first = {name: values[0] for name, values in self.server.items()}
        others = [{**first, name: value} for name, values in self.server.items() for value in values[1:]]
        return [first, *others]

    def cells(self) -> list[Cell]:
        """Every cell, those of one server together."""
        return [Cell(server, harness) for server in self.servers() for harness in self._uses()]

    def _uses(self) -> list[dict[str, Setting]]:
        """The settings of the harness for each server, no two alike."""
        crossed = _crossed(self.harness)
        closed = [use if use["arrival"] == "closed" else {**use, "concurrency": 1} for use in crossed]
        return list({tuple(use.items()): use for use in closed}.values())

    def with_settings(self, changes: Iterable[str]) -> Study:
        """The study with settings replaced: each change is ``server.NAME=VALUE`` or ``harness.NAME=VALUE``, the value as in the file.

        Raises:
            StudyError: naming the change that makes no sense.
        """
        changed = self
        for change in changes:
            place, equals, text = change.partition("=")
            part, dot, name = place.strip().partition(".")
            if not equals or not dot or part not in ("server", "harness"):
                raise StudyError(f"--set {change}: server.NAME=VALUE or harness.NAME=VALUE is expected")
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                value = text.strip()  # names and paths need no quotes
            if part == "server":
                changed = replace(changed, server={**changed.server, **_server({name: value}, "--set")})
            else:
                changed = replace(changed, harness={**changed.harness, **_harness({name: value}, "--set")})
        return _bounded(changed)


def _crossed(settings: Values) -> list[dict[str, Setting]]:
    return [dict(zip(settings, values, strict=True)) for values in product(*settings.values())]


def read(path: Path) -> Study:
    """The study in a TOML file.

    Raises:
        StudyError: it is not readable, or has a key or a value that makes no sense.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    return parse(text, path.stem, str(path))


def parse(text: str, name: str, where: str = "study") -> Study:
    """The study in a TOML text; ``name`` is its name where it gives itself none."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{where}: not TOML: {error}") from error
    _refuse_unknown(data, TOP, where)
    name = data.get("name", name)
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", name):
        raise StudyError(
            f"{where}: name = {name!r}: letters, digits, dots and dashes are expected, for it names a folder"
        )
    design = data.get("design", "full")
    if design not in DESIGNS:
        raise StudyError(f"{where}: design = {design!r}: {' or '.join(DESIGNS)} is expected")
    ready_seconds = data.get("ready-seconds", 180.0)
    if isinstance(ready_seconds, bool) or not isinstance(ready_seconds, int | float) or not 0 < ready_seconds <= 86_400:
        raise StudyError(f"{where}: ready-seconds = {ready_seconds!r}: seconds, at most a day, are expected")
    question = data.get("question", "")
    if not isinstance(question, str):
        raise StudyError(f"{where}: question = {question!r}: a sentence is expected")
    for part in ("server", "harness"):
        if not isinstance(data.get(part, {}), dict):
            raise StudyError(f"{where}: {part} is not a table: [{part}] with one setting per line is expected")
    return _bounded(
        Study(
            name=name,
            question=question.strip(),
            design=design,
            ready_seconds=float(ready_seconds),
            server=_server(data.get("server", {}), where),
            harness={
                **{name: (value,) for name, value in HARNESS_DEFAULTS.items()},
                **_harness(data.get("harness", {}), where),
            },
            source=text,
        )
    )


def _bounded(study: Study) -> Study:
    sizes = [len(values) for values in study.server.values()]
    servers = math.prod(sizes) if study.design == "full" else 1 + sum(size - 1 for size in sizes)
    count = servers * math.prod(len(values) for values in study.harness.values())
    if count > MOST_CELLS:
        raise StudyError(f"{study.name}: {count} cells, at most {MOST_CELLS}: vary fewer settings")
    return study


def _server(settings: Mapping[str, Any], where: str) -> dict[str, tuple[Setting, ...]]:
    for name in settings:
        if name in OURS:
            raise StudyError(f"{where}: server.{name} is set by the harness; leave it out")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise StudyError(f"{where}: server.{name}: an option of `python -m server` without its dashes is expected")
    return {name: _values(f"server.{name}", value, where) for name, value in settings.items()}


def _harness(settings: Mapping[str, Any], where: str) -> dict[str, tuple[Setting, ...]]:
    _refuse_unknown(settings, tuple(HARNESS_DEFAULTS), where, "harness.")
    found = {}
    for name, given in settings.items():
        values = [_checked(name, value, where) for value in _values(f"harness.{name}", given, where)]
        found[name] = _unlike(f"harness.{name}", values, where)
    return found


def _checked(name: str, value: Setting, where: str) -> Setting:
    """A harness setting in its own type and one spelling: numbers that need not be whole as floats."""
    place = f"{where}: harness.{name} = {value!r}"
    if name in TEXTS:
        if not isinstance(value, str) or not value:
            raise StudyError(f"{place}: a {'text' if name in WORDS else 'name'} is expected")
        try:
            return value if value == WORDS.get(name) else _spelt(name, value)
        except (ArrivalError, ImpairmentError, ValueError) as error:
            raise StudyError(f"{place}: {error}") from None
    if value == WORDS.get(name) or (name == "speed" and value == math.inf):
        return WORDS[name]
    expected = f"a number{f' or {WORDS[name]!r}' if name in WORDS else ''} is expected"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise StudyError(f"{place}: {expected}")
    if name in ABOVE or name in FROM:
        if not (value > ABOVE[name] if name in ABOVE else value >= FROM[name]) or not math.isfinite(value):
            least = "positive " if name in ABOVE else "number, 0 or more, "
            raise StudyError(f"{place}: a {least}{expected.removeprefix('a ' if name in ABOVE else 'a number ')}")
        return float(value)
    if not isinstance(value, int) or value < LEAST[name]:
        raise StudyError(f"{place}: a whole number from {LEAST[name]} on is expected")
    return value


def _spelt(name: str, value: str) -> str:
    """The one spelling of a text: what means the same is the same cell."""
    match name:
        case "arrival":
            arrivals = parse_arrivals(value)
            return value if isinstance(arrivals, Recorded) else str(arrivals)
        case "stall":
            return ",".join(map(str, parse_stalls(value)))
        case "driver-options":
            pairs = sorted(shlex.split(value))
            if not pairs or not all(re.fullmatch(r"[^=]+=.+", pair, re.DOTALL) for pair in pairs):
                raise ValueError("NAME=VALUE is expected, several with blanks between them")
            return shlex.join(pairs)
        case _:
            return value


def _values(place: str, given: Any, where: str) -> tuple[Setting, ...]:
    """A value stands for itself, a list for each of its values."""
    values = given if isinstance(given, list) else [given]
    if not values:
        raise StudyError(f"{where}: {place} = []: at least one value is expected")
    for value in values:
        if not isinstance(value, str | int | float | bool):
            raise StudyError(f"{where}: {place} = {value!r}: a text, a number, true or false is expected")
    return _unlike(place, values, where)


def _unlike(place: str, values: Sequence[Setting], where: str) -> tuple[Setting, ...]:
    spelt = [text(value) for value in values]
    for one in spelt:
        if spelt.count(one) > 1:
            raise StudyError(f"{where}: {place} has {one} twice")
    return tuple(values)


def _refuse_unknown(found: Iterable[str], known: Sequence[str], where: str, prefix: str = "") -> None:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            meant = f" (is {prefix}{close[0]} meant?)" if close else ""
            raise StudyError(f"{where}: unknown key {prefix}{key}{meant}; there are {', '.join(known)}")


# ---- what the server knows -------------------------------------------------------------------------------------


def server_help(command: Sequence[str] = (sys.executable, "-m", "server")) -> str:
    """What the server says of its own options."""
    try:
        asked = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StudyError(f"the server does not say which options it has: {error}") from error
    return asked.stdout


def check_options(study: Study, help_text: str) -> None:
    """Refuses options that the server does not have, and values for what is a switch or the other way round.

    Raises:
        StudyError: naming the option.
    """
    known = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9-]*)", help_text))
    for name, values in study.server.items():
        if name not in known:
            close = difflib.get_close_matches(name, sorted(known), n=1)
            meant = f"; is {close[0]} meant?" if close else ""
            raise StudyError(
                f"{study.name}: the server has no option {name}{meant} (python -m server --help lists them)"
            )
        for value in values:
            if isinstance(value, bool) != (f"no-{name}" in known):
                expected = "true or false" if f"no-{name}" in known else "a value"
                raise StudyError(f"{study.name}: server.{name} = {text(value)}: {expected} is expected")
