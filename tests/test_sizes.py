"""A function fits a screen, and a caller can tell its parameters apart."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("spd_core", "workers", "jobs")
LINES, PARAMETERS = 60, 8
#: "file: function" that may be larger, each with the reason beside it.
EXCEPTIONS: tuple[str, ...] = ()


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Those with a name of their own; the object or class that a method is called on and a tail of others are none."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def too_large(source: str) -> dict[str, str]:
    """Functions of a module over a limit, and what is over."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines, count = node.end_lineno - node.lineno + 1, parameters(node)
            if lines > LINES or count > PARAMETERS:
                found[node.name] = f"{lines} lines, {count} parameters"
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_are_small(package: str):
    over = {
        f"{file.relative_to(ROOT)}: {name}": size
        for file in sorted((ROOT / package).rglob("*.py"))
        for name, size in too_large(file.read_text()).items()
    }
    assert over.keys() == {name for name in EXCEPTIONS if name.startswith(f"{package}/")}, over


def test_large_functions_are_found():
    assert too_large("def f(" + ", ".join("abcdefghi") + "): pass") == {"f": "1 lines, 9 parameters"}
    assert too_large("def f():\n" + "    pass\n" * 60) == {"f": "61 lines, 0 parameters"}
    fits = "class C:\n    def f(self, " + ", ".join("abcdefgh") + ", *rest):\n" + "        pass\n" * 59
    assert too_large(fits) == {}
