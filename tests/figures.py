"""The figures of the documents: ``python -m tests.figures [NAME ...] [--add NAME COMMAND] [--render]``.

``docs/figures/NAME.json`` holds a command of the project, what it printed, what it wrote as JSON if it can, and on
which machine, at which commit and when it ran. A page shows one between two comments,

    <!-- figures: NAME -->
    <!-- end of figures -->

and everything between them is rendered from the file. ``<!-- fastest exact: NAME NAME -->`` is a table over the rows of
several files of ``spd bench``. With names, their commands are run again, then all pages are rendered; ``--render`` runs
nothing; tests/test_figures.py fails where a page and its file differ.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.bench.table import Row
from workers.machine import describe_machine

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- (figures|fastest exact): ([^>]*?) -->\n(.*?)<!-- end of figures -->", re.S)
#: Commands that write JSON where ``--json`` says.
WITH_JSON = ("bench", "overhead")

Figures = dict[str, Any]


def stored(name: str) -> Figures:
    """The file of a name."""
    found: Figures = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def names() -> list[str]:
    """Of all files."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def measured(command: str) -> Figures:
    """Runs a command, ``spd ...`` or ``python -m ...``, and returns what the file of its figures holds.

    Raises:
        CalledProcessError: it failed.
    """
    program, *arguments = shlex.split(command)
    if program == "spd":
        arguments = ["-m", "jobs.cli", *arguments]
    elif program != "python":
        raise ValueError(f"command: got {command!r}, allowed: one that begins with spd or python")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, "figures.json")
        if program == "spd" and arguments[2] in WITH_JSON:
            arguments += ["--json", str(written)]
        done = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
        values = json.loads(written.read_text()) if written.exists() else None
    return {
        "command": command,
        "machine": describe_machine(),
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "printed": done.stdout.strip().splitlines(),
        "values": values,
    }


def _commit() -> str:
    """The commit of the code, marked where files differ from it."""
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return found.stdout.strip() or "unknown"


def record(name: str, command: str) -> None:
    """Measures and writes a file."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(measured(command), indent=1) + "\n")


def as_text(found: Figures) -> str:
    """A file as a page shows it: the command, where and when it ran, and what it printed."""
    printed = found["printed"]
    if not any(line.startswith("|") for line in printed):
        printed = ["```", *printed, "```"]
    ran = f"{found['machine']}; commit {found['commit']}, {found['date']}, {found['minutes']:g} minutes."
    return "\n".join(["```bash", found["command"], "```", "", ran, "", *printed]) + "\n"


def fastest_exact(chosen: list[str]) -> str:
    """By file and batch size: the fastest exact way of decoding, and the fastest lossless one that reads a draft."""
    lines = [
        "| pair | batch | plain, images/s | fastest exact method | x plain | lossless with a draft | x plain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in chosen:
        rows = [Row.model_validate(row) for row in stored(name)["values"]["rows"]]
        for batch in dict.fromkeys(row.batch for row in rows):
            lines.append(_fastest([row for row in rows if row.batch == batch and row.law == rows[0].law]))
    return "\n".join(lines) + "\n"


def _fastest(rows: list[Row]) -> str:
    plain = rows[0]
    exact = [row for row in rows if row.guarantee == "exact" and row.method in ("plain", "speculative")]
    best = max(exact, key=lambda row: row.speedup_vs_plain)
    drafted = max(
        (row for row in exact if row.method == "speculative"), key=lambda row: row.speedup_vs_plain, default=None
    )
    across = "- | -" if drafted is None else f"{_brief(drafted)} | {drafted.speedup_vs_plain:.2f}"
    return (
        f"| {plain.pair} | {plain.batch} | {plain.images_per_s:.3g} | {_brief(best)} "
        f"| {best.speedup_vs_plain:.2f} | {across} |"
    )


def _brief(row: Row) -> str:
    """The row's name without the lengths of its windows."""
    return re.sub(r"(windows) [\d/]+", r"\1", row.label)


KINDS: dict[str, Callable[[str], str]] = {
    "figures": lambda name: as_text(stored(name)),
    "fastest exact": lambda chosen: fastest_exact(chosen.split()),
}


def rendered(page: str) -> str:
    """A page with everything between its comments made anew."""

    def block(match: re.Match[str]) -> str:
        kind, what, _ = match.groups()
        return f"<!-- {kind}: {what} -->\n\n{KINDS[kind](what)}\n<!-- end of figures -->"

    return BLOCK.sub(block, page)


def shown(page: str) -> set[str]:
    """The files that a page shows."""
    return {name for _, what, _ in BLOCK.findall(page) for name in what.split()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="figures whose command is run again; all: every one")
    parser.add_argument("--add", nargs=2, metavar=("NAME", "COMMAND"), help="measure new figures")
    parser.add_argument("--render", action="store_true", help="only render the pages")
    arguments = parser.parse_args()
    known = names()
    chosen = known if arguments.names == ["all"] else arguments.names
    if wrong := [name for name in chosen if name not in known]:
        parser.error(f"names: got {', '.join(wrong)}, allowed: all, {', '.join(known)}")
    if not (chosen or arguments.add or arguments.render):
        parser.error(f"names: got none, allowed: all, {', '.join(known)}, or --add or --render")
    if arguments.add:
        record(*arguments.add)
    for name in chosen:
        record(name, stored(name)["command"])
    for page in PAGES:
        page.write_text(rendered(page.read_text()))


if __name__ == "__main__":
    main()
