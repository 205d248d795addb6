"""What docs show that tests run: the worked examples of docs/architecture.md, and the commands of a page."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import ModuleType

ARCHITECTURE = Path(__file__).parent.parent / "docs" / "architecture.md"


def shown_under(heading: str) -> str:
    """The one Python block of a section."""
    section = ARCHITECTURE.read_text().partition(f"### {heading}\n")[2].partition("\n#")[0]
    (shown,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    return str(shown).strip()


def code_of(module: ModuleType) -> str:
    """A module's text without its docstring."""
    return Path(str(module.__file__)).read_text().partition("\n\n")[2].strip()


def commands_of(page: str, others: tuple[str, ...] = ()) -> list[list[str]]:
    """The words of every ``spd`` command in a page's bash blocks, in their order, without ``spd``.

    Args:
        page: markdown; of several sections or of one.
        others: programs whose commands are passed over.

    Raises:
        ValueError: a command of another program, which the caller could not run.
    """
    found = []
    for block in re.findall(r"```bash\n(.*?)```", page, flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line, comments=True) or [""]
            if program not in ("", "spd", *others):
                raise ValueError(f"command: got {program}, allowed: spd")
            found += [words] if program == "spd" else []
    return found


def section_of(page: str, heading: str) -> str:
    """A section of a page, up to the next heading of its level."""
    return page.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def shown_by(page: str) -> list[str]:
    """The lines of a page's text blocks: what its commands print, among other lines."""
    return [line for block in re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL) for line in block.splitlines()]
