"""Imports point one way: a module imports nothing of a floor above its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Floors from the ground up; packages of one floor do not import each other. The rest of `jobs` is the command line.
FLOORS = (
    ("spd_core",),
    ("workers",),
    ("jobs.words",),
    ("jobs.job",),
    ("jobs.dataset",),
    ("jobs.run",),
    ("jobs.bench", "jobs.commands", "jobs.export", "jobs.nightly"),
    ("jobs",),
    ("jobs.api",),
)


def package_of(module: str) -> str:
    """The package of a floor that a module is of; empty: of none."""
    packages = [name for floor in FLOORS for name in floor if f"{module}.".startswith(f"{name}.")]
    return max(packages, key=len, default="")


def imports_of(source: str) -> set[str]:
    """Modules, and perhaps names in them, that a source imports at any place."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def upward(module: str, source: str) -> list[str]:
    """What a module imports of a floor above its own, or of another package of its floor."""
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    own = package_of(module)
    used = {package_of(name): name for name in sorted(imports_of(source)) if package_of(name)}
    return [name for package, name in used.items() if package != own and floor[package] >= floor[own]]


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for top in ("spd_core", "workers", "jobs")
    for path in sorted((ROOT / top).rglob("*.py"))
}


def test_every_package_of_jobs_has_a_floor():
    packages = {f"jobs.{path.parent.name}" for path in (ROOT / "jobs").glob("*/__init__.py")}
    assert packages <= {name for floor in FLOORS for name in floor}


def test_no_import_points_up():
    found = {module: upward(module, path.read_text()) for module, path in MODULES.items()}
    assert len(found) > 150
    assert not {module: names for module, names in found.items() if names}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("spd_core.law", "from workers import layout"),
        ("workers.shard", "import jobs.job.plan"),
        ("jobs.words.errors", "from jobs.job import spec"),
        ("jobs.dataset.card", "def f():\n    from jobs.run.driver import generate"),
        ("jobs.bench.table", "from jobs.commands.sample import grid"),
        ("jobs.run.driver", "from jobs.cli import main"),
    ],
)
def test_an_import_that_points_up_is_found(module, line):
    assert upward(module, line)
