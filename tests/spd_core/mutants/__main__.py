"""Prints docs/mutants.md."""

from __future__ import annotations

from tests.spd_core.mutants.table import table

print(table(), end="")
