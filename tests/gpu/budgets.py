"""The budgets of `budgets.yaml`: what a loop may ask of a device, and what its counts say about time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.gpu.subjects import SUBJECTS, Counts, Subject
from tests.gpu.works import WORKS, Work

BUDGETS = Path(__file__).with_name("budgets.yaml")
#: Everything that is counted, by name.
COUNTED: dict[str, Subject | Work] = {**SUBJECTS, **WORKS}
#: Launches that may come on top: which drafts are accepted differs between processors' rounding.
SLACK = 0.05
HEADER = """\
# What decoders at true depth, codecs and the worker's engine may ask of a GPU: kernel launches outside captured regions
# and host syncs, by iteration, token, round, block, batch or shard. `python -m tests.gpu.count --write` writes what is
# counted now; a change that asks for more fails tests/gpu/test_budgets.py, which names the lines that ask.
"""


@dataclass(frozen=True)
class Budget:
    """Of one unit of a loop."""

    unit: str
    launches: int
    syncs: float

    @property
    def most_launches(self) -> int:
        return math.ceil(self.launches * (1 + SLACK))

    def exceeded_by(self, counts: Counts) -> list[str]:
        """One line for each budget that is exceeded, then the lines of the project that ask; none if none is."""
        over = []
        if counts.launches > self.most_launches:
            over.append(f"{counts.launches:,.0f} launches a {self.unit}, allowed: {self.most_launches:,}")
            over += counts.ledger.top_launches(8)
        if counts.syncs > self.syncs + 1e-9:
            over.append(f"{counts.syncs:g} syncs a {self.unit}, allowed: {self.syncs:g}")
            over += counts.ledger.top_syncs(8)
        return over


def read_budgets(path: Path = BUDGETS) -> dict[str, Budget]:
    """Budgets by name, in the file's order."""
    return {name: Budget(**fields) for name, fields in yaml.safe_load(path.read_text()).items()}


def write_budgets(counted: dict[str, Counts], path: Path = BUDGETS) -> None:
    """Writes counts as budgets; those that are not among them stay as they are."""
    budgets = read_budgets(path) if path.exists() else {}
    budgets |= {
        name: Budget(counts.unit, round(counts.launches), math.ceil(counts.syncs * 100) / 100)
        for name, counts in counted.items()
    }
    rows = [
        f'"{name}": {{unit: {budgets[name].unit}, launches: {budgets[name].launches}, syncs: {budgets[name].syncs:g}}}'
        for name in COUNTED
        if name in budgets
    ]
    path.write_text("\n".join([HEADER.rstrip(), *rows, ""]))
