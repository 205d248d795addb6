"""docs/architecture.md is the map of the code as it is: it names every module, and no file that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("spd_core", "workers", "jobs")
#: What every package may have, and what no reader looks for in a map.
UNNAMED = {"__init__.py", "__main__.py"}


def named(page: str) -> dict[str, set[str]]:
    """Names of files by the folder that a row of the map is of; a row without a folder is of its section's package."""
    found: dict[str, set[str]] = {}
    for section in page.split("\n## ")[1:]:
        package, _, text = section.partition("\n")
        for row in re.findall(r"^\| `.*", text, re.M) if package in PACKAGES else ():
            folder = re.match(r"\| `([\w/]+)/`", row)
            place = f"{package}/{folder[1]}" if folder else package
            found.setdefault(place, set()).update(re.findall(r"`(\w+\.py)`", row))
    return found


def unnamed(modules: list[str], page: str) -> list[str]:
    """Modules that neither the row of their folder nor one of a folder above names."""
    rows = named(page)
    return [
        module
        for module in modules
        if not any(Path(module).name in rows.get(str(above), set()) for above in Path(module).parents)
    ]


def dead(modules: list[str], page: str) -> list[str]:
    """Names in a row for which there is no file in its folder or below."""
    return [
        f"{folder}/{name}"
        for folder, names in named(page).items()
        for name in sorted(names)
        if not any(each.startswith(f"{folder}/") and Path(each).name == name for each in modules)
    ]


MODULES = [
    str(path.relative_to(ROOT))
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
    if path.name not in UNNAMED
]


def test_the_map_names_every_module():
    assert len(MODULES) > 150
    assert not unnamed(MODULES, PAGE)


def test_the_map_names_no_file_that_there_is_not():
    assert not dead(MODULES, PAGE)


ROW = "# Map\n\n## workers\n\n| file | job |\n|---|---|\n| `deep/` | `a.py` one |\n"


@pytest.mark.parametrize(
    ("modules", "missing", "gone"),
    [
        (["workers/deep/a.py"], [], []),
        (["workers/deep/a.py", "workers/b.py"], ["workers/b.py"], []),
        (["workers/a.py"], ["workers/a.py"], ["workers/deep/a.py"]),
    ],
)
def test_a_map_that_is_not_true_is_found(modules, missing, gone):
    assert (unnamed(modules, ROW), dead(modules, ROW)) == (missing, gone)
