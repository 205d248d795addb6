"""What a pretend device has been asked to do, by the line of the project that asked."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from types import FrameType
from typing import TypeVar

#: Packages whose lines are named.
PROJECT = ("spd_core", "workers", "jobs")
#: Their lines ask on behalf of those that call them.
PASSED_OVER = ("spd_core.capture",)

Key = TypeVar("Key")


def asking_line() -> str:
    """The innermost line of the project, ``package.module:function:line``; "elsewhere" if there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in PROJECT and module not in PASSED_OVER:
            return f"{module}:{frame.f_code.co_qualname}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


@dataclass
class Region:
    """The captured graphs of one name: the kernels of each are launched by one call, whatever their number."""

    graphs: int = 0  #: one for every combination of shapes
    launches: int = 0  #: kernels inside the largest, counted at capture


@dataclass
class Ledger:
    """Counts of one recording."""

    launches: Counter[str] = field(default_factory=Counter)  #: outside captured regions, by line
    syncs: Counter[tuple[str, str]] = field(default_factory=Counter)  #: by what the host waited for, and line
    kernels: Counter[str] = field(default_factory=Counter)  #: launches by operator
    replays: Counter[str] = field(default_factory=Counter)  #: of captured regions, by name

    @property
    def launched(self) -> int:
        return self.launches.total()

    @property
    def synced(self) -> int:
        return self.syncs.total()

    def launched_in(self, module: str) -> int:
        """Launches asked for by lines of one module."""
        return sum(count for line, count in self.launches.items() if line.partition(":")[0] == module)

    def top_launches(self, most: int = 12) -> list[str]:
        """The lines that launch most, in words."""
        return [f"{count:>9,} launches  {line}" for line, count in self.launches.most_common(most)]

    def top_syncs(self, most: int = 12) -> list[str]:
        """The lines that wait for the device most often, in words."""
        return [f"{count:>9,} syncs     {line} ({what})" for (what, line), count in self.syncs.most_common(most)]

    def __sub__(self, other: Ledger) -> Ledger:
        """What this one holds beyond ``other``."""
        return Ledger(
            _difference(self.launches, other.launches),
            _difference(self.syncs, other.syncs),
            _difference(self.kernels, other.kernels),
            _difference(self.replays, other.replays),
        )


def _difference(more: Counter[Key], less: Counter[Key]) -> Counter[Key]:
    keys = {**more, **less}
    return Counter({key: more[key] - less[key] for key in keys if more[key] != less[key]})
