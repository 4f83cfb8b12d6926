"""Which tests say that they prove a promise: their ``spec`` marks, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


class MarkError(ValueError):
    """A ``spec`` mark names no promise in plain words, or belongs to no test or to one that never has to pass; says where."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A test and one promise it is marked with; ``test`` is ``name`` or ``Class::name``, ``file`` relative to the tests' folder."""

    promise: str
    file: str
    test: str


def proofs(tests: Path) -> list[Proof]:
    """Every test's marks, by file and in the order of its tests; raises ``MarkError``.

    Marks count on a test, on its class, in ``pytestmark`` of a class or module, and in ``pytest.param(..., marks=...)`` of the
    test's ``parametrize``, written there or in a list that the module has a name for.
    """
    return [proof for file in sorted(tests.rglob("test_*.py")) for proof in _of_file(file, tests)]


def _of_file(file: Path, tests: Path) -> Iterator[Proof]:
    source = file.read_text(encoding="utf-8")
    if "mark.spec" not in source:
        return
    module = ast.parse(source, str(file))
    name = file.relative_to(tests).as_posix()
    named = _assigned(module.body)
    seen: set[ast.Call] = set()

    def promised(expressions: list[ast.expr]) -> list[str]:
        calls = [call for expression in expressions for call in _marks(expression, named)]
        seen.update(calls)
        return [promise for call in calls for promise in _names(call, file)]

    def within(body: list[ast.stmt], outer: list[str], prefix: str) -> Iterator[Proof]:
        marks = _assigned(body).get("pytestmark")
        all_here = outer + (promised([marks]) if marks is not None else [])
        for node in body:
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() if node.name.startswith("test"):
                    marks_here = dict.fromkeys(promised(node.decorator_list) + all_here)
                    if marks_here and any(map(_never_has_to_pass, node.decorator_list)):
                        raise MarkError(
                            f"{file}:{node.lineno}: {node.name} is skipped or expected to fail: it proves nothing"
                        )
                    for promise in marks_here:
                        yield Proof(promise, name, prefix + node.name)
                case ast.ClassDef() if node.name.startswith("Test"):
                    yield from within(node.body, all_here + promised(node.decorator_list), f"{prefix}{node.name}::")

    yield from within(module.body, [], "")
    for node in ast.walk(module):
        if _is_mark(node) and node not in seen:
            raise MarkError(f"{file}:{getattr(node, 'lineno', 0)}: this spec mark is on no test")


def _assigned(body: list[ast.stmt]) -> dict[str, ast.expr]:
    """What simple names of this body stand for."""
    named: dict[str, ast.expr] = {}
    for node in body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                named[name] = value
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                named[name] = value
    return named


def _marks(expression: ast.expr, named: dict[str, ast.expr]) -> Iterator[ast.Call]:
    """The marks in this expression and in what it names."""
    waiting, met = [expression], set()
    while waiting:
        for node in ast.walk(waiting.pop()):
            if isinstance(node, ast.Call) and _is_mark(node):
                yield node
            elif isinstance(node, ast.Name) and node.id in named and node.id not in met:
                met.add(node.id)
                waiting.append(named[node.id])


def _is_mark(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Attribute(value=ast.Name(id="pytest"), attr="mark"), attr="spec")):
            return True
    return False


def _never_has_to_pass(decorator: ast.expr) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in ("skip", "xfail") for node in ast.walk(decorator))


def _names(call: ast.Call, file: Path) -> Iterator[str]:
    if not call.args or call.keywords:
        raise MarkError(f"{file}:{call.lineno}: name promises, as in pytest.mark.spec('yap-07')")
    for argument in call.args:
        match argument:
            case ast.Constant(value=str() as promise):
                yield promise
            case _:
                raise MarkError(f"{file}:{call.lineno}: write the promise's name itself, so that it can be found")
