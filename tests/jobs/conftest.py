"""A finished dataset, made once a module, and a copy of it for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.jobs.tree import make_tree
from workers.store import Store


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    make_tree(folder)
    return folder


@pytest.fixture
def store(finished, tmp_path) -> Store:
    """A copy of the finished dataset that a test may damage."""
    shutil.copytree(finished / "out", tmp_path / "out")
    return Store(str(tmp_path / "out"))
