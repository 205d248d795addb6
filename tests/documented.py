"""The worked examples of docs/architecture.md, which tests hold against the code that they run."""

from __future__ import annotations

import re
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
