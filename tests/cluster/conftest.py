from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.nodes import Nodes
from tests.seaweed import s3, s3_options
from tests.tiny_pair import make_tiny_pair

__all__ = ["s3", "s3_options"]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_pair(tmp_path_factory.mktemp("pairs") / "tiny"))


@pytest.fixture(scope="session")
def aws(s3_options: dict[str, str]) -> dict[str, str]:
    """The server and its keys as the usual variables."""
    return {
        "AWS_ACCESS_KEY_ID": s3_options["key"],
        "AWS_SECRET_ACCESS_KEY": s3_options["secret"],
        "AWS_ENDPOINT_URL": s3_options["endpoint_url"],
    }


@pytest.fixture
def nodes(tmp_path: Path, aws: dict[str, str]) -> Iterator[Nodes]:
    """A head without CPUs; the test adds what works."""
    yield from _running(tmp_path, aws)


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory, aws: dict[str, str]) -> Iterator[Nodes]:
    """A head and two nodes of one CPU, which no test takes away."""
    for cluster in _running(tmp_path_factory.mktemp("cluster"), aws):
        cluster.add(1)
        cluster.add(1)
        yield cluster


def _running(folder: Path, variables: dict[str, str]) -> Iterator[Nodes]:
    cluster = Nodes(folder, variables)
    try:
        yield cluster
    finally:
        cluster.stop()
