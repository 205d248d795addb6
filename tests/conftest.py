"""What every test shares."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: the processes of a run share the cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_user(tmp_path_factory):
    """Nor do fixtures of whole modules touch what the user's own runs remember."""
    os.environ["SPD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """What `method: auto` remembers stays within a test."""
    monkeypatch.setenv("SPD_CACHE", str(tmp_path_factory.mktemp("cache")))
