"""What every test shares."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What `method: auto` remembers stays within a test."""
    monkeypatch.setenv("SPD_CACHE", str(tmp_path_factory.mktemp("cache")))
