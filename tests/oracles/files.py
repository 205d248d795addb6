"""Where the tests find oracles: copies that travel with the project, and the full set beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.oracles import check

REPOSITORY = Path(__file__).parents[2]
SHARED = REPOSITORY.parent / "shared" / "golden" / "public"
#: Some of the copies hold fewer outputs than the originals.
BUNDLED = REPOSITORY / "tests" / "data" / "oracles"


def shared(name: str) -> Path:
    """Path of a file of the full set; skips the calling test where the set is absent."""
    path = SHARED / f"{name}.json"
    if not path.exists():
        pytest.skip(f"the full reference data is absent: {SHARED}")
    return path


def find(name: str) -> Path:
    """The bundled copy, or else the original."""
    bundled = BUNDLED / f"{name}.json"
    return bundled if bundled.exists() else shared(name)


def failing(path: Path, key: str = "") -> set[str]:
    """Outputs of an oracle that our code does not reproduce; with a key, those of that output's run."""
    return {finding.key for finding in check(path, key=key) if not finding.passed}
