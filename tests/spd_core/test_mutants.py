"""Every mistake of the table is noticed by its check, and none is where there is no mistake."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.spd_core.mutants import paths
from tests.spd_core.mutants.table import DECODERS, table

CHECKS = {f"{decoder.name}: {name}": check for decoder in DECODERS for name, check in decoder.checks.items()}
MUTANTS = {f"{decoder.name}: {mutant.name}": (decoder, mutant) for decoder in DECODERS for mutant in decoder.mutants}


@cache
def _holds(name: str) -> bool:
    """Also makes what the check keeps of the right law."""
    CHECKS[name]()
    return True


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_nothing_is_noticed_where_nothing_is_wrong(name):
    assert _holds(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_mistake_is_noticed(name):
    decoder, mutant = MUTANTS[name]
    assert _holds(f"{decoder.name}: {mutant.check}")
    assert mutant.run(decoder.checks[mutant.check])


@pytest.mark.parametrize(
    "name",
    [
        "log ratios down to -0.06 count as 0",
        "attempts share their heads' numbers",
        "each t of an interval has all of its probability",
    ],
)
def test_mistakes_with_fast_checks_are_noticed(name):
    test_the_mistake_is_noticed(f"{paths.DECODER.name}: {name}")


def test_each_decoder_has_twenty():
    assert all(len(decoder.mutants) >= 20 for decoder in DECODERS)
    assert len(MUTANTS) == sum(len(decoder.mutants) for decoder in DECODERS), "names are distinct"


def test_the_page_is_that_of_the_table():
    page = Path(__file__).parents[2] / "docs" / "mutants.md"
    assert page.read_text() == table(), "python -m tests.spd_core.mutants > docs/mutants.md"
