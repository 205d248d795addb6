"""docs/gpu.md says what the data say."""

from __future__ import annotations

from pathlib import Path

from tests.gpu.__main__ import PARTS
from tests.gpu.budgets import read_budgets
from tests.gpu.tables import budget_table, card_table, prediction_table

PAGE = (Path(__file__).parents[2] / "docs" / "gpu.md").read_text()


def test_tables_are_those_of_the_data():
    """``python -m tests.gpu.count --tables`` prints them."""
    assert budget_table(read_budgets()) in PAGE
    assert prediction_table() in PAGE
    assert card_table() in PAGE


def test_every_part_of_the_check_is_described():
    for part in PARTS:
        assert part.name in PAGE
